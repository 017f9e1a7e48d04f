"""Formatters: one record to one line of strict JSON."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pythonjsonlogger.core import RESERVED_ATTRS, BaseJsonFormatter

from foundry_log.clock import timestamp
from foundry_log.encoding import (
    encode_line,
    encode_named,
    encode_plain,
)
from foundry_log.exception_data import exception_data, formatted_exception
from foundry_log.noticing import Noticing, replaced
from foundry_log.records import (
    ENTRY,
    EXCEPTION,
    context_of,
    error_of,
    formatted,
    is_entry_plain,
    mended,
    message_of,
    parts_of,
    whole,
)

_STANDARD = frozenset(RESERVED_ATTRS)


class JsonFormatter(BaseJsonFormatter, metaclass=Noticing):
    """One line of strict JSON: `{"timestamp", "level", "logger", "message", "context"}`.

    `exception` (type, message, notes, cause, context, group, traceback) and `stack_info` are added
    where the record has them. Time stamps are RFC 3339 in UTC with microseconds. Values of any kind
    are written as `foundry_log.encoding.to_plain` says; formatting never raises.

    It is a python-json-logger formatter: that library's options keep their meaning and subclasses
    may override `add_fields`, `process_log_record` and `formatException`. The options of its single
    encoders (`json_indent` and the like) do not exist, apart from `json_default`.

    Args:
        fmt: None for the fields above. Otherwise the record's attributes to write, in order, in
            any of the styles; context and exception follow where there are some, so nothing that
            was logged is lost by a format that does not name it.
        datefmt: `strftime` format of `asctime`, in local time; None for RFC 3339 in UTC.
        style: `%`, `{`, `$`, or `,` for a comma-separated list.
        validate: whether `fmt` is checked against the style.
        context_key: the member that holds the context; None writes its fields side by side with
            the others, where a name that is taken gets an underscore behind it.
        caller: add `caller`, an object of `file`, `line` and `function`.
        json_default: asked first for objects that JSON has no form for; the context of a
            StructuredLogger is plain before it comes here.
        prefix, rename_fields, rename_fields_keep_missing, static_fields, reserved_attrs, timestamp,
            defaults, exc_info_as_array, stack_info_as_array: as in python-json-logger.
    """

    is_direct: bool
    """Whether `line` gives what `format` does for an ordinary record: the lines are the default
    ones, and nothing was assigned to the formatter since it was made."""

    def __init__(
        self,
        fmt: str | Sequence[str] | None = None,
        datefmt: str | None = None,
        style: str = "%",
        validate: bool = True,
        *,
        context_key: str | None = "context",
        caller: bool = False,
        json_default: Callable[[Any], Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(fmt, datefmt, style, validate, **options)
        self.context_key = context_key
        self.caller = caller
        self.json_default = json_default
        self._default_layout = fmt is None
        if fmt is None:  # the stdlib's default format, "%(message)s", is not what None means here
            self._required_fields = []
        self._hidden = frozenset(self.reserved_attrs) - _STANDARD
        self._shown = _STANDARD - frozenset(self.reserved_attrs) - {"message", "asctime"}
        self.is_direct = type(self) is JsonFormatter and self._writes_default_lines()

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name != "is_direct":
            object.__setattr__(self, "is_direct", False)

    def _writes_default_lines(self) -> bool:
        options = (
            self.caller,
            self.json_default,
            self.prefix,
            self.timestamp,
            self.rename_fields_keep_missing,
            self._hidden,
            self._shown,
        )
        return self._default_layout and self.context_key == "context" and not any(options)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of `record`, without a newline."""
        if self.is_direct and not replaced:
            return self.encode(record).decode()
        return self._formatted(record)

    def encode(self, record: logging.LogRecord) -> bytes:
        """Return in UTF-8 what `format` does while `is_direct` is true and nothing is replaced."""
        try:
            parts = parts_of(record)
            if parts is not None:
                return self.line(*parts)
        except Exception:  # an attribute of a type that the stdlib never gives it
            pass
        return self._formatted(record).encode("utf-8", "backslashreplace")

    def line(
        self, created: float, level: int, level_name: str, name: str, message: str, context: Any
    ) -> bytes:
        """Return the line of an ordinary record in UTF-8, from `foundry_log.records.Parts`.

        It is what `format` gives while `is_direct` is true.
        """
        if self.static_fields or self.defaults or self.rename_fields:  # filled since it was made
            parts = (created, level, level_name, name, message, context)
            return self._formatted(whole(parts)).encode("utf-8", "backslashreplace")
        return encode_named(
            {
                "timestamp": timestamp(created),
                "level": level_name,
                "logger": name,
                "message": message,
                "context": context,
            }
        )

    def _formatted(self, record: logging.LogRecord) -> str:
        try:
            return self._line(record)
        except Exception:  # an attribute of a type that the stdlib never gives it
            return self._line(mended(record))

    def _line(self, record: logging.LogRecord) -> str:
        # By its type and by dict's own method: a message may lie about its class, or raise.
        message: Any = record.msg
        given = dict.copy(message) if issubclass(type(message), dict) else {}
        log_data: dict[str, Any] = {}
        self.add_fields(log_data, record, given)
        return self.serialize_log_record(self.process_log_record(log_data))

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        """Fill `log_data` from the record; `message_dict` is a dict logged in place of text."""
        if message_dict:
            message, behind = formatted(message_dict.pop("message", ""), None), ""
        else:
            message, behind = message_of(record)
        context = self._context(record, message_dict)
        log_data.update(self._layout(record, message, context))
        log_data.update(self.static_fields)
        if self.context_key is not None and (context or self._default_layout):
            log_data[self.context_key] = context
        self._add_exception(log_data, record, behind)
        if self.context_key is None:
            for name, value in context.items():
                _add(log_data, name, value)
        for name, value in self.defaults.items():
            log_data.setdefault(name, value)
        if self.rename_fields:
            self._rename(log_data)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the record's time: RFC 3339 in UTC, or as `datefmt` says in local time."""
        return super().formatTime(record, datefmt) if datefmt else timestamp(record.created)

    def formatException(self, ei: Any) -> str | list[str]:  # type: ignore[override]
        """Return the traceback as text, or as its lines with `exc_info_as_array`."""
        if logging.Formatter.formatException is not _format_exception:  # somebody's own, for all
            return super().formatException(ei)
        text = formatted_exception(ei)
        return text.splitlines() if self.exc_info_as_array else text

    def parse(self) -> list[str]:
        """Return the names of the fields that `fmt` asks for."""
        names: list[str] = super().parse()
        if isinstance(self._style, logging.StrFormatStyle):  # `{levelname:<8}` names levelname
            names = [re.split("[!:]", name)[0] for name in names]
        return names

    def jsonify_log_record(self, log_data: Mapping[str, Any]) -> str:
        """Return the fields as one line of strict JSON."""
        return encode_line(log_data, self.json_default).decode()

    def _context(self, record: logging.LogRecord, given: dict[str, Any]) -> dict[str, Any]:
        context = context_of(record)
        for name in self._hidden:
            context.pop(name, None)
        context.update(given)
        for name in self._shown:
            if name in record.__dict__:
                context[name] = record.__dict__[name]
        return context

    def _layout(
        self, record: logging.LogRecord, message: str, context: dict[str, Any]
    ) -> dict[str, Any]:
        fields: dict[str, Any]
        if self._default_layout:
            fields = {
                self._timestamp_key(): timestamp(record.created),
                "level": record.levelname,
                "logger": record.name,
                "message": message,
            }
        else:
            fields = self._named_fields(record, message, context)
        if self.caller:
            fields["caller"] = {
                "file": record.pathname,
                "line": record.lineno,
                "function": record.funcName,
            }
        return fields

    def _named_fields(
        self, record: logging.LogRecord, message: str, context: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the fields that `fmt` names, and take those that are context out of it."""
        known = {**record.__dict__, "message": message}
        if "asctime" in self._required_fields:
            known["asctime"] = self.formatTime(record, self.datefmt)
        if "exc_info" in self._required_fields and error_of(record) is not None:
            known["exc_info"] = self.formatException(record.exc_info)
        fields = {}
        for name in self._required_fields:
            if name in context:
                fields[name] = context.pop(name)
            else:
                fields[name] = known.get(name, self.defaults.get(name))
        if self.timestamp:
            fields[self._timestamp_key()] = timestamp(record.created)
        return fields

    def _timestamp_key(self) -> str:
        return self.timestamp if isinstance(self.timestamp, str) else "timestamp"

    def _add_exception(
        self, log_data: dict[str, Any], record: logging.LogRecord, behind: str
    ) -> None:
        known = record.__dict__.get(EXCEPTION)
        error = error_of(record) if record.exc_info else None
        if type(known) is dict:
            text: Any = known.get("traceback")
            if self.exc_info_as_array and type(text) is str:
                text = text.splitlines()
            log_data["exception"] = {**known, "traceback": text}
        elif error is not None and record.exc_info is not None:
            text = self.formatException(record.exc_info)
            log_data["exception"] = {**exception_data(error), "traceback": text}
        elif record.exc_text or behind:
            text = record.exc_text or behind
            log_data["exception"] = {
                "traceback": text.splitlines() if self.exc_info_as_array else text
            }
        if record.stack_info:
            log_data["stack_info"] = self.formatStack(record.stack_info)

    def _rename(self, log_data: dict[str, Any]) -> None:
        renamed: dict[str, Any] = {}
        for name, value in log_data.items():
            _add(renamed, self._get_rename(name), value)
        if self.rename_fields_keep_missing:
            for name in self.rename_fields.values():
                renamed.setdefault(name, None)
        log_data.clear()
        log_data.update(renamed)


def _add(fields: dict[str, Any], name: str, value: Any) -> None:
    """Add a field, under a name with underscores behind it where its own is taken."""
    while name in fields:
        name = f"{name}_"
    fields[name] = value


_format_exception = logging.Formatter.formatException


def entry_line(created: float, entry: dict[str, Any]) -> bytes:
    """Return the line of a plain entry, in UTF-8 and without a newline."""
    return encode_plain({"timestamp": timestamp(created), **entry})


class EntryFormatter(logging.Formatter):
    """The line of a record that carries an entry: `{"timestamp", …the entry's fields}`.

    This is what `metrics.jsonl` and `errors.jsonl` hold.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the entry with the record's time stamp, without a newline."""
        head: dict[str, Any] = {"timestamp": timestamp(record.created)}
        entry: Any = record.__dict__.get(ENTRY)
        try:
            if is_entry_plain(record):
                return entry_line(record.created, entry).decode()
            return encode_line({**head, **entry}).decode()
        except Exception:  # no entry, or no mapping
            fields = {**head, "message": message_of(mended(record))[0], "entry": entry}
            return encode_line(fields).decode()
