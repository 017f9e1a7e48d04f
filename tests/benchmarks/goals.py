"""What a figure is to reach, and the summary of all goals."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.table import aligned, factor, number

_UNITS_US = {"ms": 1_000.0, "% of a step of 20 ms": 200.0}
_HEADS = ("work", "contender", "µs", "× limit", "goal", "reached", "verdict", "best peer")


@dataclass(frozen=True)
class Goal:
    """The most that a contender's operation is to cost.

    Args:
        at_most: times the time of another contender in the same run, or a number of units.
        than: name of that contender; the limit without one.
        unit: `ms` or `% of a step of 20 ms`; then nothing is compared.
    """

    at_most: float
    than: str = ""
    unit: str = ""

    @property
    def unit_us(self) -> float | None:
        """Microseconds of one unit; None where the goal is a ratio."""
        return _UNITS_US[self.unit] if self.unit else None

    def __str__(self) -> str:
        return f"≤ {number(self.at_most)} {self.unit or '× ' + (self.than or 'limit')}"


@dataclass(frozen=True)
class Verdict:
    """One line of the summary; figures are None where something did not run."""

    work: str
    contender: str
    us: float | None
    to_limit: float | None
    goal: Goal
    reached: float | None
    best_peer: str
    remark: str = ""

    @property
    def text(self) -> str:
        """`met`, `missed`, or why there is no verdict."""
        if self.reached is None:
            return self.remark or "nothing to compare with"
        return "met" if self.reached <= self.goal.at_most else "MISSED"

    def data(self) -> dict[str, Any]:
        """Return all but the remark as plain data."""
        return {
            "work": self.work,
            "contender": self.contender,
            "us": self.us,
            "to_limit": self.to_limit,
            "goal": str(self.goal),
            "at_most": self.goal.at_most,
            "reached": self.reached,
            "verdict": self.text,
            "best_peer": self.best_peer,
        }

    def cells(self) -> tuple[str, ...]:
        """Return the line's columns."""
        us = "–" if self.us is None else number(self.us)
        figures = (us, factor(self.to_limit), str(self.goal), factor(self.reached))
        return (self.work, self.contender, *figures, self.text, self.best_peer)


def summary(verdicts: Iterable[Verdict]) -> str:
    """Return the table of all goals."""
    return "\n".join(
        aligned(_HEADS, [verdict.cells() for verdict in verdicts], left=(0, 1, 4, 6, 7))
    )
