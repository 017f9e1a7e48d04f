"""PerformanceLogger: where the time goes, and how much memory is used."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from foundry_log.decorating import Function, run_inside
from foundry_log.encoding import encode_document
from foundry_log.files.documents import PERMISSIONS, write_document
from foundry_log.files.locks import thread_lock
from foundry_log.process import memory_usage
from foundry_log.records import checked_logger
from foundry_log.running_stats import RunningStats

MAX_SAMPLES = 10_000
"""Durations that are kept of each timer, the latest."""

_NS = 1_000_000_000


class PerformanceLogger:
    """Times blocks of code and keeps their statistics in bounded memory.

    Thread-safe. Costs are in the README.

    Args:
        logger: a logger or a StructuredLogger, which gets one record a block.

    Raises:
        TypeError: `logger` is none.
    """

    def __init__(self, logger: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        checked_logger(logger)
        self.logger = logger
        self._timers: dict[str, list[float]] = {}
        self._totals: dict[str, _Total] = {}
        self._lock = thread_lock()  # guards both dicts and what is in them

    @property
    def timers(self) -> dict[str, list[float]]:
        """Name to durations in seconds, oldest first, at most the latest 10,000 of each.

        Yours to read and to assign: a list that you assign or change is what the statistics are
        made of from then on.
        """
        with self._lock:
            for name, total in self._totals.items():
                if self._timers.get(name) is total.durations:
                    total.trim()
        return self._timers

    def time_block(self, name: str, log_level: int = logging.DEBUG) -> TimedBlock:
        """Return a context manager that times the enclosed code; also a decorator of any function.

            with perf.time_block("forward"): ...

            @perf.time_block("load")
            async def load(): ...

        Each block logs `{name} completed in {seconds:.4f}s` with `timer` and `duration_s` as
        context, also when it raises. Blocks nest; the outer one's time includes the inner one's.

        Args:
            name: of the timer.
            log_level: of the record.

        Raises:
            TypeError: `name` is no text, as when the parentheses of a decorator are left out.
        """
        return TimedBlock(self, _checked_name(name), log_level)

    def get_timing_statistics(self, name: str) -> dict[str, float]:
        """Return `count`, `mean`, `min`, `max` and `std` of a timer, times in seconds.

        Exact over all blocks of the run, also beyond the durations that are kept. `std` is the
        sample standard deviation, 0.0 for one block. Empty for an unknown name.
        """
        with self._lock:
            durations, total = self._timers.get(name), self._totals.get(name)
            if durations is None:
                return {}
            if total is not None and total.describes(durations):
                return total.summary()
            return RunningStats(durations).summary()

    def get_timing_percentiles(
        self, name: str, percentiles: Sequence[float] = (50, 95, 99)
    ) -> dict[str, float]:
        """Return the given percentiles as `p50`, `p95`, …, in seconds, of the kept durations.

        The nearest-rank method: each result is a duration that was measured. Empty for an unknown
        name.

        Args:
            name: of the timer.
            percentiles: each above 0 and at most 100.

        Raises:
            ValueError: a percentile is out of range.
        """
        for percentile in percentiles:
            if not 0 < percentile <= 100:
                raise ValueError(f"percentile {percentile!r} must be above 0 and at most 100")
        with self._lock:
            ordered = sorted(self._timers.get(name, [])[-MAX_SAMPLES:])
        if not ordered:
            return {}
        return {
            f"p{percentile:g}": ordered[math.ceil(len(ordered) * percentile / 100) - 1]
            for percentile in percentiles
        }

    def log_memory_usage(self, log_level: int = logging.DEBUG) -> dict[str, float]:
        """Log the memory in use and return it in GB (10^9 bytes), see `process.memory_usage`.

        With a GPU: `GPU memory - Allocated: …GB, Reserved: …GB`; without: this process's memory.
        """
        usage = memory_usage()
        if "gpu_allocated" in usage:
            message = "GPU memory - Allocated: %.2fGB, Reserved: %.2fGB"
            values = (usage["gpu_allocated"], usage["gpu_reserved"])
        else:
            message = "Memory - Process: %.2fGB, System: %.1f%% used"
            values = (usage["rss"], usage["system_percent"])
        self.logger.log(log_level, message, *values, extra={"memory_gb": usage}, stacklevel=2)
        return usage

    def reset_timers(self) -> None:
        """Forget all timers."""
        with self._lock:
            self._timers.clear()
            self._totals.clear()

    def timing_report(self) -> dict[str, dict[str, float]]:
        """Return each timer's statistics, percentiles and `total` in seconds, largest first."""
        report = {}
        for name in list(self._timers):
            statistics = self.get_timing_statistics(name)
            if statistics:
                report[name] = {
                    **statistics,
                    "total": statistics["mean"] * statistics["count"],
                    **self.get_timing_percentiles(name),
                }
        return dict(sorted(report.items(), key=lambda item: -item[1]["total"]))

    def export_timing_report(
        self, path: str | os.PathLike[str], *, permissions: int = PERMISSIONS
    ) -> None:
        """Write `timing_report()` as a JSON document, in one step: a reader never sees half of it.

        Args:
            path: of the file; its directory is made.
            permissions: of the file, before the umask.

        Raises:
            OSError: the file cannot be written.
        """
        write_document(Path(path), encode_document(self.timing_report()), permissions)

    def record(self, name: str, duration_ns: int) -> None:
        """Add a duration that was measured elsewhere, in nanoseconds."""
        with self._lock:
            durations = self._timers.get(name)
            if durations is None:
                durations = self._timers[name] = []
            total = self._totals.get(name)
            if total is None or total.durations is not durations:
                total = self._totals[name] = _Total(durations)
            total.add(duration_ns)


