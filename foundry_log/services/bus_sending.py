"""Results on their way to the out queue, sent again after errors."""

from __future__ import annotations

import asyncio
import logging

from foundry_log.backoff import wait_s
from foundry_log.services.bus_connection import BusConnection
from foundry_log.services.bus_errors import BusClosedError, UnsentError
from foundry_log.services.observing import Observer


class ResultSender:
    """Sends to the out queue, as often as it takes and is allowed. Used from one event loop.

    Args:
        bus: to send over.
        observer: hears what is sent, and what is sent again.
        out_queue: its name, for records.
        max_attempts: 1 or more.
        retry_delay_s: seconds, 0 or more, that are doubled from attempt to attempt; see
            `backoff.wait_s`.
    """

    def __init__(
        self,
        bus: BusConnection,
        observer: Observer,
        out_queue: str,
        max_attempts: int,
        retry_delay_s: float,
    ) -> None:
        self._bus = bus
        self._observer = observer
        self._out_queue = out_queue
        self._max_attempts = max_attempts
        self._retry_delay_s = retry_delay_s

    async def send(self, body: str | bytes, message_id: str, correlation_id: str | None) -> None:
        """Send a message; return when the queue has it.

        Raises:
            UnsentError: no attempt succeeded.
            BusClosedError: the connection is closed.
            TypeError, ValueError: the SDK cannot send it at all.
        """
        self._observer.body("message to send", body)
        for attempt in range(self._max_attempts):
            try:
                await self._bus.send(body, message_id, correlation_id)
            except (TypeError, ValueError, BusClosedError):
                raise  # it will not fit the next time either, nor will the bus be open
            except Exception as error:
                if attempt + 1 == self._max_attempts:
                    kind = type(error).__name__
                    raise UnsentError(f"{self._out_queue} does not take it: {kind}") from error
                await self._wait(attempt, error)
            else:
                self._observer.say(
                    logging.DEBUG, "sent", sent_to=self._out_queue, sent_id=message_id
                )
                return

    async def _wait(self, attempt: int, error: Exception) -> None:
        seconds = wait_s(attempt, self._retry_delay_s)
        self._observer.say(
            logging.WARNING,
            "a message is sent again after a wait",
            attempt=attempt + 1,
            wait_s=seconds,
            reason=type(error).__name__,
        )
        await asyncio.sleep(seconds)
