"""Boundaries in time: after now, the same for everybody, through changes of the clock."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundry_log.files.schedule import Schedule

pytestmark = pytest.mark.unit

UTC = datetime.timezone.utc
UNITS = ["S", "M", "H", "D", "midnight", "W0", "W3", "W6"]

# St John's set its clock back at 00:01, São Paulo at 00:00, Havana to 00:00; Apia left a day out;
# Lord Howe moves by half an hour; Casablanca and Dublin have their standard time the other way.
ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",
    "America/Sao_Paulo",
    "America/Havana",
    "Pacific/Apia",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "Africa/Casablanca",
    "Europe/Dublin",
]

CHECK = """
import json, random, sys, time
from foundry_log.files.schedule import Schedule
dice, wrong = random.Random(7), []
start, end = 946684800, 1800000000  # 2000 to 2027
for when in ("S", "M", "H", "D", "midnight", "W0", "W3", "W6"):
    for interval in (1,) if when[0] == "W" else (1, 2, 6, 45):
        schedule = Schedule(when, interval)
        for _ in range(150):
            now = dice.uniform(start, end)
            boundary = schedule.next_boundary(now)
            if not boundary > now:
                wrong.append((when, interval, now, "not after now"))
            for later in (dice.uniform(now, boundary), boundary - 1e-3):
                if now <= later < boundary and schedule.next_boundary(later) != boundary:
                    wrong.append((when, interval, now, later, "two answers"))
            at = time.localtime(boundary)
            if when in ("D", "midnight") and interval == 1 and (at.tm_hour, at.tm_min) != (0, 0):
                before = time.localtime(boundary - 1)
                if before.tm_yday == at.tm_yday:
                    wrong.append((when, interval, now, "no midnight"))
print(json.dumps(wrong))
"""


def utc(*fields: int) -> float:
    return datetime.datetime(*fields, tzinfo=UTC).timestamp()  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("when", "interval", "now", "boundary"),
    [
        ("S", 10, (2026, 11, 21, 6, 23, 11), (2026, 11, 21, 6, 23, 20)),
        ("M", 15, (2026, 11, 21, 6, 23, 11), (2026, 11, 21, 6, 30)),
        ("H", 6, (2026, 11, 21, 6, 23, 11), (2026, 11, 21, 12)),
        ("D", 1, (2026, 11, 21, 6, 23, 11), (2026, 11, 22)),
        ("midnight", 1, (2026, 12, 31, 23, 59, 59), (2027, 1, 1)),
        ("W0", 1, (2026, 11, 21, 6, 23, 11), (2026, 11, 23)),  # a Saturday, to Monday
        ("W5", 1, (2026, 11, 21, 6, 23, 11), (2026, 11, 28)),  # Saturday to the next one
        ("h", 1, (2026, 11, 21, 6), (2026, 11, 21, 7)),  # a boundary is not after itself
    ],
)
def test_the_next_boundary_in_utc(
    when: str, interval: int, now: tuple[int, ...], boundary: tuple[int, ...]
) -> None:
    """Round times of the clock, whenever the process started."""
    assert Schedule(when, interval, utc=True).next_boundary(utc(*now)) == utc(*boundary)


@given(
    when=st.sampled_from(UNITS),
    interval=st.integers(1, 100),
    now=st.floats(0, 4e9),
    part=st.floats(0, 1, exclude_max=True),
)
def test_all_times_before_a_boundary_agree_on_it(
    when: str, interval: int, now: float, part: float
) -> None:
    """Processes that look at different moments rotate at the same one."""
    schedule = Schedule(when, 1 if when[0] == "W" else interval, utc=True)
    boundary = schedule.next_boundary(now)
    assert boundary > now
    later = now + (boundary - now) * part
    if later < boundary:
        assert schedule.next_boundary(later) == boundary


@given(when=st.sampled_from(["D", "midnight"]), interval=st.integers(1, 60), now=st.floats(0, 4e9))
def test_days_end_at_midnight_and_are_interval_days_apart(
    when: str, interval: int, now: float
) -> None:
    """Boundaries follow each other at the interval."""
    schedule = Schedule(when, interval, utc=True)
    boundary = schedule.next_boundary(now)
    assert boundary % 86_400 == 0
    assert schedule.next_boundary(boundary) == boundary + interval * 86_400


@pytest.fixture
def st_johns(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not Path("/usr/share/zoneinfo/America/St_Johns").exists():
        pytest.skip("this machine has no time zone America/St_Johns")
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "America/St_Johns")
        time.tzset()
        yield
    time.tzset()


def test_a_midnight_that_has_been_already_is_not_given_again(st_johns: None) -> None:
    """On 7 November 2010 at 00:01 the clock went back to 23:01: the day's start came twice."""
    first_pass, second_pass = utc(2010, 11, 7, 2, 20), utc(2010, 11, 7, 3, 0)
    assert time.localtime(second_pass)[2:5] == (6, 23, 30)
    assert Schedule("midnight").next_boundary(first_pass) == utc(2010, 11, 7, 2, 30)
    assert Schedule("midnight").next_boundary(second_pass) == utc(2010, 11, 8, 3, 30)


@pytest.mark.skipif(sys.platform == "win32", reason="needs time.tzset")
@pytest.mark.parametrize("zone", ZONES)
def test_boundaries_hold_through_changes_to_summer_time(zone: str) -> None:
    """In every zone: after now, one answer for all times before it, days at their midnight."""
    if not Path("/usr/share/zoneinfo", zone).exists():
        pytest.skip(f"this machine has no time zone {zone}")
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        env={**os.environ, "TZ": zone},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("when", ["", "X", "W", "W7", "W01", "day", "Wx"])
def test_an_unknown_unit_is_refused(when: str) -> None:
    """The message lists the units."""
    with pytest.raises(ValueError, match="no unit of time; use S, M, H, D"):
        Schedule(when)


@pytest.mark.parametrize(("when", "interval"), [("S", 0), ("D", -1), ("W0", 2)])
def test_an_interval_out_of_range_is_refused(when: str, interval: int) -> None:
    """Weeks have no interval, and nothing has one below 1."""
    with pytest.raises(ValueError, match=r"must be at least 1, and 1 for W0 to W6"):
        Schedule(when, interval)
