"""A broker that speaks AMQP 1.0 as Azure Service Bus does, on loopback and in memory.

It is python-qpid-proton's protocol stack with semantics of our own: queues with locks, delivery
counts and dead letters, tokens, the management node that renews locks; and faults on request. It
proves how the real SDK and our handler work together, not how Azure behaves.

    python -m tests.amqp_broker        prints its connection string; ends with its standard input

A line `in=500` there puts 500 messages into the queue `in`, a line `in` none; either is answered
with the account of the queue, as JSON.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import json
import logging
import os
import sys
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from proton import (
    UNDESCRIBED,
    Array,
    Condition,
    Data,
    Delivery,
    Endpoint,
    Link,
    Message,
    int32,
    symbol,
    timestamp,
)
from proton.handlers import MessagingHandler
from proton.reactor import ApplicationEvent, Container, EventInjector

CBS = "$cbs"
MANAGEMENT = "/$management"
DEAD_LETTERS = "/$DeadLetterQueue"
LOCK_LOST = "com.microsoft:message-lock-lost"
SERVER_BUSY = "com.microsoft:server-busy"
SECRET = "c2VjcmV0LW9mLXRoZS1idXM="
"""The key in the connection string, to look for where it must not appear."""
ANSWERS_WITHIN_S = 10.0

_T = TypeVar("_T")


@dataclass
class Stored:
    """A message in a queue."""

    message: Message
    number: int
    enqueued: float
    deliveries: int = 0
    """Deliveries that came to nothing."""


@dataclass
class Lock:
    """A message that somebody has, until when on the clock of the epoch."""

    stored: Stored
    until: float
    queue: Queue


@dataclass
class Queue:
    """Messages that wait, those that are locked, and how many came and went."""

    name: str
    ready: deque[Stored] = field(default_factory=deque)
    locks: dict[uuid.UUID, Lock] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    """Of `in`, `completed`, `dead-lettered`, `abandoned`, `released`, `expired`, `renewed`."""

    def account(self) -> dict[str, int]:
        """Return the counts, with what is `ready` and `locked` now."""
        return {**self.counts, "ready": len(self.ready), "locked": len(self.locks)}


class Broker(MessagingHandler):
    """The broker: `start`, `stop`, what is in its queues, and its faults.

    It runs in a thread of its own; its methods may be called from any other. Queues are made when
    they are named, and outlive `stop`.

    Args:
        lock_s: seconds that a message is locked.
        max_deliveries: after as many a message becomes a dead letter.
    """

    def __init__(self, lock_s: float = 30.0, max_deliveries: int = 100) -> None:
        super().__init__(prefetch=0, auto_accept=False, auto_settle=False)
        self.lock_s = lock_s
        self.max_deliveries = max_deliveries
        self.port = 0
        self.refuses_tokens = False
        self.ahead_s = 0.0
        """Seconds by which its clock is ahead of this host's."""
        self.busy = 0
        """Messages that are refused because the server is busy."""
        self.refused_settlements = 0
        """Settlements that are refused because the lock is lost, which it then is."""
        self._queues: dict[str, Queue] = {}
        self._numbers = itertools.count(1)
        self._thread: threading.Thread | None = None

    @property
    def connection_string(self) -> str:
        """What the SDK connects with; `UseDevelopmentEmulator` stands for "no TLS"."""
        return (
            f"Endpoint=sb://127.0.0.1:{self.port};SharedAccessKeyName=k;"
            f"SharedAccessKey={SECRET};UseDevelopmentEmulator=true;"
        )

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen, on the port of before where there was one."""
        logging.getLogger("proton").setLevel(logging.CRITICAL)
        self._calls = EventInjector()
        self._consumers: list[Any] = []  # links that we send over, by their addresses
        self._connections: list[Any] = []
        self._half_received: dict[Any, bytes] = {}
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._started = started
        self._thread = threading.Thread(target=self._run, name="amqp-broker")
        self._thread.start()
        started.result(ANSWERS_WITHIN_S)

    def stop(self) -> None:
        """Drop all connections and end the thread. Idempotent."""
        if self._thread is not None:
            self._call(self._end)
            self._thread.join(ANSWERS_WITHIN_S)
            assert not self._thread.is_alive(), "the broker does not end"
            self._thread = None
            logging.getLogger("proton").setLevel(logging.NOTSET)

    def _run(self) -> None:
        try:
            container = Container(self)
            container.timeout = 1.0
            container.run()
        except BaseException as error:
            if not self._started.done():
                self._started.set_exception(error)
            raise
        finally:
            for end in self._calls.pipe:
                with contextlib.suppress(OSError):
                    os.close(end)

    def _end(self) -> None:
        self._drop_connections()
        self._acceptor.close()
        self._ticking.cancel()
        self._calls.close()

    def _call(self, function: Callable[[], _T]) -> _T:
        """Run a function in the broker's thread and return what it returns."""
        if self._thread is None:
            return function()
        result: concurrent.futures.Future[_T] = concurrent.futures.Future()
        event = ApplicationEvent("call")
        event.function, event.result = function, result
        self._calls.trigger(event)
        return result.result(ANSWERS_WITHIN_S)

    def on_call(self, event: Any) -> None:
        call = event.context
        try:
            call.result.set_result(call.function())
        except BaseException as error:
            call.result.set_exception(error)

    # --- what is asked and ordered from outside ---------------------------------------------------

    def put(self, queue: str, *messages: Message | str | bytes) -> None:
        """Put messages into a queue; text and bytes get an id, `m1` and on in the order of all."""
        self._call(lambda: [self._enqueue(queue, message) for message in messages] and None)
        self._call(lambda: self._deliver(queue))

    def account(self, queue: str) -> dict[str, int]:
        """Return how many messages came, are there, and left how."""
        return self._call(lambda: self._queue(queue).account())

    def messages(self, queue: str) -> list[Message]:
        """Return what waits in a queue, in its order."""
        return self._call(lambda: [stored.message for stored in self._queue(queue).ready])

    def bodies(self, queue: str) -> list[str]:
        """Return the texts of what waits in a queue."""
        return [_text(message.body) for message in self.messages(queue)]

    def dead_letters(self, queue: str) -> list[tuple[str, str, str]]:
        """Return text, reason and description of each dead letter."""
        return [
            (
                _text(message.body),
                message.properties["DeadLetterReason"],
                message.properties["DeadLetterErrorDescription"],
            )
            for message in self.messages(queue + DEAD_LETTERS)
        ]

    def expire_locks(self, queue: str) -> None:
        """Let all locks of a queue expire now; the messages are delivered again."""
        self._call(lambda: self._expire(self._queue(queue), float("inf")))

    def expire_lock(self, queue: str, text: str) -> None:
        """Let the lock on one message expire now."""
        locks = self._queue(queue).locks
        self._call(
            lambda: [
                self._give_back(token, lock, "expired")
                for token, lock in list(locks.items())
                if _text(lock.stored.message.body) == text
            ]
        )

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Say nothing to anybody meanwhile, and hang up on nobody: a half-open connection."""
        thaws = threading.Event()
        event = ApplicationEvent("call")
        event.function, event.result = thaws.wait, concurrent.futures.Future()
        self._calls.trigger(event)
        try:
            yield
        finally:
            thaws.set()
            event.result.result(ANSWERS_WITHIN_S)

    def drop_connections(self) -> None:
        """End all connections without a word."""
        self._call(self._drop_connections)

    def drop_links(self) -> None:
        """Detach those who receive, as Azure does with links that idle."""
        self._call(self._drop_links)

    def connections(self) -> int:
        """Return how many there are."""
        return self._call(lambda: len(self._connections))

    def consumers(self, queue: str) -> int:
        """Return how many links receive from a queue."""
        return self._call(lambda: sum(_address(link) == queue for link in self._consumers))

    # --- queues -----------------------------------------------------------------------------------

    def _now(self) -> float:
        return time.time() + self.ahead_s

    def _queue(self, name: str) -> Queue:
        return self._queues.setdefault(name, Queue(name))

    def _enqueue(self, name: str, message: Message | str | bytes) -> None:
        number = next(self._numbers)
        if not isinstance(message, Message):
            content = message.encode() if isinstance(message, str) else message
            message = Message(body=content, inferred=True, id=f"m{number}")
        queue = self._queue(name)
        queue.counts["in"] += 1
        queue.ready.append(Stored(message, number, self._now()))

    def _deliver(self, name: str) -> None:
        queue = self._queue(name)
        for link in [link for link in self._consumers if _address(link) == name]:
            while link.credit > 0 and queue.ready:
                self._send(link, queue, queue.ready.popleft())
            if link.drain_mode:
                link.drained()

    def _send(self, link: Any, queue: Queue, stored: Stored) -> None:
        token = uuid.uuid4()
        lock = Lock(stored, self._now() + self.lock_s, queue)
        message = stored.message
        message.delivery_count = stored.deliveries
        message.annotations = {
            symbol("x-opt-enqueued-time"): timestamp(int(stored.enqueued * 1000)),
            symbol("x-opt-locked-until"): timestamp(int(lock.until * 1000)),
            symbol("x-opt-sequence-number"): stored.number,
        }
        delivery = link.delivery(token.bytes_le)
        link.send(message.encode())
        link.advance()
        if link.remote_snd_settle_mode == Link.SND_SETTLED:  # receive and delete
            delivery.settle()
            queue.counts["completed"] += 1
            return
        delivery.token = token
        queue.locks[token] = lock

    def _lock(self, token: uuid.UUID) -> Lock | None:
        locks = (queue.locks.get(token) for queue in self._queues.values())
        return next((lock for lock in locks if lock is not None), None)

    def _settle(self, token: uuid.UUID, how: str, reason: str = "", description: str = "") -> bool:
        """Settle a locked message; return False where the lock is lost."""
        lock = self._lock(token)
        if lock is not None and self.refused_settlements > 0:
            self.refused_settlements -= 1
            self._give_back(token, lock, "expired")
            return False
        if lock is None:
            return False
        if how == "completed":
            del lock.queue.locks[token]
            lock.queue.counts[how] += 1
        elif how == "dead-lettered":
            del lock.queue.locks[token]
            self._bury(lock.queue, lock.stored, reason, description)
        else:
            self._give_back(token, lock, how)
        return True

    def _give_back(self, token: uuid.UUID, lock: Lock, how: str) -> None:
        queue, stored = lock.queue, lock.stored
        del queue.locks[token]
        queue.counts[how] += 1
        stored.deliveries += how != "released"
        if stored.deliveries >= self.max_deliveries:
            self._bury(queue, stored, "MaxDeliveryCountExceeded", "delivered too often")
        else:
            queue.ready.appendleft(stored)
            self._deliver(queue.name)

    def _bury(self, queue: Queue, stored: Stored, reason: str, description: str) -> None:
        queue.counts["dead-lettered"] += 1
        message = stored.message
        message.properties = {
            **(message.properties or {}),
            "DeadLetterReason": reason,
            "DeadLetterErrorDescription": description,
        }
        self._enqueue(queue.name + DEAD_LETTERS, message)
        self._deliver(queue.name + DEAD_LETTERS)

    def _expire(self, queue: Queue, now: float) -> None:
        for token, lock in list(queue.locks.items()):
            if lock.until <= now:
                self._give_back(token, lock, "expired")

    # --- the protocol -----------------------------------------------------------------------------

    def on_start(self, event: Any) -> None:
        self._container = event.container
        event.container.selectable(self._calls)
        self._acceptor = event.container.listen(f"127.0.0.1:{self.port}")
        self.port = self._acceptor._selectable._delegate.getsockname()[1]
        self._ticking = event.container.schedule(0.02, self)
        self._started.set_result(None)

    def on_timer_task(self, event: Any) -> None:
        for queue in list(self._queues.values()):
            self._expire(queue, self._now())
        self._ticking = event.container.schedule(0.02, self)

    def on_connection_opening(self, event: Any) -> None:
        self._connections.append(event.connection)

    def on_link_opening(self, event: Any) -> None:
        link = event.link
        link.source.copy(link.remote_source)
        link.target.copy(link.remote_target)
        link.rcv_settle_mode = link.remote_rcv_settle_mode
        link.snd_settle_mode = link.remote_snd_settle_mode
        if link.is_sender:
            self._consumers.append(link)
        else:
            link.max_message_size = 64 * 1024 * 1024
            link.flow(100)

    def on_link_flow(self, event: Any) -> None:
        if event.link.is_sender and event.link.state & Endpoint.LOCAL_ACTIVE:
            self._deliver(_address(event.link))

    def on_link_closed(self, event: Any) -> None:
        self._forget(lambda link: link == event.link)

    on_link_closing = on_link_closed
    on_link_error = on_link_closed  # proton logs it otherwise

    def on_session_closing(self, event: Any) -> None:
        self._forget(lambda link: link.session == event.session)

    def on_transport_closed(self, event: Any) -> None:
        self._gone(event.connection)

    def on_connection_closing(self, event: Any) -> None:
        self._gone(event.connection)

    def on_transport_error(self, event: Any) -> None:
        """Say nothing of it: proton's own method logs it."""

    def _gone(self, connection: Any) -> None:
        self._forget(lambda link: link.connection == connection)
        if connection in self._connections:
            self._connections.remove(connection)

    def _forget(self, is_gone: Callable[[Any], bool]) -> None:
        self._consumers = [link for link in self._consumers if not is_gone(link)]

    def on_delivery(self, event: Any) -> None:
        delivery = event.delivery
        if event.link.is_sender:
            if delivery.updated:
                self._answer_settlement(delivery)
        elif delivery.readable and not delivery.partial:
            content = event.link.recv(delivery.pending)
            event.link.advance()
            event.link.flow(1)
            self._take(event.link, delivery, content)

    def _take(self, link: Any, delivery: Any, content: bytes) -> None:
        message = Message()
        message.decode(content)
        address = _address(link)
        if address == CBS:
            _accept(delivery)
            self._answer(link, message, self._check_token(), prefix="status-")
        elif address.endswith(MANAGEMENT):
            _accept(delivery)
            self._manage(link, message)
        elif self.busy > 0:
            self.busy -= 1
            _reject(delivery, SERVER_BUSY, "try again")
        else:
            self._enqueue(address, message)
            _accept(delivery)
            self._deliver(address)

    def _check_token(self) -> tuple[int, str]:
        return (401, "the token is not accepted") if self.refuses_tokens else (202, "Accepted")

    def _answer_settlement(self, delivery: Any) -> None:
        token = getattr(delivery, "token", None)
        if token is None:
            delivery.settle()
            return
        state, remote = delivery.remote_state, delivery.remote
        how = {
            Delivery.ACCEPTED: "completed",
            Delivery.REJECTED: "dead-lettered",
            Delivery.MODIFIED: "abandoned",
        }.get(state, "released")
        delivery.token = None
        details = (remote.condition.info or {}) if state == Delivery.REJECTED else {}
        reason = details.get("DeadLetterReason", "")
        if self._settle(token, how, reason, details.get("DeadLetterErrorDescription", "")):
            delivery.update(state)
            delivery.settle()
        else:
            _reject(delivery, LOCK_LOST, "the lock is lost")

    def _manage(self, link: Any, request: Message) -> None:
        operation = request.properties["operation"]
        tokens = list(getattr(request.body.get("lock-tokens"), "elements", ()))
        if operation == "com.microsoft:renew-lock":
            self._renew(link, request, tokens[0])
        elif operation == "com.microsoft:update-disposition":
            how = {"completed": "completed", "suspended": "dead-lettered"}.get(
                request.body["disposition-status"], "abandoned"
            )
            reason = request.body.get("deadletter-reason", "")
            description = request.body.get("deadletter-description", "")
            if self._settle(tokens[0], how, reason, description):
                self._answer(link, request, (200, "OK"))
            else:
                self._answer(link, request, (410, "the lock is lost"), condition=LOCK_LOST)
        else:
            self._answer(link, request, (501, f"no {operation} here"))

    def _renew(self, link: Any, request: Message, token: uuid.UUID) -> None:
        lock = self._lock(token)
        if lock is None:
            self._answer(link, request, (410, "the lock is lost"), condition=LOCK_LOST)
            return
        lock.until = self._now() + self.lock_s
        lock.queue.counts["renewed"] += 1
        until = timestamp(int(lock.until * 1000))
        body = {"expirations": Array(UNDESCRIBED, Data.TIMESTAMP, until)}
        self._answer(link, request, (200, "OK"), body)

    def _answer(
        self,
        link: Any,
        request: Message,
        status: tuple[int, str],
        body: Any = None,
        *,
        prefix: str = "status",
        condition: str | None = None,
    ) -> None:
        code, description = (
            ("code", "description")
            if prefix == "status-"
            else (
                "Code",
                "Description",
            )
        )
        properties: dict[str, Any] = {
            prefix + code: int32(status[0]),
            prefix + description: status[1],
        }
        if condition is not None:
            properties["errorCondition"] = symbol(condition)
        answer = Message(body=body, correlation_id=request.id, properties=properties)
        for consumer in self._consumers:
            same = consumer.connection == link.connection and _address(consumer) == _address(link)
            if same and consumer.session == link.session:
                consumer.send(answer).settle()
                return

    # --- faults -----------------------------------------------------------------------------------

    def _drop_connections(self) -> None:
        for connection in list(self._connections):
            transport = connection.transport
            selectable = getattr(transport, "_selectable", None)
            self._gone(connection)
            if selectable is not None:
                transport.close_tail()
                transport.close_head()
                selectable.terminate()
                selectable._transport = None
                transport._selectable = None
                selectable.update()

    def _drop_links(self) -> None:
        for link in self._consumers:
            if not _address(link).startswith("$") and not _address(link).endswith(MANAGEMENT):
                link.condition = Condition("amqp:link:detach-forced", "idle", {"why": "test"})
                link.close()
        self._forget(lambda link: not link.state & Endpoint.LOCAL_ACTIVE)


