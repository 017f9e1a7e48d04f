"""The short way of a record: to handlers of this package, with no LogRecord made in between.

Making a LogRecord and carrying it down the logger tree costs more than writing its line. What our
own handlers need of an ordinary record is six parts (`foundry_log.records.Parts`), so they can be
handed these. Nobody may miss the record: before each one everybody who would get to see it is
looked at, and the short way is taken only where they are all known. A filter, formatter or handler
of somebody else's, a subclass, a record factory, a method that was replaced on a logger, a handler
or on `logging.Logger` itself (as tracers do): each gets an ordinary, complete record.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from foundry_log.encoding import to_plain
from foundry_log.filters import ContextFilter
from foundry_log.handlers.losses import CountsLosses
from foundry_log.records import Parts

_SOURCE = logging.Logger.__init__.__code__.co_filename
_ROOT = len(logging.RootLogger(0).__dict__)
_ATTRIBUTES = {logging.RootLogger: _ROOT, logging.Logger: _ROOT + 1}  # which has its `manager`
"""Number of attributes of a logger on which nobody has put a method, or anything else."""


class TakesParts(CountsLosses):
    """A handler that writes an ordinary record without seeing one."""

    is_direct = False
    """Whether this is one of the package's own classes, and none of its methods was replaced."""

    default_formatter: logging.Formatter | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name == "terminator" or callable(getattr(type(self), name, None)):
            object.__setattr__(self, "is_direct", False)

    def takes_parts(self) -> bool:
        """Return whether `take` does all that `handle` would: no filter or formatter needs more."""
        formatter = self.formatter or self.default_formatter
        return (
            self.is_direct
            and getattr(formatter, "is_direct", False)
            and (not self.filters or all(map(_adds_fields_only, self.filters)))
        )

    def take(self, parts: Parts) -> None:
        """Write the line of the record that has these parts; what goes wrong is counted."""
        raise NotImplementedError


def _adds_fields_only(each: Any) -> bool:
    return type(each) is ContextFilter and each.is_direct


def with_fields(parts: Parts, filters: Any) -> Parts:
    """Return the parts with the fields that context filters put below their context."""
    *head, context = parts
    for each in filters:
        context = {**each.fields, **context}
    return (*head, context)  # type: ignore[return-value]


def takers(logger: Any, level: int) -> list[TakesParts]:
    """Return whom a record of `logger` reaches; empty where nobody listens or one needs a record.

    That the logger is enabled for the level is for the caller to know.
    """
    found: list[TakesParts] = []
    if logger.filters or not _is_stock(logger):
        return found
    node: Any = logger
    while node is not None:
        for handler in node.handlers:
            if level >= handler.level:
                if not (isinstance(handler, TakesParts) and handler.takes_parts()):
                    return []
                found.append(handler)
        node = node.parent if node.propagate else None
    return found


def log_directly(logger: Any, level: int, message: str, context: Mapping[str, Any]) -> bool:
    """Log an ordinary record the short way, or return False where somebody needs a record.

    Args:
        logger: enabled for `level`.
        level: of the record.
        message: finished text.
        context: any values under string keys, reduced to plain ones here.
    """
    reached = takers(logger, level)
    if not reached:
        return False
    name = logging.getLevelName(level)
    parts = (time.time(), level, name, logger.name, message, to_plain(context))
    for handler in reached:
        handler.take(parts)
    return True


def _is_stock(logger: logging.Logger) -> bool:
    """Whether records would go the standard library's way, with nobody's code on it."""
    kind = type(logger)
    return (
        len(logger.__dict__) == _ATTRIBUTES.get(kind)
        and kind._log is _log
        and kind.makeRecord is _make_record
        and kind.handle is _handle
        and kind.callHandlers is _call_handlers
        and logging._logRecordFactory is logging.LogRecord  # type: ignore[attr-defined]
    )


def _stock(name: str) -> Any:
    """Return a method of the stdlib's Logger; something else where it was replaced before us."""
    method = getattr(logging.Logger, name)
    code = getattr(method, "__code__", None)
    return method if getattr(code, "co_filename", "") == _SOURCE else object()


_log, _make_record = _stock("_log"), _stock("makeRecord")
_handle, _call_handlers = _stock("handle"), _stock("callHandlers")
