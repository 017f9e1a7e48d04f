"""One structured completion: attempts that are locked before and settled after, and their sum.

    before each attempt    lock_tokens(what it may come to)      denied: ValueError, nothing is held
    a reply came           report_usage(what it came to)         by our own count where it has none
    none came              release_tokens()

A settlement outlives whoever waits for it, so that no lock stays because a caller was cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from foundry_log.context import bound
from foundry_log.services.loggable import public_text
from foundry_log.services.model_errors import (
    TokenBudgetError,
    UnreadableReplyError,
    refusal,
    stop_error,
)
from foundry_log.services.observing import Observer
from foundry_log.services.token_counting import TokenCounter

_CLIENT_ERROR = "Client error"
"""Begins what a `TokenClient` says where the budget server has failed."""

_T = TypeVar("_T")


class TokenBudget(Protocol):
    """Grants tokens; a `TokenClient` is one.

    A lock whose caller is cancelled while it waits for it is given back by the budget itself.
    """

    async def lock_tokens(self, token_count: int) -> tuple[bool, str | None, str | None]:
        """Return whether tokens are granted, under which id, and why not."""
        ...

    async def report_usage(
        self, request_id: str, prompt_tokens: int, completion_tokens: int
    ) -> bool:
        """Tell what a grant came to; return whether it is told."""
        ...

    async def release_tokens(self, request_id: str) -> bool:
        """Give a grant back; return whether it is given back."""
        ...


@dataclass(frozen=True)
class Usage:
    """Tokens of one reply."""

    prompt: int
    completion: int

    @classmethod
    def of(cls, completion: Any) -> Usage | None:
        """Return the usage that a chat completion states, None where it states none."""
        usage = getattr(completion, "usage", None)
        prompt = getattr(usage, "prompt_tokens", None)
        completed = getattr(usage, "completion_tokens", None)
        if isinstance(prompt, int) and isinstance(completed, int) and min(prompt, completed) >= 0:
            return cls(prompt, completed)
        return None


@dataclass(frozen=True)
class Reply:
    """What came back from a model.

    Args:
        value: the chat completion, or what a stand-in gives in its place.
        usage: that it states.
        text: of what the model has written, to be counted where no usage is stated.
        finish_reason: why it ended.
        retries: that the SDK has made for it.
        error: what is wrong with it.
    """

    value: Any
    usage: Usage | None = None
    text: str = ""
    finish_reason: str | None = None
    retries: int = 0
    error: Exception | None = None

    @classmethod
    def of_raw(cls, raw: Any, max_tokens: int | None) -> Reply:
        """Return the reply that a raw response of the SDK holds."""
        retries = raw.retries_taken
        try:
            completion = raw.parse()
        except Exception as error:  # whatever the body makes the SDK raise
            return cls(None, retries=retries, error=error)
        usage = Usage.of(completion)
        try:
            choices = completion.choices
            return cls(
                completion,
                usage,
                text="".join(each.message.model_dump_json() for each in choices if each.message),
                finish_reason=getattr(choices[0], "finish_reason", None),
                retries=retries,
                error=stop_error(choices[0], max_tokens) or _lack(choices[0]),
            )
        except Exception:  # the SDK's classes hold whatever a server sends
            return cls(completion, usage, retries=retries, error=UnreadableReplyError())


def _lack(choice: Any) -> UnreadableReplyError | None:
    return None if choice.message else UnreadableReplyError()


@dataclass
class TokenBound:
    """What the attempts of one result may come to, those made again after a denial too.

    Args:
        limit: tokens; None for no bound.
        used: tokens of the replies until now.
    """

    limit: int | None = None
    used: int = 0

    def check(self, asked: int) -> None:
        """Raise a TokenBudgetError if one more attempt may pass the bound."""
        if self.limit is not None and self.used + asked > self.limit:
            raise TokenBudgetError(self.used, asked, self.limit)


class LastingTasks:
    """Tasks that go on when whoever waits for them is cancelled. Used from one event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Future[Any]] = set()

    def start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Start a task that `finished` waits for."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """Have `finished` wait for what is done inside."""
        end = asyncio.get_running_loop().create_future()
        self._tasks.add(end)
        try:
            yield
        finally:
            self._tasks.discard(end)
            end.cancel()

    async def finished(self, deadline_s: float) -> int:
        """Wait for all of it, what is begun meanwhile too; return how much is left."""
        ends = time.monotonic() + deadline_s
        while self._tasks and (left_s := ends - time.monotonic()) > 0:
            await asyncio.wait(self._tasks, timeout=left_s)
        return len(self._tasks)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # so that asyncio does not tell what nobody waits for any more


@dataclass
class Figures:
    """What the attempts of one call add up to."""

    attempts: int = 0
    retries: int = 0
    denials: int = 0
    tokens_asked: int = 0
    tokens_prompt: int = 0
    tokens_completion: int = 0
    tokens_refunded: int = 0

    @property
    def tokens_used(self) -> int:
        """Tokens of all replies."""
        return self.tokens_prompt + self.tokens_completion

    def all(self) -> dict[str, int]:
        """Return them by name."""
        return {**vars(self), "tokens_used": self.tokens_used}


@dataclass(frozen=True)
class _Lock:
    request_id: str
    tokens: int


@dataclass
class ModelCall:
    """One call of a model, in as many attempts as its replies need to be valid.

    Args:
        budget: asked before each attempt.
        counter: counts what is sent, and replies that state no usage.
        tasks: in which settlements outlive the caller.
        observer: gets one record and one line of metrics for the call.
        allowance: tokens of a reply that has no limit.
        total: bound of all attempts together.
        watches_retries: whether somebody else tells of the SDK's retries as they happen.
    """

    budget: TokenBudget
    counter: TokenCounter
    tasks: LastingTasks
    observer: Observer
    allowance: int
    total: TokenBound = field(default_factory=TokenBound)
    watches_retries: bool = False
    figures: Figures = field(default_factory=Figures)
    _request_id: str | None = None
    _finish_reason: str | None = None
    _is_estimated: bool = False
    _denial: tuple[int, str] | None = None
    _fault: BaseException | None = None
    _began: float = field(default_factory=time.perf_counter)
    _unsettled: list[asyncio.Task[Any]] = field(default_factory=list)

    async def run(self, work: Callable[[ModelCall], Awaitable[_T]]) -> _T:
        """Return what the work comes to; log and measure the call, however it ends."""
        try:
            result = await work(self)
        except asyncio.CancelledError:
            self.tasks.start(self._tell_once_settled(self._latency_s()))
            raise
        except Exception as error:
            self._tell_failure(error)
            raise
        self._tell(logging.INFO, "model call completed", self._latency_s())
        return result

    async def attempt(
        self,
        send: Callable[[], Awaitable[Reply]],
        request: Mapping[str, Any],
        *,
        is_threaded: bool = False,
    ) -> Any:
        """Return what the model answers; the tokens are locked before and settled after.

        Args:
            send: sends the request.
            request: what is sent, for the count.
            is_threaded: whether sending cannot be stopped, and so is settled when it is done.

        Raises:
            ValueError: the budget denies the tokens.
            TokenBudgetError: they would pass the call's own bound.
            Exception: what the SDK raises; what is wrong with the reply.
        """
        asked = await self.counter.counted(self.counter.request, request, self.allowance)
        lock = await self._locked(asked)
        with bound(request_id=lock.request_id, attempt=self.figures.attempts):
            self._tell_fault()
            self.observer.body("model prompt", request["messages"])
            exchange = self._exchange(send, request, lock)
            reply = await (self._lasting(exchange) if is_threaded else exchange)
        if reply.error is not None:
            raise reply.error
        return reply.value

    def note_fault(self, error: BaseException) -> None:
        """Note why a reply was not valid; the next attempt tells it."""
        self._fault = error

    async def _locked(self, asked: int) -> _Lock:
        self.total.check(asked)
        allowed, request_id, why = await self.budget.lock_tokens(asked)
        if not allowed:
            raise self._denied(why or "Unknown error")
        self.figures.attempts += 1
        self.figures.tokens_asked += asked
        self._request_id = request_id
        return _Lock(request_id or "", asked)

    def _denied(self, why: str) -> ValueError:
        """Note what kind of denial it is; return it."""
        if why.startswith(_CLIENT_ERROR):
            self._denial = logging.WARNING, "model call not made: the budget server failed"
        else:
            self.figures.denials += 1
            self._denial = logging.INFO, "model call denied: no tokens"
        return ValueError(why)

    async def _exchange(
        self, send: Callable[[], Awaitable[Reply]], request: Mapping[str, Any], lock: _Lock
    ) -> Reply:
        try:
            reply = await send()
        except GeneratorExit:  # no loop is left to release it in; it expires
            raise
        except Exception as error:
            self._note_retries(_retries_before(error))
            await self._lasting(self._release(lock))
            if (refused := refusal(error)) is not None:
                raise refused from error
            raise
        except BaseException:  # cancelled, or what ends a program
            self._start(self._release(lock))
            raise
        self._note_retries(reply.retries)
        self._finish_reason = reply.finish_reason
        self.observer.body("model reply", reply.text)
        await self._lasting(self._report(lock, request, reply))
        return reply

    def _start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = self.tasks.start(work)
        self._unsettled = [*(other for other in self._unsettled if not other.done()), task]
        return task

    async def _lasting(self, work: Coroutine[Any, Any, _T]) -> _T:
        task = self._start(work)
        await asyncio.wait([task])
        return task.result()

    # --- settlements ---

    async def _release(self, lock: _Lock) -> None:
        self.figures.tokens_refunded += lock.tokens
        await self._settled(self.budget.release_tokens(lock.request_id))

    async def _report(self, lock: _Lock, request: Mapping[str, Any], reply: Reply) -> None:
        usage = reply.usage
        if usage is None:
            self._is_estimated = True
            prompt = await self.counter.counted(self.counter.prompt, request)
            usage = Usage(prompt, self.counter.text(reply.text))
        self.figures.tokens_prompt += usage.prompt
        self.figures.tokens_completion += usage.completion
        self.total.used += usage.prompt + usage.completion
        self.figures.tokens_refunded += max(0, lock.tokens - usage.prompt - usage.completion)
        await self._settled(
            self.budget.report_usage(lock.request_id, usage.prompt, usage.completion)
        )

    async def _settled(self, settling: Awaitable[bool]) -> None:
        """Wait until a lock is settled; that it cannot be is told, and fails no call."""
        try:
            is_settled = await settling
        except Exception as error:
            self.observer.failed("a token lock could not be settled; it expires", error)
            return
        if not is_settled:
            self.observer.say(logging.WARNING, "a token lock was not settled; it expires")

    # --- what is told ---

    def _note_retries(self, retries: int) -> None:
        self.figures.retries += retries
        if retries and not self.watches_retries:
            self.observer.say(logging.WARNING, "the SDK sent a request again", retries=retries)

    def _tell_fault(self) -> None:
        if self._fault is not None:
            reason = public_text(self._fault)
            self._fault = None
            told = "the model's reply was not valid; it is asked again"
            self.observer.say(logging.WARNING, told, reason=reason)

    def _latency_s(self) -> float:
        return time.perf_counter() - self._began

    def _tell(self, level: int, message: str, latency_s: float, **fields: Any) -> None:
        self.observer.say(level, message, **fields, **self._facts(latency_s))
        has_failed = level > logging.INFO or self._denial is not None
        self._measure(latency_s, has_failed=has_failed)

    def _measure(self, latency_s: float, *, has_failed: bool) -> None:
        self.observer.measure(latency_s=latency_s, failed=int(has_failed), **self.figures.all())

    def _tell_failure(self, error: Exception) -> None:
        latency_s = self._latency_s()
        if self._denial is not None:
            level, told = self._denial
            self._tell(level, told, latency_s, reason=public_text(error))
            return
        self.observer.failed("model call failed", error, **self._facts(latency_s))
        self._measure(latency_s, has_failed=True)

    async def _tell_once_settled(self, latency_s: float) -> None:
        """Tell of a cancelled call; what it came to is known when its locks are settled."""
        while unsettled := [task for task in self._unsettled if not task.done()]:
            await asyncio.wait(unsettled)
        self._tell(logging.WARNING, "model call cancelled", latency_s)

    def _facts(self, latency_s: float) -> dict[str, Any]:
        return {
            "request_id": self._request_id,
            "latency_s": latency_s,
            "finish_reason": self._finish_reason,
            "tokens_estimated": True if self._is_estimated else None,
            **self.figures.all(),
        }


def _retries_before(error: Exception) -> int:
    """Return the retries that the SDK has made before it raised an error."""
    request = getattr(error, "request", None)
    count = getattr(request, "headers", {}).get("x-stainless-retry-count", "0")
    return int(count) if str(count).isdigit() else 0
