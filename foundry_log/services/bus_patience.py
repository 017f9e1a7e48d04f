"""How long a message is kept in hand and tried again, where what fails is no fault of its own."""

from __future__ import annotations

import asyncio
import logging
import time

from foundry_log.backoff import wait_s
from foundry_log.services.loggable import public_text
from foundry_log.services.observing import Observer


class Patience:
    """Waits before one message is tried again. Used from one event loop.

    Args:
        retry_delay_s: seconds that are doubled from wait to wait, 0 or more; see `backoff.wait_s`.
        patience_s: seconds from the first wait after which there is none, 0 or more.
        stopping: ends a wait at once.
        observer: hears of each wait, and why.
    """

    def __init__(
        self, retry_delay_s: float, patience_s: float, stopping: asyncio.Event, observer: Observer
    ) -> None:
        self._retry_delay_s = retry_delay_s
        self._patience_s = patience_s
        self._stopping = stopping
        self._observer = observer
        self._waits = 0
        self._began: float | None = None

    def left_s(self) -> float:
        """Return the seconds that may still be waited, 0 or less for none."""
        if self._began is None:
            self._began = time.monotonic()
        return self._began + self._patience_s - time.monotonic()

    async def wait(self, error: BaseException) -> bool:
        """Say why, and wait, not beyond the patience; return False where it is stopped."""
        if self._stopping.is_set():
            return False
        seconds = min(self.left_s(), wait_s(self._waits, self._retry_delay_s))
        self._waits += 1
        self._observer.say(
            logging.WARNING,
            "a message is tried again after a wait",
            reason=f"{type(error).__name__}: {public_text(error)}",
            attempt=self._waits,
            wait_s=seconds,
        )
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({stopping}, timeout=seconds)
        finally:
            stopping.cancel()
        return not self._stopping.is_set()
