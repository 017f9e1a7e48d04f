"""What a model call fails with, besides the errors of the SDK and of pydantic, which stay theirs.

    ModelError
    ├── ContentFilterError      the prompt was refused, or the reply was cut off, by a filter
    ├── OutputLengthError       the reply was cut off at its limit of tokens
    ├── RefusalError            the model would not answer
    ├── TokenBudgetError        one more attempt would pass the call's own bound
    └── UnreadableReplyError    what came back is no chat completion

None of them holds text of a prompt or of a reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ModelError(Exception):
    """A model call has no result."""


class ContentFilterError(ModelError):
    """A content filter has refused the prompt, or stopped the reply.

    Args:
        stage: `prompt` or `reply`.
        categories: what was found, such as `hate`, where the server says so.
    """

    def __init__(self, stage: str, categories: tuple[str, ...] = ()) -> None:
        super().__init__(stage, categories)
        self.stage = stage
        self.categories = categories

    def __str__(self) -> str:
        found = f" for {', '.join(self.categories)}" if self.categories else ""
        return f"the content filter stopped the {self.stage}{found}: change the prompt"


class OutputLengthError(ModelError):
    """A reply was cut off at its limit of tokens, and so holds no whole result.

    Args:
        max_tokens: the limit that was asked for; None for the model's own.
    """

    def __init__(self, max_tokens: int | None = None) -> None:
        super().__init__(max_tokens)
        self.max_tokens = max_tokens

    def __str__(self) -> str:
        if self.max_tokens is None:
            return "the reply was cut off at the model's own limit of tokens: ask for less"
        return f"the reply was cut off at max_tokens={self.max_tokens}: give it more, or None"


class RefusalError(ModelError):
    """The model would not answer; its words are in the reply's body alone."""

    def __str__(self) -> str:
        return "the model refused to answer: change the prompt"


class TokenBudgetError(ModelError):
    """One more attempt would pass `max_total_tokens`, and was not made.

    Args:
        used: tokens of the attempts before, those that a denial ended too.
        asked: tokens that the next one was estimated to come to.
        bound: tokens that all attempts together may come to.
    """

    def __init__(self, used: int, asked: int, bound: int) -> None:
        super().__init__(used, asked, bound)
        self.used = used
        self.asked = asked
        self.bound = bound

    def __str__(self) -> str:
        return (
            f"{self.used} tokens are used and the next attempt may come to {self.asked}, which is "
            f"above max_total_tokens={self.bound}: raise it, or ask for less"
        )


class UnreadableReplyError(ModelError):
    """The server answered with success, but with no chat completion."""

    def __str__(self) -> str:
        return "the server's answer is no chat completion: check the endpoint and the API version"


def refusal(error: BaseException) -> ContentFilterError | None:
    """Return what says that a prompt was refused, where an error of the SDK means that."""
    if getattr(error, "code", None) != "content_filter":
        return None
    inner = _mapping(_mapping(getattr(error, "body", None)).get("innererror"))
    return ContentFilterError("prompt", _filtered(inner.get("content_filter_result")))


def stop_error(choice: Any, max_tokens: int | None) -> ModelError | None:
    """Return why a reply holds no result, None where it may hold one.

    Args:
        choice: of a chat completion.
        max_tokens: the limit that was asked for.
    """
    reason = getattr(choice, "finish_reason", None)
    if reason == "length":
        return OutputLengthError(max_tokens)
    if reason == "content_filter":
        return ContentFilterError("reply", _filtered(getattr(choice, "content_filter_results", {})))
    if getattr(getattr(choice, "message", None), "refusal", None):
        return RefusalError()
    return None


def _filtered(results: Any) -> tuple[str, ...]:
    """Return the categories of Azure's filter results that stopped something."""
    return tuple(
        sorted(name for name, found in _mapping(results).items() if _mapping(found).get("filtered"))
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
