"""Time stamps as every line of this package writes them."""

from __future__ import annotations

import time

_cached = (-1, "")  # one tuple, so that a second and its text are replaced together


def timestamp(seconds: float | None = None) -> str:
    """Return RFC 3339 text in UTC with microseconds, such as `2026-11-21T06:23:11.123456+00:00`.

    The offset is written `+00:00`: `datetime.fromisoformat` of Python 3.10 does not read `Z`.

    Args:
        seconds: since the epoch, as in `LogRecord.created`; None for now. What is no time of the
            years 1000 to 9999 (NaN, text that a filter put there) is now too. Never raises.
    """
    try:
        return _text(time.time() if seconds is None else seconds)
    except Exception:
        return _text(time.time())


def _text(seconds: float) -> str:
    global _cached
    micros = round(seconds * 1e6)  # by a float: text times an integer is a very long text
    second, fraction = divmod(micros, 1_000_000)
    known, prefix = _cached
    if second != known:
        prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        if len(prefix) != 19:
            raise ValueError("RFC 3339 writes years in four digits")
        _cached = (second, prefix)
    return f"{prefix}.{fraction:06d}+00:00"
