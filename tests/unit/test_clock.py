"""Time stamps of lines."""

from __future__ import annotations

import datetime
import re
import threading
import time

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
