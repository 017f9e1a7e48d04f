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


@given(st.lists(NUMBERS, max_size=5))
def test_many_at_once_are_those_one_by_one(groups: list[list[float]]) -> None:
    """However they are grouped, and whichever was merged into which."""
    at_once, merged, single = RunningStats(), RunningStats(), RunningStats()
    for group in groups:
        at_once.merge(RunningStats(group))
        other = RunningStats(group)
        other.merge(merged)
        merged = other
        for value in group:
            single.add(value)

    expected = pytest.approx(single.summary(), rel=1e-6, abs=1e-5)
    assert at_once.summary() == expected
    assert merged.summary() == expected


def test_groups_far_from_zero_cost_no_precision() -> None:
    """Each group's mean and squares are exact, so merging them has nothing to cancel."""
    values = [1e9 + number % 7 / 10 for number in range(7000)]
    stats = RunningStats()
    for start in range(0, 7000, 70):
        stats.merge(RunningStats(values[start : start + 70]))

    assert stats.summary()["std"] == pytest.approx(statistics.stdev(values), rel=1e-9)


@pytest.mark.parametrize(
    "values",
    [
        [1.7e308, 1.7e308, -1.7e308],
        [1e200, -1e200],
        [math.inf, -math.inf],
        [math.nan, 1.0],
        [10**300, 10**300, 1],
    ],
)
def test_numbers_beyond_sums_raise_nothing(values: list[float]) -> None:
    """A sum or a square that no float holds."""
    stats = RunningStats([1.0])
    stats.merge(RunningStats(values))
    stats.merge(RunningStats(values))

    assert stats.summary()["count"] == 1 + 2 * len(values)


def test_merged_into_nothing_numbers_are_what_they_were() -> None:
    """Also those whose square no float holds."""
    nothing = RunningStats()
    nothing.merge(RunningStats([1e200, 1e200]))
    nothing.merge(RunningStats([]))

    assert nothing.summary() == RunningStats([1e200, 1e200]).summary()
    assert nothing.summary()["std"] == 0.0


def test_another_unit_divides_all_but_the_count() -> None:
    """Milliseconds become seconds."""
    assert RunningStats([1000, 3000]).divided(1000).summary() == {
        "count": 2,
        "mean": 2.0,
        "min": 1.0,
        "max": 3.0,
        "std": pytest.approx(math.sqrt(2)),
    }
