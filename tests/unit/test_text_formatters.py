"""Formatters for people: one record to a line, and the lines that follow it."""

from __future__ import annotations

import copy
import io
import logging
import math
import os
import pickle
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_log import ConsoleFormatter, JsonFormatter, PlainFormatter, decode_line
from foundry_log.encoding import to_plain
from foundry_log.records import TEXT, structured
from foundry_log.text_formatters import BASE_FIELDS, _safe, _shown_texts

pytestmark = pytest.mark.unit

CREATED = 1_795_242_191.123456


def record(msg: Any = "hello", args: Any = (), **extra: Any) -> logging.LogRecord:
    """A record of a plain logger, made at a known time."""
    made = logging.LogRecord("app.part", logging.INFO, "/src/f.py", 12, msg, args, None, "func")
    made.created = CREATED
    made.__dict__.update(extra)
    return made


def structured_record(message: str, /, **context: Any) -> logging.LogRecord:
    fields = structured(message, context)
    return record(fields[TEXT], **fields)


def caught(error: BaseException) -> BaseException:
    try:
        raise error
    except type(error) as raised:
        return raised


def direct(formatter: ConsoleFormatter, created: float = CREATED, **context: Any) -> str:
    """The line of such a record's parts."""
    return formatter.line(created, logging.INFO, "INFO", "app.part", "hello", context)


@pytest.fixture
def terminal() -> Iterator[Any]:
    """A stream that is a terminal, and the end to read it from."""
    leader, follower = os.openpty()
    with open(follower, "w") as stream, open(leader, "rb") as screen:
        yield stream, screen


