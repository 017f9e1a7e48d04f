"""ContextFilter: fields and scopes that travel. RedactingFilter: secrets that do not."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import logging.config
import logging.handlers
import pickle
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_log import (
    ConsoleFormatter,
    ContextFilter,
    ExperimentConfig,
    JsonFormatter,
    RotatingJsonlHandler,
    StructuredLogger,
    bound,
)
from foundry_log.filters import RedactingFilter
from foundry_log.formatters import EntryFormatter
from foundry_log.records import context_of, detached, entry_record, message_of, structured

pytestmark = pytest.mark.unit


class Lines(logging.Handler):
    """Keeps the context of each line that JsonFormatter makes."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.contexts: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.contexts.append(json.loads(self.format(record))["context"])


@pytest.fixture
def lines() -> Lines:
    """A handler with the filter, on the logger "filtered"."""
    handler = Lines()
    handler.addFilter(ContextFilter({"run": 1, "step": "configuration"}))
    logger = logging.getLogger("filtered")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    return handler


def test_a_plain_loggers_record_gets_the_fields(lines: Lines) -> None:
    """Below those that the call gives."""
    logging.getLogger("filtered").info("x")
    logging.getLogger("filtered").info("x", extra={"step": "call"})

    assert lines.contexts == [
        {"run": 1, "step": "configuration"},
        {"run": 1, "step": "call"},
    ]


def test_the_order_of_precedence(lines: Lines, tiny_config: ExperimentConfig) -> None:
    """Call over scope over adapter over configuration."""
    log = StructuredLogger("filtered", tiny_config)
    log.context.clear()
    log.update_context(a="adapter", b="adapter", c="adapter")
    lines.filters[0].fields.update(a=0, b=0, c=0, d="configuration")  # type: ignore[union-attr]
    with bound(b="scope", c="scope"):
        log.info("x", c="call")

    context = lines.contexts[0]
    assert [context[name] for name in "abcd"] == ["adapter", "scope", "call", "configuration"]


def test_a_scope_wins_over_the_configuration(lines: Lines) -> None:
    """For records of plain loggers too."""
    with bound(step="scope"):
        logging.getLogger("filtered").info("x")

    assert lines.contexts == [{"run": 1, "step": "scope"}]


def test_scopes_travel_to_the_thread_that_formats() -> None:
    """On a QueueHandler the filter keeps what the thread that logged had bound, as it was."""
    records: queue.Queue[logging.LogRecord] = queue.Queue()
    handler = logging.handlers.QueueHandler(records)
    handler.addFilter(ContextFilter())
    logger = logging.getLogger("filtered")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    values = [1]
    with bound(values=values, odd={2}):
        logger.info("x")
    values.append(3)

    line = json.loads(JsonFormatter().format(records.get_nowait()))
    assert line["context"] == {"values": [1], "odd": [2]}


def test_only_records_of_the_named_logger_are_touched() -> None:
    """`name` means what it means in `logging.Filter`; the others pass untouched."""
    addition = ContextFilter({"run": 1}, name="mine")
    other = logging.makeLogRecord({"name": "other"})
    child = logging.makeLogRecord({"name": "mine.child"})

    assert addition.filter(other) is True
    assert addition.filter(child) is True
    assert not hasattr(other, "foundry_context")
    assert child.__dict__["foundry_context"] == {"run": 1}


def test_two_filters_add_up() -> None:
    """The first to see the record is nearer to the call, and wins."""
    record = logging.makeLogRecord({})
    for fields in ({"a": 1, "b": 1}, {"b": 2, "c": 2}):
        ContextFilter(fields).filter(record)

    assert record.__dict__["foundry_context"] == {"a": 1, "b": 1, "c": 2}


def test_values_are_reduced_once() -> None:
    """Any values are accepted, and the record stays plain data."""
    record = logging.makeLogRecord({})
    ContextFilter({"odd": {1}, "when": object}).filter(record)

    assert record.__dict__["foundry_context"] == {"odd": [1], "when": "builtins.object"}


# --- RedactingFilter ---

SECRET = "hunter2"
GONE = "[redacted]"
LOG = logging.getLogger("redacted")


class Records(logging.Handler):
    """Keeps the records that have passed its filters, and the lines of several formatters."""

    def __init__(self, *filters: logging.Filter) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.lines: list[str] = []
        for one in filters:
            self.addFilter(one)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.lines += all_lines(record)

    @property
    def json(self) -> Any:
        """The line of JsonFormatter for the only record."""
        (record,) = self.records
        return json.loads(JsonFormatter().format(record))


