"""What this package puts on a `LogRecord`, and how it is read back.

A structured record's `msg` is text: the JSON of `{"message", "context"}`, so that any formatter of
anybody shows it. What *our* formatters read is not that text but three attributes, because text can
be written by anyone: parsing it would let `logger.info(user_input)` forge context.

    foundry_message   str, the message alone
    foundry_context   dict of plain JSON values: adapter, scope and call merged
    foundry_text      the text `msg` was given; while `msg` is still that, the two above count

A record of `metrics.jsonl` or `errors.jsonl` has `foundry_entry`, the dict of its line. One that
was detached from its caller has `foundry_exception`, its exception as data, instead of `exc_info`.

Attributes are plain data, so records pickle and copy like any other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from pythonjsonlogger.core import RESERVED_ATTRS

from foundry_log.context import bound_fields
from foundry_log.encoding import bounded, encode_plain, encode_value, to_plain, too_nested
from foundry_log.exception_data import exc_info_of, exception_data, traceback_text

MESSAGE = "foundry_message"
CONTEXT = "foundry_context"
TEXT = "foundry_text"
ENTRY = "foundry_entry"
EXCEPTION = "foundry_exception"
KEPT = "_foundry_kept"
"""Marks a record that no queue drops."""

_PLAIN_ENTRY = "_foundry_plain_entry"

Parts = tuple[float, int, str, str, str, dict[str, Any]]
"""What the short way of `foundry_log.handlers.direct` takes in place of a record: its `created`,
`levelno`, `levelname`, `name`, its finished message and its plain context."""

_STANDARD = list(logging.LogRecord("", 0, "", 0, "", None, None).__dict__)
_get_message = logging.LogRecord.getMessage

RESERVED = frozenset({*RESERVED_ATTRS, "taskName", MESSAGE, CONTEXT, TEXT, ENTRY, EXCEPTION})
"""Attributes of a record that are not context: the stdlib's and ours."""


def structured(message: str, context: Mapping[str, Any], as_json: bool = True) -> dict[str, Any]:
    """Return the `extra` that makes a record structured; its text is under `TEXT`.

    Args:
        message: finished text.
        context: any values under string keys; reduced to plain ones here, once.
        as_json: False leaves the text the bare message.
    """
    plain = to_plain(context)
    text = message
    if as_json:
        text = encode_plain({"message": message, "context": plain}).decode()
    return {MESSAGE: message, CONTEXT: plain, TEXT: text}


def entry_record(name: str, level: int, message: str, entry: dict[str, Any]) -> logging.LogRecord:
    """Return a complete record, made by the process's record factory, that carries `entry`.

    The entry is plain, as `to_plain` returns it.
    """
    record = logging.getLogRecordFactory()(name, level, "", 0, message, (), None)
    record.__dict__.update({ENTRY: entry, _PLAIN_ENTRY: entry})
    return record


def whole(record: logging.LogRecord | Parts) -> logging.LogRecord:
    """Return the record, or the one that has these parts; it names no line of code."""
    if isinstance(record, logging.LogRecord):
        return record
    created, level, level_name, name, message, context = record
    made = logging.LogRecord(name, level, "(unknown file)", 0, message, None, None)
    made.__dict__.update({MESSAGE: message, CONTEXT: context, TEXT: message})
    made.levelname = level_name
    made.created = created
    made.msecs = (created - int(created)) * 1000
    return made


def has_plain_message(record: logging.LogRecord) -> bool:
    """Whether the record's `getMessage` is the stdlib's, for its class and for itself."""
    return record.getMessage.__func__ is _get_message  # type: ignore[attr-defined]


def parts_of(record: logging.LogRecord) -> Parts | None:
    """Return the parts of an ordinary record, of text and context; None for any other.

    Raises:
        Exception: an attribute has a type that the stdlib never gives it.
    """
    fields = record.__dict__
    message, level_name, name = fields["msg"], fields["levelname"], fields["name"]
    if fields["exc_info"] or fields["exc_text"] or fields["stack_info"]:
        return None
    if EXCEPTION in fields or KEPT in fields:
        return None
    if type(message) is not str or type(level_name) is not str or type(name) is not str:
        return None
    if fields["args"] or TEXT in fields or not has_plain_message(record):
        message, behind = message_of(record)
        if behind:
            return None
    context = to_plain(context_of(record), is_fresh=True)
    return fields["created"], fields["levelno"], level_name, name, message, context