class TestConsoleColors:
    """Colours are for terminals."""

    def test_a_terminal_gets_them(self, terminal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Through a handler, byte for byte."""
        monkeypatch.delenv("NO_COLOR", raising=False)
        stream, screen = terminal
        handler = logging.StreamHandler(stream)
        handler.setFormatter(ConsoleFormatter(stream=stream))
        handler.handle(record(step=3))
        shown = os.read(screen.fileno(), 1000)

        assert b"\x1b[32mINFO    \x1b[0m" in shown
        assert b"\x1b[2mstep=3\x1b[0m" in shown

    def test_no_color_is_honoured(self, terminal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """https://no-color.org: set and not empty."""
        monkeypatch.setenv("NO_COLOR", "1")
        assert "\x1b" not in ConsoleFormatter(stream=terminal[0]).format(record())
        monkeypatch.setenv("NO_COLOR", "")
        assert "\x1b" in ConsoleFormatter(stream=terminal[0]).format(record())

    def test_a_file_gets_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nor does a pipe, a stream that was closed, or none at all."""
        closed = io.StringIO()
        closed.close()
        with open(tmp_path / "log", "w") as file:
            for stream in (file, io.StringIO(), closed, object()):
                text = ConsoleFormatter(stream=stream).format(record())  # type: ignore[arg-type]
                assert "\x1b" not in text
        monkeypatch.setattr(sys, "stderr", None)

        assert "\x1b" not in ConsoleFormatter().format(record())

    def test_a_stream_that_is_replaced_is_asked_again(
        self, terminal: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Standard error may become a terminal, and no longer be one."""
        monkeypatch.delenv("NO_COLOR", raising=False)
        formatter = ConsoleFormatter()
        for stream, colored in ((io.StringIO(), False), (terminal[0], True), (None, False)):
            monkeypatch.setattr(sys, "stderr", stream)
            for _ in range(2):
                assert ("\x1b" in formatter.format(record())) is colored

    def test_a_file_in_the_terminals_place_gets_none(
        self, terminal: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Under the same stream, as a program that becomes a daemon puts it there."""
        monkeypatch.delenv("NO_COLOR", raising=False)
        formatter = ConsoleFormatter(stream=terminal[0])
        assert "\x1b" in formatter.format(record())
        monkeypatch.setenv("NO_COLOR", "1")
        assert "\x1b" not in formatter.format(record())
        monkeypatch.delenv("NO_COLOR")
        with open(tmp_path / "log", "w") as file:
            os.dup2(file.fileno(), terminal[0].fileno())

        assert "\x1b" not in formatter.format(record())

    def test_they_may_be_forced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Either way, whatever the stream."""
        monkeypatch.setenv("NO_COLOR", "1")

        assert "\x1b" in ConsoleFormatter(colors=True).format(record())
        assert "\x1b" not in PlainFormatter().format(record())

    @pytest.mark.parametrize(
        ("level", "color"), [(10, "2"), (20, "32"), (30, "33"), (35, "33"), (40, "31"), (50, "1;")]
    )
    def test_each_level_has_its_own(self, level: int, color: str) -> None:
        """Levels in between have that of the next below."""
        text = ConsoleFormatter(colors=True).format(record(levelno=level))

        assert f"\x1b[{color}" in text.split("INFO")[0]


class TestConsoleLine:
    """A line that people read."""

    def test_its_parts(self) -> None:
        """Time, level, logger, message, context."""
        text = PlainFormatter().format(structured_record("hello", step=3, user="me"))
        local = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(CREATED))

        assert text == f"{local} INFO     app.part: hello  step=3 user=me"

    def test_what_is_the_same_on_every_line_is_hidden(self) -> None:
        """Or what the caller names instead."""
        made = structured_record("hello", **dict.fromkeys(BASE_FIELDS, "x"), step=3)

        assert PlainFormatter().format(made).endswith("hello  step=3")
        assert "rank=x" in PlainFormatter(hide=["step"]).format(made)
        assert "step" not in PlainFormatter(hide=["step"]).format(made)

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (0.123456789, "0.1235"),
            (math.nan, "nan"),
            (12345678, "12345678"),
            (None, "null"),
            (True, "true"),
            ("word", "word"),
            ("two words", '"two words"'),
            ('a" b="c', r'"a\" b=\"c"'),
            ("", '""'),
            ("x" * 100, "x" * 59 + "…"),
            ("x y" * 10_000_000, '"' + ("x y" * 20)[:58] + "…"),
            ([1, {"a": 2}], '[1,{"a":2}]'),
            ({1}, "[1]"),
            (ValueError("bad"), '{"type":"ValueError","message":"bad"}'),
        ],
        ids=lambda value: str(value)[:10],
    )
    def test_values_are_short(self, value: Any, shown: str) -> None:
        """Four digits, sixty characters, quotes where a value could pass for more than one."""
        text = PlainFormatter().format(record("hello", value=value))

        assert text.split("hello  ")[1] == f"value={shown}"

    def test_a_format_of_the_stdlib_takes_the_heads_place(self) -> None:
        """In each style; the context follows."""
        for fmt, style in (("%(name)s|%(message)s", "%"), ("{name}|{message}", "{")):
            formatter = ConsoleFormatter(fmt, style=style)
            assert formatter.format(record(step=3)) == "app.part|hello  step=3"
        dated = ConsoleFormatter("%(asctime)s %(message)s", "%Y").format(record())

        assert dated == "2026 hello"

    def test_tracebacks_follow_indented(self) -> None:
        """And stacks; every further line of the record is seen to be one."""
        error = caught(ValueError("a\nb"))
        made = record("first\nsecond")
        made.exc_info = (ValueError, error, error.__traceback__)
        made.stack_info = "Stack"
        first, *rest = PlainFormatter().format(made).split("\n")

        assert first.endswith("first")
        assert rest[0] == "    second"
        assert "    ValueError: a" in rest
        assert rest[-1] == "    Stack"
        assert all(text.startswith("    ") for text in rest)

    def test_the_traceback_behind_a_queued_message_follows_too(self) -> None:
        """Not in the middle of the line."""
        made = structured_record("failed", step=3)
        made.msg += "\nTraceback\nValueError: x"
        lines = PlainFormatter().format(made).split("\n")

        assert lines[0].endswith("failed  step=3")
        assert lines[1:] == ["    Traceback", "    ValueError: x"]

    def test_formatting_it_does_not_change_the_next_formatters_line(self) -> None:
        """The JSON line after the console's is that of the record."""
        made = record("a\nb\x1b[31m", step=3)
        PlainFormatter().format(made)

        fields = decode_line(JsonFormatter().format(made))
        assert (fields["message"], fields["context"]) == ("a\nb\x1b[31m", {"step": 3})


FORGERIES = {
    "newline": "x\n2026-01-01 00:00:00 ERROR    root: forged",
    "return": "x\r2026-01-01 00:00:00 ERROR    root: forged",
    "colour": "\x1b[31mred\x1b[0m",
    "erase": "\x1b[2K\x1b[1A",
    "title": "\x1b]0;title\x07",
    "c1": "\x9b31m\x85",
    "separators": "\u2028\u2029\x0b\x0c\x1c",
    "backspace": "a\x08\x7f",
    "bidi": "\u202eabc\u2066",
    "surrogate": "\ud800",
}