def all_lines(record: logging.LogRecord) -> list[str]:
    """The record as each kind of formatter shows it."""
    formatters = (
        JsonFormatter(),
        ConsoleFormatter(colors=False),
        logging.Formatter("%(message)s %(args)s %(msg)s"),
    )
    return [formatter.format(record) for formatter in formatters]


@pytest.fixture
def records() -> Iterator[Records]:
    """A handler with the filter, on the logger "redacted"."""
    handler = Records(RedactingFilter())
    LOG.setLevel(logging.DEBUG)
    LOG.addHandler(handler)
    yield handler
    for line in handler.lines:
        assert SECRET not in line
    assert all(SECRET not in str(record.__dict__) for record in handler.records)


def redacted(record: logging.LogRecord) -> logging.LogRecord:
    assert RedactingFilter().filter(record) is True
    return record


def failing() -> None:
    raise ValueError(f"no access with password={SECRET}")


class Config(dict):  # type: ignore[type-arg]
    """A mapping of somebody's own."""


@dataclasses.dataclass
class Login:
    user: str
    password: str


def test_the_message(records: Records) -> None:
    """The secret goes, the rest stays, and the arguments are in the text."""
    LOG.info("user %s, password=%s, step %d", "bob", SECRET, 3)

    assert records.json["message"] == f"user bob, password={GONE}, step 3"
    assert records.records[0].args is None


@pytest.mark.parametrize(
    "arguments",
    [
        ({"user": "bob", "password": SECRET},),
        (Config(user="bob", password=SECRET), 5),
        ([{"password": SECRET}], 5),
        (f"--password {SECRET} --steps 5", 5),
        (Login("bob", SECRET), 5),
    ],
)
def test_arguments(records: Records, arguments: tuple[Any, ...]) -> None:
    """Dicts by their names before they become text; objects by their text."""
    LOG.info("with %s" if len(arguments) == 1 else "with %s and %d", *arguments)
    assert GONE in records.json["message"]


def test_named_arguments(records: Records) -> None:
    """The name counts, also where the message does not show it."""
    LOG.info("%(user)s logs in with %(password)s", {"user": "bob", "password": SECRET})
    assert records.json["message"] == f"bob logs in with {GONE}"


def test_what_a_format_cuts_off(records: Records) -> None:
    """A part of a secret is one too."""
    LOG.info("%.20s", f"password={SECRET}-and-more-of-it")
    assert records.json["message"] == f"password={GONE}"


def test_extra_attributes(records: Records) -> None:
    """By name and by what they hold, at any depth, objects too."""
    extra = {
        "password": SECRET,
        "nested": [{"api_key": SECRET, "n": 1}],
        "login": Login("bob", SECRET),
        "command": f"x --token {SECRET}",
        "tokens": 5,
    }
    LOG.info("x", extra=extra)

    assert records.json["context"] == {
        "password": GONE,
        "nested": [{"api_key": GONE, "n": 1}],
        "login": {"user": "bob", "password": GONE},
        "command": f"x --token {GONE}",
        "tokens": 5,
    }


def test_scopes(records: Records) -> None:
    """What is bound is kept on the record without its secrets; the scope itself stays."""
    with bound(password=SECRET, step=1):
        LOG.info("x", extra={"n": 2})
    assert records.json["context"] == {"password": GONE, "step": 1, "n": 2}


def test_an_extra_that_took_the_contexts_name(records: Records) -> None:
    """It is context like any other."""
    LOG.info("x", extra={"foundry_context": [f"password={SECRET}"]})
    assert records.json["context"] == {"foundry_context": [f"password={GONE}"]}


@pytest.mark.parametrize("as_json", [True, False])
def test_a_structured_record(
    records: Records, tiny_config: ExperimentConfig, as_json: bool
) -> None:
    """Message, context and the JSON that plain handlers show agree."""
    tiny_config.logging.use_structured_logging = as_json
    log = StructuredLogger("redacted", tiny_config)
    log.info("password=%s", SECRET, api_key=SECRET, loss=1.5)

    (record,) = records.records
    assert records.json["message"] == f"password={GONE}"
    assert records.json["context"]["api_key"] == GONE
    assert records.json["context"]["loss"] == 1.5
    assert message_of(record) == (f"password={GONE}", "")
    if as_json:
        text = json.loads(record.getMessage())
        assert text == {"message": f"password={GONE}", "context": records.json["context"]}
    else:
        assert record.getMessage() == f"password={GONE}"


