"""Token counts: by a vocabulary, by an estimate, and what surrounds a text."""

from __future__ import annotations

import json
import logging
import sys
import threading
from typing import Any

import pytest

from foundry_log.services.observing import Observer
from foundry_log.services.token_counting import (
    IMAGE_TOKENS,
    PIECE,
    TokenCounter,
    encoding_of,
    estimate,
)
from tests.event_loops import in_loop

pytestmark = [
    pytest.mark.unit,
    pytest.mark.filterwarnings("ignore:open_binary is deprecated"),  # in bpe_openai
]

TEXTS = {
    "english": "The quick brown fox jumps over the lazy dog, again and again. " * 20,
    "code": "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)\n\n"
    * 20,
    "chinese": "我们在训练一个语言模型，日志必须可靠。" * 20,
    "emoji": "👩‍👩‍👧‍👦 🎉🚀 ok 🇩🇪 👍🏽\n" * 20,
    "json": json.dumps([{"step": n, "loss": 1 / (n + 1), "name": f"run-{n}"} for n in range(50)]),
    "special": "<|endoftext|> is text <|im_start|>",
    "empty": "",
}
COUNTS = {
    "english": (281, 281),
    "code": (400, 380),
    "chinese": (220, 420),
    "emoji": (480, 740),
    "json": (1294, 1294),
    "special": (15, 14),
    "empty": (0, 0),
}
"""Tokens of o200k_base and of cl100k_base, by another implementation: rs-bpe 0.1.0."""


def counter(model: str = "gpt-4o") -> TokenCounter:
    """A counter of a model."""
    return TokenCounter(model, Observer(logging.getLogger("foundry_log.services.test")))


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4o", "o200k_base"),
        ("GPT-4o-mini", "o200k_base"),
        ("gpt-4.1-nano", "o200k_base"),
        ("gpt-5", "o200k_base"),
        ("gpt-5.1-chat", "o200k_base"),
        ("o1", "o200k_base"),
        ("o3-mini", "o200k_base"),
        ("o4-mini", "o200k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-4-32k", "cl100k_base"),
        ("gpt-35-turbo", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("our-deployment", None),
        ("o1x", None),
    ],
)
def test_a_models_vocabulary_is_known_by_its_name(model: str, encoding: str | None) -> None:
    """By the family that a name begins with."""
    assert encoding_of(model) == encoding


def test_the_estimate_is_a_formula_of_bytes() -> None:
    """4 letters, 1.75 other characters of ASCII and 2.5 bytes beyond it are a token each."""
    assert estimate("") == 0
    assert estimate("abcd" * 10) == 10
    assert estimate("12,." * 7) == 16
    assert estimate("中文字符五" * 10) == 60
    assert estimate("\ud800") == 2


