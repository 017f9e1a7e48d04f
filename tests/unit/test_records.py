"""What the package puts on a record, and how it is read back."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundry_log.context import bound
from foundry_log.filters import ContextFilter
from foundry_log.records import (
    CONTEXT,
    ENTRY,
    MESSAGE,
    TEXT,
    context_of,
    entry_record,
    formatted,
    message_of,
    structured,
)

pytestmark = pytest.mark.unit


def record(msg: Any = "", args: Any = (), **attributes: Any) -> logging.LogRecord:
    made = logging.LogRecord("n", logging.INFO, "/f.py", 1, msg, args, None)
    made.__dict__.update(attributes)
    return made


def structured_record(message: str, /, **context: Any) -> logging.LogRecord:
    fields = structured(message, context)
    return record(fields[TEXT], **fields)


def raises(*_: Any, **__: Any) -> Any:
    raise RuntimeError("hostile")


class TestStructured:
    """Records with message and context."""

    def test_the_text_is_json_and_the_attributes_are_plain(self) -> None:
        """Whatever the values are; they are reduced once."""
        fields = structured("hello", {"a": {1}, "when": object})

        assert fields[MESSAGE] == "hello"
        assert fields[CONTEXT] == {"a": [1], "when": "builtins.object"}
        assert json.loads(fields[TEXT]) == {"message": "hello", "context": fields[CONTEXT]}

    def test_the_text_may_be_the_message(self) -> None:
        """With `as_json=False`."""
        assert structured("hello", {"a": 1}, as_json=False)[TEXT] == "hello"

    def test_the_context_is_that_of_the_moment(self) -> None:
        """A list that grows afterwards does not grow in the record."""
        losses = [1.0]
        fields = structured("x", {"losses": losses})
        losses.append(2.0)

        assert fields[CONTEXT] == {"losses": [1.0]}

    def test_it_reads_back(self) -> None:
        """Message and context, without the text being parsed."""
        made = structured_record("hello", step=1)

        assert message_of(made) == ("hello", "")
        assert context_of(made) == {"step": 1}

    @pytest.mark.parametrize("travel", [copy.copy, lambda r: pickle.loads(pickle.dumps(r))])
    def test_it_travels(self, travel: Callable[[Any], logging.LogRecord]) -> None:
        """Copied and pickled, also with what cannot be pickled itself, and a lone surrogate."""
        made = travel(structured_record("a\ud800", step=1, odd=lambda: None))

        assert message_of(made) == ("a\ud800", "")
        assert context_of(made)["step"] == 1

    def test_text_behind_it_is_found(self) -> None:
        """`QueueHandler.prepare` appends the traceback to the text."""
        made = structured_record("hello")
        made.msg += "\nTraceback: …"

        assert message_of(made) == ("hello", "Traceback: …")

    @pytest.mark.parametrize("text", ["[redacted]", 5, None])
    def test_a_text_that_somebody_replaced_counts(self, text: Any) -> None:
        """A redacting filter must not be undone by what we keep beside the text."""
        made = structured_record("password=1234")
        made.msg = text

        assert message_of(made) == (str(text), "")

    @given(st.text(), st.dictionaries(st.text(), st.text()))
    def test_text_of_users_forges_no_context(self, message: str, context: dict[str, str]) -> None:
        """A message that is the JSON of a structured record is a message, and no more."""
        forged = structured(message, context)[TEXT]
        made = record(forged)

        assert message_of(made) == (forged, "")
        assert context_of(made) == {}


class TestMessages:
    """Messages of any record."""

    def test_arguments_go_in_as_in_the_stdlib(self) -> None:
        """In order, by name from one dict, and none at all."""
        assert message_of(record("%s-%d", ("a", 1)))[0] == "a-1"
        assert message_of(record("%(x)s", ({"x": 1},)))[0] == "1"
        assert message_of(record("100%"))[0] == "100%"
        assert message_of(record(ValueError("error as message")))[0] == "error as message"

    @pytest.mark.parametrize(
        ("message", "args", "expected"),
        [
            ("%d", ("x",), '%d ["x"]'),
            ("%s %s", (1,), "%s %s [1]"),
            ("none", (1,), "none [1]"),
            ("%(a)s", ({"b": 1},), '%(a)s {"b":1}'),
        ],
    )
    def test_arguments_that_do_not_fit_stand_behind(
        self, message: str, args: Any, expected: str
    ) -> None:
        """Nothing is lost and nothing raised."""
        assert message_of(record(message, args))[0] == expected

    def test_a_record_class_of_somebodys_own_formats_itself(self) -> None:
        """The way to brace-style messages that the stdlib's cookbook shows."""

        class Brace(logging.LogRecord):
            def getMessage(self) -> str:
                return str(self.msg).format(*(self.args or ()))

        made = Brace("n", logging.INFO, "", 0, "{} of {}", (1, 2), None)

        assert message_of(made) == ("1 of 2", "")

    def test_what_raises_is_described(self) -> None:
        """Messages and arguments whose own code fails."""
        silent = type("Silent", (), {"__str__": raises})()
        liar = type("Liar", (), {"__class__": property(raises)})()
        odd = type("Odd", (str,), {"__str__": lambda self: 5})("x")

        assert "Silent" in message_of(record(silent))[0]
        assert "Silent" in message_of(record("%s", (silent,)))[0]
        assert "Liar" in message_of(record(liar))[0]
        assert "x" in message_of(record(odd))[0]
        assert formatted("%s", type("Untrue", (dict,), {"__bool__": raises})(a=1)) == '%s {"a":1}'

    def test_the_message_is_exactly_a_string(self) -> None:
        """A subclass with methods of its own would run them in every formatter."""
        own = type("Own", (str,), {"__str__": lambda self: self, "partition": raises})

        assert type(message_of(record(own("x")))[0]) is str
        assert type(formatted(own("x"), None)) is str