def test_a_context_alone(records: Records, tiny_config: ExperimentConfig) -> None:
    """The text that plain handlers show holds it too."""
    StructuredLogger("redacted", tiny_config).info("x", password=SECRET)
    assert json.loads(records.records[0].msg)["context"]["password"] == GONE


def test_a_structured_record_whose_text_was_replaced(records: Records) -> None:
    """The attributes beside it count no longer, and travel without secrets all the same."""
    fields = structured(f"password={SECRET}", {})
    LOG.info("other", extra=fields)
    assert records.json["message"] == "other"


def test_a_dict_in_place_of_text(records: Records) -> None:
    """By its names."""
    LOG.info({"message": "hello", "password": SECRET, "n": 1})
    assert records.json["message"] == "hello"
    assert records.json["context"] == {"password": GONE, "n": 1}


def test_an_exception(records: Records, tiny_config: ExperimentConfig) -> None:
    """Its text and traceback stay but for the secret, as data; nobody can print the original."""
    try:
        failing()
    except ValueError:
        LOG.exception("failed")

    (record,) = records.records
    assert record.exc_info is None
    assert records.json["exception"]["message"] == f"no access with password={GONE}"
    assert "in failing" in records.json["exception"]["traceback"]
    assert "in failing" in logging.Formatter().format(record)


def test_the_cause_of_an_exception(records: Records) -> None:
    """As deep as the chain goes."""
    try:
        try:
            failing()
        except ValueError as error:
            raise KeyError("clean") from error
    except KeyError:
        LOG.exception("failed")
    assert records.json["exception"]["cause"]["message"].endswith(f"password={GONE}")


def test_an_exception_without_secrets_stays(records: Records) -> None:
    """Handlers that want the object (a tracker of errors) still get it."""
    try:
        raise KeyError("password")
    except KeyError:
        LOG.exception("failed")
    (record,) = records.records
    assert record.exc_info is not None
    assert "foundry_exception" not in record.__dict__


def test_the_text_of_a_formatter_that_came_before() -> None:
    """It caches the traceback, and the message, on the record."""
    record = logging.makeLogRecord({"msg": f"password={SECRET}"})
    try:
        failing()
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    record.stack_info = f"Stack: token='{SECRET}'"
    logging.Formatter().format(record)
    redacted(record)

    assert SECRET not in str(record.__dict__)
    assert record.message == f"password={GONE}"
    assert record.exc_text is not None
    assert record.exc_text.endswith(f"password={GONE}")


def test_a_detached_record() -> None:
    """Whose exception is data already."""
    try:
        failing()
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
    with bound(password=SECRET):
        record = detached(logging.makeLogRecord({"msg": "x", "exc_info": info}))
    redacted(record)
    assert SECRET not in str(record.__dict__)


def test_an_entry() -> None:
    """The lines of metrics.jsonl and errors.jsonl."""
    record = entry_record("a", logging.INFO, "x", {"n": 1, "context": {"password": SECRET}})
    line = json.loads(EntryFormatter().format(redacted(record)))
    assert line["context"] == {"password": GONE}
    assert line["n"] == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"msg": "loss %.3f %s", "args": (1.5, "ok"), "step": 3},
        lambda: {"msg": "x", "tokens_per_sec": 12.5, "nested": {"a": [1]}, "object": object()},
        lambda: {"msg": {"message": "x", "n": 1}},
        lambda: {**structured("loss", {"step": 1, "pad_token": "<s>"}), "msg": "x"},
        lambda: {"msg": "x %s", "args": ({"n": [1, 2]},)},
        lambda: {"msg": "x", "args": None, "stack_info": "Stack: f(x)"},
    ],
)
def test_a_record_without_secrets_stays_as_it_is(make: Callable[[], dict[str, Any]]) -> None:
    """The same objects, but for the mark."""
    record = logging.makeLogRecord(make())
    before = dict(record.__dict__)
    redacted(record)

    after = {name: value for name, value in record.__dict__.items() if name[0] != "_"}
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


