"""MetricsLogger: every case of the specification, and what its file is promised to survive."""

from __future__ import annotations

import json
import logging
import logging.config
import logging.handlers
import math
import multiprocessing
import queue
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from foundry_log import MetricsLogger, RedactingFilter, RotatingJsonlHandler, bound, read_jsonl
from foundry_log.files import filenames

pytestmark = pytest.mark.unit


def lines(path: Path) -> list[dict[str, Any]]:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def human(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the lines for people; pytest 9 catches what does not propagate too, alarms twice."""
    found = dict.fromkeys(caplog.records)
    return [record for record in found if record.name == "foundry_log.metrics"]


class Keeping(logging.Handler):
    """A sink that keeps its records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def sink(metrics_logger: MetricsLogger) -> Iterator[Keeping]:
    keeping = Keeping()
    logger = logging.getLogger("foundry_log.metrics.test_exp")
    logger.addHandler(keeping)
    yield keeping
    logger.removeHandler(keeping)


class TestMetricsLoggerBasics:
    def test_creates_metrics_file(self, tmp_path: Path) -> None:
        """
        GIVEN: A directory that does not exist
        WHEN: Creating a MetricsLogger for it
        THEN: The directory is made and the file's path is known.
        """
        metrics = MetricsLogger("exp", str(tmp_path / "a" / "b"))
        assert metrics.experiment_name == "exp"
        assert metrics.output_dir == tmp_path / "a" / "b"
        assert metrics.metrics_file == tmp_path / "a" / "b" / "metrics.jsonl"
        assert metrics.output_dir.is_dir()

    def test_log_step_writes_jsonl(self, metrics_logger: MetricsLogger) -> None:
        """
        GIVEN: A MetricsLogger
        WHEN: Logging one step
        THEN: One line of JSON holds step, epoch, metrics and a time stamp with its zone.
        """
        metrics_logger.log_step(100, 2, {"loss": 2.5, "lr": 1e-4})
        (entry,) = lines(metrics_logger.metrics_file)
        stamp = datetime.fromisoformat(entry.pop("timestamp"))
        assert stamp.utcoffset() == timedelta(0)
        metrics = {"loss": 2.5, "lr": 1e-4}
        assert entry == {"step": 100, "epoch": 2, "metrics": metrics, "attempt": 1}

    def test_log_step_appends_to_file(self, metrics_logger: MetricsLogger, tmp_path: Path) -> None:
        """
        GIVEN: A file with a step in it
        WHEN: Logging more, also from a second MetricsLogger
        THEN: Nothing is overwritten.
        """
        metrics_logger.log_step(1, 0, {"loss": 3.0})
        metrics_logger.log_step(2, 0, {"loss": 2.0})
        again = MetricsLogger("test_exp", tmp_path)
        again.log_step(3, 0, {"loss": 1.0})
        again.close()
        assert [entry["step"] for entry in lines(metrics_logger.metrics_file)] == [1, 2, 3]

    def test_a_line_stands_in_the_file_when_the_call_returns(
        self, metrics_logger: MetricsLogger
    ) -> None:
        """
        GIVEN: A MetricsLogger that stays open
        WHEN: Reading the file after each step
        THEN: The step is there.
        """
        for step in range(3):
            metrics_logger.log_step(step, 0, {})
            assert len(lines(metrics_logger.metrics_file)) == step + 1

    def test_close_twice_and_log_again(self, metrics_logger: MetricsLogger) -> None:
        """
        GIVEN: A MetricsLogger that was closed twice
        WHEN: Logging a step
        THEN: The file is opened again.
        """
        metrics_logger.close()
        metrics_logger.close()
        metrics_logger.log_step(1, 0, {})
        assert len(metrics_logger.get_metrics_history()) == 1


class TestMetricsLoggerAggregation:
    def test_log_epoch_summary(self, metrics_logger: MetricsLogger) -> None:
        """
        GIVEN: Steps of an epoch
        WHEN: Logging its summary
        THEN: A line with epoch, summary and the latest step follows, or the one that is given.
        """
        metrics_logger.log_step(1, 1, {"loss": 2.0})
        metrics_logger.log_epoch_summary(1, {"avg_loss": 2.0, "steps": 1})
        entry = lines(metrics_logger.metrics_file)[-1]
        summary = {"avg_loss": 2.0, "steps": 1}
        del entry["timestamp"]
        assert entry == {"epoch": 1, "summary": summary, "step": 1, "attempt": 1}
        metrics_logger.log_epoch_summary(1, {}, step=7)
        assert lines(metrics_logger.metrics_file)[-1]["step"] == 7

    def test_a_summary_before_the_first_step_has_none(self, metrics_logger: MetricsLogger) -> None:
        """
        GIVEN: No step
        WHEN: Logging a summary
        THEN: Its line has no step.
        """
        metrics_logger.log_epoch_summary(1, {})
        (entry,) = lines(metrics_logger.metrics_file)
        assert set(entry) == {"timestamp", "epoch", "summary", "attempt"}

    def test_get_metrics_history(self, metrics_logger: MetricsLogger) -> None:
        """
        GIVEN: Several steps and a summary
        WHEN: Asking for the history
        THEN: All entries come in the order they were written.
        """
        for step in range(5):
            metrics_logger.log_step(step, 0, {"loss": step * 0.5})
        metrics_logger.log_epoch_summary(0, {"n": 5})
        history = metrics_logger.get_metrics_history()
        assert [entry.get("step") for entry in history] == [0, 1, 2, 3, 4, 4]
        assert history[3]["metrics"] == {"loss": 1.5}

    def test_history_without_a_file_is_empty(self, metrics_logger: MetricsLogger) -> None:
        """
        GIVEN: Nothing logged
        WHEN: Asking
        THEN: Empty answers, and no file comes to be.
        """
        assert metrics_logger.get_metrics_history() == []
        assert metrics_logger.get_metrics_for_steps(0, 9) == []
        assert metrics_logger.compute_statistics("loss") == {}
        assert not metrics_logger.metrics_file.exists()

    def test_get_metrics_for_steps(self, metrics_logger: MetricsLogger) -> None:
        """
        GIVEN: Steps 0 to 1000 by hundreds, and a summary
        WHEN: Asking for 200 to 500
        THEN: Both ends are included, and summaries are not.
        """
        for step in range(0, 1001, 100):
            metrics_logger.log_step(step, 0, {"loss": 1.0})
        metrics_logger.log_epoch_summary(0, {"loss": 1.0}, step=300)
        found = metrics_logger.get_metrics_for_steps(200, 500)
        assert [entry["step"] for entry in found] == [200, 300, 400, 500]

    def test_compute_statistics(self, metrics_logger: MetricsLogger) -> None:
        """
        GIVEN: Several losses
        WHEN: Computing their statistics
        THEN: Count, mean, extremes and the sample standard deviation.
        """
        losses = [3.0, 2.5, 2.0, 1.5, 1.25]
        for step, loss in enumerate(losses):
            metrics_logger.log_step(step, 0, {"loss": loss})
        metrics_logger.log_epoch_summary(0, {"loss": 99.0})
        result = metrics_logger.compute_statistics("loss")
        assert set(result) == {"count", "mean", "min", "max", "std"}
        assert (result["count"], result["min"], result["max"]) == (5, 1.25, 3.0)
        assert result["mean"] == pytest.approx(statistics.mean(losses))
        assert result["std"] == pytest.approx(statistics.stdev(losses))

    def test_statistics_of_one_value_have_no_spread(self, metrics_logger: MetricsLogger) -> None:
        """
        GIVEN: One value
        WHEN: Computing statistics
        THEN: std is 0.0.
        """
        metrics_logger.log_step(0, 0, {"loss": 2.0})
        assert metrics_logger.compute_statistics("loss") == {
            "count": 1,
            "mean": 2.0,
            "min": 2.0,
            "max": 2.0,
            "std": 0.0,
        }

    def test_statistics_take_finite_numbers_alone(self, metrics_logger: MetricsLogger) -> None:
        """
        GIVEN: NaN, infinities, text, lists and an integer beyond the floats among the values
        WHEN: Computing statistics, twice
        THEN: Only the finite numbers count, and the question itself never fails.
        """
        for value in (1.0, math.nan, math.inf, -math.inf, "x", None, [2.0], 10**400, 3):
            metrics_logger.log_step(0, 0, {"loss": value})
        for _ in range(2):
            result = metrics_logger.compute_statistics("loss")
            assert (result["count"], result["mean"]) == (2, 2.0)

    def test_statistics_read_only_what_is_new(self, metrics_logger: MetricsLogger) -> None:
        """
        GIVEN: Statistics that were computed once
        WHEN: The old lines are spoiled in place and a step is added
        THEN: The old values still count: they are not read again.
        """
        for step in range(50):
            metrics_logger.log_step(step, 0, {"loss": 1.0})
        assert metrics_logger.compute_statistics("loss")["count"] == 50
        size = metrics_logger.metrics_file.stat().st_size
        with open(metrics_logger.metrics_file, "r+b") as file:
            file.seek(200)
            file.write(b"#" * (size - 300))
        metrics_logger.log_step(50, 0, {"loss": 3.0})
        result = metrics_logger.compute_statistics("loss")
        assert (result["count"], result["max"]) == (51, 3.0)

    def test_statistics_count_every_process_of_the_run(
        self, metrics_logger: MetricsLogger, tmp_path: Path
    ) -> None:
        """
        GIVEN: Steps of an earlier MetricsLogger, and of another one between two questions
        WHEN: Computing statistics
        THEN: They are of the whole history, for each metric.
        """
        earlier = MetricsLogger("test_exp", tmp_path)
        earlier.log_step(0, 0, {"loss": 1.0})
        assert metrics_logger.compute_statistics("loss")["count"] == 1
        earlier.log_step(1, 0, {"loss": 2.0, "lr": 0.5})
        metrics_logger.log_step(2, 0, {"loss": 3.0})
        assert metrics_logger.compute_statistics("loss")["count"] == 3
        assert metrics_logger.compute_statistics("lr")["count"] == 1
        earlier.close()


class TestMetricsLoggerSpecificMetrics:
    def test_log_gradient_norm(self, metrics_logger: MetricsLogger) -> None:
        """
        GIVEN: A step with a gradient norm
        WHEN: Logging it
        THEN: The norm is among the metrics.
        """
        metrics_logger.log_step(1, 0, {"loss": 2.0, "grad_norm": 0.85})
        assert metrics_logger.get_metrics_history()[0]["metrics"]["grad_norm"] == 0.85

    def test_log_learning_rate_schedule(self, metrics_logger: MetricsLogger) -> None:
        """
        GIVEN: A learning rate that falls
        WHEN: Logging it at each step
        THEN: The history shows how it fell, to the last digit.
        """
        rates = [1e-4 * 0.9**step for step in range(5)]
        for step, rate in enumerate(rates):
            metrics_logger.log_step(step, 0, {"lr": rate})
        assert [e["metrics"]["lr"] for e in metrics_logger.get_metrics_history()] == rates

    def test_log_throughput_metrics(self, metrics_logger: MetricsLogger) -> None:
        """
        GIVEN: Throughput of a step
        WHEN: Logging it
        THEN: Tokens and samples per second are kept.
        """
        throughput = {"tokens_per_sec": 15_000.5, "samples_per_sec": 32}
        metrics_logger.log_step(1, 0, throughput)
        assert metrics_logger.get_metrics_history()[0]["metrics"] == throughput


class TestMetricsLoggerEdgeCases:
    def test_handles_nan_inf_values(self, metrics_logger: MetricsLogger) -> None:
        """
        GIVEN: NaN and both infinities, also nested
        WHEN: Logging them
        THEN: The line is strict JSON with nulls, and the history gives the floats back.
        """
        values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": {"e": [math.inf]}, "f": None}
        metrics_logger.log_step(1, 0, values)
        (line,) = lines(metrics_logger.metrics_file)
        assert line["metrics"] == {"a": None, "b": None, "c": None, "d": {"e": [None]}, "f": None}
        (entry,) = metrics_logger.get_metrics_history()
        assert math.isnan(entry["metrics"]["a"])
        assert entry["metrics"]["b"] == math.inf
        assert entry["metrics"]["c"] == -math.inf
        assert entry["metrics"]["d"] == {"e": [math.inf]}
        assert entry["metrics"]["f"] is None
        assert set(entry) == {"timestamp", "step", "epoch", "metrics", "attempt"}

    def test_concurrent_writes_safe(self, metrics_logger: MetricsLogger) -> None:
        """
        GIVEN: Several threads
        WHEN: All log steps at once, while one asks for statistics
        THEN: Every step stands once, and the statistics are of all of them.
        """

        def write(first: int) -> None:
            for step in range(first, first + 100):
                metrics_logger.log_step(step, 0, {"loss": float(step)})
                if step % 20 == 0:
                    metrics_logger.compute_statistics("loss")

        threads = [threading.Thread(target=write, args=(n * 100,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        found = [entry["step"] for entry in metrics_logger.get_metrics_history()]
        assert sorted(found) == list(range(600))
        result = metrics_logger.compute_statistics("loss")
        assert (result["count"], result["mean"]) == (600, pytest.approx(299.5))

    def test_several_processes_write_one_file(self, metrics_logger: MetricsLogger) -> None:
        """
        GIVEN: Processes of a run that share its directory
        WHEN: All log steps at once
        THEN: Every step stands once.
        """
        context = multiprocessing.get_context("spawn")
        arguments = [(str(metrics_logger.output_dir), first) for first in (0, 100)]
        crew = [context.Process(target=log_hundred_steps, args=args) for args in arguments]
        for process in crew:
            process.start()
        for process in crew:
            process.join(60)
        found = [entry["step"] for entry in metrics_logger.get_metrics_history()]
        assert sorted(found) == list(range(200))

    def test_numpy_scalars_become_numbers(self, metrics_logger: MetricsLogger) -> None:
        """
        GIVEN: Scalars and a small array of numpy, also as step and epoch
        WHEN: Logging them
        THEN: The line has plain numbers, and statistics count them.
        """
        numpy = pytest.importorskip("numpy")
        metrics_logger.log_step(
            numpy.int64(7),
            numpy.int32(1),
            {
                "loss": numpy.float32(0.5),
                "n": numpy.int64(3),
                "nan": numpy.float64("nan"),
                "per_class": numpy.array([1.0, 2.0]),
            },
        )
        (entry,) = metrics_logger.get_metrics_for_steps(7, 7)
        assert math.isnan(entry["metrics"].pop("nan"))
        assert entry["metrics"] == {"loss": 0.5, "n": 3, "per_class": [1.0, 2.0]}
        assert metrics_logger.compute_statistics("loss")["count"] == 1

    def test_torch_scalars_become_numbers(self, metrics_logger: MetricsLogger) -> None:
        """
        GIVEN: Tensors of one element, one of them with a gradient
        WHEN: Logging them
        THEN: The line has plain numbers.
        """
        torch = pytest.importorskip("torch")
        loss = torch.tensor(0.5, requires_grad=True)
        metrics_logger.log_step(
            torch.tensor(7), 0, {"loss": loss, "half": torch.tensor(2.5, dtype=torch.bfloat16)}
        )
        (entry,) = metrics_logger.get_metrics_history()
        assert (entry["step"], entry["metrics"]) == (7, {"loss": 0.5, "half": 2.5})

    def test_values_of_any_kind_raise_nothing(self, metrics_logger: MetricsLogger) -> None:
        """
        GIVEN: Metrics, a step and an epoch whose own methods raise, and no mapping at all
        WHEN: Logging them
        THEN: Each gives a line, and the caller sees no exception.
        """

        class Hostile:
            def __repr__(self) -> str:
                raise RuntimeError("no")

        metrics_logger.log_step(Hostile(), Hostile(), {"x": Hostile()})  # type: ignore[arg-type]
        metrics_logger.log_step(1, 0, [1, 2])  # type: ignore[arg-type]
        metrics_logger.log_epoch_summary(Hostile(), {"x": Hostile()})  # type: ignore[arg-type]
        assert len(lines(metrics_logger.metrics_file)) == 3
        assert not metrics_logger.losses

    @pytest.mark.parametrize("torn", ['{"timestamp": "2026-', "\x00\x00", '{"step": 1}}'])
    def test_a_torn_line_does_not_spoil_the_history(
        self, metrics_logger: MetricsLogger, torn: str
    ) -> None:
        """
        GIVEN: A file in which a killed process left half a line
        WHEN: More is logged and the history asked for
        THEN: All whole entries are there, and statistics count them.
        """
        metrics_logger.log_step(1, 0, {"loss": 1.0})
        with open(metrics_logger.metrics_file, "a") as file:
            file.write(torn)
        metrics_logger.log_step(2, 0, {"loss": 2.0})
        assert [entry["step"] for entry in metrics_logger.get_metrics_history()] == [1, 2]
        assert metrics_logger.compute_statistics("loss")["count"] == 2

    def test_the_file_rotates_and_nothing_is_pruned(self, tmp_path: Path) -> None:
        """
        GIVEN: A small size
        WHEN: Many steps are logged
        THEN: History, ranges and statistics go through all rotated files, which all stay.
        """
        metrics = MetricsLogger("rotating", tmp_path, max_size_mb=0.001)
        for step in range(200):
            metrics.log_step(step, 0, {"loss": float(step)})
        rotated = filenames.rotated_files(str(metrics.metrics_file))
        assert len(rotated) > 10
        assert all(Path(path).stat().st_size <= 1049 for path in rotated)
        assert [entry["step"] for entry in metrics.get_metrics_history()] == list(range(200))
        assert len(metrics.get_metrics_for_steps(10, 19)) == 10
        assert metrics.compute_statistics("loss")["count"] == 200
        metrics.close()


def log_hundred_steps(directory: str, first: int) -> None:
    metrics = MetricsLogger("test_exp", directory)
    for step in range(first, first + 100):
        metrics.log_step(step, 0, {"loss": 1.0})
    metrics.close()


class TestMetricsLoggerDurability:
    @pytest.mark.parametrize("how", ["disable", "level", "disabled", "dictConfig"])
    def test_the_file_is_written_whatever_happens_to_loggers(
        self, metrics_logger: MetricsLogger, how: str
    ) -> None:
        """
        GIVEN: A MetricsLogger in use
        WHEN: Logging is disabled, levels are raised, or somebody's dictConfig closes all handlers
        THEN: Each step still stands in the file, once.
        """
        metrics_logger.log_step(1, 0, {})
        ours = logging.getLogger("foundry_log.metrics")
        if how == "disable":
            logging.disable(logging.CRITICAL)
        elif how == "level":
            ours.setLevel(logging.CRITICAL + 1)
        elif how == "disabled":
            ours.disabled = logging.getLogger("foundry_log.metrics.test_exp").disabled = True
        else:
            logging.config.dictConfig({"version": 1, "disable_existing_loggers": True})
        metrics_logger.log_step(2, 0, {})
        assert [entry["step"] for entry in lines(metrics_logger.metrics_file)] == [1, 2]

    def test_a_directory_that_cannot_be_made_raises_nothing(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """
        GIVEN: A file where the directory should be
        WHEN: Logging steps and asking questions
        THEN: No exception, one report, all losses counted, and the console's line still comes.
        """
        (tmp_path / "file").touch()
        metrics = MetricsLogger("exp", tmp_path / "file" / "below")
        with caplog.at_level(logging.INFO, "foundry_log.metrics"):
            for step in range(3):
                metrics.log_step(step, 0, {"loss": 1.0})
        assert sum(metrics.losses.values()) == 3
        assert [record.getMessage() for record in human(caplog)] == [
            f"Step {step}: loss=1.0000" for step in range(3)
        ]
        assert metrics.get_metrics_history() == []
        assert capsys.readouterr().err.count("--- Logging error ---") == 1
        metrics.close()
        assert "lost 3 records" in capsys.readouterr().err

    def test_a_file_deleted_meanwhile_is_made_again(self, metrics_logger: MetricsLogger) -> None:
        """
        GIVEN: A file that somebody deletes
        WHEN: A second later more is logged
        THEN: It is there again.
        """
        metrics_logger.log_step(1, 0, {})
        metrics_logger.metrics_file.unlink()
        metrics_logger._handler._file.looked -= 1.5
        metrics_logger.log_step(2, 0, {})
        assert [entry["step"] for entry in metrics_logger.get_metrics_history()] == [2]


class TestMetricsLoggerRecords:
    def test_a_person_reads_four_decimals(
        self, metrics_logger: MetricsLogger, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        GIVEN: The logger foundry_log.metrics at INFO
        WHEN: Logging a step and a summary
        THEN: A line each, with four decimals, four digits for what is tiny, and the caller's file.
        """
        with caplog.at_level(logging.INFO, "foundry_log.metrics"):
            metrics_logger.log_step(
                5, 0, {"loss": 2.123456, "n": 3, "lr": 1.5e-5, "zero": 0.0, "x": [1], "s": "a"}
            )
            metrics_logger.log_epoch_summary(1, {"avg_loss": 2.0})
            metrics_logger.log_step(6, 0, [1])  # type: ignore[arg-type]
        records = human(caplog)
        assert [record.getMessage() for record in records] == [
            "Step 5: loss=2.1235, n=3, lr=1.5000e-05, zero=0.0000, x=[1], s=a",
            "Epoch 1: avg_loss=2.0000",
            "Step 6: [1]",
        ]
        assert {record.filename for record in records} == {Path(__file__).name}
        assert {record.levelno for record in records} == {logging.INFO}

    def test_a_sink_gets_each_entry_once(
        self, metrics_logger: MetricsLogger, sink: Keeping
    ) -> None:
        """
        GIVEN: A handler at the experiment's own logger
        WHEN: Logging a step and a summary, with logging disabled too
        THEN: One record each, whose foundry_entry has the line's fields.
        """
        metrics_logger.log_step(1, 0, {"loss": 1.0})
        logging.disable(logging.CRITICAL)
        metrics_logger.log_epoch_summary(0, {"n": 1})
        assert [record.foundry_entry for record in sink.records] == [  # type: ignore[attr-defined]
            {"step": 1, "epoch": 0, "metrics": {"loss": 1.0}, "attempt": 1},
            {"epoch": 0, "summary": {"n": 1}, "step": 1, "attempt": 1},
        ]
        assert {record.name for record in sink.records} == {"foundry_log.metrics.test_exp"}

    def test_a_sinks_record_does_not_reach_the_root(
        self, metrics_logger: MetricsLogger, sink: Keeping
    ) -> None:
        """
        GIVEN: A handler at the root
        WHEN: Logging a step
        THEN: It sees the human line alone.
        """
        root, at_root = logging.getLogger(), Keeping()
        logging.getLogger("foundry_log.metrics").setLevel(logging.INFO)
        root.addHandler(at_root)
        metrics_logger.log_step(1, 0, {"loss": 1.0})
        root.removeHandler(at_root)
        assert [record.name for record in at_root.records] == ["foundry_log.metrics"]
        assert len(sink.records) == 1

    def test_a_sinks_entry_is_not_changed_by_the_caller_afterwards(
        self, metrics_logger: MetricsLogger
    ) -> None:
        """
        GIVEN: A sink behind a queue, and a loop that uses one dict for all steps
        WHEN: The dict changes before the queue is read
        THEN: The queued record still has the step's own values.
        """
        waiting: queue.Queue[logging.LogRecord] = queue.Queue()
        logger = logging.getLogger("foundry_log.metrics.test_exp")
        logger.addHandler(logging.handlers.QueueHandler(waiting))  # type: ignore[arg-type]
        metrics = {"loss": 1.0, "list": [1]}
        metrics_logger.log_step(1, 0, metrics)
        metrics["loss"] = 2.0
        metrics["list"].append(2)  # type: ignore[attr-defined]
        entry = waiting.get_nowait().foundry_entry  # type: ignore[attr-defined]
        assert entry["metrics"] == {"loss": 1.0, "list": [1]}

    def test_a_sinks_level_and_filter_decide_for_it_alone(
        self, metrics_logger: MetricsLogger, sink: Keeping
    ) -> None:
        """
        GIVEN: A sink that takes warnings only
        WHEN: Logging a step
        THEN: The sink gets nothing, the file everything.
        """
        sink.setLevel(logging.WARNING)
        metrics_logger.log_step(1, 0, {})
        assert sink.records == []
        assert len(lines(metrics_logger.metrics_file)) == 1

    def test_a_json_handler_as_sink_writes_the_entry(
        self, metrics_logger: MetricsLogger, tmp_path: Path
    ) -> None:
        """
        GIVEN: A second RotatingJsonlHandler with its default formatter as a sink
        WHEN: Logging a step
        THEN: Its line is strict JSON that names the step.
        """
        handler = RotatingJsonlHandler(tmp_path / "second.jsonl")
        logging.getLogger("foundry_log.metrics.test_exp").addHandler(handler)
        metrics_logger.log_step(7, 0, {"loss": math.nan})
        handler.close()
        assert "Step 7" in json.dumps(lines(tmp_path / "second.jsonl"))

    def test_a_sink_that_raises_stops_neither_the_run_nor_the_file(
        self, metrics_logger: MetricsLogger, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        GIVEN: A handler that lets its errors out
        WHEN: Steps are logged
        THEN: The file has them all; the failures are counted and reported once
        """

        class Broken(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                raise RuntimeError("no connection")

        sinks = logging.getLogger("foundry_log.metrics.test_exp")
        sinks.addHandler(Broken())
        with caplog.at_level(logging.WARNING, "foundry_log.metrics"):
            for step in range(3):
                metrics_logger.log_step(step, 0, {"loss": 1.0})

        assert [line["step"] for line in lines(metrics_logger.metrics_file)] == [0, 1, 2]
        assert metrics_logger.sink_failures == {"RuntimeError": 3}
        reports = [record for record in human(caplog) if record.levelno == logging.WARNING]
        assert len(reports) == 1
        assert reports[0].exc_info

    def test_a_person_is_not_told_hundreds_of_metrics(
        self, metrics_logger: MetricsLogger, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        GIVEN: The norms of three hundred parameters
        WHEN: Logging the step
        THEN: The line names the first twenty and how many more the file has
        """
        with caplog.at_level(logging.INFO, "foundry_log.metrics"):
            metrics_logger.log_step(1, 0, {f"norm_{n}": 1.0 for n in range(300)})

        [record] = human(caplog)
        assert record.getMessage().count("norm_") == 20
        assert record.getMessage().endswith("norm_19=1.0000, … and 280 more in the file")
        assert len(lines(metrics_logger.metrics_file)[0]["metrics"]) == 300

    def test_scopes_are_in_the_line(self, metrics_logger: MetricsLogger) -> None:
        """
        GIVEN: A run id that is bound once
        WHEN: A step is logged inside of it, and one outside
        THEN: The first line has it under context, the second has none
        """
        with bound(run_id="r7"):
            metrics_logger.log_step(1, 0, {"loss": 1.0})
        metrics_logger.log_step(2, 0, {"loss": 1.0})

        inside, outside = lines(metrics_logger.metrics_file)
        assert inside["context"] == {"run_id": "r7"}
        assert set(outside) == {"timestamp", "step", "epoch", "metrics", "attempt"}


def test_questions_find_the_file_after_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative directory is where it was when the logger was made."""
    monkeypatch.chdir(tmp_path)
    metrics = MetricsLogger("x", "relative")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    metrics.log_step(1, 0, {"loss": 2.0})
    metrics.close()

    assert [entry["step"] for entry in metrics.get_metrics_history()] == [1]
    assert metrics.compute_statistics("loss")["count"] == 1


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[MetricsLogger]]:
    """Loggers to be closed. Those made in a test have no sink: pytest catches what it finds."""
    monkeypatch.setattr(RedactingFilter, "is_used", False)  # by other tests
    made: list[MetricsLogger] = []
    yield made
    for log in made:
        log.close()


def is_from_memory(log: MetricsLogger) -> bool:
    return bool(log._index.is_whole) and log._handler.is_alone()


class TestStatisticsFromMemory:
    """What a logger has logged itself is answered without a look at the files, while it is all."""

    def test_a_run_of_its_own(self, tmp_path: Path, alone: list[MetricsLogger]) -> None:
        """GIVEN: A logger of a new directory, and thousands of steps over many rotations
        WHEN: Asking for statistics
        THEN: They are exact, from memory, and what the files say.
        """
        log = MetricsLogger("memory", tmp_path, max_size_mb=0.01)
        alone.append(log)
        assert log.compute_statistics("loss") == {}
        values = [math.sin(step) for step in range(2_000)]
        for step, value in enumerate(values):
            log.log_step(step, 0, {"loss": value, "bad": math.nan, "on": True, "name": "x"})

        assert is_from_memory(log)
        result = log.compute_statistics("loss")
        assert result["count"] == 2_000
        assert result["mean"] == pytest.approx(statistics.mean(values), abs=1e-12)
        assert result["std"] == pytest.approx(statistics.stdev(values))
        assert (result["min"], result["max"]) == (min(values), max(values))
        assert log.compute_statistics("bad") == log.compute_statistics("on") == {}
        assert len(filenames.rotated_files(str(log.metrics_file))) > 2
        assert [entry["step"] for entry in log.get_metrics_history()] == list(range(2_000))

    def test_entries_that_were_there_before(
        self, tmp_path: Path, alone: list[MetricsLogger]
    ) -> None:
        """GIVEN: The file of an earlier process, rotated or not
        WHEN: Logging more and asking
        THEN: All entries count.
        """
        for name in ("metrics.jsonl", "metrics.20260101T000000000000Z.jsonl"):
            folder = tmp_path / name
            folder.mkdir()
            (folder / name).write_text('{"step": 0, "metrics": {"loss": 1.0}}\n')
            log = MetricsLogger("memory", folder)
            alone.append(log)
            log.log_step(1, 0, {"loss": 3.0})

            assert not is_from_memory(log)
            assert log.compute_statistics("loss")["mean"] == 2.0

    @pytest.mark.parametrize("first", [True, False])
    def test_another_writer_of_the_same_file(
        self, tmp_path: Path, alone: list[MetricsLogger], first: bool
    ) -> None:
        """GIVEN: Two loggers of one file
        WHEN: One is asked, whether it or the other wrote last
        THEN: The entries of both count.
        """
        one, two = MetricsLogger("memory", tmp_path), MetricsLogger("other", tmp_path)
        alone += [one, two]
        one.log_step(0, 0, {"loss": 1.0})
        assert is_from_memory(one)
        for log in (one, two) if first else (two, one):
            log.log_step(1, 0, {"loss": 1.0})

        assert not is_from_memory(one)
        assert one.compute_statistics("loss")["count"] == 3

    def test_a_writer_that_only_wrote_before_a_rotation(
        self, tmp_path: Path, alone: list[MetricsLogger]
    ) -> None:
        """GIVEN: Another's single entry, the last of a file that is rotated then
        WHEN: Asking
        THEN: It counts.
        """
        log = MetricsLogger("memory", tmp_path)
        alone.append(log)
        log.log_step(0, 0, {"loss": 1.0})
        with log.metrics_file.open("a") as file:
            file.write('{"step": 1, "metrics": {"loss": 1.0}}\n')
        log._handler.doRollover()
        log.log_step(2, 0, {"loss": 1.0})

        assert log.compute_statistics("loss")["count"] == 3

    @pytest.mark.parametrize("change", ["close", "move", "truncate", "rotate", "own file"])
    def test_whatever_others_do_to_the_files(
        self, tmp_path: Path, alone: list[MetricsLogger], change: str
    ) -> None:
        """GIVEN: A logger, and another that comes in some way between two questions
        WHEN: Asking again
        THEN: The answer is that of the files.
        """
        log, path = MetricsLogger("memory", tmp_path), tmp_path / "metrics.jsonl"
        other = MetricsLogger("other", tmp_path, one_file_per_process=change == "own file" or None)
        alone += [log, other]
        log.log_step(0, 0, {"loss": 1.0})
        assert log.compute_statistics("loss")["count"] == 1
        if change == "close":
            log.close()
        if change == "move":
            path.rename(tmp_path / "elsewhere")
        if change == "truncate":
            path.write_bytes(b"")
            log.log_step(1, 0, {"loss": 5.0})
        if change == "rotate":
            other._handler.doRollover()
        for _ in range(2):
            history = log.get_metrics_history()
            losses = [entry["metrics"]["loss"] for entry in history]
            result = log.compute_statistics("loss")
            assert result.get("count", 0) == len(losses)
            assert not losses or result["mean"] == statistics.mean(losses)
            other.log_step(2, 0, {"loss": 5.0})

    def test_a_step_that_is_interrupted(
        self, tmp_path: Path, alone: list[MetricsLogger], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """GIVEN: Ctrl-C in the middle of a step, before its line is written
        WHEN: Asking
        THEN: The answer is that of the file.
        """
        log = MetricsLogger("memory", tmp_path)
        alone.append(log)
        log.log_step(0, 0, {"loss": 1.0})

        def interrupted(*_: Any) -> bool:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(log._handler._file, "append_next", interrupted)
            log.log_step(1, 0, {"loss": 5.0})

        assert log._handler.is_alone()
        assert log.compute_statistics("loss")["count"] == 1

    def test_a_step_that_could_not_be_written(
        self, tmp_path: Path, alone: list[MetricsLogger], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """GIVEN: A directory that is none for a while
        WHEN: Logging meanwhile and afterwards
        THEN: What the file has counts, and nothing else.
        """
        folder = tmp_path / "run"
        folder.touch()
        log = MetricsLogger("memory", folder)
        alone.append(log)
        log.log_step(0, 0, {"loss": 1.0})
        assert sum(log.losses.values()) == 1
        folder.unlink()
        log.log_step(1, 0, {"loss": 3.0})

        assert log.compute_statistics("loss") == {
            "count": 1,
            "mean": 3.0,
            "min": 3.0,
            "max": 3.0,
            "std": 0.0,
        }

    def test_entries_that_a_sink_or_a_filter_gets_to_see(
        self, tmp_path: Path, alone: list[MetricsLogger]
    ) -> None:
        """GIVEN: A handler on the metrics' logger for a while
        WHEN: Asking
        THEN: The files are asked, since a filter may have changed what they hold.
        """
        log = MetricsLogger("memory", tmp_path)
        alone.append(log)
        log.log_step(0, 0, {"loss": 1.0})
        sinks = logging.getLogger("foundry_log.metrics.memory")
        keeping = Keeping()
        sinks.addHandler(keeping)
        log.log_step(1, 0, {"loss": 1.0})
        sinks.removeHandler(keeping)
        log.log_step(2, 0, {"loss": 1.0})

        assert len(keeping.records) == 1
        assert not is_from_memory(log)
        assert log.compute_statistics("loss")["count"] == 3

    def test_threads_that_log_while_one_asks(
        self, tmp_path: Path, alone: list[MetricsLogger]
    ) -> None:
        """GIVEN: Four threads that log
        WHEN: Asking all the time, and at the end
        THEN: No answer has more than was logged, and the last has all.
        """
        log = MetricsLogger("memory", tmp_path)
        alone.append(log)

        def work() -> None:
            for step in range(500):
                log.log_step(step, 0, {"loss": 1.0})

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert log.compute_statistics("loss").get("count", 0) <= 2_000
        for thread in threads:
            thread.join()

        assert is_from_memory(log)
        assert log.compute_statistics("loss")["count"] == 2_000


def test_the_short_way_writes_what_the_long_one_does(
    tmp_path: Path, alone: list[MetricsLogger]
) -> None:
    """GIVEN: A logger that nobody listens to, and one with a sink
    WHEN: Logging the same, with scopes, and values of all kinds
    THEN: Their lines are the same but for the time.
    """
    found = []
    for name in ("short", "long"):
        log = MetricsLogger(name, tmp_path / name)
        alone.append(log)
        sinks, keeping = logging.getLogger(f"foundry_log.metrics.{name}"), Keeping()
        if name == "long":
            sinks.addHandler(keeping)
        with bound(phase="warm-up"):
            log.log_step(1, 0, {"loss": math.nan, "name": "\ud800", "nested": {"a": [1, math.inf]}})
        log.log_step("odd", None, ["no", "dict"])  # type: ignore[arg-type]
        log.log_epoch_summary(0, {"loss": 2.0})
        sinks.removeHandler(keeping)
        entries = [record for record in keeping.records if hasattr(record, "foundry_entry")]
        assert len(entries) == (3 if name == "long" else 0)
        found.append([line.pop("timestamp") and line for line in lines(log.metrics_file)])

    assert found[0] == found[1]
    assert found[0][0]["context"] == {"phase": "warm-up"}


def logger_of(made: list[MetricsLogger], directory: Path, **options: Any) -> MetricsLogger:
    log = MetricsLogger("attempts", directory, **options)
    made.append(log)
    return log


def logged(log: MetricsLogger, *steps: int, loss: float = 1.0) -> None:
    for step in steps:
        log.log_step(step, 0, {"loss": loss})


def steps_of(entries: list[dict[str, Any]]) -> list[tuple[int, Any]]:
    return [(entry["attempt"], entry.get("step")) for entry in entries]


class TestAttempts:
    """A run that is resumed rewinds its history, and forgets nothing."""

    def test_a_resumed_run_has_neither_holes_nor_doubles(
        self, tmp_path: Path, alone: list[MetricsLogger]
    ) -> None:
        """GIVEN: Five steps, of which a checkpoint has three
        WHEN: Another logger resumes behind it and logs on
        THEN: Each question sees each step once; all attempts are readable still.
        """
        logged(logger_of(alone, tmp_path), 1, 2, 3, 4, 5)
        log = logger_of(alone, tmp_path)
        assert log.resume(3) == 2
        logged(log, 4, 5, 6, loss=3.0)

        counting = [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (2, 6)]
        assert steps_of(log.get_metrics_history()) == counting
        assert steps_of(log.get_metrics_for_steps(3, 5)) == [(1, 3), (2, 4), (2, 5)]
        result = log.compute_statistics("loss")
        assert (result["count"], result["mean"]) == (6, 2.0)
        everything = log.get_metrics_history(all_attempts=True)
        assert [n for n, e in enumerate(everything) if "superseded" in e] == [3, 4]
        marker = lines(log.metrics_file)[5]
        assert marker.pop("timestamp")
        assert marker == {"attempt": 2, "resumed_from_step": 3}

    @pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signal.setitimer")
    @pytest.mark.parametrize("delay_s", [0.001, 0.004, 0.016])
    def test_a_signal_handler_that_asks_counts_nothing_twice(
        self, tmp_path: Path, alone: list[MetricsLogger], delay_s: float
    ) -> None:
        """GIVEN: A long history, and a signal handler that asks for statistics
        WHEN: It interrupts a question
        THEN: Both answers have each step once, and so have later ones.
        """
        logged(logger_of(alone, tmp_path), *range(3_000))
        log = logger_of(alone, tmp_path)
        counts: list[float] = []

        def ask(*_: Any) -> None:
            counts.append(log.compute_statistics("loss")["count"])

        before = signal.signal(signal.SIGALRM, ask)
        signal.setitimer(signal.ITIMER_REAL, delay_s)
        limit = time.monotonic() + 20
        try:
            ask()
            while len(counts) < 2 and time.monotonic() < limit:
                time.sleep(0.001)
            ask()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert counts == [3_000] * 3

    def test_a_read_that_fails_half_way_counts_nothing_twice(
        self, tmp_path: Path, alone: list[MetricsLogger]
    ) -> None:
        """GIVEN: A rotated history, of which one file cannot be read for a while
        WHEN: Asking for statistics, and again when it can
        THEN: The first question raises, and the second counts each step once.
        """
        logged(logger_of(alone, tmp_path, max_size_mb=0.0005), *range(20))
        log = logger_of(alone, tmp_path)
        hidden = Path(sorted(filenames.rotated_files(str(log.metrics_file)))[1])
        content = hidden.read_bytes()
        hidden.unlink()
        hidden.mkdir()
        with pytest.raises(IsADirectoryError):
            log.compute_statistics("loss")
        hidden.rmdir()
        hidden.write_bytes(content)

        assert log.compute_statistics("loss")["count"] == 20

    def test_a_new_run_has_no_marker(self, tmp_path: Path, alone: list[MetricsLogger]) -> None:
        """GIVEN: No file
        WHEN: Resuming from scratch
        THEN: It is the first attempt, nothing is written, and statistics come from memory.
        """
        log = logger_of(alone, tmp_path)
        assert log.resume(0) == 1
        assert not log.metrics_file.exists()
        logged(log, 1)
        assert is_from_memory(log)
        assert log.resume(0) == 2
        assert log.get_metrics_history() == []

    def test_a_logger_takes_part_in_the_latest_attempt(
        self, tmp_path: Path, alone: list[MetricsLogger]
    ) -> None:
        """GIVEN: A file whose end shows a second attempt, and an old writer's line
        WHEN: A logger that was told nothing logs
        THEN: It is of the second one.
        """
        first, second = logger_of(alone, tmp_path), logger_of(alone, tmp_path)
        logged(first, 1)
        second.resume(1)
        logged(second, 2)
        logged(first, 2)
        plain = logger_of(alone, tmp_path)
        logged(plain, 3)
        assert steps_of(plain.get_metrics_history()) == [(1, 1), (2, 2), (2, 3)]

    def test_the_marker_alone_shows_the_attempt(
        self, tmp_path: Path, alone: list[MetricsLogger]
    ) -> None:
        """GIVEN: A run that was killed between resuming and its first step
        WHEN: A logger that was told nothing logs, and another resumes
        THEN: The one takes part in it, and the other begins one more.
        """
        logged(logger_of(alone, tmp_path), 1)
        logger_of(alone, tmp_path).resume(1)
        plain = logger_of(alone, tmp_path)
        logged(plain, 2)
        assert lines(plain.metrics_file)[-1]["attempt"] == 2
        assert logger_of(alone, tmp_path).resume(2) == 3

    def test_statistics_follow_a_marker_that_turns_up(
        self, tmp_path: Path, alone: list[MetricsLogger]
    ) -> None:
        """GIVEN: Statistics of an old process that goes on
        WHEN: Another resumes behind an earlier step, twice
        THEN: Each answer is of what counts.
        """
        old = logger_of(alone, tmp_path)
        logged(old, 1, 2, 3)
        assert old.compute_statistics("loss")["count"] == 3
        new = logger_of(alone, tmp_path)
        for attempt in (2, 3):
            assert new.resume(1) == attempt
            logged(new, 2, loss=5.0)
            logged(old, 9)
            for log in (old, new):
                result = log.compute_statistics("loss")
                assert (result["count"], result["mean"]) == (2, 3.0)

    def test_resuming_reads_the_history_once(
        self, tmp_path: Path, alone: list[MetricsLogger]
    ) -> None:
        """GIVEN: A history that was read once
        WHEN: Its lines are spoiled in place
        THEN: A resume knows the highest attempt still: old lines are not read again.
        """
        logged(logger_of(alone, tmp_path), *range(50))
        log = logger_of(alone, tmp_path)
        log.resume(49, 7)
        assert log.compute_statistics("loss")["count"] == 50
        content = log.metrics_file.read_bytes()
        with open(log.metrics_file, "r+b") as file:
            file.seek(200)
            file.write(b"#" * (len(content) - 201))
        assert log.resume(49) == 8

    def test_a_number_for_all_ranks(self, tmp_path: Path, alone: list[MetricsLogger]) -> None:
        """GIVEN: Two files, one of a rank that has seen an attempt less
        WHEN: Both resume with one number
        THEN: They have it; one that is lower than what is there is refused.
        """
        for name in ("a", "b"):
            log = logger_of(alone, tmp_path / name)
            logged(log, 1)
            assert log.resume(1, attempt=4) == 4
            assert log.resume(1, attempt=4) == 4
            with pytest.raises(ValueError, match="attempt=3 must be an integer from 4 on"):
                log.resume(1, attempt=3)

    @pytest.mark.parametrize("step", [-1, 1.0, True, "1", None])
    def test_a_step_that_is_none_is_refused(self, metrics_logger: MetricsLogger, step: Any) -> None:
        """
        GIVEN: A step to resume from that is negative, or no integer
        WHEN: Resuming
        THEN: ValueError, and nothing is written.
        """
        metrics_logger.log_step(1, 0, {})
        with pytest.raises(ValueError, match="step="):
            metrics_logger.resume(step)
        assert len(lines(metrics_logger.metrics_file)) == 1

    def test_a_sink_learns_of_it(self, metrics_logger: MetricsLogger, sink: Keeping) -> None:
        """
        GIVEN: A handler at the experiment's logger
        WHEN: Resuming
        THEN: It gets the marker.
        """
        metrics_logger.log_step(1, 0, {})
        metrics_logger.resume(1)
        assert sink.records[-1].foundry_entry == {  # type: ignore[attr-defined]
            "attempt": 2,
            "resumed_from_step": 1,
        }

    def test_files_of_older_versions(self, tmp_path: Path, alone: list[MetricsLogger]) -> None:
        """GIVEN: Lines without attempts, and a summary without a step
        WHEN: Resuming in the middle of them
        THEN: They are of the first attempt, and the summary of the step before it.
        """
        old = [{"step": n, "epoch": 0, "metrics": {"loss": 1.0}} for n in (1, 2)]
        old.append({"epoch": 0, "summary": {}})
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in old))
        log = logger_of(alone, tmp_path)
        assert log.resume(1) == 2
        logged(log, 2)
        assert [entry["step"] for entry in log.get_metrics_history()] == [1, 2]


class TestLateSteps:
    """A step that does not rise is written, and said once."""

    def test_it_is_written_and_said(
        self, metrics_logger: MetricsLogger, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        GIVEN: Step 5
        WHEN: 3, 4, 6 and 2 are logged
        THEN: All are in the file; 3 and 2 are said, with the latest step, at the caller's line.
        """
        for step in (5, 3, 4, 6, 2):
            metrics_logger.log_step(step, 0, {"lr": 1.0})
        assert [entry["step"] for entry in lines(metrics_logger.metrics_file)] == [5, 3, 4, 6, 2]
        told = human(caplog)
        assert [(r.levelname, r.step, r.latest_step) for r in told] == [  # type: ignore[attr-defined]
            ("WARNING", 3, 5),
            ("WARNING", 2, 6),
        ]
        assert {record.filename for record in told} == {Path(__file__).name}

    def test_a_step_in_parts(
        self, metrics_logger: MetricsLogger, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        GIVEN: A step's loss
        WHEN: Its evaluation is logged, and then the loss once more
        THEN: The second of these is said.
        """
        metrics_logger.log_step(5, 0, {"lr": 1.0})
        metrics_logger.log_step(5, 0, {"accuracy": 1.0})
        assert human(caplog) == []
        metrics_logger.log_step(5, 0, {"lr": 2.0})
        assert len(human(caplog)) == 1

    def test_a_resumed_run_goes_back(
        self, metrics_logger: MetricsLogger, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        GIVEN: Step 5
        WHEN: The run is resumed behind 3
        THEN: Step 4 is in order.
        """
        metrics_logger.log_step(5, 0, {"lr": 1.0})
        metrics_logger.resume(3)
        metrics_logger.log_step(4, 0, {"lr": 1.0})
        assert human(caplog) == []


class TestAlarms:
    """NaN, infinity and spikes are records of their own."""

    def test_nan_is_a_warning_and_its_end_an_info(
        self, metrics_logger: MetricsLogger, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        GIVEN: A loss that is NaN for two steps
        WHEN: It is finite again
        THEN: One WARNING and one INFO, with all that is known of them, at the caller's line.
        """
        caplog.set_level(logging.INFO, "foundry_log.metrics")
        for step, loss in enumerate([1.0, math.nan, math.nan, 2.0]):
            metrics_logger.log_step(step, 3, {"loss": loss})
        begun, over = (r for r in human(caplog) if not r.getMessage().startswith("Step"))
        assert (begun.levelname, over.levelname) == ("WARNING", "INFO")
        assert begun.getMessage() == "loss is not finite: nan"
        assert over.getMessage() == "loss is usual again: 2.0000"
        fields = ("metric", "step", "epoch", "kind")
        assert [begun.__dict__[name] for name in fields] == ["loss", 1, 3, "nan"]
        assert math.isnan(begun.__dict__["value"])
        fields = ("metric", "value", "step", "epoch", "kind", "since_step", "steps")
        assert [over.__dict__[name] for name in fields] == ["loss", 2.0, 3, 3, "nan", 1, 2]
        assert {begun.filename, over.filename} == {Path(__file__).name}

    def test_a_run_that_begins_again_without_a_word_is_told(self, tmp_path: Path) -> None:
        """
        GIVEN: Five steps of a run
        WHEN: The next process logs from the first step on, and one that resumes does too
        THEN: The former gets one WARNING that names resume(), the latter none.
        """
        for word, count in ((False, 1), (True, 0)):
            directory = tmp_path / str(word)
            first, again = (MetricsLogger("again", directory) for _ in range(2))
            for step in range(1, 6):
                first.log_step(step, 0, {"loss": 1.0})
            if word:
                again.resume(0)
            people = Keeping()
            logging.getLogger("foundry_log.metrics").addHandler(people)
            for step in range(1, 8):
                again.log_step(step, 0, {"loss": 1.0})
            logging.getLogger("foundry_log.metrics").removeHandler(people)
            said = [r.getMessage() for r in people.records if r.levelno == logging.WARNING]
            assert len([text for text in said if "says so by resume()" in text]) == count
            first.close()
            again.close()

    def test_a_tracker_gets_the_same_record(
        self, metrics_logger: MetricsLogger, sink: Keeping
    ) -> None:
        """
        GIVEN: A handler at the experiment's logger, and one at foundry_log.metrics
        WHEN: A gradient norm leaps up
        THEN: Both get one WARNING with score and median, and it has no entry.
        """
        people = Keeping()
        logging.getLogger("foundry_log.metrics").addHandler(people)
        for step in range(100):
            metrics_logger.log_step(step, 0, {"grad_norm": 1.0 + step % 5 / 10})
        metrics_logger.log_step(100, 0, {"grad_norm": 50.0})
        (alarm,) = [r for r in sink.records if r.levelno == logging.WARNING]
        assert alarm in people.records
        assert not hasattr(alarm, "foundry_entry")
        assert alarm.getMessage() == "grad_norm has a spike: 50.0000, median 1.2000"
        assert alarm.__dict__["median"] == 1.2
        assert alarm.__dict__["z_score"] > 20

    @pytest.mark.parametrize(("spike_z", "count"), [(8.0, 1), (None, 0)])
    def test_spike_z(
        self, tmp_path: Path, sink: Keeping, spike_z: float | None, count: int
    ) -> None:
        """
        GIVEN: A level for spikes, or none
        WHEN: A loss leaps up
        THEN: It is said, or not.
        """
        log = MetricsLogger("test_exp", tmp_path / "own", spike_z=spike_z)
        logged(log, *range(100))
        log.log_step(100, 0, {"loss": 9.0})
        log.close()
        assert len([r for r in sink.records if r.levelno == logging.WARNING]) == count

    @pytest.mark.parametrize("spike_z", [0, -1.0, math.nan, math.inf])
    def test_spike_z_out_of_range(self, tmp_path: Path, spike_z: float) -> None:
        """
        GIVEN: A level that is none
        WHEN: Making a logger
        THEN: ValueError names field, value, rule and remedy.
        """
        with pytest.raises(ValueError, match=r"spike_z=.* must be a number above 0, such as 8\.0"):
            MetricsLogger("x", tmp_path, spike_z=spike_z)

    def test_hundreds_of_metrics_do_not_bury_the_log(
        self, metrics_logger: MetricsLogger, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        GIVEN: The norms of three hundred parameters
        WHEN: All are NaN at once
        THEN: Twenty records, and one that counts the others.
        """
        metrics_logger.log_step(1, 0, {f"norm_{n}": math.nan for n in range(300)})
        assert len(human(caplog)) == 21
        assert human(caplog)[-1].__dict__["metrics"] == 280

    def test_a_tracker_that_raises_is_counted(self, metrics_logger: MetricsLogger) -> None:
        """
        GIVEN: A handler that lets its errors out
        WHEN: A loss is NaN
        THEN: Step and alarm are counted, and nothing is raised.
        """

        class Broken(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                raise RuntimeError("no connection")

        logging.getLogger("foundry_log.metrics.test_exp").addHandler(Broken())
        metrics_logger.log_step(1, 0, {"loss": math.nan})
        assert metrics_logger.sink_failures == {"RuntimeError": 2}


class TestOffer:
    """Entries for trackers alone."""

    def test_it_reaches_the_sinks_and_not_the_file(
        self, metrics_logger: MetricsLogger, sink: Keeping
    ) -> None:
        """
        GIVEN: A handler at the experiment's logger
        WHEN: Offering a configuration
        THEN: The handler gets it as plain values with the attempt; there is no file.
        """
        metrics_logger.offer("config", {"config": {"path": Path("a"), "lr": 0.1}})
        (record,) = sink.records
        assert record.getMessage() == "config"
        assert record.foundry_entry == {  # type: ignore[attr-defined]
            "config": {"path": "a", "lr": 0.1},
            "attempt": 1,
        }
        assert not metrics_logger.metrics_file.exists()

    def test_secrets_are_taken_out(self, metrics_logger: MetricsLogger, sink: Keeping) -> None:
        """
        GIVEN: A handler of foundry_log.metrics that redacts
        WHEN: Offering a configuration with a password
        THEN: The sink does not see it.
        """
        people = Keeping()
        people.addFilter(RedactingFilter(keys=["password"]))
        logging.getLogger("foundry_log.metrics").addHandler(people)
        metrics_logger.offer("config", {"config": {"password": "hunter2"}})
        assert "hunter2" not in str(sink.records[0].__dict__)

    def test_nothing_is_raised(self, metrics_logger: MetricsLogger, sink: Keeping) -> None:
        """
        GIVEN: A handler that raises, and an entry that is no mapping
        WHEN: Offering
        THEN: It is counted.
        """
        sink.emit = lambda record: 1 / 0  # type: ignore[method-assign, assignment, return-value]
        metrics_logger.offer("config", [1])  # type: ignore[arg-type]
        assert metrics_logger.sink_failures == {"ZeroDivisionError": 1}


class TestRanks:
    """Under a launcher each rank has a file of its own, or the first one alone."""

    @pytest.fixture(autouse=True)
    def launched(self, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
        for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        return monkeypatch

    def test_each_rank_has_its_file(
        self,
        tmp_path: Path,
        alone: list[MetricsLogger],
        launched: pytest.MonkeyPatch,
    ) -> None:
        """GIVEN: Two ranks
        WHEN: Each logs, and resumes
        THEN: Each in its file, with its rank in each line; one reader of the base name gets all.
        """
        for rank in ("0", "1"):
            launched.setenv("RANK", rank)
            log = logger_of(alone, tmp_path)
            logged(log, 1)
            assert is_from_memory(log)
            log.log_epoch_summary(0, {})
            log.resume(1, attempt=2)
            assert log.metrics_file.name == f"metrics@rank{rank}.jsonl"
            assert [line["rank"] for line in lines(log.metrics_file)] == [int(rank)] * 3
            assert list(lines(log.metrics_file)[0])[-2:] == ["attempt", "rank"]
            assert len(log.get_metrics_history()) == 2
        assert len(list(read_jsonl(tmp_path / "metrics.jsonl"))) == 6

    def test_a_run_of_one_process_goes_on_with_several(
        self,
        tmp_path: Path,
        alone: list[MetricsLogger],
        launched: pytest.MonkeyPatch,
    ) -> None:
        """GIVEN: Five steps of a process without a launcher
        WHEN: The first of several ranks resumes behind the third, in a file of its own
        THEN: It is a second attempt, and who reads all has each step once.
        """
        launched.delenv("RANK")
        logged(logger_of(alone, tmp_path), 1, 2, 3, 4, 5)
        launched.setenv("RANK", "0")
        log = logger_of(alone, tmp_path)
        assert log.resume(3) == 2
        logged(log, 4, 5)
        launched.delenv("RANK")

        history = logger_of(alone, tmp_path).get_metrics_history()
        assert steps_of(history) == [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5)]

    def test_the_others_are_silent(
        self,
        tmp_path: Path,
        alone: list[MetricsLogger],
        launched: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """GIVEN: rank_files="first"
        WHEN: Rank 1 does all it can, and then rank 0 logs
        THEN: Rank 1 writes and says nothing, and answers from the file of rank 0.
        """
        caplog.set_level(logging.INFO, "foundry_log.metrics")
        keeping = Keeping()
        sinks = logging.getLogger("foundry_log.metrics.attempts")
        sinks.addHandler(keeping)
        silent = logger_of(alone, tmp_path / "run", rank_files="first")
        logged(silent, 5, 4)
        silent.log_step(6, 0, {"loss": math.nan})
        silent.log_epoch_summary(0, {})
        silent.offer("config", {})
        assert silent.resume(0) == 1
        assert not human(caplog)
        assert not keeping.records
        assert list(tmp_path.rglob("*.jsonl")) == []

        sinks.removeHandler(keeping)
        launched.setenv("RANK", "0")
        first = logger_of(alone, tmp_path / "run", rank_files="first")
        logged(first, 1)
        assert [file.name for file in (tmp_path / "run").glob("*.jsonl")] == ["metrics.jsonl"]
        assert len(silent.get_metrics_history()) == 1
        assert silent.resume(1) == 2
        assert len(lines(first.metrics_file)) == 1

    def test_a_rule_that_is_none(self, tmp_path: Path) -> None:
        """GIVEN: A rank_files that is unknown
        WHEN: Making a logger
        THEN: ValueError.
        """
        with pytest.raises(ValueError, match="rank_files='last'"):
            MetricsLogger("x", tmp_path, rank_files="last")  # type: ignore[arg-type]


def test_tensors_of_a_step_are_read_together(metrics_logger: MetricsLogger) -> None:
    """GIVEN: Tensors of several kinds beside other values
    WHEN: Logging them as a step and as a summary
    THEN: The lines have plain numbers.
    """
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'foundry_log[torch]'")
    values = {"loss": torch.tensor([0.5]), "n": torch.tensor(3), "list": [1], "x": 2.0}
    metrics_logger.log_step(1, 0, values)
    metrics_logger.log_epoch_summary(0, values)
    step, summary = lines(metrics_logger.metrics_file)
    assert step["metrics"] == summary["summary"] == {"loss": 0.5, "n": 3, "list": [1], "x": 2.0}


class TestNumbering:
    """`log_next`: metrics of what has no step of its own."""

    def test_the_steps_rise_from_one(self, metrics_logger: MetricsLogger) -> None:
        """Each call is told its number."""
        assert [metrics_logger.log_next({"latency_s": 0.5}) for _ in range(3)] == [1, 2, 3]
        history = metrics_logger.get_metrics_history()
        assert [(entry["step"], entry["epoch"]) for entry in history] == [(1, 0), (2, 0), (3, 0)]

    def test_a_process_that_comes_later_goes_on(
        self, metrics_logger: MetricsLogger, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A service that was restarted has one stream, and no step comes late."""
        for _ in range(3):
            metrics_logger.log_next({"latency_s": 0.5})
        again = MetricsLogger("test_exp", tmp_path)
        with caplog.at_level(logging.WARNING):
            assert again.log_next({"latency_s": 0.5}) == 4
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
        again.close()

    def test_it_goes_on_behind_a_step_that_was_given(self, metrics_logger: MetricsLogger) -> None:
        """Both ways of logging share the numbers."""
        metrics_logger.log_step(41, 0, {"loss": 1.0})
        assert metrics_logger.log_next({"latency_s": 0.5}) == 42

    def test_threads_get_a_number_each_and_none_comes_late(
        self, metrics_logger: MetricsLogger, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The number is given and written in one go."""
        with caplog.at_level(logging.WARNING), ThreadPoolExecutor(8) as pool:
            numbers = list(pool.map(lambda _: metrics_logger.log_next({"x": 1}), range(400)))
        assert sorted(numbers) == list(range(1, 401))
        written = sorted(entry["step"] for entry in metrics_logger.get_metrics_history())
        assert written == sorted(numbers)
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]

    def test_a_slow_handler_holds_up_nobody_else(self, metrics_logger: MetricsLogger) -> None:
        """GIVEN a handler that waits for another thread's step WHEN both log THEN both go on."""
        both = threading.Barrier(2, timeout=20)

        class Waits(logging.Handler):
            def handle(self, record: logging.LogRecord) -> bool:  # without the handler's lock
                both.wait()
                return True

        sinks = logging.getLogger("foundry_log.metrics.test_exp")
        sinks.addHandler(Waits())
        with ThreadPoolExecutor(2) as pool:
            steps = list(pool.map(lambda _: metrics_logger.log_next({"x": 1}), range(2)))
        assert sorted(steps) == [1, 2]
        assert not both.broken
        assert not metrics_logger.sink_failures
