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
import sys
import time
from collections.abc import Mapping
from typing import Any

from foundry_log.context import bound_fields
from foundry_log.encoding import to_plain
from foundry_log.handlers.losses import CountsLosses
from foundry_log.records import RESERVED, Parts, formatted, parts_of, unpacked, whole

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

    def handle(self, record: logging.LogRecord) -> Any:
        """Filter and emit the record; an ordinary one goes the short way from here."""
        # An argument's `__str__` may log, which `super` has under control.
        if not record.args and self.takes_parts():
            try:
                for each in self.filters:  # they leave their fields to the handlers that come after
                    each.filter(record)  # type: ignore[union-attr]
                parts = parts_of(record)
            except Exception:  # an attribute of a type that the stdlib never gives it
                parts = None
            if parts is not None:
                self.emit_parts(parts)
                return True
        return super().handle(record)

    def takes_parts(self) -> bool:
        """Return whether the parts of a record will do: no filter or formatter needs more."""
        formatter = self.formatter or self.default_formatter
        return (
            self.is_direct
            and getattr(formatter, "is_direct", False)
            and (not self.filters or all(map(adds_fields_only, self.filters)))
        )

    def handle_parts(self, parts: Parts) -> bool:
        """Do what `handle` does with the record that has these parts; return whether it is done."""
        return self.emit_parts(with_fields(parts, self.filters) if self.filters else parts)

    def emit_parts(self, parts: Parts) -> bool:
        """Do what `emit` does with the record that has these parts; return whether it is done."""
        formatter: Any = self.formatter or self.default_formatter
        try:
            line = formatter.line(*parts)
        except Exception:  # something was changed meanwhile: the long way knows what to do
            self.emit(whole(parts))
            return False
        return self.write_parts(line, parts)

    def write_parts(self, line: str | bytes, parts: Parts) -> bool:
        """Write a line, in UTF-8 where it is bytes, without a newline; return whether it is done.

        What goes wrong is counted.
        """
        raise NotImplementedError


def adds_fields_only(each: Any) -> bool:
    """Return whether all that a filter does is to put its `fields` below a record's context."""
    return isinstance(each, logging.Filter) and getattr(each, "is_direct", False)


def with_fields(parts: Parts, filters: Any) -> Parts:
    """Return the parts with the fields that direct filters put below their context."""
    for each in filters:
        if each.fields:
            *head, context = parts
            parts = (*head, {**each.fields, **context})  # type: ignore[assignment]
    return parts


def takers(logger: Any, level: int) -> list[TakesParts]:
    """Return whom a record of `logger` reaches; empty where nobody listens or one needs a record.

    That the logger is enabled for the level is for the caller to know.
    """
    found: list[TakesParts] = []
    kind = type(logger)
    if (
        logger.filters
        or len(logger.__dict__) != _ATTRIBUTES.get(kind)
        or (kind.makeRecord, kind.handle, kind.callHandlers, kind._log) not in _STOCK
        or logging._logRecordFactory is not logging.LogRecord  # type: ignore[attr-defined]
    ):
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


def hand_over(
    reached: list[TakesParts],
    logger: logging.Logger,
    level: int,
    message: str,
    context: dict[str, Any],
) -> None:
    """Have an ordinary record written by those whom it reaches.

    Args:
        reached: as `takers` has found them, this moment.
        logger: whose record it is.
        level: of the record.
        message: finished text.
        context: a fresh dict of any values, reduced to plain ones here.
    """
    plain = to_plain(context, is_fresh=True)
    parts = (time.time(), level, logging.getLevelName(level), logger.name, message, plain)
    for handler in reached:
        handler.handle_parts(parts)


def _stock(name: str) -> Any:
    """Return a method of the stdlib's Logger; something else where it was replaced before us."""
    method = getattr(logging.Logger, name)
    code = getattr(method, "__code__", None)
    return method if getattr(code, "co_filename", "") == _SOURCE else object()


_log = _stock("_log")
_METHODS = (_stock("makeRecord"), _stock("handle"), _stock("callHandlers"))


# --- plain loggers, where the user asks for it ----------------------------------------------------


def fast_log(
    self: logging.Logger,
    level: int,
    msg: object,
    args: Any,
    exc_info: Any = None,
    extra: Mapping[str, object] | None = None,
    stack_info: bool = False,
    stacklevel: int = 1,
) -> None:
    """What `foundry_log.fast_loggers` puts in the place of `logging.Logger._log`."""
    if type(msg) is str and not exc_info and not stack_info and _is_context(extra):
        reached = takers(self, level)
        if reached:
            message = msg if not args else formatted(msg, unpacked(args))
            hand_over(reached, self, level, message, {**bound_fields(), **(extra or {})})
            return
    # The stdlib goes back so many frames: before Python 3.11 only those beyond the first.
    stacklevel += stacklevel > 1 or sys.version_info >= (3, 11)
    _log(self, level, msg, args, exc_info, extra, stack_info, stacklevel)


def _is_context(extra: Any) -> bool:
    """Whether all of `extra` becomes context, so that the stdlib has nothing to refuse."""
    if extra is None:
        return True
    return (
        type(extra) is dict
        and extra.keys().isdisjoint(RESERVED)
        and not any(map(_is_private, extra))
    )


def _is_private(name: Any) -> bool:
    return type(name) is not str or name.startswith("_")


_STOCK = ((*_METHODS, _log), (*_METHODS, fast_log))
"""The methods that a record passes while nobody has put code of his own on its way."""