def is_entry_plain(record: logging.LogRecord) -> bool:
    """Whether the record's entry is still the plain one that it was made with."""
    fields = record.__dict__
    return fields.get(_PLAIN_ENTRY) is fields[ENTRY]


def checked_logger(logger: Any) -> None:
    """Refuse what is neither a logger nor an adapter.

    Raises:
        TypeError: with what to pass instead.
    """
    if not callable(getattr(logger, "log", None)):
        raise TypeError(
            f"logger={logger!r} is no logger; pass logging.getLogger({str(logger)!r}) or a "
            "StructuredLogger"
        )


def message_of(record: logging.LogRecord) -> tuple[str, str]:
    """Return the message of any record, and text that a `QueueHandler` has put behind it.

    `QueueHandler.prepare` appends the traceback and the stack to the text and takes them off the
    record; behind a structured message they are found again. A `msg` that somebody replaced, a
    redacting filter for one, counts as it stands. Never raises: arguments that do not fit the
    format are shown behind it.
    """
    text, message = record.__dict__.get(TEXT), record.__dict__.get(MESSAGE)
    if type(text) is str and type(message) is str and type(record.msg) is str:
        if record.msg == text:
            return message, ""
        if record.msg.startswith(text + "\n"):
            return message, record.msg[len(text) + 1 :]
    try:
        # By its own method: a record class of somebody's own may format otherwise.
        return str.__str__(record.getMessage()), ""
    except Exception:  # not by `formatted`: a `__str__` that logs would double at every level
        return _side_by_side(record.msg, record.args), ""


def formatted(message: object, arguments: Any) -> str:
    """Return `message % arguments` as the stdlib does, and both side by side where they clash.

    Never raises; bounded where a `__str__` logs its own object.
    """
    if type(message) is str and type(arguments) is tuple and not arguments:
        return message
    try:
        return bounded(_percent, too_nested, message, arguments)
    except Exception:
        return _side_by_side(message, arguments)


def unpacked(args: Any) -> Any:
    """Return the arguments as the stdlib's LogRecord takes them: one mapping is named values."""
    try:
        return args[0] if len(args) == 1 and isinstance(args[0], Mapping) and args[0] else args
    except Exception:  # an argument that raises when it is merely looked at
        return args


def _percent(message: object, arguments: Any) -> str:
    return str.__str__(str(message) % arguments if arguments else str(message))


def _side_by_side(message: object, arguments: Any) -> str:
    shown = message if type(message) is str else encode_value(message).decode()
    if arguments is None or (type(arguments) is tuple and not arguments):
        return shown
    return f"{shown} {encode_value(arguments).decode()}"


def context_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the context of any record: what was bound, and above it what the call gave.

    For a record of a plain logger the call's fields are the attributes that `extra` (or a filter)
    set, and the scopes are those around the caller of this function, unless a `ContextFilter` has
    kept them on the record before it travelled to another thread.
    """
    attributes = record.__dict__
    known = attributes.get(CONTEXT)
    context = dict(known if type(known) is dict else bound_fields())
    names = list(attributes)
    # A LogRecord begins with the attributes of its constructor, and usually none is taken away.
    if names[: len(_STANDARD)] == _STANDARD:
        del names[: len(_STANDARD)]
    for name in names:
        if name not in RESERVED and (type(name) is not str or name[:1] != "_"):
            context[name] = attributes[name]
    if known is not None and type(known) is not dict:  # an `extra` that took our name
        context[CONTEXT] = known
    return context


def exception_of(record: logging.LogRecord) -> dict[str, Any] | None:
    """Return the record's exception as data with its `traceback` as text, None without one."""
    known = record.__dict__.get(EXCEPTION)
    if type(known) is dict:
        return known
    error = error_of(record)
    if error is None:
        return None
    return {**exception_data(error), "traceback": traceback_text(error).rstrip("\n")}


