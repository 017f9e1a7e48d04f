"""Formatters: one record to one line of strict JSON."""

from __future__ import annotations

import datetime
import io
import json
import logging
import logging.config
import math
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_log import (
    ConsoleFormatter,
    JsonFormatter,
    PlainFormatter,
    bound,
    decode_line,
)
from foundry_log.formatters import EntryFormatter
from foundry_log.records import RESERVED, TEXT, entry_record, structured

pytestmark = pytest.mark.unit

CREATED = 1_795_242_191.123456
STAMP = "2026-11-21T06:23:11.123456+00:00"


def record(
    msg: Any = "hello", args: Any = (), exc: BaseException | None = None, **extra: Any
) -> logging.LogRecord:
    """A record of a plain logger, made at a known time."""
    exc_info = None if exc is None else (type(exc), exc, None)
    made = logging.LogRecord("app.part", logging.INFO, "/src/f.py", 12, msg, args, exc_info, "func")
    made.created = CREATED
    made.__dict__.update(extra)
    return made


def structured_record(message: str, /, **context: Any) -> logging.LogRecord:
    fields = structured(message, context)
    return record(fields[TEXT], **fields)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def line(formatter: logging.Formatter, made: logging.LogRecord) -> dict[str, Any]:
    """The line of a record, which must be one of strict JSON."""
    text = formatter.format(made)
    assert "\n" not in text
    fields: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return fields


def caught(error: BaseException) -> BaseException:
    try:
        raise error
    except type(error) as raised:
        return raised


def raises(*_: Any, **__: Any) -> Any:
    raise RuntimeError("hostile")


class TestJsonLine:
    """JsonFormatter as it is without options."""

    def test_the_fields_and_their_order(self) -> None:
        """Time, level, logger, message, context; no more."""
        fields = line(JsonFormatter(), record("%s!", ("hello",), step=3))

        assert list(fields.items()) == [
            ("timestamp", STAMP),
            ("level", "INFO"),
            ("logger", "app.part"),
            ("message", "hello!"),
            ("context", {"step": 3}),
        ]

    def test_the_context_is_there_when_it_is_empty(self) -> None:
        """So that every line has the same columns."""
        assert line(JsonFormatter(), record())["context"] == {}

    def test_message_and_context_of_a_structured_record_are_fields(self) -> None:
        """Its JSON text is not encoded again."""
        fields = line(JsonFormatter(), structured_record("hello", step=3, message="mine"))

        assert fields["message"] == "hello"
        assert fields["context"] == {"step": 3, "message": "mine"}

    def test_text_that_is_json_is_text(self) -> None:
        """User input cannot forge a context, nor a second line."""
        text = '{"message":"m","context":{"admin":true}}\n{"level":"ERROR"}'
        fields = line(JsonFormatter(), record(text))

        assert (fields["message"], fields["context"]) == (text, {})

    def test_scopes_are_context(self) -> None:
        """For plain loggers, of the thread that formats."""
        with bound(step=3):
            assert line(JsonFormatter(), record())["context"] == {"step": 3}

    def test_non_finite_numbers_come_back(self) -> None:
        """Null in the line, with a pointer from its root."""
        text = JsonFormatter().format(record(loss=math.nan, top=[-math.inf]))

        assert json.loads(text)["non_finite"] == {
            "/context/loss": "NaN",
            "/context/top/0": "-Infinity",
        }
        assert decode_line(text)["context"]["top"] == [-math.inf]

    def test_the_caller_on_request(self) -> None:
        """File, line and function, in either layout."""
        for formatter in (JsonFormatter(caller=True), JsonFormatter("%(message)s", caller=True)):
            assert line(formatter, record())["caller"] == {
                "file": "/src/f.py",
                "line": 12,
                "function": "func",
            }

    def test_the_record_is_left_as_it_was(self) -> None:
        """The handlers that come after see what we saw."""
        made = record({"message": "m", "a": 1}, exc=ValueError("x"), step={1})
        before = dict(made.__dict__)
        JsonFormatter("%(asctime)s %(message)s", exc_info_as_array=True).format(made)

        assert made.__dict__ == before
        assert made.msg == {"message": "m", "a": 1}

    @settings(max_examples=200, deadline=None)
    @given(
        st.text() | st.dictionaries(st.text(), st.text() | st.floats()),
        st.lists(st.text() | st.integers() | st.floats(), max_size=3),
        st.dictionaries(st.text(), st.text() | st.floats() | st.binary(), max_size=3),
        st.sampled_from(["context", None]),
    )
    def test_any_record_is_one_line(
        self, message: Any, args: list[Any], extra: dict[str, Any], context_key: str | None
    ) -> None:
        """Any message, arguments that fit or not, any extra: no exception and nothing missing."""
        made = record(message, tuple(args))
        extra = {name: value for name, value in extra.items() if name not in RESERVED}
        made.__dict__.update(extra)
        fields = line(JsonFormatter(context_key=context_key), made)

        assert fields["level"] == "INFO"
        shown = fields if context_key is None else fields["context"]
        expected = [name for name in extra if not name.startswith("_")]
        assert len([*shown]) >= len(expected)

    @pytest.mark.parametrize(
        "made",
        [
            record(type("Silent", (), {"__str__": raises, "__repr__": raises})()),
            record(type("Liar", (), {"__class__": property(raises)})()),
            record(type("Broken", (dict,), dict.fromkeys(("copy", "items"), raises))(a=1)),
            record({"message": type("Silent", (), {"__str__": raises})()}),
            record({"message": 10**5000}),
            record("%d", ("x",)),
            record(v=type("Liar", (), {"__class__": property(raises)})()),
            record(exc=type("E", (Exception,), {"__cause__": property(raises)})()),
            record(exc=type("E", (Exception,), {"__getattribute__": raises})()),
            record("\ud800", v="\udfff"),
            record(name=None, levelname=None),
            record(exc_info=(None, None, None)),
        ],
        ids=range(12),
    )
    @pytest.mark.parametrize(
        "formatter",
        [
            JsonFormatter(),
            JsonFormatter(context_key=None, exc_info_as_array=True),
            JsonFormatter("%(message)s %(exc_info)s", reserved_attrs=[]),
        ],
        ids=["default", "flat", "explicit"],
    )
    def test_nothing_makes_it_raise(
        self, formatter: JsonFormatter, made: logging.LogRecord
    ) -> None:
        """Objects whose code fails when it is looked at."""
        assert line(formatter, made)


