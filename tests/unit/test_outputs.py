"""What the Trainer's records reach besides the run's files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from foundry_log import ExperimentConfig, RunDirectory, SinkHandler, read_jsonl
from foundry_log.metrics import MetricsLogger
from foundry_log.training import outputs
from foundry_log.training.outputs import system_monitor, trackers

pytestmark = pytest.mark.unit


class Keeping(SinkHandler):
    """Keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.steps: list[int] = []

    def text(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def metrics(self, step: int, epoch: int, values: Any, entry: Any) -> None:
        self.steps.append(step)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """Of a run called "test"."""
    return RunDirectory.of(tmp_path, "test")


def wanted(config: ExperimentConfig, directory: RunDirectory, is_new: bool) -> list[Any]:
    """The trackers of a configuration, which have not begun."""
    handlers: list[Any] = list(outputs._wanted(config, directory, is_new))
    for handler in handlers:
        handler.close()
    return handlers


def test_a_tracker_gets_metrics_and_warnings_and_is_taken_off(
    tiny_config: ExperimentConfig, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No alarm twice, nothing that a tracker's own package says, and no handler is left."""
    kept = Keeping()
    monkeypatch.setattr(outputs, "_wanted", lambda *_: [kept])  # in place of a real tracker
    loggers = (logging.getLogger(), logging.getLogger("foundry_log.metrics.test"))
    before = [logger.handlers[:] for logger in loggers]
    metrics = MetricsLogger("test", directory.path)
    with trackers(tiny_config, directory, is_new=True):
        metrics.log_step(1, 0, {"loss": float("nan")})
        for name in ("anything", "wandb", "wandb.sdk", "tensorboard.summary"):
            logging.getLogger(name).warning("said by %s", name)
        logging.getLogger("anything").info("of no account")
    metrics.close()

    assert kept.steps == [1]
    assert kept.texts == ["loss is not finite: nan", "said by anything"]
    assert [logger.handlers for logger in loggers] == before


def test_a_run_that_begins_anew_is_another_run_for_wandb(
    tiny_config: ExperimentConfig, directory: RunDirectory
) -> None:
    """One that goes on has the id that the directory keeps."""
    tiny_config.logging.log_to_wandb = True
    (first,), (second,), (resumed,) = (
        wanted(tiny_config, directory, is_new) for is_new in (True, True, False)
    )
    assert first.run_id != second.run_id
    assert resumed.run_id is None


def test_the_first_rank_alone_has_trackers(
    tiny_config: ExperimentConfig, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the first on each machine watches it."""
    tiny_config.logging.log_to_wandb = tiny_config.logging.log_to_tensorboard = True
    assert len(wanted(tiny_config, directory, True)) == 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert wanted(tiny_config, directory, True) == []
    metrics = MetricsLogger("test", directory.path)
    with system_monitor(tiny_config, directory, metrics):
        pass
    assert not list(read_jsonl(directory.system_metrics))
    monkeypatch.setenv("LOCAL_RANK", "0")
    with system_monitor(tiny_config, directory, metrics):
        pass
    assert list(read_jsonl(directory.system_metrics))


def test_a_failing_run_has_failed_for_who_wants_to_know() -> None:
    """`finish` gets the status, where there is one; all others are closed."""
    statuses = []

    class Finishing(Keeping):
        def finish(self, exit_code: int = 0) -> None:
            statuses.append(exit_code)
            self.close()

    for error in (None, ValueError):
        outputs._closing(Finishing())(error, None, None)
    plain = Keeping()
    outputs._closing(plain)(ValueError, None, None)
    assert statuses == [0, 1]
    assert not plain.call(lambda: None), "it is closed"
