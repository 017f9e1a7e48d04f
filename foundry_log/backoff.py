"""How long to wait before a server that failed is asked again, and who waits with the one failed.

    base = min(60, 1 + delay · 2^attempt)                  seconds; attempts count from 0
    wait = max(asked, base / 2) + random · base / 2        `asked` by the server, at most 300

So a wait is `base` at most and half of it at least, spread evenly ("equal jitter", Marc Brooker,
"Exponential Backoff And Jitter", 2015), and a server that asks for more time is never asked sooner.
"""

from __future__ import annotations

import asyncio
import math
import random as randomness
import time
from collections.abc import Awaitable, Callable

MAX_WAIT_S = 60.0
"""Seconds at most that are waited where the server asks for no more."""
MAX_ASKED_S = 300.0
"""Seconds at most that a server may ask for."""
_MAX_DOUBLINGS = 64  # far above the cap, far below what a float can hold


def wait_s(
    attempt: int,
    delay_s: float,
    asked_s: float | None = None,
    *,
    random: Callable[[], float] = randomness.random,
) -> float:
    """Return the seconds to wait after an attempt has failed; the formula is at the top.

    Args:
        attempt: how many failed before it, from 0.
        delay_s: what is doubled, 0 or more.
        asked_s: seconds that the server asks to wait; None, NaN and below 0 count as 0.
        random: gives numbers from 0 up to 1.
    """
    half = min(MAX_WAIT_S, 1 + delay_s * 2.0 ** min(attempt, _MAX_DOUBLINGS)) / 2
    asked = min(asked_s, MAX_ASKED_S) if asked_s is not None and asked_s > 0 else 0.0
    return max(asked, half) + random() * half


class Pace:
    """When a server may be asked, for all who ask it together. Used from one event loop.

    A failure makes the one it happens to wait. It makes all of them wait where the server says how
    long, or where nobody has succeeded since the failure before: then it is the server that
    struggles, and not one request.

    Args:
        delay_s: what is doubled from attempt to attempt, 0 or more.
        clock: seconds that only grow.
        sleep: waits for as many seconds, by that clock.
        random: gives numbers from 0 up to 1.
    """

    def __init__(
        self,
        delay_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        random: Callable[[], float] = randomness.random,
    ) -> None:
        self._delay_s = delay_s
        self._clock = clock
        self._sleep = sleep
        self._random = random
        self._not_before = -math.inf
        self._failures_in_a_row = 0

    async def turn(self, not_before: float = -math.inf) -> None:
        """Wait until the store may be asked, and until `not_before` on the clock."""
        while (left_s := max(not_before, self._not_before) - self._clock()) > 0:
            await self._sleep(left_s)

    def succeeded(self) -> None:
        """Note that the server did what it was asked for."""
        self._failures_in_a_row = 0

    def failed(self, attempt: int, asked_s: float | None = None) -> float:
        """Note a failure that may pass; return when, on the clock, it is to be tried again.

        Args:
            attempt: of the one it happened to, from 0.
            asked_s: seconds that the server asks to wait, None where it asks for nothing.
        """
        self._failures_in_a_row += 1
        not_before = self._clock() + wait_s(attempt, self._delay_s, asked_s, random=self._random)
        if asked_s or self._failures_in_a_row > 1:
            self._not_before = max(self._not_before, not_before)
        return not_before
