"""A TokenBudget for many processes: a small HTTP server, on aiohttp, in memory.

    GET  /health   {"status": "ok"}
    POST /lock     {"app_id", "token_count"} -> {"allowed", "request_id", "rate_request_id",
                   "message"}; a denial has status 200, too
    POST /report   {"request_id", "prompt_tokens", "completion_tokens", "rate_request_id"?}
                   -> {"success": true}
    POST /release  {"request_id", "rate_request_id"?} -> {"success": true}
    GET  /status   what `TokenBudget.status` returns

What is wrong with a request is told as {"detail": text}, with status 400, 401, 404, 405, 413, 415
or 422. A POST may carry an `Idempotency-Key`: the same request with the same key has one effect,
and gets the same answer again. The budget is in one process, and lost with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from foundry_log.context import bound
from foundry_log.error_tracker import ErrorTracker
from foundry_log.extras import import_extra
from foundry_log.metrics import MetricsLogger
from foundry_log.services.observing import Observer
from foundry_log.services.token_budget import BudgetError, Denial, Grant, Lock, Settled, TokenBudget

if TYPE_CHECKING:
    from aiohttp import web

    _Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_BODY = 65_536
"""Bytes of a request's body at most."""
MAX_KEY = 200
"""Characters of an `Idempotency-Key` at most."""
MAX_ANSWERS = 100_000
"""Answers at most that are kept for their `Idempotency-Key`; the oldest are forgotten first."""
KEPT_S = 3600.0
"""Seconds at most for which they are kept."""
EXPIRY_LOOK_S = 0.5
"""Seconds from one look for expired locks to the next, where nobody asks for anything."""
_WRITE_S = 1.0  # for an answer to reach its reader: to write it, and to read on after a refusal
_JSON = "application/json"
_SUCCESS = {"success": True}

_Asked = TypeVar("_Asked")


@contextlib.asynccontextmanager
async def serving(
    budget: TokenBudget,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    bearer_token: str | None = None,
    grace_s: float = 10.0,
    metrics: MetricsLogger | None = None,
    errors: ErrorTracker | None = None,
) -> AsyncIterator[str]:
    """Serve a budget inside of an `async with`, which gives the server's URL.

    Its end takes no new connections, and answers the requests that are at hand.

    Args:
        budget: used by this server alone.
        host: name or address to listen at, IPv6 too.
        port: 0 for any that is free.
        bearer_token: what callers have to send, but for /health; None lets in everybody.
        grace_s: seconds at the end to wait for requests whose body is still on its way.
        metrics: gets a line for each call that is settled, denied or expires.
        errors: gets what fails in the server itself.

    Raises:
        ImportError: aiohttp is missing.
        OSError: nobody can listen there.
        ValueError: `bearer_token` cannot stand in a header.
    """
    edge = _Edge(budget, bearer_token, metrics, errors)
    runner = edge.aio.AppRunner(
        edge.application(),
        logger=edge.http_log(),
        access_log=None,
        shutdown_timeout=_WRITE_S,
        lingering_time=_WRITE_S,
    )
    await runner.setup()
    try:
        site = edge.aio.TCPSite(runner, host, port)
        await site.start()
        yield _url(runner.addresses[0])
        await site.stop()
        await edge.finish(grace_s)
    finally:
        await runner.cleanup()


def make_app(
    budget: TokenBudget,
    *,
    bearer_token: str | None = None,
    metrics: MetricsLogger | None = None,
    errors: ErrorTracker | None = None,
) -> web.Application:
    """Return the server as an aiohttp application, for those who run it themselves.

    Args and raises: as `serving`.
    """
    return _Edge(budget, bearer_token, metrics, errors).application()


class _LockRequest(msgspec.Struct):
    app_id: str
    token_count: int


class _ReportRequest(msgspec.Struct):
    request_id: str
    prompt_tokens: int
    completion_tokens: int
    rate_request_id: str | None = None


class _ReleaseRequest(msgspec.Struct):
    request_id: str
    rate_request_id: str | None = None