class TestExceptions:
    """Exceptions and stacks in a line."""

    def test_an_exception_is_data_and_text(self) -> None:
        """Type and message to search for, the traceback to read."""
        error = caught(ValueError("bad"))
        made = record()
        made.exc_info = (ValueError, error, error.__traceback__)
        exception = line(JsonFormatter(), made)["exception"]

        assert (exception["type"], exception["message"]) == ("ValueError", "bad")
        assert exception["traceback"].startswith("Traceback")
        assert "in caught" in exception["traceback"]

    def test_chains_and_notes_are_data(self) -> None:
        """The cause as an object of its own."""
        error = ValueError("outer")
        error.__cause__ = KeyError("inner")
        error.__notes__ = ["note"]  # type: ignore[attr-defined]
        exception = line(JsonFormatter(), record(exc=error))["exception"]

        assert exception["cause"] == {"type": "KeyError", "message": "'inner'"}
        assert exception["notes"] == ["note"]
        assert "KeyError: 'inner'" in exception["traceback"]

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="ExceptionGroup came with Python 3.11")
    def test_groups_are_data(self) -> None:
        """Each member as an object."""
        group = ExceptionGroup("g", [ValueError(1), KeyError(2)])  # noqa: F821
        exception = line(JsonFormatter(), record(exc=group))["exception"]

        assert [member["type"] for member in exception["group"]] == ["ValueError", "KeyError"]

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="ExceptionGroup came with Python 3.11")
    def test_groups_without_end_are_written(self) -> None:
        """Python's own formatting fails on them."""
        group = ExceptionGroup("g", [ValueError(1)])  # noqa: F821
        for _ in range(3000):
            group = ExceptionGroup("g", [group])  # noqa: F821

        for formatter in (JsonFormatter(), JsonFormatter(exc_info_as_array=True)):
            assert "ExceptionGroup" in str(line(formatter, record(exc=group))["exception"])
        assert "ExceptionGroup" in ConsoleFormatter().format(record(exc=group))

    def test_text_that_a_handler_left_is_kept(self) -> None:
        """`exc_text` of another formatter, or of a record from another process."""
        fields = line(JsonFormatter(), record(exc_text="Traceback\nValueError: x"))

        assert fields["exception"] == {"traceback": "Traceback\nValueError: x"}

    def test_the_text_behind_a_structured_message_is_its_traceback(self) -> None:
        """That is where a QueueHandler puts it."""
        made = structured_record("failed", step=3)
        made.msg += "\nTraceback\nValueError: x"
        fields = line(JsonFormatter(exc_info_as_array=True), made)

        assert (fields["message"], fields["context"]) == ("failed", {"step": 3})
        assert fields["exception"] == {"traceback": ["Traceback", "ValueError: x"]}

    def test_a_stack_is_kept(self) -> None:
        """As text, or as its lines."""
        made = record()
        made.stack_info = "Stack\n  a"

        assert line(JsonFormatter(), made)["stack_info"] == "Stack\n  a"
        assert line(JsonFormatter(stack_info_as_array=True), made)["stack_info"] == [
            "Stack",
            "  a",
        ]