def test_the_mark_is_not_shown() -> None:
    """By no formatter of ours, and it is no context."""
    record = redacted(logging.makeLogRecord({"msg": "x", "a": 1}))
    assert context_of(record) == {"a": 1}
    assert all("foundry" not in line for line in all_lines(record))


class Counting(str):
    """Text that counts how often it is formatted."""

    formatted = 0

    def __str__(self) -> str:
        type(self).formatted += 1
        return "x"


def test_a_record_is_looked_at_once_by_the_same_rules() -> None:
    """And again by other rules, or when a part of it was replaced."""
    record = logging.makeLogRecord({"msg": Counting("x")})
    for _ in range(3):
        RedactingFilter().filter(record)
        logging.Formatter("%(asctime)s").format(record)
    looked_at_once = Counting.formatted - 3  # the formatter's own
    RedactingFilter(["other"]).filter(record)

    assert looked_at_once == 1
    assert Counting.formatted > 3 + looked_at_once


def test_what_is_added_after_the_first_look_is_redacted() -> None:
    """By a ContextFilter of the next handler, or anybody."""
    record = redacted(logging.makeLogRecord({"msg": "x"}))
    ContextFilter({"password": SECRET}).filter(record)
    assert context_of(redacted(record)) == {"password": GONE}

    record.late = {"password": SECRET}  # type: ignore[attr-defined]
    assert context_of(redacted(record))["late"] == {"password": GONE}

    record.msg = f"password={SECRET}"
    assert redacted(record).msg == f"password={GONE}"


def test_rules_of_ones_own() -> None:
    """Keys, patterns and the replacement; both filters of a record count."""
    record = logging.makeLogRecord({"msg": f"P-12 password={SECRET}", "patient": 7})
    RedactingFilter(["patient"], [r"P-\d+"], replacement="***").filter(record)
    assert record.msg == "*** password=***"
    assert context_of(record) == {"patient": "***"}


def test_a_redacted_record_travels() -> None:
    """To other processes, where it is not worked on again or is without harm."""
    record = redacted(logging.makeLogRecord({"msg": f"password={SECRET}", "a": {"token": SECRET}}))
    other = pickle.loads(pickle.dumps(record))
    assert redacted(other).__dict__.keys() == record.__dict__.keys()
    assert all_lines(other) == all_lines(record)


class Hostile:
    """Raises whatever is done to it."""

    def __str__(self) -> str:
        raise RuntimeError(SECRET)

    __repr__ = __str__
    __bool__ = __len__ = __iter__ = __str__  # type: ignore[assignment]


@pytest.mark.parametrize(
    "fields",
    [
        {"msg": Hostile()},
        {"msg": "%d", "args": ("x",)},
        {"msg": "x", "args": Hostile()},
        {"msg": "x", "extra": Hostile(), "password": SECRET},
        {"msg": "x", "exc_info": Hostile()},
        {"msg": "x", "exc_info": (ValueError, Hostile(), None)},
        {"msg": "x", "exc_text": 5, "stack_info": ["password"]},
        {"msg": "x", "foundry_exception": 5, "foundry_entry": 5, "foundry_text": 5},
        {"msg": "x", "_foundry_redacted": ()},
    ],
)
def test_nothing_is_raised(fields: dict[str, Any]) -> None:
    """Whatever is on the record; where it cannot be checked, it is emptied."""
    record = redacted(logging.makeLogRecord(fields))
    assert SECRET not in ConsoleFormatter(colors=False).format(record)


