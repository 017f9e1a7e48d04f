"""The switch that takes plain loggers the short way too."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any

from foundry_log.handlers.direct import fast_log

_Logger: Any = logging.Logger
_stock: Any = _Logger._log


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
        if _Logger._log is _stock:
            _Logger._log = fast_log
        FastLoggers._open += 1

    def close(self) -> None:
        """Give the method back. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        FastLoggers._open -= 1
        if not FastLoggers._open and _Logger._log is fast_log:
            _Logger._log = _stock

    def __enter__(self) -> FastLoggers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def fast_loggers() -> FastLoggers:
    """Return the switch, turned on; see `FastLoggers`."""
    return FastLoggers()