class TestLibraryOptions:
    """The options of python-json-logger keep their meaning."""

    @pytest.mark.parametrize(
        ("fmt", "style"),
        [
            ("%(levelname)-8s %(message)s %(lineno)d", "%"),
            ("{levelname:<8} {message!s} {lineno}", "{"),
            ("$levelname ${message} $lineno $$", "$"),
            ("levelname, message,lineno,", ","),
            (["levelname", "message", "lineno"], "%"),
            (("levelname", "message", "lineno"), "%"),
        ],
    )
    def test_a_format_names_the_fields(self, fmt: Any, style: str) -> None:
        """In its order, in every style; and exactly those where nothing else was logged."""
        fields = line(JsonFormatter(fmt, style=style), record())

        assert list(fields.items()) == [("levelname", "INFO"), ("message", "hello"), ("lineno", 12)]

    def test_what_a_format_does_not_name_follows(self) -> None:
        """Context and exception are not lost; what it names is not written twice."""
        made = record(exc=ValueError("x"), step=3, user="me")
        fields = line(JsonFormatter("%(message)s %(step)s"), made)

        assert list(fields) == ["message", "step", "context", "exception"]
        assert (fields["step"], fields["context"]) == (3, {"user": "me"})

    def test_a_wrong_format_or_style_is_refused(self) -> None:
        """At start, as in the stdlib."""
        with pytest.raises(ValueError, match="Style"):
            JsonFormatter("%(message)s", style="!")
        with pytest.raises(ValueError, match="format"):
            JsonFormatter("no fields", style="%")
        JsonFormatter("no fields", None, "%", False)

    def test_a_style_of_ones_own_is_parsed_by_the_subclass(self) -> None:
        """`validate=False` and `parse`, as that library has it."""

        class Piped(JsonFormatter):
            def parse(self) -> list[str]:
                return str(self._fmt).split("|")

        assert list(line(Piped("name|message", None, "|", False), record())) == ["name", "message"]

    def test_asctime_is_utc_unless_a_format_is_given(self) -> None:
        """`datefmt` is the stdlib's: local time."""
        local = time.strftime("%H:%M", time.localtime(CREATED))

        assert line(JsonFormatter("%(asctime)s"), record()) == {"asctime": STAMP}
        assert line(JsonFormatter("%(asctime)s", "%H:%M"), record()) == {"asctime": local}

    def test_exc_info_by_name_is_text(self) -> None:
        """As that library writes it; None where there is none."""
        formatter = JsonFormatter("%(exc_info)s")

        assert line(formatter, record(exc=ValueError("x")))["exc_info"] == "ValueError: x"
        assert line(formatter, record())["exc_info"] is None

    def test_static_fields_are_in_every_line(self) -> None:
        """They win over the layout's own; a context field of the name is kept beside them."""
        formatter = JsonFormatter(static_fields={"env": "prod", "level": "x"}, context_key=None)
        fields = line(formatter, record(env="dev"))

        assert (fields["env"], fields["env_"], fields["level"]) == ("prod", "dev", "x")

    def test_defaults_give_way(self) -> None:
        """To everything: the layout, the context, and a name in the format."""
        defaults = {"env": "dev", "step": 0, "level": "x"}
        flat = JsonFormatter(defaults=defaults, context_key=None)
        named = JsonFormatter("%(message)s %(step)s", defaults=defaults)

        assert line(flat, record(step=3))["step"] == 3
        assert line(flat, record(step=3))["level"] == "INFO"
        assert line(flat, record())["env"] == "dev"
        assert line(named, record(step=3))["step"] == 3
        assert line(named, record())["step"] == 0

    def test_fields_are_renamed_in_place(self) -> None:
        """Those that are there; a name that is taken gets an underscore."""
        formatter = JsonFormatter(
            rename_fields={"level": "severity", "message": "@message", "no": "nope"},
            context_key=None,
        )

        assert list(line(formatter, record(severity="mine"))) == [
            "timestamp", "severity", "logger", "@message", "severity_",
        ]  # fmt: skip

    def test_missing_fields_are_null_on_request(self) -> None:
        """Under their new names, in the order of the option."""
        formatter = JsonFormatter(
            rename_fields={"a": "x", "message": "text", "b": "y"}, rename_fields_keep_missing=True
        )
        fields = line(formatter, record())

        assert list(fields)[-2:] == ["x", "y"]
        assert (fields["x"], fields["y"], fields["text"]) == (None, None, "hello")

    def test_a_prefix_stands_before_the_line(self) -> None:
        """As systems ask for it that look for a marker."""
        assert JsonFormatter(prefix="@cee:").format(record()).startswith('@cee:{"timestamp"')

    def test_reserved_attributes_may_be_more(self) -> None:
        """Those are hidden, wherever they come from but a dict that was logged itself."""
        formatter = JsonFormatter(reserved_attrs=["secret", "name"])

        assert "secret" not in line(formatter, record(secret=1))["context"]
        assert "secret" not in line(formatter, structured_record("x", secret=1))["context"]
        assert line(formatter, record({"secret": 1}))["context"]["secret"] == 1

    def test_reserved_attributes_may_be_fewer(self) -> None:
        """Those of the stdlib that are not reserved are context."""
        reserved = [name for name in record().__dict__ if name not in ("lineno", "funcName")]
        made = record()
        made.message = "left by another formatter"
        context = line(JsonFormatter(reserved_attrs=reserved), made)["context"]

        assert context == {"lineno": 12, "funcName": "func"}

    @pytest.mark.parametrize("fmt", [None, "%(message)s"])
    def test_the_timestamp_has_the_name_given(self, fmt: str | None) -> None:
        """With and without a format."""
        assert line(JsonFormatter(fmt, timestamp="@ts"), record())["@ts"] == STAMP
        assert line(JsonFormatter(fmt, timestamp=True), record())["timestamp"] == STAMP
        assert "timestamp" not in line(JsonFormatter("%(message)s"), record())

    def test_lines_of_a_traceback_may_be_a_list(self) -> None:
        """One string a line."""
        error = caught(ValueError("x"))
        made = record()
        made.exc_info = (ValueError, error, error.__traceback__)
        lines = line(JsonFormatter(exc_info_as_array=True), made)["exception"]["traceback"]

        assert lines[0].startswith("Traceback")
        assert lines[-1] == "ValueError: x"

    def test_json_default_is_asked_first(self) -> None:
        """For what JSON has no form for; what it refuses is written by our rules."""

        def default(value: Any) -> Any:
            if isinstance(value, datetime.date):
                return value.year
            raise TypeError

        context = line(
            JsonFormatter(json_default=default), record(when=datetime.date(2026, 1, 2), odd={1})
        )["context"]

        assert context == {"when": 2026, "odd": [1]}

    def test_options_of_its_encoders_do_not_exist(self) -> None:
        """Refused at start, not ignored."""
        with pytest.raises(TypeError, match="json_indent"):
            JsonFormatter(json_indent=2)

    def test_a_dict_may_be_the_message(self) -> None:
        """Its `message` is the message and the rest context, above `extra`."""
        made = record({"message": "m", "a": 1, "b": 1}, b=0)
        fields = line(JsonFormatter(), made)

        assert (fields["message"], fields["context"]) == ("m", {"a": 1, "b": 1})
        assert line(JsonFormatter(), record({"a": 1}))["message"] == ""
        assert line(JsonFormatter(), record({}))["message"] == "{}"


