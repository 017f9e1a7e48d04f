"""Memory of a long run: it must not grow with the number of steps."""

from __future__ import annotations

import gc
import time
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


@dataclass(frozen=True)
class MemoryRun:
    """A process that logs many steps in every way, and its resident memory on the way.

    Each step is a `log_step` and two timing blocks; every tenth is a structured record too, and now
    and then there are statistics, percentiles, an error and its questions. Rotated metrics are
    deleted once they are counted, so that the disk holds a few MB.
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

        process = psutil.Process()

        def resident_mb() -> float:
            gc.collect()
            return float(process.memory_info().rss) / MB

        marks = {max(1, count * tenth // 10) for tenth in range(1, 11)}
        with stdlib_logger(our_handler(directory / "run.jsonl"), our_formatter({})) as logger:
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
                metrics.log_step(step, step // 1000, METRICS)
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
            losses = {**metrics.losses, **errors.losses}
            if losses:
                raise WrongOutput(f"lost: {losses}")
            metrics.close()
            errors.close()
        return {"samples": samples, "seconds": seconds}


def _delete_rotated(directory: Path) -> None:
    for folder, live in ((directory / "metrics", "metrics.jsonl"), (directory, "run.jsonl")):
        for path in folder.glob("*.jsonl*"):
            if path.name != live:
                path.unlink()


@dataclass
class MemoryReport:
    """Resident memory by number of steps."""

    name: str
    count: int
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
        head = f"{self.name}: {self.count:,} steps of log_step, two timing blocks and now and then"
        lines = [f"{head} records, statistics, errors"]
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
