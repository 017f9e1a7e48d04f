"""PerformanceLogger: every case of the specification, bounded memory, exact statistics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_log import ExperimentConfig, PerformanceLogger, StructuredLogger
from foundry_log.performance import MAX_SAMPLES, MAX_WAITING

pytestmark = pytest.mark.unit

MS = 1_000_000


def busy(milliseconds: int) -> None:
    """Let at least so much time pass."""
    end = time.perf_counter_ns() + milliseconds * MS
    while time.perf_counter_ns() < end:
        pass


def run_in_threads(work: Callable[[], object], count: int = 4) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that they meet everywhere
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)


@contextlib.contextmanager
def interrupted_by(handler: Callable[[], None]) -> Iterator[None]:
    """Call the handler by a real signal, again half a millisecond after each time."""
    going_on = True

    def on_alarm(*_: Any) -> None:
        handler()
        if going_on:
            signal.setitimer(signal.ITIMER_REAL, 0.0005)

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.0005)
    try:
        yield
    finally:
        going_on = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


FORKS = """
import contextlib, logging, os, signal, threading, warnings
from foundry_log.performance import MAX_SAMPLES, PerformanceLogger
warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the point
MS = 1_000_000
perf, stop = PerformanceLogger(logging.getLogger("forks")), threading.Event()
def answer_of_child():
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            signal.alarm(20)
            perf.record("op", 123 * MS)
            count = int(perf.get_timing_statistics("op")["count"])
            if len(perf.timers["op"]) == MAX_SAMPLES and perf.timers["op"][-1] == 0.123:
                os.write(writing, str(count).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return int(text or 0)
asking = threading.Thread(target=lambda: [perf.timers for _ in iter(stop.is_set, True)])
for _ in range(MAX_SAMPLES):
    perf.record("op", MS)
asking.start()
answers = []
for _ in range(30):
    perf.record("op", MS)
    answers.append(answer_of_child())
print(answers)
stop.set()
asking.join()
"""


@pytest.fixture
def perf(performance_logger: PerformanceLogger) -> PerformanceLogger:
    return performance_logger


class TestPerformanceLoggerTiming:
    def test_time_block_measures_duration(self, perf: PerformanceLogger) -> None:
        """
        GIVEN: A PerformanceLogger
        WHEN: Timing a block
        THEN: Its duration in seconds is kept under its name.
        """
        with perf.time_block("op"):
            busy(3)
        assert list(perf.timers) == ["op"]
        assert perf.timers["op"][0] >= 0.003

    def test_time_block_logs_duration(
        self, perf: PerformanceLogger, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        GIVEN: The logger at DEBUG
        WHEN: Timing a block
        THEN: One record says how long it took, with timer and duration as fields, at its place.
        """
        with caplog.at_level(logging.DEBUG, "test"), perf.time_block("op"):
            busy(1)
        (record,) = caplog.records
        seconds = perf.timers["op"][0]
        assert record.getMessage() == f"op completed in {seconds:.4f}s"
        assert (record.timer, record.duration_s) == ("op", seconds)  # type: ignore[attr-defined]
        assert record.levelno == logging.DEBUG
        assert record.filename == Path(__file__).name

    def test_time_block_logs_at_the_level_asked_for(
        self, perf: PerformanceLogger, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        GIVEN: The logger at INFO
        WHEN: Timing one block at INFO and one at the default level
        THEN: Only the first is logged, and both are kept.
        """
        with caplog.at_level(logging.INFO, "test"):
            with perf.time_block("loud", log_level=logging.INFO):
                pass
            with perf.time_block("quiet"):
                pass
        assert [record.levelname for record in caplog.records] == ["INFO"]
        assert set(perf.timers) == {"loud", "quiet"}

    def test_time_block_tracks_multiple_calls(self, perf: PerformanceLogger) -> None:
        """
        GIVEN: A PerformanceLogger
        WHEN: Timing the same operation several times
        THEN: Each duration is kept.
        """
        for _ in range(5):
            with perf.time_block("op"):
                pass
        assert len(perf.timers["op"]) == 5

    def test_time_block_handles_exceptions(
        self, perf: PerformanceLogger, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        GIVEN: A block that raises
        WHEN: Timing it
        THEN: The duration is kept and logged, and the exception goes on.
        """
        with (
            caplog.at_level(logging.DEBUG, "test"),
            pytest.raises(ValueError, match="boom"),
            perf.time_block("op"),
        ):
            raise ValueError("boom")
        assert len(perf.timers["op"]) == 1
        assert "op completed in" in caplog.text

    def test_nested_time_blocks(self, perf: PerformanceLogger) -> None:
        """
        GIVEN: A block inside another, and one inside a block of the same name
        WHEN: Timing them
        THEN: Each is kept, and the outer one is longer.
        """
        with perf.time_block("outer"):
            busy(1)
            with perf.time_block("inner"), perf.time_block("inner"):
                busy(1)
        assert perf.timers["outer"][0] > perf.timers["inner"][1] >= perf.timers["inner"][0]
        assert perf.timers["inner"][0] >= 0.001


class TestPerformanceLoggerDecorator:
    def test_a_function(self, perf: PerformanceLogger) -> None:
        """
        GIVEN: A decorated function
        WHEN: Calling it, also recursively
        THEN: Each call is timed, and name, docstring and result are the function's own.
        """

        @perf.time_block("fact")
        def factorial(n: int) -> int:
            """Multiply."""
            return n * factorial(n - 1) if n else 1

        assert factorial(3) == 6
        assert len(perf.timers["fact"]) == 4
        assert (factorial.__name__, factorial.__doc__) == ("factorial", "Multiply.")

    def test_a_coroutine_function(self, perf: PerformanceLogger) -> None:
        """
        GIVEN: A decorated coroutine function, and a block inside a coroutine
        WHEN: Running several at once
        THEN: The time is that of running, not of creating, each its own.
        """

        @perf.time_block("task")
        async def task() -> None:
            with perf.time_block("block"):
                await asyncio.sleep(0.002)

        async def main() -> None:
            await asyncio.gather(*(task() for _ in range(3)))

        asyncio.run(main())
        assert [len(perf.timers[name]) for name in ("task", "block")] == [3, 3]
        assert min(perf.timers["task"]) >= 0.002

    def test_a_generator(self, perf: PerformanceLogger) -> None:
        """
        GIVEN: A decorated generator
        WHEN: Consuming it
        THEN: It is timed from its first item to its last.
        """

        @perf.time_block("items")
        def items() -> Iterator[int]:
            yield 1
            busy(2)
            yield 2

        iterator = items()
        assert perf.timers == {}
        assert list(iterator) == [1, 2]
        assert perf.timers["items"][0] >= 0.002

    def test_an_async_generator(self, perf: PerformanceLogger) -> None:
        """
        GIVEN: A decorated async generator
        WHEN: Consuming it
        THEN: It is timed once, over all its items.
        """

        @perf.time_block("items")
        async def items() -> AsyncIterator[int]:
            yield 1
            yield 2

        async def main() -> list[int]:
            return [item async for item in items()]

        assert asyncio.run(main()) == [1, 2]
        assert len(perf.timers["items"]) == 1

    def test_a_decorated_function_that_raises(self, perf: PerformanceLogger) -> None:
        """
        GIVEN: A decorated function that raises
        WHEN: Calling it
        THEN: It is timed, and raises.
        """

        @perf.time_block("op")
        def fail() -> None:
            raise KeyError("x")

        with pytest.raises(KeyError):
            fail()
        assert len(perf.timers["op"]) == 1


class TestPerformanceLoggerStatistics:
    def test_get_timing_statistics(self, perf: PerformanceLogger) -> None:
        """
        GIVEN: Durations that a caller assigned
        WHEN: Computing statistics
        THEN: Count, mean, extremes and the sample standard deviation are theirs.
        """
        durations = [0.1, 0.2, 0.15, 0.18, 0.12]
        perf.timers["op"] = durations
        result = perf.get_timing_statistics("op")
        assert set(result) == {"count", "mean", "min", "max", "std"}
        assert (result["count"], result["min"], result["max"]) == (5, 0.1, 0.2)
        assert result["mean"] == pytest.approx(statistics.mean(durations))
        assert result["std"] == pytest.approx(statistics.stdev(durations))

    def test_get_timing_statistics_single_sample(self, perf: PerformanceLogger) -> None:
        """
        GIVEN: One duration, assigned or measured
        WHEN: Computing statistics
        THEN: std is 0.0.
        """
        perf.timers["assigned"] = [0.5]
        perf.record("measured", 500 * MS)
        expected = {"count": 1, "mean": 0.5, "min": 0.5, "max": 0.5, "std": 0.0}
        assert perf.get_timing_statistics("assigned") == expected
        assert perf.get_timing_statistics("measured") == expected

    def test_an_unknown_name_creates_nothing(self, perf: PerformanceLogger) -> None:
        """
        GIVEN: No timer
        WHEN: Asking for one
        THEN: The answers are empty, and still there is no timer.
        """
        assert perf.get_timing_statistics("no") == {}
        assert perf.get_timing_percentiles("no") == {}
        assert perf.timers.get("no") is None
        assert perf.timers == {}
        assert perf.timing_report() == {}

    def test_an_empty_list_is_as_unknown(self, perf: PerformanceLogger) -> None:
        """
        GIVEN: A list that a caller emptied
        WHEN: Asking
        THEN: There is nothing to tell.
        """
        perf.record("op", MS)
        perf.timers["op"].clear()
        assert perf.get_timing_statistics("op") == {}
        assert perf.timing_report() == {}

    def test_durations_are_bounded_and_statistics_exact_beyond(
        self, perf: PerformanceLogger
    ) -> None:
        """
        GIVEN: Two and a half times as many blocks as are kept
        WHEN: Asking for durations and statistics
        THEN: The list holds the latest, the statistics are of all.
        """
        total = 2 * MAX_SAMPLES + MAX_SAMPLES // 2
        for number in range(total):
            perf.record("op", (number + 1) * 1000)
            assert len(perf._measured["op"]) <= MAX_WAITING
        assert perf.timers["op"] == [
            (number + 1) * 1000 / 1e9 for number in range(total - MAX_SAMPLES, total)
        ]
        for _ in range(2):
            result = perf.get_timing_statistics("op")
            assert (result["count"], result["min"]) == (total, 1e-6)
            assert result["max"] == total / 1e6
            assert result["mean"] == pytest.approx((total + 1) / 2 * 1e-6)
            assert result["std"] == pytest.approx(
                statistics.stdev(range(1, total + 1)) * 1e-6, rel=1e-9
            )

    def test_few_blocks_wait_to_be_taken_in(self, perf: PerformanceLogger) -> None:
        """
        GIVEN: Nobody who asks
        WHEN: Timing more blocks than may wait
        THEN: They have been taken in.
        """
        for _ in range(MAX_WAITING + 9):
            with perf.time_block("op"):
                pass
        assert len(perf._measured["op"]) <= MAX_WAITING
        assert perf.get_timing_statistics("op")["count"] == MAX_WAITING + 9

    def test_an_assigned_list_counts_from_then_on(self, perf: PerformanceLogger) -> None:
        """
        GIVEN: A timer with durations
        WHEN: A caller assigns a list, and blocks follow
        THEN: The statistics are of that list and of what came after.
        """
        perf.record("op", 100 * MS)
        perf.timers["op"] = [1.0, 3.0]
        assert perf.get_timing_statistics("op")["mean"] == 2.0
        perf.record("op", 5_000 * MS)
        assert perf.get_timing_statistics("op")["mean"] == 3.0
        assert perf.timers["op"] == [1.0, 3.0, 5.0]

    @pytest.mark.parametrize("change", ["append", "replace", "remove", "clear"])
    def test_a_changed_list_counts_as_it_stands(self, perf: PerformanceLogger, change: str) -> None:
        """
        GIVEN: A timer with durations
        WHEN: A caller changes its list in place
        THEN: The statistics are of the list as it is now.
        """
        for milliseconds in (1000, 2000):
            perf.record("op", milliseconds * MS)
        durations = perf.timers["op"]
        if change == "append":
            durations.append(6.0)
        elif change == "replace":
            durations[0] = 4.0
        elif change == "remove":
            del durations[0]
        else:
            durations.clear()
            perf.record("op", 500 * MS)
        result = perf.get_timing_statistics("op")
        assert result["count"] == len(durations)
        assert result["mean"] == pytest.approx(statistics.mean(durations))

    def test_a_callers_nan_costs_no_block_its_end(self, perf: PerformanceLogger) -> None:
        """
        GIVEN: A list with NaN and infinity, which a caller assigned
        WHEN: A block of that name ends
        THEN: Nothing is raised, and the list still counts.
        """
        perf.timers["op"] = [math.nan, math.inf]
        with perf.time_block("op"):
            pass
        assert perf.get_timing_statistics("op")["count"] == 3

    @settings(deadline=None)
    @given(st.lists(st.integers(0, 10**15), min_size=1, max_size=50))
    def test_statistics_are_those_of_the_statistics_module(self, durations: list[int]) -> None:
        """
        GIVEN: Any durations, up to eleven days
        WHEN: Computing statistics
        THEN: They agree with the standard library's exact ones.
        """
        perf = PerformanceLogger(logging.getLogger("test"))
        for duration in durations:
            perf.record("op", duration)
        result = perf.get_timing_statistics("op")
        assert result["mean"] == pytest.approx(statistics.mean(durations) / 1e9)
        spread = statistics.stdev(durations) / 1e9 if len(durations) > 1 else 0.0
        assert result["std"] == pytest.approx(spread)
        assert result["min"] <= result["mean"] <= result["max"]

    def test_percentiles_are_durations_that_were_measured(self, perf: PerformanceLogger) -> None:
        """
        GIVEN: A hundred durations in any order
        WHEN: Asking for percentiles
        THEN: The nearest rank of each.
        """
        perf.timers["op"] = [float(n) for n in range(100, 0, -1)]
        assert perf.get_timing_percentiles("op") == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
        assert perf.get_timing_percentiles("op", [0.1, 99.9, 100]) == {
            "p0.1": 1.0,
            "p99.9": 100.0,
            "p100": 100.0,
        }

    @pytest.mark.parametrize("percentile", [0, -1, 100.1, math.nan])
    def test_a_percentile_out_of_range_is_refused(
        self, perf: PerformanceLogger, percentile: float
    ) -> None:
        """
        GIVEN: A timer
        WHEN: Asking for a percentile that is none
        THEN: The rule is said.
        """
        with pytest.raises(ValueError, match="must be above 0 and at most 100"):
            perf.get_timing_percentiles("op", [percentile])

    def test_threads_lose_no_duration(self, perf: PerformanceLogger) -> None:
        """
        GIVEN: Several threads, and more blocks than wait to be taken in
        WHEN: All time blocks of one name while others ask for it
        THEN: Every block is counted, and the latest are kept.
        """

        def work() -> None:
            for number in range(MAX_WAITING // 4):
                with perf.time_block("op"):
                    pass
                if number % 100 == 0:
                    perf.get_timing_statistics("op")
                    perf.timing_report()
                    len(perf.timers)

        run_in_threads(work, 6)
        assert perf.get_timing_statistics("op")["count"] == 6 * (MAX_WAITING // 4)
        assert len(perf.timers["op"]) == MAX_SAMPLES

    def test_a_reset_costs_no_later_block(self, perf: PerformanceLogger) -> None:
        """
        GIVEN: Threads that time blocks
        WHEN: Resetting meanwhile, and counting what ended afterwards
        THEN: All of that is there, and a block that began before and ended after counts.
        """
        begun = perf.time_block("op")
        with begun:
            run_in_threads(lambda: [perf.record("op", MS) or perf.reset_timers() for _ in "x" * 99])
            assert perf.timers == {}
        run_in_threads(lambda: [perf.record("op", MS) for _ in range(100)])
        assert perf.get_timing_statistics("op")["count"] == 401

    def test_a_signal_handler_may_time_and_ask_anywhere(self, perf: PerformanceLogger) -> None:
        """
        GIVEN: A signal handler that times a block and asks, and lists at their full length
        WHEN: It interrupts a thread that does the same
        THEN: It hears of every block that has ended, and none is lost or doubled.
        """
        for _ in range(MAX_SAMPLES):
            perf.record("op", MS)
        heard = []
        done = MAX_SAMPLES

        def handler() -> None:
            with perf.time_block("op"):
                pass
            heard.append(perf.get_timing_statistics("op")["count"] - len(heard) - 1 - done)

        with interrupted_by(handler):
            limit = time.monotonic() + 20
            while len(heard) < 300 and time.monotonic() < limit:
                perf.record("op", MS)
                done += 1
                assert len(perf.timers["op"]) == MAX_SAMPLES
        assert len(heard) >= 300
        assert set(heard) <= {0, 1}  # the one that has ended and is not counted by this test yet
        assert perf.get_timing_statistics("op")["count"] == done + len(heard)

    def test_a_fork_in_the_midst_costs_nothing(self) -> None:
        """
        GIVEN: A thread that asks without a pause
        WHEN: Forking again and again
        THEN: Each child knows every block, and times its own.

        In an interpreter of its own: coverage has a lock that a fork may find taken.
        """
        done = subprocess.run(
            [sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60, check=False
        )
        known = [MAX_SAMPLES + number + 1 for number in range(1, 31)]
        assert (done.stdout, done.stderr) == (f"{known}\n", "")

    def test_a_list_that_was_had_before_is_brought_up_to_date(
        self, perf: PerformanceLogger
    ) -> None:
        """
        GIVEN: A timer's list
        WHEN: More blocks end, and anything is asked
        THEN: They stand in the same list.
        """
        perf.record("op", 1000 * MS)
        durations = perf.timers["op"]
        perf.record("op", 2000 * MS)
        perf.get_timing_percentiles("op")
        assert durations == [1.0, 2.0]
        assert perf.timers["op"] is durations

    def test_a_list_that_was_removed_starts_anew(self, perf: PerformanceLogger) -> None:
        """
        GIVEN: A timer whose list a caller removed
        WHEN: Asking, and timing again
        THEN: It is unknown, then has what came after.
        """
        perf.record("op", 1000 * MS)
        del perf.timers["op"]
        assert perf.get_timing_statistics("op") == {}
        assert perf.timers == {}
        perf.record("op", 2000 * MS)
        assert perf.timers == {"op": [2.0]}
        assert perf.get_timing_statistics("op")["mean"] == 2.0

    def test_what_is_no_duration_is_refused_at_once(self, perf: PerformanceLogger) -> None:
        """
        GIVEN: No number
        WHEN: Recording it
        THEN: A TypeError, and later questions are answered.
        """
        with pytest.raises(TypeError):
            perf.record("op", None)  # type: ignore[arg-type]
        assert perf.get_timing_statistics("op") == {}


class TestPerformanceLoggerMemory:
    def test_log_memory_usage_cpu(
        self, perf: PerformanceLogger, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        GIVEN: Any machine
        WHEN: Logging the memory in use
        THEN: One record, whose fields are the figures that are returned.
        """
        with caplog.at_level(logging.DEBUG, "test"):
            usage = perf.log_memory_usage()
        (record,) = caplog.records
        assert record.memory_gb == usage  # type: ignore[attr-defined]
        assert usage["rss"] > 0
        assert 0 <= usage["system_percent"] <= 100
        if "gpu_allocated" not in usage:
            assert record.getMessage().startswith(f"Memory - Process: {usage['rss']:.2f}GB")
        assert record.filename == Path(__file__).name

    def test_log_memory_usage_at_the_level_asked_for(
        self, perf: PerformanceLogger, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        GIVEN: The logger at INFO
        WHEN: Logging memory at INFO
        THEN: The record has that level.
        """
        with caplog.at_level(logging.INFO, "test"):
            perf.log_memory_usage(logging.INFO)
        assert [record.levelno for record in caplog.records] == [logging.INFO]

    @pytest.mark.gpu
    def test_log_memory_usage_gpu(
        self, perf: PerformanceLogger, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        GIVEN: A GPU
        WHEN: Logging the memory in use
        THEN: The line says what is allocated and what is reserved.
        """
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        kept = torch.zeros(32_000_000, device="cuda")
        with caplog.at_level(logging.DEBUG, "test"):
            usage = perf.log_memory_usage()
        assert usage["gpu_reserved"] >= usage["gpu_allocated"] >= kept.nbytes / 1e9
        assert caplog.records[0].getMessage() == (
            f"GPU memory - Allocated: {usage['gpu_allocated']:.2f}GB, "
            f"Reserved: {usage['gpu_reserved']:.2f}GB"
        )


class TestPerformanceLoggerManagement:
    def test_reset_timers(self, perf: PerformanceLogger) -> None:
        """
        GIVEN: Timers, measured and assigned
        WHEN: Resetting
        THEN: None is left, and a new block counts from one.
        """
        perf.record("op", MS)
        perf.timers["assigned"] = [1.0]
        perf.reset_timers()
        assert perf.timers == {}
        perf.record("op", MS)
        assert perf.get_timing_statistics("op")["count"] == 1

    def test_export_timing_report(self, perf: PerformanceLogger, tmp_path: Path) -> None:
        """
        GIVEN: Several operations
        WHEN: Exporting the report to a directory that does not exist
        THEN: One JSON document has each one's statistics, the most expensive first.
        """
        for _ in range(3):
            perf.record("small", 1 * MS)
            perf.record("large", 20 * MS)
        target = tmp_path / "deep" / "timing.json"
        perf.export_timing_report(target)
        report = json.loads(target.read_text())
        assert list(report) == ["large", "small"]
        assert report["large"]["count"] == 3
        assert report["large"]["mean"] == pytest.approx(0.02)
        assert report["large"]["total"] == pytest.approx(0.06)
        assert set(report["small"]) == {
            *("count", "mean", "min", "max", "std", "total"),
            *("p50", "p95", "p99"),
        }
        assert list(target.parent.iterdir()) == [target]

    def test_export_replaces_an_earlier_report(
        self, perf: PerformanceLogger, tmp_path: Path
    ) -> None:
        """
        GIVEN: A report of an earlier run
        WHEN: Exporting to the same path, given as text
        THEN: The new one stands alone.
        """
        (tmp_path / "r.json").write_text("old" * 1000)
        perf.record("op", MS)
        perf.export_timing_report(str(tmp_path / "r.json"))
        assert list(json.loads((tmp_path / "r.json").read_text())) == ["op"]

    def test_export_says_when_it_cannot_write(
        self, perf: PerformanceLogger, tmp_path: Path
    ) -> None:
        """
        GIVEN: A file in the directory's place
        WHEN: Exporting
        THEN: An OSError, since it was asked for by name.
        """
        (tmp_path / "file").touch()
        with pytest.raises(OSError, match="file"):
            perf.export_timing_report(tmp_path / "file" / "r.json")


class TestPerformanceLoggerLoggers:
    def test_a_structured_logger_gets_the_fields_as_context(
        self, tiny_config: ExperimentConfig, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        GIVEN: A StructuredLogger
        WHEN: Timing a block
        THEN: The record's context has timer and duration beside the base context.
        """
        perf = PerformanceLogger(StructuredLogger("test", tiny_config))
        with caplog.at_level(logging.DEBUG, "test"), perf.time_block("op"):
            pass
        context: dict[str, Any] = json.loads(caplog.records[0].getMessage())["context"]
        assert context["timer"] == "op"
        assert context["experiment"] == tiny_config.experiment_name

    def test_a_logger_is_asked_each_time(self, caplog: pytest.LogCaptureFixture) -> None:
        """
        GIVEN: A logger with an `isEnabledFor` of its own, changed between the blocks
        WHEN: Timing blocks
        THEN: Its answer counts.
        """

        class Choosy(logging.Logger):
            wants = True

            def isEnabledFor(self, level: int) -> bool:
                return self.wants

        logger = Choosy("choosy")
        logger.addHandler(caplog.handler)
        perf = PerformanceLogger(logger)
        for logger.wants in (True, False, True):
            with perf.time_block("op"):
                pass
        assert len(caplog.records) == 2

    def test_a_name_with_a_percent_sign_is_only_text(
        self, perf: PerformanceLogger, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        GIVEN: A timer called after a user's input
        WHEN: Timing it
        THEN: The name stands in the message as it is.
        """
        with caplog.at_level(logging.DEBUG, "test"), perf.time_block("100%d"):
            pass
        assert caplog.records[0].getMessage().startswith("100%d completed in ")


def test_a_logger_must_be_one() -> None:
    """A name in its place is refused at once, with what to pass."""
    with pytest.raises(TypeError, match=r"pass logging\.getLogger\('train'\)"):
        PerformanceLogger("train")  # type: ignore[arg-type]


def test_a_decorator_without_parentheses_says_what_it_needs(
    performance_logger: PerformanceLogger,
) -> None:
    """The function itself is no name."""
    with pytest.raises(TypeError, match="needs a name"):
        performance_logger.time_block(lambda: None)  # type: ignore[arg-type]


class TestNamesAndOddDurations:
    def test_names_that_are_not_used_any_more_are_let_go(
        self, performance_logger: PerformanceLogger
    ) -> None:
        """GIVEN: Thousands of names, and a reset after each
        WHEN: Looking at what is kept
        THEN: It is the last ones.
        """
        for number in range(2_000):
            with performance_logger.time_block(f"step {number}"):
                pass
            performance_logger.reset_timers()

        assert len(performance_logger._measured) <= 2
        assert performance_logger.timing_report() == {}

    def test_a_block_that_spans_several_resets_counts(
        self, performance_logger: PerformanceLogger
    ) -> None:
        """GIVEN: A block that has begun, and three resets
        WHEN: It ends, and another one of its name
        THEN: Both count.
        """
        block = performance_logger.time_block("long")
        with block:
            for _ in range(3):
                performance_logger.reset_timers()
            assert "long" not in performance_logger._measured
        with performance_logger.time_block("long"):
            pass

        assert performance_logger.get_timing_statistics("long")["count"] == 2

    @pytest.mark.parametrize("listed", [(1.0, 2.0), ["no", "numbers"], 5, [10**400]])
    def test_what_is_no_list_of_numbers_breaks_no_block(
        self, performance_logger: PerformanceLogger, listed: Any
    ) -> None:
        """GIVEN: Something assigned to a timer
        WHEN: Blocks end, more than wait
        THEN: They count, behind what of it are numbers.
        """
        performance_logger.timers["odd"] = listed
        for _ in range(MAX_WAITING + 10):
            with performance_logger.time_block("odd"):
                pass

        known = 2 if listed == (1.0, 2.0) else 0
        assert performance_logger.get_timing_statistics("odd")["count"] >= MAX_WAITING + 10 + known

    def test_a_duration_beyond_the_floats_is_refused(
        self, performance_logger: PerformanceLogger
    ) -> None:
        """GIVEN: A timer
        WHEN: Recording a number that no statistics can be made of
        THEN: It is refused at once, and nothing is broken.
        """
        with pytest.raises(OverflowError):
            performance_logger.record("huge", 10**400)
        performance_logger.record("huge", 1_000)

        assert performance_logger.get_timing_statistics("huge")["count"] == 1
