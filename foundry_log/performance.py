"""PerformanceLogger: where the time goes, and how much memory is used."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType
from typing import Any

from foundry_log import device_timing
from foundry_log.decorating import Function, run_inside
from foundry_log.device_timing import DeviceQueue, Mark, Outstanding, Stretch, queue_of
from foundry_log.encoding import encode_document
from foundry_log.files.documents import PERMISSIONS, write_document
from foundry_log.files.locks import thread_lock
from foundry_log.process import memory_usage
from foundry_log.records import checked_logger
from foundry_log.running_stats import RunningStats

MAX_SAMPLES = 10_000
"""Durations that are kept of each timer, the latest."""
MAX_WAITING = 2 * MAX_SAMPLES
"""Durations that wait at most to be taken in; the more at once, the less each costs."""

_NS = 1_000_000_000
_OWN_FILES = (__file__, device_timing.__file__)


class PerformanceLogger:
    """Times blocks of code and keeps their statistics in bounded memory.

    Thread-safe; a signal handler may time and ask too. The end of a block only notes its duration:
    whoever asks takes into the timers what was noted. Costs are in the README.

    Args:
        logger: a logger or a StructuredLogger, which gets one record a block.

    Raises:
        TypeError: `logger` is none.
    """

    def __init__(self, logger: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        checked_logger(logger)
        self.logger = logger
        # Each list begins with the durations that were taken in, None at first; behind them are the
        # nanoseconds that were measured since. One slice assignment, which nothing can interrupt,
        # takes them in. They stay the same lists, since blocks hold them.
        self._measured: dict[str, list[Any]] = {}
        self._timers: dict[str, list[float]] = {}
        self._lock = thread_lock()  # held by the one who takes in or resets
        self._taking_in = _TakingIn()
        self._queues: dict[object, DeviceQueue | None] = {}
        self._outstanding = Outstanding(self._note, self._say_what_fails)

    @property
    def losses(self) -> Mapping[str, int]:
        """Blocks that their device could not time, by cause; each is reported once."""
        return self._outstanding.losses

    @property
    def timers(self) -> dict[str, list[float]]:
        """Name to durations in seconds, oldest first, at most the latest 10,000 of each.

        Yours to read and to assign: a list that you assign or change is what the statistics are
        made of from then on. The lists are brought up to date whenever anything is asked of this
        object: blocks that end later are not in them yet, and come behind what you put there.
        """
        self._outstanding.settle()
        for name in list(self._measured):
            self._taken_in(name)
        return self._timers

    def time_block(
        self, name: str, log_level: int = logging.DEBUG, device: object = None
    ) -> TimedBlock:
        """Return a context manager that times the enclosed code; also a decorator of any function.

            with perf.time_block("forward"): ...

            @perf.time_block("load")
            async def load(): ...

        Each block logs `{name} completed in {seconds:.4f}s` with `timer` and `duration_s` as
        context, also when it raises. Blocks nest; the outer one's time includes the inner one's.

        On a GPU it is the device's time that counts: from when it has come to what the block gives
        it until it is done with that. The block does not wait for it. The duration is known, and
        logged in the context of the block with `device` beside it, at the end of a later block or
        when somebody asks this object; who asks waits for the device. What it fails to measure is
        counted in `losses`.

        Args:
            name: of the timer.
            log_level: of the record.
            device: what computes: `cuda`, `cuda:1`, a `torch.device`, or a `DeviceQueue`. None and
                devices other than a GPU are measured by the clock of the host.

        Raises:
            ImportError: `device` is a GPU, and torch is missing.
            TypeError: `name` is no text, as when the parentheses of a decorator are left out.
            ValueError: there is no such device.
        """
        if device is not None and (queue := self._queue_of(device)) is not None:
            return DeviceBlock.of(self, name, log_level, queue)
        block = TimedBlock()  # an __init__ would be a fifth of what a block costs
        try:
            block._measured = self._measured[name]
        except (KeyError, TypeError):  # the latter: no name at all
            block._measured = self._measured_of(name)
        block._owner = self
        block._name = name
        block._level = log_level
        return block

    def get_timing_statistics(self, name: str) -> dict[str, float]:
        """Return `count`, `mean`, `min`, `max` and `std` of a timer, times in seconds.

        Exact over all blocks of the run, also beyond the durations that are kept. `std` is the
        sample standard deviation, 0.0 for one block. Empty for an unknown name.
        """
        self._outstanding.settle()
        return self._taken_in(name).stats.summary()

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
        self._outstanding.settle()
        ordered = sorted(self._taken_in(name).kept[-MAX_SAMPLES:])
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
        """Forget all timers; blocks that have begun count when they end."""
        self._outstanding.settle()
        with self._lock:
            for name, measured in list(self._measured.items()):
                if measured == [None]:  # a name that is not used any more
                    del self._measured[name]
                    measured[:1] = []  # a block that has it may have ended this moment
                    self._settle(name, measured)
                else:
                    measured[:] = [None]
            self._timers.clear()

    def timing_report(self) -> dict[str, dict[str, float]]:
        """Return each timer's statistics, percentiles and `total` in seconds, largest first."""
        report = {}
        for name in list(self.timers):
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
        """Add a duration that was measured elsewhere, in nanoseconds.

        Raises:
            OverflowError: it is beyond the floats.
        """
        float(duration_ns)
        measured = self._measured_of(name)
        measured.append(int(duration_ns))
        if not 1 < len(measured) <= MAX_WAITING:
            self._settle(name, measured)

    def _queue_of(self, device: object) -> DeviceQueue | None:
        try:
            return self._queues[device]
        except KeyError:
            queue = self._queues[device] = queue_of(device)
            return queue

    def _note(self, stretch: Stretch, seconds: float) -> None:
        """Take in and log what a device has measured."""
        self.record(stretch.name, round(seconds * _NS))
        if self.logger.isEnabledFor(stretch.level):
            stretch.context.run(self._log_stretch, stretch, seconds)

    def _log_stretch(self, stretch: Stretch, seconds: float) -> None:
        self.logger.log(
            stretch.level,
            "%s completed in %.4fs",
            stretch.name,
            seconds,
            extra={"timer": stretch.name, "duration_s": seconds, "device": stretch.device},
            stacklevel=_depth(),
        )

    def _say_what_fails(self, error: Exception) -> None:
        self.logger.warning("A device cannot time blocks: %s", error, stacklevel=_depth())

    def _settle(self, name: str, measured: list[Any]) -> None:
        """Take in what waits in a timer's list; of one that a reset has forgotten, note it anew."""
        if self._measured.get(name) is measured:
            self._taken_in(name)
        else:
            while measured:
                self._measured_of(name).append(measured.pop())

    def _measured_of(self, name: Any) -> list[Any]:
        if not isinstance(name, str):
            raise TypeError(f'time_block({name!r}) needs a name: @perf.time_block("forward")')
        return self._measured.setdefault(name, [None])

    def _taken_in(self, name: str) -> _Durations:
        """Return all durations of a timer, after bringing its list up to date."""
        with self._lock:
            # A signal handler may come here while its thread is here; then it only looks.
            may_change = not self._taking_in.now
            try:
                self._taking_in.now = True
                measured = self._measured.get(name, [None])
                past, new = measured[0], measured[1:]
                listed = self._timers.get(name)
                if past is None or not past.describes(listed):
                    past = _Durations.of(listed)
                present: _Durations = past.followed_by(new) if new else past
                if may_change and new:
                    measured[: 1 + len(new)] = [present]
                    self._timers[name] = present.listed
                if may_change:
                    present.show()
                return present
            finally:
                self._taking_in.now = not may_change


