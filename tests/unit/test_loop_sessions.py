"""Sessions of event loops: work in the background is done, begun again, or told to be lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from foundry_log import bound
from foundry_log.context import bound_fields
from foundry_log.services.loop_sessions import LoopSession, Work
from tests.event_loops import in_loop

pytestmark = pytest.mark.unit

FOREVER_S = 60.0


class Client:
    """Counts how often it is closed."""

    def __init__(self) -> None:
        self.closed = 0

    async def close(self) -> None:
        self.closed += 1


class Job:
    """Work that waits for its gate; `told` is what came of it."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()
        self.told: list[str] = []

    def work(self) -> Work:
        return Work(self.run, lambda: self.told.append("lost"))

    async def run(self) -> None:
        self.begun.set()
        await self.gate.wait()
        self.told.append("done")


@pytest.fixture
def cut_off() -> Callable[[], None]:
    """Cancels all tasks but those of the test itself, as a loop does before it ends."""

    def cancel() -> None:
        for task in asyncio.all_tasks():
            name = getattr(task.get_coro(), "__name__", "")
            if not name.startswith(("test_", "within_deadline")):
                task.cancel()

    return cancel


@in_loop
async def test_the_end_waits_for_the_work_and_closes_once() -> None:
    """As often as it is called; `finish` leaves the client open."""
    client, job = Client(), Job()
    session = LoopSession(client, FOREVER_S)
    session.start(job.work())
    asyncio.get_running_loop().call_soon(job.gate.set)
    await session.finish()
    assert (job.told, client.closed, session.at_work) == (["done"], 0, 0)
    await session.end()
    await session.end()
    assert client.closed == 1


@in_loop
async def test_work_that_is_cut_off_before_its_first_step_is_begun_again(
    cut_off: Callable[[], None],
) -> None:
    """By whoever waits for it; until then it counts as being at work."""
    job, session = Job(), LoopSession(Client(), FOREVER_S)
    job.gate.set()
    session.start(job.work())
    cut_off()
    await asyncio.sleep(0)
    assert (job.begun.is_set(), session.at_work) == (False, 1)
    await session.end()
    assert job.told == ["done"]


@in_loop
async def test_work_that_is_cut_off_halfway_is_begun_again(cut_off: Callable[[], None]) -> None:
    """From its beginning."""
    job, session = Job(), LoopSession(Client(), FOREVER_S)
    session.start(job.work())
    await job.begun.wait()
    cut_off()
    await asyncio.sleep(0)
    job.gate.set()
    await session.finish()
    assert job.told == ["done"]
    await session.end()


@in_loop
async def test_work_that_takes_too_long_is_lost() -> None:
    """That is told once, and it is not begun again."""
    job, session = Job(), LoopSession(Client(), 0.01)
    session.start(job.work())
    await session.finish()
    assert (job.told, session.at_work) == (["lost"], 0)
    job.gate.set()
    await session.end()
    assert job.told == ["lost"]


@in_loop
async def test_an_end_that_is_cancelled_tells_what_is_lost(cut_off: Callable[[], None]) -> None:
    """And closes the client all the same."""
    client, job = Client(), Job()
    session = LoopSession(client, FOREVER_S)
    session.start(job.work())
    end = asyncio.create_task(session.end())
    await job.begun.wait()
    cut_off()
    with pytest.raises(asyncio.CancelledError):
        await end
    await asyncio.sleep(0)
    assert (job.told, client.closed, session.at_work) == (["lost"], 1, 0)


def test_the_end_of_the_loop_is_the_end_of_the_session() -> None:
    """Work that nobody could begin is done by then."""
    client, told = Client(), []

    async def work() -> None:
        await asyncio.sleep(0)
        told.append("done")

    async def begin() -> LoopSession:
        session = LoopSession(client, FOREVER_S)
        session.start(Work(work, lambda: told.append("lost")))
        return session

    session = asyncio.run(begin())
    assert (told, client.closed, session.at_work) == (["done"], 1, 0)


@in_loop
async def test_work_keeps_the_scopes_it_was_made_in(cut_off: Callable[[], None]) -> None:
    """Where it is begun again, too, and where its loss is told."""
    seen: list[object] = []

    async def note() -> None:
        seen.append(bound_fields().get("of"))
        await asyncio.Event().wait()

    session = LoopSession(Client(), 0.01)
    with bound(of="the lock"):
        session.start(Work(note, lambda: seen.append(bound_fields().get("of"))))
    await asyncio.sleep(0)
    cut_off()
    await asyncio.sleep(0)
    await session.end()
    assert seen == ["the lock"] * 3