@pytest.mark.services
class TestVocabulary:
    """Counts by bpe-openai."""

    @pytest.fixture(autouse=True)
    def needs_it(self) -> None:
        """A package of its own."""
        pytest.importorskip(
            "bpe_openai", reason="needs vocabulary: pip install 'foundry_log[vocabulary]'"
        )

    @pytest.mark.parametrize("name", list(TEXTS))
    def test_counts_are_those_of_the_vocabulary(self, name: str) -> None:
        """As another implementation has them."""
        counts = tuple(counter(model).text(TEXTS[name]) for model in ("gpt-4o", "gpt-4"))
        assert counts == COUNTS[name]

    def test_known_counts(self) -> None:
        """Of OpenAI's own documentation."""
        assert counter("gpt-4").text("tiktoken is great!") == 6
        assert counter("gpt-4o").text("hello world") == 2

    def test_pieces_hardly_change_a_long_texts_count(self) -> None:
        """A token more at most for each place where it is cut."""
        text = TEXTS["english"] * 50
        package = pytest.importorskip("bpe_openai")
        exact = len(package.get_encoding("o200k_base").encode_ordinary(text))
        assert 0 <= counter().text(text) - exact <= len(text) // PIECE

    def test_lone_surrogates_are_counted(self) -> None:
        """They are no UTF-8, and fail nothing."""
        assert counter().text("a\ud800b") > 0

    def test_an_unknown_model_is_said_once_with_what_counts_it(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whatever the number of counts; a known one is not said."""
        unknown, known = counter("ours"), counter("gpt-4o")
        for _ in range(3):
            assert unknown.text("hello") == known.text("hello") == 1
        (told,) = caplog.records
        assert "cl100k_base" in told.getMessage()
        assert (told.levelname, told.model) == ("WARNING", "ours")

    def test_the_recipe_for_messages(self) -> None:
        """3 for each, the texts of role, content and name, 1 for the name, 3 to begin the reply."""
        count = counter("gpt-4").messages
        assert count([]) == 3
        assert count([{"role": "user", "content": "tiktoken is great!"}]) == 3 + 3 + 1 + 6
        named = {"role": "user", "content": "tiktoken is great!", "name": "example"}
        assert count([named]) == 3 + 3 + 1 + 6 + 1 + 1

    def test_messages_of_openais_cookbook(self) -> None:
        """129 and 124 tokens, as its server counted them in "How to count tokens with tiktoken"."""
        assert counter("gpt-4").messages(COOKBOOK) == 129
        assert counter("gpt-4o").messages(COOKBOOK) == 124

    def test_contents_of_parts(self) -> None:
        """Texts by their text, images by a rule, others as JSON, nothing as nothing."""
        count = counter().messages
        text = {"type": "text", "text": "hello world"}
        image = {"type": "image_url", "image_url": {"url": "data:" + "A" * 10_000}}
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        base = count([{"role": "user", "content": None}])
        assert count([{"role": "user", "content": [text]}]) == base + 2
        assert count([{"role": "user", "content": [image, text]}]) == base + 2 + IMAGE_TOKENS
        assert count([{"role": "assistant", "content": None, "tool_calls": [call]}]) > base + 10

    def test_a_request_has_its_tools_and_as_many_replies_as_it_asks_for(self) -> None:
        """The limit under either name, or the allowance."""
        request: dict[str, Any] = {"messages": [{"role": "user", "content": "hello world"}]}
        count = counter().request
        prompt = counter().messages(request["messages"])
        assert count(request, 100) == prompt + 100
        assert count({**request, "max_tokens": 5, "n": 2}, 100) == prompt + 10
        assert count({**request, "max_completion_tokens": 7}, 100) == prompt + 7
        tools = [{"type": "function", "function": {"name": "f"}}]
        added = counter().text(json.dumps(tools[0]))
        assert count({**request, "tools": tools}, 100) == prompt + 100 + added

    @pytest.mark.parametrize("name", ["english", "code", "chinese", "json"])
    @pytest.mark.parametrize("model", ["gpt-4o", "gpt-4"])
    def test_the_estimate_is_rather_too_high(self, model: str, name: str) -> None:
        """And hardly more than twice as high."""
        true = counter(model).text(TEXTS[name])
        assert true <= estimate(TEXTS[name]) <= 2.2 * true


def test_without_the_extra_an_estimate_counts_and_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning says what to install."""
    monkeypatch.setitem(sys.modules, "bpe_openai", None)
    estimating = counter()
    assert (estimating.text("abcd" * 10), estimating.text("abcd")) == (10, 1)
    (told,) = caplog.records
    assert "estimated from the bytes" in told.getMessage()
    assert "foundry_log[vocabulary]" in told.reason


def test_a_value_of_no_known_kind_is_counted_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt with one is the SDK's to refuse."""
    monkeypatch.setitem(sys.modules, "bpe_openai", None)
    count = counter().messages
    assert count([{"role": "user", "content": {"a": object}}]) > count([{"role": "user"}])


@pytest.mark.parametrize(
    "request_",
    [
        {"messages": [{"role": "user", "content": "x" * 100_000}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 100_000}]}]},
        {"messages": [{"tool_calls": [{"function": {"arguments": "x" * 100_000}}]}]},
        {"messages": [{"role": "user", "content": ["x"] * 100_000}]},
        {"messages": [], "tools": [{"function": {"description": "x" * 100_000}}]},
    ],
    ids=["content", "part", "tool call", "many parts", "tools"],
)
@in_loop
async def test_a_long_request_is_counted_off_the_loop(request_: dict[str, Any]) -> None:
    """Wherever its characters are; a short one is not worth a thread."""
    threads = []
    counting = counter()
    counting.load()

    def count(request: object) -> int:
        threads.append(threading.get_ident())
        return 1

    short = {"messages": [{"role": "user", "content": None, "tool_calls": [{"id": "1"}]}]}
    assert await counting.counted(count, request_) == await counting.counted(count, short) == 1
    assert threads[0] != threads[1] == threading.get_ident()


COOKBOOK = [
    {
        "role": "system",
        "content": "You are a helpful, pattern-following assistant that translates corporate "
        "jargon into plain English.",
    },
    {
        "role": "system",
        "name": "example_user",
        "content": "New synergies will help drive top-line growth.",
    },
    {
        "role": "system",
        "name": "example_assistant",
        "content": "Things working well together will increase revenue.",
    },
    {
        "role": "system",
        "name": "example_user",
        "content": "Let's circle back when we have more bandwidth to touch base on opportunities "
        "for increased leverage.",
    },
    {
        "role": "system",
        "name": "example_assistant",
        "content": "Let's talk later when we're less busy about how to do better.",
    },
    {
        "role": "user",
        "content": "This late pivot means we don't have time to boil the ocean for the client "
        "deliverable.",
    },
]
