"""Bodies as text, whatever they come as, and results as JSON."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from foundry_log.services.bus_errors import RejectMessage, UndecodableError
from foundry_log.services.message_bodies import message_text, result_body

pytestmark = pytest.mark.unit


def text_of(body: Any, kind: str | None = None) -> str:
    """The text of a message with that body."""
    return message_text(SimpleNamespace(body=body, body_type=SimpleNamespace(value=kind)))


@pytest.mark.parametrize(
    "body",
    [
        "größer",
        "größer".encode(),
        bytearray("größer".encode()),
        memoryview("größer".encode()),
        ["größer".encode()],
        (part for part in (b"gr\xc3", b"\xb6\xc3\x9fer")),
        iter(["grö", "ßer"]),
    ],
    ids=lambda body: type(body).__name__,
)
def test_text_bytes_and_any_iterable_of_them_are_the_same_text(body: Any) -> None:
    """A character may be cut in two."""
    assert text_of(body) == "größer"


@given(st.text(), st.lists(st.integers(0, 200)))
def test_wherever_bytes_are_cut_the_text_is_whole(text: str, cuts: list[int]) -> None:
    """Sections are joined before they are decoded."""
    content = text.encode()
    ends = sorted({min(cut, len(content)) for cut in cuts} | {0, len(content)})
    parts = [content[start:end] for start, end in itertools.pairwise(ends)]
    assert text_of(iter(parts)) == text


@pytest.mark.parametrize("body", ["", b"", [], iter(()), None])
def test_an_empty_body_is_an_empty_text(body: Any) -> None:
    """It is for the processor to say what it makes of it."""
    assert text_of(body) == ""


def test_a_large_body_is_text_too() -> None:
    """A megabyte, in pieces."""
    assert text_of(b"x" * 1024 for _ in range(1024)) == "x" * 1024 * 1024


@pytest.mark.parametrize("body", [b"secret \xff", [b"secret ", b"\xff"]])
def test_what_is_no_utf8_is_refused_without_quoting_it(body: Any) -> None:
    """The error says where; neither it nor its chain holds the body."""
    with pytest.raises(UndecodableError, match="no UTF-8 at byte 7 of 8") as caught:
        text_of(body)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"text", "text"),
        ("text", "text"),
        ({b"a": [1, b"b", None]}, '{"a":[1,"b",null]}'),
        ([b"a", b"b"], '["a","b"]'),
        (7, "7"),
        (None, ""),
    ],
)
def test_an_amqp_value_is_its_text_or_json(value: Any, text: str) -> None:
    """The SDK gives its texts as bytes."""
    assert text_of(value, "value") == text


def test_amqp_sequences_are_one_json_array() -> None:
    """The SDK gives an iterable of lists."""
    assert text_of(iter([[1, b"a"], [{"b": 2}]]), "sequence") == '[1,"a",{"b":2}]'


def test_a_value_that_json_does_not_have_is_undecodable() -> None:
    """As is text in it that is no UTF-8."""
    with pytest.raises(UndecodableError, match="no JSON for a object"):
        text_of(object())
    with pytest.raises(UndecodableError, match="no UTF-8"):
        text_of({b"a": b"\xff"}, "value")


@pytest.mark.parametrize("result", ["text", '{"already": "JSON"}', b"\x00\xff"])
def test_text_and_bytes_are_sent_as_they_are(result: str | bytes) -> None:
    """No quotes are put round them."""
    assert result_body(result) is result


@dataclasses.dataclass
class Point:
    """A dataclass."""

    x: float


class Answer(BaseModel):
    """A model of pydantic."""

    text: str
    at: datetime.date


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"a": [1, True, None, "ü"]}, {"a": [1, True, None, "ü"]}),
        (Answer(text="a", at=datetime.date(2026, 1, 2)), {"text": "a", "at": "2026-01-02"}),
        ([Point(0.5)], [{"x": 0.5}]),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ({"x": float("nan"), "y": float("inf")}, {"x": None, "y": None}),
        (7, 7),
    ],
    ids=repr,
)
def test_anything_else_is_sent_as_json(result: Any, expected: Any) -> None:
    """Strict JSON: what it does not know becomes null."""
    assert json.loads(result_body(result)) == expected


def test_what_has_no_json_is_a_value_error() -> None:
    """Nothing is sent that nobody can read."""
    with pytest.raises(ValueError, match="serialize"):
        result_body({"a": object()})


def test_a_rejection_tells_reason_and_description() -> None:
    """In one line, for logs."""
    assert str(RejectMessage("no customer", "number 7")) == "no customer: number 7"
    assert str(RejectMessage("no customer")) == "no customer"
