"""AsyncServiceBusHandler: the real SDK, and a broker of ours that speaks AMQP with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from foundry_log.context import bound_fields
from foundry_log.error_tracker import ErrorTracker
from foundry_log.jsonl import read_jsonl
from foundry_log.metrics import MetricsLogger
from foundry_log.services.bus_connection import BusConnection
from foundry_log.services.model_errors import ContentFilterError
from foundry_log.services.observing import Observer
from foundry_log.services.service_bus import (
    AsyncServiceBusHandler,
    RejectMessage,
    RetryLater,
    UndecodableError,
    UnsentError,
)

for package in ("azure.servicebus", "azure.identity", "proton"):
    pytest.importorskip(
        package, reason="needs test-services: pip install 'foundry_log[test-services]'"
    )

from azure.servicebus import ServiceBusMessage  # noqa: E402 - behind the skip

from tests.amqp_broker import SECRET, Broker, running_broker  # noqa: E402 - behind the skip
from tests.event_loops import in_loop  # noqa: E402

pytestmark = [pytest.mark.unit, pytest.mark.services]

DEADLINE_S = 60
LOGGER = "foundry_log.services.service_bus"
LOCK_LOST = "the lock on a message is lost: it may be delivered again"
NOWHERE = (
    f"Endpoint=sb://127.0.0.1:1;SharedAccessKeyName=k;SharedAccessKey={SECRET};"
    "UseDevelopmentEmulator=true;"
)
"""A bus that nobody listens for."""


@pytest.fixture
def broker() -> Iterator[Broker]:
    with running_broker() as broker:
        yield broker


@pytest.fixture(autouse=True)
def no_bus_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVICE_BUS_NAMESPACE", "SERVICE_BUS_CONNECTION_STRING"):
        monkeypatch.delenv(name, raising=False)


def losing_connections(test: Any) -> Any:
    """Let a test lose connections: the SDK leaves their sockets to the garbage collector."""
    ignored = pytest.mark.filterwarnings("ignore::ResourceWarning")(test)
    return pytest.mark.usefixtures("loses_connections")(ignored)


async def upper(text: str) -> str:
    """A processor."""
    return text.upper()


async def no_result(text: str) -> None:
    """A processor without a result."""


def handler_of(
    processor: Callable[[str], Any] = upper,
    bus: Broker | str = NOWHERE,
    **options: Any,
) -> AsyncServiceBusHandler:
    """A handler from "in" to "out" that waits no longer than it has to."""
    defaults = {
        "connection_string": bus if isinstance(bus, str) else bus.connection_string,
        "at_least_once": True,
        "retry_delay": 0,
        "max_wait_time": 0.5,
        "work_pause_s": 0,
    }
    return AsyncServiceBusHandler(processor, "in", "out", **{**defaults, **options})


@contextlib.asynccontextmanager
async def running(handler: AsyncServiceBusHandler) -> AsyncIterator[asyncio.Task[None]]:
    """Run a handler, and stop it."""
    task = asyncio.create_task(handler.run())
    try:
        yield task
    finally:
        handler.stop()
        await task


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so; the test's deadline is the limit."""
    while not condition():
        await asyncio.sleep(0.01)


def said(caplog: pytest.LogCaptureFixture, text: str) -> list[logging.LogRecord]:
    """The handler's records whose message is `text`."""
    return [r for r in caplog.records if r.name == LOGGER and r.getMessage() == text]


# --- setting up -----------------------------------------------------------------------------------


def test_a_new_handler_is_at_rest() -> None:
    """Nothing is connected before it is needed."""
    handler = handler_of()
    assert not handler.running
    assert handler.sleep_seconds == 4
    assert handler.total_processed_messages == 0
    assert (handler.in_queue_name, handler.out_queue_name) == ("in", "out")
    assert handler.fully_qualified_namespace == "127.0.0.1:1"


def test_the_defaults_are_those_of_the_contract() -> None:
    """Positions and numbers are promised."""
    handler = AsyncServiceBusHandler(upper, "in", "out", "name.servicebus.windows.net")
    assert (handler.max_retries, handler.retry_delay) == (5, 3.0)
    assert (handler.max_wait_time, handler.message_batch_size) == (3.0, 1)
    assert handler.fully_qualified_namespace == "name.servicebus.windows.net"


def test_the_environment_tells_the_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """As services are set up."""
    monkeypatch.setenv("SERVICE_BUS_NAMESPACE", "name.servicebus.windows.net")
    handler = AsyncServiceBusHandler(upper, "in", "out")
    assert handler.fully_qualified_namespace == "name.servicebus.windows.net"


