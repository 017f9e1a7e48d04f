"""Checkpoints: whole or not there, and logged."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from foundry_log import ExperimentConfig, PerformanceLogger, StructuredLogger

torch = pytest.importorskip("torch", reason="needs torch: pip install 'foundry_log[torch]'")
torch.set_num_threads(1)  # two threads are many times slower on some machines

from foundry_log.training.checkpoints import CheckpointWriter  # noqa: E402 - it imports torch

pytestmark = pytest.mark.unit

STATE = {"weight": torch.arange(3.0), "bias": torch.ones(2)}


class Recorder(logging.Handler):
    """Keeps records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def contexts(self) -> dict[str, dict[str, Any]]:
        """Message to context."""
        return {
            record.__dict__["foundry_message"]: record.__dict__["foundry_context"]
            for record in self.records
        }


@pytest.fixture
def logger(tiny_config: ExperimentConfig) -> StructuredLogger:
    """A logger that lets everything through."""
    logger = StructuredLogger("test.checkpoints", tiny_config)
    logger.logger.setLevel(logging.DEBUG)
    return logger


@pytest.fixture
def performance(logger: StructuredLogger) -> PerformanceLogger:
    """The timers of the writer."""
    return PerformanceLogger(logger)


@pytest.fixture
def writer(
    tmp_path: Path, logger: StructuredLogger, performance: PerformanceLogger
) -> CheckpointWriter:
    """A writer of checkpoints below `tmp_path`."""
    return CheckpointWriter(tmp_path / "checkpoints", logger, performance)


def names(root: Path) -> list[str]:
    """What a directory holds, hidden files too."""
    return sorted(path.name for path in root.iterdir())


def test_a_checkpoint_has_model_and_optimizer(writer: CheckpointWriter) -> None:
    """In a directory of its step, six digits wide, so that names sort as steps do."""
    directory = writer.save(500, 1, STATE, {})
    assert directory == writer.root / "step_000500"
    assert names(directory) == ["model.pt", "optimizer.pt"]


def test_a_checkpoint_loads_without_running_code(writer: CheckpointWriter) -> None:
    """`torch.load(weights_only=True)` gives back model and a real optimizer's state."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    directory = writer.save(1, 1, model.state_dict(), optimizer.state_dict())
    loaded = torch.load(directory / "model.pt", weights_only=True)
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
    again = torch.optim.AdamW(model.parameters())
    again.load_state_dict(torch.load(directory / "optimizer.pt", weights_only=True))
    assert again.state_dict()["state"][0]["step"] == 1


def test_nothing_else_is_left_beside_it(writer: CheckpointWriter) -> None:
    """The directory that it was written to has been renamed."""
    writer.save(1, 1, STATE, STATE)
    assert names(writer.root) == ["step_000001"]


def test_a_failure_leaves_the_checkpoints_of_before(writer: CheckpointWriter) -> None:
    """Half a checkpoint is none: what was written of it is gone."""
    writer.save(1, 1, STATE, STATE)
    with pytest.raises(Exception, match="pickle"):
        writer.save(2, 1, STATE, {"state": lambda: None})
    assert names(writer.root) == ["step_000001"]


def test_a_failure_leaves_the_checkpoint_of_the_same_step(writer: CheckpointWriter) -> None:
    """It is replaced when the new one is whole, not before."""
    directory = writer.save(1, 1, STATE, STATE)
    with pytest.raises(Exception, match="pickle"):
        writer.save(1, 1, {}, {"state": lambda: None})
    assert torch.load(directory / "model.pt", weights_only=True).keys() == STATE.keys()


def test_a_second_run_replaces_the_checkpoint_of_a_step(writer: CheckpointWriter) -> None:
    """The same experiment run again in the same directory."""
    writer.save(1, 1, STATE, STATE)
    directory = writer.save(1, 1, {"other": torch.zeros(1)}, STATE)
    assert list(torch.load(directory / "model.pt", weights_only=True)) == ["other"]
    assert names(writer.root) == ["step_000001"]


def test_what_a_killed_run_left_is_in_nobodys_way(writer: CheckpointWriter) -> None:
    """Killed while it wrote or replaced a checkpoint, it leaves hidden directories."""
    for name in ("step_000001", ".step_000001.partial", ".step_000001.replaced"):
        (writer.root / name).mkdir(parents=True)
        (writer.root / name / "model.pt").write_bytes(b"left")
    writer.save(1, 1, STATE, STATE)
    assert names(writer.root) == ["step_000001"]


def test_both_parts_are_timed(writer: CheckpointWriter, performance: PerformanceLogger) -> None:
    """As the blocks `save_model` and `save_optimizer`."""
    writer.save(1, 1, STATE, STATE)
    assert {name: len(times) for name, times in performance.timers.items()} == {
        "save_model": 1,
        "save_optimizer": 1,
    }


def test_begin_and_end_are_logged(writer: CheckpointWriter, logger: StructuredLogger) -> None:
    """With step, epoch and directory; then with size and time."""
    recorder = Recorder()
    logger.logger.addHandler(recorder)
    directory = writer.save(7, 2, STATE, STATE)
    begin, end = (
        recorder.contexts()[message]
        for message in ("Saving checkpoint", "Checkpoint saved successfully")
    )
    assert (begin["step"], begin["epoch"], begin["checkpoint_dir"]) == (7, 2, str(directory))
    size = sum(path.stat().st_size for path in directory.iterdir())
    assert (end["step"], end["checkpoint_size_gb"]) == (7, size / 1e9)
    assert end["save_time_seconds"] > 0