class _RefusedError(Exception):
    """A request that is not carried out."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers


class _Answer(NamedTuple):
    status: int
    body: bytes


class _Edge:
    """From requests to calls of the budget, and back."""

    def __init__(
        self,
        budget: TokenBudget,
        bearer_token: str | None,
        metrics: MetricsLogger | None,
        errors: ErrorTracker | None,
    ) -> None:
        import_extra("aiohttp", "budget", "the budget server")
        self.aio: Any = import_extra("aiohttp.web", "budget", "the budget server")
        self._budget = budget
        self._authorization = _authorization(bearer_token)
        log = logging.getLogger("foundry_log.services.budget_server")
        self._observer = Observer(log, metrics, errors)
        self._answers = _Answers()
        self._at_hand = 0
        self._all_answered = asyncio.Event()
        self._is_ending = False

    def application(self) -> web.Application:
        async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
            return await self.guard(request, handler)  # aiohttp marks it, as it could no method

        app: web.Application = self.aio.Application(
            client_max_size=MAX_BODY, middlewares=[self.aio.middleware(guard)]
        )
        app.router.add_get("/health", self.health)
        app.router.add_get("/status", self.status)
        app.router.add_post("/lock", self.lock)
        app.router.add_post("/report", self.report)
        app.router.add_post("/release", self.release)
        app.cleanup_ctx.append(self.watching)
        return app

    def http_log(self) -> logging.Logger:
        """Return what aiohttp logs its own failures to."""
        log = logging.Logger("aiohttp.server", logging.WARNING)
        log.addHandler(_HttpFailures(self._observer))
        return log

    async def finish(self, grace_s: float) -> None:
        """Wait until the requests at hand are answered; aiohttp reads none of their bodies on."""
        self._is_ending = True
        if self._at_hand:
            self._all_answered.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._all_answered.wait(), grace_s)

    async def guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Answer a request, the last one of its connection where the server ends."""
        self._at_hand += 1
        try:
            response = await self._guarded(request, handler)
        finally:
            self._at_hand -= 1
            if not self._at_hand:
                self._all_answered.set()
        if self._is_ending:
            response.force_close()
        return response

    async def _guarded(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Let in who may come in, and answer each failure in JSON."""
        try:
            self._authorize(request)
            return await handler(request)
        except _RefusedError as refused:
            return self._refusal(refused.status, refused.detail, refused.headers)
        except self.aio.HTTPException as error:
            allow = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
            return self._refusal(error.status, error.text, allow)
        except Exception as error:
            self._observer.failed("request failed", error, status=500)
            return self._response(_Answer(500, _json({"detail": "internal error; see the log"})))

    async def health(self, request: web.Request) -> web.Response:
        return self._response(_Answer(200, b'{"status":"ok"}'))

    async def status(self, request: web.Request) -> web.Response:
        self._tell_expired()
        return self._response(_Answer(200, _json(self._budget.status())))

    async def lock(self, request: web.Request) -> web.Response:
        return await self._once(request, _LOCK, self._lock)

    async def report(self, request: web.Request) -> web.Response:
        return await self._once(request, _REPORT, self._report)

    async def release(self, request: web.Request) -> web.Response:
        return await self._once(request, _RELEASE, self._release)

    async def watching(self, app: web.Application) -> AsyncIterator[None]:
        """Tell which locks have expired while nobody asked for anything."""
        watch = asyncio.create_task(self._watch())
        yield
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch

    async def _watch(self) -> None:
        told = None
        while True:
            await asyncio.sleep(EXPIRY_LOOK_S)
            try:
                self._tell_expired()
                told = None
            except Exception as error:
                if repr(error) != told:
                    self._observer.failed("expired locks could not be looked for", error)
                told = repr(error)

    async def _once(
        self,
        request: web.Request,
        decoder: msgspec.json.Decoder[_Asked],
        act: Callable[[_Asked], dict[str, Any]],
    ) -> web.Response:
        """Do what a request asks for, unless its key says that it was done: then answer again.

        Nothing waits once the body is there, so that requests that come at once are one by one.
        """
        key = request.headers.get("Idempotency-Key")
        body = await self._body(request)
        if key is None:
            return self._response(self._answer(decoder, act, body))
        print_ = _digest(request.path.encode() + b"\n" + body)
        answer = self._answers.find(key, print_)
        if answer is None:
            answer = self._answer(decoder, act, body)
            self._answers.keep(key, print_, answer)
        return self._response(answer)

    def _answer(
        self,
        decoder: msgspec.json.Decoder[_Asked],
        act: Callable[[_Asked], dict[str, Any]],
        body: bytes,
    ) -> _Answer:
        self._tell_expired()
        try:
            return _Answer(200, _json(act(decoder.decode(body))))
        except UnicodeDecodeError as error:
            raise _RefusedError(400, "the body is no UTF-8") from error
        except (BudgetError, msgspec.DecodeError) as error:
            raise _RefusedError(400, str(error)) from error

    def _lock(self, asked: _LockRequest) -> dict[str, Any]:
        granted = self._budget.lock(asked.app_id, asked.token_count)
        with bound(application=asked.app_id):
            self._tell_lock(asked, granted)
        if isinstance(granted, Denial):
            ids = {"request_id": None, "rate_request_id": None}
            return {"allowed": False, **ids, "message": granted.message}
        return {"allowed": True, **granted._asdict(), "message": None}

    def _report(self, asked: _ReportRequest) -> dict[str, Any]:
        settled = self._budget.report(
            asked.request_id, asked.prompt_tokens, asked.completion_tokens, asked.rate_request_id
        )
        used = asked.prompt_tokens + asked.completion_tokens
        with _bound_to(settled):
            self._observer.say(
                logging.INFO,
                "usage reported",
                tokens_asked=settled.lock.tokens,
                tokens_prompt=asked.prompt_tokens,
                tokens_completion=asked.completion_tokens,
                tokens_used=used,
                tokens_refunded=max(0, settled.lock.tokens - used),
                latency_s=settled.held_s,
                reason="after its lock had expired" if settled.was_expired else None,
            )
            self._observer.measure(budget_tokens=used, budget_held_s=settled.held_s)
        return _SUCCESS

    def _release(self, asked: _ReleaseRequest) -> dict[str, Any]:
        settled = self._budget.release(asked.request_id, asked.rate_request_id)
        if settled is None:
            return _SUCCESS
        with _bound_to(settled):
            self._observer.say(
                logging.INFO,
                "lock released",
                tokens_refunded=0 if settled.was_expired else settled.lock.tokens,
                latency_s=settled.held_s,
                reason="after it had expired" if settled.was_expired else None,
            )
            self._observer.measure(budget_releases=1, budget_held_s=settled.held_s)
        return _SUCCESS

    def _tell_lock(self, asked: _LockRequest, granted: Grant | Denial) -> None:
        tokens = asked.token_count
        if isinstance(granted, Grant):
            name = _name_of(granted)
            self._observer.say(logging.DEBUG, "tokens locked", tokens_asked=tokens, request_id=name)
            return
        reason = granted.message
        self._observer.say(logging.WARNING, "tokens denied", tokens_asked=tokens, reason=reason)
        self._observer.measure(budget_denials=1)

    def _tell_expired(self) -> None:
        for lock in self._budget.take_expired():
            with bound(request_id=_name_of(lock), application=lock.app_id):
                self._observer.say(
                    logging.WARNING,
                    "lock expired: nobody reported or released it",
                    tokens_refunded=lock.tokens,
                )
                self._observer.measure(budget_expiries=1)

    def _authorize(self, request: web.Request) -> None:
        if self._authorization is None or request.path == "/health":
            return
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        given = f"{scheme.lower()} {token}".encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(_digest(given), self._authorization):
            detail = "the bearer token is missing or wrong: send `Authorization: Bearer …`"
            raise _RefusedError(401, detail, {"WWW-Authenticate": "Bearer"})

    async def _body(self, request: web.Request) -> bytes:
        if request.content_type != _JSON:
            raise _RefusedError(415, f"the body is no {_JSON}: say so in Content-Type")
        if len(request.headers.get("Idempotency-Key", "")) > MAX_KEY:
            raise _RefusedError(400, f"Idempotency-Key has more than {MAX_KEY} characters")
        if (request.content_length or 0) > MAX_BODY:
            raise self.aio.HTTPRequestEntityTooLarge(MAX_BODY, request.content_length)
        try:
            body: bytes = await request.read()
        except (self.aio.RequestPayloadError, OSError) as error:
            raise _RefusedError(400, "the body has not come in whole") from error
        return body

    def _refusal(
        self, status: int, detail: str, headers: dict[str, str] | None = None
    ) -> web.Response:
        self._observer.say(logging.WARNING, "request refused", status=status, reason=detail)
        return self._response(_Answer(status, _json({"detail": detail})), headers)

    def _response(self, answer: _Answer, headers: dict[str, str] | None = None) -> web.Response:
        response: web.Response = self.aio.Response(
            body=answer.body, status=answer.status, headers=headers, content_type=_JSON
        )
        return response


class _HttpFailures(logging.NullHandler):
    """Tells that aiohttp could not make a request of what came.

    Not with its own words and tracebacks, which quote what came: a bearer token, too.
    """

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self._observer = observer

    def handle(self, record: logging.LogRecord) -> bool:
        kind = record.exc_info[0] if record.exc_info else None
        told = "a request that is no HTTP was refused"
        self._observer.say(logging.WARNING, told, reason=kind.__name__ if kind else None)
        return True


class _Answers:
    """What was answered to which `Idempotency-Key`, for a while."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, most: int = MAX_ANSWERS
    ) -> None:
        self._clock = clock
        self._most = most
        self._kept: OrderedDict[str, tuple[float, bytes, _Answer]] = OrderedDict()

    def find(self, key: str, print_: bytes) -> _Answer | None:
        """Return the answer to the same request, None where there was none.

        Raises:
            _RefusedError: the key was that of another request.
        """
        self._forget()
        kept = self._kept.get(key)
        if kept is None:
            return None
        _, known, answer = kept
        if known != print_:
            raise _RefusedError(
                422, "this Idempotency-Key was sent with another request: use a new one"
            )
        return answer

    def keep(self, key: str, print_: bytes, answer: _Answer) -> None:
        self._kept[key] = (self._clock() + KEPT_S, print_, answer)

    def _forget(self) -> None:
        now = self._clock()
        while self._kept:
            until, _, _ = next(iter(self._kept.values()))
            if until > now and len(self._kept) < self._most:
                break
            self._kept.popitem(last=False)


_LOCK = msgspec.json.Decoder(_LockRequest)
_REPORT = msgspec.json.Decoder(_ReportRequest)
_RELEASE = msgspec.json.Decoder(_ReleaseRequest)
_json = msgspec.json.encode


def _bound_to(settled: Settled) -> bound:
    return bound(request_id=_name_of(settled.lock), application=settled.lock.app_id)


def _name_of(lock: Grant | Lock) -> str:
    """Return what `TokenClient` calls a lock, so that its records and ours can be joined."""
    return f"{lock.request_id}:{lock.rate_request_id}"


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _authorization(bearer_token: str | None) -> bytes | None:
    """Return the digest of the header that lets in, None where everybody may come.

    Raises:
        ValueError: no header can hold the token; its value is not told.
    """
    if bearer_token is None:
        return None
    if not bearer_token or not all("!" <= letter <= "~" for letter in bearer_token):
        raise ValueError(
            "bearer_token is empty, or has blanks, control characters or characters outside of "
            "ASCII: give visible ASCII characters"
        )
    return _digest(b"bearer " + bearer_token.encode())


def _url(address: tuple[Any, ...]) -> str:
    host, port = address[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
