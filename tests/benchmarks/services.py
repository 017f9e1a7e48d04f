"""What services cost: a cycle of the token budget, a call of the model, a message of the bus."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.checks import expect
from tests.benchmarks.goals import Goal
from tests.benchmarks.harness import (
    Comparison,
    Contender,
    Failed,
    Settings,
    Subject,
    in_own_process,
)
from tests.benchmarks.memory import MB, MemoryReport

REMEDY = "pip install 'foundry_log[test-services]'"
AT_A_TIME = 16
_PLENTY = str(10**12)

# --- the token budget -----------------------------------------------------------------------------

# The least that a server of three POSTs may do: read JSON, answer JSON, count.
_BARE_SERVER = """
import asyncio
from aiohttp import web

seen = 0

async def post(request):
    global seen
    await request.json()
    seen += 1
    return web.json_response({"success": True})

async def status(request):
    return web.json_response({"seen": seen})

async def main():
    app = web.Application()
    app.router.add_post("/{name}", post)
    app.router.add_get("/status", status)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print("listening on http://%s:%s" % runner.addresses[0], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
_BUDGET_SERVER = ["-m", "foundry_log.cli", "budget-server", "--port", "0"]


@contextlib.contextmanager
def server(arguments: list[str]) -> Iterator[str]:
    """A server in a process of its own, by the URL that it prints."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "APP_TPM_QUOTA": _PLENTY, "APP_RPM_QUOTA": _PLENTY},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        expect(line.startswith("listening on "), f"no server: {line!r}")
        yield line.split()[-1]
    finally:
        process.terminate()
        process.wait(10)
        if process.stdout:
            process.stdout.close()


async def in_lanes(
    work: Callable[[Any], Awaitable[None]], steps: Iterable[Any], at_a_time: int = AT_A_TIME
) -> int:
    """Do the work of each step, so many at a time; return the nanoseconds it took."""
    left = iter(steps)

    async def lane() -> None:
        for step in left:
            await work(step)

    started = time.perf_counter_ns()
    await asyncio.gather(*(lane() for _ in range(at_a_time)))
    return time.perf_counter_ns() - started


def bare_cycles(directory: Path) -> Iterator[Subject]:
    """Three POSTs of aiohttp by themselves, to a server that does nothing."""
    import aiohttp

    loop = asyncio.new_event_loop()

    async def post(session: aiohttp.ClientSession, name: str) -> None:
        async with session.post(name, json={"app_id": "bench", "token_count": 100}) as response:
            await response.json()

    async def opened(url: str) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(url)

    async def seen(session: aiohttp.ClientSession) -> int:
        async with session.get("/status") as response:
            return int((await response.json())["seen"])

    with contextlib.closing(loop), server(["-c", _BARE_SERVER]) as url:
        session = loop.run_until_complete(opened(url))

        async def cycle(step: int) -> None:
            for name in ("/lock", "/report", "/release"):
                await post(session, name)

        def check(count: int) -> None:
            found = loop.run_until_complete(seen(session))
            expect(found == 3 * count, f"{found} requests of {3 * count}")

        yield Subject(lambda steps: loop.run_until_complete(in_lanes(cycle, steps)), check)
        loop.run_until_complete(session.close())


def our_cycles(directory: Path) -> Iterator[Subject]:
    """A lock, the report of what was used, and a release, which finds nothing left."""
    from foundry_log import TokenClient

    loop = asyncio.new_event_loop()
    with contextlib.closing(loop), server(_BUDGET_SERVER) as url:
        client = TokenClient("bench", url)

        async def cycle(step: int) -> None:
            allowed, request_id, error = await client.lock_tokens(100)
            expect(allowed and request_id is not None, f"step {step}: {error}")
            expect(await client.report_usage(str(request_id), 40, 20), f"step {step}: no report")
            expect(await client.release_tokens(str(request_id)), f"step {step}: no release")

        def check(count: int) -> None:
            status = loop.run_until_complete(client.get_status())
            expect(status is not None, "no status")
            figures = (status or {})["applications"]["bench"]
            expect(figures["requests"] == count, f"{figures} of {count}")
            expect(figures["completion_tokens"] == 20 * count, f"{figures} of {count}")
            expect((status or {})["locked_tokens"] == 0, "tokens are locked")

        yield Subject(lambda steps: loop.run_until_complete(in_lanes(cycle, steps)), check)
        loop.run_until_complete(client.close())


BUDGET = Comparison(
    "budget",
    "a cycle of lock, report and release through one client and a server beside it, 16 at a time",
    (
        Contender(
            "limit: three POSTs of aiohttp",
            bare_cycles,
            role="limit",
            needs=("aiohttp",),
            remedy=REMEDY,
        ),
        Contender(
            "TokenClient and budget-server",
            our_cycles,
            role="ours",
            needs=("aiohttp",),
            remedy=REMEDY,
            goal=Goal(1.0, unit="ms"),
        ),
    ),
    count=5_000,
    quick=20,
    repeats=3,
)


# --- the model ------------------------------------------------------------------------------------

_QUESTION = [{"role": "user", "content": "Who wrote the first program? " * 40}]
Calls = Callable[[int], Awaitable[Any]]


@contextlib.contextmanager
def model_calls() -> Iterator[
    tuple[asyncio.AbstractEventLoop, Calls, Calls, Callable[[int], None]]
]:
    """A call by instructor alone, one by the service, and the check of how many there were."""
    import instructor
    import openai
    from pydantic import BaseModel

    from foundry_log import AzureOpenAIService
    from tests.model_server import model_in_a_thread, replies

    class Author(BaseModel):
        name: str
        age: int

    loop = asyncio.new_event_loop()
    with contextlib.closing(loop), model_in_a_thread() as model, server(_BUDGET_SERVER) as url:
        model.answers(replies({"name": "Ada", "age": 36}))
        client = openai.AsyncAzureOpenAI(azure_endpoint=model.url, api_version="v", api_key="k")
        bare = instructor.from_openai(client)
        service = AzureOpenAIService("gpt-4o", "bench", url, client=client)
        loop.run_until_complete(service.__aenter__())

        async def by_instructor(step: int) -> None:
            author = await bare.create(Author, list(_QUESTION), model="gpt-4o")
            expect(author.name == "Ada", f"step {step}: {author}")

        async def by_service(step: int) -> None:
            author = await service.structured_completion(Author, _QUESTION)
            expect(author.name == "Ada", f"step {step}: {author}")

        def check(calls: int) -> None:
            expect(len(model.requests) == calls, f"{len(model.requests)} requests of {calls}")

        yield loop, by_instructor, by_service, check
        loop.run_until_complete(service.close())
        loop.run_until_complete(client.close())


async def timed(call: Calls, step: int) -> int:
    """Return the nanoseconds of one call."""
    started = time.perf_counter_ns()
    await call(step)
    return time.perf_counter_ns() - started


def bare_calls(directory: Path) -> Iterator[Subject]:
    """instructor by itself."""
    with model_calls() as (loop, by_instructor, _, check):
        yield Subject(
            lambda steps: loop.run_until_complete(in_lanes(by_instructor, steps, 1)), check
        )


def added_by_service(directory: Path) -> Iterator[Subject]:
    """What the service takes more than instructor, by turns: two locks' requests and the rest."""

    async def run(steps: range) -> int:
        added = 0
        for step in steps:
            added += await timed(by_service, step) - await timed(by_instructor, step)
        return added

    with model_calls() as (loop, by_instructor, by_service, check):
        loop.run_until_complete(by_service(-1))  # connects, as a service does once
        yield Subject(
            lambda steps: loop.run_until_complete(run(steps)), lambda count: check(2 * count + 1)
        )


MODEL = Comparison(
    "model",
    "a structured completion of a model on loopback that answers at once",
    (
        Contender(
            "limit: instructor",
            bare_calls,
            role="limit",
            needs=("instructor", "aiohttp"),
            remedy=REMEDY,
        ),
        Contender(
            "what AzureOpenAIService adds",
            added_by_service,
            role="ours",
            needs=("instructor", "aiohttp"),
            remedy=REMEDY,
            goal=Goal(5.0, unit="ms"),
        ),
    ),
    count=300,
    quick=5,
    repeats=3,
)


# --- the bus --------------------------------------------------------------------------------------

_BATCH = 100
_AT_ONCE = 8
_WAIT_S = 1.0


class Broker:
    """A broker in a process of its own, so that its memory and its interpreter are its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.amqp_broker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.connection_string = self._read()
        expect(self.connection_string.startswith("Endpoint="), "no broker")

    def fill(self, count: int) -> None:
        """Put messages into the queue `in`."""
        self._ask(f"in={count}")

    def expect_completed(self, count: int) -> None:
        """Expect that as many messages are completed, and none is left or was delivered twice."""
        account = self._ask("in")
        left = account["ready"] + account["locked"] + account.get("expired", 0)
        expect(account.get("completed") == count and not left, f"{account} of {count}")

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=10)

    def _ask(self, line: str) -> dict[str, int]:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer: dict[str, int] = json.loads(self._read())
        return answer

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def bare_messages(directory: Path) -> Iterator[Subject]:
    """Receive and complete by the SDK alone."""
    from azure.servicebus.aio import ServiceBusClient

    loop = asyncio.new_event_loop()
    with contextlib.closing(loop), contextlib.closing(Broker()) as broker:
        client = ServiceBusClient.from_connection_string(broker.connection_string)
        receiver = client.get_queue_receiver("in")
        loop.run_until_complete(receiver.__aenter__())

        async def take(count: int) -> int:
            started = time.perf_counter_ns()
            while count:
                messages = await receiver.receive_messages(_BATCH, _WAIT_S)
                await in_lanes(receiver.complete_message, messages, 1)  # at once they take longer
                count -= len(messages)
            return time.perf_counter_ns() - started

        def run(steps: range) -> int:
            broker.fill(len(steps))
            return loop.run_until_complete(take(len(steps)))

        yield Subject(run, broker.expect_completed)
        loop.run_until_complete(receiver.close())
        loop.run_until_complete(client.close())


def handler_of(broker: Broker) -> Any:
    """A handler that does nothing with a message but what has to be done."""
    from foundry_log import AsyncServiceBusHandler

    async def process(text: str) -> None:
        expect(text.startswith("message "), text)

    return AsyncServiceBusHandler(
        process,
        "in",
        "out",
        connection_string=broker.connection_string,
        at_least_once=True,
        message_batch_size=_BATCH,
        concurrency=_AT_ONCE,
        max_wait_time=_WAIT_S,
        work_pause_s=0.0,
    )


async def handled(
    handler: Any, count: int, every: Callable[[int], None] = lambda done: None
) -> int:
    """Run a handler until as many messages are done; return the nanoseconds, its start left out."""
    running = asyncio.create_task(handler.run())
    while not handler.total_processed_messages:
        await asyncio.sleep(0.001)
    first, started = handler.total_processed_messages, time.perf_counter_ns()
    while (done := handler.total_processed_messages) < count:
        every(done)
        await asyncio.sleep(0.002)
    elapsed = time.perf_counter_ns() - started
    handler.stop()
    await running
    every(done)
    return round(elapsed * count / max(1, count - first))


def our_messages(directory: Path) -> Iterator[Subject]:
    """AsyncServiceBusHandler, at least once: with lock renewal, scope, record and outcome."""
    with contextlib.closing(Broker()) as broker:

        def run(steps: range) -> int:
            broker.fill(len(steps))
            return asyncio.run(_handled(broker, len(steps)))

        yield Subject(run, broker.expect_completed)


async def _handled(broker: Broker, count: int) -> int:
    return await handled(handler_of(broker), count)


@dataclass(frozen=True)
class BusMemory:
    """Many messages through one handler, whose memory is to stay what it was."""

    name: str = "bus_memory"
    count: int = 15_000
    quick: int = 300

    def run(self, settings: Settings) -> MemoryReport:
        """Run the process once."""
        count = settings.count or (self.quick if settings.quick else self.count)
        report = MemoryReport(self.name, count, "messages through AsyncServiceBusHandler")
        try:
            report.figures = in_own_process(self.name, "ours", count)
        except Failed as failure:
            report.failed = str(failure)
        return report

    def measure(self, contender: str, count: int, directory: Path) -> dict[str, Any]:
        """Handle all messages, and return samples of the memory in MB at each tenth."""
        import psutil

        process = psutil.Process()
        samples: list[tuple[int, float]] = []

        def sample(done: int) -> None:
            if not samples or done >= len(samples) * count // 10:
                gc.collect()
                samples.append((done, process.memory_info().rss / MB))

        async def handle() -> int:
            return await handled(handler_of(broker), count, sample)

        with contextlib.closing(Broker()) as broker:
            broker.fill(count)
            nanoseconds = asyncio.run(handle())
            broker.expect_completed(count)
        return {"samples": samples, "seconds": nanoseconds / 1e9}


BUS = Comparison(
    "bus",
    "a message received, processed and completed, of batches of 100, eight at a time",
    (
        Contender(
            "limit: azure-servicebus",
            bare_messages,
            role="limit",
            needs=("azure", "proton"),
            remedy=REMEDY,
        ),
        Contender(
            "AsyncServiceBusHandler",
            our_messages,
            role="ours",
            needs=("azure", "proton"),
            remedy=REMEDY,
            goal=Goal(1.5),
        ),
    ),
    count=5_000,
    quick=200,
    batches=1,
    repeats=3,
)
BUS_MEMORY = BusMemory()
