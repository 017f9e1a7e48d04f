"""Requests to the model: which options they take, and how they are sent and answered."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from foundry_log.services.model_calls import Reply, Usage
from foundry_log.services.model_errors import OutputLengthError

_OURS = frozenset(
    {"stream", "model", "response_model", "messages", "max_retries", "hooks", "token_budget"}
)


def check_options(options: Mapping[str, Any]) -> None:
    """Raise a ValueError where an option is the service's own, or out of its range."""
    if taken := sorted(_OURS & options.keys()):
        raise ValueError(
            f"{', '.join(taken)} cannot be given as an option of one call: streams state no usage, "
            "and the others are the service's own"
        )
    for name in ("max_completion_tokens", "n"):
        value = options.get(name)
        if value or value == 0:  # the SDK's mark for what is not given is neither
            check_whole(name, value, 1)


async def send_metered(create: Callable[..., Any], request: Mapping[str, Any]) -> Reply:
    """Return the reply to a request through the SDK."""
    if inspect.iscoroutinefunction(create):
        raw = await create(**request)
    else:
        raw = await asyncio.to_thread(_called, create, request)
    return Reply.of_raw(raw, _limit_of(request))


async def send_stand_in(create: Callable[..., Any], request: Mapping[str, Any]) -> Reply:
    """Return what a stand-in for instructor gives, off the loop unless it is asynchronous."""
    if inspect.iscoroutinefunction(create):
        result = await create(**request)
    else:
        result = await asyncio.to_thread(_called, create, request)
        if inspect.isawaitable(result):
            result = await result
    raw = getattr(result, "_raw_response", None)
    text = result.model_dump_json() if isinstance(result, BaseModel) else ""
    return Reply(result, Usage.of(raw), text)


def _called(create: Callable[..., Any], request: Mapping[str, Any]) -> Any:
    try:
        return create(**request)
    except (StopIteration, asyncio.CancelledError, concurrent.futures.CancelledError) as error:
        # A future does not take the one, and takes the others for our own cancellation.
        raise RuntimeError(f"the model's client raised {type(error).__name__}") from error


def unwrapped(error: Exception, request: Mapping[str, Any]) -> BaseException:
    """Return what an error of instructor stands for; others stay what they are."""
    if not type(error).__module__.startswith("instructor."):
        return error
    if type(error).__name__ == "IncompleteOutputException":
        return OutputLengthError(_limit_of(request))
    return error.__cause__ or error


def _limit_of(request: Mapping[str, Any]) -> int | None:
    return request.get("max_completion_tokens") or request.get("max_tokens")


def limit_name(model: str) -> str:
    """Return the option that limits a reply: models that reason take another one."""
    reasons = model.lower().startswith(("o1", "o3", "o4", "gpt-5"))
    return "max_completion_tokens" if reasons else "max_tokens"


def check_whole(name: str, value: int, least: int) -> None:
    """Raise a ValueError if a value is no whole number of `least` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number of {least} or more")