class TestFlatContext:
    """`context_key`."""

    def test_another_key(self) -> None:
        """Under the name given."""
        assert line(JsonFormatter(context_key="fields"), record(a=1))["fields"] == {"a": 1}

    def test_none_is_side_by_side(self) -> None:
        """Names that are taken get underscores; nothing is lost."""
        made = structured_record("hello", message=1, level=2, message_=3, step=4, exception=5)
        made.exc_info = (ValueError, ValueError("x"), None)
        fields = line(JsonFormatter(context_key=None), made)

        assert (fields["message"], fields["message_"], fields["message__"]) == ("hello", 1, 3)
        assert (fields["level"], fields["level_"], fields["step"]) == ("INFO", 2, 4)
        assert (fields["exception"]["type"], fields["exception_"]) == ("ValueError", 5)
        assert "context" not in fields

    def test_keys_that_are_no_strings(self) -> None:
        """A dict that was logged may have any."""
        assert line(JsonFormatter(context_key=None), record({5: 6, "message": "m"}))["5"] == 6


class TestHooks:
    """What subclasses of python-json-logger's formatter override."""

    def test_add_fields(self) -> None:
        """Called with the fields so far, the record, and the dict that was logged."""

        class Mine(JsonFormatter):
            def add_fields(
                self, log_data: Any, record: logging.LogRecord, message_dict: Any
            ) -> None:
                super().add_fields(log_data, record, message_dict)
                log_data["line"] = record.lineno
                log_data["odd"] = {1}

        fields = line(Mine(), record())

        assert (fields["line"], fields["odd"], fields["message"]) == (12, [1], "hello")

    def test_process_log_record(self) -> None:
        """Its result is what is written."""

        class Mine(JsonFormatter):
            def process_log_record(self, log_data: Any) -> Any:
                return {"only": log_data["message"]}

        assert line(Mine(), record()) == {"only": "hello"}

    def test_format_exception_and_time(self) -> None:
        """The stdlib's own hooks."""

        class Mine(JsonFormatter):
            def formatException(self, ei: Any) -> str:
                return "short"

            def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
                return "now"

            def formatStack(self, stack_info: str) -> str:
                return "stack"

        made = record(exc=ValueError("x"))
        made.stack_info = "long"
        fields = line(Mine("%(asctime)s"), made)

        assert fields["asctime"] == "now"
        assert fields["exception"]["traceback"] == "short"
        assert fields["stack_info"] == "stack"


