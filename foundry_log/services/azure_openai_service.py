"""AzureOpenAIService: structured output of a model, within a budget of tokens.

    async with AzureOpenAIService(app_id="tickets") as service:
        ticket = await service.structured_completion(Ticket, messages)

What is locked and reported for it is in model_calls.py; what it fails with in model_errors.py; what
is sent in model_requests.py; the environment's variables in model_settings.py, and the client that
is made in model_client.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

from pydantic import BaseModel, PydanticUserError, TypeAdapter

from foundry_log.context import bound
from foundry_log.error_tracker import ErrorTracker
from foundry_log.extras import import_extra
from foundry_log.metrics import MetricsLogger
from foundry_log.services import prompts, sdk_loggers
from foundry_log.services.model_calls import LastingTasks, ModelCall, TokenBound
from foundry_log.services.model_client import model_client
from foundry_log.services.model_requests import (
    check_options,
    check_whole,
    limit_name,
    send_metered,
    send_stand_in,
    unwrapped,
)
from foundry_log.services.model_settings import settings
from foundry_log.services.observing import Observer
from foundry_log.services.retry_helpers import with_token_limit_retry
from foundry_log.services.token_client import TokenClient
from foundry_log.services.token_counting import TokenCounter

SETTLED_WITHIN_S = 30.0
"""Seconds at most that `close` waits for calls, and for token locks that are being settled."""

_QUIET = (
    ("openai", logging.WARNING),
    ("httpx", logging.WARNING),
    ("httpx2", logging.WARNING),
    ("httpcore", logging.WARNING),
    ("httpcore2", logging.WARNING),
    ("azure.identity", logging.WARNING),
    ("instructor", logging.CRITICAL),  # its errors quote replies
)
_T = TypeVar("_T")


class AzureOpenAIService:
    """Asks a model of Azure OpenAI for instances of pydantic models, and never blocks the loop.

    Each attempt, those that mend an invalid reply too, is locked at the budget server by an
    estimate first, and settled by what it came to: on every path, also when the caller is
    cancelled. One record and one line of metrics tell of each call.

    Belongs to one event loop. Use it as `async with`, or `await close()`.

    Args:
        model: name of the deployment; None: the environment's APP_OPENAI_ENGINE, or
            AZURE_OPENAI_DEPLOYMENT_NAME.
        app_id: whose tokens are used.
        token_counter_url: of the budget server; None: the environment's COUNTER_APP_BASE_URL, where
            that is not set TOKEN_COUNTER_URL.
        client: an openai client, asynchronous or synchronous, that stays the caller's to close.
            Requests of a synchronous one run in the threads of `asyncio.to_thread`, of which a loop
            has 4 more than CPUs and 32 at most: what waits for one holds its tokens meanwhile.
            None for an AsyncAzureOpenAI. That takes APP_OPENAI_API_VERSION, APP_OPENAI_API_BASE and
            APP_OPENAI_API_KEY, or AZURE_OPENAI_API_VERSION, AZURE_OPENAI_ENDPOINT and
            AZURE_OPENAI_API_KEY, from the environment; without a key DefaultAzureCredential.
        token_client: in place of one that is made, and stays the caller's to close.
        completion_allowance: tokens that a reply without `max_tokens` is estimated at, 1 or more.
        validation_retries: attempts after one whose reply was not valid, 0 or more.
        max_retries: the SDK's after 408, 409, 429, 5xx and lost connections, 0 or more.
        timeout_s: seconds for one request, its answer read whole, above 0. These two are of the
            client that is made: one that is given has its own.
        metrics: gets a line for each call: `latency_s`, `failed` (0 or 1: no result), `attempts`,
            `retries`, `denials`, `tokens_asked`, `tokens_prompt`, `tokens_completion`,
            `tokens_used`, `tokens_refunded`. What `structured_prompt` makes again is another call.
        errors: gets what fails; None for ERROR records.
        logs_bodies: whether prompts and replies are logged, at DEBUG and redacted.

    Raises:
        ImportError: openai, instructor, or without a key azure-identity, is missing.
        ValueError: a variable is missing (all that are, by name), or a number out of its range.
    """

    def __init__(
        self,
        model: str | None = None,
        app_id: str = "default_app",
        token_counter_url: str | None = None,
        *,
        client: Any = None,
        token_client: Any = None,
        completion_allowance: int = 1000,
        validation_retries: int = 2,
        max_retries: int = 2,
        timeout_s: float = 120.0,
        metrics: MetricsLogger | None = None,
        errors: ErrorTracker | None = None,
        logs_bodies: bool = False,
    ) -> None:
        check_whole("completion_allowance", completion_allowance, 1)
        check_whole("validation_retries", validation_retries, 0)
        check_whole("max_retries", max_retries, 0)
        if not 0 < timeout_s < math.inf:
            raise ValueError(f"timeout_s={timeout_s!r} must be seconds above 0; 120 are usual")
        found = settings(
            model,
            needs_client=client is None,
            needs_budget=token_client is None and not token_counter_url,
        )
        self._openai = import_extra("openai", "llm", "AzureOpenAIService")
        self._instructor = import_extra("instructor", "llm", "AzureOpenAIService")
        self.model: str = found["model"]
        self.app_id = app_id
        self.completion_allowance = completion_allowance
        self.validation_retries = validation_retries
        self._observer = Observer(
            logging.getLogger("foundry_log.services.azure_openai_service"),
            metrics,
            errors,
            logs_bodies=logs_bodies,
        )
        self._counter = TokenCounter(self.model, self._observer)
        self._tasks = LastingTasks()
        self._ending = contextlib.AsyncExitStack()  # what `close` does, last things first
        self._ending.callback(_let_sdks_speak)
        self._own_token_client: TokenClient | None = None
        if token_client is None:
            self._own_token_client = token_client = TokenClient(app_id, token_counter_url or None)
            self._ending.push_async_callback(self._end, token_client)
        self.token_client = token_client
        """What grants tokens; it may be replaced."""
        self._watched: Any = None
        if client is None:
            client, credential = model_client(
                self._openai, found, self._observer, max_retries=max_retries, timeout_s=timeout_s
            )
            self._watched = client
            if credential is not None:
                self._ending.push_async_callback(self._end, credential)
            self._ending.push_async_callback(self._end, client)
        self.client = client
        """The openai client."""
        self.instructor_client = self._instructor.from_openai(
            client, mode=self._instructor.Mode.TOOLS
        )
        """What is asked: instructor over any openai client, or an object with such a
        `chat.completions.create`, synchronous or not; it may be replaced."""
        self._ending.push_async_callback(self._finish)
        self._is_closing = False
        self._closing = asyncio.Lock()  # so that who closes too waits for the end
        for name, level in _QUIET:
            sdk_loggers.keep_quiet(name, level)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.model!r} for {self.app_id!r}>"

    def count_tokens(self, messages: Iterable[Mapping[str, Any]]) -> int:
        """Return the tokens of a prompt; token_counting.py says how they are counted."""
        return self._counter.messages(messages)

    def estimate_token_count(
        self,
        messages: Iterable[Mapping[str, Any]],
        max_tokens: int | None = None,
        response_model: Any = None,
    ) -> int:
        """Return what a call may come to: prompt, schema and reply.

        Args:
            messages: the prompt.
            max_tokens: limit of the reply; None: `completion_allowance`.
            response_model: whose schema is sent with the prompt; None for none.
        """
        request = {"messages": list(messages), "max_tokens": max_tokens}
        return self._counter.request(
            {**request, **self._tools(response_model)}, self.completion_allowance
        )

    def format_prompt(
        self,
        system_prompt: str,
        user_prompt: str,
        variables: Mapping[str, Any] | None = None,
        examples: Iterable[prompts.Example] | None = None,
    ) -> list[dict[str, Any]]:
        """Return the messages of a prompt; as `foundry_log.services.prompts.format_prompt`."""
        return prompts.format_prompt(system_prompt, user_prompt, variables, examples)

    async def structured_completion(
        self,
        response_model: type[_T],
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tokens: int | None = None,
        max_total_tokens: int | None = None,
        **options: Any,
    ) -> _T:
        """Return an instance of `response_model` that the model has filled in.

        Args:
            response_model: a pydantic model, or what else instructor takes.
            messages: the prompt, as the SDK takes it.
            max_tokens: limit of one reply, 1 or more; None for the model's own.
            max_total_tokens: bound of all attempts together, 1 or more; None for none.
            options: of the SDK's `create`, such as `temperature`.

        Raises:
            ValueError: the budget denies the tokens, in its words; or an argument is wrong.
            ContentFilterError: the prompt was refused, or the reply stopped.
            OutputLengthError: the reply was cut off at its limit.
            RefusalError: the model would not answer.
            TokenBudgetError: one more attempt would pass `max_total_tokens`.
            pydantic.ValidationError: the last reply was not valid.
            openai.OpenAIError: the SDK's own, once its retries are used up.
            RuntimeError: the service is closed.
        """
        total = _total(max_total_tokens)
        return await self._completion(response_model, messages, total, max_tokens, options)

    async def structured_prompt(
        self,
        response_model: type[_T],
        system_prompt: str,
        user_prompt: str,
        variables: Mapping[str, Any] | None = None,
        examples: Iterable[prompts.Example] | None = None,
        *,
        max_tokens: int | None = None,
        max_total_tokens: int | None = None,
        max_retries: int = 3,
        retry_jitter_s: float = 0.0,
        retry_deadline_s: float | None = None,
        **options: Any,
    ) -> _T:
        """Format a prompt and complete it, again once there is budget where it was denied.

        Args:
            response_model: as `structured_completion`.
            system_prompt: as `format_prompt`.
            user_prompt: as `format_prompt`.
            variables: as `format_prompt`.
            examples: as `format_prompt`.
            max_tokens: as `structured_completion`.
            max_total_tokens: as there, over all that is tried again.
            max_retries: attempts to get the budget, the first counted, 1 or more.
            retry_jitter_s: as `with_token_limit_retry`.
            retry_deadline_s: as `with_token_limit_retry`.
            options: as `structured_completion`.

        Raises:
            ValueError: a template variable is missing; and what `structured_completion` raises.
        """
        messages = self.format_prompt(system_prompt, user_prompt, variables, examples)
        total = _total(max_total_tokens)
        return await with_token_limit_retry(
            functools.partial(
                self._completion, response_model, messages, total, max_tokens, options
            ),
            self.token_client,
            max_retries,
            retry_jitter_s=retry_jitter_s,
            retry_deadline_s=retry_deadline_s,
        )

    async def close(self) -> None:
        """Wait for calls and for locks that are being settled; close what was made.

        It waits SETTLED_WITHIN_S (30 s) at most, and not where it is cancelled; new calls are
        refused from its beginning. Idempotent.
        """
        self._is_closing = True
        async with self._closing:
            await self._ending.aclose()

    async def __aenter__(self) -> AzureOpenAIService:
        """Load the vocabulary, so that no call takes the time for it, and look for the budget.

        A budget server that fails is told by its client's record, and refuses nothing here. A
        `token_client` that was given is not asked.
        """
        try:
            await asyncio.gather(asyncio.to_thread(self._counter.load), self._look_for_budget())
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _look_for_budget(self) -> None:
        if self._own_token_client is not None:
            await self._own_token_client.get_status()

    async def _finish(self) -> None:
        if left := await self._tasks.finished(SETTLED_WITHIN_S):
            told = f"{left} calls or token locks are not settled yet; locks that never are expire"
            self._observer.say(logging.WARNING, told)

    async def _end(self, made: Any) -> None:
        try:
            await made.close()
        except Exception as error:  # the others are closed all the same
            self._observer.failed("closing failed", error)

    # --- one call ---

    async def _completion(
        self,
        response_model: type[_T],
        messages: Sequence[Mapping[str, Any]],
        total: TokenBound,
        max_tokens: int | None,
        options: Mapping[str, Any],
    ) -> _T:
        if self._is_closing:
            raise RuntimeError("the AzureOpenAIService is closed: make another for more calls")
        check_options(options)
        if max_tokens is not None:
            check_whole("max_tokens", max_tokens, 1)
        call = ModelCall(
            self.token_client,
            self._counter,
            self._tasks,
            self._observer,
            self.completion_allowance,
            total,
            watches_retries=self._is_watched(),
        )
        request = {"model": self.model, "messages": list(messages), **options}
        if max_tokens is not None:
            request[limit_name(self.model)] = max_tokens
        with self._tasks.awaited(), bound(application=self.app_id, model=self.model):
            return await call.run(functools.partial(self._complete, response_model, request))

    async def _complete(
        self, response_model: type[_T], request: dict[str, Any], call: ModelCall
    ) -> _T:
        """Return the result; raise what the SDK or pydantic raised, unwrapped."""
        ask = self._ask_metered if self._is_metered() else self._ask_stand_in
        try:
            result: _T = await ask(response_model, request, call)
            return result
        except Exception as error:
            cause = unwrapped(error, request)
            if cause is error:
                raise
        raise cause

    def _is_metered(self) -> bool:
        """Whether each request can be seen: an instructor over an openai client, as it was made."""
        made = self.instructor_client
        return (
            isinstance(made, self._instructor.Instructor)
            and "create" not in vars(made)
            and isinstance(made.client, (self._openai.OpenAI, self._openai.AsyncOpenAI))
        )

    def _is_watched(self) -> bool:
        """Whether the requests are those of the client that was made here."""
        used = getattr(self.instructor_client, "client", None)
        return self._watched is not None and used is self._watched

    async def _ask_metered(
        self, response_model: Any, request: dict[str, Any], call: ModelCall
    ) -> Any:
        made = self.instructor_client
        send = made.client.chat.completions.with_raw_response.create
        is_threaded = isinstance(made.client, self._openai.OpenAI)

        async def create(**sent: Any) -> Any:
            return await call.attempt(
                functools.partial(send_metered, send, sent), sent, is_threaded=is_threaded
            )

        hooks = self._instructor.hooks.Hooks()
        hooks.on("parse:error", call.note_fault)
        ask = self._instructor.patch(create=create, mode=made.mode, provider=made.provider)
        return await ask(
            response_model=response_model,
            max_retries=self.validation_retries,
            hooks=made.hooks + hooks,
            **made.handle_kwargs(request),
        )

    async def _ask_stand_in(
        self, response_model: Any, request: dict[str, Any], call: ModelCall
    ) -> Any:
        create = self.instructor_client.chat.completions.create
        send = functools.partial(
            send_stand_in, create, {"response_model": response_model, **request}
        )
        return await call.attempt(
            send,
            {**request, **self._tools(response_model)},
            is_threaded=not inspect.iscoroutinefunction(create),
        )

    def _tools(self, response_model: Any) -> dict[str, Any]:
        """Return the schema that instructor sends for a model, as far as it is to be counted."""
        if response_model is None:
            return {}
        try:
            if inspect.isclass(response_model) and issubclass(response_model, BaseModel):
                schema = self._instructor.generate_openai_schema(response_model)
            else:
                schema = TypeAdapter(response_model).json_schema()
        except (PydanticUserError, TypeError):
            return {}
        return {"tools": [{"type": "function", "function": schema}]}


def _total(max_total_tokens: int | None) -> TokenBound:
    if max_total_tokens is not None:
        check_whole("max_total_tokens", max_total_tokens, 1)
    return TokenBound(max_total_tokens)


def _let_sdks_speak() -> None:
    for name, _ in _QUIET:
        sdk_loggers.let_go(name)
