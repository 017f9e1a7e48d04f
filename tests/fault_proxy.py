"""A proxy between an SDK and its server, on loopback, that makes what goes wrong on the way.

    with FaultProxy(server.account_url) as proxy:
        proxy.fail(answer(503, retry_after="1"), method="PUT", query="comp=block", times=2)
        proxy.fail(reset_in_body(), path="/run.log")
        ...  # clients use proxy.account_url
        assert proxy.count(method="PUT") == 3

What is told first comes first; a request that no fault is for gets through. It speaks HTTP/1.1 with
bodies of a known length, a request to a connection. Tell it and ask it from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

READY_WITHIN_S = 10.0


@dataclass(frozen=True)
class Request:
    """The head of a request, the names of its headers in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]

    @property
    def length(self) -> int:
        """Bytes of body that follow."""
        return int(self.headers.get("content-length", "0"))

    def matches(self, method: str | None, path: str, query: str) -> bool:
        """Whether the method is that one, if one is given, and the others contain the texts."""
        return method in (None, self.method) and path in self.path and query in self.query


@dataclass
class Exchange:
    """A request that has come in, with what a fault can do about it."""

    request: Request
    head: bytes
    client: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    upstream: tuple[str, int]
    stopping: asyncio.Event

    async def body(self) -> bytes:
        """Read the body."""
        return await self.client[0].readexactly(self.request.length)

    async def ask(self, body: bytes) -> bytes:
        """Send the request on, with that body, and return the whole answer."""
        reader, writer = await asyncio.open_connection(*self.upstream)
        try:
            writer.write(self.head + body)
            await writer.drain()
            return await reader.read()
        finally:
            await _close(writer)

    async def give(self, answer: bytes) -> None:
        """Send an answer to the client."""
        self.client[1].write(answer)
        await self.client[1].drain()

    def reset(self) -> None:
        """End the client's connection by a reset."""
        linger = struct.pack("ii", 1, 0)
        connection = self.client[1].get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.client[1].transport.abort()


async def _close(writer: asyncio.StreamWriter) -> None:
    """Close and wait: a loop that ends before it has closed a connection leaves it open."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


Fault = Callable[[Exchange], Awaitable[None]]


async def _pass(exchange: Exchange) -> None:
    await exchange.give(await exchange.ask(await exchange.body()))


def delay(seconds: float) -> Fault:
    """The request gets through, later."""

    async def fault(exchange: Exchange) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(exchange.stopping.wait(), seconds)
        await _pass(exchange)

    return fault


def stall() -> Fault:
    """The body is not even taken, and nobody says so."""

    async def fault(exchange: Exchange) -> None:
        await exchange.stopping.wait()

    return fault


def drop() -> Fault:
    """The connection is closed in place of an answer, and the server never hears of it."""

    async def fault(exchange: Exchange) -> None:
        await exchange.body()

    return fault


def reset_in_body() -> Fault:
    """The connection is reset when half of the body has come."""

    async def fault(exchange: Exchange) -> None:
        await exchange.client[0].readexactly(exchange.request.length // 2)
        exchange.reset()

    return fault


def lose_answer() -> Fault:
    """The server does what it is asked to, and the connection is closed before its answer."""

    async def fault(exchange: Exchange) -> None:
        await exchange.ask(await exchange.body())

    return fault


def corrupt(position: int = 0) -> Fault:
    """A bit of the body is flipped on the way, in the byte at that position."""

    async def fault(exchange: Exchange) -> None:
        body = bytearray(await exchange.body())
        body[position] ^= 1
        await exchange.give(await exchange.ask(bytes(body)))

    return fault


def answer(status: int, *, code: str = "", **headers: str) -> Fault:
    """The proxy answers itself, with Azure's code for the reason and headers (`retry_after`)."""

    async def fault(exchange: Exchange) -> None:
        await exchange.body()
        lines = [f"HTTP/1.1 {status} Fault", "Content-Length: 0", "Connection: close"]
        lines += [f"x-ms-error-code: {code}"] if code else []
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await exchange.give("\r\n".join([*lines, "", ""]).encode())

    return fault


@dataclass
class _Rule:
    fault: Fault
    method: str | None
    path: str
    query: str
    skip: int
    times: int


@dataclass
class FaultProxy:
    """The proxy, while its `with` block lasts, on a thread of its own.

    Args:
        upstream: URL of the server, such as `http://127.0.0.1:10000/devstoreaccount1`.
    """

    upstream: str
    requests: list[Request] = field(default_factory=list)
    """Those that have come, faulty or not, in order."""
    _rules: list[_Rule] = field(default_factory=list)
    _port: int = 0

    @property
    def account_url(self) -> str:
        """The server's URL, with this proxy in its place."""
        return urlunsplit(urlsplit(self.upstream)._replace(netloc=f"127.0.0.1:{self._port}"))

    def fail(
        self,
        fault: Fault,
        *,
        method: str | None = None,
        path: str = "",
        query: str = "",
        skip: int = 0,
        times: int = 1,
    ) -> None:
        """Have requests go wrong.

        Args:
            fault: what happens, made by one of the functions here.
            method: that they have; None: any.
            path: that theirs contains.
            query: that theirs contains.
            skip: how many such requests get through before.
            times: how many fail.
        """
        self._rules.append(_Rule(fault, method, path, query, skip, times))

    def heal(self) -> None:
        """Let all through again."""
        self._rules.clear()

    def count(self, *, method: str | None = None, path: str = "", query: str = "") -> int:
        """Return how many such requests have come."""
        return sum(request.matches(method, path, query) for request in self.requests)

    def __enter__(self) -> FaultProxy:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=[self._serve()], name="proxy")
        self._thread.start()
        assert self._ready.wait(READY_WITHIN_S), "the proxy does not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(self._handle(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopping.wait()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            exchange = self._exchange(head, (reader, writer))
            self.requests.append(exchange.request)
            await self._fault_for(exchange.request)(exchange)
        except (OSError, EOFError):
            pass  # a client that leaves
        finally:
            await _close(writer)

    def _exchange(
        self, head: bytes, client: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    ) -> Exchange:
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        path, _, query = target.partition("?")
        request = Request(method, path, query, headers)
        # Without keeping connections, the end of an answer is the end of the connection.
        kept = [line for line in lines if not line.lower().startswith("connection:")]
        head = "\r\n".join([first, "Connection: close", *kept]).encode("latin-1")
        upstream = urlsplit(self.upstream)
        assert upstream.hostname and upstream.port
        address = upstream.hostname, upstream.port
        return Exchange(request, head, client, address, self._stopping)

    def _fault_for(self, request: Request) -> Fault:
        for rule in tuple(self._rules):
            if rule.times and request.matches(rule.method, rule.path, rule.query):
                if rule.skip:
                    rule.skip -= 1
                    continue
                rule.times -= 1
                return rule.fault
        return _pass
