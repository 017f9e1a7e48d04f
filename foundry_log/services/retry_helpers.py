"""Calls that the token budget denies, made again when there is budget.

    answer = await with_token_limit_retry(ask_model, token_client, 3, "How are you?")

    @with_token_limit_retry_decorator(token_client)
    async def ask_model(question): ...

A denial is a ValueError that says `would be exceeded`. What can never fit the budget does not say
so, and is not tried again.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
import random as randomness
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from pydantic import ValidationError

from foundry_log.context import bound
from foundry_log.encoding import exception_text
from foundry_log.services.loggable import public_text
from foundry_log.services.observing import Observer

DENIED = "would be exceeded"
"""What the text of a denial has that waiting helps against."""
MARGIN_S = 1.0
"""Seconds that are waited beyond the reset, whose time is the server's."""

_P = ParamSpec("_P")
_T = TypeVar("_T")

_observer = Observer(logging.getLogger("foundry_log.services.retry_helpers"))


def is_denial(error: BaseException) -> bool:
    """Whether an error is a denial; that of an invalid reply quotes what the model has written."""
    is_value_error = isinstance(error, ValueError) and not isinstance(error, ValidationError)
    return is_value_error and DENIED in exception_text(error)


class StatusSource(Protocol):
    """Knows how long the budget needs to be free again; a `TokenClient` is one."""

    async def get_status(self) -> Mapping[str, Any] | None:
        """Return a mapping with `reset_time_seconds`, None where it is not known."""
        ...


class Decorator(Protocol):
    """Makes a coroutine function of a function."""

    @overload
    def __call__(
        self, func: Callable[_P, Awaitable[_T]], /
    ) -> Callable[_P, Coroutine[Any, Any, _T]]: ...
    @overload
    def __call__(self, func: Callable[_P, _T], /) -> Callable[_P, Coroutine[Any, Any, _T]]: ...


@overload
async def with_token_limit_retry(
    func: Callable[..., Awaitable[_T]],
    token_client: StatusSource,
    max_retries: int = 3,
    *args: Any,
    retry_jitter_s: float = 0.0,
    retry_deadline_s: float | None = None,
    **kwargs: Any,
) -> _T: ...
@overload
async def with_token_limit_retry(
    func: Callable[..., _T],
    token_client: StatusSource,
    max_retries: int = 3,
    *args: Any,
    retry_jitter_s: float = 0.0,
    retry_deadline_s: float | None = None,
    **kwargs: Any,
) -> _T: ...
async def with_token_limit_retry(
    func: Callable[..., Any],
    token_client: StatusSource,
    max_retries: int = 3,
    *args: Any,
    retry_jitter_s: float = 0.0,
    retry_deadline_s: float | None = None,
    **kwargs: Any,
) -> Any:
    """Call a function, and again after each denial once the budget is free; return its value.

    Only a ValueError whose text has `would be exceeded` is tried again, after the status's
    `reset_time_seconds` + 1 s; a pydantic ValidationError is not, whatever it quotes. Everything
    else passes as it was raised: other errors, the denial of the last attempt, and a denial where
    there is no status, or none with a finite `reset_time_seconds`. Cancelling passes at once, also
    out of a wait.

    Args:
        func: coroutine function or plain function; what it returns is awaited where that can be.
        token_client: asked for the status after a denial.
        max_retries: attempts, the first counted, 1 or more.
        args: of the function.
        retry_jitter_s: seconds at most that are waited besides, evenly spread, 0 or more: many that
            wait for the same reset do not come at once.
        retry_deadline_s: seconds from now after which no wait may end, 0 or more: one that would is
            not begun, and the denial passes. None for as long as the resets take.
        kwargs: of the function.

    Raises:
        ValueError: a number is out of its range; and what `func` raises.
    """
    retry = TokenLimitRetry(token_client, max_retries, retry_jitter_s, retry_deadline_s)
    return await retry.call(func, *args, **kwargs)


