"""Statistics in constant memory agree with those over the whole list."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundry_log.running_stats import RunningStats

pytestmark = pytest.mark.unit

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50)


@given(NUMBERS)
def test_they_are_those_of_the_list(values: list[float]) -> None:
    """Count and extremes exactly, mean and sample deviation up to rounding."""
    summary = RunningStats(values).summary()

    assert summary["count"] == len(values)
    assert (summary["min"], summary["max"]) == (min(values), max(values))
    assert summary["mean"] == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert summary["std"] == pytest.approx(statistics.stdev(values), rel=1e-6, abs=1e-5)


def test_a_large_offset_costs_no_precision() -> None:
    """The textbook formula of squares would give 0 or the root of a negative number here."""
    values = [1e9 + 4, 1e9 + 7, 1e9 + 13, 1e9 + 16]

    assert RunningStats(values).summary()["std"] == pytest.approx(math.sqrt(30))


def test_one_value_has_no_spread() -> None:
    """The sample deviation of one value is 0.0 by decision."""
    assert RunningStats([2.5]).summary() == {
        "count": 1,
        "mean": 2.5,
        "min": 2.5,
        "max": 2.5,
        "std": 0.0,
    }


def test_nothing_has_no_statistics() -> None:
    """Before the first number there is nothing to say."""
    assert RunningStats().summary() == {}