class TestForgery:
    """No text from outside can colour, erase or forge a line."""

    @pytest.mark.parametrize("text", FORGERIES.values(), ids=FORGERIES)
    @pytest.mark.parametrize("place", ["message", "value", "key", "logger", "level", "exception"])
    @pytest.mark.parametrize("fmt", [None, "%(levelname)s %(name)s %(message)s"])
    def test_control_characters_are_shown(self, fmt: str | None, place: str, text: str) -> None:
        """As escapes, wherever they come from; and each line but the first is indented."""
        made = record(text if place == "message" else "hello")
        if place == "value":
            made.value = text
        if place == "key":
            made.__dict__[text] = 1
        if place == "logger":
            made.name = text
        if place == "level":
            made.levelname = text
        if place == "exception":
            made.exc_info = (ValueError, ValueError(text), None)
        shown = ConsoleFormatter(fmt, colors=False).format(made)

        first, *rest = shown.split("\n")
        assert all(further.startswith("    ") for further in rest)
        assert not any(ord(char) < 32 or 0x7F <= ord(char) < 0xA0 for char in first.join(rest))
        assert not any(char in shown for char in "\u2028\u2029\u202e\u2066\ud800")
        assert "ERROR    root: forged" not in shown or not shown.startswith("2026-01-01")

    def test_a_field_that_a_format_names_is_safe(self) -> None:
        """What `extra` brings into the head of the line."""
        text = ConsoleFormatter("%(user)s: %(message)s").format(record(user="me\nroot: forged"))

        assert text.startswith("me\\nroot: forged: hello")

    @settings(max_examples=200, deadline=None)
    @given(st.text(), st.text())
    def test_any_text_stays_in_its_line(self, message: str, value: str) -> None:
        """Messages and values of any characters."""
        lines = PlainFormatter().format(record(message, value=value)).splitlines()

        assert len(lines) <= 1 + message.count("\n")
        assert all(text.startswith("    ") for text in lines[1:])


PARTS = st.text() | st.text(alphabet=' "=\\\n\t\x1b\u200d\u200b\ud800\u00e9x1', max_size=70)
VALUES = st.recursive(
    PARTS | st.integers() | st.floats() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PARTS, inner, max_size=3),
    max_leaves=4,
)