class TestContext:
    """Context of any record."""

    def test_extra_fields_of_a_plain_record_are_context(self) -> None:
        """What `extra` or a filter has set; not the stdlib's attributes, nor private ones."""
        made = record("x", user="me", _private=1, taskName="Task-1", asctime="12:00")

        assert context_of(made) == {"user": "me"}

    def test_keys_that_are_no_strings_are_kept(self) -> None:
        """`extra={5: 6}` is possible."""
        made = record("x")
        made.__dict__[5] = 6  # type: ignore[index]

        assert context_of(made) == {5: 6}

    def test_scopes_are_below_extra(self) -> None:
        """Call over scope."""
        with bound(a="scope", b="scope"):
            assert context_of(record("x", b="call")) == {"a": "scope", "b": "call"}

    def test_what_a_record_carries_counts_not_the_readers_scope(self) -> None:
        """A listener's own scope is not the context of what it writes."""
        made = structured_record("x", a=1)
        with bound(b=2):
            assert context_of(made) == {"a": 1}

    def test_it_may_be_changed(self) -> None:
        """Each caller gets a dict of its own."""
        made = structured_record("x", a=1)
        context_of(made)["b"] = 2
        with bound(c=1):
            context_of(record())["d"] = 2
            assert context_of(record()) == {"c": 1}

        assert context_of(made) == {"a": 1}


class TestEntries:
    """Records of `metrics.jsonl` and `errors.jsonl`."""

    def test_an_entry_is_on_a_complete_record(self) -> None:
        """Any formatter and handler can take it."""
        made = entry_record("logger", logging.INFO, "Step 1", {"step": 1})

        assert made.__dict__[ENTRY] == {"step": 1}
        assert (made.name, made.levelname, made.getMessage()) == ("logger", "INFO", "Step 1")
        assert context_of(made) == {}

    def test_the_processs_record_factory_makes_it(self) -> None:
        """What an application adds to each record is on these too."""
        before = logging.getLogRecordFactory()

        def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
            made = before(*args, **kwargs)
            made.host = "here"
            return made

        logging.setLogRecordFactory(factory)
        try:
            made = entry_record("logger", logging.INFO, "x", {})
        finally:
            logging.setLogRecordFactory(before)

        assert made.__dict__["host"] == "here"


@pytest.mark.parametrize("name", ["foundry_text", "foundry_context", "foundry_message"])
@pytest.mark.parametrize("value", [5, "hello", None])
def test_an_extra_that_takes_one_of_our_names_costs_no_record(name: str, value: Any) -> None:
    """A plain record with such an attribute keeps its message, and raises nothing."""
    made = record("hello", **{name: value})
    ContextFilter({"team": "a"}).filter(made)

    assert message_of(made)[0] == "hello"
    assert isinstance(context_of(made), dict)


def test_an_extra_named_like_our_context_is_context() -> None:
    """What is no context of ours is kept as the caller's field."""
    assert context_of(record("x", foundry_context=5)) == {"foundry_context": 5}
