"""The budget's server: its endpoints on the wire, what it refuses, what it says of its work."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from foundry_log import ErrorTracker, MetricsLogger, read_jsonl
from foundry_log.services import budget_server
from foundry_log.services.token_budget import TokenBudget
from tests.event_loops import Clock, in_loop

aiohttp = pytest.importorskip(
    "aiohttp", reason="needs test-services: pip install 'foundry_log[test-services]'"
)

pytestmark = [pytest.mark.unit, pytest.mark.services]

TOKEN = "a-bearer-token-of-the-test"
LOCK = {"app_id": "app", "token_count": 100}
JSON = {"Content-Type": "application/json"}
NO_HTTP = "a request that is no HTTP was refused"


class Reply(NamedTuple):
    """What the server answered."""

    status: int
    body: Any
    headers: Any


class Caller:
    """Asks one server."""

    def __init__(self, url: str, session: Any) -> None:
        self.url = url
        self.session = session

    async def get(self, path: str, **options: Any) -> Reply:
        return await self.ask("GET", path, **options)

    async def post(self, path: str, body: Any, key: str | None = None, **options: Any) -> Reply:
        headers = {"Idempotency-Key": key} if key else {}
        return await self.ask("POST", path, json=body, headers=headers, **options)

    async def ask(self, method: str, path: str, **options: Any) -> Reply:
        async with self.session.request(method, self.url + path, **options) as response:
            return Reply(response.status, await response.json(), response.headers)


@contextlib.asynccontextmanager
async def served(budget: TokenBudget | None = None, **options: Any) -> AsyncIterator[Caller]:
    """A server of 1,000 tokens and 5 requests, and one who asks it."""
    async with (
        budget_server.serving(budget or TokenBudget(1000, 5), **options) as url,
        aiohttp.ClientSession() as session,
    ):
        yield Caller(url, session)


async def until(is_reached: Callable[[], bool]) -> None:
    """Wait for what other tasks bring about; the test's deadline bounds it."""
    while not is_reached():
        await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def half_post(url: str, path: str, body: bytes, length: int) -> AsyncIterator[Any]:
    """Begin a POST of `length` bytes with `body`; give its reader and writer, and hang up."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Idempotency-Key: half\r\nContent-Length: {length}\r\n\r\n".encode()
        + body
    )
    await writer.drain()
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def fields_of(records: list[logging.LogRecord], message: str) -> list[dict[str, Any]]:
    """The attributes of each record with that text."""
    return [record.__dict__ for record in records if record.getMessage() == message]


class TestEndpoints:
    """The contract."""

    @in_loop
    async def test_health(self) -> None:
        """It is there."""
        async with served() as caller:
            assert (await caller.get("/health"))[:2] == (200, {"status": "ok"})

    @in_loop
    async def test_a_grant_has_two_names_and_no_message(self) -> None:
        """As the contract has it."""
        async with served() as caller:
            status, body, _ = await caller.post("/lock", LOCK)
        assert status == 200
        assert list(body) == ["allowed", "request_id", "rate_request_id", "message"]
        assert body["allowed"] is True and body["message"] is None
        assert body["request_id"] and body["rate_request_id"]

    @in_loop
    async def test_a_denial_is_no_failure(self) -> None:
        """Status 200, no names, and the budget's text."""
        async with served() as caller:
            status, body, _ = await caller.post("/lock", {**LOCK, "token_count": 1001})
            assert (status, body["allowed"], body["request_id"]) == (200, False, None)
            assert "above the quota of 1000" in body["message"]
            await caller.post("/lock", {**LOCK, "token_count": 1000})
            _, body, _ = await caller.post("/lock", LOCK)
            assert body["message"].startswith("Token limit would be exceeded: ")
            for _ in range(4):
                await caller.post("/lock", {**LOCK, "token_count": 0})
            _, body, _ = await caller.post("/lock", {**LOCK, "token_count": 0})
            assert body["message"].startswith("API Rate limit would be exceeded: ")

    @in_loop
    async def test_a_lock_is_reported_or_released(self) -> None:
        """With the rate name or without; the status shows what is left."""
        async with served() as caller:
            first = (await caller.post("/lock", LOCK)).body
            second = (await caller.post("/lock", LOCK)).body
            ids = {name: first[name] for name in ("request_id", "rate_request_id")}
            used = {**ids, "prompt_tokens": 30, "completion_tokens": 20}
            assert (await caller.post("/report", used))[:2] == (200, {"success": True})
            released = {"request_id": second["request_id"], "rate_request_id": None}
            assert (await caller.post("/release", released))[:2] == (200, {"success": True})
            status = (await caller.get("/status")).body
        assert (status["available_tokens"], status["used_tokens"], status["locked_tokens"]) == (
            950,
            50,
            0,
        )
        assert 59 < status["reset_time_seconds"] <= 60
        assert status["applications"]["app"]["prompt_tokens"] == 30

    @in_loop
    async def test_a_lock_is_reported_once_and_may_be_released_behind_it(self) -> None:
        """A second report is an error with its reason."""
        async with served() as caller:
            lock = (await caller.post("/lock", LOCK)).body
            release = {"request_id": lock["request_id"]}
            report = {**release, "prompt_tokens": 1, "completion_tokens": 1}
            assert (await caller.post("/report", report)).status == 200
            assert (await caller.post("/release", release)).status == 200
            assert (await caller.post("/release", release)).status == 200
            status, body, _ = await caller.post("/report", report)
        assert (status, list(body)) == (400, ["detail"])
        assert "settled before" in body["detail"]

    @in_loop
    async def test_many_at_once_get_no_more_than_there_is(self) -> None:
        """GIVEN room for 50 WHEN 120 ask at once THEN 50 are granted."""
        async with served(TokenBudget(500, 1000)) as caller:
            asked = {"app_id": "app", "token_count": 10}
            replies = await asyncio.gather(*(caller.post("/lock", asked) for _ in range(120)))
        assert sum(reply.body["allowed"] for reply in replies) == 50

    @in_loop
    async def test_thousands_of_applications_can_be_served(self) -> None:
        """Their status stays of a bounded size."""
        async with served(TokenBudget(10_000, 10_000)) as caller:
            for number in range(1200):
                await caller.post("/lock", {"app_id": f"app-{number}", "token_count": 1})
            status = (await caller.get("/status")).body
        assert len(status["applications"]) == 1001
        assert status["applications"]["…"]["requests"] == 200

    @in_loop
    async def test_it_can_listen_at_ipv6(self) -> None:
        """The URL has brackets."""
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError as error:
            pytest.skip(f"this machine has no IPv6 loopback: {error}")
        async with served(host="::1") as caller:
            assert caller.url.startswith("http://[::1]:")
            assert (await caller.get("/health")).status == 200

    @in_loop
    async def test_two_cannot_have_one_port(self) -> None:
        """The second says so at its start, and the first goes on."""
        async with served() as caller:
            port = int(caller.url.rpartition(":")[2])
            with pytest.raises(OSError, match="address already in use"):
                async with budget_server.serving(TokenBudget(), port=port):
                    pass
            assert (await caller.get("/health")).status == 200

    @in_loop
    async def test_it_can_be_an_application_of_the_callers_own(self) -> None:
        """GIVEN an aiohttp application WHEN it is mounted by hand THEN it serves as well."""
        web = aiohttp.web
        runner = web.AppRunner(budget_server.make_app(TokenBudget(1000, 5)))
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            async with aiohttp.ClientSession() as session:
                caller = Caller(f"http://127.0.0.1:{runner.addresses[0][1]}", session)
                assert (await caller.post("/lock", LOCK)).body["allowed"]
        finally:
            await runner.cleanup()