def test_the_environment_tells_the_connection_string(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given counts before it."""
    monkeypatch.setenv("SERVICE_BUS_CONNECTION_STRING", NOWHERE)
    assert AsyncServiceBusHandler(upper, "in", "out").fully_qualified_namespace == "127.0.0.1:1"
    given = AsyncServiceBusHandler(upper, "in", "out", "name.servicebus.windows.net")
    assert given.fully_qualified_namespace == "name.servicebus.windows.net"


def test_a_missing_address_names_all_that_would_help() -> None:
    """Two arguments and two variables."""
    with pytest.raises(ValueError, match="no bus to connect to") as caught:
        AsyncServiceBusHandler(upper, "in", "out")
    for name in (
        "fully_qualified_namespace",
        "connection_string",
        "SERVICE_BUS_NAMESPACE",
        "SERVICE_BUS_CONNECTION_STRING",
    ):
        assert name in str(caught.value)


def test_a_broken_connection_string_is_not_quoted() -> None:
    """Not in the error either, nor in what led to it."""
    with pytest.raises(ValueError, match="connection_string is none") as caught:
        handler_of(bus=f"Endpoint=nonsense;SharedAccessKey={SECRET}")
    assert SECRET not in repr(caught.value)
    assert caught.value.__suppress_context__


def test_a_connection_string_of_one_queue_is_refused() -> None:
    """There are two to connect to."""
    with pytest.raises(ValueError, match="for the queue 'in' alone: take that of the namespace"):
        handler_of(bus=f"{NOWHERE}EntityPath=in")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_retries", 0),
        ("retry_delay", -1),
        ("max_wait_time", 0),
        ("message_batch_size", 0),
        ("max_deliveries", 0),
        ("concurrency", 0),
        ("stop_timeout_s", float("nan")),
        ("work_pause_s", -0.1),
        ("remembered_messages", -1),
        ("outage_patience_s", -1),
        ("message_batch_size", 1.5),
        ("max_retries", 2.0),
        ("concurrency", True),
        ("max_deliveries", float("inf")),
        ("max_wait_time", float("inf")),
        ("retry_delay", float("inf")),
    ],
)
def test_a_number_out_of_its_range_is_named(field: str, value: float) -> None:
    """With its value."""
    with pytest.raises(ValueError, match=f"{field}={value!r} must be "):
        handler_of(**{field: value})


@pytest.mark.parametrize("name", ["", "  ", None])
def test_a_queue_needs_a_name(name: Any) -> None:
    """Both do."""
    with pytest.raises(ValueError, match="in_queue_name="):
        AsyncServiceBusHandler(upper, name, "out", "namespace")
    with pytest.raises(ValueError, match="out_queue_name="):
        AsyncServiceBusHandler(upper, "in", name, "namespace")


def test_a_processor_has_to_be_a_function() -> None:
    """It is said at once, and not with the first message."""
    with pytest.raises(TypeError, match="processor_function='text' must be a function"):
        handler_of("text")  # type: ignore[arg-type]


def test_without_the_sdk_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name of the extra."""
    monkeypatch.setitem(sys.modules, "azure.servicebus", None)
    with pytest.raises(ImportError, match=r"pip install 'foundry_log\[servicebus\]'"):
        handler_of()


def test_no_repr_holds_a_secret() -> None:
    """Host and queues are enough."""
    handler = handler_of()
    assert repr(handler) == "<AsyncServiceBusHandler 127.0.0.1:1: in to out>"
    assert SECRET not in repr(handler.__dict__)


# --- processing one message -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "some text",
        b"some text",
        (part for part in (b"some ", b"text")),
        [b"some ", b"text"],
        ServiceBusMessage("some text").body,
    ],
    ids=["string", "bytes", "generator", "list", "of the SDK"],
)
@in_loop
async def test_the_processor_gets_the_body_as_text(body: Any) -> None:
    """Whatever kind it is of."""
    seen: list[str] = []
    message = SimpleNamespace(body=body, message_id=b"m1")
    await handler_of(seen.append).process_message(message)
    assert seen == ["some text"]


@in_loop
async def test_a_plain_function_runs_in_a_thread_with_the_context() -> None:
    """So it may block, and its records carry the fields of the message."""
    from foundry_log.context import bound

    seen: list[Any] = []

    def processor(text: str) -> None:
        seen.extend((threading.current_thread(), dict(bound_fields())))

    with bound(message_id="m7"):
        await handler_of(processor).process_message(SimpleNamespace(body="text"))
    assert seen[0] is not threading.current_thread()
    assert seen[1] == {"message_id": "m7"}


@in_loop
async def test_an_awaitable_of_a_plain_function_is_awaited() -> None:
    """A lambda over a coroutine function, or an object that is called."""
    seen: list[str] = []

    async def processor(text: str) -> None:
        seen.append(text)

    await handler_of(lambda text: processor(text)).process_message(SimpleNamespace(body="text"))
    assert seen == ["text"]


@in_loop
async def test_what_the_processor_raises_is_raised() -> None:
    """`process_message` settles nothing, and hides nothing."""

    async def processor(text: str) -> None:
        raise KeyError(text)

    with pytest.raises(KeyError, match="text"):
        await handler_of(processor).process_message(SimpleNamespace(body="text"))


@pytest.mark.parametrize("error", [StopIteration(), asyncio.CancelledError()])
@in_loop
async def test_what_a_future_cannot_hold_is_an_error_like_any_other(error: BaseException) -> None:
    """A stop of some iteration does not stop the handler."""

    def processor(text: str) -> None:
        raise error

    with pytest.raises(RuntimeError, match=f"the processor raised {type(error).__name__}"):
        await handler_of(processor).process_message(SimpleNamespace(body="text"))


@in_loop
async def test_an_undecodable_body_does_not_reach_the_processor() -> None:
    """It is an error of its own."""
    with pytest.raises(UndecodableError):
        await handler_of().process_message(SimpleNamespace(body=b"\xff"))


@in_loop
async def test_a_result_that_cannot_be_sent_is_an_error() -> None:
    """Which says where it should have gone."""
    async with handler_of(max_retries=1) as handler:
        with pytest.raises(UnsentError, match="out does not take it"):
            await handler.process_message(SimpleNamespace(body="text"))


@in_loop
async def test_a_loop_goes_on_while_a_plain_function_works(broker: Broker) -> None:
    """The function waits for what only the loop can give it."""
    given = threading.Event()
    waits = threading.Event()

    def processor(text: str) -> str:
        waits.set()
        return "given" if given.wait(DEADLINE_S) else "never"

    broker.put("in", "text")
    async with running(handler_of(processor, broker)):
        await until(waits.is_set)
        given.set()
        await until(lambda: broker.bodies("out") == ["given"])


# --- sending --------------------------------------------------------------------------------------


@in_loop
async def test_send_message_sends_text_as_it_is_and_the_rest_as_json(broker: Broker) -> None:
    """Over one connection, which the end of `async with` closes."""
    async with handler_of(bus=broker) as handler:
        sent = [await handler.send_message(message) for message in ("text", {"a": [1, None]}, "")]
        assert broker.connections() == 1
    assert sent == [True, True, True]
    assert broker.bodies("out") == ["text", '{"a":[1,null]}', ""]
    assert len({message.id for message in broker.messages("out")}) == 3
    assert broker.connections() == 0


@in_loop
async def test_what_has_no_json_is_not_sent(caplog: pytest.LogCaptureFixture) -> None:
    """False and a record, and no exception."""
    assert await handler_of().send_message(object()) is False
    assert said(caplog, "a message could not be sent")


