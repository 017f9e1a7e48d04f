"""Attempts: what still counts of a history once its run was resumed."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundry_log.metric_history import Attempts, LatestStep, Place, current, marked

pytestmark = pytest.mark.unit

Entry = dict[str, Any]


def step(number: Any, attempt: int | None = 1) -> Entry:
    entry: Entry = {"step": number, "epoch": 0, "metrics": {"loss": 1.0}}
    return entry if attempt is None else {**entry, "attempt": attempt}


def marker(attempt: int, behind: int) -> Entry:
    return {"attempt": attempt, "resumed_from_step": behind}


def places(entries: list[Entry]) -> list[tuple[int, Any]]:
    return [(entry.get("attempt", 1), entry.get("step")) for entry in entries]


def test_a_resumed_run_has_neither_holes_nor_doubles() -> None:
    """GIVEN steps 1 to 5, and 4 to 6 again behind a marker THEN each step stands once."""
    entries = [*map(step, range(1, 6)), marker(2, 3), *(step(n, 2) for n in range(4, 7))]
    assert places(current(entries)) == [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (2, 6)]


def test_all_attempts_stay_readable() -> None:
    """Superseded entries are marked, markers are there, nothing else is changed."""
    entries = [step(1), step(2), marker(2, 1), step(2, 2)]
    assert marked(copy.deepcopy(entries)) == [
        entries[0],
        {**entries[1], "superseded": True},
        *entries[2:],
    ]


def test_a_process_of_an_earlier_attempt_may_go_on_behind_the_marker() -> None:
    """What a zombie writes beyond the marker's step does not count, wherever it stands."""
    entries = [step(1), marker(2, 1), step(2, 2), step(2), step(3), step(3, 2)]
    assert places(current(entries)) == [(1, 1), (2, 2), (2, 3)]


def test_a_later_attempt_may_go_further_back() -> None:
    """The lowest of all later markers counts, whatever was resumed in between."""
    entries = [step(1), step(2), marker(2, 2), step(3, 2), marker(3, 1), step(2, 3)]
    assert places(current(entries)) == [(1, 1), (3, 2)]


def test_from_scratch_supersedes_everything() -> None:
    """Also a step 0, which is logged again, and what has no step."""
    entries = [step(0), {"epoch": 0, "summary": {}, "attempt": 1}, marker(2, 0), step(0, 2)]
    assert places(current(entries)) == [(2, 0)]


def test_entries_without_an_attempt_are_of_the_first() -> None:
    """Files of older versions."""
    entries = [step(1, None), step(2, None), marker(2, 1), step(2, 2)]
    assert places(current(entries)) == [(1, 1), (2, 2)]


@pytest.mark.parametrize("number", [None, "odd", math.nan, True])
def test_an_entry_without_a_step_belongs_to_the_one_before_it(number: Any) -> None:
    """Of its attempt: a summary of an older version follows its epoch's last step."""
    summary = {"epoch": 1, "summary": {"loss": 1.0}, "step": number}
    early = [step(1, None), summary, step(2, None)]
    late = [step(1, None), step(2, None), summary]
    behind = [marker(2, 1), step(2, 2)]
    assert summary in current([*early, *behind])
    assert summary not in current([*late, *behind])


def test_before_the_first_step_an_entry_belongs_to_where_its_attempt_began() -> None:
    """A summary right behind the marker of 500 is gone once another attempt goes back to 100."""
    attempts = Attempts()
    attempts.take(marker(2, 500))
    assert attempts.take({"epoch": 1, "summary": {}, "attempt": 2}) == Place(2, 500)
    assert attempts.take({"epoch": 1, "summary": {}}) == Place(1, 0)


@pytest.mark.parametrize("behind", [(1, 2), (2, 1)])
def test_several_ranks_may_mark_one_attempt(behind: tuple[int, int]) -> None:
    """The lower of their steps counts."""
    entries = [step(1), step(2), step(3), *(marker(2, number) for number in behind)]
    assert places(current(entries)) == [(1, 1)]


def test_a_range_of_steps() -> None:
    """Only what is in it, and what counts."""
    entries = [*map(step, range(9)), marker(2, 4), *(step(n, 2) for n in range(5, 9))]
    assert places(current(entries, 3, 6)) == [(1, 3), (1, 4), (2, 5), (2, 6)]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 12)), min_size=1, max_size=6))
def test_any_runs_give_one_rising_history(runs: list[tuple[int, int]]) -> None:
    """However often a run is resumed, at whatever step that was reached."""
    entries: list[Entry] = []
    reached = 0
    for attempt, (back, length) in enumerate(runs, start=1):
        behind = max(reached - back, 0)
        if entries:
            entries.append(marker(attempt, behind))
        reached = behind + length
        entries += [step(number, attempt) for number in range(behind + 1, reached + 1)]
    assert [number for _, number in places(current(entries))] == list(range(1, reached + 1))


class TestLatestStep:
    """Steps that do not rise are spoken of once."""

    def said(self, *steps: tuple[int, str]) -> list[int]:
        latest, said = LatestStep(), []
        for number, name in steps:
            if number > latest.number:
                latest.number, latest.metrics = number, {name: 1.0}
            elif latest.is_late(number, {name: 1.0}):
                said.append(number)
        return said

    def test_an_earlier_step(self) -> None:
        """Once until steps rise beyond the latest."""
        assert self.said((5, "a"), (3, "a"), (4, "a"), (6, "a"), (6, "b"), (2, "a")) == [3, 2]

    def test_the_same_step_in_parts(self) -> None:
        """Training and evaluation of one step are logged apart."""
        assert self.said((5, "a"), (5, "b"), (5, "c")) == []

    def test_the_same_step_and_name(self) -> None:
        """One of the two is wrong; also where the first one came in parts."""
        assert self.said((5, "a"), (5, "b"), (5, "a")) == [5]