class Unique(logging.LogRecord):
    """Cannot be copied."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError("one only")


def test_a_record_that_cannot_be_checked_is_emptied() -> None:
    """A message too few is better than a password too many; the note says what happened."""
    record = Unique("a", logging.INFO, "", 0, "x %s", ({"password": SECRET},), None)
    record.late = SECRET  # type: ignore[attr-defined]
    with bound(password=SECRET):
        redacted(record)
        lines = all_lines(record)

    assert record.msg == f"{GONE} (RuntimeError on redacting)"
    assert SECRET not in str(record.__dict__)
    assert SECRET not in "".join(lines)


# --- RedactingFilter, the whole way ---


def test_a_rotating_file(tmp_path: Path, tiny_config: ExperimentConfig) -> None:
    """What stands in the file."""
    handler = RotatingJsonlHandler(tmp_path / "run.jsonl")
    handler.addFilter(RedactingFilter())
    LOG.setLevel(logging.DEBUG)
    LOG.addHandler(handler)
    with bound(token=SECRET):
        LOG.info("see postgresql://bob:%s@db/runs", SECRET)
    StructuredLogger("redacted", tiny_config).info("x", password=SECRET)
    handler.close()

    first, second = map(json.loads, (tmp_path / "run.jsonl").read_text().splitlines())
    assert first["message"] == f"see postgresql://bob:{GONE}@db/runs"
    assert first["context"] == {"token": GONE}
    assert second["context"]["password"] == GONE


def test_a_queue(tiny_config: ExperimentConfig) -> None:
    """What `QueueHandler.prepare` flattens has no secret, nor what it appends."""
    records: queue.Queue[logging.LogRecord] = queue.Queue()
    handler = logging.handlers.QueueHandler(records)
    handler.addFilter(RedactingFilter())
    LOG.setLevel(logging.DEBUG)
    LOG.addHandler(handler)
    try:
        failing()
    except ValueError:
        StructuredLogger("redacted", tiny_config).exception("failed", password=SECRET)

    record = records.get_nowait()
    assert SECRET not in str(record.__dict__)
    assert SECRET not in "".join(all_lines(record))
    line = json.loads(JsonFormatter().format(record))
    assert line["message"] == "failed"
    assert line["context"]["password"] == GONE
    assert "in failing" in line["exception"]["traceback"]


def test_a_prepared_record() -> None:
    """A filter behind the queue finds the traceback in the text, where `prepare` put it."""
    try:
        failing()
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
    fields = structured("failed", {"n": 1})
    record = logging.makeLogRecord({**fields, "msg": fields["foundry_text"], "exc_info": info})
    record = logging.handlers.QueueHandler(queue.Queue()).prepare(record)
    redacted(record)

    message, behind = message_of(record)
    assert message == "failed"
    assert behind.endswith(f"password={GONE}")
    assert SECRET not in str(record.__dict__)


def test_a_configuration_by_dotted_name() -> None:
    """`dictConfig` makes the filter, with its rules as data."""
    stream = io.StringIO()
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {
                "secrets": {
                    "()": "foundry_log.filters.RedactingFilter",
                    "keys": ["patient"],
                    "patterns": ["P-[0-9]+"],
                }
            },
            "handlers": {
                "out": {
                    "class": "logging.StreamHandler",
                    "stream": stream,
                    "filters": ["secrets"],
                }
            },
            "loggers": {"redacted": {"level": "DEBUG", "handlers": ["out"], "propagate": False}},
        }
    )
    LOG.info("P-12: patient=%s password=%s", SECRET, SECRET)
    LOG.propagate = True
    assert stream.getvalue() == f"{GONE}: patient={GONE} password={GONE}\n"


PLACES = st.recursive(
    st.sampled_from(["password", "apiKey", "HF_TOKEN", "text"]),
    lambda inner: st.tuples(st.sampled_from(["list", "dict", "tuple", "set"]), inner),
    max_leaves=1,
)


def planted(place: Any) -> Any:
    """A structure with the secret at a place in it."""
    if place == "text":
        return {"note": f"https://bob:{SECRET}@host"}
    if isinstance(place, str):
        return {"n": 1, place: SECRET}
    kind, inner = place
    content = planted(inner)
    if kind == "set":
        return {str(content)}
    return {"list": [0, content], "dict": {"a": content, "b": 1}, "tuple": (content, None)}[kind]


@given(place=PLACES, carrier=st.sampled_from(["args", "named", "extra", "scope", "dict", "error"]))
@settings(max_examples=150, deadline=None)
def test_a_planted_secret_never_comes_out(place: Any, carrier: str) -> None:
    """However deep, and whatever brings it."""
    value = planted(place)
    handler = Records(RedactingFilter())
    logger = logging.Logger("planted")
    logger.addHandler(handler)
    if carrier == "args":
        logger.info("x %s %d", value, 1)
    elif carrier == "named":
        logger.info("x %(value)s", {"value": value})
    elif carrier == "extra":
        logger.info("x", extra={"value": value})
    elif carrier == "scope":
        with bound(value=value):
            logger.info("x")
    elif carrier == "dict":
        logger.info({"value": value})
    else:
        logger.error("x", exc_info=ValueError(value))

    assert len(handler.lines) == 3
    assert SECRET not in "".join(handler.lines)
    assert GONE in handler.lines[0]
