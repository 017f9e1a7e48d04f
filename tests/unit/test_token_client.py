"""TokenClient against real servers on loopback: the budget server, and servers that misbehave."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import itertools
import json
import logging
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from email.utils import formatdate
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip(
    "aiohttp", reason="needs test-services: pip install 'foundry_log[test-services]'"
)

from aiohttp import web

from foundry_log import ErrorTracker, MetricsLogger
from foundry_log.services import token_client
from foundry_log.services.budget_server import serving
from foundry_log.services.token_budget import MAX_APPLICATIONS, MAX_NAME, TokenBudget
from foundry_log.services.token_client import TokenClient
from tests.event_loops import Clock, in_loop

pytestmark = [pytest.mark.unit, pytest.mark.services]

DEADLINE_S = 20
SECRET = "s3cr3t-bearer-0815"
GRANT = {"allowed": True, "request_id": "tok", "rate_request_id": "rate", "message": None}
DENIAL = "Token limit would be exceeded: 500 tokens asked, 20 of 1000 in 60 s free"
NO_JSON = "<html>Sorry</html>"
LOGGER = "foundry_log.services.token_client"

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine's environment says about budgets is not for these tests."""
    for name in ("COUNTER_APP_BASE_URL", "TOKEN_COUNTER_URL", "COUNTER_APP_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """All records of the client."""
    caplog.set_level(logging.DEBUG, LOGGER)
    return caplog


class Asked(NamedTuple):
    """A request as the server got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


class Script:
    """Gives the answers of a list one after the other, the last for ever, and keeps what came."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.asked: list[Asked] = []
        self.peers: set[Any] = set()
        self.came = asyncio.Event()

    @property
    def bodies(self) -> list[Any]:
        return [asked.body for asked in self.asked]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        content = await request.read()
        body = json.loads(content) if content else None
        self.asked.append(Asked(request.method, request.path, dict(request.headers), body))
        assert request.transport is not None
        self.peers.add(request.transport.get_extra_info("peername"))
        self.came.set()
        return await self._answers[min(len(self.asked), len(self._answers)) - 1](request)


@contextlib.asynccontextmanager
async def running(script: Script, port: int = 0) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", script.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def running_in_a_thread(script: Script) -> Iterator[str]:
    """A server with a loop of its own."""
    ready: Future[tuple[str, Callable[[], object]]] = Future()

    async def serve() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        async with running(script) as url:
            ready.set_result((url, lambda: loop.call_soon_threadsafe(stop.set)))
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    url, stop = ready.result(DEADLINE_S)
    try:
        yield url
    finally:
        stop()
        thread.join(DEADLINE_S)


@contextlib.asynccontextmanager
async def scripted(*answers: Answer, **settings: Any) -> AsyncIterator[tuple[TokenClient, Script]]:
    """A client, and the server that it talks to; waits between attempts take no time."""
    script, clock = Script(*answers), Clock()
    async with running(script) as url:
        async with TokenClient("app", url, **{"sleep": clock.sleep, **settings}) as client:
            yield client, script


def answering(payload: Any = None, status: int = 200, **more: Any) -> Answer:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(payload, status=status, **more)

    return answer


def saying(text: str, content_type: str = "application/json", status: int = 200) -> Answer:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=text, content_type=content_type, status=status)

    return answer


async def hanging_up(request: web.Request) -> web.Response:
    """End the connection in place of an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def never(_: web.Request) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


async def breaking_off(request: web.Request) -> web.StreamResponse:
    """End the connection in the middle of the answer."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = 1000
    await response.prepare(request)
    await response.write(b'{"allowed": tr')
    assert request.transport is not None
    request.transport.close()
    return response


def endless(status: int, text: bytes) -> Answer:
    """An answer of JSON whose body begins with a text, and goes on until its reader hangs up."""

    async def answer(request: web.Request) -> web.StreamResponse:
        headers = {"Content-Type": "application/json"}
        response = web.StreamResponse(status=status, headers=headers)
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(text * 100)
        return response

    return answer


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def warnings_in(logged: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in logged.records if r.levelno == logging.WARNING]


class TestInit:
    def test_the_environment_is_the_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The spec's variable serves where the other is not set; both are read when it is made."""
        monkeypatch.setenv("TOKEN_COUNTER_URL", "http://spec:1")
        assert TokenClient("app").base_url == "http://spec:1"
        monkeypatch.setenv("COUNTER_APP_BASE_URL", "http://reference:2")
        client = TokenClient("app")
        assert (client.app_id, client.base_url) == ("app", "http://reference:2")

    def test_a_given_url_decides(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Over the environment, and also where it is empty."""
        monkeypatch.setenv("COUNTER_APP_BASE_URL", "http://reference:2")
        assert TokenClient("app", "http://given:3").base_url == "http://given:3"
        assert TokenClient("app", base_url="").base_url == ""

    @pytest.mark.parametrize("url", ["http://host:1/", "http://host:1///", "http://host:1"])
    def test_trailing_slashes_are_taken_away(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of what is given, and of what the environment has."""
        assert TokenClient("app", url).base_url == "http://host:1"
        monkeypatch.setenv("TOKEN_COUNTER_URL", url)
        assert TokenClient("app").base_url == "http://host:1"

    def test_without_any_url_it_is_empty(self) -> None:
        """That is no error yet."""
        assert TokenClient("app").base_url == ""

    def test_an_empty_url_of_the_environment_decides(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who empties the variable turns the other off, too."""
        monkeypatch.setenv("TOKEN_COUNTER_URL", "http://spec:1")
        monkeypatch.setenv("COUNTER_APP_BASE_URL", "")
        assert TokenClient("app").base_url == ""

    @pytest.mark.parametrize("app_id", ["", None, "   "], ids=["empty", "None", "blank"])
    @in_loop
    async def test_the_application_is_sent_as_it_is(self, app_id: Any) -> None:
        """The server decides whether it may be empty, None or blank."""
        script = Script(answering({"detail": "app_id is blank"}, 400))
        async with running(script) as url, TokenClient(app_id, url) as client:
            assert client.app_id == app_id
            assert await client.lock_tokens(5) == (
                False,
                None,
                "Client error: HTTP 400: app_id is blank",
            )
        assert script.bodies == [{"app_id": app_id, "token_count": 5}]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("timeout_s", 0),
            ("timeout_s", math.nan),
            ("timeout_s", math.inf),
            ("max_retries", -1),
            ("max_retries", 1.5),
        ],
    )
    def test_wrong_settings_are_refused(self, name: str, value: Any) -> None:
        """With the field, the value and the rule."""
        with pytest.raises(ValueError, match=f"{name}={value!r} must be"):
            TokenClient("app", **{name: value})

    @pytest.mark.parametrize("token", [f"{SECRET}\n", f"{SECRET} x", f"{SECRET}é"])
    def test_a_token_that_no_header_carries_is_refused(
        self, token: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Given or from the environment; the message names the field, and does not show it."""
        with pytest.raises(ValueError, match="bearer_token") as caught:
            TokenClient("app", bearer_token=token)
        assert SECRET not in str(caught.value)
        monkeypatch.setenv("COUNTER_APP_TOKEN", token)
        with pytest.raises(ValueError, match="COUNTER_APP_TOKEN"):
            TokenClient("app")

    def test_its_repr_shows_no_secret(self) -> None:
        """Neither the token nor the password of the URL."""
        client = TokenClient("app", f"http://user:{SECRET}@host:1", bearer_token=SECRET)
        assert repr(client).startswith("<TokenClient of 'app' at http://")
        assert SECRET not in repr(client)
        assert "no server" in repr(TokenClient("app"))

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            (f"http://user:{SECRET}@[::1]:80/{SECRET}?code={SECRET}", "http://[::1]:80>"),
            ("https://host", "https://host>"),
            (f"user:{SECRET}@host:80", "a wrong URL>"),
            (f"http://{SECRET}@host:99999", "a wrong URL>"),
            (f"http://{SECRET}@[bad", "a wrong URL>"),
        ],
    )
    def test_its_repr_shows_scheme_host_and_port_alone(self, url: str, shown: str) -> None:
        """What else there is may be secret."""
        assert repr(TokenClient("app", url)).endswith(f" at {shown}")

    def test_without_aiohttp_the_extra_is_named(self) -> None:
        """When it is made, and not at the first call."""
        code = (
            "import sys; sys.modules['aiohttp'] = None\n"
            "from foundry_log.services.token_client import TokenClient\n"
            "try: TokenClient('app')\n"
            "except ImportError as error: print(error)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
        )
        assert "pip install 'foundry_log[budget]'" in done.stdout


class TestLockTokens:
    @in_loop
    async def test_a_grant_gives_one_id(self, logged: pytest.LogCaptureFixture) -> None:
        """Both ids of the server, with a colon between; one DEBUG record tells of it."""
        async with scripted(answering(GRANT)) as (client, script):
            assert await client.lock_tokens(100) == (True, "tok:rate", None)
        (asked,) = script.asked
        assert (asked.method, asked.path) == ("POST", "/lock")
        assert asked.body == {"app_id": "app", "token_count": 100}
        assert asked.headers["Idempotency-Key"]
        (record,) = logged.records
        assert (record.levelname, record.request_id) == ("DEBUG", "tok:rate")
        assert record.latency_s > 0

    @in_loop
    async def test_a_grant_may_have_one_id(self) -> None:
        """Where the server gives no rate id its own id is all; a number is text."""
        answers = [{"allowed": True, "request_id": of} for of in ("tok", 17)]
        async with scripted(*map(answering, answers)) as (client, _):
            assert await client.lock_tokens(1) == (True, "tok", None)
            assert await client.lock_tokens(1) == (True, "17", None)

    @in_loop
    async def test_a_grant_without_any_id_is_warned_of(
        self, logged: pytest.LogCaptureFixture
    ) -> None:
        """The caller may go on; that its use cannot be reported stands in the log."""
        async with scripted(answering({"allowed": True, "request_id": None})) as (client, _):
            assert await client.lock_tokens(1) == (True, "", None)
        assert "cannot be reported" in warnings_in(logged)[0]

    @in_loop
    async def test_a_denial_gives_the_servers_words(self, logged: pytest.LogCaptureFixture) -> None:
        """It is no error, is not tried again, and is a warning."""
        async with scripted(answering({"allowed": False, "message": DENIAL})) as (client, script):
            assert await client.lock_tokens(500) == (False, None, DENIAL)
        assert len(script.asked) == 1
        (record,) = logged.records
        assert (record.levelname, record.reason) == ("WARNING", DENIAL)

    @pytest.mark.parametrize(
        "payload", [{}, {"allowed": False}, {"allowed": "false", "message": ""}]
    )
    @in_loop
    async def test_missing_fields_deny(self, payload: Any) -> None:
        """What does not say that it is allowed is not, for an unknown reason."""
        async with scripted(answering(payload)) as (client, _):
            assert await client.lock_tokens(1) == (False, None, "Unknown error")

    @pytest.mark.parametrize("payload", [None, [], "allowed", 1, True], ids=repr)
    @in_loop
    async def test_an_answer_that_is_no_object_is_a_failure(self, payload: Any) -> None:
        """It is not mistaken for a denial."""
        async with scripted(answering(payload)) as (client, _):
            allowed, request_id, error = await client.lock_tokens(1)
        assert (allowed, request_id) == (False, None)
        assert error == "Client error: the answer is no JSON object"

    @pytest.mark.parametrize("count", [0, -1, 999_999_999, sys.maxsize])
    @in_loop
    async def test_counts_are_judged_by_the_server(self, count: int) -> None:
        """Zero, negative and huge ones are sent as they are."""
        async with scripted(answering(GRANT)) as (client, script):
            assert (await client.lock_tokens(count))[0] is True
        assert script.bodies[0]["token_count"] == count

    @pytest.mark.parametrize(
        ("count", "allowed", "error"),
        [
            (0, True, None),
            (-1, False, "Client error: HTTP 400: token_count"),
            (999_999_999, False, "Token count 999999999 is above the quota"),
            (sys.maxsize, False, ""),
        ],
    )
    @in_loop
    async def test_what_our_server_says_of_odd_counts(
        self, count: int, allowed: bool, error: str | None
    ) -> None:
        """Each has a value, and none an exception."""
        async with serving(TokenBudget()) as url, TokenClient("app", url) as client:
            granted, _, why = await client.lock_tokens(count)
        assert granted is allowed
        assert why is None if error is None else error in why

    @pytest.mark.parametrize("count", [math.nan, math.inf, object, {1}, b"1"], ids=repr)
    @in_loop
    async def test_what_json_cannot_hold_is_a_failure(self, count: Any) -> None:
        """Nothing is sent, and nothing raised."""
        async with scripted(answering(GRANT)) as (client, script):
            allowed, _, error = await client.lock_tokens(count)
        assert allowed is False
        assert error.startswith("Client error: ")
        assert script.asked == []

    @pytest.mark.parametrize("count", [None, "12", 1.5, True, 10**100, []], ids=repr)
    @in_loop
    async def test_what_json_can_hold_is_sent(self, count: Any) -> None:
        """The server says what is wrong with it."""
        async with serving(TokenBudget()) as url, TokenClient("app", url) as client:
            allowed, _, error = await client.lock_tokens(count)
        assert allowed is False
        assert error.startswith("Client error: HTTP 400: ")

    @in_loop
    async def test_invalid_json_is_a_failure(self) -> None:
        """With the parser's own words; asking again would not help."""
        async with scripted(saying(NO_JSON)) as (client, script):
            allowed, _, error = await client.lock_tokens(1)
        assert (allowed, len(script.asked)) == (False, 1)
        assert error.startswith("Client error: ")
        assert "Expecting value" in error

    @in_loop
    async def test_another_content_type_is_a_failure(self) -> None:
        """With aiohttp's own words."""
        async with scripted(saying("allowed", "text/plain")) as (client, _):
            _, _, error = await client.lock_tokens(1)
        assert error.startswith("Client error: ")
        assert "unexpected mimetype: text/plain" in error

    @pytest.mark.parametrize("text", ['{"allowed": tr', "[" * 100_000, "\udcff", "NaN"])
    @in_loop
    async def test_broken_json_is_a_failure(self, text: str) -> None:
        """Cut off, nested too deep, no UTF-8, or no object."""

        async def answer(_: web.Request) -> web.Response:
            body = text.encode(errors="surrogateescape")
            return web.Response(body=body, content_type="application/json")

        async with scripted(answer) as (client, _):
            allowed, _, error = await client.lock_tokens(1)
        assert allowed is False
        assert error.startswith("Client error: ")

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 415, 422, 501])
    @in_loop
    async def test_refusals_are_not_tried_again(self, status: int) -> None:
        """The status and the server's detail are in the text."""
        async with scripted(answering({"detail": "no such thing"}, status)) as (client, script):
            _, _, error = await client.lock_tokens(1)
        assert error == f"Client error: HTTP {status}: no such thing"
        assert len(script.asked) == 1

    @in_loop
    async def test_any_other_status_is_a_failure(self) -> None:
        """A redirect is not followed: the token is for this server alone."""
        elsewhere = {"Location": "http://127.0.0.1:1/lock"}
        async with scripted(answering(GRANT, 307, headers=elsewhere)) as (client, script):
            _, _, error = await client.lock_tokens(1)
        assert error.startswith("Client error: HTTP 307")
        assert len(script.asked) == 1

    @in_loop
    async def test_a_refusal_without_a_detail_shows_what_there_is(self) -> None:
        """The body, shortened, or the name of the status."""
        texts = (saying("no " * 1000, status=404), saying("", status=404))
        async with scripted(*texts) as (client, _):
            long, short = [(await client.lock_tokens(1))[2] for _ in texts]
        assert long.startswith("Client error: HTTP 404: no no ")
        assert len(long) < 400
        assert short == "Client error: HTTP 404: Not Found"

    @in_loop
    async def test_of_a_refusal_the_beginning_is_read(self) -> None:
        """An error page without end costs as much as a short one; it need be no text."""
        answers = (endless(400, b"no "), endless(500, b"\xff"))
        async with scripted(*answers, max_retries=0, timeout_s=5) as (client, _):
            long, broken = [(await client.lock_tokens(1))[2] for _ in answers]
        assert long == "Client error: HTTP 400: " + "no " * 100
        assert broken == "Client error: HTTP 500: " + "\ufffd" * 300

    @in_loop
    async def test_a_secret_at_the_cut_of_a_refusal_is_not_shown(self) -> None:
        """Our own token is blanked before the text is shortened."""
        detail = "x" * (token_client.MAX_DETAIL - 12) + SECRET
        async with scripted(answering({"detail": detail}, 400), bearer_token=SECRET) as (client, _):
            _, _, error = await client.lock_tokens(1)
        assert error.endswith("xx[redacted]")

    @in_loop
    async def test_an_answer_without_end_is_a_failure(self) -> None:
        """That of a lock at 64 KiB."""
        endlessly = endless(200, b'{"allowed": true, ')
        async with scripted(endlessly, timeout_s=5) as (client, script):
            allowed, _, error = await client.lock_tokens(1)
        assert (allowed, len(script.asked)) == (False, 1)
        assert error == "Client error: the answer has more than 65536 bytes"

    @in_loop
    async def test_of_a_long_denial_the_beginning_is_told(self) -> None:
        """As much as is looked through for secrets."""
        long = answering({"allowed": False, "message": "no" * 10_000})
        async with scripted(long) as (client, _):
            _, _, error = await client.lock_tokens(1)
        assert error == "no" * (token_client.MAX_WORDS // 2)

    @in_loop
    async def test_a_timeout_is_a_failure(self) -> None:
        """After `timeout_s` for each attempt, and with that in its text."""
        async with scripted(never, timeout_s=0.05, max_retries=1) as (client, script):
            allowed, _, error = await client.lock_tokens(1)
            assert len(script.asked) == 2
        assert allowed is False
        assert error == "Client error: TimeoutError: no answer within 0.05 s"

    @in_loop
    async def test_a_refused_connection_is_a_failure(self) -> None:
        """With aiohttp's own words."""
        clock = Clock()
        async with TokenClient(
            "app", f"http://127.0.0.1:{free_port()}", sleep=clock.sleep
        ) as client:
            allowed, _, error = await client.lock_tokens(1)
        assert allowed is False
        assert error.startswith("Client error: ClientConnectorError: Cannot connect to host")
        assert len(clock.waits) == 2

    @pytest.mark.parametrize("url", ["nonsense", "http://", "ftp://127.0.0.1", "http://[::1", "/"])
    @in_loop
    async def test_an_invalid_url_is_a_failure(self, url: str) -> None:
        """It is not tried again."""
        clock = Clock()
        async with TokenClient("app", url, sleep=clock.sleep) as client:
            allowed, _, error = await client.lock_tokens(1)
        assert allowed is False
        assert error.startswith("Client error: ")
        assert clock.waits == []

    @in_loop
    async def test_without_a_base_url_each_call_fails(
        self, logged: pytest.LogCaptureFixture
    ) -> None:
        """The text says what to set; the log does so once."""
        async with TokenClient("app") as client:
            allowed, _, error = await client.lock_tokens(1)
            assert await client.report_usage("tok", 1, 1) is False
            assert await client.release_tokens("tok") is False
            assert await client.get_status() is None
        assert allowed is False
        assert error.startswith("Client error: no base URL; set COUNTER_APP_BASE_URL")
        assert len(warnings_in(logged)) == 1


class TestReportUsage:
    @in_loop
    async def test_a_report_is_sent(self, logged: pytest.LogCaptureFixture) -> None:
        """With the id and both counts; one DEBUG record tells of it."""
        async with scripted(answering({"success": True})) as (client, script):
            assert await client.report_usage("tok", 30, 12) is True
        (asked,) = script.asked
        assert (asked.method, asked.path) == ("POST", "/report")
        expected = {"request_id": "tok", "prompt_tokens": 30, "completion_tokens": 12}
        assert asked.body == {"app_id": "app", **expected}
        (record,) = logged.records
        assert (record.levelname, record.tokens_prompt, record.tokens_completion) == (
            "DEBUG",
            30,
            12,
        )

    @pytest.mark.parametrize(
        ("request_id", "sent"),
        [
            ("tok:rate", {"request_id": "tok", "rate_request_id": "rate"}),
            ("a:b:c", {"request_id": "a", "rate_request_id": "b:c"}),
            ("tok", {"request_id": "tok"}),
            ("tok:", {"request_id": "tok"}),
            ("", {"request_id": ""}),
            (":", {"request_id": ""}),
            (":rate", {"request_id": "", "rate_request_id": "rate"}),
            (None, {"request_id": None}),
            (5, {"request_id": 5}),
        ],
        ids=repr,
    )
    @in_loop
    async def test_ids_are_split_at_the_first_colon(self, request_id: Any, sent: Any) -> None:
        """Empty ones, only colons and several of them are sent for what they are."""
        async with scripted(answering({"success": True})) as (client, script):
            assert await client.report_usage(request_id, 1, 1) is True
            assert await client.release_tokens(request_id) is True
        for body in script.bodies:
            assert {name: of for name, of in body.items() if "request_id" in name} == sent

    @pytest.mark.parametrize("request_id", ["", ":", "unknown", "a:b:c", None], ids=repr)
    @in_loop
    async def test_ids_without_a_lock_are_refused_by_our_server(
        self, request_id: Any, logged: pytest.LogCaptureFixture
    ) -> None:
        """Both calls are False, each with a warning that has the reason."""
        async with serving(TokenBudget()) as url, TokenClient("app", url) as client:
            assert await client.report_usage(request_id, 1, 1) is False
            assert await client.release_tokens(request_id) is False
        ours = [record for record in logged.records if record.name == LOGGER]
        assert [record.getMessage() for record in ours] == ["report refused", "release refused"]
        assert all("HTTP 400" in record.reason for record in ours)

    @in_loop
    async def test_zero_tokens_are_reported(self) -> None:
        """A call may come to nothing."""
        async with serving(TokenBudget()) as url, TokenClient("app", url) as client:
            _, request_id, _ = await client.lock_tokens(10)
            assert await client.report_usage(request_id, 0, 0) is True

    @pytest.mark.parametrize("counts", [(-1, 5), (5, -1)])
    @in_loop
    async def test_negative_tokens_fail(self, counts: tuple[int, int]) -> None:
        """The server refuses them, and the lock is still to be settled."""
        async with serving(TokenBudget()) as url, TokenClient("app", url) as client:
            _, request_id, _ = await client.lock_tokens(10)
            assert await client.report_usage(request_id, *counts) is False
            assert await client.report_usage(request_id, 5, 1) is True

    @in_loop
    async def test_what_json_cannot_hold_is_not_reported(self) -> None:
        """False, and nothing is sent."""
        async with scripted(answering({"success": True})) as (client, script):
            assert await client.report_usage("tok", math.nan, 0) is False
        assert script.asked == []

    @pytest.mark.parametrize("status", [400, 404, 500, 503])
    @in_loop
    async def test_errors_of_the_server_are_false(self, status: int) -> None:
        """Those that may pass once they have been tried again."""
        async with scripted(answering({"detail": "no"}, status)) as (client, script):
            assert await client.report_usage("tok", 1, 1) is False
        assert len(script.asked) == (1 if status < 500 else 3)

    @in_loop
    async def test_a_dead_server_is_false(self) -> None:
        """Connection refused."""
        url = f"http://127.0.0.1:{free_port()}"
        async with TokenClient("app", url, max_retries=0) as client:
            assert await client.report_usage("tok", 1, 1) is False

    @pytest.mark.parametrize("body", ["", "ok", NO_JSON, "null", '{"success": false}'])
    @in_loop
    async def test_status_200_is_success_with_any_body(self, body: str) -> None:
        """Of a report and of a release; nobody reads what stands in it."""
        async with scripted(saying(body, "text/plain")) as (client, _):
            assert await client.report_usage("tok", 1, 1) is True
            assert await client.release_tokens("tok") is True


class TestReleaseTokens:
    @in_loop
    async def test_a_release_is_sent(self) -> None:
        """With both ids."""
        async with scripted(answering({"success": True})) as (client, script):
            assert await client.release_tokens("tok:rate") is True
        (asked,) = script.asked
        assert (asked.method, asked.path) == ("POST", "/release")
        ids = {"request_id": "tok", "rate_request_id": "rate"}
        assert asked.body == {"app_id": "app", **ids}

    @pytest.mark.parametrize("status", [400, 404, 500])
    @in_loop
    async def test_errors_of_the_server_are_false(self, status: int) -> None:
        """As for a report."""
        async with scripted(answering({"detail": "no"}, status)) as (client, _):
            assert await client.release_tokens("tok") is False

    @in_loop
    async def test_a_lost_connection_is_false(self) -> None:
        """Once all attempts have lost it."""
        async with scripted(hanging_up) as (client, script):
            assert await client.release_tokens("tok") is False
        assert len(script.asked) == 3


class TestGetStatus:
    @in_loop
    async def test_the_status_names_the_client(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the server says, the application, and the time."""
        monkeypatch.setattr(time, "time", lambda: 1234.5)
        async with scripted(answering({"available_tokens": 7})) as (client, script):
            status = await client.get_status()
        assert status == {
            "available_tokens": 7,
            "client_app_id": "app",
            "client_timestamp": 1234.5,
        }
        (asked,) = script.asked
        assert (asked.method, asked.path, asked.body) == ("GET", "/status", None)

    @in_loop
    async def test_an_empty_object_is_a_status(self) -> None:
        """It has the client's two fields."""
        async with scripted(answering({})) as (client, _):
            assert set(await client.get_status()) == {"client_app_id", "client_timestamp"}

    @pytest.mark.parametrize(
        "answer",
        [
            answering([1]),
            answering(None),
            saying(NO_JSON),
            saying("{}", "text/plain"),
            answering({}, 404),
            answering({}, 500),
            hanging_up,
            breaking_off,
        ],
    )
    @in_loop
    async def test_anything_else_is_none(self, answer: Answer) -> None:
        """No object, no JSON, another content type, an error, or no whole answer."""
        async with scripted(answer) as (client, _):
            assert await client.get_status() is None

    @in_loop
    async def test_our_servers_status_is_whole(self) -> None:
        """It has the quotas, and what is locked by us."""
        async with serving(TokenBudget(1000, 10)) as url, TokenClient("app", url) as client:
            await client.lock_tokens(300)
            status = await client.get_status()
        assert (status["tpm_quota"], status["locked_tokens"]) == (1000, 300)
        assert 0 < status["reset_time_seconds"] <= 60

    @in_loop
    async def test_the_longest_status_is_read(self) -> None:
        """That of as many applications as the server counts, with names as long as they may be."""
        budget = TokenBudget(1, 10_000)
        for number in range(MAX_APPLICATIONS + 1):
            budget.lock(f"{number:04}".rjust(MAX_NAME, "𝄞"), 0)
        async with serving(budget) as url, TokenClient("app", url) as client:
            status = await client.get_status()
        assert len(status["applications"]) == MAX_APPLICATIONS + 1


class TestRetries:
    @pytest.mark.parametrize(
        "fault",
        [answering({}, status) for status in (429, 500, 502, 503, 504)]
        + [hanging_up, breaking_off],
    )
    @in_loop
    async def test_what_may_pass_is_tried_again(self, fault: Answer) -> None:
        """Under one key for all attempts, so that a server may know them for one request."""
        async with scripted(fault, fault, answering(GRANT)) as (client, script):
            assert await client.lock_tokens(5) == (True, "tok:rate", None)
            assert await client.lock_tokens(5) == (True, "tok:rate", None)
        keys = [asked.headers["Idempotency-Key"] for asked in script.asked]
        assert len(keys) == 4
        assert len(set(keys[:3])) == 1
        assert keys[3] != keys[0]

    @in_loop
    async def test_attempts_are_counted(self) -> None:
        """`max_retries` of 0 tries once, and of 4 five times."""
        for retries in (0, 4):
            async with scripted(answering({}, 503), max_retries=retries) as (client, script):
                await client.lock_tokens(1)
            assert len(script.asked) == retries + 1

    @in_loop
    async def test_waits_begin_at_a_tenth_of_a_second(self) -> None:
        """And grow; the server is next door."""
        clock = Clock()
        settings = {"sleep": clock.sleep, "random": lambda: 0.0, "max_retries": 4}
        async with scripted(answering({}, 503), **settings) as (client, _):
            await client.lock_tokens(1)
        assert clock.waits == pytest.approx([0.1, 0.15, 0.25, 0.45])

    @pytest.mark.parametrize("asked", ["7", "7.0", "date"])
    @in_loop
    async def test_retry_after_is_honoured(self, asked: str) -> None:
        """In seconds or as a date."""
        clock = Clock()
        value = formatdate(time.time() + 8, usegmt=True) if asked == "date" else asked
        busy = answering({}, 429, headers={"Retry-After": value})
        settings = {"sleep": clock.sleep, "random": lambda: 0.0}
        async with scripted(busy, answering(GRANT), **settings) as (client, _):
            assert (await client.lock_tokens(1))[0] is True
        assert 6 <= clock.waits[0] <= 8

    @pytest.mark.parametrize("value", ["", "soon", "nan", "-5", "Wed, 99 Xyz 2020 00:00:00 GMT"])
    @in_loop
    async def test_a_retry_after_that_says_nothing_is_ignored(self, value: str) -> None:
        """The usual wait is waited."""
        clock = Clock()
        busy = answering({}, 503, headers={"Retry-After": value})
        settings = {"sleep": clock.sleep, "random": lambda: 0.0}
        async with scripted(busy, answering(GRANT), **settings) as (client, _):
            assert (await client.lock_tokens(1))[0] is True
        assert clock.waits == pytest.approx([0.1])

    @in_loop
    async def test_a_wait_that_would_pass_the_end_is_not_begun(self) -> None:
        """A server that asks for minutes is not asked again, and nobody waits for it."""
        clock = Clock()
        busy = answering({"detail": "later"}, 429, headers={"Retry-After": "120"})
        async with scripted(busy, sleep=clock.sleep, clock=clock) as (client, script):
            _, _, error = await client.lock_tokens(1)
        assert error == "Client error: HTTP 429: later"
        assert (clock.waits, len(script.asked)) == ([], 1)

    @in_loop
    async def test_a_call_ends_in_time(self) -> None:
        """However many attempts it may take: 30 s in all."""
        clock = Clock()
        busy = answering({}, 503, headers={"Retry-After": "9"})
        settings = {"sleep": clock.sleep, "clock": clock, "random": lambda: 0.0}
        async with scripted(busy, max_retries=99, **settings) as (client, script):
            assert await client.report_usage("tok", 1, 1) is False
        assert sum(clock.waits) == 27
        assert len(script.asked) == 4

    @in_loop
    async def test_the_last_attempt_has_the_time_that_is_left(self) -> None:
        """A hanging server holds nobody beyond the 30 s."""
        clock = Clock()
        busy = answering({}, 503, headers={"Retry-After": "29.9"})
        settings = {"sleep": clock.sleep, "clock": clock, "random": lambda: 0.0}
        async with scripted(busy, never, answering({}, 400), **settings) as (client, _):
            _, _, error = await client.lock_tokens(1)
        assert error == "Client error: TimeoutError: no answer within 0.1 s"

    @in_loop
    async def test_a_wait_that_lasts_too_long_is_the_end(self) -> None:
        """A machine was suspended: no time is left, and another attempt would have no timeout."""
        clock = Clock()

        async def oversleep(_: float) -> None:
            clock.now += token_client.MAX_CALL_S + 1

        answers = [answering({}, 503), answering(GRANT)]
        async with scripted(*answers, sleep=oversleep, clock=clock) as (client, script):
            allowed, _, error = await client.lock_tokens(1)
        assert (allowed, len(script.asked)) == (False, 1)
        assert error.startswith("Client error: HTTP 503")

    @in_loop
    async def test_an_attempt_always_has_a_timeout(self) -> None:
        """Also where the time was over before it began."""
        clock = itertools.count(0.0, 31.0).__next__
        async with scripted(never, clock=clock) as (client, _):
            allowed, _, error = await asyncio.wait_for(client.lock_tokens(1), DEADLINE_S)
        assert allowed is False
        assert "no answer within 0.001 s" in error

    @in_loop
    async def test_a_server_that_was_restarted_is_found_again(self) -> None:
        """The connection that was kept is dead, and the caller does not notice."""
        first, second = Script(answering(GRANT)), Script(answering(GRANT))
        port = free_port()
        async with contextlib.AsyncExitStack() as stack:
            async with running(first, port) as url:
                client = await stack.enter_async_context(TokenClient("app", url))
                assert (await client.lock_tokens(1))[0] is True
            async with running(second, port):
                assert (await client.lock_tokens(1))[0] is True
        assert (len(first.asked), len(second.asked)) == (1, 1)


class TestLifetime:
    @in_loop
    async def test_a_hundred_locks_at_once_use_one_session(self) -> None:
        """All are granted, each with an id of its own."""
        budget = TokenBudget(1_000_000, 1000)
        async with serving(budget) as url, TokenClient("app", url) as client:
            answers = await asyncio.gather(*(client.lock_tokens(10) for _ in range(100)))
            assert len(client._sessions) == 1
        assert all(allowed for allowed, _, _ in answers)
        assert len({request_id for _, request_id, _ in answers}) == 100
        assert budget.status()["locked_tokens"] == 1000

    @in_loop
    async def test_one_connection_serves_call_after_call(self) -> None:
        """Reports and releases, whose answers are not read, give theirs back too."""
        async with scripted(answering(GRANT)) as (client, script):
            for _ in range(5):
                await client.lock_tokens(1)
                await client.report_usage("tok", 1, 1)
                await client.release_tokens("tok")
                await client.get_status()
        assert len(script.asked) == 20
        assert len(script.peers) == 1

    @in_loop
    async def test_closing_twice_is_closing_once(self) -> None:
        """Also at the same time, and without a call before; a call after it opens anew."""
        async with scripted(answering(GRANT)) as (client, script):
            await client.close()
            await client.lock_tokens(1)
            await asyncio.gather(client.close(), client.close())
            await client.close()
            assert (await client.lock_tokens(1))[0] is True
        assert len(script.peers) == 2

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 cannot tell who is cancelled")
    @in_loop
    async def test_closing_does_not_end_calls_of_others(self) -> None:
        """Those under way, and those that wait for a connection, are tried again."""
        begun = asyncio.Event()

        async def slow(request: web.Request) -> web.Response:
            if len(script.asked) >= 100:
                begun.set()
            if request.transport.get_extra_info("peername") in first_peers:
                await asyncio.sleep(DEADLINE_S)
            return web.json_response(GRANT)

        script = Script(slow)
        first_peers = script.peers
        async with running(script) as url, TokenClient("app", url) as client:
            calls = [asyncio.ensure_future(client.lock_tokens(1)) for _ in range(120)]
            await begun.wait()
            first_peers = set(script.peers)
            await client.close()
            answers = await asyncio.gather(*calls)
        assert {allowed for allowed, _, _ in answers} == {True}

    def test_a_second_loop_may_use_it(self, recwarn: pytest.WarningsRecorder) -> None:
        """Each `asyncio.run` has a session, and leaves none open, closed or not."""
        client = TokenClient("app", "")

        async def use() -> tuple[bool, str | None, str | None]:
            async with serving(TokenBudget()) as url:
                client.base_url = url
                answer = await client.lock_tokens(1)
                sessions.extend(kept.client for kept in client._sessions.values())
                return answer

        sessions: list[Any] = []
        assert asyncio.run(use())[0] is True
        assert asyncio.run(use())[0] is True
        assert all(session.closed for session in sessions)
        assert len(client._sessions) == 1
        gc.collect()
        assert [str(warning.message) for warning in recwarn] == []

    def test_threads_may_open_sessions_at_once(self) -> None:
        """While one looks for loops that have ended another opens its own: none is lost."""
        looking, opened = threading.Event(), threading.Event()

        class Loop(asyncio.SelectorEventLoop):
            """Keeps the first thread waiting that asks whether it is closed."""

            def is_closed(self) -> bool:
                is_first = is_armed and not looking.is_set()
                looking.set()
                if is_first:
                    opened.wait(0.3)  # in vain where only one may look at a time
                return super().is_closed()

        async def use() -> bool:
            await client.lock_tokens(1)
            opened.set()
            barrier.wait(DEADLINE_S)
            is_kept = asyncio.get_running_loop() in client._sessions
            await client.close()
            return is_kept

        client = TokenClient("app", f"http://127.0.0.1:{free_port()}", max_retries=0)
        barrier, is_armed, old_loop = threading.Barrier(2), False, Loop()
        old_loop.run_until_complete(client.lock_tokens(1))
        is_armed = True
        looking.clear()
        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            first = threads.submit(asyncio.run, use())
            assert looking.wait(DEADLINE_S)
            second = threads.submit(asyncio.run, use())
            assert (first.result(DEADLINE_S), second.result(DEADLINE_S)) == (True, True)
        is_armed = False
        old_loop.run_until_complete(client.close())
        old_loop.close()

    @in_loop
    async def test_a_forgotten_client_is_closed_by_its_loop(
        self, recwarn: pytest.WarningsRecorder
    ) -> None:
        """Nobody reads "Unclosed client session"."""
        script = Script(answering(GRANT))
        async with running(script) as url:
            client = TokenClient("app", url)
            await client.lock_tokens(1)
            (kept,) = client._sessions.values()
            session = kept.client
            del client, kept
            gc.collect()
            while not session.closed:
                await asyncio.sleep(0)
        assert [str(warning.message) for warning in recwarn] == []

    def test_a_forked_child_has_a_session_of_its_own(self) -> None:
        """It locks over its own connection, and the parent goes on with its one."""
        code = """
import asyncio, os, sys
from foundry_log.services.budget_server import serving
from foundry_log.services.token_budget import TokenBudget
from foundry_log.services.token_client import TokenClient

async def main():
    budget = TokenBudget()
    async with serving(budget) as url, TokenClient("app", url) as client:
        await client.lock_tokens(1)
        child = os.fork()
        if not child:
            allowed, *_ = asyncio.run(client.lock_tokens(10))
            os._exit(0 if allowed else 1)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        await client.lock_tokens(100)
    print(os.waitstatus_to_exitcode(status), budget.status()["locked_tokens"])

asyncio.run(main())
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout == "0 111\n", done.stderr
        assert "Unclosed" not in done.stderr

    @in_loop
    async def test_the_whole_life_of_a_lock(self) -> None:
        """Locked, reported, released: the server's status follows each step."""
        async with serving(TokenBudget(1000, 10)) as url, TokenClient("app", url) as client:

            async def used_and_locked() -> tuple[int, int]:
                status = await client.get_status()
                return status["used_tokens"], status["locked_tokens"]

            _, first, _ = await client.lock_tokens(400)
            _, second, _ = await client.lock_tokens(500)
            assert await used_and_locked() == (0, 900)
            allowed, _, why = await client.lock_tokens(200)
            assert (allowed, "Token limit would be exceeded" in why) == (False, True)
            assert await client.report_usage(first, 250, 50) is True
            assert await used_and_locked() == (300, 500)
            assert await client.release_tokens(second) is True
            assert await used_and_locked() == (300, 0)
            assert await client.release_tokens(second) is True  # nothing is left to give back
            assert await used_and_locked() == (300, 0)
            assert await client.release_tokens("unknown") is False


class TestLostLocks:
    @in_loop
    async def test_a_cancelled_lock_is_given_back(self) -> None:
        """The server grants it all the same; `close` waits until that is undone."""
        gate, came, paths = asyncio.Event(), asyncio.Event(), []

        async def slow(request: web.Request) -> web.Response:
            came.set()
            await gate.wait()
            return web.json_response(GRANT)

        script = Script(slow)
        async with running(script) as url:
            async with TokenClient("app", url) as client:
                call = asyncio.create_task(client.lock_tokens(50))
                await came.wait()
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
                gate.set()
        paths = [asked.path for asked in script.asked]
        assert paths == ["/lock", "/lock", "/release"]
        keys = [asked.headers["Idempotency-Key"] for asked in script.asked]
        assert keys[0] == keys[1] != keys[2]
        assert script.bodies[1] == script.bodies[0]
        ids = {"request_id": "tok", "rate_request_id": "rate"}
        assert script.bodies[2] == {"app_id": "app", **ids}

    @in_loop
    async def test_our_server_has_nothing_locked_behind_it(self) -> None:
        """Wherever a lock is cancelled on its way, all is given back."""
        budget = TokenBudget(1_000_000, 100_000)
        async with serving(budget) as url:
            async with TokenClient("app", url) as client:
                await client.lock_tokens(0)  # so that the connection stands
                for steps in range(40):
                    call = asyncio.create_task(client.lock_tokens(50))
                    for _ in range(steps):
                        await asyncio.sleep(0)
                    call.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        _, request_id, _ = await call
                        assert await client.release_tokens(request_id)
            assert budget.status()["locked_tokens"] == 0

    def test_a_lock_that_the_end_of_the_loop_cancels_is_given_back(self) -> None:
        """Without `close`, too: the loop's end waits for it."""
        came = threading.Event()

        async def slow(_: web.Request) -> web.Response:
            came.set()
            while len(script.asked) < 2:
                await asyncio.sleep(0.005)
            return web.json_response(GRANT)

        async def lose_a_lock(url: str) -> None:
            calls.append(asyncio.create_task(TokenClient("app", url).lock_tokens(50)))
            assert await asyncio.to_thread(came.wait, DEADLINE_S)

        script = Script(slow)
        calls: list[asyncio.Task[Any]] = []
        with running_in_a_thread(script) as url:
            asyncio.run(lose_a_lock(url))
        assert calls[0].cancelled()
        assert [asked.path for asked in script.asked] == ["/lock", "/lock", "/release"]

    def test_a_lock_that_is_cancelled_in_the_loops_last_turn_is_given_back(self) -> None:
        """The loop ends before the task that gives it back has made its first step."""
        came = threading.Event()

        async def first_never(request: web.Request) -> web.StreamResponse:
            came.set()
            return await (never if len(script.asked) == 1 else answering(GRANT))(request)

        async def lose_a_lock(url: str) -> None:
            call = asyncio.create_task(TokenClient("app", url).lock_tokens(50))
            assert await asyncio.to_thread(came.wait, DEADLINE_S)
            call.cancel()

        script = Script(first_never)
        with running_in_a_thread(script) as url:
            asyncio.run(lose_a_lock(url))
        assert [asked.path for asked in script.asked] == ["/lock", "/lock", "/release"]

    @in_loop
    async def test_a_lock_that_is_cancelled_right_before_close_is_given_back(self) -> None:
        """Its task has not heard of it yet; `close` returns behind the release."""
        async with scripted(never, answering(GRANT)) as (client, script):
            call = asyncio.create_task(client.lock_tokens(50))
            await script.came.wait()
            call.cancel()
            await client.close()
            paths = [asked.path for asked in script.asked]
        assert call.cancelled()
        assert paths == ["/lock", "/lock", "/release"]

    @in_loop
    async def test_a_lock_that_is_cancelled_behind_close_is_given_back(self) -> None:
        """Over a session of its own."""
        waiting = asyncio.Event()

        async def sleep(_: float) -> None:
            waiting.set()
            await asyncio.Event().wait()

        answers = [never, answering(GRANT)]
        async with scripted(*answers, sleep=sleep) as (client, script):
            call = asyncio.create_task(client.lock_tokens(50))
            await script.came.wait()
            await client.close()
            await waiting.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        assert [asked.path for asked in script.asked] == ["/lock", "/lock", "/release"]

    @pytest.mark.parametrize("fault", [never, hanging_up, answering({}, 504)])
    @in_loop
    async def test_a_lock_whose_answer_was_lost_is_given_back(self, fault: Answer) -> None:
        """A failure after which the server may have granted it is looked into as well."""
        answers = [fault, answering(GRANT), answering({"success": True})]
        async with scripted(*answers, timeout_s=0.2, max_retries=0) as (client, script):
            assert (await client.lock_tokens(50))[0] is False
        assert [asked.path for asked in script.asked] == ["/lock", "/lock", "/release"]

    @pytest.mark.parametrize("fault", [answering({}, 429), answering({}, 503), saying(NO_JSON)])
    @in_loop
    async def test_a_lock_that_was_not_granted_is_left_alone(self, fault: Answer) -> None:
        """Nor is one looked into whose answer would be no better the next time."""
        async with scripted(fault, answering(GRANT), max_retries=0) as (client, script):
            await client.lock_tokens(50)
        assert len(script.asked) == 1

    @in_loop
    async def test_a_lock_that_was_denied_needs_no_release(
        self, logged: pytest.LogCaptureFixture
    ) -> None:
        """Looked into and found denied: that is all."""
        denied = answering({"allowed": False, "message": DENIAL})
        async with scripted(hanging_up, denied, max_retries=0) as (client, script):
            await client.lock_tokens(50)
        assert [asked.path for asked in script.asked] == ["/lock", "/lock"]
        assert not any("until it expires" in text for text in warnings_in(logged))

    @in_loop
    async def test_what_cannot_be_given_back_is_warned_of(
        self, logged: pytest.LogCaptureFixture
    ) -> None:
        """Where the server stays away, the lock's expiry is what is left."""
        async with scripted(hanging_up, max_retries=0) as (client, _):
            await client.lock_tokens(50)
        assert any("until it expires" in text for text in warnings_in(logged))

    @in_loop
    async def test_the_end_waits_for_a_while_only(
        self, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
    ) -> None:
        """A server that never answers does not keep `close`, and the log says what is left."""
        monkeypatch.setattr(token_client, "UNDONE_WITHIN_S", 0.05)
        async with scripted(never) as (client, script):
            call = asyncio.create_task(client.lock_tokens(50))
            await script.came.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        assert len([text for text in warnings_in(logged) if "until it expires" in text]) == 1

    @in_loop
    async def test_tasks_that_give_back_are_bounded(
        self, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
    ) -> None:
        """Beyond the bound locks are left to expire, and the log says so once."""
        monkeypatch.setattr(token_client, "MAX_UNDOING", 2)
        monkeypatch.setattr(token_client, "UNDONE_WITHIN_S", 0.05)
        async with scripted(never) as (client, script):
            calls = [asyncio.create_task(client.lock_tokens(50)) for _ in range(5)]
            await script.came.wait()
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            (session,) = client._sessions.values()
            assert session.at_work == 2
        given_up = [r for r in logged.records if "left to expire" in getattr(r, "reason", "")]
        assert len(given_up) == 1


class TestSecrets:
    @pytest.mark.parametrize(
        ("token", "allowed"), [(SECRET, True), ("wrong", False), ("", False)], ids=str
    )
    @in_loop
    async def test_the_token_opens_the_server(self, token: str, allowed: bool) -> None:
        """The right one, no other, and not without one."""
        async with (
            serving(TokenBudget(), bearer_token=SECRET) as url,
            TokenClient("app", url, bearer_token=token) as client,
        ):
            granted, _, error = await client.lock_tokens(1)
        assert granted is allowed
        assert allowed or error.startswith("Client error: HTTP 401: ")

    @in_loop
    async def test_the_token_is_the_environments(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """COUNTER_APP_TOKEN goes with each request, that of the status as well."""
        monkeypatch.setenv("COUNTER_APP_TOKEN", SECRET)
        async with scripted(answering(GRANT)) as (client, script):
            await client.lock_tokens(1)
            await client.get_status()
        assert {asked.headers["Authorization"] for asked in script.asked} == {f"Bearer {SECRET}"}

    @in_loop
    async def test_cookies_are_not_kept(self) -> None:
        """A budget has no sessions."""
        cookie = answering(GRANT, headers={"Set-Cookie": "a=b; Path=/"})
        script = Script(cookie)
        async with running(script) as url:  # by name: nobody keeps cookies of an address
            async with TokenClient("app", url.replace("127.0.0.1", "localhost")) as client:
                await client.lock_tokens(1)
                await client.lock_tokens(1)
        assert len(script.asked) == 2
        assert not any("Cookie" in asked.headers for asked in script.asked)

    @in_loop
    async def test_what_the_server_says_back_is_no_leak(
        self, logged: pytest.LogCaptureFixture, tmp_path: Any
    ) -> None:
        """A secret in a detail, a body or a denial is in no value, record or tracked error."""
        answers = [
            answering({"detail": f"bad token {SECRET}"}, 401),
            answering({"detail": "password=hunter2 is wrong"}, 403),
            saying(f"you sent {SECRET}", status=503),
            answering({"allowed": False, "message": f"{SECRET} would be exceeded"}),
        ]
        errors = ErrorTracker(logging.getLogger(LOGGER), tmp_path)
        async with scripted(*answers, bearer_token=SECRET, max_retries=0, errors=errors) as (
            client,
            _,
        ):
            values = [await client.lock_tokens(1) for _ in answers]
        errors.close()
        assert values[-1][2] == "[redacted] would be exceeded"
        told = [str(vars(record)) for record in logged.records]
        tracked = (tmp_path / "errors.jsonl").read_text()
        assert SECRET not in f"{values} {told} {tracked}"
        assert "hunter2" not in f"{values} {told} {tracked}"

    @pytest.mark.parametrize("is_tracked", [False, True])
    @pytest.mark.parametrize(
        "url",
        [
            f"http://user:{SECRET}@127.0.0.1:1x",
            f"http://user:{SECRET}@[::1",
            f"http://user:{SECRET}@127.0.0.1:9",
            f"user:{SECRET}@host:80",
            f"ftp://user:{SECRET}@host",
        ],
    )
    @in_loop
    async def test_a_password_in_the_url_is_no_leak(
        self, url: str, is_tracked: bool, logged: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        """Whether the URL is wrong, has no scheme, or nobody listens there."""
        errors = ErrorTracker(logging.getLogger(LOGGER), tmp_path)
        settings: dict[str, Any] = {"errors": errors} if is_tracked else {}
        async with TokenClient("app", url, max_retries=0, **settings) as client:
            _, _, error = await client.lock_tokens(1)
        errors.close()
        told = [str(vars(record)) + str(record.exc_info) for record in logged.records]
        tracked = [file.read_text() for file in tmp_path.iterdir()]
        assert SECRET not in f"{error} {told} {tracked}"


class TestRecords:
    @in_loop
    async def test_a_dead_server_does_not_flood_the_log(
        self, logged: pytest.LogCaptureFixture
    ) -> None:
        """One call's retries, one failure, and one line when it is back, with the calls lost."""
        fault = answering({"detail": "over capacity"}, 503)
        faults = [fault] * 30
        async with scripted(*faults, answering(GRANT)) as (client, _):
            for _ in range(10):
                assert (await client.lock_tokens(1))[0] is False
            assert (await client.lock_tokens(1))[0] is True
        told = [r for r in logged.records if r.levelno > logging.DEBUG]
        assert [(r.levelname, r.getMessage().partition(";")[0]) for r in told] == [
            ("WARNING", "lock is tried again"),
            ("WARNING", "lock is tried again"),
            ("WARNING", "the budget server fails"),
            ("INFO", "the budget server answers again"),
        ]
        assert [r.attempt for r in told[:2]] == [1, 2]
        assert all(r.wait_s > 0 and r.reason == "HTTP 503: over capacity" for r in told[:2])
        assert told[3].failed_calls == 10

    @in_loop
    async def test_each_cause_is_told_once(self, logged: pytest.LogCaptureFixture) -> None:
        """Until the server works again; then it is news."""
        faults = [answering({}, 503), answering({}, 500), answering({}, 503)]
        answers = [*faults, answering(GRANT), answering({}, 503)]
        async with scripted(*answers, max_retries=0) as (client, _):
            for _ in answers:
                await client.lock_tokens(1)
        reasons = [r.reason for r in logged.records if r.levelno == logging.WARNING]
        assert [reason.partition(":")[0] for reason in reasons] == [
            "HTTP 503",
            "HTTP 500",
            "HTTP 503",
        ]

    @in_loop
    async def test_a_wrong_request_is_told_each_time(
        self, logged: pytest.LogCaptureFixture
    ) -> None:
        """It is no fault of the server's, which is not called failing."""
        async with scripted(answering({"detail": "unknown id"}, 400)) as (client, _):
            await client.report_usage("a", 1, 1)
            await client.report_usage("b", 1, 1)
            await client.lock_tokens(math.nan)
        assert warnings_in(logged) == ["report refused", "report refused", "lock refused"]

    @in_loop
    async def test_figures_go_into_the_metrics(self, metrics_logger: MetricsLogger) -> None:
        """One line for each call, with its latency, denials, retries and failures."""
        answers = [
            answering({}, 503),
            answering(GRANT),
            answering({"allowed": False, "message": DENIAL}),
            answering({"success": True}),
            answering({"detail": "no"}, 400),
        ]
        async with scripted(*answers, metrics=metrics_logger) as (client, _):
            await client.lock_tokens(1)
            await client.lock_tokens(1)
            await client.report_usage("tok", 1, 1)
            await client.release_tokens("tok")
        lines = [entry["metrics"] for entry in metrics_logger.get_metrics_history()]
        latencies = ["lock_latency_s", "lock_latency_s", "report_latency_s", "release_latency_s"]
        for line, latency in zip(lines, latencies, strict=True):
            assert line.pop(latency) > 0
        assert lines == [
            {"lock_denials": 0, "budget_retries": 1, "budget_failures": 0},
            {"lock_denials": 1, "budget_retries": 0, "budget_failures": 0},
            {"budget_retries": 0, "budget_failures": 0},
            {"budget_retries": 0, "budget_failures": 1},
        ]

    @in_loop
    async def test_failures_go_to_the_tracker(
        self, logged: pytest.LogCaptureFixture, error_tracker: ErrorTracker
    ) -> None:
        """Once per cause, in place of the warning."""
        async with scripted(hanging_up, max_retries=0, errors=error_tracker) as (client, _):
            for _ in range(3):
                await client.report_usage("tok", 1, 1)
        (error,) = error_tracker.get_recent_errors()
        assert error["error_type"] == "BudgetServerError"
        assert "ServerDisconnectedError" in error["traceback"]
        assert warnings_in(logged) == []

    @in_loop
    async def test_records_say_whose_they_are(self) -> None:
        """Application and request are bound round each call, those of a retry included."""
        from foundry_log.context import bound_fields

        seen: list[Any] = []

        class Watch(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                seen.append(dict(bound_fields()))

        logger, watch = logging.getLogger(LOGGER), Watch()
        logger.addHandler(watch)
        logger.setLevel(logging.DEBUG)
        async with scripted(answering({}, 503), answering(GRANT)) as (client, _):
            await client.lock_tokens(5)
            await client.release_tokens("tok:rate")
        lock = {"application": "app", "tokens_asked": 5}
        assert seen[:2] == [lock, lock]
        assert seen[-1] == {"application": "app", "request_id": "tok:rate"}
