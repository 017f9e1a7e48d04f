"""Time stamps of lines."""

from __future__ import annotations

import datetime
import math
import re
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundry_log.clock import timestamp

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1970-01-01T00:00:00.000000+00:00"),
        (1.5, "1970-01-01T00:00:01.500000+00:00"),
        (0.9999996, "1970-01-01T00:00:01.000000+00:00"),
        (-0.5, "1969-12-31T23:59:59.500000+00:00"),
        (1_795_242_191.123456, "2026-11-21T06:23:11.123456+00:00"),
    ],
)
def test_it_is_rfc_3339_in_utc_with_microseconds(seconds: float, text: str) -> None:
    """Always six digits and the offset, also before 1970 and where rounding carries over."""
    assert timestamp(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-0.5, "1969-12-31T23:59:59.500000+00:00"),
        (0.5, "1970-01-01T00:00:00.500000+00:00"),
        (1.5, "1970-01-01T00:00:01.500000+00:00"),
    ],
)
def test_the_first_stamp_of_a_process_is_none_of_a_cache(seconds: float, text: str) -> None:
    """What is cached before any call belongs to the second that it says."""
    code = f"from foundry_log.clock import timestamp; print(timestamp({seconds}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == f"{text}\n"


@given(st.floats(-3.06e10, 2.5e11), st.integers(-2, 2), st.sampled_from([0, 4e-7, 5e-7, 1 - 4e-7]))
def test_it_is_the_nearest_microsecond(seconds: float, later: int, fraction: float) -> None:
    """In any order of seconds, before 1970 too, also where rounding carries into the next."""
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)

    for moment in (seconds, math.floor(seconds) + later + fraction):
        exact = epoch + datetime.timedelta(microseconds=round(moment * 1e6))
        assert timestamp(moment) == exact.isoformat(timespec="microseconds")


@pytest.mark.parametrize(
    "seconds",
    [math.nan, math.inf, -math.inf, "5", b"5", [], {}, ..., 1j, 1e300, 10**400, -4e10,
     253_402_300_800.0, 253_402_300_799.9999999],
    ids=lambda seconds: f"{seconds!r:.9}",
)  # fmt: skip
def test_what_is_no_time_is_now(seconds: Any) -> None:
    """Nothing is raised, and the stamp has its usual form."""
    before = time.time()
    text = timestamp(seconds)

    assert re.fullmatch(r"[\d-]{10}T[\d:]{8}\.\d{6}\+00:00", text)
    read = datetime.datetime.fromisoformat(text).timestamp()
    assert before - 1e-5 <= read <= time.time() + 1e-5


@given(st.floats(0, 4e9))
def test_the_stdlib_reads_it_back(seconds: float) -> None:
    """To the microsecond, for any time; successive calls in different seconds do not mix."""
    read = datetime.datetime.fromisoformat(timestamp(seconds)).timestamp()

    assert read == pytest.approx(seconds, abs=1.1e-6)


def test_without_an_argument_it_is_now() -> None:
    """Between a look at the clock before and one after."""
    before = time.time()
    read = datetime.datetime.fromisoformat(timestamp()).timestamp()

    assert before - 1e-5 <= read <= time.time() + 1e-5


def test_the_local_zone_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half an hour's offset west of Greenwich changes nothing."""
    monkeypatch.setenv("TZ", "XXX+03:30")
    time.tzset()
    try:
        assert timestamp(86_400) == "1970-01-02T00:00:00.000000+00:00"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_threads_in_different_seconds_do_not_mix() -> None:
    """The cached second and its text are replaced together."""
    wrong: list[str] = []

    def stamp(second: int) -> None:
        expected = datetime.datetime.fromtimestamp(second, datetime.timezone.utc).isoformat()
        for _ in range(2000):
            if not timestamp(second).startswith(expected[:19]):
                wrong.append(timestamp(second))

    threads = [threading.Thread(target=stamp, args=(n * 1000,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert not wrong
    assert re.fullmatch(r"[\d-]{10}T[\d:]{8}\.\d{6}\+00:00", timestamp())
