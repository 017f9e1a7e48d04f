"""Attempts of a run: which entries of a history still count once the run was resumed.

A run that is resumed behind step 500 writes a marker, `{"attempt": 2, "resumed_from_step": 500}`,
and logs step 501 again. What earlier attempts have logged beyond step 500 is *superseded* then,
wherever it stands in the files: a process of an earlier attempt may go on writing behind the
marker. An attempt that begins from scratch, behind step 0, supersedes all that were before it.

Plain functions of entries. Not thread-safe.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

MARKER = "resumed_from_step"
FIRST_ATTEMPT = 1
"""That of entries which name none."""

Entry = dict[str, Any]


class Place(NamedTuple):
    """Where an entry belongs."""

    attempt: int
    step: float
    """Its own, else the latest one before it of its attempt, else where that began."""


class Attempts:
    """The attempts that a history shows; given its entries in their order.

    Args:
        markers: attempt to the step behind which it begins, as far as they are known before.
    """

    def __init__(self, markers: Mapping[int, int] | None = None) -> None:
        self.markers: dict[int, int] = dict(markers or {})
        self.highest = 0
        """The highest attempt among the entries so far; 0 before the first one."""
        self._latest: dict[int, float] = {}
        self._limits: dict[int, float] = {}

    def take(self, entry: Entry) -> Place | None:
        """Take note of the next entry and return its place; None for a marker."""
        attempt = attempt_of(entry)
        self.highest = max(self.highest, attempt)
        if is_marker(entry):
            step = entry[MARKER]
            self.markers[attempt] = min(step, self.markers.get(attempt, step))
            self._limits.clear()
            return None
        step = _step_of(entry)
        if step is None:
            return Place(attempt, self._latest.get(attempt, self.markers.get(attempt, 0)))
        if "metrics" in entry:
            self._latest[attempt] = step
        return Place(attempt, step)

    def supersede(self, place: Place) -> bool:
        """Return whether a later attempt began before that place, by the markers so far."""
        limit = self._limits.get(place.attempt)
        if limit is None:
            later = [step for attempt, step in self.markers.items() if attempt > place.attempt]
            lowest = min(later, default=math.inf)
            limit = self._limits[place.attempt] = lowest or -math.inf
        return place.step > limit


def attempt_of(entry: Entry) -> int:
    """Return the attempt that an entry belongs to."""
    attempt = entry.get("attempt")
    return attempt if type(attempt) is int and attempt > 0 else FIRST_ATTEMPT


def _step_of(entry: Entry) -> float | None:
    step: Any = entry.get("step")
    return step if type(step) is int or (type(step) is float and math.isfinite(step)) else None


def is_marker(entry: Entry) -> bool:
    """Return whether an entry says that an attempt begins."""
    return type(entry.get(MARKER)) is int and "metrics" not in entry and "summary" not in entry


def current(
    entries: Iterable[Entry], first: float = -math.inf, last: float = math.inf
) -> list[Entry]:
    """Return the entries that still count, in their order; markers are left out.

    In memory are those from the step `first` to the step `last`, superseded ones too.
    """
    attempts = Attempts()
    places = ((entry, attempts.take(entry)) for entry in entries)
    found = [(entry, place) for entry, place in places if place and first <= place.step <= last]
    return [entry for entry, place in found if not attempts.supersede(place)]


def marked(entries: Iterable[Entry]) -> list[Entry]:
    """Return all entries, the superseded ones with `"superseded": True` in them."""
    attempts = Attempts()
    found = [(entry, attempts.take(entry)) for entry in entries]
    for entry, place in found:
        if place is not None and attempts.supersede(place):
            entry["superseded"] = True
    return [entry for entry, _ in found]


class LatestStep:
    """The latest step that a logger has logged, and whether what follows comes late.

    Safe from several threads, which may be told twice of the same.
    """

    __slots__ = ("_said_at", "metrics", "number")

    def __init__(self) -> None:
        self.number = -math.inf
        self.metrics: Any = {}
        self._said_at: float | None = None

    def is_late(self, step: int, metrics: Any) -> bool:
        """Return whether a step that does not rise is to be spoken of: once until steps rise again.

        The metrics of one step may come in parts: its number again is late with a name again.
        """
        before = self.metrics
        is_part = step == self.number and type(metrics) is dict and type(before) is dict
        if is_part and before.keys().isdisjoint(metrics):
            self.metrics = {**before, **metrics}
            return False
        if self._said_at == self.number:
            return False
        self._said_at = self.number
        return True
