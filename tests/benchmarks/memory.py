"""Memory of a long run: it must not grow with the number of steps."""

from __future__ import annotations

import gc
import logging
import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.checks import WrongOutput, expect
from tests.benchmarks.goals import Verdict
from tests.benchmarks.harness import Failed, Settings, in_own_process
from tests.benchmarks.loggers import our_formatter, our_handler, our_logger, stdlib_logger
from tests.benchmarks.metrics import METRICS

MB = 1_000_000
ALLOWED_GROWTH_MB = 4.0
"""Between a tenth of the run and its end. A run that kept one byte a step would pass this with a
million steps and fail with ten; one that kept its lines would fail with 20,000."""
_RECORD_EVERY = 10
_STATISTICS_EVERY = 2_000
_ERROR_EVERY = 5_000
_ALARMS_AT = (1_000, 2_000)
"""Steps of each 5,000 with a NaN and with a spike."""
_QUEUED = 200
_VARIANTS = 1_009


@dataclass(frozen=True)
class MemoryRun:
    """A process that logs many steps in every way, and its resident memory on the way.

    Each step is two timing blocks and a `log_step`, of metrics that vary, to a logger without and
    to one with a tracker that does not keep up; every tenth is a structured record too, and now and
    then there are statistics, percentiles, a NaN, a spike, an error and its questions. Rotated
    metrics are deleted once they are counted, so that the disk holds a few MB.
    """

    name: str = "memory"
    count: int = 200_000
    quick: int = 5_000
    long: int = 10_000_000

    def run(self, settings: Settings) -> MemoryReport:
        """Run the process once."""
        usual = self.quick if settings.quick else self.long if settings.long else self.count
        count = settings.count or usual
        report = MemoryReport(self.name, count)
        try:
            report.figures = in_own_process(self.name, "ours", count)
        except Failed as failure:
            report.failed = str(failure)
        return report

    def measure(self, contender: str, count: int, directory: Path) -> dict[str, Any]:
        """Do all steps and return samples of the memory in MB."""
        import psutil

        from foundry_log import ErrorTracker, MetricsLogger, PerformanceLogger

        logging.getLogger("foundry_log").setLevel(logging.ERROR)
        process = psutil.Process()

        def resident_mb() -> float:
            gc.collect()
            return float(process.memory_info().rss) / MB

        marks = {max(1, count * tenth // 10) for tenth in range(1, 11)}
        usual = _varied()
        with (
            stdlib_logger(our_handler(directory / "run.jsonl"), our_formatter({})) as logger,
            _tracked(directory / "tracked") as (tracked, expect_all_counted),
        ):
            log = our_logger()
            metrics = MetricsLogger("bench", directory / "metrics", max_size_mb=2)
            errors = ErrorTracker(logger, directory / "errors", max_errors=100)
            perf = PerformanceLogger(logger)
            samples = [(0, resident_mb())]
            started = time.perf_counter()
            for step in range(count):
                with perf.time_block("forward"):
                    pass
                with perf.time_block("backward"):
                    pass
                values = {**usual[step % _VARIANTS], **_unusual(step)}
                metrics.log_step(step, step // 1000, values)
                tracked.log_step(step, step // 1000, values)
                if step % _RECORD_EVERY == 0:
                    log.info("Step done", step=step, loss=2.5)
                if step % _STATISTICS_EVERY == 0:
                    metrics.compute_statistics("loss")
                    perf.get_timing_percentiles("forward")
                    _delete_rotated(directory)
                if step % _ERROR_EVERY == 0:
                    errors.log_error(ValueError(f"step {step}"), {"step": step})
                    errors.get_recent_errors(5)
                if step + 1 in marks:
                    samples.append((step + 1, resident_mb()))
            seconds = time.perf_counter() - started
            counts = metrics.compute_statistics("loss"), perf.get_timing_statistics("forward")
            expect(counts[0]["count"] == count, f"{counts[0]} of {count} steps")
            expect(counts[1]["count"] == count, f"{counts[1]} of {count} blocks")
            summary = errors.get_error_summary()
            expect(sum(summary.values()) == len(range(0, count, _ERROR_EVERY)), f"{summary}")
            expect_all_counted(count)
            losses = {**metrics.losses, **tracked.losses, **errors.losses}
            if losses:
                raise WrongOutput(f"lost: {losses}")
            metrics.close()
            errors.close()
        return {"samples": samples, "seconds": seconds}


def _varied() -> list[dict[str, float]]:
    """Return metrics of some steps, each value within a tenth of its usual one."""
    chance = random.Random(0)
    return [
        {name: value * chance.uniform(0.95, 1.05) for name, value in METRICS.items()}
        for _ in range(_VARIANTS)
    ]


def _unusual(step: int) -> dict[str, float]:
    """Return a NaN or a spike now and then, once alarms have seen what is usual."""
    at = step % _ERROR_EVERY
    return {"grad_norm": math.nan if at == _ALARMS_AT[0] else 1e6} if at in _ALARMS_AT else {}


@contextmanager
def _tracked(directory: Path) -> Iterator[tuple[Any, Any]]:
    """Yield a MetricsLogger before a tracker whose queue is full, and what checks its counts."""
    from foundry_log import MetricsLogger, SinkHandler

    class Slow(SinkHandler):
        sent = 0

        def metrics(self, step: int, epoch: int, values: Any, entry: Any) -> None:
            time.sleep(0.002)
            self.sent += 1

        def text(self, record: logging.LogRecord) -> None:
            self.sent += record.name == "foundry_log.metrics"  # an alarm, and no notice of ours

    metrics = MetricsLogger("tracked", directory, max_size_mb=2)
    sink = Slow(capacity=_QUEUED, overflow="drop_oldest")
    logger = logging.getLogger("foundry_log.metrics.tracked")
    logger.addHandler(sink)

    def expect_all_counted(count: int) -> None:
        sink.close()
        alarms = sum(len(range(each, count, _ERROR_EVERY)) for each in _ALARMS_AT)
        dropped, lost = sum(sink.dropped.values()), sum(sink.losses.values())
        told = f"{sink.sent} sent, {dropped} dropped, {lost} lost of {count} and {alarms} alarms"
        expect(sink.sent + dropped + lost == count + alarms, told)
        expect(bool(dropped) or count < 2 * _QUEUED, f"the queue was not full: {told}")

    yield metrics, expect_all_counted
    logger.removeHandler(sink)
    metrics.close()


def _delete_rotated(directory: Path) -> None:
    folders = (directory / "metrics", directory / "tracked")
    for folder, live in (*((each, "metrics.jsonl") for each in folders), (directory, "run.jsonl")):
        for path in folder.glob("*.jsonl*"):
            if path.name != live:
                path.unlink()


@dataclass
class MemoryReport:
    """Resident memory by number of steps."""

    name: str
    count: int
    what: str = (
        "steps of log_step twice, two timing blocks and now and then records, statistics, alarms, "
        "errors"
    )
    figures: dict[str, Any] = field(default_factory=dict)
    failed: str = ""

    @property
    def growth_mb(self) -> float:
        """Memory at the end less that at a tenth of the steps."""
        samples = self.figures["samples"]
        return float(samples[-1][1] - samples[min(1, len(samples) - 1)][1])

    @property
    def ok(self) -> bool:
        """Whether the run did its task and memory stayed flat."""
        return not self.failed and self.growth_mb <= ALLOWED_GROWTH_MB

    def verdicts(self) -> list[Verdict]:
        """Return nothing: flat memory is a condition, which `ok` tells, and no goal."""
        return []

    def text(self) -> str:
        """Return memory at the start, at a tenth of the steps and at the end."""
        lines = [f"{self.name}: {self.count:,} {self.what}"]
        if self.failed:
            return "\n".join([*lines, f"FAILED   foundry_log: {self.failed}"])
        samples = self.figures["samples"]
        for steps, megabytes in (samples[0], samples[min(1, len(samples) - 1)], samples[-1]):
            lines.append(f"{steps:>12,} steps  {megabytes:7.1f} MB")
        seconds = self.figures["seconds"]
        verdict = "flat" if self.ok else f"FAILED: grew by more than {ALLOWED_GROWTH_MB} MB"
        lines.append(f"{self.growth_mb:+.1f} MB from a tenth to the end: {verdict}")
        lines.append(f"{seconds:.0f} s, {seconds / self.count * 1e6:.1f} µs a step in all")
        return "\n".join(lines)

    def data(self) -> dict[str, Any]:
        """Return all samples."""
        if self.failed:
            return {"count": self.count, "failed": self.failed}
        return {"count": self.count, **self.figures, "growth_mb": self.growth_mb, "ok": self.ok}


MEMORY = MemoryRun()
