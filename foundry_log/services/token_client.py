"""TokenClient: asks a budget server for tokens before a call, and tells it what the call came to.

    POST /lock      tokens, before the call          POST /release   all of them, if it failed
    POST /report    what it used, after the call     GET  /status    what is free, and when

Attempts of one call bear the same `Idempotency-Key`, so that whatever the network loses a lock is
granted once. A server that ignores the key may grant again; the first lock then expires.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import random as randomness
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from foundry_log.backoff import wait_s
from foundry_log.context import bound
from foundry_log.error_tracker import ErrorTracker
from foundry_log.extras import import_extra
from foundry_log.files.locks import thread_lock
from foundry_log.metrics import MetricsLogger
from foundry_log.redaction import REPLACEMENT, Redactor
from foundry_log.services.loggable import public_text
from foundry_log.services.loop_sessions import LoopSession, Work
from foundry_log.services.observing import Observer
from foundry_log.services.server_health import BudgetServerError, ServerHealth

MAX_CALL_S = 30.0
"""Seconds at most from a call to its end, attempts and waits together; `timeout_s` if longer."""
UNDONE_WITHIN_S = 10.0
"""Seconds at most that the end waits for locks that are being given back."""
MAX_UNDOING = 1_000
"""Locks at most that are being given back at once; others are left to expire."""
MAX_DETAIL = 300
"""Characters of a server's own words in a failure."""
MAX_WORDS = 4 * MAX_DETAIL
"""Characters of a server's own words that are looked through for secrets; of a denial's all that
are told."""
MAX_REFUSAL = 16_384
"""Bytes that are read of an answer whose status is not 200."""
MAX_ANSWER = {"lock": 65_536, "status": 4 * 1024 * 1024}
"""Bytes of an answer that is read, by path: a status names 1,000 applications at most. Of other
answers the status code says all."""

_DELAY_S = 1.0
_LEAST_TIMEOUT_S = 0.001  # aiohttp takes 0 and less for "none"
_FASTER = 10.0  # than the waits of `backoff`, made for servers far away: this one is next door
_MAY_PASS = frozenset({429, 500, 502, 503, 504})
_WRONG_REQUEST = frozenset({400, 409, 413, 415, 422})
_MAY_BE_DONE = frozenset({502, 504})  # a proxy has lost the answer
_JSON_TYPE = re.compile(r"application/(?:[\w.+-]+\+)?json", re.IGNORECASE)

_redactor = Redactor()


@dataclass(frozen=True)
class _Call:
    """What the server is asked for, in as many attempts as it takes."""

    path: str
    body: Mapping[str, Any] | None = None
    key: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class _Outcome:
    """What came of a call: the server's answer, or a failure."""

    answer: Mapping[str, Any]
    failure: BudgetServerError | None
    may_be_done: bool
    retries: int
    latency_s: float


