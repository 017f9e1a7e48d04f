"""Which errors of a processor are tried again, since the message is not to blame."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from foundry_log.services.bus_errors import RejectMessage, RetryLater, UnsentError
from foundry_log.services.model_errors import OutputLengthError
from foundry_log.services.passing_faults import may_pass

pytestmark = pytest.mark.unit

NEEDED = "needs test-services: pip install 'foundry_log[test-services]'"


@pytest.mark.parametrize(
    "error",
    [
        RetryLater("the database is down"),
        ConnectionError(),
        ConnectionResetError(),
        TimeoutError(),
        asyncio.TimeoutError(),
        ValueError("the limit of 100 tokens would be exceeded"),
        ValueError("Client error: no connection"),
    ],
    ids=repr,
)
def test_faults_of_a_server_may_pass(error: Exception) -> None:
    """Those of the network and of the budget server."""
    assert may_pass(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        ValueError("a Client error: no"),
        KeyError("would be exceeded"),
        FileNotFoundError(),
        RejectMessage("would be exceeded"),
        UnsentError(),
        OutputLengthError(),
        asyncio.CancelledError(),
    ],
    ids=repr,
)
def test_faults_of_a_message_do_not(error: BaseException) -> None:
    """Nor what has its own treatment."""
    assert not may_pass(error)


class Number(BaseModel):
    """A model."""

    number: int


def test_a_validation_that_quotes_a_denial_does_not() -> None:
    """pydantic's error is a ValueError, and has the refused text in its own."""
    with pytest.raises(ValidationError, match="would be exceeded") as caught:
        Number.model_validate({"number": "would be exceeded"})
    assert not may_pass(caught.value)


def of_the_sdk(status: int) -> Any:
    """What the SDK raises for an answer with that status."""
    sdk, http = (pytest.importorskip(name, reason=NEEDED) for name in ("openai", "httpx2"))
    request = http.Request("POST", "http://127.0.0.1:1")
    with sdk.OpenAI(api_key="k", base_url="http://127.0.0.1:1") as client:
        return client._make_status_error(
            "", body={}, response=http.Response(status, request=request)
        )


@pytest.mark.parametrize("status", [401, 403, 408, 409, 429, 500, 503, 529])
def test_a_model_that_is_busy_or_broken_may_pass(status: int) -> None:
    """Whatever class the SDK has for it."""
    assert may_pass(of_the_sdk(status))


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_request_that_a_model_refuses_does_not(status: int) -> None:
    """It will be refused again."""
    assert not may_pass(of_the_sdk(status))


def test_a_model_that_is_not_reached_may_pass() -> None:
    """A real connection, refused; but not a reply that is too long."""
    openai = pytest.importorskip("openai", reason=NEEDED)
    with (
        openai.OpenAI(api_key="k", base_url="http://127.0.0.1:1", max_retries=0) as client,
        pytest.raises(openai.APIConnectionError) as caught,
    ):
        client.models.list()
    assert may_pass(caught.value)
    assert not may_pass(openai.OpenAIError("api_key must be set"))
