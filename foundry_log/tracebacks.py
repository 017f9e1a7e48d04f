"""The text of an exception as Python prints it, without making all of it anew for each record.

Most of what `traceback.format_exception` takes goes into lines of source: a `stat` of each file, a
line sought in it, that line parsed for its carets. A program raises at few places, so the stdlib
makes each frame's text once, and it is kept. What is out of the ordinary is left to the stdlib.
"""

from __future__ import annotations

import functools
import sys
import traceback
import weakref
from collections.abc import Iterator
from types import CodeType, TracebackType
from typing import Any

MAX_FRAMES = 1_000
"""Frames whose text is kept; before one more, all are let go."""

_Place = tuple[str, Any, str]  # file, line, name

# The code is known by its id as long as it lives; it may hold much, so it is not kept alive. It is
# no key itself: alike functions of two files are equal, and its hash reads all of it each time.
_kept: dict[tuple[int, int, int], tuple[weakref.ref[CodeType], _Place, str]] = {}

_ADDED_TO = (SyntaxError, ImportError, NameError, AttributeError)
"""Python adds to their text: the line and its carets, "Did you mean"."""


def format_exception(error: BaseException, frames: TracebackType | None) -> str:
    """Return `"".join(traceback.format_exception(type(error), error, frames))` of this Python.

    Character by character, with one difference: a frame shows the source that it showed the first
    time. The stdlib reads an edited file again and shows its new lines, which are not what runs. A
    frame whose source was not found is looked for again.

    What somebody has put in the place of a function of `traceback` is not asked where the text is
    assembled here. Raises what the stdlib raises. Safe from any thread.

    Args:
        error: any exception.
        frames: its traceback; None for no frames.
    """
    try:
        return _assembled(error, frames)
    except Exception:  # a form that is not assembled here, or the class's own code
        pass
    return "".join(traceback.format_exception(type(error), error, frames))


class _UnusualError(Exception):
    """Its text is the stdlib's to make, as a whole."""


def _assembled(error: BaseException, frames: TracebackType | None) -> str:
    if vars(sys).get("tracebacklimit") is not None:  # getattr makes an error to find none
        raise _UnusualError
    links = list(_links(error, frames))
    alone = len(links) == 1
    return "".join(
        [
            separator + _stack(frames) + _ending(error, frames, alone)
            for separator, error, frames in reversed(links)
        ]
    )


def _links(
    error: BaseException, frames: TracebackType | None
) -> Iterator[tuple[str, BaseException, TracebackType | None]]:
    """Yield the exception and those it came from; with each, what is printed above it."""
    seen = {id(error)}
    while True:
        separator, origin = _origin(error, seen)
        yield separator, error, frames
        if origin is None:
            return
        seen.add(id(origin))
        error, frames = origin, origin.__traceback__


def _origin(error: BaseException, seen: set[int]) -> tuple[str, BaseException | None]:
    if error:  # one whose class makes it false has no origin for Python
        cause = error.__cause__
        if cause is not None and id(cause) not in seen:
            return _separator("__cause__"), cause
        if not error.__suppress_context__:
            context = error.__context__
            if context is not None and id(context) not in seen:
                return _separator("__context__"), context
    return "", None


@functools.cache
def _separator(link: str) -> str:
    """Return what Python prints between two exceptions that `link` ties together."""
    older, newer = Exception(), Exception()
    setattr(newer, link, older)
    both = "".join(traceback.format_exception(newer))
    return both.removeprefix("Exception\n").removesuffix("Exception\n")


def _stack(frames: TracebackType | None) -> str:
    """Return the frames' text under its heading, nothing where there are none."""
    if frames is None:
        return ""
    texts = ["Traceback (most recent call last):\n"]
    frame: TracebackType | None = frames
    last = None
    while frame is not None:
        code = frame.tb_frame.f_code
        key = id(code), frame.tb_lasti, frame.tb_lineno
        known = _kept.get(key)
        if known is None or known[0]() is not code:
            known = _frame(frame, key)
        _, place, text = known
        if place == last:  # the stdlib counts repeated frames in place of printing them
            return "".join([texts[0], *traceback.format_tb(frames)])
        texts.append(text)
        last, frame = place, frame.tb_next
    return "".join(texts)


def _frame(
    frame: TracebackType, key: tuple[int, int, int]
) -> tuple[weakref.ref[CodeType], _Place, str]:
    """Return what is kept of one frame, as the stdlib prints it."""
    summaries = traceback.extract_tb(frame, limit=1)
    seen = summaries[0]
    text = "".join(summaries.format())
    entry = weakref.ref(frame.tb_frame.f_code), (seen.filename, seen.lineno, seen.name), text
    if seen.line:
        if len(_kept) >= MAX_FRAMES:
            _kept.clear()
        _kept[key] = entry
    return entry


def _ending(error: BaseException, frames: TracebackType | None, alone: bool) -> str:
    """Return the line or lines below the frames."""
    if hasattr(error, "exceptions"):  # a group, Python's or that of the package for 3.10
        raise _UnusualError
    kind = type(error)
    if issubclass(kind, _ADDED_TO) or getattr(error, "__notes__", None) is not None:
        if not alone:  # the stdlib would look at the whole chain for each of its links
            raise _UnusualError
        parts = traceback.TracebackException(kind, error, frames, limit=0, compact=True)
        return "".join(parts.format_exception_only())
    try:
        name, module, message = kind.__qualname__, kind.__module__, str(error)
    except BaseException as raised:  # the stdlib prints what stops a program as well
        raise _UnusualError from raised
    if not (type(name) is type(module) is type(message) is str):
        raise _UnusualError
    if module not in ("builtins", "__main__"):
        name = f"{module}.{name}"
    return f"{name}: {message}\n" if message else f"{name}\n"
