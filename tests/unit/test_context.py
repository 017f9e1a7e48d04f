"""`bound`: fields of a stretch of code, in threads, tasks and generators."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from foundry_log import bound
from foundry_log.context import bound_fields

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def leaves_no_scope() -> Iterator[None]:
    """Each test ends outside of every scope."""
    assert bound_fields() == {}
    yield
    assert bound_fields() == {}


class TestNesting:
    """Scopes inside scopes."""

    def test_outside_there_is_nothing(self) -> None:
        """Before, between and after scopes there are no fields."""
        with bound(a=1):
            pass

        assert bound_fields() == {}

    def test_the_inner_scope_wins_and_gives_back(self) -> None:
        """A name that is shadowed has its old value afterwards."""
        with bound(a=1, b=1):
            with bound(b=2, c=2):
                assert bound_fields() == {"a": 1, "b": 2, "c": 2}
            assert bound_fields() == {"a": 1, "b": 1}

    def test_an_exception_leaves_the_scope(self) -> None:
        """It passes, and the fields go."""
        with pytest.raises(ValueError, match="mine"), bound(a=1):
            raise ValueError("mine")

        assert bound_fields() == {}

    def test_any_name_can_be_bound(self) -> None:
        """Also `self`, and those of the methods' own parameters."""
        with bound(self=1, fields=2, kind=3):
            assert bound_fields() == {"self": 1, "fields": 2, "kind": 3}

    def test_entering_gives_the_scope(self) -> None:
        """`with bound(...) as scope` names the object itself."""
        scope = bound(a=1)
        with scope as entered:
            assert entered is scope

    def test_one_object_may_be_entered_again(self) -> None:
        """After it was left, and inside itself."""
        scope = bound(a=1)
        for _ in range(2):
            with scope, bound(a=2), scope:
                assert bound_fields() == {"a": 1}
            assert bound_fields() == {}

    def test_scopes_may_be_left_in_any_order(self) -> None:
        """Each takes its own fields away and no others."""
        outer, middle, inner = bound(a=1), bound(a=2, b=2), bound(c=3)
        for scope in (outer, middle, inner):
            scope.__enter__()
        outer.__exit__(None, None, None)
        assert bound_fields() == {"a": 2, "b": 2, "c": 3}
        middle.__exit__(None, None, None)
        assert bound_fields() == {"c": 3}
        inner.__exit__(None, None, None)

        assert bound_fields() == {}

    def test_thousands_of_scopes_may_be_left_in_any_order(self) -> None:
        """The chain is walked, not recursed into."""
        first, *others = [bound(a=number) for number in range(3000)]
        for scope in (first, *others):
            scope.__enter__()
        for scope in (first, *reversed(others)):
            scope.__exit__(None, None, None)

        assert bound_fields() == {}


class TestThreads:
    """Each thread has its own."""

    def test_a_thread_starts_without_fields(self) -> None:
        """Unless it is run in a copy of the context."""
        seen: list[Any] = []

        def look() -> None:
            seen.append(dict(bound_fields()))

        with bound(a=1):
            context = contextvars.copy_context()
            for target in (look, lambda: context.run(look)):
                thread = threading.Thread(target=target)
                thread.start()
                thread.join(30)

        assert seen == [{}, {"a": 1}]

    def test_threads_do_not_see_each_other(self) -> None:
        """Two threads inside scopes at the same time, through one shared object too."""
        shared = bound(shared=True)
        barrier = threading.Barrier(2, timeout=30)

        def work(name: str) -> list[Any]:
            seen = []
            with bound(name=name), shared:
                barrier.wait()
                seen.append(dict(bound_fields()))
                barrier.wait()
            barrier.wait()
            return [*seen, dict(bound_fields())]

        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(work, "ab"))

        assert results == [[{"name": name, "shared": True}, {}] for name in "ab"]


