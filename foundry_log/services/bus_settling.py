"""What becomes of one message: processed, and then taken, given back or put among dead letters.

At least once: it is completed when its work is done, so that what fails, or dies, is delivered
again. At most once: it is completed before, so that what fails is gone.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from foundry_log.context import bound
from foundry_log.services.bus_errors import RejectMessage, UndecodableError, UnsentError
from foundry_log.services.bus_patience import Patience
from foundry_log.services.held_message import HeldMessage
from foundry_log.services.model_errors import ContentFilterError
from foundry_log.services.observing import Observer
from foundry_log.services.passing_faults import may_pass
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
    STOPPED = "stopped"  # cancelled, or given back before it was tried (again)

    def is_good(self) -> bool:
        """Whether it is what everybody hopes for."""
        return self in (Outcome.PROCESSED, Outcome.SENT, Outcome.DUPLICATE)

    def is_failure(self) -> bool:
        """Whether a wait may help, since it will come again, or the next one may well fail too."""
        return self in (Outcome.ABANDONED, Outcome.UNSENT, Outcome.LOST, Outcome.UNTOUCHED)


class Settling:
    """Has messages processed, settles them by what comes of it, and says so. One event loop.

    Args:
        process: gets the SDK's message, and returns the result of its processing, which it has
            sent where there is one; raises what the processor does, UndecodableError, UnsentError.
        observer: gets a record and a line of metrics for each message.
        at_least_once: complete behind the processing; False for before it.
        max_deliveries: after as many failures a message becomes a dead letter.
        remembered: messages to remember.
        patience: makes what says how long one message is tried again, where what fails is no fault
            of its own.
    """

    def __init__(
        self,
        process: Callable[[Any], Awaitable[Any]],
        observer: Observer,
        *,
        at_least_once: bool,
        max_deliveries: int,
        remembered: int,
        patience: Callable[[], Patience],
    ) -> None:
        self._process = process
        self._observer = observer
        self._at_least_once = at_least_once
        self._max_deliveries = max_deliveries
        self._done = RememberedIds(remembered)
        self._patience = patience

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
        if held.key in self._done:
            return await self._completed(held, Outcome.DUPLICATE)
        patience = self._patience()
        while True:
            work = await self._attempt(held)
            error = _error_of(work)
            if error is None:
                sent = bool(work.result())
                return await self._completed(held, Outcome.SENT if sent else Outcome.PROCESSED)
            if not may_pass(error) or patience.left_s() <= 0:
                return await self._failed(held, error)
            if not await patience.wait(error) or held.is_lost:
                await held.abandon()
                return Outcome.STOPPED

    async def _complete_then_do(self, held: HeldMessage) -> Outcome:
        if not await held.complete():
            return Outcome.UNTOUCHED
        work = await self._attempt(held)
        error = _error_of(work)
        if error is None:
            return Outcome.SENT if work.result() else Outcome.PROCESSED
        if isinstance(error, RejectMessage):
            self._observer.say(logging.WARNING, "a message is rejected", reason=str(error))
            return Outcome.REJECTED
        self._observer.failed("a message is lost: it was completed before it failed", error)
        return Outcome.LOST

    async def _attempt(self, held: HeldMessage) -> asyncio.Future[Any]:
        """Process a message to the end, good or bad; raises nothing but our own cancellation.

        A task of its own tells that from a CancelledError which the processor raises.
        """
        work = asyncio.ensure_future(self._process(held.message))
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:
            work.cancel()
            await asyncio.wait({work})
            _error_of(work)  # asked for, so that nobody complains of it
            raise
        return work

    async def _completed(self, held: HeldMessage, outcome: Outcome) -> Outcome:
        # Before the completion, since that may be cancelled, and done all the same.
        self._done.add(held.key)
        if not await held.complete():
            return Outcome.UNCOMPLETED
        self._done.discard(held.key)
        return outcome

    async def _failed(self, held: HeldMessage, error: BaseException) -> Outcome:
        refused = _refusal(error)
        if refused is not None:
            return await self._buried(held, Outcome.REJECTED, *refused)
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
            logging.ERROR if outcome is Outcome.GIVEN_UP else logging.WARNING,
            "a message becomes a dead letter",
            reason=reason,
            detail=description,
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


def _error_of(work: asyncio.Future[Any]) -> BaseException | None:
    """Return what finished work failed with; CancelledError counts where it raised that itself."""
    return asyncio.CancelledError() if work.cancelled() else work.exception()


def _refusal(error: BaseException) -> tuple[str, str] | None:
    """Return reason and description for a dead letter at once; None for another delivery."""
    if isinstance(error, RejectMessage):
        return error.reason, error.description
    if isinstance(error, UndecodableError):
        return "undecodable body", str(error)
    if isinstance(error, ContentFilterError):
        return "content filter", str(error)
    return None


def scope(held: HeldMessage, queue: str) -> bound:
    """Return the fields that all records of a message's handling carry."""
    fields = {
        "message_id": held.id,
        "queue": queue,
        "delivery_count": held.deliveries,
        "correlation_id": held.correlation_id,
    }
    return bound(**{name: value for name, value in fields.items() if value is not None})
