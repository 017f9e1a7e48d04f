"""Statistics of a stream of numbers in constant memory."""

from __future__ import annotations

import math
from collections.abc import Iterable


class RunningStats:
    """Count, mean, extremes and spread of numbers that are added one by one.

    `std` is the sample standard deviation (n - 1 in the denominator), 0.0 for one number. Source:
    B. P. Welford, "Note on a method for calculating corrected sums of squares and products",
    Technometrics 4 (1962). Not thread-safe.
    """

    __slots__ = ("_mean", "_squares", "count", "max", "min")

    def __init__(self, values: Iterable[float] = ()) -> None:
        self.count = 0
        self.min = math.inf
        self.max = -math.inf
        self._mean = 0.0
        self._squares = 0.0
        for value in values:
            self.add(value)

    def add(self, value: float) -> None:
        """Take one finite number in."""
        self.count += 1
        delta = value - self._mean
        self._mean += delta / self.count
        self._squares += delta * (value - self._mean)
        if value < self.min:
            self.min = value
        if value > self.max:
            self.max = value

    def summary(self) -> dict[str, float]:
        """Return `count`, `mean`, `min`, `max` and `std`; an empty dict before the first number."""
        if not self.count:
            return {}
        spread = math.sqrt(self._squares / (self.count - 1)) if self.count > 1 else 0.0
        return {
            "count": self.count,
            "mean": min(max(self._mean, self.min), self.max),  # rounding may leave the range
            "min": self.min,
            "max": self.max,
            "std": spread,
        }