@pytest.mark.asyncio
class TestTasks:
    """Each asyncio task has its own, and starts with its creator's.

    Each test runs its own loop, so that no plugin is needed.
    """

    def test_tasks_inherit_and_are_isolated(self) -> None:
        """A task keeps what was bound where it was created; its siblings' fields stay theirs."""
        shared = bound(shared=True)

        async def work(name: str, turn: Turns) -> list[Any]:
            with bound(name=name), shared:
                await turn.wait()
                seen = dict(bound_fields())
                await turn.wait()
            await turn.wait()
            return [seen, dict(bound_fields())]

        async def main() -> Any:
            turn = Turns(2)
            with bound(run=1):
                tasks = [asyncio.create_task(work(name, turn)) for name in "ab"]
            assert bound_fields() == {}
            return await asyncio.gather(*tasks)

        assert asyncio.run(main()) == [
            [{"run": 1, "name": name, "shared": True}, {"run": 1}] for name in "ab"
        ]

    def test_a_cancelled_task_leaves_its_scope(self) -> None:
        """And the scope of the loop's own code is as it was."""

        async def main() -> None:
            started = asyncio.Event()

            async def work() -> None:
                with bound(a=1):
                    started.set()
                    await asyncio.Event().wait()

            task = asyncio.create_task(work())
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert bound_fields() == {}

        asyncio.run(main())

    def test_an_abandoned_async_generator_disturbs_nobody(self) -> None:
        """The event loop closes it in another context than it was entered in."""

        async def items() -> AsyncIterator[int]:
            with bound(inside=True):
                yield 1
                yield 2

        async def main() -> None:
            async def use() -> None:
                async for _ in items():
                    break

            with bound(outer=1):
                await asyncio.create_task(use())
                gc.collect()
                await asyncio.sleep(0)
                assert bound_fields() == {"outer": 1}

        asyncio.run(main())


class Turns:
    """`asyncio.Barrier`, which Python 3.10 does not have."""

    def __init__(self, parties: int) -> None:
        self.parties, self.waiting, self.open = parties, 0, asyncio.Event()

    async def wait(self) -> None:
        self.waiting += 1
        turn = self.open
        if self.waiting == self.parties:
            self.waiting, self.open = 0, asyncio.Event()
            turn.set()
        await turn.wait()


class TestGenerators:
    """Scopes that are suspended with their generator."""

    def test_generators_by_turns_take_away_their_own(self) -> None:
        """The first to end was the first to begin."""

        def items(**fields: int) -> Iterator[None]:
            with bound(**fields):
                yield

        one, other = items(a=1), items(b=2)
        next(one)
        next(other)
        assert bound_fields() == {"a": 1, "b": 2}
        assert next(one, None) is None
        assert bound_fields() == {"b": 2}
        other.close()

        assert bound_fields() == {}

    def test_one_closed_in_another_context_changes_nothing_there(self) -> None:
        """Its scope is not in that context, so there is none to take away."""

        def items() -> Iterator[None]:
            with bound(inside=True):
                yield

        generator = items()
        contextvars.Context().run(next, generator)
        with bound(outer=1):
            generator.close()
            assert bound_fields() == {"outer": 1}


class TestDecorator:
    """`@bound(...)` on any kind of function."""

    def test_each_call_is_inside(self) -> None:
        """Also recursive ones; name and docstring of the function stay."""

        @bound(a=1)
        def work(depth: int) -> Any:
            """Work."""
            return work(depth - 1) if depth else dict(bound_fields())

        assert work(3) == {"a": 1}
        assert (work.__name__, work.__doc__) == ("work", "Work.")
        assert bound_fields() == {}

    def test_it_wraps_coroutines_and_generators(self) -> None:
        """The fields are there while they run, not while they are created."""

        @bound(a=1)
        async def coroutine() -> Any:
            await asyncio.sleep(0)
            return dict(bound_fields())

        @bound(a=1)
        async def agenerator() -> AsyncIterator[Any]:
            yield dict(bound_fields())

        @bound(a=1)
        def generator() -> Iterator[Any]:
            yield dict(bound_fields())

        async def main() -> Any:
            return [await coroutine(), *[item async for item in agenerator()]]

        created = generator()
        assert bound_fields() == {}
        assert [*asyncio.run(main()), *created] == [{"a": 1}] * 3
