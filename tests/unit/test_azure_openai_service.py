"""AzureOpenAIService against a model and a budget server on loopback, both of which fail too."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError, field_validator

from foundry_log import ErrorTracker, MetricsLogger
from foundry_log.services.azure_openai_service import AzureOpenAIService
from foundry_log.services.model_errors import (
    ContentFilterError,
    OutputLengthError,
    RefusalError,
    TokenBudgetError,
    UnreadableReplyError,
)
from foundry_log.services.token_budget import TokenBudget

for package in ("aiohttp", "openai", "instructor", "azure.identity"):
    pytest.importorskip(
        package, reason="needs test-services: pip install 'foundry_log[test-services]'"
    )

import instructor  # noqa: E402 - only where it is installed
import openai  # noqa: E402

from foundry_log.services.budget_server import serving  # noqa: E402
from foundry_log.services.token_client import TokenClient  # noqa: E402
from tests import model_server  # noqa: E402
from tests.event_loops import in_loop  # noqa: E402
from tests.model_server import ModelServer, model_in_a_thread, running_model  # noqa: E402

pytestmark = [
    pytest.mark.unit,
    pytest.mark.services,
    pytest.mark.filterwarnings("ignore:open_binary is deprecated"),  # in bpe_openai
]

ASK = [{"role": "user", "content": "Who wrote the first program?"}]
ADA = {"name": "Ada", "age": 36}
VARIABLES = {
    "APP_OPENAI_API_VERSION": "2024-10-21",
    "APP_OPENAI_API_BASE": "http://127.0.0.1:9",
    "APP_OPENAI_ENGINE": "gpt-4o",
    "APP_OPENAI_API_KEY": "key-of-the-test",
}
NOWHERE = "http://127.0.0.1:9"
OTHER_NAMES = {
    "APP_OPENAI_API_VERSION": "AZURE_OPENAI_API_VERSION",
    "APP_OPENAI_API_BASE": "AZURE_OPENAI_ENDPOINT",
    "APP_OPENAI_ENGINE": "AZURE_OPENAI_DEPLOYMENT_NAME",
    "APP_OPENAI_API_KEY": "AZURE_OPENAI_API_KEY",
}


class User(BaseModel):
    """A person."""

    name: str
    age: int

    @field_validator("age")
    @classmethod
    def is_possible(cls, age: int) -> int:
        """Nobody is that old."""
        if age > 150:
            raise ValueError("too old")
        return age


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that the service reads, and no others."""
    for name in (*OTHER_NAMES.values(), "COUNTER_APP_BASE_URL", "TOKEN_COUNTER_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COUNTER_APP_BASE_URL", NOWHERE)


@dataclass
class Ledger:
    """A token client that writes down what it is asked, and answers as it is told."""

    asked: list[int] = field(default_factory=list)
    reported: list[tuple[str, int, int]] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    denial: str | None = None
    denied_locks: set[int] = field(default_factory=set)
    """Which locks are denied though there is budget soon, counted from 1."""
    locks: int = 0
    settles: bool | Exception = True

    async def lock_tokens(self, token_count: int) -> tuple[bool, str | None, str | None]:
        """Grant, or deny."""
        self.locks += 1
        if self.denial is not None:
            return False, None, self.denial
        if self.locks in self.denied_locks:
            return False, None, "Token limit would be exceeded: soon free"
        self.asked.append(token_count)
        return True, f"id-{len(self.asked)}", None

    async def report_usage(self, request_id: str, prompt: int, completion: int) -> bool:
        """Take a report."""
        self.reported.append((request_id, prompt, completion))
        return self._settled()

    async def release_tokens(self, request_id: str) -> bool:
        """Take a release."""
        self.released.append(request_id)
        return self._settled()

    async def get_status(self) -> dict[str, Any]:
        """Say that the budget is free soon."""
        return {"reset_time_seconds": -1.0}

    def _settled(self) -> bool:
        if isinstance(self.settles, Exception):
            raise self.settles
        return self.settles

    @property
    def open_locks(self) -> int:
        """Locks that are not settled."""
        return len(self.asked) - len(self.reported) - len(self.released)


@dataclass
class World:
    """A service between its servers."""

    model: ModelServer
    service: AzureOpenAIService
    ledger: Ledger


@contextlib.asynccontextmanager
async def world(*answers: model_server.Answer, **options: Any) -> AsyncIterator[World]:
    """A service whose model gives these answers, and whose locks are written down."""
    ledger = Ledger()
    async with running_model() as model:
        model.answers(*answers)
        async with client_of(model) as client:
            options = {"client": client, "token_client": ledger, **options}
            async with AzureOpenAIService("gpt-4o", "tests", **options) as service:
                yield World(model, service, ledger)


def client_of(model: ModelServer, **options: Any) -> openai.AsyncAzureOpenAI:
    """A client of the server."""
    return openai.AsyncAzureOpenAI(**_access(model), **options)


def _access(model: ModelServer) -> dict[str, Any]:
    return {"azure_endpoint": model.url, "api_version": "2024-10-21", "api_key": "k"}


def is_ada(result: Any) -> bool:
    """Whether it is the user that the model gave; instructor makes it of a class below `User`."""
    return isinstance(result, User) and result.model_dump() == ADA


