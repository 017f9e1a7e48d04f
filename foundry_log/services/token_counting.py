"""How many tokens a prompt has: by the model's own vocabulary, or by an estimate without one.

With the extra `vocabulary` texts are counted by bpe-openai, whose counts agree with those of rs-bpe
on English, code, Chinese and emoji. Loading it takes half a second and about 150 MB, once.

Without it: a token for each 4 bytes of ASCII letters and blanks, 1.75 of other ASCII, and 2.5 of
all else. Against o200k_base and cl100k_base that came to

    English licences   1.23  1.23      JSON, compact numbers   1.21  1.21
    Python's library   1.21  1.22      Chinese                 1.80  1.05
    packages' READMEs  1.18  1.19      Russian                 2.68  1.44
    JSON, indented     1.16  1.16      emoji                   0.89  0.58

times the true count, and to 0.45 for base64: it is too low for emoji and for random characters
alone (`pytest tests/unit/test_token_counting.py -k rather_too_high` holds the rest).

What surrounds a text is counted by OpenAI's recipe ("How to count tokens with tiktoken"): 3 tokens
for each message, 1 for a name, 3 for the beginning of the reply.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from foundry_log.extras import import_extra
from foundry_log.services.observing import Observer

IMAGE_TOKENS = 765
"""Tokens that an image counts for: GPT-4o's for 1024 by 1024 pixels in high detail."""
PIECE = 16_384
"""Characters that are counted at once, in which no other thread runs: below 1 ms."""
_FEW = 2 * PIECE
"""Characters that the event loop may count itself."""

_PER_MESSAGE = 3
_PER_NAME = 1
_PRIMING = 3
_LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ \n\t\r"
_ASCII = bytes(range(128))

_O200K = re.compile(r"(chatgpt-4o|gpt-(4o|4\.1|4\.5|5(\.\d+)?|oss)|o[134])(?![a-z0-9])", re.I)
_CL100K = re.compile(r"gpt-(4|3\.?5)(?![a-z0-9])", re.I)

_LIMITS = ("max_completion_tokens", "max_tokens")


def encoding_of(model: str) -> str | None:
    """Return the name of a model's vocabulary, None where the model is not known."""
    if _O200K.match(model):
        return "o200k_base"
    return "cl100k_base" if _CL100K.match(model) else None


def estimate(text: str) -> int:
    """Return about how many tokens a text has, without a vocabulary; the formula is at the top."""
    data = text.encode("utf-8", "surrogatepass")
    beyond = len(data.translate(None, _ASCII))
    other = len(data.translate(None, _LETTERS)) - beyond
    return math.ceil((len(data) - other - beyond) / 4 + other / 1.75 + beyond / 2.5)


class TokenCounter:
    """Counts tokens for one model. Thread-safe.

    The vocabulary is loaded by `load`, or at the first count; a warning says once if it is not the
    model's own.

    Args:
        model: name of the model or of its deployment.
        observer: says which estimate is used.
    """

    def __init__(self, model: str, observer: Observer) -> None:
        self.model = model
        self._observer = observer
        self._loading = threading.Lock()  # guards the vocabulary, which is loaded under it
        self._count: Callable[[str], int] | None = None

    def text(self, text: str) -> int:
        """Return the tokens of a text."""
        count = self._count or self.load()
        return sum(count(text[at : at + PIECE]) for at in range(0, len(text), PIECE))

    def messages(self, messages: Iterable[Mapping[str, Any]]) -> int:
        """Return the tokens of a prompt, with what begins the reply."""
        return _PRIMING + sum(self._message(dict(message)) for message in messages)

    def request(self, request: Mapping[str, Any], allowance: int) -> int:
        """Return what a request may come to: its prompt, its tools as JSON, and its reply.

        Args:
            request: as the SDK takes it.
            allowance: tokens of a reply that has no limit.
        """
        limit = next((request[name] for name in _LIMITS if request.get(name)), allowance)
        return self.prompt(request) + limit * (request.get("n") or 1)

    def prompt(self, request: Mapping[str, Any]) -> int:
        """Return the tokens that a request sends: its messages, and its tools as JSON."""
        return self.messages(request["messages"]) + sum(map(self._value, _schemas(request)))

    async def counted(
        self, count: Callable[..., int], request: Mapping[str, Any], *args: Any
    ) -> int:
        """Return a count of a request, without blocking the event loop."""
        if self._count is None or _is_long(request):
            return await asyncio.to_thread(count, request, *args)
        return count(request, *args)

    def _message(self, message: Mapping[str, Any]) -> int:
        return _PER_MESSAGE + sum(
            self._value(value) + (_PER_NAME if name == "name" else 0)
            for name, value in message.items()
        )

    def _value(self, value: Any) -> int:
        if value is None:
            return 0
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return sum(map(self._part, value))
        return self.text(_json(value))

    def _part(self, part: Any) -> int:
        """Return the tokens of a part of a message's content, or of a tool's call."""
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            return self.text(str(part.get("text", "")))
        if kind in ("image_url", "input_image"):
            return IMAGE_TOKENS
        return self.text(_json(part))

    def load(self) -> Callable[[str], int]:
        """Load the vocabulary, if it is not there yet, and return how texts are counted."""
        with self._loading:
            if self._count is None:
                self._count = self._vocabulary()
            return self._count

    def _vocabulary(self) -> Callable[[str], int]:
        name = encoding_of(self.model)
        try:
            package = import_extra("bpe_openai", "vocabulary", "counting tokens exactly")
            encoding = package.get_encoding(name or "cl100k_base")
        except Exception as error:  # whatever is wrong with it: calls go on without it
            told = "tokens are estimated from the bytes of texts, mostly too many"
            self._observer.say(logging.WARNING, told, model=self.model, reason=str(error))
            return estimate
        if name is None:
            told = "the model's vocabulary is not known: tokens are counted by that of cl100k_base"
            self._observer.say(logging.WARNING, told, model=self.model)
        return lambda text: len(encoding.encode_ordinary(text))


def _schemas(request: Mapping[str, Any]) -> list[Any]:
    return [request[name] for name in ("tools", "functions", "response_format") if name in request]


def _is_long(request: Mapping[str, Any]) -> bool:
    return _size([*map(dict, request["messages"]), *_schemas(request)]) > _FEW


def _size(value: Any) -> int:
    """Return about how many characters are to be counted."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values())) + sum(map(_size, value))
    if isinstance(value, (list, tuple)):
        return sum(map(_size, value))
    return len(_json(value))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
