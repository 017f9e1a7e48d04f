"""A message and the lock on it, which is renewed until the message is settled or let go."""

from __future__ import annotations

import asyncio
import datetime
import logging
import uuid
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

from foundry_log.services.bus_connection import BusConnection
from foundry_log.services.observing import Observer

RENEWS_EACH_S = 0.2
"""Seconds at least between two attempts to renew a lock that is about to end."""


class HeldMessage:
    """A received message: its facts, its lock and its settlement. Used from one event loop.

    `async with` it: inside, the lock is renewed when half of its time is over, as long as it takes,
    until one of the three methods that settle is called. They return whether the bus has done it,
    log where it has not, and raise nothing but cancellation.

    Args:
        message: the SDK's.
        bus: that it came from.
        observer: hears of locks that are lost.
    """

    def __init__(self, message: Any, bus: BusConnection, observer: Observer) -> None:
        self.message = message
        self.id = text_or_none(message.message_id)
        self.correlation_id = text_or_none(message.correlation_id)
        self.deliveries = (message.delivery_count or 0) + 1
        """How often it has been delivered, this time included."""
        self.is_settled = False
        """Whether it has been tried to settle it, and not been cancelled."""
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
        while (left_s := self._lock_left_s()) is not None and left_s > 0:
            await asyncio.sleep(max(left_s / 2, RENEWS_EACH_S))
            try:
                await self._bus.renew(self.message)
            except Exception as error:
                kind = type(error).__name__
                self._observer.say(logging.DEBUG, "a lock could not be renewed", reason=kind)
                if self._bus.is_lock_lost(error):
                    break
        if left_s is not None:
            self._observer.say(
                logging.WARNING, "the lock on a message is lost: it may be delivered again"
            )

    def _lock_left_s(self) -> float | None:
        until = self.message.locked_until_utc
        return None if until is None else float((until - _now()).total_seconds())

    async def _stop_renewing(self) -> None:
        renewing, self._renewing = self._renewing, None
        if renewing is not None:
            renewing.cancel()
            await asyncio.wait({renewing})


def text_or_none(value: object) -> str | None:
    """Return an id as text; None where there is none, or where it is none."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    is_id = isinstance(value, (str, int, uuid.UUID)) and value != ""
    return str(value) if is_id else None


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)
