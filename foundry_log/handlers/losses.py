"""What a handler could not write: counted, reported once per cause and at close, never raised."""

from __future__ import annotations

import errno
import logging
import sys
import threading
from collections import Counter
from typing import Any

MAX_NESTING = 2
"""Records that one thread may be handling inside each other. A `__repr__`, filter or formatter that
logs is heard; one that thereby calls itself is not heard for ever."""

_nesting = threading.local()


class CountsLosses(logging.Handler):
    """A handler whose `handleError` counts; the first loss of each cause is reported as usual.

    `losses` maps a cause, such as `OSError ENOSPC` or `TypeError`, to the records lost to it. The
    stdlib's report goes to standard error unless `logging.raiseExceptions` is False. A record that
    is logged while records of the same thread are handled, `MAX_NESTING` deep, counts as lost to
    `RecursionError`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.losses: Counter[str] = Counter()
        self._reported = 0

    def handle(self, record: logging.LogRecord) -> Any:
        """Filter and emit the record, unless handling it would go round in a circle."""
        depth = getattr(_nesting, "depth", 0)
        if depth >= MAX_NESTING:
            self.losses["RecursionError"] += 1
            return False
        _nesting.depth = depth + 1
        try:
            return self._handle(record)
        finally:
            _nesting.depth = depth

    def _handle(self, record: logging.LogRecord) -> Any:
        return super().handle(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Count the exception being handled; called by `emit` in its `except` clause."""
        self._count(self.losses, record)

    def _count(self, causes: Counter[str], record: logging.LogRecord) -> None:
        """Count the exception being handled, and report it if its cause is new."""
        cause = cause_of(sys.exc_info()[1])
        self.acquire()
        try:
            causes[cause] += 1
            is_first = causes[cause] == 1
        finally:
            self.release()
        if is_first:
            try:
                super().handleError(record)
            except ValueError:
                pass  # standard error is closed

    def close(self) -> None:
        """Say how many records were lost since the last close, then close."""
        lost = self.losses.total()
        if lost > self._reported and logging.raiseExceptions and sys.stderr is not None:
            causes = ", ".join(f"{cause}: {count}" for cause, count in self.losses.items())
            try:
                sys.stderr.write(f"{self!r} lost {lost} records ({causes})\n")
            except (OSError, ValueError):
                pass  # standard error is closed or broken: there is nobody left to tell
        self._reported = lost
        super().close()


def cause_of(error: BaseException | None) -> str:
    """Return a short name under which losses are counted, such as `OSError ENOSPC`."""
    name = type(error).__name__
    number = error.errno if isinstance(error, OSError) else None
    return f"{name} {errno.errorcode.get(number, number)}" if isinstance(number, int) else name
