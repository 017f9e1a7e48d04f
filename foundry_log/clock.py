"""Time stamps as every line of this package writes them."""

from __future__ import annotations

import datetime
import time

_MILLION = 1_000_000
_cached = (-_MILLION, "1970-01-01T00:00:00.")
"""Microseconds from the epoch to a second *before* a known one, and the known one's text; one
tuple, so that both are replaced together."""


def timestamp(seconds: float | None = None) -> str:
    """Return RFC 3339 text in UTC with microseconds, such as `2026-11-21T06:23:11.123456+00:00`.

    The offset is written `+00:00`: `datetime.fromisoformat` of Python 3.10 does not read `Z`. Safe
    from any thread.

    Args:
        seconds: since the epoch, as in `LogRecord.created`; None for now. What is no time of the
            years 1000 to 9999 (NaN, text that a filter put there) is now too. Never raises.
    """
    try:
        micros = round((time.time() if seconds is None else seconds) * 1e6)
        start, text = _cached
        # Seven digits, the first of them a 1: `str` keeps the zeros, and takes a third of the
        # time of a format that fills them in.
        digits = micros - start
        if not _MILLION <= digits < 2 * _MILLION:
            start, text = _second_of(micros)
            digits = micros - start
        return f"{text}{str(digits)[1:]}+00:00"
    except Exception:
        return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds")


def _second_of(micros: int) -> tuple[int, str]:
    """Return what `_cached` holds for the second of `micros`, and keep it."""
    global _cached
    second = micros // _MILLION
    text = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
    if len(text) != 20:
        raise ValueError("RFC 3339 writes years in four digits")
    _cached = known = ((second - 1) * _MILLION, text)
    return known
