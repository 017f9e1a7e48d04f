"""Formatters: one record to a line for people."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Collection
from typing import Any, TextIO

from foundry_log.encoding import bounded, encode_value, to_plain, too_nested
from foundry_log.exception_data import traceback_text
from foundry_log.records import RESERVED, context_of, error_of, formatted, mended, message_of

BASE_FIELDS = (
    "experiment",
    "git_hash",
    "device",
    "rank",
    "local_rank",
    "world_size",
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
    """

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
    ) -> None:
        super().__init__(fmt, datefmt, style, validate)
        self._own_layout = fmt is None
        self._colors = colors
        self._stream = stream
        self._hide = frozenset(hide)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line or lines of `record`, without a final newline."""
        try:
            return self._lines(record)
        except Exception:  # an attribute of a type that the stdlib never gives it
            return self._lines(mended(record))

    def _lines(self, record: logging.LogRecord) -> str:
        colored = self._is_colored()
        message, behind = message_of(record)
        line = self._head(record, message, colored)
        shown = " ".join(
            f"{_name(name)}={_short(value)}"
            for name, value in to_plain(context_of(record)).items()
            if name not in self._hide
        )
        if shown:
            line += f"  {_DIM}{shown}{_RESET}" if colored else f"  {shown}"
        details = [behind or record.exc_text, record.stack_info]
        if record.exc_info and error_of(record) is not None:
            details[0] = self.formatException(record.exc_info)
        return "\n".join([line, *(_indented(_text(part)) for part in details if part)])

    def formatException(self, ei: Any) -> str:
        """Return the traceback as text."""
        try:
            return bounded(super().formatException, too_nested, ei)
        except Exception:  # an exception whose attributes raise, or groups without end
            return traceback_text(ei[1])

    def _head(self, record: logging.LogRecord, message: str, colored: bool) -> str:
        first, newline, rest = message.partition("\n")
        record.message = _safe(first) + (newline and newline + _indented(rest))
        if not self._own_layout:
            if self.usesTime():
                record.asctime = self.formatTime(record, self.datefmt)
            return self._filled_in(record)
        level = f"{_safe(_text(record.levelname)):<8}"
        if colored:
            level = f"{_color_of(record.levelno)}{level}{_RESET}"
        time = _safe(self.formatTime(record, self.datefmt))
        return f"{time} {level} {_safe(_text(record.name))}: {record.message}"

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
        if os.environ.get("NO_COLOR"):
            return False
        stream = self._stream or sys.stderr
        try:
            return bool(stream.isatty())
        except Exception:  # replaced by something simpler, or closed
            return False


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


def _color_of(level: int) -> str:
    return next((color for least, color in _LEVEL_COLORS if level >= least), _DIM)


def _text(value: Any) -> str:
    return value if type(value) is str else formatted(value, None)


def _safe(text: str) -> str:
    """Return one line of text without control characters, tabs excepted."""
    return _CONTROL.sub(_escape, text).replace("\n", "\\n")


def _escape(found: re.Match[str]) -> str:
    return found.group().encode("unicode_escape").decode()


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


def _short(plain: Any, limit: int = 60) -> str:
    """Return a plain value in few characters; text that could pass for more is in quotes."""
    if type(plain) is float:
        return f"{plain:.4g}"
    if type(plain) is str:
        plain = plain[: limit + 1]  # before the work: it may be very long
        text = plain if _WORD.fullmatch(plain) else encode_value(plain).decode()
    else:
        text = encode_value(plain).decode()
    text = _safe(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
