"""Exceptions as data and as text."""

from __future__ import annotations

import builtins
import json
import logging
import traceback
from typing import Any

import pytest

from foundry_log.encoding import encode_value
from foundry_log.exception_data import (
    MAX_LINKS,
    exc_info_of,
    exception_data,
    formatted_exception,
    traceback_text,
)

pytestmark = pytest.mark.unit

Group: Any = getattr(builtins, "ExceptionGroup", None)
needs_groups = pytest.mark.skipif(Group is None, reason="ExceptionGroup came with Python 3.11")


def raised(error: BaseException) -> BaseException:
    """The exception, after it was raised and caught."""
    try:
        raise error
    except type(error) as caught:
        return caught


def raises(*_: Any) -> Any:
    raise RuntimeError("hostile")


def test_type_and_message() -> None:
    """Nothing else where there is nothing else; classes of modules with their path."""
    assert exception_data(ValueError("bad")) == {"type": "ValueError", "message": "bad"}
    assert exception_data(json.JSONDecodeError("m", "", 0))["type"] == (
        "json.decoder.JSONDecodeError"
    )


def test_a_cause_hides_the_context() -> None:
    """`raise … from` names a cause; without it, what was being handled is the context."""
    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError("outer") from inner
    except ValueError as error:
        data = exception_data(error)

    assert data["cause"] == {"type": "KeyError", "message": "'inner'"}
    assert "context" not in data


def test_the_context_is_told_unless_suppressed() -> None:
    """`from None` hides it, as in Python's own traceback."""
    shown, hidden = ValueError("outer"), ValueError("outer")
    shown.__context__ = hidden.__context__ = KeyError("inner")
    hidden.__suppress_context__ = True

    assert exception_data(shown)["context"]["type"] == "KeyError"
    assert "context" not in exception_data(hidden)


def test_notes_are_told() -> None:
    """Also where somebody has put something odd among them."""
    error = ValueError("x")
    error.__notes__ = ["one", 2, {3}]  # type: ignore[attr-defined]

    assert exception_data(error)["notes"] == ["one", 2, [3]]


@needs_groups
def test_a_group_lists_its_members() -> None:
    """Nested groups too, in data and in text."""
    inner = Group("inner", [KeyError("k")])
    group = raised(Group("outer", [raised(ValueError("v")), inner]))
    data = exception_data(group)

    assert [member["type"] for member in data["group"]] == ["ValueError", "ExceptionGroup"]
    assert data["group"][1]["group"] == [{"type": "KeyError", "message": "'k'"}]
    assert "ValueError: v" in traceback_text(group)


def test_the_traceback_is_that_of_the_exception() -> None:
    """Outside its `except` block as inside, with its causes and notes."""
    try:
        raise ValueError("outer") from raised(KeyError("inner"))
    except ValueError as caught:
        error = caught
    text = traceback_text(error)

    assert text.startswith("Traceback (most recent call last)")
    assert "KeyError: 'inner'" in text
    assert "direct cause" in text
    assert text.endswith("ValueError: outer\n")


def test_one_that_was_never_raised_has_its_name() -> None:
    """There is no traceback to show."""
    assert traceback_text(ValueError("x")) == "ValueError: x\n"


@pytest.mark.parametrize("message", ["x", "", "two\nlines\n"])
def test_the_text_for_a_formatter_is_the_stdlibs(message: str) -> None:
    """That of `logging.Formatter`, which takes one newline off."""
    exc_info = exc_info_of(raised(ValueError(message)))

    assert formatted_exception(exc_info) == logging.Formatter().formatException(exc_info)


def test_the_text_for_a_formatter_shows_the_frames_of_the_record() -> None:
    """Whatever the exception has by now."""
    error = raised(ValueError("x"))
    kind, _, frames = exc_info_of(error)
    error.__traceback__ = None

    assert formatted_exception((kind, error, frames)).startswith("Traceback")
    assert formatted_exception((kind, error, None)) == "ValueError: x"


def test_no_exception_has_the_text_of_the_stdlib() -> None:
    """A record may carry `sys.exc_info()` of outside of any block."""
    nothing: Any = (None, None, None)

    assert formatted_exception(nothing) == logging.Formatter().formatException(nothing)


def test_circular_causes_end() -> None:
    """The second time an exception is met, its name and text are enough."""
    one, other = ValueError(1), ValueError(2)
    one.__cause__, other.__cause__ = other, one
    data = exception_data(one)

    assert data["cause"]["cause"] == {"type": "ValueError", "message": "1"}
    assert "ValueError" in traceback_text(one)


def test_a_long_chain_is_cut_in_data() -> None:
    """Thousands of causes are no recursion too deep, and fit the depth of a line."""
    error = ValueError(0)
    for number in range(1, 3000):
        error, cause = ValueError(number), error
        error.__cause__ = cause
    data, links = exception_data(error), 0
    while "cause" in data:
        data, links = data["cause"], links + 1

    assert links == MAX_LINKS
    assert b"nested deeper" not in encode_value({"exception": exception_data(error)})


@needs_groups
def test_groups_without_end_have_a_text() -> None:
    """Python's own formatting recurses too deep; name and message are left."""
    group = Group("g", [ValueError(1)])
    for _ in range(5000):
        group = Group("g", [group])

    assert "ExceptionGroup" in traceback_text(group)
    assert exception_data(group)["message"].startswith("g")


HOSTILE = {
    "str raises": type("E", (Exception,), {"__str__": raises}),
    "repr raises": type("E", (Exception,), {"__str__": raises, "__repr__": raises}),
    "cause raises": type("E", (Exception,), {"__cause__": property(raises)}),
    "notes raise": type("E", (Exception,), {"__notes__": property(raises)}),
    "notes are odd": type("E", (Exception,), {"__notes__": 5}),
    "all raises": type("E", (Exception,), {"__getattribute__": raises}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_exception_that_raises_is_described(name: str) -> None:
    """What can be known of it is told, and nothing raised."""
    error = HOSTILE[name]("x")

    assert exception_data(error)["type"].endswith("E")
    assert "E" in traceback_text(error)
    assert formatted_exception(exc_info_of(error)) == traceback_text(error).rstrip("\n")
    json.loads(encode_value(exception_data(error)))


def test_what_stops_a_program_passes() -> None:
    """Ctrl-C while an exception is described; the traceback has what Python prints then."""

    class StopError(Exception):
        def __str__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exception_data(StopError())
    assert traceback_text(StopError()) == "".join(traceback.format_exception(StopError()))
