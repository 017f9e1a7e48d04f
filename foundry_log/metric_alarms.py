"""Alarms of metrics: NaN, infinity, and a loss or a gradient norm that leaps up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

WINDOW = 128
"""The latest usual values that a new one is compared with."""
LEAST = 32
"""Values before anything is judged."""
EVERY = 128
"""Steps that are taken into the windows at once."""
STAYS = 64
"""Spikes in a row that make a level the usual one."""
MAX_NAMES = 256
"""Names that are watched for spikes."""
MAX_NOT_FINITE = 10_000
"""Names that are known not to be finite: more than the parameters of a model, whose norms all are
NaN once its loss is."""
MAX_VALUES = 65_536
"""Values that wait at most, of steps with many metrics."""
LEAST_SPREAD = 0.01
"""Of the median: values that hardly differ are not told apart by their rounding."""
_TO_SIGMA = 0.6745
_MEAN_TO_MEDIAN = 0.8453  # of absolute deviations, for normal values: 0.6745 x 1.2533

_Kind = Literal["nan", "infinity", "spike"]


@dataclass(frozen=True)
class Alarm:
    """What is to be said of a metric: that something is wrong with it, or that this is over."""

    metric: str
    value: float
    kind: _Kind
    z_score: float | None = None
    """Of a spike: robust deviations above the median."""
    median: float | None = None
    since_step: Any = None
    """Step at which what is over now had begun."""
    steps: int | None = None
    """How many values it was true of, once it is over; None while it is on."""

    @property
    def is_over(self) -> bool:
        """Whether it ends here."""
        return self.steps is not None


class MetricAlarms:
    """Looks at the metrics of each step; says what begins and what is over, and nothing between.

    NaN and infinities are looked for in every metric, spikes in those named `grad_norm` or with
    `loss` at the end. A value is a spike if it is above all of the latest 128 usual values of its
    metric, or some more (they are taken in 128 steps at a time), and its robust z-score,
    0.6745 (x - median) / MAD, is above `spike_z`. Source: B. Iglewicz, D. C. Hoaglin, "How to
    Detect and Handle Outliers", ASQC Quality Press (1993). Where all values are above 0, x is their
    logarithm, since gradient norms scatter by factors. MAD is the median of the absolute deviations
    from the median; where that is 0 their mean stands in for it, and it counts as 1 % of the median
    (of logarithms: as 0.01) at least: at a `spike_z` of 8 nothing that is less than 12 % above the
    median is a spike. Where all values are 0 nothing is.

    Values of a spike do not become usual while it lasts; 64 in a row do, and end it. Nothing is
    judged before 32 values. Memory is bounded: 256 names are watched for spikes, later ones are
    not; 10,000 are known not to be finite, of which the longest known go first.

    Nothing here waits, raises or takes a lock, so threads and signal handlers may come at any time;
    what they see of each other's values may be a step old.

    Args:
        spike_z: above 0; None for no spikes.
    """

    def __init__(self, spike_z: float | None) -> None:
        self._spike_z = spike_z
        self._watches: dict[str, _Watch] = {}
        self._not_finite: dict[str, _NotFinite] = {}
        self._layout: tuple[list[str], _Watches] = ([], [])  # of the latest step
        self._waiting: list[dict[str, Any]] = []  # usual steps, until they are taken in at once
        self._take_in_at = LEAST

    def check(self, step: Any, metrics: dict[str, Any]) -> list[Alarm]:
        """Return what is to be said after a step.

        Args:
            step: its number.
            metrics: name to plain value. Kept for a while: do not change it afterwards.
        """
        names, watches = self._layout
        if [*metrics] != names:
            watches = self._learn(metrics)
        try:
            is_finite = isfinite(sum(metrics.values()))
        except (TypeError, OverflowError):  # text, or an integer beyond the floats
            is_finite = False
        if not is_finite or self._not_finite:
            return self._look_for_non_finite(step, metrics) + self._judge(step, metrics, watches)
        for name, watch in watches:
            if metrics[name] > watch.bar:
                return self._judge(step, metrics, watches)
        if watches:
            waiting = self._waiting
            waiting.append(metrics)
            count = len(waiting)
            if count >= self._take_in_at or count * len(metrics) > MAX_VALUES:
                self._take_in()
        return []

    def _judge(self, step: Any, metrics: dict[str, Any], watches: _Watches) -> list[Alarm]:
        self._take_in()
        found: list[Alarm] = []
        for name, watch in watches:
            found += watch.judge(step, metrics[name])
        return found

    def _take_in(self) -> None:
        steps, self._waiting = self._waiting, []
        self._take_in_at = EVERY
        for name, watch in self._watches.items() if steps else ():
            try:
                watch.take([step[name] for step in steps])
            except KeyError:
                watch.take([step[name] for step in steps if name in step])

    def _learn(self, metrics: dict[str, Any]) -> _Watches:
        watches = [(name, self._watch(name)) for name in metrics if _is_watched(name)]
        found = [(name, watch) for name, watch in watches if watch is not None]
        self._layout = ([*metrics], found)
        return found

    def _watch(self, name: str) -> _Watch | None:
        if self._spike_z is None:
            return None
        if name not in self._watches and len(self._watches) < MAX_NAMES:
            # A new dict, since another thread may be walking through the one there is.
            self._watches = {**self._watches, name: _Watch(name, self._spike_z)}
        return self._watches.get(name)

    def _look_for_non_finite(self, step: Any, metrics: dict[str, Any]) -> list[Alarm]:
        known, found = self._not_finite, []
        for name, value in metrics.items():
            if type(value) is float and not isfinite(value):
                begun = _NotFinite(step, "nan" if value != value else "infinity")
                state = known.setdefault(name, begun)  # atomic: one thread is told
                if state is begun:
                    found.append(Alarm(name, value, begun.kind))
                state.steps += 1
            elif name in known and type(value) in (float, int):
                over = known.pop(name, None)
                if over is not None:
                    since, steps = over.since_step, over.steps
                    found.append(Alarm(name, value, over.kind, since_step=since, steps=steps))
        if len(known) > MAX_NOT_FINITE:
            for name in list(known)[:-MAX_NOT_FINITE]:
                known.pop(name, None)
        return found


def _is_watched(name: str) -> bool:
    return name == "grad_norm" or name.endswith("loss")


@dataclass
class _NotFinite:
    since_step: Any
    kind: _Kind
    steps: int = 0


@dataclass
class _Spike:
    since_step: Any
    limit: float
    values: list[float]


class _Watch:
    """The usual values of one metric, and the spike that it is in."""

    __slots__ = ("_spike", "_spike_z", "_values", "bar", "name")

    def __init__(self, name: str, spike_z: float) -> None:
        self.name = name
        self.bar = math.inf
        """No value up to this is news. Median and MAD are asked only for one that is above."""
        self._spike_z = spike_z
        self._values: list[float] = []
        self._spike: _Spike | None = None

    def take(self, values: list[float]) -> None:
        """Take usual values in."""
        if not values:
            return
        self._values = [*self._values, *values][-WINDOW:]
        if len(self._values) >= LEAST:
            self._lift_bar(max(self._values))

    def _lift_bar(self, bar: float) -> None:
        self.bar = bar
        if self._spike is not None:  # one has begun meanwhile, and must not be passed over
            self.bar = -math.inf

    def judge(self, step: Any, value: Any) -> list[Alarm]:
        """Take a value of any kind in and return what is to be said of it."""
        number, spike = _finite(value), self._spike
        if number is None:
            return []
        if spike is not None:
            return self._go_on(spike, number)
        if number <= self.bar:
            self.take([number])
            return []
        usual = _Usual(self._values)
        limit = usual.value_at(self._spike_z)
        if number <= limit:
            self.take([number])
            self._lift_bar(limit)
            return []
        self._spike = _Spike(step, max(limit, self.bar), [number])
        self.bar = -math.inf  # the next value is news, whatever it is
        return [Alarm(self.name, number, "spike", usual.z_score(number), usual.median)]

    def _go_on(self, spike: _Spike, number: float) -> list[Alarm]:
        if number > spike.limit:
            spike.values.append(number)
            if len(spike.values) < STAYS:
                return []
        if self._spike is not spike:  # another thread has said it
            return []
        self._spike = None
        has_stayed = number > spike.limit
        # In one assignment: whoever comes in between is never without usual values.
        self._values = spike.values[-STAYS:] if has_stayed else [*self._values, number][-WINDOW:]
        self._lift_bar(max(self._values))
        steps = len(spike.values)
        return [Alarm(self.name, number, "spike", since_step=spike.since_step, steps=steps)]


_Watches = list[tuple[str, _Watch]]


def _finite(value: Any) -> float | None:
    """Return a number as a float; None for all else, NaN, infinities and truth values too."""
    try:
        number = float(value) if type(value) in (float, int) else math.nan
    except OverflowError:  # an integer beyond the floats
        return None
    return number if isfinite(number) else None


class _Usual:
    """Median and spread of values, and how far from them others are."""

    def __init__(self, values: list[float]) -> None:
        ordered = sorted(values)
        self.median = _middle(ordered)
        self._is_log = ordered[0] > 0
        if self._is_log:
            ordered = list(map(math.log, ordered))
        self._middle = middle = _middle(ordered)
        # Down to the median and up again: two runs, which are sorted in no time.
        deviations = sorted([abs(value - middle) for value in ordered])
        spread = _middle(deviations) or _MEAN_TO_MEDIAN * sum(deviations) / len(deviations)
        self._spread = max(spread, LEAST_SPREAD * (1 if self._is_log else abs(middle)))

    def z_score(self, value: float) -> float:
        """Return the robust z-score of a value above the median."""
        place = math.log(value) if self._is_log else value
        return _TO_SIGMA * (place - self._middle) / self._spread

    def value_at(self, z_score: float) -> float:
        """Return the value that has that score; infinity where there is none."""
        if not self._spread:
            return math.inf
        place = self._middle + z_score * self._spread / _TO_SIGMA
        try:
            return math.exp(place) if self._is_log else place
        except OverflowError:
            return math.inf


def _middle(ordered: list[float]) -> float:
    """Return what `statistics.median` does, of sorted values."""
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
