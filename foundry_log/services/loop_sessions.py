"""The session that an event loop has with a server, and the work in it that the end waits for."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol


class Client(Protocol):
    """What a session is made of, such as an `aiohttp.ClientSession`."""

    async def close(self) -> None:
        """Close its connections; idempotent."""


@dataclass(frozen=True)
class Work:
    """What is to be done in the background, in the context it was made in.

    Args:
        run: does it, from its beginning each time it is called; raises nothing but CancelledError.
        lost: called once where it was never done to its end; raises nothing.
    """

    run: Callable[[], Coroutine[Any, Any, None]]
    lost: Callable[[], None]
    context: contextvars.Context = field(default_factory=contextvars.copy_context)


class LoopSession:
    """A client of one event loop, closed with it at the latest, and what works in the background.

    Made and used inside of that loop. Loops cancel their tasks before they end, some before their
    first step: work that was cut off so is begun again by `finish` and by the end.

    Args:
        client: closed at the end: at `end`, when the session is forgotten, or with the loop.
        within_s: seconds at most that `finish` waits.
    """

    def __init__(self, client: Any, within_s: float) -> None:
        self.client = client
        self._background = _Background(within_s)
        self._life = _living(client, self._background)
        with contextlib.suppress(StopIteration):  # its first step, which waits for nothing
            self._life.__anext__().__await__().send(None)

    @property
    def at_work(self) -> int:
        """How many are at work in the background, or were cut off."""
        return self._background.at_work

    def start(self, work: Work) -> None:
        """Begin work in the background."""
        self._background.start(work)

    async def finish(self) -> None:
        """Wait until the work is done, `within_s` at most; what is left by then is lost."""
        await self._background.finish()

    async def end(self) -> None:
        """Finish, then close the client; idempotent."""
        await self._life.aclose()


class _Background:
    """Tasks that somebody waits for in the end."""

    def __init__(self, within_s: float) -> None:
        self.tasks: dict[asyncio.Task[None], Work] = {}
        self.cut_off: list[Work] = []
        self._within_s = within_s
        self._is_over = False

    @property
    def at_work(self) -> int:
        return len(self.tasks) + len(self.cut_off)

    def start(self, work: Work) -> None:
        task = work.context.run(asyncio.get_running_loop().create_task, work.run())
        self.tasks[task] = work
        task.add_done_callback(self._note_end)

    async def finish(self) -> None:
        """Wait until all is done, `within_s` at most; stop what is left."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._within_s
        while self.at_work and (left_s := deadline - clock()) > 0:
            while self.cut_off:
                self.start(self.cut_off.pop())
            await asyncio.wait(self.tasks, timeout=left_s)
            await asyncio.sleep(0)  # until the ends are noted
        late = list(self.tasks)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        self._lose()

    def end(self) -> None:
        """Begin nothing again from now on."""
        self._is_over = True
        self._lose()

    def _note_end(self, task: asyncio.Task[None]) -> None:
        work = self.tasks.pop(task)
        if task.cancelled():
            self.cut_off.append(work)
            if self._is_over:
                self._lose()

    def _lose(self) -> None:
        while self.cut_off:
            work = self.cut_off.pop()
            work.context.run(work.lost)


async def _living(client: Client, background: _Background) -> AsyncGenerator[None, None]:
    """Close a client at the end: when this is closed, is forgotten, or the loop ends.

    Loops close their asynchronous generators before they end; they know no other way to be told.
    """
    try:
        yield
    finally:
        try:
            await background.finish()
        finally:
            background.end()
            await client.close()
