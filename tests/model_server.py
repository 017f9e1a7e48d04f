"""A server on loopback that speaks the chat completions of Azure OpenAI, and fails as it is told.

    async with running_model() as server:
        server.answers(fails(429, {"Retry-After": "0"}), replies({"name": "Ada", "age": 36}))
        ...  # clients use server.url
        assert len(server.requests) == 2

Each answer serves one request, in order; the last one serves all that follow. An answer is a
coroutine function of an aiohttp request and its body.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

PROMPT_TOKENS, COMPLETION_TOKENS = 50, 20
READY_WITHIN_S = 10.0

Answer = Callable[[web.Request, Mapping[str, Any]], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Seen:
    """A request that has come in, the names of its headers in lower case."""

    deployment: str
    api_version: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]


def completion(
    body: Mapping[str, Any],
    arguments: Any,
    *,
    usage: Mapping[str, int] | None,
    finish_reason: str = "stop",
    tool: str | None = None,
    content: str | None = None,
    **choice: Any,
) -> dict[str, Any]:
    """A chat completion that calls the tool that was asked for, with arguments or a raw text.

    With `content` it says that, and calls none.
    """
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    called = {"name": tool or body["tools"][0]["function"]["name"], "arguments": text}
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if content is None:
        message["tool_calls"] = [{"id": "call_1", "type": "function", "function": called}]
    first = {"index": 0, "finish_reason": finish_reason, "message": message, **choice}
    made = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [first]}
    return {**made, "usage": dict(usage)} if usage is not None else made


USAGE = {
    "prompt_tokens": PROMPT_TOKENS,
    "completion_tokens": COMPLETION_TOKENS,
    "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
}


def replies(
    arguments: Any, *, usage: Mapping[str, int] | None = USAGE, after_s: float = 0.0, **options: Any
) -> Answer:
    """A reply of the model, after some seconds."""

    async def answer(request: web.Request, body: Mapping[str, Any]) -> web.Response:
        await asyncio.sleep(after_s)
        return web.json_response(completion(body, arguments, usage=usage, **options))

    return answer


def fails(
    status: int, headers: Mapping[str, str] | None = None, error: Mapping[str, Any] | None = None
) -> Answer:
    """An error of the API."""

    async def answer(request: web.Request, body: Mapping[str, Any]) -> web.Response:
        told = {"error": {"message": f"fault {status}", **(error or {})}}
        return web.json_response(told, status=status, headers=headers)

    return answer


def says(text: str, content_type: str = "application/json") -> Answer:
    """A body of one's own, with status 200."""

    async def answer(request: web.Request, body: Mapping[str, Any]) -> web.Response:
        return web.Response(text=text, content_type=content_type)

    return answer


def hangs() -> Answer:
    """No answer, as long as the client waits."""

    async def answer(request: web.Request, body: Mapping[str, Any]) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    return answer


def trickles() -> Answer:
    """An answer that goes on for ever, a blank at a time."""

    async def answer(request: web.Request, body: Mapping[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.02)

    return answer


def refuses(words: str) -> Answer:
    """A reply in which the model says that it will not answer."""

    async def answer(request: web.Request, body: Mapping[str, Any]) -> web.Response:
        told = completion(body, None, usage=USAGE, content="")
        told["choices"][0]["message"] |= {"content": None, "refusal": words}
        return web.json_response(told)

    return answer


def drops() -> Answer:
    """A connection that ends without an answer."""

    async def answer(request: web.Request, body: Mapping[str, Any]) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    return answer


REFUSED = fails(
    400,
    error={
        "code": "content_filter",
        "innererror": {
            "code": "ResponsibleAIPolicyViolation",
            "content_filter_result": {
                "hate": {"filtered": False, "severity": "safe"},
                "violence": {"filtered": True, "severity": "high"},
            },
        },
    },
)
"""Azure's refusal of a prompt."""


@dataclass
class ModelServer:
    """What a test knows of the server; safe from any thread."""

    url: str = ""
    requests: list[Seen] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    let_go: int = 0
    """Requests whose client has left before the answer."""
    _answers: list[Answer] = field(default_factory=list)

    def answers(self, *answers: Answer) -> None:
        """Say what comes next, in place of what was said before."""
        self._answers[:] = answers

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        body = await request.json()
        headers = {name.lower(): value for name, value in request.headers.items()}
        deployment = request.match_info["deployment"]
        self.requests.append(Seen(deployment, request.query["api-version"], headers, body))
        self.arrived.set()
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        try:
            return await answer(request, body)
        except asyncio.CancelledError:
            self.let_go += 1
            raise

    async def identity(self, request: web.Request) -> web.Response:
        """Give a token, as the managed identity of a host does."""
        token = {"access_token": "loopback-token", "expires_on": "4102444800"}
        return web.json_response({**token, "resource": "r", "token_type": "Bearer"})


@contextlib.asynccontextmanager
async def running_model() -> AsyncIterator[ModelServer]:
    """A server in the loop that runs."""
    server = ModelServer()
    app = web.Application()
    app.router.add_post("/openai/deployments/{deployment}/chat/completions", server.handle)
    app.router.add_get("/identity", server.identity)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        server.url = f"http://{host}:{port}"
        yield server
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def model_in_a_thread() -> Iterator[ModelServer]:
    """A server in a loop and a thread of its own, for tests whose loop may be blocked."""
    ready, made = threading.Event(), []

    async def serve() -> None:
        ending = asyncio.Event()
        async with running_model() as server:
            made.extend([server, asyncio.get_running_loop(), ending])
            ready.set()
            await ending.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="model server")
    thread.start()
    assert ready.wait(READY_WITHIN_S)
    server, loop, ending = made
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join(READY_WITHIN_S)
