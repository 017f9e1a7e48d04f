"""The short way of a record: to handlers of this package, with no LogRecord made in between.

Making a LogRecord and carrying it down the logger tree costs more than writing its line. What our
own handlers need of an ordinary record is six parts (`foundry_log.records.Parts`), so they can be
handed these. Nobody may miss the record: before each one everybody who would get to see it is
looked at, and the short way is taken only where they are all known. A filter, formatter or handler
of somebody else's, a subclass, a record factory, a method that was replaced on a logger, handler,
formatter or filter, on their classes here or on `logging.Logger` (as tracers do): each gets an
ordinary, complete record. Not looked for are replacements on other classes of other packages.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from operator import attrgetter
from typing import Any, Protocol

from foundry_log.encoding import to_plain
from foundry_log.filters import ContextFilter
from foundry_log.handlers.losses import CountsLosses
from foundry_log.noticing import Noticing, replaced
from foundry_log.records import Parts, parts_of, whole

_level_names: dict[int, str] = logging._levelToName
_SOURCE = logging.Logger.__init__.__code__.co_filename
_ROOT = len(logging.RootLogger(0).__dict__)
ATTRIBUTES = {logging.RootLogger: _ROOT, logging.Logger: _ROOT + 1}  # which has its `manager`
"""Number of attributes of a logger on which nobody has put a method, or anything else."""

_KINDS: set[type] = set()
"""The package's own classes that take parts."""


# --- those who take parts -------------------------------------------------------------------------


class DirectFormatter(Protocol):
    """A formatter that needs the parts of an ordinary record alone."""

    @property
    def is_direct(self) -> bool:
        """Whether `line` gives what `format` would of the whole record, this moment."""

    def line(
        self, created: float, level: int, level_name: str, name: str, message: str, context: Any
    ) -> str | bytes:
        """Return the line of the record that has these parts, bytes in UTF-8; no newline."""


class TakesParts(CountsLosses, metaclass=Noticing):
    """A handler that writes an ordinary record without seeing one."""

    is_direct = False
    """Whether this is one of the package's own classes, and nothing was put on the handler."""

    default_formatter: DirectFormatter | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__module__.startswith("foundry_log."):
            _KINDS.add(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name == "terminator" or callable(getattr(type(self), name, None)):
            object.__setattr__(self, "is_direct", False)

    def handle(self, record: logging.LogRecord) -> Any:
        """Filter and emit the record; an ordinary one goes the short way from here."""
        parts = None
        try:
            # An argument's `__str__` may log, which `super` has under control.
            if not record.args and self.takes_parts():
                for each in self.filters:  # they leave their fields to the handlers that come after
                    each.filter(record)  # type: ignore[union-attr]
                parts = parts_of(record)
        except Exception:  # an attribute of a type that the stdlib never gives it
            pass
        if parts is None:
            return super().handle(record)
        self.emit_parts(parts)
        return True

    def takes_parts(self) -> bool:
        """Return whether the parts of a record will do: no filter or formatter needs more."""
        formatter = self.formatter or self.default_formatter
        return (
            self.is_direct
            and not replaced
            and getattr(formatter, "is_direct", False)
            and (not self.filters or all(map(adds_fields_only, self.filters)))
        )

    def emit_parts(self, parts: Parts) -> None:
        """Do what `emit` does with the record that has these parts; failures are counted."""
        raise NotImplementedError


def adds_fields_only(each: Any) -> bool:
    """Return whether all that a filter does is to put its `fields` below a record's context."""
    return type(each) is ContextFilter and each.is_direct


def takes_parts(handler: logging.Handler) -> bool:
    """Return whether a handler can do without a record."""
    return type(handler) in _KINDS and handler.takes_parts()  # type: ignore[attr-defined]


def handed(handler: TakesParts, parts: Parts) -> Parts:
    """Have a handler that takes parts write them; return them as those that come after get them.

    A context filter leaves its fields on the record, below its context.
    """
    if handler.filters:
        try:
            parts = _with_fields(parts, handler.filters)
        except Exception:  # fields that are no mapping
            handler.handle(whole(parts))
            return parts
    handler.emit_parts(parts)
    return parts


def _with_fields(parts: Parts, filters: Iterable[Any]) -> Parts:
    for each in filters:
        *head, context = parts
        if not each.fields.keys() <= context.keys():
            parts = (*head, {**each.fields, **context})  # type: ignore[assignment]
    return parts


# --- a record to those whom it reaches ------------------------------------------------------------


def takers(logger: Any, level: int) -> list[TakesParts]:
    """Return whom a record of `logger` reaches; empty where nobody listens or one needs a record.

    That the logger is enabled for the level is for the caller to know.
    """
    found: list[TakesParts] = []
    kind = type(logger)
    attributes = ATTRIBUTES.get(kind)
    if (
        attributes is None
        or len(logger.__dict__) != attributes
        or logger.filters
        or logger.disabled
        or logging._logRecordFactory is not logging.LogRecord  # type: ignore[attr-defined]
        or _methods(kind) not in _ways
    ):
        return found
    node: Any = logger
    while node is not None:
        for handler in node.handlers:
            if level >= handler.level:
                if type(handler) not in _KINDS or not handler.takes_parts():
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
) -> bool:
    """Have an ordinary record written by those whom it reaches; return whether that is done.

    Reducing the context may run the code of its objects, which may change who listens: then nothing
    is written, and the record has to go the ordinary way.

    Args:
        reached: as `takers` has found them, this moment.
        logger: whose record it is.
        level: of the record.
        message: finished text.
        context: a fresh dict of any values, reduced to plain ones here.
    """
    plain = to_plain(context, is_fresh=True)
    if plain is not context and takers(logger, level) != reached:
        return False
    level_name = _level_names.get(level) or logging.getLevelName(level)
    parts = (time.time(), level, level_name, logger.name, message, plain)
    for handler in reached:
        if handler.filters:
            parts = handed(handler, parts)
        else:
            handler.emit_parts(parts)
    return True


_methods = attrgetter("_log", "log", "isEnabledFor", "makeRecord", "handle", "callHandlers")


def _is_stock(method: Any) -> bool:
    """Whether a method is the stdlib's, and nobody had replaced it before this module came."""
    return getattr(getattr(method, "__code__", None), "co_filename", "") == _SOURCE


_ways = [_methods(logging.Logger)] if all(map(_is_stock, _methods(logging.Logger))) else []
"""The methods that a record passes while nobody has put code of his own on its way."""


def allow(log: Any) -> None:
    """Let records take the short way where `log` stands in the place of `logging.Logger._log`."""
    _ways.extend([(log, *others) for _, *others in _ways])
