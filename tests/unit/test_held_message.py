"""A held message: its lock, where its renewal and its settlement come together."""

from __future__ import annotations

import asyncio
import datetime
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from foundry_log.services.bus_connection import BusConnection
from foundry_log.services.held_message import HeldMessage
from foundry_log.services.observing import Observer
from tests.event_loops import in_loop

pytest.importorskip(
    "azure.servicebus", reason="needs test-services: pip install 'foundry_log[test-services]'"
)

pytestmark = [pytest.mark.unit, pytest.mark.services]

NOWHERE = (
    "Endpoint=sb://127.0.0.1:1;SharedAccessKeyName=k;SharedAccessKey=c2Vj;"
    "UseDevelopmentEmulator=true;"
)


class Receiver:
    """Stands for the SDK's: the first renewal is answered when the test says so."""

    def __init__(self) -> None:
        self.renewals = 0
        self.settled: list[str] = []
        self.answer = asyncio.get_running_loop().create_future()

    async def renew_message_lock(self, message: Any) -> None:
        self.renewals += 1
        if self.renewals == 1:
            await self.answer
        message.locked_until_utc = in_half_a_second()

    async def complete_message(self, message: Any) -> None:
        self.settled.append("completed")

    async def abandon_message(self, message: Any) -> None:
        self.settled.append("abandoned")


def in_half_a_second() -> datetime.datetime:
    """When locks end here."""
    return datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=0.5)


def held_by(receiver: Receiver) -> HeldMessage:
    """A message that came over a receiver."""
    observer = Observer(logging.getLogger("test"))
    options = {"namespace": None, "connection_string": NOWHERE, "credential": None}
    bus = BusConnection("in", "out", **options, observer=observer)
    bus._receiver = receiver
    facts = {"message_id": "m", "sequence_number": 7, "correlation_id": None, "delivery_count": 0}
    message = SimpleNamespace(**facts, locked_until_utc=in_half_a_second())
    return HeldMessage(message, bus, observer)


@in_loop
async def test_work_that_ends_with_a_renewal_is_settled_at_once() -> None:
    """Before Python 3.12 `asyncio.wait_for` swallows the cancellation of that renewal."""
    receiver = Receiver()
    async with held_by(receiver) as held:
        while not receiver.renewals:
            await asyncio.sleep(0.01)
        receiver.answer.set_result(None)
        await asyncio.sleep(0)
        settling = asyncio.create_task(held.complete())
        await asyncio.wait({settling}, timeout=5)
        assert settling.done()
    assert receiver.settled == ["completed"]
    assert receiver.renewals == 1


@in_loop
async def test_a_message_is_settled_once() -> None:
    """A processor that outlives a stop does not complete what was given back."""
    receiver = Receiver()
    held = held_by(receiver)
    assert await held.abandon()
    assert not await held.complete()
    assert receiver.settled == ["abandoned"]


@in_loop
async def test_a_message_is_known_by_number_and_id() -> None:
    """Senders may use an id twice."""
    held = held_by(Receiver())
    assert held.key == (7, "m")
