"""Formatters: one record to a line for people."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import time
from collections.abc import Collection
from typing import Any, TextIO

from foundry_log.encoding import bounded, encode_value, to_plain, too_nested
from foundry_log.exception_data import formatted_exception, traceback_text
from foundry_log.records import RESERVED, context_of, error_of, formatted, mended, message_of

BASE_FIELDS = (
    "experiment",
    "git_hash",
    "device",
    "rank",
    "local_rank",
    "world_size",
    "node",
    "host",
)
"""Context that is the same in every record of a run, which people need not read on each line."""

# Controls, line separators, what turns the direction of text, and what is not seen at all; the two
# joiners U+200C and U+200D are letters' business, in Persian, Hindi and emoji.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e"
    r"\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)
_WORD = re.compile(r'[^\s"=]+')
_LONG = 60  # characters of a value that are shown
_MAX_KEPT = 1_000
_RESET = "\x1b[0m"
_DIM = "\x1b[2m"
_LEVEL_COLORS = (  # from this level on
    (logging.CRITICAL, "\x1b[1;37;41m"),
    (logging.ERROR, "\x1b[31m"),
    (logging.WARNING, "\x1b[33m"),
    (logging.INFO, "\x1b[32m"),
)


class ConsoleFormatter(logging.Formatter):
    """A line for people: time, level, logger, message, then the short context as `key=value`.

    Tracebacks follow, indented. Control characters are shown as escapes and further lines of a
    message are indented, so that no message can colour, erase or forge a line.

    Args:
        fmt: a format of the stdlib's in place of time, level, logger and message; None for those.
        datefmt: `strftime` format of the time, in local time.
        style: of `fmt`: `%`, `{` or `$`.
        colors: True, False, or None for: where `stream` is a terminal and NO_COLOR is not set.
        stream: whose terminal counts; None for standard error.
        hide: context that is not shown, by default what is the same on every line of a run.
        prefix: put before each record, such as `[rank 1] ` with its blank.
    """

    _is_untouched: bool
    _memory: _Memory

    def __init__(
        self,
        fmt: str | None = None,
        datefmt: str | None = "%H:%M:%S",
        style: Any = "%",
        validate: bool = True,
        *,
        colors: bool | None = None,
        stream: TextIO | None = None,
        hide: Collection[str] = BASE_FIELDS,
        prefix: str = "",
    ) -> None:
        super().__init__(fmt, datefmt, style, validate)
        self._own_layout = fmt is None
        self._colors = colors
        self._stream = stream
        self._hide = frozenset(hide)
        self._prefix = _safe(prefix)
        is_ours = type(self) in (ConsoleFormatter, PlainFormatter)
        self.__dict__["_is_untouched"] = is_ours and fmt is None and bool(datefmt)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set the attribute; from then on every hook is called, and nothing made before counts."""
        super().__setattr__(name, value)
        self.__dict__.update(_is_untouched=False, _memory=_Memory())

    @property
    def is_direct(self) -> bool:
        """Whether `line` is all that `format` does for a record without exception and stack.

        It is unless there is a format, or no `datefmt`, or a subclass, or something that was
        assigned to the formatter or put over the methods of its class.
        """
        kind = type(self)
        return self._is_untouched and kind.format is _FORMAT and kind.formatTime is _FORMAT_TIME

    def format(self, record: logging.LogRecord) -> str:
        """Return the line or lines of `record`, without a final newline."""
        try:
            return self._lines(record)
        except Exception:  # an attribute of a type that the stdlib never gives it
            return self._lines(mended(record))

    def line(
        self,
        created: float,
        level: int,
        level_name: str,
        name: str,
        message: str,
        context: dict[str, Any],
    ) -> str:
        """Return what `format` does for a record of these parts, where `is_direct`.

        Args:
            created: seconds since the epoch.
            level: such as `logging.INFO`.
            level_name: such as `INFO`.
            name: of the logger.
            message: finished text.
            context: plain, as `to_plain` returns it.

        Raises:
            ValueError, OverflowError, OSError: `created` is no time that the platform knows.
        """
        return self._own_line(self._time(created), level, level_name, name, message, context)

    def _lines(self, record: logging.LogRecord) -> str:
        message, behind = message_of(record)
        context = to_plain(context_of(record))
        if self._own_layout:
            record.message = message
            line = self._own_line(
                self._time_of(record),
                record.levelno,
                _text(record.levelname),
                _text(record.name),
                message,
                context,
            )
        else:
            record.message = _safe_lines(message)
            if self.usesTime():
                record.asctime = self.formatTime(record, self.datefmt)
            tail = self._tail(context, self._is_colored())
            line = f"{self._prefix}{self._filled_in(record)}{tail}"
        if behind or record.exc_info or record.exc_text or record.stack_info:
            line += self._details(record, behind)
        return line

    def _details(self, record: logging.LogRecord, behind: str) -> str:
        """Return the lines of exception and stack, each with a newline before it."""
        details = [behind or record.exc_text, record.stack_info]
        if record.exc_info and error_of(record) is not None:
            details[0] = self.formatException(record.exc_info)
        return "".join(f"\n{_indented(_text(part))}" for part in details if part)

    def _own_line(
        self,
        time_text: str,
        level: int,
        level_name: str,
        name: str,
        message: str,
        context: dict[str, Any],
    ) -> str:
        colored = self._is_colored()
        # One look at all of them: what is printable holds no control character and no newline.
        if not f"{level_name}{name}{message}".isprintable():
            level_name, name, message = _safe(level_name), _safe(name), _safe_lines(message)
        level_name = level_name.ljust(8)
        if colored:
            level_name = f"{_color_of(level)}{level_name}{_RESET}"
        tail = self._tail(context, colored)
        return f"{self._prefix}{time_text} {level_name} {name}: {message}{tail}"

    def _tail(self, context: dict[str, Any], colored: bool) -> str:
        starts = self._memory.starts
        fields = []
        for name, value in context.items():
            start = starts.get(name)
            if start is None:
                start = self._start_of(name)
            if start:
                fields.append(start + _short(value))
        if not fields:
            return ""
        return f"  {_DIM}{' '.join(fields)}{_RESET}" if colored else f"  {' '.join(fields)}"

    def _start_of(self, name: str) -> str:
        """Return a field's name with the sign behind it, empty for one that is hidden."""
        start = "" if name in self._hide else f"{_name(name)}="
        _keep(self._memory.starts, name, start)
        return start

    def _time_of(self, record: logging.LogRecord) -> str:
        if self.is_direct and type(record.created) is float:
            return self._time(record.created)
        return _safe(self.formatTime(record, self.datefmt))

    def _time(self, created: float) -> str:
        start, converter, zone, text = self._memory.second
        if start <= created < start + 1 and converter is self.converter and zone is time.tzname:
            return text
        return self._time_anew(created)

    def _time_anew(self, created: float) -> str:
        """Return what `formatTime` does, and keep it where that is the same for the whole second.

        It is with the stdlib's converters, until `time.tzset` makes a new `tzname`.
        """
        converter, zone = self.converter, time.tzname
        text = _safe(time.strftime(self.datefmt or "", converter(created)))
        if converter is time.localtime or converter is time.gmtime:
            self._memory.second = (created // 1, converter, zone, text)
        return text

    def formatException(self, ei: Any) -> str:
        """Return the traceback as text."""
        if _is_stdlibs(super().formatException):
            return formatted_exception(ei)
        try:
            return bounded(super().formatException, too_nested, ei)
        except Exception:  # somebody's own, in the stdlib's place
            return traceback_text(ei[1])

    def _filled_in(self, record: logging.LogRecord) -> str:
        """Return what `fmt` makes of the record, each line but its first indented."""
        looks_inside = isinstance(self._style, logging.StrFormatStyle)  # `{user.name}`
        text = self.formatMessage(_without_controls(record, self._fmt or "", looks_inside))
        if looks_inside:  # what such an object shows may hold controls, and so may the format
            text = _CONTROL.sub(lambda found: self._unless_in_format(found), text)
        first, *rest = text.split("\n")
        return "\n".join([first, *(f"    {line.removeprefix('    ')}" for line in rest)])

    def _unless_in_format(self, found: re.Match[str]) -> str:
        return found.group() if found.group() in (self._fmt or "") else _escape(found)

    def _is_colored(self) -> bool:
        if self._colors is not None:
            return self._colors
        stream = sys.stderr if self._stream is None else self._stream
        # A file may be put in a terminal's place under the same stream, so only the no is kept.
        if stream is self._memory.colorless:
            return False
        try:
            if stream.isatty():
                return not os.environ.get("NO_COLOR")
        except Exception:
            pass  # replaced by something simpler, or closed
        self._memory.colorless = stream
        return False


class _Memory:
    """What a formatter has made before; it comes out the same until something is assigned to it."""

    __slots__ = ("colorless", "second", "starts")

    def __init__(self) -> None:
        self.second: tuple[float, Any, Any, str] = (math.inf, None, None, "")
        self.starts: dict[str, str] = {}
        self.colorless: TextIO | None = None

    def __reduce__(self) -> Any:
        return _Memory, ()  # so that a formatter can be copied and sent to another process


class PlainFormatter(ConsoleFormatter):
    """The lines of ConsoleFormatter for a file: with the date, never with colours."""

    def __init__(
        self,
        fmt: str | None = None,
        datefmt: str | None = "%Y-%m-%d %H:%M:%S",
        style: Any = "%",
        validate: bool = True,
        *,
        hide: Collection[str] = BASE_FIELDS,
    ) -> None:
        super().__init__(fmt, datefmt, style, validate, colors=False, hide=hide)


def _is_stdlibs(method: Any) -> bool:
    """Whether nobody has put a method of another file in the place of this one of `logging`."""
    code = getattr(method, "__code__", None)
    return code is not None and code.co_filename == logging.addLevelName.__code__.co_filename


_FORMAT = ConsoleFormatter.format
_FORMAT_TIME = logging.Formatter.formatTime if _is_stdlibs(logging.Formatter.formatTime) else None


def _color_of(level: int) -> str:
    return next((color for least, color in _LEVEL_COLORS if level >= least), _DIM)


def _text(value: Any) -> str:
    return value if type(value) is str else formatted(value, None)


def _safe(text: str) -> str:
    """Return one line of text without control characters, tabs excepted."""
    return _CONTROL.sub(_escape, text).replace("\n", "\\n")


def _escape(found: re.Match[str]) -> str:
    return found.group().encode("unicode_escape").decode()


def _safe_lines(message: str) -> str:
    """Return a message as `_safe` does, with its lines but the first indented."""
    first, newline, rest = message.partition("\n")
    return _safe(first) + (newline and newline + _indented(rest))


def _indented(text: str) -> str:
    return "\n".join("    " + _safe(line) for line in text.rstrip("\n").split("\n"))


def _without_controls(record: logging.LogRecord, fmt: str, looks_inside: bool) -> logging.LogRecord:
    """Return a copy of the record that shows safe text; its message does already.

    Other objects become text where `fmt` may name them, unless it looks inside of them.
    """
    safe = logging.LogRecord.__new__(logging.LogRecord)  # a class of somebody's may not copy
    safe.__dict__.update(record.__dict__)
    for name, value in record.__dict__.items():
        kind = type(value)
        if kind in _NUMBERS or name == "message":
            continue
        if issubclass(kind, str) or (
            type(name) is str and name in fmt and not (looks_inside and name not in RESERVED)
        ):
            safe.__dict__[name] = _safe(_text(value))
    return safe


_NUMBERS = frozenset({int, float, bool, type(None)})


def _name(name: str) -> str:
    """Return the name of a field; one that could pass for more is in quotes."""
    return _safe(name if _WORD.fullmatch(name) else encode_value(name).decode())


def _short(plain: Any) -> str:
    """Return a plain value in few characters; text that could pass for more is in quotes."""
    kind = type(plain)
    if kind is float:
        return f"{plain:.4g}"
    if kind is int and -(10**18) < plain < 10**18:
        return str(plain)
    if kind is str and len(plain) <= _LONG:  # texts of a few letters are logged again and again
        text = _shown_texts.get(plain)
        if text is None:
            text = _cut(plain)
            _keep(_shown_texts, plain, text)
        return text
    if kind is bool or plain is None:
        return _CONSTANTS[plain]
    return _cut(plain)


def _cut(plain: Any) -> str:
    if type(plain) is str:
        plain = plain[: _LONG + 1]  # before the work: it may be very long
        text = plain if _WORD.fullmatch(plain) else encode_value(plain).decode()
    else:
        text = encode_value(plain).decode()
    text = _safe(text)
    return text if len(text) <= _LONG else text[: _LONG - 1] + "…"


_CONSTANTS = {True: "true", False: "false", None: "null"}
_shown_texts: dict[str, str] = {}


def _keep(texts: dict[str, str], given: str, made: str) -> None:
    """Keep what was made of a text, in bounds; safe from any thread, for nothing counts on it."""
    if len(given) <= _LONG:
        if len(texts) >= _MAX_KEPT:
            texts.clear()
        texts[given] = made
