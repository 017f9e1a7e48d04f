"""The openai client that the service makes: its access, its deadline, its retries as they happen.

openai is handed in, so that one file alone imports it.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
from collections.abc import Coroutine, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

from foundry_log.extras import import_extra
from foundry_log.services.observing import Observer

_SCOPE = "https://cognitiveservices.azure.com/.default"

_T = TypeVar("_T")

_answer: ContextVar[tuple[int, float] | None] = ContextVar("foundry_log_answer", default=None)
"""Status and time of the last answer to the call at hand."""


def model_client(
    openai: Any,
    found: Mapping[str, str],
    observer: Observer,
    *,
    max_retries: int,
    timeout_s: float,
) -> tuple[Any, Any]:
    """Return an AsyncAzureOpenAI and its credential, which is None where there is a key.

    Args:
        openai: the package.
        found: `endpoint`, `version` and `key`, which may be empty.
        observer: is told of the SDK's retries.
        max_retries: as the SDK has it.
        timeout_s: seconds for one request, its answer read whole.

    Raises:
        ImportError: azure-identity is missing, and there is no key.
    """
    access: dict[str, Any] = {"api_key": found["key"]}
    credential = None
    if not found["key"]:
        identity = import_extra("azure.identity.aio", "llm", "AzureOpenAIService without a key")
        credential = identity.DefaultAzureCredential()
        access = {"azure_ad_token_provider": identity.get_bearer_token_provider(credential, _SCOPE)}
    client = openai.AsyncAzureOpenAI(
        azure_endpoint=found["endpoint"],
        api_version=found["version"],
        max_retries=max_retries,
        timeout=timeout_s,
        http_client=_http_client(openai, observer, timeout_s),
        **access,
    )
    return client, credential


def _http_client(openai: Any, observer: Observer, timeout_s: float) -> Any:
    base: type[Any] = openai.DefaultAsyncHttpxClient
    http = importlib.import_module(base.__mro__[1].__module__)  # httpx2; httpx before openai 3

    class TimedClient(base):  # type: ignore[misc]
        """Ends each request in time: a timeout of httpx bounds every read for itself."""

        async def send(self, request: Any, **options: Any) -> Any:
            _tell_retry(observer, request)
            try:
                response = await _within(timeout_s, super().send(request, **options))
            except asyncio.TimeoutError as error:
                text = f"no whole answer within {timeout_s:g} s"
                raise http.ReadTimeout(text, request=request) from error
            _answer.set((response.status_code, time.monotonic()))
            return response

    return TimedClient()


async def _within(seconds: float, work: Coroutine[Any, Any, _T]) -> _T:
    """Return what work comes to; `wait_for` may swallow a cancellation below Python 3.12.

    Raises:
        asyncio.TimeoutError: it has not ended in time, and was cancelled.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task], timeout=seconds)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    if task.cancelled():
        raise asyncio.TimeoutError
    return task.result()


def _tell_retry(observer: Observer, request: Any) -> None:
    """Tell of a request that the SDK sends again."""
    answer, retry = _answer.get(), request.headers.get("x-stainless-retry-count", "0")
    _answer.set(None)
    if retry == "0":
        return
    status, answered = answer or (None, None)
    observer.say(
        logging.WARNING,
        "a request is sent again",
        retries=int(retry),
        status=status,
        wait_s=None if answered is None else time.monotonic() - answered,
        reason=None if answered is not None else "no answer",
    )
