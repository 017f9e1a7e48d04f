"""Two queues of Azure Service Bus through Microsoft's own SDK: the one place that knows it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from types import ModuleType
from typing import Any

from foundry_log.extras import import_extra
from foundry_log.services.bus_errors import BusClosedError
from foundry_log.services.observing import Observer
from foundry_log.services.sdk_loggers import keep_quiet, let_go

OPENS_WITHIN_S = 60.0
SENDS_WITHIN_S = 30.0
SETTLES_WITHIN_S = 20.0
CLOSES_WITHIN_S = 6.0
"""Seconds for one link; the SDK waits five for what is on its way to it."""
REOPENS_AFTER_S = 60.0
"""Seconds without a message after which the link is opened anew: a dead one looks like silence."""
MAX_REASON = 1024
"""Characters of a dead letter's reason, and of its description."""

_SDK_LOGGERS = ("azure", "uamqp")
# The SDK's own second attempts settle over a new link what came over a lost one. Longer waits are
# ours.
SDK_OPTIONS = {"retry_total": 2, "retry_backoff_factor": 0.1, "retry_backoff_max": 1}

_NEEDED_BY = "AsyncServiceBusHandler"


class BusConnection:
    """Receives from one queue, settles, and sends to another; opens what it needs when it needs it.

    Errors are the SDK's. After one of receiving or sending its link is closed, and the next call
    opens it anew; so does one to receive that has had no message for a minute, since a connection
    that has gone silent looks like an empty queue. Closed, it sends nothing, and receives when it
    is opened again. Used from one event loop.

    Args:
        in_queue, out_queue: names.
        namespace: such as `name.servicebus.windows.net`; None for `SERVICE_BUS_NAMESPACE`.
        connection_string: None for `SERVICE_BUS_CONNECTION_STRING`, unless a namespace is given.
        credential: of azure-identity's asynchronous kind, which stays the caller's to close; None
            for its DefaultAzureCredential. Not looked at beside a connection string.
        observer: hears of what cannot be closed.
        reopens_after_s: seconds without a message after which the link is opened anew.

    Raises:
        ValueError: there is neither namespace nor connection string, or the latter is none.
        ImportError: the SDK is not installed.
    """

    def __init__(
        self,
        in_queue: str,
        out_queue: str,
        *,
        namespace: str | None,
        connection_string: str | None,
        credential: Any,
        observer: Observer,
        reopens_after_s: float = REOPENS_AFTER_S,
    ) -> None:
        if connection_string is None and namespace is None:
            connection_string = os.environ.get("SERVICE_BUS_CONNECTION_STRING")
        self._connection_string = connection_string or None
        self.namespace = namespace or os.environ.get("SERVICE_BUS_NAMESPACE") or ""
        self._in_queue = in_queue
        self._out_queue = out_queue
        self._credential = credential
        self._observer = observer
        self._reopens_after_s = reopens_after_s
        self._heard = 0.0  # when the link to receive was opened, or had a message
        self._is_closed = False
        if self._connection_string is None and not self.namespace:
            raise ValueError(
                "there is no bus to connect to: give fully_qualified_namespace or "
                "connection_string, or set SERVICE_BUS_NAMESPACE, such as "
                "name.servicebus.windows.net, or SERVICE_BUS_CONNECTION_STRING"
            )
        self._sdk = _sdk()
        if self._connection_string is not None:
            self.namespace = self._host_of(self._connection_string)
        self._opening = asyncio.Lock()  # guards the four below
        self._client: Any = None
        self._receiver: Any = None
        self._sender: Any = None
        self._own_credential: Any = None
        self._sending = asyncio.Lock()  # one message at a time on the link
        # One settlement or renewal at a time: at once they read each other's answers off the link,
        # and those that miss theirs wait for the SDK's next look, 0.2 s later.
        self._settling = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<BusConnection {self.namespace}: {self._in_queue} to {self._out_queue}>"

    async def receive(self, max_count: int, max_wait_s: float) -> Sequence[Any]:
        """Return up to `max_count` messages, locked; none where none comes within `max_wait_s`."""
        receiver = await self._opened_receiver()
        try:
            messages: Sequence[Any] = await receiver.receive_messages(
                max_message_count=max_count, max_wait_time=max_wait_s
            )
        except Exception:
            await self._drop_receiver()
            raise
        if messages:
            self._heard = time.monotonic()
        elif time.monotonic() - self._heard >= self._reopens_after_s:
            await self._drop_receiver()
        return messages

    async def send(
        self, body: str | bytes, message_id: str, correlation_id: str | None = None
    ) -> None:
        """Send a message to the out queue, and wait until it has it.

        Raises:
            BusClosedError: `close` has been called.
            Exception: the SDK's.
        """
        message = self._sdk.ServiceBusMessage(
            body, message_id=message_id, correlation_id=correlation_id
        )
        async with self._sending:
            self._check_open()
            sender = await self._opened_sender()
            try:
                await sender.send_messages(message, timeout=SENDS_WITHIN_S)
            except Exception:
                await self._drop_sender()
                raise

    async def complete(self, message: Any) -> None:
        """Take a message from the queue."""
        await self._settled(lambda receiver: receiver.complete_message(message))

    async def abandon(self, message: Any) -> None:
        """Give a message back; its delivery count grows."""
        await self._settled(lambda receiver: receiver.abandon_message(message))

    async def dead_letter(self, message: Any, reason: str, description: str) -> None:
        """Put a message among the dead letters."""
        told = {"reason": reason[:MAX_REASON], "error_description": description[:MAX_REASON]}
        await self._settled(lambda receiver: receiver.dead_letter_message(message, **told))

    async def renew(self, message: Any) -> None:
        """Lock a message for as long as at first, from now on."""
        await self._settled(lambda receiver: receiver.renew_message_lock(message))

    def is_lock_lost(self, error: Exception) -> bool:
        """Whether an error says that somebody else may have the message."""
        lost: type[Exception] = self._sdk.exceptions.MessageLockLostError
        return isinstance(error, lost)

    def open(self) -> None:
        """Let it be used again after `close`; connects nothing."""
        self._is_closed = False

    async def close(self) -> None:
        """Close the links, behind the sending that is under way; none begins until `open`.

        What came over them and was not handed out is released. Takes 6 s for each link and for the
        sending at most. Idempotent.
        """
        self._is_closed = True
        await self._sent()
        async with self._opening:
            links = self._receiver, self._sender
            client, credential = self._client, self._own_credential
            self._receiver = self._sender = self._client = self._own_credential = None
            try:
                await asyncio.gather(*map(self._closed, links))
                await self._closed(client)
                await self._closed(credential)
            finally:
                if client is not None:
                    for name in _SDK_LOGGERS:
                        let_go(name)

    async def _sent(self) -> None:
        """Wait for the sending that is under way, which a closed link would make fail."""
        turn = asyncio.ensure_future(self._sending_turn())
        try:
            await asyncio.wait({turn}, timeout=CLOSES_WITHIN_S)
        finally:
            turn.cancel()

    async def _sending_turn(self) -> None:
        async with self._sending:
            pass

    def _check_open(self) -> None:
        if self._is_closed:
            raise BusClosedError("nothing is sent any more: the handler has ended")

    async def _settled(self, settle: Callable[[Any], Awaitable[object]]) -> None:
        async with self._settling:
            await asyncio.wait_for(settle(self._receiver), SETTLES_WITHIN_S)

    async def _opened_receiver(self) -> Any:
        async with self._opening:
            if self._receiver is None:
                receiver = self._connected().get_queue_receiver(self._in_queue)
                self._receiver = await self._opened(receiver)
                self._heard = time.monotonic()
            return self._receiver

    async def _opened_sender(self) -> Any:
        async with self._opening:
            if self._sender is None:
                sender = self._connected().get_queue_sender(self._out_queue)
                self._sender = await self._opened(sender)
            return self._sender

    async def _opened(self, link: Any) -> Any:
        try:
            # A receive opens its link too, but within the time that it may wait for messages.
            return await asyncio.wait_for(link.__aenter__(), OPENS_WITHIN_S)
        except BaseException:
            await self._closed(link)
            raise

    async def _drop_receiver(self) -> None:
        async with self._opening:
            receiver, self._receiver = self._receiver, None
            await self._closed(receiver)

    async def _drop_sender(self) -> None:
        async with self._opening:
            sender, self._sender = self._sender, None
            await self._closed(sender)

    async def _closed(self, link: Any) -> None:
        if link is None:
            return
        try:
            await asyncio.wait_for(link.close(), CLOSES_WITHIN_S)
        except Exception as error:
            kind = type(error).__name__
            self._observer.say(logging.DEBUG, "a link could not be closed", reason=kind)

    def _connected(self) -> Any:
        """Return the client; its links are connected one by one, when they are opened."""
        if self._client is None:
            for name in _SDK_LOGGERS:
                keep_quiet(name)
            client = import_extra("azure.servicebus.aio", "servicebus", _NEEDED_BY).ServiceBusClient
            if self._connection_string is not None:
                make = client.from_connection_string
                self._client = make(self._connection_string, **SDK_OPTIONS)
            else:
                self._client = client(self.namespace, self._identity(), **SDK_OPTIONS)
        return self._client

    def _identity(self) -> Any:
        if self._credential is not None:
            return self._credential
        identity = import_extra("azure.identity.aio", "servicebus", _NEEDED_BY)
        self._own_credential = identity.DefaultAzureCredential()
        return self._own_credential

    def _host_of(self, connection_string: str) -> str:
        try:
            parts = self._sdk.parse_connection_string(connection_string)
        except ValueError:
            # Without its cause: what is wrong with it may be quoted there.
            raise ValueError(
                "connection_string is none: it must be like Endpoint=sb://name.servicebus."
                "windows.net/;SharedAccessKeyName=…;SharedAccessKey=…, as the portal shows it"
            ) from None
        if parts.entity_path and {self._in_queue, self._out_queue} != {parts.entity_path}:
            raise ValueError(
                f"connection_string is for the queue {parts.entity_path!r} alone: take that of the "
                "namespace, without EntityPath"
            )
        return str(parts.fully_qualified_namespace)


def _sdk() -> ModuleType:
    sdk = import_extra("azure.servicebus", "servicebus", _NEEDED_BY)
    import_extra("azure.servicebus.exceptions", "servicebus", _NEEDED_BY)
    return sdk