class TestConfiguration:
    """By dotted names, as `logging.config` finds them."""

    @pytest.mark.parametrize(
        "formatter",
        [
            {"()": "foundry_log.JsonFormatter", "context_key": None, "caller": True},
            {"()": "foundry_log.JsonFormatter", "format": "%(message)s %(step)s"},
            {"class": "foundry_log.JsonFormatter", "format": "{message} {step}", "style": "{"},
            {"class": "foundry_log.JsonFormatter"},
        ],
    )
    def test_dict_config(self, formatter: dict[str, Any]) -> None:
        """As a factory with options, and as a class."""
        stream = io.StringIO()
        logging.config.dictConfig({
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": formatter},
            "handlers": {"h": {
                "class": "logging.StreamHandler", "formatter": "json", "stream": stream}},
            "loggers": {"configured": {"handlers": ["h"], "level": "INFO"}},
        })  # fmt: skip
        logging.getLogger("configured").info("hello", extra={"step": 3})
        fields = json.loads(stream.getvalue())

        assert fields["message"] == "hello"
        assert {**fields, **fields.get("context", {})}["step"] == 3

    @pytest.mark.parametrize("name", ["JsonFormatter", "ConsoleFormatter", "PlainFormatter"])
    def test_file_config(self, name: str, tmp_path: Path) -> None:
        """`class =`, with format, date format and style in its three positions."""
        (tmp_path / "logging.ini").write_text(f"""
[loggers]
keys = root, configured
[handlers]
keys = h
[formatters]
keys = f
[logger_root]
handlers =
[logger_configured]
handlers = h
level = INFO
qualname = configured
[handler_h]
class = FileHandler
args = ({str(tmp_path / "out.log")!r},)
formatter = f
[formatter_f]
class = foundry_log.{name}
format = {{asctime}} {{message}}
datefmt = at %Y
style = {{
""")
        root = logging.getLogger()
        handlers = root.handlers[:]
        try:
            logging.config.fileConfig(tmp_path / "logging.ini", disable_existing_loggers=False)
        finally:
            root.handlers[:] = handlers
        logging.getLogger("configured").info("hello")
        text = (tmp_path / "out.log").read_text()

        year = time.strftime("%Y")
        if name == "JsonFormatter":
            assert json.loads(text) == {"asctime": f"at {year}", "message": "hello"}
        else:
            assert text == f"at {year} hello\n"


class TestEntries:
    """The lines of `metrics.jsonl` and `errors.jsonl`."""

    def test_the_entry_follows_the_time(self) -> None:
        """And non-finite values come back."""
        made = entry_record("m", logging.INFO, "x", {"step": 1, "metrics": {"loss": math.nan}})
        made.created = CREATED
        text = EntryFormatter().format(made)

        assert text.startswith(f'{{"timestamp":"{STAMP}","step":1,"metrics":{{"loss":null}}')
        assert math.isnan(decode_line(text)["metrics"]["loss"])


def test_formatters_are_shared_by_threads() -> None:
    """Each line is that of its own record."""
    json_lines, lines = JsonFormatter("%(asctime)s %(message)s"), PlainFormatter()
    wrong: list[str] = []

    def work(number: int) -> None:
        for _ in range(200):
            made = record(f"m{number}", number=number)
            text = json_lines.format(made) + lines.format(made)
            if text.count(f"m{number}") != 2:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert not wrong