@in_loop
async def test_nothing_listening_is_false_after_the_attempts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each attempt but the last is a warning with its wait."""
    async with handler_of(max_retries=2) as handler:
        assert await handler.send_message("text") is False
    (warning,) = said(caplog, "a message is sent again after a wait")
    assert warning.attempt == 1  # type: ignore[attr-defined]
    assert 0.5 <= warning.wait_s <= 1  # type: ignore[attr-defined]
    assert len(said(caplog, "a message could not be sent")) == 1


@in_loop
async def test_a_busy_server_gets_the_message_later(broker: Broker) -> None:
    """Once, though it is asked more than once."""
    broker.busy = 1
    async with handler_of(bus=broker) as handler:
        assert await handler.send_message("text")
    assert broker.account("out")["in"] == 1


@losing_connections
@in_loop
async def test_a_lost_connection_is_made_anew(broker: Broker) -> None:
    """Between two messages."""
    async with handler_of(bus=broker) as handler:
        assert await handler.send_message("1")
        broker.drop_connections()
        assert await handler.send_message("2")
    assert broker.bodies("out") == ["1", "2"]


@in_loop
async def test_a_refused_token_is_a_failure_without_the_key(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Of all that is logged, by whomever."""
    caplog.set_level(logging.DEBUG)
    broker.refuses_tokens = True
    async with handler_of(bus=broker, max_retries=1) as handler:
        assert await handler.send_message("text") is False
    (failure,) = said(caplog, "a message could not be sent")
    assert "UnsentError" in str(failure.exc_info)
    assert SECRET not in caplog.text


class Credential:
    """One of the caller's, whose closing is not ours."""

    def __init__(self) -> None:
        self.closed = False

    async def get_token(self, *scopes: str, **options: Any) -> Any:
        raise AssertionError("nobody listens who could ask for a token")

    async def close(self) -> None:
        self.closed = True


@in_loop
async def test_a_credential_that_was_given_stays_open() -> None:
    """It may have other users."""
    credential = Credential()
    options = {"credential": credential, "max_retries": 1}
    async with AsyncServiceBusHandler(upper, "in", "out", "127.0.0.1", **options) as handler:
        assert await handler.send_message("text") is False
    assert not credential.closed


@in_loop
async def test_without_a_credential_there_is_the_default_one() -> None:
    """It is ours to close, and an open one would warn."""
    async with AsyncServiceBusHandler(upper, "in", "out", "127.0.0.1", 1) as handler:
        assert await handler.send_message("text") is False


# --- at least once --------------------------------------------------------------------------------


@in_loop
async def test_a_result_is_sent_before_its_message_is_completed(broker: Broker) -> None:
    """It says which message it answers, and its id is the same whenever it is sent."""
    broker.put("in", "text")
    broker.refused_settlements = 1
    async with running(handler_of(bus=broker)):
        await until(lambda: broker.account("in").get("completed") == 1)
    (result,) = broker.messages("out")
    assert (result.correlation_id, bytes(result.body)) == ("m1", b"TEXT")
    assert result.id == str(uuid.uuid5(uuid.NAMESPACE_URL, "in/m1"))


@pytest.mark.parametrize("result", [None, "", {}, 0, False])
@in_loop
async def test_a_falsy_result_is_not_sent(result: Any) -> None:
    """Where nobody listens, sending would fail."""
    assert await handler_of(lambda _: result).process_message(SimpleNamespace(body="")) == result