class _TakingIn(threading.local):
    """Of each thread, since the child of a fork has only the one that forked."""

    now = False


class _Durations:
    """The durations of one timer in seconds: statistics of all, and the latest."""

    __slots__ = ("_shown", "kept", "listed", "stats")

    def __init__(self, listed: list[float], kept: list[float], stats: RunningStats) -> None:
        self.listed = listed  # the one in `timers`, whose owner may change it
        self.kept = self._shown = kept
        self.stats = stats

    @classmethod
    def of(cls, listed: Any) -> _Durations:
        """Return those that somebody has listed; none where that is no list of numbers."""
        try:
            if type(listed) is not list:
                listed = list(listed)
            return cls(listed, listed[:], RunningStats(listed))
        except (TypeError, ValueError, OverflowError):
            return cls([], [], RunningStats())

    def describes(self, listed: list[float] | None) -> bool:
        """Return whether the list is as it was last shown, or as it is to be shown."""
        return listed is self.listed and (listed == self.kept or listed == self._shown)

    def followed_by(self, nanoseconds: list[int]) -> _Durations:
        """Return these durations with later ones behind them, which are not shown yet."""
        stats = RunningStats(nanoseconds).divided(_NS)  # of integers they are made faster
        stats.merge(self.stats)
        latest = [duration / _NS for duration in nanoseconds[-MAX_SAMPLES:]]
        longer = _Durations(self.listed, (self.kept + latest)[-MAX_SAMPLES:], stats)
        longer._shown = self._shown
        return longer

    def show(self) -> None:
        """Make the list that of the latest durations."""
        if self._shown is not self.kept:
            self.listed[:] = self.kept
            self._shown = self.kept


