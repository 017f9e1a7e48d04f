"""One way to put a context manager round any kind of function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, aclosing
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


def run_inside(enter: Callable[[], AbstractContextManager[Any]], function: Function) -> Function:
    """Return `function` so that each call runs inside a fresh `enter()`.

    Coroutine functions are entered while they run, not while they are created; generators, sync and
    async, from their first item to their last. Where the context manager swallows an exception, a
    call returns None and a generator ends.
    """
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            with enter():
                return await function(*args, **kwargs)

    elif inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            with enter():
                async with aclosing(function(*args, **kwargs)) as items:
                    async for item in items:
                        yield item

    elif inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with enter():
                return (yield from function(*args, **kwargs))

    else:

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with enter():
                return function(*args, **kwargs)

    return cast(Function, call)
