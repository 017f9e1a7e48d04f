"""What becomes of one message: processed, and then taken, given back or put among dead letters.

At least once: it is completed when its work is done, so that what fails, or dies, is delivered
again. At most once: it is completed before, so that what fails is gone.
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from foundry_log.context import bound
from foundry_log.services.bus_errors import RejectMessage, UndecodableError, UnsentError
from foundry_log.services.held_message import HeldMessage
from foundry_log.services.observing import Observer
from foundry_log.services.remembered_ids import RememberedIds


class Outcome(enum.Enum):
    """What became of a message; the value is its `status` in records."""

    PROCESSED = "processed"
    SENT = "sent"  # and its result sent
    DUPLICATE = "duplicate"  # its work had been done, and it is completed now
    UNCOMPLETED = "uncompleted"  # its work is done, and the queue has not been told
    UNTOUCHED = "untouched"  # at most once: not completed, and so not processed
    REJECTED = "rejected"  # among the dead letters, as the processor or its body wanted
    GIVEN_UP = "given up"  # among the dead letters, after too many deliveries
    ABANDONED = "abandoned"  # failed, and is delivered again
    UNSENT = "unsent"  # its result could not be sent, and it is delivered again
    LOST = "lost"  # at most once: failed, and is gone
    STOPPED = "stopped"  # cancelled

    def is_good(self) -> bool:
        """Whether it is what everybody hopes for."""
        return self in (Outcome.PROCESSED, Outcome.SENT, Outcome.DUPLICATE)

    def is_failure(self) -> bool:
        """Whether the next message may well fail too."""
        return self in (Outcome.ABANDONED, Outcome.UNSENT, Outcome.LOST, Outcome.UNTOUCHED)


class Settling:
    """Has messages processed, settles them by what comes of it, and says so. One event loop.

    Args:
        process: gets the SDK's message, and returns the result of its processing, which it has
            sent where there is one; raises what the processor does, UndecodableError, UnsentError.
        observer: gets a record and a line of metrics for each message.
        at_least_once: complete behind the processing; False for before it.
        max_deliveries: after as many failures a message becomes a dead letter.
        remembered: ids to remember.
    """

    def __init__(
        self,
        process: Callable[[Any], Awaitable[Any]],
        observer: Observer,
        *,
        at_least_once: bool,
        max_deliveries: int,
        remembered: int,
    ) -> None:
        self._process = process
        self._observer = observer
        self._at_least_once = at_least_once
        self._max_deliveries = max_deliveries
        self._done = RememberedIds(remembered)

    async def handle(self, held: HeldMessage) -> Outcome:
        """Process and settle a message; raises nothing but cancellation, which leaves it locked."""
        started, wait_s = time.perf_counter(), held.queue_wait_s
        outcome = Outcome.STOPPED
        try:
            work = self._do_then_complete if self._at_least_once else self._complete_then_do
            outcome = await work(held)
        finally:
            self._tell(held, outcome, time.perf_counter() - started, wait_s)
        return outcome

    async def _do_then_complete(self, held: HeldMessage) -> Outcome:
        if held.id in self._done:
            return await self._completed(held, Outcome.DUPLICATE)
        try:
            result = await self._process(held.message)
        except Exception as error:
            return await self._failed(held, error)
        return await self._completed(held, Outcome.SENT if result else Outcome.PROCESSED)

    async def _complete_then_do(self, held: HeldMessage) -> Outcome:
        if not await held.complete():
            return Outcome.UNTOUCHED
        try:
            result = await self._process(held.message)
        except RejectMessage as error:
            self._observer.say(logging.WARNING, "a message is rejected", reason=str(error))
            return Outcome.REJECTED
        except Exception as error:
            self._observer.failed("a message is lost: it was completed before it failed", error)
            return Outcome.LOST
        return Outcome.SENT if result else Outcome.PROCESSED

    async def _completed(self, held: HeldMessage, outcome: Outcome) -> Outcome:
        # Before the completion, since that may be cancelled, and done all the same.
        self._done.add(held.id)
        if not await held.complete():
            return Outcome.UNCOMPLETED
        self._done.discard(held.id)
        return outcome

    async def _failed(self, held: HeldMessage, error: Exception) -> Outcome:
        if isinstance(error, RejectMessage):
            return await self._buried(held, Outcome.REJECTED, error.reason, error.description)
        if isinstance(error, UndecodableError):
            return await self._buried(held, Outcome.REJECTED, "undecodable body", str(error))
        self._observer.failed("a message could not be processed", error)
        if isinstance(error, UnsentError):
            await held.abandon()
            return Outcome.UNSENT
        if held.deliveries < self._max_deliveries:
            await held.abandon()
            return Outcome.ABANDONED
        description = f"{type(error).__qualname__}, in delivery {held.deliveries}"
        return await self._buried(held, Outcome.GIVEN_UP, "processing failed", description)

    async def _buried(
        self, held: HeldMessage, outcome: Outcome, reason: str, description: str
    ) -> Outcome:
        self._observer.say(
            logging.WARNING, "a message becomes a dead letter", reason=reason, detail=description
        )
        return outcome if await held.dead_letter(reason, description) else Outcome.ABANDONED

    def _tell(
        self, held: HeldMessage, outcome: Outcome, latency_s: float, wait_s: float | None
    ) -> None:
        self._observer.say(
            logging.INFO if outcome.is_good() else logging.WARNING,
            f"message {outcome.value}",
            status=outcome.value,
            latency_s=round(latency_s, 6),
            queue_wait_s=wait_s,
        )
        figures = {
            "processing_s": latency_s,
            "delivery_count": held.deliveries,
            "failed": int(not outcome.is_good()),
            "dead_lettered": int(outcome in (Outcome.REJECTED, Outcome.GIVEN_UP)),
            "sent": int(outcome is Outcome.SENT),
        }
        if wait_s is not None:
            figures["queue_wait_s"] = wait_s
        self._observer.measure(**figures)


def scope(held: HeldMessage, queue: str) -> bound:
    """Return the fields that all records of a message's handling carry."""
    fields = {
        "message_id": held.id,
        "queue": queue,
        "delivery_count": held.deliveries,
        "correlation_id": held.correlation_id,
    }
    return bound(**{name: value for name, value in fields.items() if value is not None})