@in_loop
async def test_the_processors_records_carry_the_message(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Id, queue, delivery, and what it is correlated with."""
    seen: list[dict[str, Any]] = []

    async def processor(text: str) -> None:
        seen.append(dict(bound_fields()))

    caplog.set_level(logging.INFO, LOGGER)
    broker.put("in", "text")
    async with running(handler_of(processor, broker)):
        await until(lambda: bool(said(caplog, "message processed")))
    assert seen == [{"message_id": "m1", "queue": "in", "delivery_count": 1}]
    (record,) = said(caplog, "message processed")
    assert record.status == "processed"  # type: ignore[attr-defined]
    assert record.latency_s > 0  # type: ignore[attr-defined]
    assert record.queue_wait_s >= 0  # type: ignore[attr-defined]


@in_loop
async def test_a_poison_message_becomes_a_dead_letter(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """With the class of its error, and nothing of its body; the others are processed."""

    async def processor(text: str) -> str:
        if text == "poison":
            raise ValueError(f"cannot read {text}")
        return text

    broker.put("in", "poison", "good")
    async with running(handler_of(processor, broker, max_deliveries=2)) as task:
        await until(lambda: broker.account("in").get("dead-lettered") == 1)
        await until(lambda: broker.bodies("out") == ["good"])
        assert not task.done()
    assert broker.account("in")["abandoned"] == 1
    assert broker.dead_letters("in") == [
        ("poison", "processing failed", "ValueError, in delivery 2")
    ]
    assert len(said(caplog, "a message could not be processed")) == 2


@in_loop
async def test_a_rejected_message_becomes_a_dead_letter_at_once(broker: Broker) -> None:
    """With the reason of the processor."""

    async def processor(text: str) -> None:
        raise RejectMessage("no customer", "number 7")

    broker.put("in", "text")
    async with running(handler_of(processor, broker)):
        await until(lambda: broker.account("in").get("dead-lettered") == 1)
    assert broker.dead_letters("in") == [("text", "no customer", "number 7")]
    assert "abandoned" not in broker.account("in")


@in_loop
async def test_hostile_bodies_neither_stop_nor_block(broker: Broker) -> None:
    """Invalid UTF-8 is a dead letter; empty ones and large ones are processed."""
    from proton import Message

    seen: list[int] = []

    async def processor(text: str) -> None:
        seen.append(len(text))

    undecodable = Message(body=b"\xff", inferred=True, id="bad")
    broker.put("in", undecodable, "", "x" * 1024 * 1024, Message(body={"a": 1}))
    async with running(handler_of(processor, broker, message_batch_size=10)):
        await until(lambda: broker.account("in").get("completed") == 3)
    assert sorted(seen) == [0, 7, 1024 * 1024]
    letters = broker.messages("in/$DeadLetterQueue")
    assert [letter.properties["DeadLetterReason"] for letter in letters] == ["undecodable body"]


@in_loop
async def test_a_renewed_lock_outlives_its_time() -> None:
    """Processing that takes longer than a lock is done once."""
    calls = Counter[str]()
    with running_broker(lock_s=1.0) as broker:

        async def processor(text: str) -> None:
            calls[text] += 1
            await until(lambda: broker.account("in").get("renewed", 0) >= 3)

        broker.put("in", "text", "waits its turn")
        async with running(handler_of(processor, broker, message_batch_size=2)):
            await until(lambda: broker.account("in").get("completed") == 2)
        assert calls == {"text": 1, "waits its turn": 1}
        assert "expired" not in broker.account("in")


@in_loop
async def test_a_lost_lock_is_said_and_the_message_not_processed_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its id is remembered: delivered again it is completed."""
    calls = Counter[str]()
    with running_broker(lock_s=1.0) as broker:

        async def processor(text: str) -> str:
            calls[text] += 1
            broker.expire_locks("in")
            await until(lambda: bool(said(caplog, LOCK_LOST)))
            return text

        broker.put("in", "text")
        async with running(handler_of(processor, broker)):
            await until(lambda: broker.account("in").get("completed") == 1)
        assert calls == {"text": 1}
        assert broker.bodies("out") == ["text"]


@in_loop
async def test_a_message_whose_completion_failed_is_completed_as_a_duplicate(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """And then forgotten."""
    caplog.set_level(logging.INFO, LOGGER)
    calls: list[str] = []
    broker.refused_settlements = 1
    broker.put("in", "text")
    async with running(handler_of(calls.append, broker)):
        await until(lambda: bool(said(caplog, "message duplicate")))
    assert calls == ["text"]
    assert len(said(caplog, "message uncompleted")) == 1
    assert len(said(caplog, "a message could not be completed")) == 1
    assert broker.account("in")["completed"] == 1


@in_loop
async def test_messages_without_an_id_are_not_taken_for_duplicates(broker: Broker) -> None:
    """Each is processed, as often as it is delivered."""
    from proton import Message

    calls: list[str] = []
    broker.refused_settlements = 1
    broker.put("in", Message(body=b"1", inferred=True), Message(body=b"2", inferred=True))
    async with running(handler_of(calls.append, broker)):
        await until(lambda: broker.account("in").get("completed") == 2)
    assert sorted(calls) == ["1", "1", "2"]


@in_loop
async def test_an_unsent_result_is_no_fault_of_the_message(broker: Broker) -> None:
    """It is delivered again, however often, and never a dead letter."""
    broker.busy = 1_000
    broker.put("in", "text")
    async with running(handler_of(bus=broker, max_retries=1, max_deliveries=1)):
        await until(lambda: broker.account("in").get("abandoned", 0) >= 1)
        broker.busy = 0
        await until(lambda: broker.bodies("out") == ["TEXT"])
        await until(lambda: broker.account("in").get("completed") == 1)
    assert "dead-lettered" not in broker.account("in")


@in_loop
async def test_500_messages_are_processed_once_each(broker: Broker) -> None:
    """All are accounted for, and no more than eight were under way."""
    texts = [f"text {number}" for number in range(500)]
    calls = Counter[str]()
    at_once = most_at_once = 0

    async def processor(text: str) -> str:
        nonlocal at_once, most_at_once
        calls[text] += 1
        at_once += 1
        most_at_once = max(most_at_once, at_once)
        await asyncio.sleep(0)
        at_once -= 1
        return text

    broker.put("in", *texts)
    handler = handler_of(processor, broker, message_batch_size=50, concurrency=8)
    async with running(handler):
        await until(lambda: broker.account("in").get("completed") == 500)
    assert calls == Counter(texts)
    assert sorted(broker.bodies("out")) == sorted(texts)
    assert handler.total_processed_messages == 500
    assert 1 < most_at_once <= 8
    assert broker.account("in") == {"in": 500, "completed": 500, "ready": 0, "locked": 0}


# --- faults that are not the message's ------------------------------------------------------------


@in_loop
async def test_an_outage_is_waited_out_in_hand(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Each kind of it; the delivery is not charged, and each wait is one warning."""
    outages: dict[str, Exception] = {
        "later": RetryLater("the database is down, password=hunter22"),
        "gone": ConnectionRefusedError("no"),
        "slow": asyncio.TimeoutError(),
        "denied": ValueError("the limit would be exceeded"),
        "no budget server": ValueError("Client error: connection refused"),
    }
    ahead = dict(outages)

    async def processor(text: str) -> None:
        if text in ahead:
            raise ahead.pop(text)

    broker.put("in", *outages)
    at_once = {"message_batch_size": 5, "concurrency": 5}
    async with running(handler_of(processor, broker, max_deliveries=1, **at_once)):
        await until(lambda: broker.account("in").get("completed") == 5)
    assert broker.account("in") == {"in": 5, "completed": 5, "ready": 0, "locked": 0}
    waits = said(caplog, "a message is tried again after a wait")
    assert len(waits) == 5
    assert {wait.reason for wait in waits} >= {  # type: ignore[attr-defined]
        "RetryLater: the database is down, password=[redacted]",
        "ValueError: Client error: connection refused",
    }
    assert all(0.5 <= wait.wait_s <= 1 and not wait.exc_info for wait in waits)  # type: ignore[attr-defined]


@in_loop
async def test_the_lock_is_renewed_while_an_outage_is_waited_out() -> None:
    """The message stays in hand, longer than its lock."""
    with running_broker(lock_s=1.0) as broker:

        async def processor(text: str) -> None:
            if broker.account("in").get("renewed", 0) < 3:
                raise RetryLater("soon")

        broker.put("in", "text")
        async with running(handler_of(processor, broker)):
            await until(lambda: broker.account("in").get("completed") == 1)
        assert not {"expired", "abandoned"} & set(broker.account("in"))


@in_loop
async def test_an_outage_that_outlasts_the_patience_is_charged(broker: Broker) -> None:
    """It is tried a last time at the end of the patience; with none, once for each delivery."""
    calls: list[str] = []

    async def processor(text: str) -> None:
        calls.append(text)
        raise RetryLater("never")

    broker.put("in", "text")
    async with running(handler_of(processor, broker, outage_patience_s=0.1, max_deliveries=1)):
        await until(lambda: broker.account("in").get("dead-lettered") == 1)
    assert calls == ["text"] * 2
    broker.put("in", "none")
    async with running(handler_of(processor, broker, outage_patience_s=0, max_deliveries=1)):
        await until(lambda: broker.account("in").get("dead-lettered") == 2)
    assert calls == ["text", "text", "none"]
    assert broker.dead_letters("in")[0] == (
        "text",
        "processing failed",
        "RetryLater, in delivery 1",
    )


@in_loop
async def test_an_outage_is_not_waited_out_with_a_lock_that_is_lost() -> None:
    """Somebody else may have the message: it is tried again when it comes again."""
    deliveries: list[int] = []
    with running_broker(lock_s=0.5) as broker:

        async def processor(text: str) -> None:
            deliveries.append(bound_fields()["delivery_count"])
            if len(deliveries) == 1:
                broker.expire_locks("in")
                raise RetryLater("soon")

        broker.put("in", "text")
        async with running(handler_of(processor, broker)):
            await until(lambda: broker.account("in").get("completed") == 1)
    assert deliveries == [1, 2]


@in_loop
async def test_a_stop_ends_the_wait_of_an_outage(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """At once, and the message is given back."""
    caplog.set_level(logging.INFO, LOGGER)
    calls: list[str] = []

    def processor(text: str) -> None:
        calls.append(text)
        raise RetryLater("later")

    broker.put("in", "text")
    async with running(handler_of(processor, broker, retry_delay=1000, stop_timeout_s=1000)):
        await until(lambda: bool(said(caplog, "a message is tried again after a wait")))
    assert calls == ["text"]
    assert broker.account("in") == {"in": 1, "abandoned": 1, "ready": 1, "locked": 0}
    assert len(said(caplog, "message stopped")) == 1


@in_loop
async def test_what_a_content_filter_refuses_is_a_dead_letter_at_once(broker: Broker) -> None:
    """It would be refused again."""

    async def processor(text: str) -> None:
        raise ContentFilterError("prompt", ("hate",))

    broker.put("in", "text")
    async with running(handler_of(processor, broker)):
        await until(lambda: broker.account("in").get("dead-lettered") == 1)
    ((_, reason, description),) = broker.dead_letters("in")
    assert reason == "content filter"
    assert description == "the content filter stopped the prompt for hate: change the prompt"


@in_loop
async def test_a_dead_letter_is_an_error_unless_it_was_wanted(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody looks for those that nobody wanted."""

    async def processor(text: str) -> None:
        raise RejectMessage("wanted") if text == "wanted" else KeyError(text)

    broker.put("in", "wanted", "not wanted")
    async with running(handler_of(processor, broker, max_deliveries=1)):
        await until(lambda: broker.account("in").get("dead-lettered") == 2)
    letters = said(caplog, "a message becomes a dead letter")
    assert [(one.levelname, one.reason) for one in letters] == [  # type: ignore[attr-defined]
        ("WARNING", "wanted"),
        ("ERROR", "processing failed"),
    ]


class HardError(BaseException):
    """What `except Exception` does not catch."""


@pytest.mark.parametrize("kind", [asyncio.CancelledError, HardError])
@in_loop
async def test_no_error_of_a_processor_is_taken_for_a_stop(
    broker: Broker, caplog: pytest.LogCaptureFixture, kind: type[BaseException]
) -> None:
    """Such as that of a future which somebody else has cancelled."""

    async def processor(text: str) -> None:
        raise kind

    broker.put("in", "text")
    async with running(handler_of(processor, broker, max_deliveries=1)):
        await until(lambda: broker.account("in").get("dead-lettered") == 1)
    ((_, _, description),) = broker.dead_letters("in")
    assert description == f"{kind.__name__}, in delivery 1"
    assert len(said(caplog, "a message could not be processed")) == 1
    broker.put("in", "text")
    async with running(handler_of(processor, broker, at_least_once=False)):
        await until(lambda: bool(said(caplog, "message lost")))


@in_loop
async def test_another_message_of_the_same_id_is_processed(broker: Broker) -> None:
    """Senders may use an id twice; what was done is remembered with the queue's own number."""
    from proton import Message

    calls: list[str] = []
    broker.refused_settlements = 1
    broker.put("in", *(Message(body=body, inferred=True, id="k") for body in (b"1", b"2")))
    async with running(handler_of(calls.append, broker, message_batch_size=2)):
        await until(lambda: broker.account("in").get("completed") == 2)
    assert sorted(calls) == ["1", "2"]


@in_loop
async def test_a_message_whose_lock_is_lost_before_its_turn_is_left_to_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It comes again, and is processed once."""
    calls: list[str] = []
    with running_broker(lock_s=1.0) as broker:

        async def processor(text: str) -> None:
            calls.append(text)
            if text == "slow":
                broker.expire_lock("in", "second")
                await until(lambda: bool(said(caplog, LOCK_LOST)))

        broker.put("in", "slow", "second")
        handler = handler_of(processor, broker, message_batch_size=2)
        async with running(handler):
            await until(lambda: broker.account("in").get("completed") == 2)
    assert calls == ["slow", "second"]
    assert handler.total_processed_messages == 2
    assert not said(caplog, "message uncompleted")


@in_loop
async def test_a_lock_is_renewed_whatever_this_hosts_clock_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bus's is an hour ahead: by this host's there is time enough."""
    monkeypatch.setattr("foundry_log.services.held_message.RENEWS_BLINDLY_EACH_S", 0.2)
    calls: list[str] = []
    with running_broker(lock_s=1.0) as broker:
        broker.ahead_s = 3600.0

        async def processor(text: str) -> None:
            calls.append(text)
            await until(lambda: broker.account("in").get("renewed", 0) >= 6)

        broker.put("in", "text")
        async with running(handler_of(processor, broker)):
            await until(lambda: broker.account("in").get("completed") == 1)
        assert calls == ["text"]
        assert "expired" not in broker.account("in")


@in_loop
async def test_as_many_plain_functions_run_at_once_as_were_asked_for(broker: Broker) -> None:
    """However few threads the loop has of its own; each waits for all the others."""
    together = threading.Barrier(40)

    def processor(text: str) -> None:
        together.wait(DEADLINE_S / 2)

    broker.put("in", *map(str, range(40)))
    async with running(handler_of(processor, broker, message_batch_size=40, concurrency=40)):
        await until(lambda: broker.account("in").get("completed") == 40)


# --- at most once ---------------------------------------------------------------------------------


@in_loop
async def test_at_most_once_completes_before_it_processes(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """What fails then is lost, logged and counted."""
    completed: list[int] = []

    async def processor(text: str) -> None:
        completed.append(broker.account("in")["completed"])
        raise ValueError("no")

    broker.put("in", "text")
    handler = handler_of(processor, broker, at_least_once=False)
    async with running(handler):
        await until(lambda: handler.total_processed_messages == 1)
    assert completed == [1]
    assert said(caplog, "a message is lost: it was completed before it failed")
    assert "dead-lettered" not in broker.account("in")


@in_loop
async def test_at_most_once_does_not_process_what_it_cannot_complete(broker: Broker) -> None:
    """It comes again, and both deliveries are counted."""
    calls: list[str] = []
    broker.refused_settlements = 1
    broker.put("in", "text")
    handler = handler_of(calls.append, broker, at_least_once=False)
    async with running(handler):
        await until(lambda: handler.total_processed_messages == 2)
    assert calls == ["text"]


@in_loop
async def test_at_most_once_says_what_was_rejected(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """It cannot be a dead letter any more."""

    async def processor(text: str) -> str:
        if text == "bad":
            raise RejectMessage("no customer")
        return text

    broker.put("in", "bad", "good")
    handler = handler_of(processor, broker, at_least_once=False, message_batch_size=2)
    async with running(handler):
        await until(lambda: handler.total_processed_messages == 2)
    (record,) = said(caplog, "a message is rejected")
    assert record.reason == "no customer"  # type: ignore[attr-defined]
    assert broker.bodies("out") == ["good"]


# --- the loop -------------------------------------------------------------------------------------


@in_loop
async def test_an_empty_queue_is_looked_into_ever_more_seldom(broker: Broker) -> None:
    """One second longer each time, up to ten; and 1 s after work."""
    handler = handler_of(bus=broker, max_wait_time=0.05, work_pause_s=1)
    async with handler:
        waits = [await handler._round() for _ in range(8)]
        broker.put("in", "text")
        waits += [await handler._round() for _ in range(2)]
    assert waits == [5, 6, 7, 8, 9, 10, 10, 10, 1, 2]
    assert handler.sleep_seconds == 2


@in_loop
async def test_errors_in_a_row_wait_ever_longer(caplog: pytest.LogCaptureFixture) -> None:
    """About `retry_delay` at first, a minute at most; the cause is named once."""
    async with handler_of(retry_delay=3) as handler:
        first = await handler._round()
        await handler._round()
        later = [handler._after_failure(OSError()) for _ in range(10)]
    assert 2 <= first <= 4
    assert 30 <= later[-1] <= 60
    assert handler.sleep_seconds == 4
    named = [record.exc_info[0] for record in said(caplog, "no messages can be received")]  # type: ignore[index]
    assert [kind.__name__ for kind in named if kind] == ["ServiceBusConnectionError", "OSError"]


@in_loop
async def test_messages_that_fail_do_not_slow_down_those_behind_them(broker: Broker) -> None:
    """About `retry_delay` is waited each time, and no longer."""

    async def processor(text: str) -> None:
        raise KeyError

    broker.put("in", "text")
    async with handler_of(processor, broker, retry_delay=3, max_deliveries=100) as handler:
        waits = [await handler._round() for _ in range(6)]
    assert all(2 <= wait <= 4 for wait in waits)


@in_loop
async def test_run_says_when_it_begins_and_when_it_has_ended(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """From where, to where, how, and how many."""
    caplog.set_level(logging.INFO, LOGGER)
    broker.put("in", "text")
    async with running(handler_of(bus=broker, concurrency=3)):
        await until(lambda: broker.account("in").get("completed") == 1)
    (begun,) = said(caplog, "receiving messages")
    told = {"in_queue": "in", "out_queue": "out", "namespace": f"127.0.0.1:{broker.port}"}
    told |= {"at_least_once": True, "concurrency": 3}  # type: ignore[dict-item]
    assert told.items() <= vars(begun).items()
    (ended,) = said(caplog, "stopped receiving messages")
    assert ended.processed == 1  # type: ignore[attr-defined]


@in_loop
async def test_a_link_without_messages_is_opened_anew(broker: Broker) -> None:
    """A connection that has gone silent looks like an empty queue."""
    options = {"namespace": None, "connection_string": broker.connection_string}
    observer = Observer(logging.getLogger(LOGGER))
    rest = {"credential": None, "observer": observer}
    patient = BusConnection("in", "out", **options, **rest)
    hasty = BusConnection("in", "out", **options, **rest, reopens_after_s=0)
    for bus, is_kept in ((patient, True), (hasty, False)):
        await bus.receive(1, 0.05)
        assert (broker.consumers("in") == 1) is is_kept
        broker.put("in", "text")
        (message,) = await bus.receive(1, DEADLINE_S)
        assert broker.consumers("in") == 1
        await bus.complete(message)
        await bus.close()


@losing_connections
@in_loop
async def test_a_broker_that_was_gone_is_found_again(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """The handler runs on, and says when it is back."""
    caplog.set_level(logging.INFO, LOGGER)
    async with running(handler_of(bus=broker, max_wait_time=0.2)):
        broker.put("in", "before")
        await until(lambda: broker.account("in").get("completed") == 1)
        await asyncio.to_thread(broker.stop)
        broker.put("in", "meanwhile")
        await until(lambda: bool(said(caplog, "no messages can be received")))
        broker.start()
        await until(lambda: broker.bodies("out") == ["BEFORE", "MEANWHILE"])
        await until(lambda: bool(said(caplog, "messages can be received again")))
        await until(lambda: broker.account("in").get("completed") == 2)


@losing_connections
@in_loop
async def test_links_and_connections_that_are_dropped_lose_nothing() -> None:
    """In the middle of the work. What was locked then comes again, and is not processed again."""
    dropped: list[str] = []
    with running_broker(lock_s=2.0) as broker:

        async def processor(text: str) -> str:
            if text == "10" and not dropped:
                dropped.append(text)
                broker.drop_links()
            if text == "20" and len(dropped) == 1:
                dropped.append(text)
                broker.drop_connections()
            return text

        texts = [str(number) for number in range(30)]
        broker.put("in", *texts)
        async with running(handler_of(processor, broker, message_batch_size=4)):
            await until(lambda: broker.account("in").get("completed") == 30)
        assert sorted(broker.bodies("out")) == sorted(texts)
    assert dropped == ["10", "20"]


@in_loop
async def test_a_stop_lets_the_work_in_hand_be_finished(broker: Broker) -> None:
    """And links are closed behind it."""
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def processor(text: str) -> str:
        begun.set()
        await goes_on.wait()
        return text

    broker.put("in", "text")
    handler = handler_of(processor, broker)
    task = asyncio.create_task(handler.run())
    await begun.wait()
    assert handler.running
    handler.stop()
    handler.stop()
    assert not handler.running
    goes_on.set()
    await task
    assert broker.account("in") == {"in": 1, "completed": 1, "ready": 0, "locked": 0}
    assert broker.bodies("out") == ["text"]
    assert broker.connections() == 0


@in_loop
async def test_a_stop_abandons_what_takes_too_long(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """The processor is cancelled, and the message free for others."""
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def processor(text: str) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    broker.put("in", "text")
    async with running(handler_of(processor, broker, stop_timeout_s=0.1)):
        await begun.wait()
    assert cancelled.is_set()
    assert broker.account("in") == {"in": 1, "abandoned": 1, "ready": 1, "locked": 0}
    assert len(said(caplog, "message stopped")) == 1


@losing_connections
@in_loop
async def test_a_stop_does_not_wait_for_a_bus_that_does_not_answer(
    broker: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Locks that cannot be given back are counted, and left to expire."""
    monkeypatch.setattr("foundry_log.services.bus_letting_go.GIVES_BACK_WITHIN_S", 0.1)
    monkeypatch.setattr("foundry_log.services.bus_connection.CLOSES_WITHIN_S", 0.1)
    begun = Counter[str]()

    async def processor(text: str) -> None:
        begun[text] += 1
        await asyncio.Event().wait()

    broker.put("in", *"1234")
    at_once = {"message_batch_size": 4, "concurrency": 4}
    handler = handler_of(processor, broker, stop_timeout_s=0, **at_once)
    task = asyncio.create_task(handler.run())
    await until(lambda: begun.total() == 4)
    with broker.frozen():
        handler.stop()
        await task
    (kept,) = said(caplog, "messages are not given back, and stay locked until their locks expire")
    assert kept.count == 4  # type: ignore[attr-defined]


@in_loop
async def test_a_stop_does_not_wait_for_a_processor_that_goes_on(
    broker: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message is given back once, and what comes of it later settles nothing."""
    monkeypatch.setattr("foundry_log.services.bus_letting_go.CANCELS_WITHIN_S", 0.1)
    begun, over = asyncio.Event(), asyncio.Event()
    ended = asyncio.Event()

    async def processor(text: str) -> None:
        begun.set()
        while not over.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await over.wait()
        ended.set()

    broker.put("in", "text")
    try:
        async with running(handler_of(processor, broker, stop_timeout_s=0)):
            await begun.wait()
    finally:
        over.set()
    await ended.wait()
    told = "processors go on, though they are cancelled; their messages are given back"
    (stubborn,) = said(caplog, told)
    assert stubborn.count == 1  # type: ignore[attr-defined]
    assert broker.account("in") == {"in": 1, "abandoned": 1, "ready": 1, "locked": 0}


@in_loop
async def test_a_run_that_is_cancelled_twice_gives_back_what_it_has(broker: Broker) -> None:
    """The second one does not cut the first one's work short."""
    begun, cancelled, goes_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def processor(text: str) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
            await goes_on.wait()

    broker.put("in", *"123")
    task = asyncio.create_task(handler_of(processor, broker, message_batch_size=3).run())
    await begun.wait()
    task.cancel()
    await cancelled.wait()
    task.cancel()
    await asyncio.sleep(0)
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert broker.account("in") == {"in": 3, "abandoned": 3, "ready": 3, "locked": 0}
    assert broker.connections() == 0


@in_loop
async def test_what_is_being_sent_when_the_run_ends_is_sent_once(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """What comes later is not, and connects to nothing."""
    handler = handler_of(bus=broker)
    task = asyncio.create_task(handler.run())
    assert await handler.send_message("1")
    await until(lambda: broker.consumers("in") == 1)
    with broker.frozen():
        sending = asyncio.create_task(handler.send_message("2"))
        await until(lambda: handler._bus._sending.locked())
        handler.stop()
        later = asyncio.create_task(handler.send_message("3"))
        await until(lambda: handler._bus._is_closed)
    await task
    assert (await sending, await later) == (True, False)
    assert await handler.send_message("4") is False
    assert broker.bodies("out") == ["1", "2"]
    assert broker.connections() == 0
    assert not said(caplog, "a message is sent again after a wait")


@in_loop
async def test_a_stop_with_a_batch_in_hand_gives_back_what_is_not_begun(broker: Broker) -> None:
    """One of five is finished, and four are abandoned."""
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def processor(text: str) -> None:
        begun.set()
        await goes_on.wait()

    broker.put("in", *"12345")
    handler = handler_of(processor, broker, message_batch_size=5)
    async with running(handler):
        await begun.wait()
        handler.stop()
        goes_on.set()
    account = broker.account("in")
    assert account == {"in": 5, "completed": 1, "abandoned": 4, "ready": 4, "locked": 0}
    assert handler.total_processed_messages == 1


@in_loop
async def test_a_cancelled_run_gives_back_all_it_has(broker: Broker) -> None:
    """What is under way too, and links are closed."""
    begun = asyncio.Event()

    async def processor(text: str) -> None:
        begun.set()
        await asyncio.Event().wait()

    broker.put("in", *"12345")
    task = asyncio.create_task(handler_of(processor, broker, message_batch_size=5).run())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    account = broker.account("in")
    assert account == {"in": 5, "abandoned": 5, "ready": 5, "locked": 0}
    assert broker.connections() == 0


@in_loop
async def test_a_stop_while_it_waits_for_messages_leaves_none_locked(broker: Broker) -> None:
    """What arrives in that moment is not its own any more."""
    handler = handler_of(bus=broker, max_wait_time=50)
    async with running(handler):
        await until(lambda: broker.consumers("in") == 1)
    broker.put("in", "text")
    assert broker.account("in") == {"in": 1, "ready": 1, "locked": 0}


@in_loop
async def test_a_stop_ends_a_pause() -> None:
    """And the run with it."""
    handler = handler_of(retry_delay=1_000_000)
    async with running(handler):
        await until(lambda: handler._failures_in_a_row == 1)


@in_loop
async def test_a_stop_before_the_run_is_heard() -> None:
    """A signal may come early."""
    handler = handler_of()
    handler.stop()
    await handler.run()
    assert not handler.running


@in_loop
async def test_a_handler_runs_once_at_a_time() -> None:
    """A second run is a mistake, and the first one goes on."""
    async with handler_of() as handler:
        async with running(handler) as task:
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="it runs already"):
                await handler.run()
            assert not task.done()


# --- what is told, and what is not ----------------------------------------------------------------


@in_loop
async def test_each_message_is_a_line_of_metrics(broker: Broker, tmp_path: Path) -> None:
    """Numbers, with the fields of the message beside them; failures go to the tracker."""

    async def processor(text: str) -> str:
        if text == "bad":
            raise ValueError("no")
        return text

    tracker = ErrorTracker(logging.getLogger("test"), tmp_path)
    metrics = MetricsLogger("bus", tmp_path)
    with contextlib.closing(metrics), contextlib.closing(tracker):
        broker.put("in", "bad", "good")
        options = {"metrics": metrics, "errors": tracker, "max_deliveries": 1}
        handler = handler_of(processor, broker, message_batch_size=2, **options)
        async with running(handler):
            await until(lambda: handler.total_processed_messages == 2)
        lines = [line for line in read_jsonl(metrics.metrics_file) if "metrics" in line]
        assert [line["step"] for line in lines] == [1, 2]
        bad, good = (line["metrics"] for line in lines)
        assert (bad["failed"], bad["dead_lettered"], bad["sent"]) == (1, 1, 0)
        assert (good["failed"], good["dead_lettered"], good["sent"]) == (0, 0, 1)
        assert good["delivery_count"] == 1
        assert good["processing_s"] > 0
        assert good["queue_wait_s"] >= 0
        assert tracker.get_error_summary() == {"ValueError": 1}


@in_loop
async def test_no_record_holds_a_body_or_a_key(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """At DEBUG, of all loggers, the SDK's too, in success and failure."""
    caplog.set_level(logging.DEBUG)

    async def processor(text: str) -> str:
        if text == "the body bad":
            raise ValueError("no")
        return text

    broker.put("in", "the body good", "the body bad", b"the body \xff")
    async with running(handler_of(processor, broker, max_deliveries=1)):
        await until(lambda: broker.account("in").get("dead-lettered") == 2)
        await until(lambda: broker.account("in").get("completed") == 1)
    text = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    assert "the body" not in text
    assert SECRET not in text
    assert "message given up" in text


@in_loop
async def test_bodies_are_logged_where_it_is_asked_for(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """At DEBUG, with secrets blanked."""
    caplog.set_level(logging.DEBUG, LOGGER)
    broker.put("in", "the body, password=hunter22")
    async with running(handler_of(bus=broker, logs_bodies=True)):
        await until(lambda: broker.account("in").get("completed") == 1)
    bodies = [record.body for record in said(caplog, "message received")]  # type: ignore[attr-defined]
    assert bodies == ["the body, password=[redacted]"]


@in_loop
async def test_the_sdk_is_quiet_while_it_is_open(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where all others log at DEBUG; its loggers are as before when it is closed."""
    caplog.set_level(logging.DEBUG)
    async with handler_of(bus=broker) as handler:
        assert await handler.send_message("text")
        assert not logging.getLogger("azure.servicebus").isEnabledFor(logging.INFO)
    assert logging.getLogger("azure").level == logging.NOTSET


@in_loop
async def test_a_link_that_cannot_be_closed_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """There is nothing to be done about it."""

    class Broken:
        async def close(self) -> None:
            raise OSError("no")

    caplog.set_level(logging.DEBUG, LOGGER)
    handler = handler_of()
    bus: BusConnection = handler._bus
    bus._receiver = Broken()
    await bus.close()
    assert said(caplog, "a link could not be closed")
    assert repr(bus) == "<BusConnection 127.0.0.1:1: in to out>"


@in_loop
async def test_settlements_are_made_one_at_a_time() -> None:
    """The SDK takes forty times as long for those that are made at once."""
    under_way: list[str] = []

    class Receiver:
        async def complete_message(self, message: str) -> None:
            under_way.append(message)
            await asyncio.sleep(0)
            assert under_way == [message]
            under_way.remove(message)

        renew_message_lock = abandon_message = complete_message

    handler = handler_of()
    bus = handler._bus
    bus._receiver = Receiver()
    await asyncio.gather(bus.complete("a"), bus.renew("b"), bus.abandon("c"), bus.complete("d"))
    assert not under_way
    bus._receiver = None