class TestWrongRequests:
    """Each is answered in JSON, with a status and a reason, and changes nothing."""

    @pytest.mark.parametrize(
        "path, body, reason",
        [
            ("/lock", {}, "missing required field `app_id`"),
            ("/lock", {"app_id": "app"}, "missing required field `token_count`"),
            ("/lock", {"app_id": None, "token_count": 1}, "Expected `str`, got `null`"),
            ("/lock", {"app_id": 7, "token_count": 1}, "Expected `str`, got `int`"),
            ("/lock", {"app_id": "", "token_count": 1}, "app_id '' is blank"),
            ("/lock", {"app_id": " \t", "token_count": 1}, "is blank"),
            ("/lock", {"app_id": "x" * 201, "token_count": 1}, "201 characters; use 200 at most"),
            ("/lock", {"app_id": "app", "token_count": -1}, "no whole number from 0"),
            ("/lock", {"app_id": "app", "token_count": 2**63}, "no whole number from 0"),
            ("/lock", {"app_id": "app", "token_count": 10**4000}, "no whole number from 0"),
            ("/lock", {"app_id": "app", "token_count": "1"}, "Expected `int`, got `str`"),
            ("/lock", {"app_id": "app", "token_count": True}, "Expected `int`, got `bool`"),
            ("/lock", {"app_id": "app", "token_count": 1.5}, "Expected `int`, got `float`"),
            ("/lock", {"app_id": "app", "token_count": float("nan")}, "JSON is malformed"),
            ("/lock", {"app_id": "\ud800", "token_count": 1}, "JSON is malformed"),
            ("/lock", [LOCK], "Expected `object`, got `array`"),
            ("/report", {"request_id": "r"}, "missing required field `prompt_tokens`"),
            (
                "/report",
                {"request_id": "r", "prompt_tokens": -1, "completion_tokens": 1},
                "prompt_tokens is no whole number",
            ),
            (
                "/report",
                {"request_id": "", "prompt_tokens": 1, "completion_tokens": 1},
                "request_id is of no lock",
            ),
            ("/release", {}, "missing required field `request_id`"),
            ("/release", {"request_id": ":"}, "request_id is of no lock"),
            (
                "/release",
                {"request_id": "token_123", "rate_request_id": "rate_456:extra"},
                "no lock",
            ),
        ],
    )
    @in_loop
    async def test_a_wrong_body_is_400(self, path: str, body: Any, reason: str) -> None:
        """The reason names the field where there is one."""
        async with served() as caller:
            reply = await caller.post(path, body)
            status = (await caller.get("/status")).body
        assert (reply.status, list(reply.body)) == (400, ["detail"])
        assert reason in reply.body["detail"]
        assert (status["available_tokens"], status["available_requests"]) == (1000, 5)

    @pytest.mark.parametrize(
        "body",
        [
            *(b"", b"{", b"\xff\xfe", b"null", b"null,", b'{"app_id": "app"'),
            b'{"app_id": "app", "token_count": ' + b"9" * 60_000 + b"}",
            b'{"app_id": "app", "token_count": NaN}',
            b"[" * 60_000,
        ],
        ids=lambda body: body[:8].decode(errors="replace"),
    )
    @in_loop
    async def test_what_is_no_json_object_is_400(self, body: bytes) -> None:
        """Empty, torn and binary bodies alike."""
        async with served() as caller:
            reply = await caller.ask("POST", "/lock", data=body, headers=JSON)
        assert (reply.status, list(reply.body)) == (400, ["detail"])

    @pytest.mark.parametrize("path", ["/lock", "/report", "/release"])
    @in_loop
    async def test_what_is_no_utf_8_is_400(
        self, path: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A surrogate in a text: no failure of the server's own."""
        body = b'{"app_id": "\xed\xa0\x80", "request_id": "\xed\xa0\x80", "token_count": 1, '
        body += b'"prompt_tokens": 1, "completion_tokens": 1}'
        async with served() as caller:
            status, answer, _ = await caller.ask("POST", path, data=body, headers=JSON)
        assert (status, answer) == (400, {"detail": "the body is no UTF-8"})
        assert {record.levelname for record in caplog.records} == {"WARNING"}

    @pytest.mark.parametrize(
        "line",
        [
            f"Authorization: Bearer {TOKEN}\x00",
            f"Authorization Bearer {TOKEN}",
            f"Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
            "Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        ],
        ids=["control character", "no colon", "gzip"],
    )
    @in_loop
    async def test_what_is_no_http_is_told_without_its_words(
        self, line: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """aiohttp's own quote what came: a bearer token, too."""
        async with served(bearer_token=TOKEN) as caller:
            host, port = caller.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"POST /lock HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n".encode())
            assert b" 400 Bad Request" in await reader.readline()
            await reader.read()  # to the end, which the server makes
            writer.close()
        (told,) = fields_of(caplog.records, NO_HTTP)
        assert told["levelname"] == "WARNING"
        assert told["name"] == "foundry_log.services.budget_server"
        assert TOKEN not in f"{[vars(record) for record in caplog.records]} {caplog.text}"
        assert "Traceback" not in caplog.text
        assert capfd.readouterr().err == ""

    @pytest.mark.parametrize(
        "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
    )
    @in_loop
    async def test_what_is_not_said_to_be_json_is_415(self, kind: str) -> None:
        """As the content type has it."""
        async with served() as caller:
            reply = await caller.ask(
                "POST", "/lock", data=json.dumps(LOCK), headers={"Content-Type": kind}
            )
        assert reply.status == 415
        assert "application/json" in reply.body["detail"]

    @in_loop
    async def test_json_may_name_its_encoding(self) -> None:
        """As many clients do."""
        headers = {"Content-Type": "application/json; charset=utf-8"}
        async with served() as caller:
            reply = await caller.ask("POST", "/lock", data=json.dumps(LOCK), headers=headers)
        assert reply.body["allowed"]

    @pytest.mark.parametrize(
        "method, path, allowed",
        [("GET", "/lock", "POST"), ("DELETE", "/release", "POST"), ("POST", "/status", "GET,HEAD")],
    )
    @in_loop
    async def test_a_wrong_method_is_405(self, method: str, path: str, allowed: str) -> None:
        """With those that are allowed."""
        async with served() as caller:
            reply = await caller.ask(method, path)
        assert (reply.status, reply.headers["Allow"]) == (405, allowed)
        assert "Method Not Allowed" in reply.body["detail"]

    @in_loop
    async def test_an_unknown_path_is_404(self) -> None:
        """In JSON, too."""
        async with served() as caller:
            assert (await caller.get("/unknown")).body == {"detail": "404: Not Found"}

    @in_loop
    async def test_a_body_above_64_kib_is_413(self) -> None:
        """Said with its length, or sent in pieces, or small only until it is unpacked."""

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b" " * 10_000

        async with served() as caller:
            for options in (
                {"data": b" " * 70_000, "headers": JSON},
                {"data": pieces(), "headers": JSON},
                {"data": b" " * 70_000, "headers": {**JSON, "Content-Encoding": "deflate"}},
            ):
                reply = await caller.ask("POST", "/lock", **options)
                assert reply.status == 413
                assert "65536" in reply.body["detail"]

    @in_loop
    async def test_a_body_of_a_gigabyte_is_refused_unread(self) -> None:
        """GIVEN only its first bytes WHEN they are there THEN the answer is there as well."""
        async with served() as caller:
            async with half_post(caller.url, "/lock", b"{", length=10**9) as (reader, _):
                assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")

    @in_loop
    async def test_a_body_that_ends_early_changes_nothing(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """GIVEN a client that hangs up in its body THEN nothing is locked, and it is no failure."""
        body = json.dumps(LOCK).encode()
        async with served() as caller:
            async with half_post(caller.url, "/lock", body[:10], len(body)):
                assert (await caller.get("/health")).status == 200
            assert (await caller.get("/status")).body["locked_tokens"] == 0
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


class TestIdempotency:
    """The same request with the same key has one effect."""

    @in_loop
    async def test_a_request_that_comes_again_gets_the_same_answer(self) -> None:
        """Grants, reports and releases; the budget counts them once."""
        async with served() as caller:
            first = (await caller.post("/lock", LOCK, "key-1")).body
            assert (await caller.post("/lock", LOCK, "key-1")).body == first
            used = {"request_id": first["request_id"], "prompt_tokens": 1, "completion_tokens": 2}
            for _ in range(2):
                assert (await caller.post("/report", used, "key-2")).status == 200
            second = (await caller.post("/lock", LOCK, "key-3")).body
            for _ in range(2):
                released = {"request_id": second["request_id"]}
                assert (await caller.post("/release", released, "key-4")).status == 200
            status = (await caller.get("/status")).body
        assert (status["used_tokens"], status["locked_tokens"]) == (3, 0)
        assert status["used_requests"] == 1

    @in_loop
    async def test_a_denial_stays_one(self) -> None:
        """A new try takes a new key."""
        async with served() as caller:
            full = (await caller.post("/lock", {**LOCK, "token_count": 1000})).body
            assert not (await caller.post("/lock", LOCK, "key")).body["allowed"]
            await caller.post("/release", {"request_id": full["request_id"]})
            assert not (await caller.post("/lock", LOCK, "key")).body["allowed"]
            assert (await caller.post("/lock", LOCK, "other")).body["allowed"]

    @in_loop
    async def test_without_a_key_each_is_one_of_its_own(self) -> None:
        """Two grants."""
        async with served() as caller:
            first, second = [(await caller.post("/lock", LOCK)).body for _ in range(2)]
        assert first["request_id"] != second["request_id"]

    @in_loop
    async def test_a_key_belongs_to_one_request(self) -> None:
        """Another body, or another path, is 422."""
        async with served() as caller:
            await caller.post("/lock", LOCK, "key")
            other = await caller.post("/lock", {**LOCK, "token_count": 1}, "key")
            elsewhere = await caller.post("/release", LOCK, "key")
        assert (other.status, elsewhere.status) == (422, 422)
        assert "use a new one" in other.body["detail"]

    @in_loop
    async def test_requests_of_one_key_at_once_are_one_grant(self) -> None:
        """Whoever comes first."""
        async with served() as caller:
            replies = await asyncio.gather(*(caller.post("/lock", LOCK, "key") for _ in range(20)))
            status = (await caller.get("/status")).body
        assert len({reply.body["request_id"] for reply in replies}) == 1
        assert status["locked_requests"] == 1

    @in_loop
    async def test_who_hung_up_finds_the_grant_with_the_key(self) -> None:
        """GIVEN a client that did not wait WHEN it asks again THEN the answer is the same."""
        body = json.dumps(LOCK).encode()
        budget = TokenBudget(1000, 5)
        async with served(budget) as caller:
            async with half_post(caller.url, "/lock", body, len(body)):
                pass
            await until(lambda: budget.status()["locked_tokens"] == 100)
            reply = await caller.ask(
                "POST", "/lock", data=body, headers={**JSON, "Idempotency-Key": "half"}
            )
            assert reply.body["allowed"]
            assert budget.status()["locked_requests"] == 1

    @in_loop
    async def test_a_key_has_a_greatest_length(self) -> None:
        """What is kept is bounded."""
        async with served() as caller:
            assert (await caller.post("/lock", LOCK, "k" * 200)).status == 200
            reply = await caller.post("/lock", LOCK, "k" * 201)
        assert (reply.status, reply.body) == (
            400,
            {"detail": "Idempotency-Key has more than 200 characters"},
        )

    def test_answers_are_forgotten_after_an_hour(self) -> None:
        """And not before."""
        clock = Clock()
        answers = budget_server._Answers(clock)
        answers.keep("key", b"print", budget_server._Answer(200, b"{}"))
        clock.now += budget_server.KEPT_S - 1
        assert answers.find("key", b"print") is not None
        clock.now += 1
        assert answers.find("key", b"print") is None

    def test_answers_are_bounded(self) -> None:
        """The oldest go first."""
        answers = budget_server._Answers(Clock(), most=10)
        for number in range(25):
            assert answers.find(str(number), b"") is None
            answers.keep(str(number), b"", budget_server._Answer(200, b"{}"))
        assert len(answers._kept) == 10
        assert answers.find("24", b"") is not None


class TestBearerToken:
    """Who may ask."""

    @pytest.mark.parametrize(
        "header",
        [
            *(None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN),
            *(f"Bearer {TOKEN}x", f"Bearer  {TOKEN}", "Bearer \xe9\xe8"),
        ],
    )
    @in_loop
    async def test_a_missing_or_wrong_one_is_401(
        self, header: str | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        """On each path, known or not; neither answer nor record has a part of it."""
        headers = {} if header is None else {"Authorization": header}
        async with served(bearer_token=TOKEN) as caller:
            for method, path in (("GET", "/status"), ("POST", "/lock"), ("GET", "/unknown")):
                reply = await caller.ask(method, path, headers=headers)
                assert reply.status == 401
                assert reply.headers["WWW-Authenticate"] == "Bearer"
                assert TOKEN not in str(reply.body)
        assert TOKEN not in caplog.text

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
    @in_loop
    async def test_the_right_one_lets_in(
        self, scheme: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """However the scheme is written; it is in no record."""
        caplog.set_level(logging.DEBUG)
        async with served(bearer_token=TOKEN) as caller:
            caller.session.headers["Authorization"] = f"{scheme} {TOKEN}"
            assert (await caller.post("/lock", LOCK)).body["allowed"]
        assert TOKEN not in caplog.text + str([record.__dict__ for record in caplog.records])

    @in_loop
    async def test_health_needs_none(self) -> None:
        """A probe has no secrets."""
        async with served(bearer_token=TOKEN) as caller:
            assert (await caller.get("/health")).status == 200

    @pytest.mark.parametrize("token", ["", " ", "two words", "line\nbreak", "café"])
    def test_what_no_header_can_hold_is_refused(self, token: str) -> None:
        """At the start, and without its value."""
        with pytest.raises(ValueError, match="bearer_token is empty, or has blanks") as caught:
            budget_server.make_app(TokenBudget(), bearer_token=token)
        assert not token.strip() or token not in str(caught.value)


class TestRecords:
    """What it says of its work."""

    @in_loop
    async def test_each_grant_ends_in_one_line(self, caplog: pytest.LogCaptureFixture) -> None:
        """Who, which, how much, how long: what explains a bill."""
        caplog.set_level(logging.DEBUG, "foundry_log.services")
        async with served() as caller:
            first, second = [(await caller.post("/lock", LOCK)).body for _ in range(2)]
            used = {"prompt_tokens": 30, "completion_tokens": 20}
            await caller.post("/report", {"request_id": first["request_id"], **used})
            await caller.post("/release", {"request_id": second["request_id"]})
        locked = fields_of(caplog.records, "tokens locked")
        (reported,) = fields_of(caplog.records, "usage reported")
        (released,) = fields_of(caplog.records, "lock released")
        assert [(fields["levelname"], fields["tokens_asked"]) for fields in locked] == [
            ("DEBUG", 100)
        ] * 2
        assert {**reported, "latency_s": 0} == {
            **reported,
            "levelname": "INFO",
            "tokens_asked": 100,
            "tokens_prompt": 30,
            "tokens_completion": 20,
            "tokens_used": 50,
            "tokens_refunded": 50,
            "latency_s": 0,
        }
        assert reported["latency_s"] >= 0
        assert (released["levelname"], released["tokens_refunded"]) == ("INFO", 100)

    @in_loop
    async def test_a_denial_says_why(self, caplog: pytest.LogCaptureFixture) -> None:
        """With the figures."""
        async with served() as caller:
            await caller.post("/lock", {**LOCK, "token_count": 1000})
            message = (await caller.post("/lock", LOCK)).body["message"]
        (record,) = fields_of(caplog.records, "tokens denied")
        assert (record["levelname"], record["reason"]) == ("WARNING", message)
        assert record["tokens_asked"] == 100

    @in_loop
    async def test_an_expiry_is_told_though_nobody_asks(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whose lock it was."""
        expired = "lock expired: nobody reported or released it"
        async with served(TokenBudget(1000, 5, lock_ttl_s=0.1)) as caller:
            await caller.post("/lock", LOCK)
            await until(lambda: bool(fields_of(caplog.records, expired)))
        (record,) = fields_of(caplog.records, expired)
        assert (record["levelname"], record["tokens_refunded"]) == ("WARNING", 100)

    @in_loop
    async def test_what_comes_after_the_expiry_says_so(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The report is taken."""
        caplog.set_level(logging.INFO, "foundry_log.services")
        clock = Clock()
        async with served(TokenBudget(1000, 5, clock=clock)) as caller:
            first, second = [(await caller.post("/lock", LOCK)).body for _ in range(2)]
            clock.now += 301
            used = {"prompt_tokens": 30, "completion_tokens": 20}
            assert (
                await caller.post("/report", {"request_id": first["request_id"], **used})
            ).status == 200
            await caller.post("/release", {"request_id": second["request_id"]})
        (reported,) = fields_of(caplog.records, "usage reported")
        (released,) = fields_of(caplog.records, "lock released")
        assert reported["reason"] == "after its lock had expired"
        assert (released["reason"], released["tokens_refunded"]) == ("after it had expired", 0)

    @in_loop
    async def test_a_refusal_is_a_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        """With status and reason."""
        async with served() as caller:
            await caller.post("/release", {"request_id": "unknown"})
        (record,) = fields_of(caplog.records, "request refused")
        assert (record["levelname"], record["status"]) == ("WARNING", 400)

    @in_loop
    async def test_metrics_have_names_of_their_own(self, tmp_path: Path) -> None:
        """GIVEN a model service that measures too WHEN both do THEN no total is counted twice."""
        clock = Clock()
        with contextlib.closing(MetricsLogger("budget", tmp_path)) as metrics:
            async with served(TokenBudget(1000, 5, clock=clock), metrics=metrics) as caller:
                locks = [(await caller.post("/lock", LOCK)).body for _ in range(3)]
                used = {"prompt_tokens": 30, "completion_tokens": 20}
                await caller.post("/lock", {**LOCK, "token_count": 9999})
                clock.now += 2
                await caller.post("/report", {"request_id": locks[0]["request_id"], **used})
                await caller.post("/release", {"request_id": locks[1]["request_id"]})
                clock.now += 300
                await caller.get("/status")
            lines = metrics.get_metrics_history()
        assert [line["metrics"] for line in lines] == [
            {"budget_denials": 1},
            {"budget_tokens": 50, "budget_held_s": 2.0},
            {"budget_releases": 1, "budget_held_s": 2.0},
            {"budget_expiries": 1},
        ]
        assert [line["context"].get("request_id") for line in lines] == [
            None,
            *(f"{lock['request_id']}:{lock['rate_request_id']}" for lock in locks),
        ]
        assert {line["context"]["application"] for line in lines} == {"app"}

    @in_loop
    async def test_a_failure_of_its_own_is_500_and_tracked(self, tmp_path: Path) -> None:
        """GIVEN a clock that fails WHEN a lock is asked for THEN the reason stays in the log."""

        def broken() -> float:
            raise RuntimeError("no time at all")

        log = logging.getLogger("test.budget")
        with contextlib.closing(ErrorTracker(log, tmp_path)) as errors:
            async with served(TokenBudget(clock=broken), errors=errors) as caller:
                reply = await caller.post("/lock", LOCK)
        assert (reply.status, reply.body) == (500, {"detail": "internal error; see the log"})
        (line,) = read_jsonl(tmp_path / "errors.jsonl")
        assert line["error_message"] == "no time at all"

    @in_loop
    async def test_the_look_for_expired_locks_outlives_a_failure(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """GIVEN a clock that fails for a while THEN it is told once, and later looks go on."""
        failed, expired = "expired locks could not be looked for", "lock expired"
        clock = Clock()

        def breaks() -> float:
            if fails:
                raise RuntimeError("no time at all")
            return clock.now

        fails = False
        async with served(TokenBudget(1000, 5, clock=breaks)) as caller:
            await caller.post("/lock", LOCK)
            fails = True
            await until(lambda: failed in caplog.text)
            fails = False
            clock.now += 301
            await until(lambda: expired in caplog.text)
        assert len(fields_of(caplog.records, failed)) == 1


class TestEnd:
    """What is at hand is answered."""

    @in_loop
    async def test_a_request_whose_body_is_on_its_way_is_answered(self) -> None:
        """GIVEN half of a body WHEN the server ends THEN the other half gets its answer."""
        body = json.dumps(LOCK).encode()
        budget = TokenBudget(1000, 5)
        server = budget_server.serving(budget)
        url = await server.__aenter__()
        async with half_post(url, "/lock", body[:10], len(body)) as (reader, writer):
            async with aiohttp.ClientSession() as session:  # the server has seen the first half
                assert (await Caller(url, session).get("/health")).status == 200
            ending = asyncio.ensure_future(server.__aexit__(None, None, None))
            await asyncio.sleep(0)
            writer.write(body[10:])
            assert b"200 OK" in await reader.readline()
            assert b'"allowed":true' in await reader.read()
            await ending
        assert budget.status()["locked_tokens"] == 100

    @in_loop
    async def test_a_body_that_never_comes_is_not_waited_for(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """GIVEN half of a body WHEN the grace is over THEN the server has ended."""
        async with contextlib.AsyncExitStack() as stack:
            async with served(grace_s=0.05) as caller:
                half = half_post(caller.url, "/lock", b"{", 100)
                reader, _ = await stack.enter_async_context(half)
                await caller.get("/health")
            assert b"200 OK" not in await reader.read()
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]

    @in_loop
    async def test_connections_that_wait_do_not_hold_it_up(self) -> None:
        """GIVEN a client that keeps its connection WHEN the server ends THEN it ends at once."""
        async with aiohttp.ClientSession() as session:
            async with budget_server.serving(TokenBudget(), grace_s=3600) as url:
                await Caller(url, session).get("/health")
            with pytest.raises(aiohttp.ClientConnectionError):
                await Caller(url, session).get("/health")


def test_without_aiohttp_it_names_the_extra() -> None:
    """And nothing is started."""
    code = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "from foundry_log.services.budget_server import make_app\n"
        "from foundry_log.services.token_budget import TokenBudget\n"
        "make_app(TokenBudget())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "the budget server needs aiohttp: pip install 'foundry_log[budget]'" in done.stderr
