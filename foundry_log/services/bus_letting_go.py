"""The end of what is in hand: cancelled, and given back, each within a deadline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

from foundry_log.services.held_message import HeldMessage
from foundry_log.services.observing import Observer

CANCELS_WITHIN_S = 2.0
"""Seconds for processors to end when they are cancelled."""
GIVES_BACK_WITHIN_S = 3.0
"""Seconds to abandon all that is in hand, one after the other."""


async def let_go(
    tasks: Sequence[asyncio.Task[Any]], held: Sequence[HeldMessage], observer: Observer
) -> None:
    """Cancel what is under way, and give back what is not settled; say what did not end in time."""
    for task in tasks:
        task.cancel()
    _, stubborn = await asyncio.wait(tasks, timeout=CANCELS_WITHIN_S)
    if stubborn:
        told = "processors go on, though they are cancelled; their messages are given back"
        observer.say(logging.WARNING, told, count=len(stubborn))
    giving_back = [asyncio.ensure_future(one.abandon()) for one in held if one.is_in_hand]
    if not giving_back:
        return
    _, kept = await asyncio.wait(giving_back, timeout=GIVES_BACK_WITHIN_S)
    if kept:
        told = "messages are not given back, and stay locked until their locks expire"
        observer.say(logging.WARNING, told, count=len(kept))
        for abandoning in kept:
            abandoning.cancel()
        await asyncio.wait(kept)


async def to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Await what has its own deadline, and only then hear of being cancelled."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError
