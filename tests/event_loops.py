"""Tests that run in an event loop, and a clock for those that would wait."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

DEADLINE_S = 60


def in_loop(test: Callable[..., Awaitable[None]]) -> Any:
    """Run a test in an event loop of its own, with a deadline."""

    @functools.wraps(test)
    def run(*args: Any, **fixtures: Any) -> None:
        async def within_deadline() -> None:
            await asyncio.wait_for(test(*args, **fixtures), DEADLINE_S)

        asyncio.run(within_deadline())

    return pytest.mark.asyncio(run)


class Clock:
    """Moves when it is told to, and at once when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Let as many seconds pass."""
        self.waits.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)
