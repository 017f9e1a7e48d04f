"""TensorBoardHandler: what TensorBoard itself reads back from the event files."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foundry_log import MetricsLogger, TensorBoardHandler
from foundry_log.records import entry_record

torch = pytest.importorskip("torch", reason="needs torch: pip install 'foundry_log[torch]'")
pytest.importorskip(
    "tensorboard", reason="needs tensorboard: pip install 'foundry_log[test-frameworks]'"
)
torch.set_num_threads(1)

from tensorboard.backend.event_processing import event_accumulator  # noqa: E402 - optional
from tensorboard.summary.writer import event_file_writer  # noqa: E402

pytestmark = [pytest.mark.integration, pytest.mark.frameworks]

METRICS = "foundry_log.metrics.board"


@pytest.fixture
def metrics(tmp_path: Path) -> Iterator[MetricsLogger]:
    """The metrics logger of a run."""
    logger = MetricsLogger("board", tmp_path / "run")
    yield logger
    logger.close()


def board(path: Path, **options: Any) -> TensorBoardHandler:
    """A handler that gets the metrics."""
    handler = TensorBoardHandler(path, **options)
    logging.getLogger(METRICS).addHandler(handler)
    return handler


def end(handler: logging.Handler) -> None:
    """Close a handler and take it off."""
    logging.getLogger(METRICS).removeHandler(handler)
    handler.close()


def offer(handler: logging.Handler, **entry: Any) -> None:
    """Hand a sink an entry, as MetricsLogger does."""
    handler.handle(entry_record(METRICS, logging.INFO, "entry", entry))


def events(path: Path) -> Any:
    """What TensorBoard reads, nothing left out."""
    found = event_accumulator.EventAccumulator(str(path), size_guidance={"scalars": 0})
    return found.Reload()


def steps(read: Any, name: str) -> list[tuple[int, float]]:
    """Step and value of each event."""
    return [(event.step, event.value) for event in read.Scalars(name)]


def text(read: Any, name: str) -> str:
    """The latest text of a name."""
    return str(read.Tensors(f"{name}/text_summary")[-1].tensor_proto.string_val[0].decode())


class TestScalars:
    """Numbers by step."""

    def test_each_step_is_there_with_its_values(
        self, tmp_path: Path, metrics: MetricsLogger
    ) -> None:
        """In float32, under their own names."""
        handler = board(tmp_path / "tb")
        for step in range(100):
            metrics.log_step(step, 0, {"loss": step / 4, "layer": {"norm": 2}, "tag": "a"})
        metrics.log_epoch_summary(0, {"loss": 3.5})
        end(handler)

        read = events(tmp_path / "tb")
        assert steps(read, "loss") == [(step, step / 4) for step in range(100)]
        assert steps(read, "layer/norm") == [(step, 2.0) for step in range(100)]
        assert steps(read, "epoch/loss") == [(99, 3.5)]
        assert set(read.Tags()["scalars"]) == {"loss", "layer/norm", "epoch/loss"}
        assert not handler.losses

    def test_nan_and_infinities_stay_what_they_are(
        self, tmp_path: Path, metrics: MetricsLogger
    ) -> None:
        """A chart shows them as gaps, the event file has them."""
        handler = board(tmp_path / "tb")
        metrics.log_step(1, 0, {"a": math.nan, "b": math.inf, "c": -math.inf})
        end(handler)

        read = events(tmp_path / "tb")
        assert math.isnan(steps(read, "a")[0][1])
        assert steps(read, "b") == [(1, math.inf)]
        assert steps(read, "c") == [(1, -math.inf)]

    def test_an_event_has_the_time_of_its_record(self, tmp_path: Path) -> None:
        """Not that at which the thread came to it."""
        handler = TensorBoardHandler(tmp_path)
        record = entry_record(
            METRICS, logging.INFO, "entry", {"step": 7, "epoch": 0, "metrics": {"loss": 1.0}}
        )
        record.created = 1234.5
        handler.handle(record)
        handler.close()

        (event,) = events(tmp_path).Scalars("loss")
        assert (event.wall_time, event.step) == (1234.5, 7)

    def test_the_machine_is_measured_at_the_latest_step(self, tmp_path: Path) -> None:
        """System metrics know of no step."""
        handler = TensorBoardHandler(tmp_path)
        offer(handler, step=5, epoch=0, metrics={"loss": 1.0})
        offer(handler, system={"cpu_percent": 12.0, "gpu.0.memory_gb": 2.5})
        handler.close()

        read = events(tmp_path)
        assert steps(read, "system/cpu_percent") == [(5, 12.0)]
        assert steps(read, "system/gpu.0.memory_gb") == [(5, 2.5)]

    def test_flush_writes_what_was_logged(self, tmp_path: Path, metrics: MetricsLogger) -> None:
        """Before the end, and before its own time has come."""
        handler = board(tmp_path / "tb", flush_secs=3600)
        for step in range(20):
            metrics.log_step(step, 0, {"loss": 0.5})
        handler.flush()
        read = events(tmp_path / "tb")
        end(handler)
        handler.flush()

        assert steps(read, "loss") == [(step, 0.5) for step in range(20)]
        assert not handler.losses

    def test_nothing_logged_is_no_event_file(self, tmp_path: Path) -> None:
        """A flush begins none."""
        handler = TensorBoardHandler(tmp_path / "tb")
        handler.flush()
        handler.close()

        assert not (tmp_path / "tb").exists()


class TestTexts:
    """What is no number."""

    def test_configuration_checkpoints_and_warnings_are_texts(self, tmp_path: Path) -> None:
        """JSON in a block; a warning's line under its level."""
        handler = TensorBoardHandler(tmp_path)
        config = {"model": {"layers": 2}, "name": "a"}
        facts = {"path": "c/5", "step": 5, "epoch": 1, "size_bytes": 9, "eval_loss": None}
        offer(handler, config=config)
        offer(handler, checkpoint=facts)
        handler.handle(logging.LogRecord("t", logging.WARNING, "", 0, "loss is NaN", None, None))
        handler.close()

        read = events(tmp_path)
        assert json.loads(text(read, "config")) == config
        assert json.loads(text(read, "checkpoint")) == facts
        assert text(read, "log/WARNING").endswith("loss is NaN")
        assert all(line.startswith("    ") for line in text(read, "config").splitlines())


