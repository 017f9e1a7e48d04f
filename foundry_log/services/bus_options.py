"""What AsyncServiceBusHandler is set up with, looked at when it is made and not when it fails."""

from __future__ import annotations

import math


def check_queue(field: str, name: object) -> None:
    """Raise ValueError unless it can be the name of a queue."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{field}={name!r} must be the name of a queue")


def check_count(field: str, number: object, least: int) -> None:
    """Raise ValueError unless it is a whole number of `least` or more."""
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise ValueError(f"{field}={number!r} must be a whole number of {least} or more")


def check_seconds(field: str, seconds: float) -> None:
    """Raise ValueError unless it is a finite number, 0 or more."""
    if not 0 <= seconds < math.inf:  # NaN is neither
        raise ValueError(f"{field}={seconds!r} must be a number of seconds, 0 or more")