def records(caplog: pytest.LogCaptureFixture, message: str) -> list[Any]:
    """The records with this message."""
    return [record for record in caplog.records if record.getMessage() == message]


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Records of the services, from INFO."""
    with caplog.at_level(logging.INFO, "foundry_log.services"):
        yield caplog


class TestInit:
    """What a service is made from."""

    @in_loop
    async def test_the_environment_says_which_model(self) -> None:
        """Version, endpoint, deployment and key are read from APP_ variables."""
        service = AzureOpenAIService()
        assert service.model == "gpt-4o"
        assert service.app_id == "default_app"
        assert isinstance(service.client, openai.AsyncAzureOpenAI)
        assert isinstance(service.instructor_client, instructor.AsyncInstructor)
        assert isinstance(service.token_client, TokenClient)
        assert service.token_client.base_url == NOWHERE
        assert service.client.api_key == "key-of-the-test"
        await service.close()

    @in_loop
    async def test_azure_names_of_the_variables_serve_too(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The APP_ names win where both are set."""
        for name, other in OTHER_NAMES.items():
            monkeypatch.setenv(other, VARIABLES[name])
            monkeypatch.delenv(name)
        monkeypatch.setenv("AZURE_OPENAI_DEPLOYMENT_NAME", "theirs")
        async with AzureOpenAIService(token_client=Ledger()) as service:
            assert service.model == "theirs"
        monkeypatch.setenv("APP_OPENAI_ENGINE", "ours")
        async with AzureOpenAIService(token_client=Ledger()) as service:
            assert service.model == "ours"

    @in_loop
    async def test_arguments_win_over_the_environment(self) -> None:
        """A model, an application and a budget server of one's own."""
        service = AzureOpenAIService("custom", "tickets", "http://127.0.0.1:8/")
        assert (service.model, service.app_id) == ("custom", "tickets")
        assert service.token_client.base_url == "http://127.0.0.1:8"
        await service.close()

    def test_all_missing_variables_are_named_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both names of each are in one message."""
        for name in (*VARIABLES, "COUNTER_APP_BASE_URL"):
            monkeypatch.delenv(name)
        with pytest.raises(ValueError, match="missing") as caught:
            AzureOpenAIService()
        for name in ("APP_OPENAI_API_VERSION", "APP_OPENAI_API_BASE", "APP_OPENAI_ENGINE"):
            assert f"{name} or {OTHER_NAMES[name]}" in str(caught.value)
        assert "COUNTER_APP_BASE_URL or TOKEN_COUNTER_URL" in str(caught.value)

    @pytest.mark.parametrize("name", list(VARIABLES)[:3])
    def test_a_missing_variable_is_named(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """And no other; a blank one is missing."""
        monkeypatch.setenv(name, " ")
        with pytest.raises(ValueError, match=f"{name} or {OTHER_NAMES[name]}") as caught:
            AzureOpenAIService()
        assert ";" not in str(caught.value)

    @in_loop
    async def test_a_missing_budget_server_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Unless one is given; what a token client takes for none is none."""
        monkeypatch.setenv("COUNTER_APP_BASE_URL", "")
        monkeypatch.setenv("TOKEN_COUNTER_URL", NOWHERE)
        for options in ({}, {"token_counter_url": ""}):
            with pytest.raises(ValueError, match=r"set COUNTER_APP_BASE_URL or TOKEN_COUNTER_URL$"):
                AzureOpenAIService(**options)
        await AzureOpenAIService(token_client=Ledger()).close()
        await AzureOpenAIService(token_counter_url=NOWHERE).close()
        monkeypatch.delenv("COUNTER_APP_BASE_URL")
        service = AzureOpenAIService()
        assert service.token_client.base_url == NOWHERE
        await service.close()

    @in_loop
    async def test_a_budget_server_that_fails_is_told_at_the_start(
        self, logged: pytest.LogCaptureFixture
    ) -> None:
        """A wrong token and a server that is not there; the service starts all the same."""
        async with AzureOpenAIService("gpt-4o", "tests", NOWHERE):
            assert any("budget server fails" in record.getMessage() for record in logged.records)
        logged.clear()
        options = {"bearer_token": "right"}
        async with serving(TokenBudget(10_000, 50), **options) as url:
            async with AzureOpenAIService("gpt-4o", "tests", url):
                (told,) = [r for r in logged.records if "budget server fails" in r.getMessage()]
        assert "401" in told.reason

    @in_loop
    async def test_a_token_client_that_was_given_is_not_asked_at_the_start(self) -> None:
        """It has been in use before."""
        asked = []
        ledger = Ledger()
        ledger.get_status = lambda: asked.append(1)  # type: ignore[method-assign, assignment]
        async with AzureOpenAIService(token_client=ledger):
            pass
        assert asked == []

    @pytest.mark.parametrize(
        "options",
        [
            {"completion_allowance": 0},
            {"validation_retries": -1},
            {"max_retries": 1.5},
            {"timeout_s": 0},
        ],
    )
    def test_a_number_out_of_range_is_refused(self, options: dict[str, Any]) -> None:
        """With its name and its value."""
        ((name, value),) = options.items()
        with pytest.raises(ValueError, match=f"{name}={value}"):
            AzureOpenAIService(**options)

    @in_loop
    async def test_without_a_key_a_credential_is_used(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """DefaultAzureCredential gives the token, and is closed with the service."""
        monkeypatch.delenv("APP_OPENAI_API_KEY")
        async with running_model() as model:
            model.answers(model_server.replies(ADA))
            monkeypatch.setenv("APP_OPENAI_API_BASE", model.url)
            monkeypatch.setenv("IDENTITY_ENDPOINT", f"{model.url}/identity")
            monkeypatch.setenv("IDENTITY_HEADER", "h")
            async with AzureOpenAIService(token_client=Ledger()) as service:
                await service.structured_completion(User, ASK)
        assert model.requests[0].headers["authorization"] == "Bearer loopback-token"

    @pytest.mark.parametrize("package", ["openai", "instructor"])
    def test_a_missing_package_is_named_with_its_extra(
        self, package: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the service is made, not at its first call."""
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=re.escape(f"needs {package}")) as caught:
            AzureOpenAIService()
        assert "foundry_log[llm]" in str(caught.value)

    @in_loop
    async def test_nothing_secret_is_in_its_repr(self) -> None:
        """Neither key nor endpoint."""
        async with AzureOpenAIService(token_client=Ledger()) as service:
            assert repr(service) == "<AzureOpenAIService of 'gpt-4o' for 'default_app'>"


class TestTokenCounting:
    """What a call is estimated at."""

    @in_loop
    async def test_the_estimate_has_prompt_schema_and_reply(self) -> None:
        """Each adds to it; the reply is its limit, or the allowance."""
        options = {"completion_allowance": 500, "token_client": Ledger()}
        async with AzureOpenAIService(**options) as service:
            prompt = service.count_tokens(ASK)
            assert service.estimate_token_count(ASK) == prompt + 500
            assert service.estimate_token_count(ASK, max_tokens=7) == prompt + 7
            with_schema = service.estimate_token_count(ASK, 7, User)
            assert prompt + 7 + 20 < with_schema < prompt + 7 + 200
            assert service.estimate_token_count(ASK, 7, list[User]) > prompt + 7 + 20
            assert service.estimate_token_count(ASK, 7, object()) == prompt + 7

    @in_loop
    async def test_what_is_locked_is_what_was_estimated(self) -> None:
        """The request that is sent is what is counted, its schema too."""
        async with world(model_server.replies(ADA)) as here:
            estimated = here.service.estimate_token_count(ASK, 100, User)
            await here.service.structured_completion(User, ASK, max_tokens=100)
        assert here.ledger.asked == [estimated]

    @in_loop
    async def test_a_mended_reply_is_estimated_with_what_was_wrong(self) -> None:
        """The second attempt sends more, and asks for more."""
        answers = (model_server.replies({"name": "Ada"}), model_server.replies(ADA))
        async with world(*answers) as here:
            await here.service.structured_completion(User, ASK, max_tokens=100)
        assert here.ledger.asked[1] > here.ledger.asked[0]


class TestPromptFormatting:
    """Prompts through the service; more of them in test_prompts.py."""

    @in_loop
    async def test_a_prompt_is_formatted_sent_and_completed(self) -> None:
        """Variables and examples are in the messages that arrive."""
        async with world(model_server.replies(ADA)) as here:
            user = await here.service.structured_prompt(
                User,
                "Answer in {tongue}.",
                "{who}?",
                {"tongue": "French", "who": "Ada"},
                [("a", "b")],
            )
            assert here.service.format_prompt("", "{x}", {"x": 1})[0]["content"] == "1"
        assert is_ada(user)
        sent = [message["content"] for message in here.model.requests[0].body["messages"]]
        assert sent == ["Answer in French.", "a", "b", "Ada?"]

    @in_loop
    async def test_a_missing_variable_locks_nothing(self) -> None:
        """It is told before anybody is asked."""
        async with world(model_server.replies(ADA)) as here:
            with pytest.raises(ValueError, match="Missing template variable: 'who'"):
                await here.service.structured_prompt(User, "", "{who}?")
        assert here.ledger.asked == []


class TestStructuredOutput:
    """One structured completion, and each way it ends."""

    @in_loop
    async def test_a_reply_becomes_an_instance_and_its_usage_is_reported(self) -> None:
        """One lock, one report with the reply's own figures, no release."""
        async with world(model_server.replies(ADA)) as here:
            user = await here.service.structured_completion(User, ASK, temperature=0.5, seed=7)
        assert is_ada(user)
        assert here.ledger.reported == [("id-1", 50, 20)]
        assert here.ledger.released == []
        seen = here.model.requests[0]
        assert (seen.deployment, seen.api_version) == ("gpt-4o", "2024-10-21")
        assert (seen.body["temperature"], seen.body["seed"]) == (0.5, 7)

    @pytest.mark.parametrize(
        ("model", "name"), [("gpt-4o", "max_tokens"), ("o3-mini", "max_completion_tokens")]
    )
    @in_loop
    async def test_the_limit_is_sent_as_the_model_takes_it(self, model: str, name: str) -> None:
        """Models that reason refuse the older name."""
        async with world(model_server.replies(ADA)) as here:
            here.service.model = model
            await here.service.structured_completion(User, ASK, max_tokens=9)
        assert here.model.requests[0].body[name] == 9

    @in_loop
    async def test_a_reply_without_usage_is_counted_by_ourselves(
        self, logged: pytest.LogCaptureFixture
    ) -> None:
        """The lock is not leaked, and the record says that it is an estimate."""
        async with world(model_server.replies(ADA, usage=None)) as here:
            await here.service.structured_completion(User, ASK)
        ((_, prompt, completion),) = here.ledger.reported
        assert 20 < prompt < 200
        assert 10 < completion < 100
        assert records(logged, "model call completed")[0].tokens_estimated is True

    @in_loop
    async def test_an_invalid_reply_is_mended_each_attempt_on_its_own_lock(
        self, logged: pytest.LogCaptureFixture
    ) -> None:
        """Every attempt is a request that uses tokens; figures add up in one record."""
        answers = (
            model_server.replies({"name": "Ada"}),
            model_server.replies("no json"),
            model_server.replies(ADA),
        )
        async with world(*answers) as here:
            assert is_ada(await here.service.structured_completion(User, ASK))
        assert here.ledger.reported == [("id-1", 50, 20), ("id-2", 50, 20), ("id-3", 50, 20)]
        (told,) = records(logged, "model call completed")
        assert (told.attempts, told.tokens_used, told.tokens_prompt) == (3, 210, 150)
        assert told.tokens_refunded == told.tokens_asked - 210
        assert told.request_id == "id-3"
        again = records(logged, "the model's reply was not valid; it is asked again")
        assert len(again) == 2
        assert "age: Field required" in again[0].reason

    @in_loop
    async def test_a_reply_that_stays_invalid_is_a_validation_error(self) -> None:
        """As pydantic made it; every attempt is reported, none released."""
        async with world(model_server.replies({"name": "Ada", "age": 999})) as here:
            with pytest.raises(ValidationError, match="too old"):
                await here.service.structured_completion(User, ASK)
        assert len(here.ledger.reported) == 3
        assert here.ledger.open_locks == 0

    @pytest.mark.parametrize(
        "wrong",
        [
            model_server.replies({"city": "Rome"}, tool="Weather"),
            model_server.replies(None, content="Ada Lovelace, 36"),
        ],
    )
    @in_loop
    async def test_a_wrong_tool_call_is_asked_again(self, wrong: model_server.Answer) -> None:
        """One with another tool's arguments, and none at all."""
        async with world(wrong, model_server.replies(ADA)) as here:
            assert is_ada(await here.service.structured_completion(User, ASK))
        assert len(here.ledger.reported) == 2

    @in_loop
    async def test_no_validation_retries_means_one_attempt(self) -> None:
        """0 is one request."""
        async with world(model_server.replies({}), validation_retries=0) as here:
            with pytest.raises(ValidationError):
                await here.service.structured_completion(User, ASK)
        assert len(here.model.requests) == 1

    @in_loop
    async def test_a_denied_lock_is_the_servers_words_and_releases_nothing(
        self, logged: pytest.LogCaptureFixture
    ) -> None:
        """No request is sent; the token client has warned of the denial."""
        async with world(model_server.replies(ADA)) as here:
            here.ledger.denial = "Token limit would be exceeded: 9 of 10"
            with pytest.raises(ValueError, match=r"^Token limit would be exceeded: 9 of 10$"):
                await here.service.structured_completion(User, ASK)
        assert here.model.requests == []
        assert here.ledger.released == []
        (told,) = records(logged, "model call denied: no tokens")
        assert (told.levelname, told.denials) == ("INFO", 1)

    @in_loop
    async def test_a_budget_server_that_fails_is_no_denial(
        self, logged: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        """It is told and counted as a failure; the text of the error stays the client's."""
        metrics = MetricsLogger("calls", tmp_path)
        async with world(model_server.replies(ADA), metrics=metrics) as here:
            here.ledger.denial = "Client error: TimeoutError: no answer within 10 s"
            with pytest.raises(ValueError, match=r"^Client error: TimeoutError"):
                await here.service.structured_completion(User, ASK)
        metrics.close()
        (told,) = records(logged, "model call not made: the budget server failed")
        assert (told.levelname, told.denials) == ("WARNING", 0)
        assert "no answer within 10 s" in told.reason
        (line,) = metrics.get_metrics_history()
        assert (line["metrics"]["failed"], line["metrics"]["denials"]) == (1, 0)

    @in_loop
    async def test_an_error_of_the_api_releases_the_lock(
        self, logged: pytest.LogCaptureFixture
    ) -> None:
        """It is raised as the SDK made it, after the SDK's own retries."""
        async with world(model_server.fails(429, {"retry-after-ms": "1"})) as here:
            with pytest.raises(openai.RateLimitError):
                await here.service.structured_completion(User, ASK)
        assert (here.ledger.reported, here.ledger.released) == ([], ["id-1"])
        assert len(here.model.requests) == 3
        (told,) = records(logged, "model call failed")
        assert (told.retries, told.tokens_refunded) == (2, here.ledger.asked[0])

    @pytest.mark.parametrize(
        ("fault", "raised"),
        [
            (model_server.fails(500), openai.InternalServerError),
            (model_server.fails(401), openai.AuthenticationError),
            (model_server.drops(), openai.APIConnectionError),
            (model_server.hangs(), openai.APITimeoutError),
        ],
    )
    @in_loop
    async def test_where_no_reply_comes_the_lock_is_released(
        self, fault: model_server.Answer, raised: type[Exception]
    ) -> None:
        """Whatever the SDK raises is what the caller gets."""
        async with world(fault) as here:
            patient = here.service.client.with_options(max_retries=0, timeout=0.2)
            here.service.instructor_client = instructor.from_openai(patient)
            with pytest.raises(raised):
                await here.service.structured_completion(User, ASK)
        assert (here.ledger.reported, here.ledger.released) == ([], ["id-1"])

    @pytest.mark.parametrize(
        ("answer", "raised"),
        [
            (model_server.says("{broken"), json.JSONDecodeError),
            (model_server.says("hello", "text/plain"), UnreadableReplyError),
            (model_server.says('{"choices": []}'), UnreadableReplyError),
            (model_server.says('{"choices": [{"message": "hi"}]}'), UnreadableReplyError),
            (model_server.says('{"choices": [{}]}'), UnreadableReplyError),
            (model_server.says('{"choices": [null]}'), UnreadableReplyError),
            (model_server.says('{"choices": {"a": 1}}'), UnreadableReplyError),
            (model_server.says('{"choices": "abc"}'), UnreadableReplyError),
        ],
    )
    @in_loop
    async def test_an_unreadable_reply_has_used_its_prompt(
        self, answer: model_server.Answer, raised: type[Exception]
    ) -> None:
        """The model has run: what it read is reported, by our own count."""
        async with world(answer, validation_retries=0) as here:
            with pytest.raises(raised):
                await here.service.structured_completion(User, ASK)
        ((_, prompt, completion),) = here.ledger.reported
        assert prompt > 20
        assert completion == 0
        assert here.ledger.open_locks == 0

    @in_loop
    async def test_an_unreadable_reply_is_reported_by_the_usage_it_states(self) -> None:
        """Whatever shape the rest has."""
        usage = json.dumps(model_server.USAGE)
        answer = model_server.says(f'{{"choices": [{{"message": "hi"}}], "usage": {usage}}}')
        async with world(answer) as here:
            with pytest.raises(UnreadableReplyError):
                await here.service.structured_completion(User, ASK)
        assert (here.ledger.reported, here.ledger.released) == ([("id-1", 50, 20)], [])

    @in_loop
    async def test_a_models_refusal_is_an_error_without_its_words(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is not asked again, and nothing that it wrote is in a record."""
        caplog.set_level(logging.DEBUG, "foundry_log")
        async with world(model_server.refuses("I will not speak of Jane Doe")) as here:
            with pytest.raises(RefusalError) as caught:
                await here.service.structured_completion(User, ASK)
        assert "Jane Doe" not in str(caught.value)
        assert here.ledger.reported == [("id-1", 50, 20)]
        assert "Jane Doe" not in caplog.text + str([vars(record) for record in caplog.records])

    @in_loop
    async def test_a_refused_prompt_is_a_content_filter_error(self) -> None:
        """It says the categories; nothing was used."""
        async with world(model_server.REFUSED) as here:
            with pytest.raises(ContentFilterError, match="prompt for violence") as caught:
                await here.service.structured_completion(User, ASK)
        assert (caught.value.stage, caught.value.categories) == ("prompt", ("violence",))
        assert isinstance(caught.value.__cause__, openai.BadRequestError)
        assert here.ledger.released == ["id-1"]

    @in_loop
    async def test_a_filtered_reply_is_not_asked_again(self) -> None:
        """Its tokens were used."""
        found = {"hate": {"filtered": True, "severity": "high"}}
        answer = model_server.replies(
            "", finish_reason="content_filter", content_filter_results=found
        )
        async with world(answer) as here:
            with pytest.raises(ContentFilterError) as caught:
                await here.service.structured_completion(User, ASK)
        assert (caught.value.stage, caught.value.categories) == ("reply", ("hate",))
        assert here.ledger.reported == [("id-1", 50, 20)]

    @in_loop
    async def test_a_reply_that_was_cut_off_is_not_asked_again(self) -> None:
        """The error names the limit."""
        async with world(model_server.replies('{"name": "A', finish_reason="length")) as here:
            with pytest.raises(OutputLengthError, match="max_tokens=20") as caught:
                await here.service.structured_completion(User, ASK, max_tokens=20)
        assert caught.value.max_tokens == 20
        assert here.ledger.reported == [("id-1", 50, 20)]

    @in_loop
    async def test_one_budget_bounds_all_attempts(self) -> None:
        """An attempt that might pass it is not made; what was used is said."""
        async with world(model_server.replies({"name": "Ada"})) as here:
            bound = here.service.estimate_token_count(ASK, 30, User) + 60
            with pytest.raises(TokenBudgetError) as caught:
                await here.service.structured_completion(
                    User, ASK, max_tokens=30, max_total_tokens=bound
                )
        assert caught.value.used == 70
        assert caught.value.used + caught.value.asked > caught.value.bound == bound
        assert here.ledger.reported == [("id-1", 50, 20)]

    @in_loop
    async def test_one_budget_bounds_what_is_made_again_after_denials(self) -> None:
        """What the attempts before a denial have used counts."""
        async with world(model_server.replies({"name": "Ada"})) as here:
            here.ledger.denied_locks = {2, 4, 6, 8}
            messages = here.service.format_prompt("", "Who?")
            bound = here.service.estimate_token_count(messages, 30, User) + 200
            with pytest.raises(TokenBudgetError) as caught:
                await here.service.structured_prompt(
                    User, "", "Who?", max_tokens=30, max_total_tokens=bound, max_retries=8
                )
        assert caught.value.used == 140
        assert len(here.model.requests) == 2
        assert here.ledger.open_locks == 0

    @pytest.mark.parametrize("option", ["stream", "model", "max_retries"])
    @in_loop
    async def test_an_option_of_the_services_own_is_refused(self, option: str) -> None:
        """Before anything is locked."""
        async with world(model_server.replies(ADA)) as here:
            with pytest.raises(ValueError, match=option):
                await here.service.structured_completion(User, ASK, **{option: 1})
            for name in ("max_tokens", "max_total_tokens", "max_completion_tokens", "n"):
                for value in (0, -100_000, 1.5, "3"):
                    with pytest.raises(ValueError, match=f"{name}={value!r}"):
                        await here.service.structured_completion(User, ASK, **{name: value})
        assert here.ledger.asked == []

    @pytest.mark.parametrize("settles", [False, RuntimeError("the budget server is gone")])
    @in_loop
    async def test_a_report_that_fails_fails_no_call(
        self, settles: bool | Exception, logged: pytest.LogCaptureFixture
    ) -> None:
        """It is told, and the result is there."""
        async with world(model_server.replies(ADA)) as here:
            here.ledger.settles = settles
            assert is_ada(await here.service.structured_completion(User, ASK))
        told = [record for record in logged.records if "expires" in record.getMessage()]
        assert len(told) == 1


class TestCancelling:
    """Callers that give up."""

    @in_loop
    async def test_a_cancelled_call_gives_its_tokens_back_and_hangs_up(
        self, logged: pytest.LogCaptureFixture
    ) -> None:
        """The server sees the connection close; the lock is settled by the time of `close`."""
        async with world(model_server.hangs()) as here:
            call = asyncio.create_task(here.service.structured_completion(User, ASK))
            await here.model.arrived.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await here.service.close()
            assert here.ledger.released == ["id-1"]
            while not here.model.let_go:
                await asyncio.sleep(0.01)
        (told,) = records(logged, "model call cancelled")
        assert told.tokens_refunded == told.tokens_asked

    @in_loop
    async def test_a_cancelled_request_of_the_services_own_client_hangs_up(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The deadline that it runs under keeps it from nothing."""
        async with running_model() as model:
            model.answers(model_server.hangs())
            monkeypatch.setenv("APP_OPENAI_API_BASE", model.url)
            async with AzureOpenAIService(token_client=Ledger()) as service:
                call = asyncio.create_task(service.structured_completion(User, ASK))
                await model.arrived.wait()
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
                while not model.let_go:
                    await asyncio.sleep(0.01)

    @in_loop
    async def test_a_call_cancelled_while_it_reports_has_reported(self) -> None:
        """The report goes on without the caller."""
        reporting, going_on = asyncio.Event(), asyncio.Event()

        class Slow(Ledger):
            async def report_usage(self, request_id: str, prompt: int, completion: int) -> bool:
                reporting.set()
                await going_on.wait()
                return await super().report_usage(request_id, prompt, completion)

        ledger = Slow()
        async with world(model_server.replies(ADA), token_client=ledger) as here:
            call = asyncio.create_task(here.service.structured_completion(User, ASK))
            await reporting.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            going_on.set()
        assert ledger.reported == [("id-1", 50, 20)]
        assert ledger.open_locks == 0

    @in_loop
    async def test_closing_waits_for_no_settlement_for_ever(
        self, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
    ) -> None:
        """It says how many are left."""
        monkeypatch.setattr("foundry_log.services.azure_openai_service.SETTLED_WITHIN_S", 0.01)
        reporting = asyncio.Event()

        class Stuck(Ledger):
            async def report_usage(self, request_id: str, prompt: int, completion: int) -> bool:
                reporting.set()
                return await asyncio.Event().wait()

        async with world(model_server.replies(ADA), token_client=Stuck()) as here:
            call = asyncio.create_task(here.service.structured_completion(User, ASK))
            await reporting.wait()
            call.cancel()
            await asyncio.wait([call])
            await here.service.close()
        told = [record.getMessage() for record in logged.records]
        assert any("are not settled yet" in message for message in told)

    @in_loop
    async def test_closing_waits_for_calls_and_refuses_others(self) -> None:
        """The reply comes, is reported, and SDKs stay quiet until then; no lock is taken later."""
        async with world(model_server.replies(ADA, after_s=0.2)) as here:
            call = asyncio.create_task(here.service.structured_completion(User, ASK))
            await here.model.arrived.wait()
            closing = asyncio.create_task(here.service.close())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="is closed"):
                await here.service.structured_completion(User, ASK)
            assert logging.getLogger("instructor").level == logging.CRITICAL
            await here.service.close()
            assert call.done()
            assert is_ada(await call)
            await closing
            with pytest.raises(RuntimeError, match="is closed"):
                await here.service.structured_prompt(User, "", "Who?")
        assert here.ledger.reported == [("id-1", 50, 20)]
        assert len(here.ledger.asked) == 1

    @in_loop
    async def test_a_cancelled_close_has_closed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It waits for calls no longer; nothing is left open, or quiet."""
        async with running_model() as model:
            model.answers(model_server.hangs())
            monkeypatch.setenv("APP_OPENAI_API_BASE", model.url)
            service = AzureOpenAIService(token_client=Ledger())
            call = asyncio.create_task(service.structured_completion(User, ASK))
            await model.arrived.wait()
            closing = asyncio.create_task(service.close())
            await asyncio.sleep(0)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
            assert service.client.is_closed()
            assert logging.getLogger("openai").level == logging.NOTSET
            await service.close()
            call.cancel()
            await asyncio.wait([call])

    @in_loop
    async def test_an_entry_that_is_cancelled_has_closed(self) -> None:
        """Nobody else could."""
        async with hung_budget() as url:
            service = AzureOpenAIService(token_counter_url=url)
            entering = asyncio.create_task(service.__aenter__())
            await asyncio.sleep(0.05)
            assert not entering.done()
            entering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await entering
            assert service.client.is_closed()
            assert logging.getLogger("openai").level == logging.NOTSET

    @in_loop
    async def test_a_cancelled_synchronous_call_is_settled_when_its_thread_is_done(
        self, logged: pytest.LogCaptureFixture
    ) -> None:
        """The request cannot be stopped: it used its tokens, and they are reported."""
        async with running_model() as model:
            model.answers(model_server.replies(ADA, after_s=0.1))
            ledger = Ledger()
            with openai.AzureOpenAI(**_access(model)) as client:
                service = AzureOpenAIService("gpt-4o", client=client, token_client=ledger)
                call = asyncio.create_task(service.structured_completion(User, ASK))
                await model.arrived.wait()
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
                assert ledger.open_locks == 1
                await service.close()
        assert ledger.reported == [("id-1", 50, 20)]
        assert records(logged, "model call cancelled")[0].tokens_used == 70


@contextlib.asynccontextmanager
async def hung_budget() -> AsyncIterator[str]:
    """The address of a server that takes connections and never answers."""
    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    try:
        yield "http://{}:{}".format(*server.sockets[0].getsockname()[:2])
    finally:
        server.close()
        for writer in writers:
            writer.close()


class StandIn:
    """An object with the surface that the spec's tests replace, synchronous as they have it."""

    def __init__(self, result: Any = None, error: BaseException | None = None) -> None:
        self.chat = SimpleNamespace(completions=self)
        self.calls: list[dict[str, Any]] = []
        self.threads: list[int] = []
        self._result = result
        self._error = error

    def create(self, **request: Any) -> Any:
        """Answer as told."""
        self.calls.append(request)
        self.threads.append(threading.get_ident())
        if self._error is not None:
            raise self._error
        return self._result


class AwaitedStandIn(StandIn):
    """The same, as a plain function whose result is to be awaited."""

    def create(self, **request: Any) -> Any:
        """Answer as told, in a while."""

        async def later() -> Any:
            return StandIn.create(self, **request)

        return later()


class CoroutineStandIn(StandIn):
    """The same, as a coroutine function."""

    async def create(self, **request: Any) -> Any:
        """Answer as told."""
        return StandIn.create(self, **request)


def answered(prompt: Any = 12, completion: Any = 3) -> User:
    """A result as instructor gives it, with the raw reply's usage."""
    user = User(**ADA)
    usage = SimpleNamespace(prompt_tokens=prompt, completion_tokens=completion)
    object.__setattr__(user, "_raw_response", SimpleNamespace(usage=usage))
    return user


class TestStandIns:
    """The spec's synchronous surface: whatever stands in `instructor_client`."""

    @pytest.mark.parametrize("kind", [StandIn, AwaitedStandIn, CoroutineStandIn])
    @in_loop
    async def test_it_is_called_once_between_one_lock_and_one_report(
        self, kind: type[StandIn]
    ) -> None:
        """Usage is that of `_raw_response`; synchronous ones run off the loop."""
        async with world(model_server.replies(ADA)) as here:
            standing = here.service.instructor_client = kind(answered())
            result = await here.service.structured_completion(User, ASK, temperature=0)
            assert here.ledger.asked == [here.service.estimate_token_count(ASK, None, User)]
        assert result == User(**ADA)
        (call,) = standing.calls
        assert call == {
            "response_model": User,
            "model": "gpt-4o",
            "messages": ASK,
            "temperature": 0,
        }
        assert here.ledger.reported == [("id-1", 12, 3)]
        assert (standing.threads[0] == threading.get_ident()) is (kind is not StandIn)

    @in_loop
    async def test_a_result_without_usage_is_counted(self) -> None:
        """The lock is settled all the same."""
        async with world(model_server.replies(ADA)) as here:
            here.service.instructor_client = StandIn(answered("many", None))
            await here.service.structured_completion(User, ASK)
        assert here.ledger.reported[0][2] > 0

    @in_loop
    async def test_its_errors_release_the_lock(self) -> None:
        """They are raised as they are; instructor's own for their cause."""
        cause = ValueError("what it was")
        wrapped = instructor.core.exceptions.InstructorRetryException(
            "x", n_attempts=1, total_usage=0
        )
        wrapped.__cause__ = cause
        cut = instructor.core.exceptions.IncompleteOutputException()
        for error, raised in (
            (KeyError("k"), KeyError),
            (wrapped, ValueError),
            (cut, OutputLengthError),
        ):
            async with world(model_server.replies(ADA)) as here:
                here.service.instructor_client = StandIn(error=error)
                with pytest.raises(raised):
                    await here.service.structured_completion(User, ASK)
                assert here.ledger.released == ["id-1"]

    @pytest.mark.parametrize(
        "error", [StopIteration(), asyncio.CancelledError(), concurrent.futures.CancelledError()]
    )
    @in_loop
    async def test_what_a_future_cannot_hold_fails_the_call_as_others_do(
        self, error: BaseException
    ) -> None:
        """It neither hangs nor passes for the caller's own cancelling; the lock is released."""
        async with world(model_server.replies(ADA)) as here:
            here.service.instructor_client = StandIn(error=error)
            with pytest.raises(RuntimeError, match=type(error).__name__) as caught:
                await here.service.structured_completion(User, ASK)
        assert caught.value.__cause__ is error
        assert here.ledger.released == ["id-1"]

    @pytest.mark.parametrize("kind", [StandIn, CoroutineStandIn])
    @in_loop
    async def test_an_error_that_is_no_exception_releases_the_lock(
        self, kind: type[StandIn]
    ) -> None:
        """As some packages raise to end a program."""

        class HardError(BaseException):
            pass

        async with world(model_server.replies(ADA)) as here:
            here.service.instructor_client = kind(error=HardError())
            with pytest.raises(HardError):
                await here.service.structured_completion(User, ASK)
        assert here.ledger.released == ["id-1"]

    @in_loop
    async def test_a_replaced_create_of_an_instructor_is_called(self) -> None:
        """Also where only that method of the real one was replaced."""
        async with world(model_server.replies(ADA)) as here:
            standing = StandIn(answered())
            here.service.instructor_client.chat.completions.create = standing.create
            await here.service.structured_completion(User, ASK)
        assert len(standing.calls) == 1
        assert here.model.requests == []

    @in_loop
    async def test_a_real_synchronous_instructor_mends_replies_as_well(self) -> None:
        """Over a real AzureOpenAI: each attempt is locked and reported."""
        answers = (model_server.replies({"name": "Ada"}), model_server.replies(ADA))
        async with world(*answers) as here:
            with openai.AzureOpenAI(**_access(here.model)) as client:
                here.service.instructor_client = instructor.from_openai(client)
                result = await here.service.structured_completion(User, ASK)
        assert is_ada(result)
        assert here.ledger.reported == [("id-1", 50, 20), ("id-2", 50, 20)]


async def longest_gap_s(work: Awaitable[Any]) -> float:
    """Seconds at most between two ticks of a task that wants one each 5 ms."""
    gaps: list[float] = []

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.005)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.02)
    await work
    await asyncio.sleep(0.02)
    ticking.cancel()
    return max(gaps)


class TestTheLoop:
    """While a call runs, others do."""

    @in_loop
    async def test_no_call_blocks_the_loop(self) -> None:
        """Neither with an asynchronous client nor with a synchronous one; a blocking one would."""
        with model_in_a_thread() as model:
            model.answers(model_server.replies(ADA, after_s=0.3))
            async with client_of(model) as client, running_model():
                blocking = openai.AzureOpenAI(**_access(model))
                with blocking:
                    gaps = {}
                    for name, given in (("async", client), ("sync", blocking)):
                        options = {"client": given, "token_client": Ledger()}
                        async with AzureOpenAIService("gpt-4o", **options) as service:
                            await service.structured_completion(User, ASK)
                            call = service.structured_completion(User, ASK)
                            gaps[name] = await longest_gap_s(call)

                    async def block() -> None:
                        instructor.from_openai(blocking).create(User, ASK, model="gpt-4o")

                    gaps["control"] = await longest_gap_s(block())
        assert gaps["control"] > 0.25
        assert max(gaps["async"], gaps["sync"]) < gaps["control"] / 2, gaps

    @in_loop
    async def test_a_long_prompt_is_counted_off_the_loop(self) -> None:
        """Counting it on the loop would hold everybody up for its whole time."""
        long = [{"role": "user", "content": "The quick brown fox. " * 250_000}]
        request = {"messages": long}
        async with world(model_server.replies(ADA)) as here:
            counter = here.service._counter
            counter.request(request, 10)
            began = time.perf_counter()
            counter.request(request, 10)
            control = time.perf_counter() - began
            gap = await longest_gap_s(counter.counted(counter.request, request, 10))
        assert gap < control / 2


class TestRecords:
    """What is said of calls."""

    @in_loop
    async def test_a_call_is_one_record_and_one_line_of_metrics(
        self, logged: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        """With all that a bill and an incident need."""
        metrics = MetricsLogger("calls", tmp_path)
        async with world(model_server.replies(ADA), metrics=metrics) as here:
            await here.service.structured_completion(User, ASK)
        metrics.close()
        (told,) = records(logged, "model call completed")
        assert told.levelname == "INFO"
        assert (told.request_id, told.attempts, told.retries) == ("id-1", 1, 0)
        assert (told.tokens_prompt, told.tokens_completion, told.tokens_used) == (50, 20, 70)
        assert told.tokens_asked == here.ledger.asked[0] == told.tokens_refunded + 70
        (line,) = metrics.get_metrics_history()
        assert line["metrics"]["tokens_used"] == 70
        assert line["metrics"]["latency_s"] > 0
        text = (tmp_path / "metrics.jsonl").read_text()
        assert '"application":"tests"' in text
        assert '"model":"gpt-4o"' in text

    @in_loop
    async def test_a_failed_call_is_measured_and_tracked(
        self, tmp_path: Path, error_tracker: ErrorTracker
    ) -> None:
        """The error goes to the tracker, without what the reply held."""
        metrics = MetricsLogger("calls", tmp_path)
        bad = model_server.replies({"name": "a secret of the reply", "age": 999})
        options = {"metrics": metrics, "errors": error_tracker}
        async with world(bad, **options) as here:
            with pytest.raises(ValidationError):
                await here.service.structured_completion(User, ASK)
        metrics.close()
        (line,) = metrics.get_metrics_history()
        assert line["metrics"]["tokens_used"] == 210
        (tracked,) = error_tracker.get_recent_errors()
        assert tracked["error_type"] == "ValidationError"
        assert "a secret of the reply" not in json.dumps(tracked)

    @in_loop
    async def test_each_retry_of_the_sdk_is_told_as_it_happens(
        self, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
    ) -> None:
        """With the status it follows and how long it waited; their number is in the record."""
        soon = {"retry-after-ms": "1"}
        async with running_model() as model:
            model.answers(
                model_server.fails(429, soon), model_server.drops(), model_server.replies(ADA)
            )
            monkeypatch.setenv("APP_OPENAI_API_BASE", model.url)
            async with AzureOpenAIService(token_client=Ledger()) as service:
                await service.structured_completion(User, ASK)
        first, second = records(logged, "a request is sent again")
        assert (first.status, first.retries) == (429, 1)
        assert first.wait_s > 0
        assert (second.reason, second.retries) == ("no answer", 2)
        assert records(logged, "model call completed")[0].retries == 2
        assert not records(logged, "the SDK sent a request again")

    @in_loop
    async def test_a_reply_that_trickles_ends_in_time(
        self, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
    ) -> None:
        """`timeout_s` bounds a request and not each read; the SDK sends it again, which is told."""
        async with running_model() as model:
            model.answers(model_server.trickles())
            monkeypatch.setenv("APP_OPENAI_API_BASE", model.url)
            options = {"timeout_s": 0.2, "max_retries": 1}
            async with AzureOpenAIService(token_client=Ledger(), **options) as service:
                with pytest.raises(openai.APITimeoutError):
                    await service.structured_completion(User, ASK)
                assert service.token_client.released == ["id-1"]
        assert len(model.requests) == 2
        (told,) = records(logged, "a request is sent again")
        assert (told.reason, told.retries) == ("no answer", 1)

    @in_loop
    async def test_retries_of_a_given_client_are_told_once_a_request(
        self, logged: pytest.LogCaptureFixture
    ) -> None:
        """Its requests cannot be watched; the SDK says how many there were."""
        again = model_server.fails(500, {"retry-after-ms": "1"})
        async with world(again, model_server.replies(ADA)) as here:
            await here.service.structured_completion(User, ASK)
        (told,) = records(logged, "the SDK sent a request again")
        assert told.retries == 1

    @pytest.mark.parametrize("logs_bodies", [False, True])
    @in_loop
    async def test_bodies_and_secrets_stay_out_unless_bodies_are_asked_for(
        self, logs_bodies: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And then secrets in them are blanked; the key is in no record ever."""
        caplog.set_level(logging.DEBUG)
        ask = [{"role": "user", "content": "my words; password=hunter2secret"}]
        async with running_model() as model:
            model.answers(model_server.replies({"name": "their words"}))
            monkeypatch.setenv("APP_OPENAI_API_BASE", model.url)
            options = {"token_client": Ledger(), "logs_bodies": logs_bodies}
            async with AzureOpenAIService(**options) as service:
                with pytest.raises(ValidationError):
                    await service.structured_completion(User, ask)
        ours = [record for record in caplog.records if not record.name.startswith("asyncio")]
        text = "\n".join(str(vars(record)) for record in ours if record.name != "aiohttp.access")
        assert ("my words" in text) is logs_bodies
        assert ("their words" in text) is logs_bodies
        assert "hunter2secret" not in text
        assert "key-of-the-test" not in text

    @in_loop
    async def test_sdks_are_quiet_while_a_service_is_open(self) -> None:
        """And have their levels back afterwards."""
        async with AzureOpenAIService(token_client=Ledger()):
            assert logging.getLogger("instructor").level == logging.CRITICAL
            assert logging.getLogger("openai").level == logging.WARNING
        assert logging.getLogger("instructor").level == logging.NOTSET
        assert logging.getLogger("openai").level == logging.NOTSET


class TestIntegration:
    """A service with the real client of the real budget server."""

    @in_loop
    async def test_a_budget_is_locked_used_and_given_back(self) -> None:
        """What the server counts is what the model has used; nothing stays locked."""
        budget = TokenBudget(10_000, 50)
        async with running_model() as model, serving(budget) as url, client_of(model) as client:
            model.answers(
                model_server.replies(ADA), model_server.REFUSED, model_server.replies(ADA)
            )
            async with AzureOpenAIService("gpt-4o", "tests", url, client=client) as service:
                await service.structured_completion(User, ASK)
                with pytest.raises(ContentFilterError):
                    await service.structured_completion(User, ASK)
                await service.structured_completion(User, ASK)
                status = await service.token_client.get_status()
        assert status is not None
        assert (status["used_tokens"], status["locked_tokens"]) == (140, 0)
        assert status["available_tokens"] == 10_000 - 140

    @in_loop
    async def test_a_denial_is_tried_again_once_there_is_budget(self) -> None:
        """`structured_prompt` waits for it; a budget that is too small for good fails at once."""
        async with world(model_server.replies(ADA)) as here:
            ledger = here.ledger
            ledger.denial = "Token limit would be exceeded: soon free"
            statuses = []

            async def get_status() -> dict[str, Any]:
                statuses.append(ledger.denial)
                ledger.denial = None
                return {"reset_time_seconds": -1.0}

            ledger.get_status = get_status  # type: ignore[method-assign]
            assert is_ada(await here.service.structured_prompt(User, "", "Who?"))
            assert len(statuses) == 1
            ledger.denial = "Token count 9 is above the quota"
            with pytest.raises(ValueError, match="above the quota"):
                await here.service.structured_prompt(User, "", "Who?")
        assert len(statuses) == 1

    @in_loop
    async def test_an_invalid_reply_that_quotes_a_denial_is_none(self) -> None:
        """The model is not asked again for its words."""
        wrong = model_server.replies({"name": "Ada", "age": "would be exceeded"})
        async with world(wrong, validation_retries=0) as here:
            with pytest.raises(ValidationError):
                await here.service.structured_prompt(User, "", "Who?")
        assert len(here.model.requests) == 1

    @in_loop
    async def test_closing_closes_what_was_made_and_nothing_else(
        self, logged: pytest.LogCaptureFixture
    ) -> None:
        """Twice is once."""
        async with running_model() as model, client_of(model) as given:
            async with AzureOpenAIService("m", client=given, token_client=Ledger()) as service:
                pass
            assert not given.is_closed()
            await service.close()
        service = AzureOpenAIService()
        await service.close()
        assert service.client.is_closed()
        assert not records(logged, "closing failed")

    @in_loop
    async def test_what_cannot_be_closed_keeps_nothing_else_open(
        self, logged: pytest.LogCaptureFixture
    ) -> None:
        """It is logged."""

        class Stuck:
            async def close(self) -> None:
                raise OSError("stuck")

        service = AzureOpenAIService(token_client=Ledger())
        service._ending.push_async_callback(service._end, Stuck())
        await service.close()
        assert service.client.is_closed()
        assert records(logged, "closing failed")
