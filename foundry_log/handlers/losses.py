"""What a handler could not write: counted, reported once per cause and at close, never raised."""

from __future__ import annotations

import errno
import logging
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from foundry_log.records import Parts, whole

MAX_NESTING = 2
"""Records that one thread may be handling inside each other. A `__repr__`, filter or formatter that
logs is heard; one that thereby calls itself is not heard for ever."""


_Record = TypeVar("_Record", logging.LogRecord, Parts)


class _Nesting(threading.local):
    depth = 0


_nesting = _Nesting()


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
        return self.within_bounds(self._handle, record)

    def within_bounds(self, handle: Callable[[_Record], Any], record: _Record) -> Any:
        """Return `handle(record)`, or False where it raises or would go round in a circle."""
        depth = _nesting.depth
        if depth >= MAX_NESTING:
            self._add(self.losses, "RecursionError")
            return False
        try:  # the assignment inside, so that an interrupt cannot leave the depth raised
            _nesting.depth = depth + 1
            return handle(record)
        except Exception:  # a filter's, or the interpreter's recursion limit
            self._count(self.losses, whole(record))
            return False
        finally:
            _nesting.depth = depth

    def _handle(self, record: logging.LogRecord) -> Any:
        """Filter and emit; unlike the stdlib's, filters and formatters run outside the lock."""
        passed: Any = self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return passed

    def handleError(self, record: logging.LogRecord) -> None:
        """Count the exception being handled; called by `emit` in its `except` clause."""
        self._count(self.losses, record)

    def _count(self, causes: Counter[str], record: logging.LogRecord) -> None:
        """Count the exception being handled, and report it if its cause is new."""
        if self._add(causes, cause_of(sys.exc_info()[1])) == 1:
            try:
                super().handleError(record)
            except Exception:
                pass  # standard error is closed, or the error itself cannot be shown

    def _add(self, causes: Counter[str], cause: str) -> int:
        self.acquire()
        try:
            causes[cause] += 1
            return causes[cause]
        finally:
            self.release()

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
    name = _class_name(type(error))
    # By their types: the classes of errors may have attributes of their own that raise.
    number = _errno_of(error) if issubclass(type(error), OSError) else None
    return f"{name} {errno.errorcode.get(number, number)}" if type(number) is int else name


_class_name = type.__dict__["__name__"].__get__
_errno_of = OSError.__dict__["errno"].__get__