class TestLine:
    """The line of a record's parts, without the record."""

    @pytest.mark.parametrize("formatter", [ConsoleFormatter(colors=True), PlainFormatter()])
    @settings(max_examples=100, deadline=None)
    @given(PARTS, PARTS, PARTS, st.integers(0, 60), st.dictionaries(PARTS, VALUES, max_size=4))
    def test_it_is_what_format_gives(
        self,
        formatter: ConsoleFormatter,
        message: str,
        name: str,
        level_name: str,
        level: int,
        context: dict[str, Any],
    ) -> None:
        """Whatever the parts are, and asked twice."""
        made = structured_record(message, **context)
        made.name, made.levelname, made.levelno = name, level_name, level
        parts = (CREATED, level, level_name, name, message, to_plain(context))

        assert formatter.format(made) == formatter.line(*parts) == formatter.line(*parts)

    def test_a_prefix_stands_before_each_record(self) -> None:
        """The short way too; also of a format, and before colours. It cannot break a line."""
        formatter = ConsoleFormatter(prefix="[rank 1] ", colors=True)
        assert formatter.is_direct
        assert formatter.format(structured_record("hello", step=3)) == direct(formatter, step=3)
        assert direct(formatter).startswith("[rank 1] ")
        assert ConsoleFormatter("%(message)s", prefix="[1] ").format(record()) == "[1] hello"
        assert direct(ConsoleFormatter(prefix="\n\x1b ")).startswith("\\n\\x1b ")
        lines = formatter.format(record(exc_info=(ValueError, ValueError("v"), None)))
        assert lines.count("[rank 1] ") == 1

    def test_the_stock_formatters_are_direct(self) -> None:
        """Also with options of their own."""
        assert PlainFormatter(hide=[]).is_direct
        assert ConsoleFormatter(datefmt="%H", colors=True).is_direct

    def test_a_layout_that_needs_the_record_is_not_direct(self) -> None:
        """A format, milliseconds, a subclass."""

        class Mine(ConsoleFormatter):
            pass

        assert not ConsoleFormatter("%(message)s").is_direct
        assert not ConsoleFormatter(datefmt=None).is_direct
        assert not Mine().is_direct

    def test_what_is_assigned_ends_it(self) -> None:
        """A method, and any option, which counts from the next record on."""
        formatter = PlainFormatter()
        formatter.format(record())
        formatter.datefmt = "%Y"
        assert not formatter.is_direct
        assert formatter.format(record()) == "2026 INFO     app.part: hello"

        formatter = PlainFormatter()
        formatter.format = lambda record: "mine"  # type: ignore[method-assign]
        assert not formatter.is_direct

    @pytest.mark.parametrize("owner", [logging.Formatter, ConsoleFormatter])
    def test_a_method_put_over_a_class_ends_it(
        self, owner: type, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The time of `logging.Formatter` is replaced for ISO 8601 by many a program."""
        formatter = PlainFormatter()
        with monkeypatch.context() as patch:
            patch.setattr(owner, "formatTime", lambda *_: "now", raising=False)
            assert not formatter.is_direct
            assert formatter.format(record()) == "now INFO     app.part: hello"
        with monkeypatch.context() as patch:
            patch.setattr(ConsoleFormatter, "format", lambda *_: "mine")
            assert not formatter.is_direct
        assert formatter.is_direct

    def test_what_was_made_before_is_no_obstacle_to_copies(self) -> None:
        """By copy and by pickle; the stream and the texts stay behind."""
        formatter = ConsoleFormatter()
        shown = direct(formatter, step=3)
        for other in (copy.copy(formatter), copy.deepcopy(formatter), pickle.dumps(formatter)):
            same = pickle.loads(other) if isinstance(other, bytes) else other
            assert (same.is_direct, direct(same, step=3)) == (True, shown)

    def test_names_and_texts_are_kept_in_bounds(self) -> None:
        """However many a run has, and none that is long."""
        formatter = PlainFormatter()
        for number in range(3_000):
            assert direct(formatter, **{f"n{number}": f"v{number}"}).endswith(
                f"n{number}=v{number}"
            )
        direct(formatter, **{"n" * 61: "v" * 61})

        for kept in (formatter._memory.starts, _shown_texts):
            assert 0 < len(kept) <= 1_000
            assert max(map(len, kept)) <= 60

    def test_what_is_printable_needs_no_escape(self) -> None:
        """Each character there is: a text of such characters is not looked at again."""
        printable = "".join(filter(str.isprintable, map(chr, range(sys.maxunicode + 1))))

        assert _safe(printable) == printable


@pytest.fixture
def zones(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that changes the zone of the process; it is changed back."""

    def change(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield change
    monkeypatch.undo()
    time.tzset()


class TestTime:
    """The text of a second is made once."""

    def test_each_record_has_its_own_second(self) -> None:
        """Forwards, backwards, and before the epoch."""
        formatter = PlainFormatter()
        for created in (10.0, 10.999_999, 11.0, 10.5, -0.5, 0.0, -1.0, -1.5):
            local = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(math.floor(created)))
            assert direct(formatter, created).startswith(f"{local} INFO")

    def test_a_change_of_zone_is_seen_at_once(self, zones: Any) -> None:
        """Within the second."""
        formatter = PlainFormatter()
        zones("UTC")
        assert direct(formatter).startswith("2026-11-21 06:23:11 ")
        zones("EST5")
        assert direct(formatter).startswith("2026-11-21 01:23:11 ")

    def test_a_converter_is_asked_for(self, zones: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """That of the class, which programs set for UTC, and one of the formatter's own."""
        zones("EST5")
        formatter = PlainFormatter()
        assert "01:23:11" in direct(formatter)
        monkeypatch.setattr(logging.Formatter, "converter", time.gmtime)
        assert "06:23:11" in direct(formatter)

        formatter.converter = lambda seconds: time.gmtime(seconds * 1_000)  # type: ignore[method-assign]
        assert not formatter.is_direct
        assert direct(formatter, 10.001) != direct(formatter, 10.002)

    def test_no_time_is_refused(self) -> None:
        """By `line`, whose parts are those of an ordinary record; `format` takes now."""
        for created in (math.nan, math.inf, 1e300):
            with pytest.raises((ValueError, OverflowError)):
                direct(PlainFormatter(), created)
            assert "INFO     app.part: hello" in PlainFormatter().format(record(created=created))

    def test_threads_share_it(self) -> None:
        """Each line has its own record's second and fields."""
        formatter = PlainFormatter()
        wrong: list[str] = []

        def work(number: int) -> None:
            created = CREATED + number
            time_text = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(created))
            for step in range(500):
                line = direct(formatter, created, **{f"s{step}": number})
                if line != f"{time_text} INFO     app.part: hello  s{step}={number}":
                    wrong.append(line)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

        assert not wrong


def test_a_replaced_form_of_tracebacks_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """On `logging.Formatter` itself."""
    error = caught(ValueError("bad"))
    made = record(exc_info=(ValueError, error, error.__traceback__))
    assert "    ValueError: bad" in PlainFormatter().format(made)
    monkeypatch.setattr(logging.Formatter, "formatException", lambda *_: "short")

    assert PlainFormatter().format(made).endswith("hello\n    short")