class TokenClient:
    """Locks, reports and releases tokens of a shared budget; every failure is a value.

    No call raises anything but CancelledError, whatever its arguments are and the server does: what
    is sent is judged by the server alone. A call takes MAX_CALL_S (30 s) at most, or `timeout_s`
    where that is more. Connection failures, timeouts and statuses 429, 500, 502, 503 and 504 are
    tried again after 0.1 s and more, or after the Retry-After that the server asks for, 30 s of it
    at most; never where the wait would pass the end of the call. Redirects are not followed, and
    cookies not kept.

    A lock whose call was cancelled, or failed so that the server may have granted it, is given back
    by a task in the background.

    Use it as `async with`, or `await close()`. It may be used in several event loops, one after the
    other or in several threads, and after a fork: each loop has a session of its own, which closes
    with the loop at the latest where `asyncio.run` or the like ends it.

    Records are of `foundry_log.services.token_client`: DEBUG for what succeeds, WARNING for denials
    and retries, and for a failing server once per kind of failure until it answers again.

    Args:
        app_id: whose tokens they are; sent as it is.
        base_url: of the server, with or without a slash at its end. None: the environment's
            COUNTER_APP_BASE_URL, also where it is empty; where it is not set TOKEN_COUNTER_URL.
            Without any every call fails, and says so.
        bearer_token: sent with each request; None: the environment's COUNTER_APP_TOKEN; an empty
            one for none.
        timeout_s: seconds for one attempt, above 0.
        max_retries: attempts after the first, 0 or more.
        metrics: gets a line for each call: `lock_latency_s` (`report_…`, `release_…`, `status_…`),
            `lock_denials`, `budget_retries`, `budget_failures`.
        errors: gets the failures of the server, once per kind, in place of a WARNING.
        sleep: waits for seconds; for tests.
        clock: seconds that only grow; for tests.
        random: gives numbers from 0 up to 1; for tests.

    Raises:
        ImportError: aiohttp is missing.
        ValueError: a number is out of its range, or the bearer token cannot be sent.
    """

    def __init__(
        self,
        app_id: str,
        base_url: str | None = None,
        *,
        bearer_token: str | None = None,
        timeout_s: float = 10.0,
        max_retries: int = 2,
        metrics: MetricsLogger | None = None,
        errors: ErrorTracker | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = randomness.random,
    ) -> None:
        _check_settings(timeout_s, max_retries)
        self._aiohttp = import_extra("aiohttp", "budget", "TokenClient")
        self.app_id = app_id
        self.base_url = _base_url(base_url)
        self._bearer_token = _bearer_token(bearer_token)
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._sleep = sleep
        self._clock = clock
        self._random = random
        self._observer = Observer(
            logging.getLogger("foundry_log.services.token_client"), metrics, errors
        )
        self._health = ServerHealth(self._observer, is_tracked=errors is not None)
        self._sessions: dict[asyncio.AbstractEventLoop, LoopSession] = {}
        self._sessions_lock = thread_lock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.app_id!r} at {_where(self.base_url)}>"

    async def lock_tokens(self, token_count: int) -> tuple[bool, str | None, str | None]:
        """Ask for tokens before they are used.

        Args:
            token_count: tokens that the call may come to.

        Returns:
            `(True, request_id, None)` where they are granted: an id for `report_usage` or
            `release_tokens`, empty where the server gave none. `(False, None, why)` otherwise: the
            server's own words for a denial, and `Client error: …` for what failed.
        """
        call = _Call("lock", {"app_id": self.app_id, "token_count": token_count})
        with bound(application=self.app_id, tokens_asked=token_count):
            try:
                outcome = await self._asked(call)
            except asyncio.CancelledError:
                self._undo_in_background(call)
                raise
            if outcome.may_be_done:
                self._undo_in_background(call)
            return self._verdict(call, outcome)

    async def report_usage(
        self, request_id: str, prompt_tokens: int, completion_tokens: int
    ) -> bool:
        """Tell what a call came to, in place of what was locked for it; return whether it is told.

        Args:
            request_id: from `lock_tokens`.
            prompt_tokens: tokens of the prompt.
            completion_tokens: tokens of the reply.
        """
        figures = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        return await self._settled("report", request_id, figures)

    async def release_tokens(self, request_id: str) -> bool:
        """Give back what was locked, unused; return whether it is given back.

        Args:
            request_id: from `lock_tokens`.
        """
        return await self._settled("release", request_id, {})

    async def get_status(self) -> dict[str, Any] | None:
        """Return what the server says of its budget, None where it does not.

        With `client_app_id`, and `client_timestamp` in seconds since 1970.
        """
        call = _Call("status")
        with bound(application=self.app_id):
            outcome = await self._asked(call)
            self._finish(call, outcome, "status read")
        if outcome.failure is not None:
            return None
        return {
            **outcome.answer,
            "client_app_id": self.app_id,
            "client_timestamp": time.time(),
        }

    async def close(self) -> None:
        """Wait for locks that are being given back, UNDONE_WITHIN_S at most; close the session.

        That of the loop that runs; idempotent. A call after it opens a new one.
        """
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)  # who was cancelled just before has a lock to give back by now
        kept = self._sessions.get(loop)
        if kept is not None:
            await kept.finish()
        with self._sessions_lock:
            ended = self._sessions.pop(loop, None)
        if ended is not None:
            await ended.end()

    async def __aenter__(self) -> TokenClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    # --- what comes of a call ---

    def _verdict(self, call: _Call, outcome: _Outcome) -> tuple[bool, str | None, str | None]:
        if outcome.failure is not None:
            self._finish(call, outcome, "")
            return False, None, f"Client error: {outcome.failure}"
        if outcome.answer.get("allowed") is not True:
            words = self._blanked(_text(outcome.answer.get("message")))
            message = words[:MAX_WORDS] or "Unknown error"
            self._finish(call, outcome, "tokens denied", logging.WARNING, reason=message)
            return False, None, message
        request_id = _joined(outcome.answer)
        if request_id:
            self._finish(call, outcome, "tokens locked", request_id=request_id)
        else:
            told = "tokens locked without any id: their use cannot be reported"
            self._finish(call, outcome, told, logging.WARNING)
        return True, request_id, None

    async def _settled(self, path: str, request_id: Any, figures: Mapping[str, Any]) -> bool:
        """Report or release a lock; return whether the server did so."""
        call = _Call(path, {"app_id": self.app_id, **_ids(request_id), **figures})
        told = {f"tokens_{name.removesuffix('_tokens')}": of for name, of in figures.items()}
        done = "usage reported" if path == "report" else "tokens released"
        with bound(application=self.app_id, request_id=request_id):
            outcome = await self._asked(call)
            self._finish(call, outcome, done, **told)
        return outcome.failure is None

    def _finish(
        self, call: _Call, outcome: _Outcome, told: str, level: int = logging.DEBUG, **fields: Any
    ) -> None:
        """Log and measure a call that is over."""
        if outcome.failure is None:
            self._observer.say(
                level, told, latency_s=outcome.latency_s, retries=outcome.retries, **fields
            )
        elif outcome.failure.is_of_request:
            why = str(outcome.failure)
            self._observer.say(logging.WARNING, f"{call.path} refused", reason=why, **fields)
        figures: dict[str, float] = {f"{call.path}_latency_s": outcome.latency_s}
        if call.path == "lock":
            figures["lock_denials"] = float(told == "tokens denied")
        self._observer.measure(
            **figures,
            budget_retries=outcome.retries,
            budget_failures=float(outcome.failure is not None),
        )

    # --- locks that nobody waits for any more ---

    def _undo_in_background(self, call: _Call) -> None:
        session = self._session()
        if session.at_work >= MAX_UNDOING:
            text = f"{MAX_UNDOING} locks are being given back: others are left to expire"
            self._health.fails(BudgetServerError(text, "too many locks to give back"))
        else:
            session.start(Work(lambda: self._undo(call), self._tell_held))

    async def _undo(self, call: _Call) -> None:
        """Ask what came of a lock, by its key, and give back what was granted."""
        outcome = await self._asked(call)
        is_granted = outcome.answer.get("allowed") is True
        if outcome.failure is not None or (
            is_granted and not await self.release_tokens(_joined(outcome.answer))
        ):
            self._tell_held()

    def _tell_held(self) -> None:
        told = "a lock that nobody waits for may be held until it expires"
        self._observer.say(logging.WARNING, told)

    # --- the network ---

    async def _asked(self, call: _Call) -> _Outcome:
        """Return what came of a call; raises nothing but CancelledError."""
        began = self._clock()
        deadline = began + max(MAX_CALL_S, self._timeout_s)
        failures: list[BudgetServerError] = []
        while True:
            answer, failure = await self._attempt(call, deadline - self._clock())
            if failure is None:
                self._health.works()
                break
            failures.append(failure)
            if not await self._next_attempt(call, failures, deadline):
                self._health.fails(failure)
                break
        return _Outcome(
            answer=answer,
            failure=failure,
            may_be_done=failure is not None and any(failed.may_be_done for failed in failures),
            retries=len(failures) - (failure is not None),
            latency_s=self._clock() - began,
        )

    async def _next_attempt(
        self, call: _Call, failures: list[BudgetServerError], deadline: float
    ) -> bool:
        """Wait for the next attempt; return whether there is to be one."""
        waits_s = self._wait_s(failures)
        if waits_s is None or self._clock() + waits_s >= deadline:
            return False
        self._tell_retry(call, failures, waits_s)
        await self._sleep(waits_s)
        return self._clock() < deadline  # a loop may be blocked, and a machine suspended

    def _wait_s(self, failures: list[BudgetServerError]) -> float | None:
        """Return the seconds until the next attempt, None where there is to be none."""
        latest = failures[-1]
        if not latest.may_pass or len(failures) > self._max_retries:
            return None
        asked_s = latest.asked_s and latest.asked_s * _FASTER
        return wait_s(len(failures) - 1, _DELAY_S, asked_s, random=self._random) / _FASTER

    def _tell_retry(self, call: _Call, failures: list[BudgetServerError], waits_s: float) -> None:
        is_known = self._health.is_failing_by(failures[-1].cause)
        self._observer.say(
            logging.DEBUG if is_known else logging.WARNING,
            f"{call.path} is tried again",
            attempt=len(failures),
            wait_s=waits_s,
            reason=str(failures[-1]),
        )

    async def _attempt(
        self, call: _Call, left_s: float
    ) -> tuple[Mapping[str, Any], BudgetServerError | None]:
        timeout_s = max(_LEAST_TIMEOUT_S, min(self._timeout_s, left_s))
        try:
            return await self._exchange(call, timeout_s), None
        except BudgetServerError as error:
            return {}, error
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            return {}, self._told(error, timeout_s)  # another task has closed the session
        except Exception as error:
            return {}, self._told(error, timeout_s)

    async def _exchange(self, call: _Call, timeout_s: float) -> Mapping[str, Any]:
        if not self.base_url:
            text = "no base URL; set COUNTER_APP_BASE_URL, or give TokenClient a base_url"
            raise BudgetServerError(text, "no base URL")
        request: dict[str, Any] = {"method": "GET", "url": f"{self.base_url}/{call.path}"}
        if call.body is not None:
            headers = {"Content-Type": "application/json", "Idempotency-Key": call.key}
            request.update(method="POST", headers=headers, data=_encoded(call.body))
        timeout = self._aiohttp.ClientTimeout(total=timeout_s)
        request.update(timeout=timeout, allow_redirects=False)
        async with self._session().client.request(**request) as response:
            if response.status != 200:
                raise await self._refusal(response)
            return await _answer(response, MAX_ANSWER[call.path]) if call.path in MAX_ANSWER else {}

    async def _refusal(self, response: Any) -> BudgetServerError:
        status = response.status
        body = await _beginning(response, MAX_REFUSAL)
        detail = self._clean(_detail(body.decode(errors="replace")))
        return BudgetServerError(
            f"HTTP {status}: {detail or response.reason}",
            f"HTTP {status}",
            may_pass=status in _MAY_PASS,
            may_be_done=status in _MAY_BE_DONE,
            is_of_request=status in _WRONG_REQUEST,
            asked_s=_asked_s(response.headers.get("Retry-After")),
        )

    def _told(self, error: BaseException, timeout_s: float) -> BudgetServerError:
        """Return a failure of aiohttp's in our terms; its own words stay."""
        kind = type(error).__name__
        if isinstance(error, asyncio.TimeoutError):
            text = f"{kind}: no answer within {timeout_s:.3g} s"
            return _caused(error, text, may_pass=True, may_be_done=True)
        wrong_url = (self._aiohttp.InvalidURL, self._aiohttp.NonHttpUrlClientError)
        if isinstance(error, wrong_url):  # whose text may hold a password
            return BudgetServerError(f"{kind}: base_url is no http:// or https:// URL", kind)
        text = f"{kind}: {self._clean(public_text(error))}"
        if isinstance(error, self._aiohttp.ClientConnectorError):
            return _caused(error, text, may_pass=True)
        lost = (self._aiohttp.ClientConnectionError, self._aiohttp.ClientPayloadError)
        is_lost = isinstance(error, (*lost, asyncio.CancelledError))
        return _caused(error, text, may_pass=is_lost, may_be_done=is_lost)

    def _clean(self, text: str) -> str:
        """Return words of others, shortened, without secrets."""
        return _redactor.text(self._blanked(text)[:MAX_WORDS])[:MAX_DETAIL]

    def _blanked(self, text: str) -> str:
        """Return a text without our token, which a server may send back."""
        return text.replace(self._bearer_token, REPLACEMENT) if self._bearer_token else text

    def _session(self) -> LoopSession:
        """Return that of the running loop, opened if need be."""
        loop = asyncio.get_running_loop()
        with self._sessions_lock:
            session = self._sessions.get(loop)
            if session is None:
                for ended in [other for other in self._sessions if other.is_closed()]:
                    del self._sessions[ended]
                session = LoopSession(self._new_client(), UNDONE_WITHIN_S)
                self._sessions[loop] = session
            return session

    def _new_client(self) -> Any:
        bearer = {"Authorization": f"Bearer {self._bearer_token}"} if self._bearer_token else {}
        return self._aiohttp.ClientSession(
            headers=bearer, cookie_jar=self._aiohttp.DummyCookieJar()
        )