class _Total:
    """Exact sums over all durations of one timer, in integer nanoseconds, and the latest ones."""

    __slots__ = (
        "_kept",
        "_kept_ns",
        "_squares_ns",
        "_sum_ns",
        "count",
        "durations",
        "max_ns",
        "min_ns",
    )

    def __init__(self, durations: list[float]) -> None:
        self.durations = durations
        self.count = self._kept = 0
        self.min_ns = self.max_ns = self._sum_ns = self._squares_ns = self._kept_ns = 0
        for seconds in durations:
            self._take(_nanoseconds(seconds))
        if not all(map(math.isfinite, durations)):
            self._kept = -1  # a caller's NaN has no sum: the list is what counts

    def add(self, ns: int) -> None:
        self.durations.append(ns / _NS)
        self._take(ns)
        if self._kept >= 2 * MAX_SAMPLES:
            self.trim()  # now and then, since taking items off the front moves all others

    def trim(self) -> None:
        """Keep the latest durations."""
        surplus = self.durations[:-MAX_SAMPLES]
        if surplus:
            del self.durations[: len(surplus)]
            self._kept -= len(surplus)
            self._kept_ns -= sum(map(_nanoseconds, surplus))

    def describes(self, durations: list[float]) -> bool:
        """Return whether the list is as this object left it, not assigned or changed since."""
        return (
            durations is self.durations
            and len(durations) == self._kept
            and sum(map(_nanoseconds, durations)) == self._kept_ns
        )

    def summary(self) -> dict[str, float]:
        count, total = self.count, self._sum_ns
        spread = 0.0
        if count > 1:
            variance = (count * self._squares_ns - total * total) / (count * (count - 1))
            spread = math.sqrt(variance)
        return {
            "count": count,
            "mean": total / count / _NS,
            "min": self.min_ns / _NS,
            "max": self.max_ns / _NS,
            "std": spread / _NS,
        }

    def _take(self, ns: int) -> None:
        if ns < self.min_ns or not self.count:
            self.min_ns = ns
        if ns > self.max_ns or not self.count:
            self.max_ns = ns
        self.count += 1
        self._kept += 1
        self._sum_ns += ns
        self._kept_ns += ns
        self._squares_ns += ns * ns


def _checked_name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f'time_block({name!r}) needs a name: @perf.time_block("forward")')
    return name


def _nanoseconds(seconds: float) -> int:
    # Exact for what was made by dividing, up to 50 days.
    return round(seconds * _NS) if math.isfinite(seconds) else 0


class TimedBlock:
    """One timed stretch of code; made by `PerformanceLogger.time_block`."""

    __slots__ = ("_level", "_name", "_owner", "_started")

    def __init__(self, owner: PerformanceLogger, name: str, level: int) -> None:
        self._owner = owner
        self._name = name
        self._level = level
        self._started = 0

    def __enter__(self) -> TimedBlock:
        self._started = time.perf_counter_ns()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        duration = time.perf_counter_ns() - self._started
        self._owner.record(self._name, duration)
        logger = self._owner.logger
        if logger.isEnabledFor(self._level):
            logger.log(
                self._level,
                "%s completed in %.4fs",
                self._name,
                duration / _NS,
                extra={"timer": self._name, "duration_s": duration / _NS},
                stacklevel=2,
            )

    def __call__(self, function: Function) -> Function:
        """Return `function`, each call timed by a block of its own."""
        return run_inside(lambda: TimedBlock(self._owner, self._name, self._level), function)
