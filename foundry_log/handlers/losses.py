"""What a handler could not write: counted, reported once per cause and at close, never raised."""

from __future__ import annotations

import errno
import logging
import sys
from collections import Counter
from typing import Any


class CountsLosses(logging.Handler):
    """A handler whose `handleError` counts; the first loss of each cause is reported as usual.

    `losses` maps a cause, such as `OSError ENOSPC` or `TypeError`, to the records lost to it. The
    stdlib's report goes to standard error unless `logging.raiseExceptions` is False.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.losses: Counter[str] = Counter()
        self._reported = 0

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
