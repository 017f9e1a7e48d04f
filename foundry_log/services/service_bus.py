"""AsyncServiceBusHandler: messages from one queue of Azure Service Bus, results to another."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import math
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from foundry_log.backoff import wait_s
from foundry_log.error_tracker import ErrorTracker
from foundry_log.metrics import MetricsLogger
from foundry_log.services.bus_connection import BusConnection
from foundry_log.services.bus_errors import (
    BusClosedError,
    RejectMessage,
    RetryLater,
    UndecodableError,
    UnsentError,
)
from foundry_log.services.bus_letting_go import let_go, to_its_end
from foundry_log.services.bus_options import check_count, check_queue, check_seconds
from foundry_log.services.bus_patience import Patience
from foundry_log.services.bus_sending import ResultSender
from foundry_log.services.bus_settling import Outcome, Settling, scope
from foundry_log.services.held_message import HeldMessage, text_or_none
from foundry_log.services.message_bodies import message_text, result_body
from foundry_log.services.observing import Observer

__all__ = [
    "AsyncServiceBusHandler",
    "BusClosedError",
    "RejectMessage",
    "RetryLater",
    "UndecodableError",
    "UnsentError",
]

FIRST_SLEEP_S = 4.0
LONGEST_SLEEP_S = 10.0
"""Seconds at most between two looks into a queue that is empty."""

_log = logging.getLogger("foundry_log.services.service_bus")
_T = TypeVar("_T")


class AsyncServiceBusHandler:
    """Gives each message of a queue to a function, and sends what it returns to another queue.

        async def answer(text: str) -> str: ...

        handler = AsyncServiceBusHandler(answer, "questions", "answers", at_least_once=True)
        loop.add_signal_handler(signal.SIGTERM, handler.stop)
        await handler.run()

    With `at_least_once=True`, which is recommended, a message is completed when it has been
    processed and its result is sent. Until then its lock is renewed, so that processing may take
    any time. One that fails is abandoned, and delivered again; at the delivery `max_deliveries` it
    becomes a dead letter, with the class of the error. `raise RejectMessage(reason)` makes it one
    at once, and so do a body that is not UTF-8 and a ContentFilterError. What the out queue does
    not take is abandoned too, however often. Where the completion fails, the message is remembered:
    delivered again it is completed, and not processed. Other processes do not know that, nor does
    the next one: a processor should bear to see a message twice. A result's message id is the same
    whenever it is sent for the same message, for the out queue's own duplicate detection.

    An error that is no fault of the message does not use up its deliveries: it stays in hand and is
    tried again after waits from `retry_delay` up to 60 s, for `outage_patience_s`, and no further
    messages are received meanwhile. Such are `raise RetryLater(reason)`, ConnectionError,
    TimeoutError, what a TokenClient denies or has no answer to (a ValueError, in its words), and an
    openai.APIError without a status or with 401, 403, 408, 409, 429, 500 or more.

    Without it a message is completed *before* it is processed. What fails then, or is under way
    when the process dies, is lost, and logged.

    Each message is a scope (`foundry_log.bound`) with `message_id`, `queue`, `delivery_count` (1
    for the first) and `correlation_id`, so that the processor's own records carry them. Each gets
    one record, at INFO, or WARNING where it was not to be, and one line of metrics. A message that
    becomes a dead letter after too many deliveries is an ERROR, and a WARNING where its processor
    wanted that. `run` says when it begins and when it has ended. Bodies are logged with
    `logs_bodies=True` alone, at DEBUG.

    Belongs to one event loop and its thread. Not for the child of a fork.

    Args:
        processor_function: gets the body as text; a coroutine function, or a plain one, which runs
            in one of `concurrency` threads of `run`, with the context variables of the message, and
            cannot be stopped there. A truthy result goes to the out queue: text and bytes as they
            are, anything else as JSON.
        in_queue_name: of the queue to receive from.
        out_queue_name: of the queue for results.
        fully_qualified_namespace: such as `name.servicebus.windows.net`; None for the environment's
            SERVICE_BUS_NAMESPACE.
        max_retries: attempts for a result, 1 or more, the first counted.
        retry_delay: seconds, 0 or more, that are doubled from error to error; the wait is one
            second longer, up to half of it shorter, and 60 s at most. After messages that failed by
            themselves it is not doubled.
        max_wait_time: seconds above 0 that one look into the queue waits for messages.
        message_batch_size: messages that are received at once, 1 or more.
        at_least_once: see above.
        connection_string: None for the environment's SERVICE_BUS_CONNECTION_STRING, unless a
            namespace is given.
        credential: of azure-identity's asynchronous kind, which stays yours to close; None for its
            DefaultAzureCredential. Not looked at beside a connection string.
        max_deliveries: 1 or more; the queue has such a number itself, and the smaller one counts.
        concurrency: messages of those received that are processed at once, 1 or more.
        stop_timeout_s: seconds, 0 or more, that `stop` leaves to what is being processed. Then 2 s
            are left to processors that are cancelled, 3 s to giving messages back, and 6 s to each
            step of closing, most of which is over at once where the bus answers. What takes longer
            is said and left: locks expire.
        work_pause_s: seconds, 0 or more, between work and the next look into the queue.
        remembered_messages: how many are remembered, 0 or more.
        outage_patience_s: seconds, 0 or more, from the first error that is no fault of the message
            (see above) after which it counts as one, as for any other; at least once alone.
        metrics: gets `processing_s`, `queue_wait_s`, `delivery_count`, and 0 or 1 for `failed`,
            `dead_lettered` and `sent`, for each message; None for none.
        errors: gets what fails; None for ERROR records alone.
        logs_bodies: whether bodies and results are logged.

    Raises:
        ValueError: a number is out of its range or not finite, a count is not whole, a name is
            blank, the connection string is none, or there is neither it nor a namespace.
        TypeError: `processor_function` cannot be called.
        ImportError: azure-servicebus is not installed; the text says how to.
    """

    def __init__(
        self,
        processor_function: Callable[[str], Any],
        in_queue_name: str,
        out_queue_name: str,
        fully_qualified_namespace: str | None = None,
        max_retries: int = 5,
        retry_delay: float = 3.0,
        max_wait_time: float = 3.0,
        message_batch_size: int = 1,
        *,
        at_least_once: bool = False,
        connection_string: str | None = None,
        credential: Any = None,
        max_deliveries: int = 5,
        concurrency: int = 1,
        stop_timeout_s: float = 25.0,
        work_pause_s: float = 1.0,
        remembered_messages: int = 10_000,
        metrics: MetricsLogger | None = None,
        errors: ErrorTracker | None = None,
        logs_bodies: bool = False,
        outage_patience_s: float = 300.0,
    ) -> None:
        if not callable(processor_function):
            raise TypeError(f"processor_function={processor_function!r} must be a function of text")
        check_queue("in_queue_name", in_queue_name)
        check_queue("out_queue_name", out_queue_name)
        check_count("max_retries", max_retries, 1)
        check_count("message_batch_size", message_batch_size, 1)
        check_count("max_deliveries", max_deliveries, 1)
        check_count("concurrency", concurrency, 1)
        check_count("remembered_messages", remembered_messages, 0)
        check_seconds("retry_delay", retry_delay)
        check_seconds("stop_timeout_s", stop_timeout_s)
        check_seconds("work_pause_s", work_pause_s)
        check_seconds("outage_patience_s", outage_patience_s)
        if not 0 < max_wait_time < math.inf:
            raise ValueError(f"max_wait_time={max_wait_time!r} must be above 0 s; 3 is usual")
        self.processor_function = processor_function
        self.in_queue_name = in_queue_name
        self.out_queue_name = out_queue_name
        self.max_retries = max_retries
        self.retry_delay = retry_delay
        self.max_wait_time = max_wait_time
        self.message_batch_size = message_batch_size
        self.concurrency = concurrency
        self.stop_timeout_s = stop_timeout_s
        self.work_pause_s = work_pause_s
        self.running = False
        """Whether `run` is under way and goes on."""
        self.sleep_seconds = FIRST_SLEEP_S
        """Seconds of the last wait between two looks into the queue, errors' waits left out."""
        self.total_processed_messages = 0
        """Messages that were begun, whatever became of them."""
        self._observer = Observer(_log, metrics, errors, logs_bodies=logs_bodies)
        self._bus = BusConnection(
            in_queue_name,
            out_queue_name,
            namespace=fully_qualified_namespace,
            connection_string=connection_string,
            credential=credential,
            observer=self._observer,
        )
        self.fully_qualified_namespace = self._bus.namespace
        self._sender = ResultSender(
            self._bus, self._observer, out_queue_name, max_retries, retry_delay
        )
        self._at_least_once = at_least_once
        self._stopping = asyncio.Event()
        patience = functools.partial(
            Patience, retry_delay, outage_patience_s, self._stopping, self._observer
        )
        self._settling = Settling(
            self.process_message,
            self._observer,
            at_least_once=at_least_once,
            max_deliveries=max_deliveries,
            remembered=remembered_messages,
            patience=patience,
        )
        self._threads: ThreadPoolExecutor | None = None  # of `run`; None for the loop's own
        self._ended = asyncio.Event()
        self._ended.set()
        self._failures: list[str] = []  # causes since the last success, each once
        self._failures_in_a_row = 0

    def __repr__(self) -> str:
        queues = f"{self.in_queue_name} to {self.out_queue_name}"
        return f"<{type(self).__name__} {self.fully_qualified_namespace}: {queues}>"

    async def __aenter__(self) -> AsyncServiceBusHandler:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, wait for the end of `run`, and close."""
        self.stop()
        await self._ended.wait()
        await self._bus.close()

    def stop(self) -> None:
        """Stop for good: `run` ends, and one that begins later ends at once.

        What is being processed is finished within `stop_timeout_s`, else cancelled and abandoned;
        what is not begun, or waits to be tried again, is abandoned at once. Idempotent; not
        thread-safe, call it in the event loop.
        """
        self.running = False
        self._stopping.set()

    async def run(self) -> None:
        """Receive and process until `stop`; then close, and send nothing any more.

        Errors of the bus are logged, and waited out. Cancelled, however often, it abandons what is
        in hand and closes first.

        Raises:
            RuntimeError: it runs already.
        """
        if not self._ended.is_set():
            raise RuntimeError("it runs already: one handler runs once at a time")
        self._ended.clear()
        self.running = not self._stopping.is_set()
        self._bus.open()
        self._threads = ThreadPoolExecutor(self.concurrency, "foundry-service-bus")
        self._say_begun()
        try:
            while self.running:
                await self._pause(await self._round())
        finally:
            self.running = False
            try:
                await to_its_end(self._bus.close())
            finally:
                self._threads.shutdown(wait=False)
                self._threads = None
                self._observer.say(
                    logging.INFO,
                    "stopped receiving messages",
                    processed=self.total_processed_messages,
                )
                self._ended.set()

    async def process_message(self, message: Any) -> Any:
        """Process one message, send a truthy result, and return the result; settle nothing.

        Args:
            message: the SDK's, or what has its `body`: text, bytes, or an iterable of bytes.

        Raises:
            UndecodableError: the body is not UTF-8.
            UnsentError: the result could not be sent.
            Exception: what the processor raises, and ValueError for a result that JSON or the queue
                cannot take.
        """
        text = message_text(message)
        self._observer.body("message received", text)
        result = await self._process(text)
        if result:
            source = text_or_none(getattr(message, "message_id", None))
            await self._sender.send(result_body(result), self._result_id(source), source)
        return result

    async def send_message(self, message: Any) -> bool:
        """Send text, bytes, or anything else as JSON to the out queue; return whether it is there.

        It is tried `max_retries` times, with waits in between. Never raises but when cancelled; a
        failure is logged. The first call connects, and the end of `run` or of `async with` closes:
        the one on its way then is finished, and those behind it are not sent.
        """
        try:
            await self._sender.send(result_body(message), self._result_id(None), None)
        except Exception as error:
            self._observer.failed("a message could not be sent", error, queue=self.out_queue_name)
            return False
        return True

    # --- rounds: receive, handle, wait ------------------------------------------------------------

    async def _round(self) -> float:
        """Handle what the queue has; return the seconds to wait until the next look."""
        try:
            messages = await self._received()
            outcomes = await self._handled(messages)
        except Exception as error:
            return self._after_failure(error)
        self._succeeded()
        if any(map(Outcome.is_failure, outcomes)) and not any(map(Outcome.is_good, outcomes)):
            # The same each time: the bus is well, and other messages wait.
            return wait_s(0, self.retry_delay)
        self.sleep_seconds = (
            self.work_pause_s if messages else min(self.sleep_seconds + 1, LONGEST_SLEEP_S)
        )
        return self.sleep_seconds

    async def _received(self) -> Sequence[Any]:
        receiving = self._bus.receive(self.message_batch_size, self.max_wait_time)
        return await self._unless_stopped(receiving) or ()

    async def _handled(self, messages: Sequence[Any]) -> list[Outcome]:
        """Handle messages, `concurrency` at once, within `stop_timeout_s` of a stop."""
        if not messages:
            return []
        slots = asyncio.Semaphore(self.concurrency)
        held = [HeldMessage(message, self._bus, self._observer) for message in messages]
        tasks = [asyncio.create_task(self._handle(one, slots)) for one in held]
        try:
            await self._unless_stopped(asyncio.wait(tasks))
            await asyncio.wait(tasks, timeout=self.stop_timeout_s)
        finally:
            await to_its_end(let_go(tasks, held, self._observer))
        ended = (task for task in tasks if task.done() and not task.cancelled())
        return [task.result() for task in ended if task.exception() is None]

    async def _handle(self, held: HeldMessage, slots: asyncio.Semaphore) -> Outcome:
        with scope(held, self.in_queue_name):
            async with held, slots:
                return await self._begin(held)

    async def _begin(self, held: HeldMessage) -> Outcome:
        if self._stopping.is_set() or held.is_lost:
            if held.is_in_hand:
                await held.abandon()
            return Outcome.STOPPED
        try:
            return await self._settling.handle(held)
        finally:
            self.total_processed_messages += 1

    async def _unless_stopped(self, work: Coroutine[Any, Any, _T]) -> _T | None:
        """Return what `work` does; None where it is stopped, and so cancelled, before its end."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            task.cancel()
            stopping.cancel()
            await asyncio.wait({task, stopping})

    def _say_begun(self) -> None:
        self._observer.say(
            logging.INFO,
            "receiving messages",
            in_queue=self.in_queue_name,
            out_queue=self.out_queue_name,
            namespace=self.fully_qualified_namespace,
            at_least_once=self._at_least_once,
            concurrency=self.concurrency,
        )

    async def _pause(self, seconds: float) -> None:
        await self._unless_stopped(asyncio.sleep(seconds))

    # --- failures in a row ------------------------------------------------------------------------

    def _after_failure(self, error: Exception) -> float:
        """Note an error of the bus, name its cause once; return how long to wait."""
        seconds = wait_s(self._failures_in_a_row, self.retry_delay)
        self._failures_in_a_row += 1
        cause = type(error).__qualname__
        if cause in self._failures:
            self._observer.say(logging.DEBUG, "still no messages", reason=cause, wait_s=seconds)
        else:
            self._failures.append(cause)
            self._observer.failed(
                "no messages can be received", error, queue=self.in_queue_name, wait_s=seconds
            )
        return seconds

    def _succeeded(self) -> None:
        if self._failures:
            self._observer.say(
                logging.INFO, "messages can be received again", attempts=self._failures_in_a_row
            )
        self._failures.clear()
        self._failures_in_a_row = 0

    # --- processing and sending -------------------------------------------------------------------

    async def _process(self, text: str) -> Any:
        if inspect.iscoroutinefunction(self.processor_function):
            return await self.processor_function(text)
        # As asyncio.to_thread does, whose threads are few, and everybody's.
        call = functools.partial(contextvars.copy_context().run, self._call, text)
        result = await asyncio.get_running_loop().run_in_executor(self._threads, call)
        return await result if isinstance(result, Awaitable) else result

    def _call(self, text: str) -> Any:
        try:
            return self.processor_function(text)
        except (StopIteration, asyncio.CancelledError) as error:
            # A future does not take the one, and takes the other for our own cancellation.
            raise RuntimeError(f"the processor raised {type(error).__name__}") from error

    def _result_id(self, source: str | None) -> str:
        """Return the id of a result: the same for the same message of the same queue."""
        if source is None:
            return str(uuid.uuid4())
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.in_queue_name}/{source}"))