def _caused(error: BaseException, text: str, **kind: bool) -> BudgetServerError:
    failure = BudgetServerError(text, type(error).__name__, **kind)
    failure.__cause__ = error
    return failure


def _encoded(body: Mapping[str, Any]) -> bytes:
    """Return a body in JSON.

    Raises:
        BudgetServerError: an argument has no form in JSON, such as NaN.
    """
    try:
        return json.dumps(body, allow_nan=False).encode()
    except Exception as error:  # whatever an argument's class does when it is looked at
        text = f"{type(error).__name__}: {public_text(error)}"
        raise BudgetServerError(text, type(error).__name__, is_of_request=True) from error


async def _answer(response: Any, most: int) -> Mapping[str, Any]:
    """Return the JSON object that an answer holds.

    Raises:
        BudgetServerError: it holds none, or more than `most` bytes.
        ValueError: it is no JSON, or no UTF-8.
        RecursionError: it is nested too deep.
    """
    if not _JSON_TYPE.fullmatch(response.content_type):
        text = f"the answer is no JSON, unexpected mimetype: {response.content_type}"
        raise BudgetServerError(_redactor.text(text[:MAX_DETAIL]), "unexpected mimetype")
    body = await _beginning(response, most + 1)
    if len(body) > most:
        raise BudgetServerError(f"the answer has more than {most} bytes", "answer too long")
    answer = json.loads(body.decode())
    if not isinstance(answer, dict):
        raise BudgetServerError("the answer is no JSON object", "no JSON object")
    return answer