class TimedBlock:
    """One timed stretch of code; made by `PerformanceLogger.time_block`."""

    __slots__ = ("_level", "_measured", "_name", "_owner", "_started")

    _level: int
    _measured: list[Any]
    _name: str
    _owner: PerformanceLogger
    _started: int

    def __enter__(self) -> TimedBlock:
        self._started = perf_counter_ns()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        duration = perf_counter_ns() - self._started
        owner, measured = self._owner, self._measured
        measured.append(duration)  # atomic, so it takes no lock
        if not 1 < len(measured) <= MAX_WAITING:
            owner._settle(self._name, measured)
        if owner.logger.isEnabledFor(self._level):
            owner.logger.log(
                self._level,
                "%s completed in %.4fs",
                self._name,
                duration / _NS,
                extra={"timer": self._name, "duration_s": duration / _NS},
                stacklevel=2,
            )

    def __call__(self, function: Function) -> Function:
        """Return `function`, each call timed by a block of its own."""
        return run_inside(lambda: self._owner.time_block(self._name, self._level), function)


class DeviceBlock(TimedBlock):
    """A stretch of code whose work is done by a device, later."""

    __slots__ = ("_began", "_queue")

    _began: Mark | None
    _queue: DeviceQueue

    @classmethod
    def of(cls, owner: PerformanceLogger, name: str, level: int, queue: DeviceQueue) -> DeviceBlock:
        """Return a block that has not begun."""
        block = cls()
        block._measured = owner._measured_of(name)
        block._owner = owner
        block._name = name
        block._level = level
        block._queue = queue
        return block

    def __enter__(self) -> DeviceBlock:
        self._began = self._mark()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        ended = self._mark() if self._began is not None else None
        if self._began is None or ended is None:
            return
        self._owner._outstanding.add(
            Stretch(self._name, self._level, str(self._queue), self._began, ended, copy_context())
        )

    def __call__(self, function: Function) -> Function:
        """Return `function`, each call timed by a block of its own."""
        owner, queue = self._owner, self._queue
        return run_inside(lambda: DeviceBlock.of(owner, self._name, self._level, queue), function)

    def _mark(self) -> Mark | None:
        """Return a mark; None where the device fails, which the work itself will have to say."""
        try:
            return self._queue.mark()
        except Exception as error:
            self._owner._outstanding.lose(error)
            return None


def _depth() -> int:
    """Return the `stacklevel` of whoever calls in from other files than those of timing."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename in _OWN_FILES:
        frame, level = frame.f_back, level + 1
    return level
