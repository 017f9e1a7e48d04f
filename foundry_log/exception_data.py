"""An exception as data: its type, text, notes, causes and groups, and its traceback as text."""

from __future__ import annotations

import builtins
import traceback
from types import TracebackType
from typing import Any

from foundry_log.encoding import bounded, exception_text, to_plain, too_nested, type_name
from foundry_log.tracebacks import format_exception

MAX_LINKS = 50
"""Exceptions described in one tree of causes and groups; the text of the traceback has all."""

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]

_traceback_of = BaseException.__dict__["__traceback__"].__get__
_Group: Any = getattr(builtins, "BaseExceptionGroup", ())  # Python 3.11


def exc_info_of(error: BaseException) -> ExcInfo:
    """Return what `sys.exc_info()` was when `error` was caught. Never raises."""
    # By the descriptor of BaseException: a class may have an attribute of that name that raises.
    is_exception = issubclass(type(error), BaseException)
    return type(error), error, _traceback_of(error) if is_exception else None


def traceback_text(error: BaseException) -> str:
    """Return the traceback of `error` with its causes, groups and notes, as Python prints it.

    It is that of the exception given, inside its `except` block or out of it. Never raises. Inside
    of code of a value that logs itself it is the exception alone.
    """
    return _text(error, exc_info_of(error)[2])


def formatted_exception(exc_info: ExcInfo) -> str:
    """Return the text of `logging.Formatter.formatException`: no final newline. Never raises.

    Args:
        exc_info: as `sys.exc_info()` gives it; the frames are those of its traceback, whatever the
            exception has by now.
    """
    return _text(exc_info[1], exc_info[2]).removesuffix("\n")


def _text(error: BaseException, frames: TracebackType | None) -> str:
    try:
        return bounded(format_exception, too_nested, error, frames)
    except Exception:  # a class whose attributes raise, or groups without end
        return f"{_frames_text(frames)}{type_name(error)}: {exception_text(error)}\n"


def _frames_text(frames: TracebackType | None) -> str:
    try:
        text = "".join(traceback.format_tb(frames))
    except Exception:  # the interpreter's recursion limit is near
        return ""
    return text and f"Traceback (most recent call last):\n{text}"


def exception_data(error: BaseException) -> dict[str, Any]:
    """Return `{"type", "message"}` and, where there are some, `notes`, `cause`, `context`, `group`.

    `cause` is what `raise … from` named; `context` what was being handled, unless a cause or
    `from None` hides it; `group` lists the members of an ExceptionGroup. Never raises.
    """
    return _described(error, set())


def _described(error: BaseException, seen: set[int]) -> dict[str, Any]:
    data: dict[str, Any] = {"type": type_name(error), "message": exception_text(error)}
    if id(error) not in seen and len(seen) < MAX_LINKS:
        seen.add(id(error))
        try:
            _add_relatives(error, data, seen)
        except Exception:  # a class whose attributes raise: what is known so far stands
            pass
    return data


def _add_relatives(error: BaseException, data: dict[str, Any], seen: set[int]) -> None:
    notes = getattr(error, "__notes__", None)
    if notes:
        data["notes"] = to_plain(notes)
    cause = error.__cause__
    if cause is not None:
        data["cause"] = _described(cause, seen)
    elif error.__context__ is not None and not error.__suppress_context__:
        data["context"] = _described(error.__context__, seen)
    if isinstance(error, _Group):
        data["group"] = [_described(member, seen) for member in error.exceptions]