async def _beginning(response: Any, most: int) -> bytes:
    """Return the body of an answer, `most` bytes of it if it is longer."""
    body = bytearray()
    while len(body) < most and (chunk := await response.content.read(most - len(body))):
        body += chunk
    return bytes(body)


def _detail(body: str) -> str:
    """Return what an answer says is wrong: its `detail`, otherwise all of it."""
    with contextlib.suppress(ValueError, RecursionError):
        parsed = json.loads(body)
        if isinstance(parsed, dict) and "detail" in parsed:
            return str(parsed["detail"])
    return body


def _asked_s(retry_after: str | None) -> float | None:
    """Return the seconds that a Retry-After asks for: a number, or a date (RFC 9110, 10.2.3)."""
    if retry_after is None:
        return None
    try:
        return float(retry_after)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):
        return None


def _ids(request_id: Any) -> dict[str, Any]:
    """Return the ids that one of `lock_tokens` is made of: those before and behind a colon."""
    if not isinstance(request_id, str):
        return {"request_id": request_id}
    first, _, rest = request_id.partition(":")
    return {"request_id": first, "rate_request_id": rest} if rest else {"request_id": first}


def _joined(answer: Mapping[str, Any]) -> str:
    """Return one id for both that a grant has."""
    first, rest = _text(answer.get("request_id")), _text(answer.get("rate_request_id"))
    return f"{first}:{rest}" if rest else first