def error_of(record: logging.LogRecord) -> BaseException | None:
    """Return the record's exception; None where it has none, whatever a filter put there."""
    exc_info: Any = record.exc_info
    if not issubclass(type(exc_info), tuple) or tuple.__len__(exc_info) != 3:
        return None
    error = tuple.__getitem__(exc_info, 1)
    return error if issubclass(type(error), BaseException) else None


def detached(record: logging.LogRecord) -> logging.LogRecord:
    """Return a copy that nothing the caller does later can change, for another thread to handle.

    The message is finished text, context and other attributes are plain values, the scopes around
    the caller are kept in the context, and the exception is data and text: its frames, and what
    hangs on them, are let go. Never raises.
    """
    try:
        return _detached(record)
    except Exception:  # an attribute of a type that the stdlib never gives it
        return _detached(mended(record))


def _detached(record: logging.LogRecord) -> logging.LogRecord:
    copy = logging.LogRecord.__new__(logging.LogRecord)  # a class of somebody's would format again
    fields = copy.__dict__
    fields.update(record.__dict__)
    fields.pop(_PLAIN_ENTRY, None)  # who formats the copy looks at its entry again
    if type(record.msg) is not str or record.args or type(record) is not logging.LogRecord:
        fields["msg"], fields["args"] = message_of(record)[0], None
        fields.pop(TEXT, None)  # the two attributes of the message count with it alone
    known = fields.get(CONTEXT)
    if known is None:
        fields[CONTEXT] = to_plain(dict(bound_fields()))
    elif type(known) is not dict:  # an `extra` that took our name
        fields[CONTEXT] = to_plain({**bound_fields(), CONTEXT: known})
    if not RESERVED.issuperset(fields):
        for name, value in fields.items():
            if name not in RESERVED:
                fields[name] = to_plain(value)
    if record.exc_info:
        _keep_exception(record, fields)
    return copy


def _keep_exception(record: logging.LogRecord, fields: dict[str, Any]) -> None:
    data = exception_of(record)
    fields["exc_info"] = None
    if data is not None:
        fields[EXCEPTION] = data
        fields["exc_text"] = record.exc_text or data["traceback"]


_TEXTS = (
    "name",
    "levelname",
    "pathname",
    "filename",
    "module",
    "funcName",
    "threadName",
    "processName",
    "exc_text",
    "stack_info",
)
_NUMBERS = ("levelno", "lineno", "msecs", "relativeCreated", "thread", "process")
_YEAR_10000 = 253_402_300_800


def mended(record: logging.LogRecord) -> logging.LogRecord:
    """Return a copy whose attributes have the types that the stdlib gives them, whoever broke them.

    What should be text becomes it, what should be a number and is none becomes 0, an impossible
    time now; garbage for an exception is dropped. The message is finished text, all else plain.
    """
    copy = logging.LogRecord.__new__(logging.LogRecord)
    given = list(record.__dict__.items())
    fields = copy.__dict__
    fields.update((name, value) for name, value in given if type(name) is str)
    fields.update(to_plain({name: value for name, value in given if _is_context(name)}))
    for name in _TEXTS:
        value = fields.get(name)
        fields[name] = value if value is None or type(value) is str else formatted(value, None)
    for name in _NUMBERS:
        fields[name] = fields[name] if _is_number(fields.get(name)) else 0
    if not _is_number(fields.get("created")) or not 0 <= fields["created"] < _YEAR_10000:
        fields["created"] = time.time()
    fields.setdefault("msg", "")
    fields.setdefault("args", None)
    fields.setdefault("exc_info", None)
    _finish_message(record, fields)
    error = error_of(copy)
    fields["exc_info"] = None if error is None else exc_info_of(error)
    return copy


def _is_context(name: Any) -> bool:
    return type(name) is not str or name not in RESERVED


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -1e18 < value < 1e18  # neither NaN nor unprintable


def _finish_message(record: logging.LogRecord, fields: dict[str, Any]) -> None:
    if issubclass(type(fields["msg"]), dict):
        fields["msg"] = to_plain(fields["msg"])
        return
    if "msg" in record.__dict__ and "args" in record.__dict__:
        fields["msg"], behind = message_of(record)
        fields["exc_text"] = fields["exc_text"] or behind or None
    else:
        fields["msg"] = formatted(fields["msg"], None)
    fields["args"] = None
    fields.pop(TEXT, None)  # the two attributes of the message count with it alone
