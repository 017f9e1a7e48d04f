"""Statistics of every metric of a run, kept up to date for next to nothing on a step."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from foundry_log.files.locks import thread_lock
from foundry_log.running_stats import RunningStats

MAX_STEPS = 512
"""Steps that wait at most until they are taken into the statistics."""
MAX_VALUES = 65_536
"""Values that wait at most, of steps with many metrics, up to those of one step."""

_Entry = dict[str, Any]


class MetricStatistics:
    """Count, mean, extremes and spread of each metric of any number of steps.

    In memory is a `RunningStats` for each name, and the latest steps: `add` only notes a step, and
    every 512 are taken in at once. Safe from several threads, signal handlers and after a fork;
    nobody waits for anybody.
    """

    def __init__(self) -> None:
        # The first item is the statistics by name, those behind it are the metrics of a step each:
        # one slice assignment, which nothing can interrupt, takes steps into the statistics.
        self._entries: list[_Entry] = [{}]
        self._lock = thread_lock()  # held by the one who takes in; all others go on
        self._taking_in = _TakingIn()

    def add(self, metrics: dict[str, Any]) -> None:
        """Take in the metrics of one step.

        Finite numbers count. Booleans, other types, NaN, infinities and integers beyond the floats
        do not.

        Args:
            metrics: name to value. Kept until it is taken in: do not change it afterwards.
        """
        entries = self._entries
        entries.append(metrics)
        waiting = len(entries)
        if waiting > MAX_STEPS or waiting * len(metrics) > MAX_VALUES:
            self._take_in()

    def summary(self, name: str) -> dict[str, float]:
        """Return `count`, `mean`, `min`, `max` and `std` of a metric, of all steps so far.

        See `RunningStats`. Empty for a metric without finite numbers.
        """
        past, *steps = self._entries[:]
        return _updated(past.get(name), [step.get(name) for step in steps]).summary()

    def _take_in(self) -> None:
        # A signal handler may come here while its thread is here.
        if self._taking_in.now or not self._lock.acquire(blocking=False):
            return
        try:
            self._taking_in.now = True
            past, *steps = self._entries[:]
            present = dict(past)
            for name, values in _columns(steps).items():
                present[name] = _updated(present.get(name), values)
            self._entries[: 1 + len(steps)] = [present]
        finally:
            self._taking_in.now = False
            self._lock.release()


class _TakingIn(threading.local):
    """Of each thread, since the child of a fork has only the one that forked."""

    now = False


def _columns(steps: list[_Entry]) -> dict[str, list[Any]]:
    """Return all values of each name; steps with the same names are transposed at once."""
    alike: dict[tuple[str, ...], list[_Entry]] = defaultdict(list)
    for step in steps:
        alike[tuple(step)].append(step)
    columns: dict[str, list[Any]] = defaultdict(list)
    for names, group in alike.items():
        transposed = zip(*map(dict.values, group), strict=True)
        for name, values in zip(names, transposed, strict=True):
            columns[name].extend(values)
    return columns


def _updated(past: RunningStats | None, values: Iterable[Any]) -> RunningStats:
    """Return statistics with the values that count taken in; the past ones are left as they are."""
    present = RunningStats(_numbers(values))
    if past is not None:
        present.merge(past)
    return present


def _numbers(values: Iterable[Any]) -> Iterable[float]:
    values = tuple(values)
    if list(map(type, values)).count(float) == len(values) and math.isfinite(sum(values)):
        return values  # a sum that is finite has no NaN or infinity in it
    return [value for value in values if type(value) in (int, float) and _is_finite(value)]


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the floats
        return False