class TestResume:
    """A run goes on behind a checkpoint."""

    @pytest.fixture(autouse=True)
    def in_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """TensorBoard sorts the files of one second by text, so that number 10 is before 9."""
        counter = event_file_writer.AtomicCounter(0)
        monkeypatch.setattr(event_file_writer, "_global_uid", counter)

    def test_the_steps_of_the_earlier_attempt_vanish(self, tmp_path: Path) -> None:
        """No doubles and no holes: those behind the checkpoint are the new attempt's."""
        first = TensorBoardHandler(tmp_path)
        offer(first, config={"a": 1})
        for step in range(1, 11):
            offer(first, step=step, epoch=0, metrics={"loss": 1.0}, attempt=1)
        first.close()
        second = TensorBoardHandler(tmp_path)
        offer(second, config={"a": 1})
        offer(second, attempt=2, resumed_from_step=6)
        for step in (7, 8):
            offer(second, step=step, epoch=0, metrics={"loss": 2.0}, attempt=2)
        second.close()

        old = [(step, 1.0) for step in range(1, 7)]
        assert steps(events(tmp_path), "loss") == [*old, (7, 2.0), (8, 2.0)]

    def test_from_scratch_all_steps_vanish(self, tmp_path: Path) -> None:
        """Step 0 too; the configuration, which stands there, is the new attempt's."""
        for attempt, rate in ((1, 0.1), (2, 0.2)):
            handler = TensorBoardHandler(tmp_path)
            offer(handler, config={"rate": rate})
            if attempt > 1:
                offer(handler, attempt=attempt, resumed_from_step=0)
            for step in range(3):
                offer(handler, step=step, epoch=0, metrics={"loss": rate}, attempt=attempt)
            handler.close()

        read = events(tmp_path)
        assert [step for step, _ in steps(read, "loss")] == [0, 1, 2]
        assert "0.2" in text(read, "config")


class TestUnhappyRoads:
    """Missing, broken, wrong."""

    @pytest.mark.parametrize(
        ("package", "extra"), [("torch", "torch"), ("tensorboard", "tensorboard")]
    )
    def test_without_the_package_the_run_goes_on(
        self, package: str, extra: str, tmp_path: Path
    ) -> None:
        """One warning says what to install; the local file has everything."""
        script = f"""
import logging, sys
sys.modules[{package!r}] = None
from foundry_log import MetricsLogger, TensorBoardHandler
logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout, level="WARNING")
handler = TensorBoardHandler("tb")
logging.getLogger("foundry_log.metrics.e").addHandler(handler)
metrics = MetricsLogger("e", ".")
for step in range(3):
    metrics.log_step(step, 0, {{"loss": 1}})
handler.close()
print(dict(handler.losses), len(metrics.get_metrics_history()))
"""
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", script],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        warning, last = done.stdout.splitlines()
        assert warning.startswith(f"WARNING TensorBoardHandler needs {package}")
        assert f"pip install 'foundry_log[{extra}]'" in warning
        assert last == "{'ImportError': 3} 3"

    def test_a_directory_that_cannot_be_made_is_a_warning_and_a_count(
        self, tmp_path: Path, metrics: MetricsLogger, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The run goes on."""
        (tmp_path / "tb").write_text("a file")
        handler = board(tmp_path / "tb", retries=0)
        for step in range(3):
            metrics.log_step(step, 0, {"loss": 1.0})
        end(handler)

        assert sum(handler.losses.values()) == 3
        assert len([each for each in caplog.records if each.name == "foundry_log.sinks"]) == 1
        assert len(metrics.get_metrics_history()) == 3

    def test_a_wrong_value_is_refused(self, tmp_path: Path) -> None:
        """When the handler is made."""
        with pytest.raises(ValueError, match="flush_secs=0 must be above 0 seconds"):
            TensorBoardHandler(tmp_path, flush_secs=0)
