"""Fixtures of the whole suite: the spec's, and a guard that each test leaves logging as it was."""

from __future__ import annotations

import gc
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from foundry_log import (
    ErrorTracker,
    ExperimentConfig,
    LoggingConfig,
    MetricsLogger,
    PerformanceLogger,
    StructuredLogger,
)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs so, and their children inherit it; some tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)

TEXT = "".join(f"def f{n}(x):\n    return x * {n} + {n % 7}\n\n" for n in range(400))


def _state(logger: logging.Logger) -> tuple[Any, ...]:
    return (logger.level, tuple(logger.handlers), tuple(logger.filters), logger.disabled)


@pytest.fixture(autouse=True)
def leaves_logging_alone() -> Iterator[None]:
    """Fail a test that leaves threads or changes the root logger; undo what it did to others."""
    root = logging.getLogger()
    before, threads = _state(root), set(threading.enumerate())
    known = {
        name: (_state(logger), logger.propagate)
        for name, logger in root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger)
    }
    disable, factory = root.manager.disable, logging.getLogRecordFactory()
    yield
    after = _state(root)
    leaked = [
        thread for thread in threading.enumerate() if thread not in threads and _stays(thread)
    ]
    _restore(root, before)
    for name, logger in root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger):
            if name not in known and name.startswith("torch"):
                continue  # its import quietens it; undone, it would log each backward pass
            state, propagate = known.get(name, ((logging.NOTSET, (), (), False), True))
            _restore(logger, state)
            logger.propagate = propagate
    logging.disable(disable)
    assert after == before, "the test left the root logger changed"
    assert not leaked, f"the test left threads: {leaked}"
    assert logging.getLogRecordFactory() is factory, "the test left a record factory"


def _stays(thread: threading.Thread) -> bool:
    """Whether a thread has more than its last moments; `dictConfig` closes handlers of others."""
    thread.join(2)
    return thread.is_alive()


def _restore(logger: logging.Logger, state: tuple[Any, ...]) -> None:
    level, handlers, filters, disabled = state
    for handler in logger.handlers:
        if handler not in handlers:
            handler.close()
    logger.handlers[:] = handlers
    logger.filters[:] = filters
    logger.disabled = disabled
    logger.setLevel(level)


@pytest.fixture(scope="session")
def azurite() -> Iterator[Any]:
    """A server that speaks Azure Blob Storage's protocol, on loopback."""
    pytest.importorskip(
        "azure.storage.blob",
        reason="needs test-services: pip install 'foundry_log[test-services]'",
    )
    from tests.azurite import running_azurite

    with running_azurite() as server:
        yield server


@pytest.fixture
def loses_connections(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Collect what the SDK of the bus leaves open of connections it has lost, before the next test.

    The test itself ignores its warnings. Records of errors hold the sockets too.
    """
    yield
    caplog.get_records("call").clear()
    gc.collect()


@pytest.fixture
def temp_workspace(tmp_path: Path) -> Path:
    """A directory with a small text to train on."""
    workspace = tmp_path / "workspace"
    (workspace / "data").mkdir(parents=True)
    (workspace / "data" / "text.py").write_text(TEXT)
    return workspace


@pytest.fixture
def tiny_config(temp_workspace: Path) -> ExperimentConfig:
    """An experiment called "test" that trains ten steps in a moment."""
    return ExperimentConfig(
        experiment_name="test",
        data={"path": temp_workspace / "data", "sequence_length": 16},
        model={"hidden_size": 16, "num_layers": 1, "num_heads": 2},
        training={
            "train_steps": 10,
            "batch_size": 2,
            "warmup_steps": 2,
            "eval_batches": 2,
            "device": "cpu",
        },
        logging=LoggingConfig(log_metrics_every_n_steps=1, log_to_wandb=False),
    )


@pytest.fixture
def mock_tokenizer() -> MagicMock:
    """A tokenizer that is not ours, of 128 tokens."""
    tokenizer = MagicMock(name="tokenizer")
    tokenizer.vocab_size = 128
    tokenizer.encode.side_effect = lambda text: [3 + ord(letter) % 100 for letter in text]
    return tokenizer


@pytest.fixture
def mock_logger() -> logging.Logger:
    """The stdlib logger that the spec's tests share."""
    return logging.getLogger("test")


@pytest.fixture
def structured_logger(tiny_config: ExperimentConfig) -> StructuredLogger:
    """A StructuredLogger over the logger "test"."""
    return StructuredLogger("test", tiny_config)


@pytest.fixture
def metrics_logger(tmp_path: Path) -> Iterator[MetricsLogger]:
    """A MetricsLogger that writes to `tmp_path`."""
    metrics = MetricsLogger("test_exp", tmp_path)
    yield metrics
    metrics.close()


@pytest.fixture
def performance_logger(mock_logger: logging.Logger) -> PerformanceLogger:
    """A PerformanceLogger over the logger "test"."""
    return PerformanceLogger(mock_logger)


@pytest.fixture
def error_tracker(mock_logger: logging.Logger, tmp_path: Path) -> Iterator[ErrorTracker]:
    """An ErrorTracker that writes to `tmp_path`."""
    tracker = ErrorTracker(mock_logger, tmp_path)
    yield tracker
    tracker.close()
