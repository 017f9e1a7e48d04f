"""Statistics of a stream of numbers in constant memory."""

from __future__ import annotations

import math
from collections.abc import Iterable


class RunningStats:
    """Count, mean, extremes and spread of numbers that are added one by one or many at once.

    `std` is the sample standard deviation (n - 1 in the denominator), 0.0 for one number. Sources:
    B. P. Welford, "Note on a method for calculating corrected sums of squares and products",
    Technometrics 4 (1962); T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a
    pairwise algorithm for computing sample variances", Stanford STAN-CS-79-773 (1979).
    Not thread-safe.
    """

    __slots__ = ("_mean", "_squares", "count", "max", "min")

    def __init__(self, values: Iterable[float] = ()) -> None:
        numbers = tuple(values)
        self.count = 0
        self.min = math.inf
        self.max = -math.inf
        self._mean = 0.0
        self._squares = 0.0
        if numbers:
            self._begin(numbers)

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

    def merge(self, other: RunningStats) -> None:
        """Take in what another one has taken in."""
        if not other.count:
            return
        count = self.count + other.count
        delta = other._mean - self._mean
        self._mean += delta * (other.count / count)
        self._squares += other._squares + delta * (self.count * (other.count / count)) * delta
        self.count = count
        self.min = min(self.min, other.min)
        self.max = max(self.max, other.max)

    def divided(self, divisor: float) -> RunningStats:
        """Return the statistics of the same numbers in another unit, `divisor` times as large."""
        other = RunningStats()
        other.count = self.count
        other.min = self.min / divisor
        other.max = self.max / divisor
        other._mean = self._mean / divisor
        other._squares = self._squares / divisor / divisor
        return other

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

    def _begin(self, numbers: tuple[float, ...]) -> None:
        """Take in the first numbers, one by one where their sum is beyond the floats."""
        count = len(numbers)
        try:
            total = sum(numbers)
            if not math.isfinite(total):
                raise ValueError
            mean = (total if isinstance(total, int) else math.fsum(numbers)) / count
            spread = math.dist(numbers, (mean,) * count)
        except (OverflowError, ValueError):  # the latter: NaN and infinities
            for number in numbers:
                self.add(number)
            return
        self.count = count
        self.min = min(numbers)
        self.max = max(numbers)
        self._mean = mean
        self._squares = spread * spread
