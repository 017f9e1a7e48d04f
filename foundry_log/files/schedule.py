"""When a file is due to be rotated by time: wall-clock boundaries that all processes agree on."""

from __future__ import annotations

import datetime
import math
import time

SECONDS = {"S": 1, "M": 60, "H": 3600}
_UNITS = "S, M, H, D, midnight, or W0 (Monday) to W6"


class Schedule:
    """Boundaries every `interval` units of `when`, as in the stdlib's TimedRotatingFileHandler.

    Unlike the stdlib's they do not depend on when the process started: seconds, minutes and hours
    are counted from midnight of 1 January 1970 in the zone's standard time (or UTC), so that the
    change to summer time moves none of them; days and weeks fall on midnight.

    Args:
        when: S, M, H, D or midnight, or W0 (Monday) to W6; any case.
        interval: units between boundaries, at least 1; for W it must be 1.
        utc: boundaries in UTC instead of local time.

    Raises:
        ValueError: `when` or `interval` is none of these.
    """

    def __init__(self, when: str, interval: int = 1, utc: bool = False) -> None:
        self._when = when.upper()
        self._interval = interval
        self._utc = utc
        weekly = len(self._when) == 2 and self._when[0] == "W" and self._when[1] in "0123456"
        if self._when not in SECONDS and self._when not in ("D", "MIDNIGHT") and not weekly:
            raise ValueError(f"when={when!r} is no unit of time; use {_UNITS}")
        if interval < 1 or (weekly and interval != 1):
            raise ValueError(f"interval={interval!r} must be at least 1, and 1 for W0 to W6")

    def next_boundary(self, seconds: float) -> float:
        """Return the first boundary after the time `seconds` since the epoch, likewise."""
        if self._when in SECONDS:
            length = SECONDS[self._when] * self._interval
            west = 0 if self._utc else time.timezone
            return float((math.floor((seconds - west) / length) + 1) * length + west)
        zone = datetime.timezone.utc if self._utc else None
        today = datetime.datetime.fromtimestamp(math.floor(seconds), zone).date()
        if self._when[0] == "W":
            step = 7
            days = (int(self._when[1]) - today.weekday() - 1) % 7 + 1
        else:
            step = self._interval
            days = step - today.toordinal() % step
        while True:
            day = today + datetime.timedelta(days=days)
            boundary = datetime.datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()
            if boundary > seconds:
                return boundary
            days += step  # a clock set back across midnight: that midnight has been already