def _address(link: Any) -> str:
    """Return the name of a link's queue or node, of `amqps://host:port/queue` or `queue`."""
    terminus = link.remote_source if link.is_sender else link.remote_target
    address = terminus.address or ""
    return urlsplit(address).path.lstrip("/") if "://" in address else address


def _accept(delivery: Any) -> None:
    delivery.update(Delivery.ACCEPTED)
    delivery.settle()


def _reject(delivery: Any, condition: str, description: str) -> None:
    # The SDK hangs where one of the three fields is missing.
    delivery.local.condition = Condition(condition, description, {"why": "test"})
    delivery.update(Delivery.REJECTED)
    delivery.settle()


def _text(body: Any) -> str:
    return bytes(body).decode() if isinstance(body, (bytes, memoryview)) else str(body)


@contextlib.contextmanager
def running_broker(lock_s: float = 30.0, max_deliveries: int = 100) -> Iterator[Broker]:
    """Run a broker in a thread of its own, with empty queues."""
    broker = Broker(lock_s, max_deliveries)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


def main() -> None:
    """Run a broker in this process until its standard input ends."""
    with running_broker() as broker:
        print(broker.connection_string, flush=True)
        for line in sys.stdin:
            name, _, count = line.strip().partition("=")
            broker.put(name, *(f"message {number}" for number in range(int(count or 0))))
            print(json.dumps(broker.account(name)), flush=True)


if __name__ == "__main__":
    main()
