"""A message and the lock on it, which is renewed until the message is settled or let go."""

from __future__ import annotations

import asyncio
import datetime
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

from foundry_log.services.bus_connection import BusConnection
from foundry_log.services.observing import Observer

RENEWS_EACH_S = 0.2
"""Seconds at least between two attempts to renew a lock that is about to end."""
RENEWS_WITHIN_S = 10.0
"""Seconds after which a lock is renewed at the latest, in case this host's clock is behind."""
LONGEST_LOCK_S = 300.0
"""Seconds of Azure's longest lock: a clock by which one is longer, or over at once, is wrong."""
RENEWS_BLINDLY_EACH_S = 2.0
"""Seconds between renewals where the clock is wrong: less than half of Azure's shortest lock, 5."""


class HeldMessage:
    """A received message: its facts, its lock and its settlement. Used from one event loop.

    `async with` it: inside, the lock is renewed when half of its time is over, 10 s at the latest,
    as long as it takes, until one of the three methods that settle is called. They return whether
    the bus has done it, log where it has not, and raise nothing but cancellation. One settlement
    counts: those after it do nothing, and return False.

    When the lock ends, this host's clock says; one that cannot be right is not asked, and the lock
    renewed every 2 s until the bus says that it is lost. Where the clock is ahead of the bus's by
    more than a lock's length, the SDK refuses to settle: such a clock has to be set.

    Args:
        message: the SDK's.
        bus: that it came from.
        observer: hears of locks that are lost.
    """

    def __init__(self, message: Any, bus: BusConnection, observer: Observer) -> None:
        self.message = message
        self.id = text_or_none(message.message_id)
        sequence_number = getattr(message, "sequence_number", None)
        self.key = None if self.id is None else (sequence_number, self.id)
        """The same when it is delivered again, and no other message's: senders may use an id twice.

        None where it has no id.
        """
        self.correlation_id = text_or_none(message.correlation_id)
        self.deliveries = (message.delivery_count or 0) + 1
        """How often it has been delivered, this time included."""
        self.is_settled = False
        """Whether it has been tried to settle it, and not been cancelled."""
        self.is_lost = False
        """Whether its lock is over, so that somebody else may have it."""
        self._bus = bus
        self._observer = observer
        self._renewing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> HeldMessage:
        self._renewing = asyncio.create_task(self._keep_lock())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop_renewing()

    @property
    def is_in_hand(self) -> bool:
        """Whether it is still to be settled, and may be."""
        return not self.is_settled and not self.is_lost

    @property
    def queue_wait_s(self) -> float | None:
        """Seconds since the queue got it, 0 at least; None where it does not say."""
        enqueued = self.message.enqueued_time_utc
        return None if enqueued is None else max(0.0, (_now() - enqueued).total_seconds())

    async def complete(self) -> bool:
        """Take it from the queue."""
        return await self._settle("completed", self._bus.complete, self.message)

    async def abandon(self) -> bool:
        """Give it back to the queue."""
        return await self._settle("abandoned", self._bus.abandon, self.message)

    async def dead_letter(self, reason: str, description: str) -> bool:
        """Put it among the dead letters."""
        bury = self._bus.dead_letter
        return await self._settle("dead-lettered", bury, self.message, reason, description)

    async def _settle(
        self, how: str, settle: Callable[..., Awaitable[None]], *arguments: Any
    ) -> bool:
        # A renewal that comes after the settlement would find no lock, and call it lost.
        await self._stop_renewing()
        if self.is_settled:  # by a stop, whose cancellation a processor has not heard
            return False
        try:
            await settle(*arguments)
        except Exception as error:
            kind = type(error).__name__
            self._observer.say(logging.WARNING, f"a message could not be {how}", reason=kind)
            self.is_settled = True
            return False
        self.is_settled = True
        return True

    async def _keep_lock(self) -> None:
        renewing = asyncio.current_task()
        ends = self._lock_ends()
        while ends is not None and not self.is_lost:
            await asyncio.sleep(_renews_in_s(ends))
            if await self._renewed():
                ends = self._lock_ends()
            if self._renewing is not renewing:
                return  # cancelled, which `asyncio.wait_for` swallows before Python 3.12
            self.is_lost = self.is_lost or (ends is not None and ends <= time.monotonic())
        if self.is_lost:
            self._observer.say(
                logging.WARNING, "the lock on a message is lost: it may be delivered again"
            )

    async def _renewed(self) -> bool:
        try:
            await self._bus.renew(self.message)
        except Exception as error:
            kind = type(error).__name__
            self._observer.say(logging.DEBUG, "a lock could not be renewed", reason=kind)
            self.is_lost = self._bus.is_lock_lost(error)
            return False
        return True

    def _lock_ends(self) -> float | None:
        """Return when, on the monotonic clock: infinity for not known, None where there is none."""
        until = self.message.locked_until_utc
        if until is None:
            return None
        left_s = (until - _now()).total_seconds()
        return time.monotonic() + left_s if 0 < left_s <= LONGEST_LOCK_S else math.inf

    async def _stop_renewing(self) -> None:
        renewing, self._renewing = self._renewing, None
        if renewing is not None:
            renewing.cancel()
            await asyncio.wait({renewing})


def _renews_in_s(ends: float) -> float:
    """Return the seconds until a lock that ends then is renewed."""
    if ends == math.inf:
        return RENEWS_BLINDLY_EACH_S
    return min(max((ends - time.monotonic()) / 2, RENEWS_EACH_S), RENEWS_WITHIN_S)


def text_or_none(value: object) -> str | None:
    """Return an id as text; None where there is none, or where it is none."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    is_id = isinstance(value, (str, int, uuid.UUID)) and value != ""
    return str(value) if is_id else None


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)