def with_token_limit_retry_decorator(
    token_client: StatusSource,
    max_retries: int = 3,
    *,
    retry_jitter_s: float = 0.0,
    retry_deadline_s: float | None = None,
) -> Decorator:
    """Make each call of a function, or of a method, one of `with_token_limit_retry`.

    What is decorated keeps its name and its docstring, and has to be awaited.

    Args and raises: as `with_token_limit_retry`; numbers are looked at when this is called.
    """
    retry = TokenLimitRetry(token_client, max_retries, retry_jitter_s, retry_deadline_s)

    def decorate(func: Callable[..., Any], /) -> Callable[..., Coroutine[Any, Any, Any]]:
        @functools.wraps(func)
        async def retried(*args: Any, **kwargs: Any) -> Any:
            return await retry.call(func, *args, **kwargs)

        return retried

    return decorate


class TokenLimitRetry:
    """The rule that the functions above follow. Any number of calls may use one at once.

    Args:
        token_client, max_retries, jitter_s, deadline_s: as `with_token_limit_retry` has them.
        sleep: waits for seconds; for tests.
        clock: seconds that only grow; for tests.
        random: gives numbers from 0 up to 1; for tests.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        token_client: StatusSource,
        max_retries: int = 3,
        jitter_s: float = 0.0,
        deadline_s: float | None = None,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = randomness.random,
    ) -> None:
        _check_attempts(max_retries)
        _check_seconds("retry_jitter_s", jitter_s)
        if deadline_s is not None:
            _check_seconds("retry_deadline_s", deadline_s)
        self._token_client = token_client
        self._max_retries = max_retries
        self._jitter_s = jitter_s
        self._deadline_s = math.inf if deadline_s is None else deadline_s
        self._sleep = sleep
        self._clock = clock
        self._random = random

    async def call(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Return the function's value; raise what it raises, once no attempt is left."""
        deadline = self._clock() + self._deadline_s
        attempt = 1
        while True:
            with bound(attempt=attempt):
                try:
                    return await _value(func(*args, **kwargs))
                except ValueError as error:
                    if attempt >= self._max_retries or not is_denial(error):
                        raise
                    wait_s = await self._wait_s(error, attempt, deadline)
                    if wait_s is None:
                        raise
                # Outside of `except`, so that nothing of the failed attempt is kept meanwhile.
                await self._sleep(wait_s)
            attempt += 1

    async def _wait_s(self, denial: ValueError, attempt: int, deadline: float) -> float | None:
        """Return the seconds until the next attempt, None where there is to be none; log either."""
        reset_s = await self._reset_s()
        fields: dict[str, Any] = {"attempt": attempt, "reason": public_text(denial)}
        if reset_s is None:
            told = "not tried again: when there will be budget is not known"
            _observer.say(logging.WARNING, told, **fields)
            return None
        wait_s = max(0.0, reset_s + MARGIN_S) + self._random() * self._jitter_s
        fields["wait_s"] = wait_s
        if self._clock() + wait_s > deadline:
            told = f"not tried again: the wait would end after the {self._deadline_s:g} s allowed"
            _observer.say(logging.WARNING, told, **fields)
            return None
        _observer.say(logging.WARNING, "waiting for budget", **fields)
        return wait_s

    async def _reset_s(self) -> float | None:
        """Return the seconds until the budget is free, None where nobody can tell."""
        try:
            status = await self._token_client.get_status()
        except Exception as error:
            _observer.failed("the status of the budget could not be had", error)
            return None
        reset_s = status.get("reset_time_seconds") if isinstance(status, Mapping) else None
        return _finite(reset_s)


async def _value(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


def _finite(number: Any) -> float | None:
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return None
    try:
        return float(number) if math.isfinite(number) else None
    except OverflowError:  # a whole number beyond all floats
        return None


def _check_attempts(max_retries: int) -> None:
    if isinstance(max_retries, bool) or not isinstance(max_retries, int) or max_retries < 1:
        raise ValueError(
            f"max_retries={max_retries!r} must be a whole number of 1 or more, which counts "
            "attempts: 1 tries once"
        )


def _check_seconds(name: str, seconds: float) -> None:
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{name}={seconds!r} must be a number of seconds, 0 or more")
