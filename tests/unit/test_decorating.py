"""`run_inside`: a context manager round any kind of function."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from foundry_log.decorating import run_inside

pytestmark = pytest.mark.unit


@pytest.fixture
def steps() -> list[str]:
    """What happened, in order."""
    return []


@pytest.fixture
def enter(steps: list[str]) -> Callable[[], Any]:
    """A context manager that notes when it is entered and left, and how."""

    @contextmanager
    def noting() -> Iterator[None]:
        steps.append("in")
        try:
            yield
        except BaseException as error:
            steps.append(type(error).__name__)
            raise
        finally:
            steps.append("out")

    return noting


def test_a_function_runs_inside(enter: Callable[[], Any], steps: list[str]) -> None:
    """With its arguments and its result; the name, signature and original are kept."""

    def work(a: int, *, b: int = 2) -> int:
        steps.append("work")
        return a + b

    wrapped = run_inside(enter, work)

    assert wrapped(1, b=3) == 4
    assert steps == ["in", "work", "out"]
    assert wrapped.__name__ == "work"
    assert inspect.signature(wrapped) == inspect.signature(work)
    assert wrapped.__wrapped__ is work  # type: ignore[attr-defined]


def test_each_call_enters_anew(enter: Callable[[], Any], steps: list[str]) -> None:
    """One context manager a call, also after one that raised."""

    def fail() -> None:
        raise ValueError("mine")

    wrapped = run_inside(enter, fail)
    for _ in range(2):
        with pytest.raises(ValueError, match="mine"):
            wrapped()

    assert steps == ["in", "ValueError", "out"] * 2


def test_a_coroutine_is_entered_while_it_runs(enter: Callable[[], Any], steps: list[str]) -> None:
    """Not when it is created; the wrapper is a coroutine function itself."""

    async def work(value: int) -> int:
        await asyncio.sleep(0)
        steps.append("work")
        return value

    wrapped = run_inside(enter, work)
    assert inspect.iscoroutinefunction(wrapped)
    coroutine = wrapped(5)
    assert steps == []

    assert asyncio.run(coroutine) == 5
    assert steps == ["in", "work", "out"]


def test_a_generator_is_inside_from_first_to_last(
    enter: Callable[[], Any], steps: list[str]
) -> None:
    """What is sent and thrown in arrives, and its result is returned."""

    def items() -> Iterator[Any]:
        sent = yield 1
        try:
            yield sent
        except KeyError:
            yield "thrown"
        return "result"

    wrapped = run_inside(enter, items)
    assert inspect.isgeneratorfunction(wrapped)
    generator: Any = wrapped()
    assert steps == []
    assert (next(generator), generator.send("s"), generator.throw(KeyError())) == (
        1,
        "s",
        "thrown",
    )
    assert steps == ["in"]
    with pytest.raises(StopIteration) as stop:
        next(generator)

    assert stop.value.value == "result"
    assert steps == ["in", "out"]


def test_a_closed_generator_is_left(enter: Callable[[], Any], steps: list[str]) -> None:
    """GeneratorExit goes through both."""

    def items() -> Iterator[int]:
        yield 1

    generator = run_inside(enter, items)()
    next(generator)
    generator.close()  # type: ignore[attr-defined]

    assert steps == ["in", "GeneratorExit", "out"]


def test_an_async_generator_is_inside_from_first_to_last(
    enter: Callable[[], Any], steps: list[str]
) -> None:
    """As the plain one; exceptions of its body pass through."""

    async def items() -> AsyncIterator[int]:
        yield 1
        raise ValueError("mine")

    wrapped = run_inside(enter, items)
    assert inspect.isasyncgenfunction(wrapped)

    async def main() -> None:
        async for item in wrapped():
            steps.append(f"got {item}")

    with pytest.raises(ValueError, match="mine"):
        asyncio.run(main())
    assert steps == ["in", "got 1", "ValueError", "out"]


def test_what_is_swallowed_ends_quietly() -> None:
    """A call returns None, a generator ends."""

    def fail() -> int:
        raise ValueError

    async def fail_later() -> int:
        raise ValueError

    def items() -> Iterator[int]:
        yield 1
        raise ValueError

    def swallow() -> Any:
        return suppress(ValueError)

    assert run_inside(swallow, fail)() is None
    assert asyncio.run(run_inside(swallow, fail_later)()) is None
    assert list(run_inside(swallow, items)()) == [1]


def test_a_method_stays_one(enter: Callable[[], Any]) -> None:
    """The instance arrives."""

    class Thing:
        def own(self) -> Any:
            return self

        wrapped = run_inside(enter, own)

    thing = Thing()

    assert thing.wrapped() is thing
