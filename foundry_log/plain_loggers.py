"""The switch that takes plain loggers the short way too."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from foundry_log.context import bound_fields
from foundry_log.handlers.direct import allow, hand_over, takers
from foundry_log.records import RESERVED, formatted, unpacked

_Logger: Any = logging.Logger
_stock_log: Any = _Logger._log
_get_message = logging.LogRecord.getMessage


class FastLoggers:
    """Makes `logging.getLogger(…).info(…)` faster in this process until it is closed.

        foundry_log.fast_loggers()                    # for the life of the process
        with foundry_log.fast_loggers(): ...          # or for a block

    A plain logger makes a LogRecord and looks for the caller's line before any handler is asked.
    With this, records that only handlers of this package get to see, with the default lines, are
    written without; see `foundry_log.handlers.direct`. All others go the ordinary way, and
    everything in the files is the same. What changes is one method, `logging.Logger._log`, for
    every logger of the process whose class has not its own.

    Several may be open; the method is given back when the last one is closed. Where somebody has
    replaced it meanwhile, it is left alone. Not thread-safe: switch it at the start.
    """

    _open = 0

    def __init__(self) -> None:
        self._is_closed = False
        if _Logger._log is _stock_log:
            _Logger._log = _log
        FastLoggers._open += 1

    def close(self) -> None:
        """Give the method back. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        FastLoggers._open -= 1
        if not FastLoggers._open and _Logger._log is _log:
            _Logger._log = _stock_log

    def __enter__(self) -> FastLoggers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fast_loggers() -> FastLoggers:
    """Return the switch, turned on; see `FastLoggers`."""
    return FastLoggers()


def _log(
    self: logging.Logger,
    level: int,
    msg: object,
    args: Any,
    exc_info: Any = None,
    extra: Mapping[str, object] | None = None,
    stack_info: bool = False,
    stacklevel: int = 1,
) -> None:
    """What stands in the place of `logging.Logger._log`."""
    if type(msg) is str and not exc_info and not stack_info and _is_context(extra):
        reached = takers(self, level)
        if reached and FastLoggers._open and logging.LogRecord.getMessage is _get_message:
            message = msg if not args else formatted(msg, unpacked(args))
            if hand_over(reached, self, level, message, {**bound_fields(), **(extra or {})}):
                return
    if stacklevel > 0 or sys.version_info < (3, 11):  # the stdlib meets this frame too
        stacklevel = max(stacklevel, 1) + 1
    _stock_log(self, level, msg, args, exc_info, extra, stack_info, stacklevel)


allow(_log)


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