def _text(value: Any) -> str:
    """Return a text or a whole number of an answer as text; empty for all else."""
    return str(value) if isinstance(value, (str, int)) else ""


def _base_url(given: str | None) -> str:
    if given is None:
        given = os.environ.get("COUNTER_APP_BASE_URL")
    if given is None:
        given = os.environ.get("TOKEN_COUNTER_URL", "")
    return str(given).rstrip("/")


def _where(base_url: str) -> str:
    """Return scheme, host and port of a URL: what else it has may be secret."""
    if not base_url:
        return "no server"
    with contextlib.suppress(ValueError):
        url = urlsplit(base_url)
        if url.scheme in ("http", "https") and url.hostname:
            host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
            return f"{url.scheme}://{host}" + (f":{url.port}" if url.port is not None else "")
    return "a wrong URL"


def _bearer_token(given: str | None) -> str | None:
    token = os.environ.get("COUNTER_APP_TOKEN") if given is None else given
    if token and not all("!" <= letter <= "~" for letter in token):
        raise ValueError(
            "bearer_token (COUNTER_APP_TOKEN) has blanks, line ends or characters outside of "
            "ASCII, which no header carries: give visible ASCII characters"
        )
    return token or None


def _check_settings(timeout_s: float, max_retries: int) -> None:
    if not 0 < timeout_s < math.inf:
        raise ValueError(f"timeout_s={timeout_s!r} must be a number of seconds above 0; 10 usual")
    if not isinstance(max_retries, int) or max_retries < 0:
        raise ValueError(f"max_retries={max_retries!r} must be 0 or more: 0 tries once")


def _is_cancelled() -> bool:
    """Return whether this task is, and not merely something that it has waited for.

    Python 3.10 cannot tell.
    """
    cancelling: Callable[[], int] | None = getattr(asyncio.current_task(), "cancelling", None)
    return cancelling is None or cancelling() > 0
