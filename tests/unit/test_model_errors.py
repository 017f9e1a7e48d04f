"""The errors of model calls: what they say, carry and keep to themselves."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest

from foundry_log.services.model_errors import (
    ContentFilterError,
    ModelError,
    OutputLengthError,
    RefusalError,
    TokenBudgetError,
    UnreadableReplyError,
    refusal,
    stop_error,
)

pytestmark = pytest.mark.unit

ERRORS = [
    (ContentFilterError("prompt", ("hate", "violence")), "prompt for hate, violence"),
    (ContentFilterError("reply"), "stopped the reply: change"),
    (OutputLengthError(20), "max_tokens=20"),
    (OutputLengthError(), "the model's own limit"),
    (RefusalError(), "refused to answer: change the prompt"),
    (TokenBudgetError(70, 50, 100), "70 tokens .* 50, .* max_total_tokens=100"),
    (UnreadableReplyError(), "no chat completion"),
]


@pytest.mark.parametrize(("error", "text"), ERRORS)
def test_an_error_says_what_is_wrong_and_survives_a_pickle(error: ModelError, text: str) -> None:
    """Processes hand them on."""
    with pytest.raises(ModelError, match=text):
        raise error
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


@pytest.mark.parametrize("body", [None, "text", {}, {"innererror": {"content_filter_result": 7}}])
def test_a_refusal_without_categories_is_one_all_the_same(body: object) -> None:
    """Whatever shape the server's answer has."""
    refused = refusal(_api_error("content_filter", body))
    assert refused is not None
    assert (refused.stage, refused.categories) == ("prompt", ())


def test_other_errors_are_no_refusal() -> None:
    """By their code."""
    assert refusal(_api_error("rate_limit", {})) is None
    assert refusal(ValueError("content_filter")) is None


@pytest.mark.parametrize("reason", ["stop", "tool_calls", None])
def test_a_reply_that_ended_by_itself_is_no_error(reason: str | None) -> None:
    """Nor one that says nothing of its end."""
    assert stop_error(SimpleNamespace(finish_reason=reason), 5) is None


def test_a_refusal_of_the_model_is_an_error_without_its_words() -> None:
    """What a prompt made it say may be private."""
    said = SimpleNamespace(message=SimpleNamespace(refusal="I will not speak of Jane Doe"))
    assert "Jane" not in repr(stop_error(said, 5)) + str(stop_error(said, 5))
    assert isinstance(stop_error(said, 5), RefusalError)
    assert stop_error(SimpleNamespace(message=SimpleNamespace(refusal=None)), 5) is None
    assert stop_error(SimpleNamespace(message="hi"), 5) is None


def _api_error(code: str, body: object) -> Exception:
    error = Exception("bad request")
    error.code, error.body = code, body  # type: ignore[attr-defined]
    return error
