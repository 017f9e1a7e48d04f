"""A handler whose caller does not wait: other handlers write on a thread of its own."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from foundry_log.clock import timestamp
from foundry_log.handlers.losses import CountsLosses
from foundry_log.records import detached

OVERFLOWS = ("block", "drop_newest", "drop_oldest")
_TELL_EVERY_S = 1.0
_LOOK_EVERY_S = 1.0

_open_handlers: weakref.WeakSet[BackgroundHandler] = weakref.WeakSet()
_at_exit: list[Callable[[], None]] = []  # registered, in this process or before its fork


class BackgroundHandler(CountsLosses):
    """Queues records, and lets a thread hand them to other handlers.

    The caller pays for a detached copy of the record: finished message, plain context, the
    exception as data and text (see `foundry_log.records.detached`), so that nothing it does to its
    objects afterwards changes a line. Levels, filters and formatters of the handlers count as
    usual, on the thread. What a handler raises is counted in `losses` and ends nothing. A record
    that one of the handlers logs while it works goes to the others at once.

    A crash loses what is queued, `capacity` records at the most. The end of the program, of a
    `multiprocessing` worker, `flush` and `close` wait until the queue is written; a process that
    ends by `os._exit` has to flush. The child of a fork starts with an empty queue and a thread of
    its own. Thread-safe. Its handlers stay yours: it flushes them and closes none; a record that
    comes after `close` is handed on by its caller.

    Args:
        handlers: handlers, or the names of handlers of the same configuration (in an ini file those
            listed before it).
        capacity: records waiting at the most, 1 or more.
        overflow: what a record meets that finds the queue full. `block` waits for room,
            `drop_newest` drops it, `drop_oldest` drops the one that waits longest. What is dropped
            is counted by level in `dropped`, and a WARNING in the stream itself says so, once a
            second at the most.
        flush_timeout_s: seconds that `flush`, `close` and the end of the program wait; what is not
            written by then is counted in `losses` as `TimeoutError` when the handler is closed.

    Raises:
        ValueError: a parameter is out of range, or a name is no handler's.
        TypeError: one of `handlers` is neither handler nor name.
    """

    def __init__(
        self,
        handlers: Sequence[logging.Handler | str] | logging.Handler,
        capacity: int = 10_000,
        overflow: str = "block",
        flush_timeout_s: float = 5.0,
    ) -> None:
        super().__init__()
        if capacity < 1:
            raise ValueError(f"capacity={capacity} must be 1 or more records")
        if overflow not in OVERFLOWS:
            raise ValueError(f"overflow={overflow!r} is no rule; use one of {', '.join(OVERFLOWS)}")
        if not flush_timeout_s > 0:
            raise ValueError(f"flush_timeout_s={flush_timeout_s} must be above 0 seconds")
        self.capacity = capacity
        self.overflow = overflow
        self.flush_timeout_s = flush_timeout_s
        self.dropped: Counter[str] = Counter()
        """Records that found no room, by level, since the handler was made."""
        self._targets = _Targets(handlers)
        self._at_work = threading.local()
        self._closed = False
        self._start_empty()
        _open_handlers.add(self)

    def _start_empty(self) -> None:
        """Begin without records and thread: a new handler, or that of a forked child."""
        # Guards what follows. Re-entrant: a signal handler that logs may interrupt its owner.
        self._changed = threading.Condition(threading.RLock())
        self._queue: deque[logging.LogRecord] = deque()
        self._taken = 0  # records taken from the queue since the start
        self._done = 0  # of these, handled
        self._is_waiting = False
        self._untold = _Untold()
        self._worker: threading.Thread | None = None

    def createLock(self) -> None:
        """Have no lock of the handler: its thread must never wait for who closes it."""
        self.lock = None

    @property
    def handlers(self) -> tuple[logging.Handler, ...]:
        """The handlers behind the queue."""
        return self._targets.resolved()

    # --- the caller's side ---

    def handle(self, record: logging.LogRecord) -> Any:
        """Filter and queue the record."""
        if self._worker is threading.current_thread():
            passed = self.filter(record)
            if passed:
                self._deliver(passed if isinstance(passed, logging.LogRecord) else record)
            return passed
        return super().handle(record)

    def _handle(self, record: logging.LogRecord) -> Any:
        passed: Any = self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a copy of the record, unless no handler wants its level."""
        try:
            if any(record.levelno >= handler.level for handler in self.handlers):
                copy = detached(record)
                if not self._put(copy):
                    self._deliver(copy)
        except Exception:
            self.handleError(record)

    def _put(self, record: logging.LogRecord) -> bool:
        """Queue the record, or drop one as the rule says; False where no thread will take it."""
        with self._changed:
            while True:
                if self._closed or not self._has_worker():
                    return False
                if self._taken - self._done + len(self._queue) < self.capacity:
                    break
                if self.overflow == "block":
                    self._changed.wait(_LOOK_EVERY_S)
                elif self.overflow == "drop_newest":
                    self._drop(record)
                    return True
                elif self._queue:
                    self._drop(self._queue.popleft())
                    self._taken += 1
                    self._done += 1
                else:
                    self._changed.wait(_LOOK_EVERY_S)  # a capacity of one, and that is at work
            self._queue.append(record)
            if self._is_waiting:
                self._changed.notify_all()
        return True

    def _drop(self, record: logging.LogRecord) -> None:
        self.dropped[str(record.levelname)] += 1
        self._untold.add(record)

    # --- the thread's side ---

    def _has_worker(self) -> bool:
        if self._worker is None:
            worker = threading.Thread(target=self._work, name="foundry_log-background", daemon=True)
            self._worker = worker
            try:
                worker.start()
            except RuntimeError:  # no thread to be had, or the interpreter is ending
                self._worker = None
                return False
            _drain_at_exit()
        return True

    def _work(self) -> None:
        while True:
            record = self._next()
            if record is None:
                return
            self._deliver(record)
            with self._changed:
                self._done += 1
                self._changed.notify_all()

    def _next(self) -> logging.LogRecord | None:
        """Return the next record, waiting for one; None once closed and empty."""
        while True:
            with self._changed:
                notice = self._untold.notice(self, is_last=self._closed and not self._queue)
                if notice is None:
                    if self._queue:
                        self._taken += 1
                        return self._queue.popleft()
                    if self._closed:
                        return None
                    self._is_waiting = True
                    self._changed.wait(_TELL_EVERY_S if self._untold.count else None)
                    self._is_waiting = False
                    continue
            self._deliver(notice)

    def _deliver(self, record: logging.LogRecord) -> None:
        at_work: list[logging.Handler] = self._at_work.__dict__.setdefault("handlers", [])
        for handler in self.handlers:
            if handler in at_work:
                continue  # it has logged this itself
            at_work.append(handler)
            try:
                if record.levelno >= handler.level:
                    handler.handle(record)
            except Exception:
                self._outlive(record)
            except BaseException:  # an exit would end the thread and nothing else
                if self._worker is not threading.current_thread():
                    raise
                self._outlive(record)
            finally:
                at_work.remove(handler)

    def _outlive(self, record: logging.LogRecord) -> None:
        try:
            self.handleError(record)
        except Exception:
            pass  # an override of somebody's that raises: the loss is counted, the thread goes on

    # --- the end ---

    def drain(self, timeout_s: float) -> bool:
        """Wait until what is queued now has been handled; return whether it has.

        Args:
            timeout_s: seconds to wait at the most.
        """
        if self._worker is threading.current_thread():
            return False
        deadline = time.monotonic() + timeout_s
        with self._changed:
            goal = self._taken + len(self._queue)
            while self._done < goal and self._worker is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def flush(self) -> None:
        """Wait until what is queued now is written, `flush_timeout_s` at the most."""
        self.drain(self.flush_timeout_s)
        for handler in self.handlers:
            handler.flush()

    def close(self) -> None:
        """Write what is queued, end the thread, and report losses. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            worker = self._worker
        if worker is not None and worker is not threading.current_thread():
            worker.join(self.flush_timeout_s)
            with self._changed:
                if self._queue:
                    self.losses["TimeoutError"] += len(self._queue)
                    self._queue.clear()
                self._worker = None
        super().close()


class _Untold:
    """What was dropped and has not been reported; guarded by its handler's lock."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self._first = self._last = 0.0
        self._told = float("-inf")

    def add(self, record: logging.LogRecord) -> None:
        if not self.count:
            self._first = record.created
        self._last = record.created
        self.count[str(record.levelname)] += 1

    def notice(self, handler: BackgroundHandler, is_last: bool) -> logging.LogRecord | None:
        """Return the record that says what was dropped, if there is some and it is time."""
        now = time.monotonic()
        if not self.count or (now - self._told < _TELL_EVERY_S and not is_last):
            return None
        by_level = dict(self.count)
        listed = ", ".join(f"{level}: {count}" for level, count in by_level.items())
        record = logging.LogRecord(  # not by the factory: that is somebody's code, and may raise
            "foundry_log.handlers",
            logging.WARNING,
            "",
            0,
            "%d records were dropped, the background queue was full (%s)",
            (sum(by_level.values()), listed),
            None,
        )
        record.__dict__.update(
            dropped=by_level,
            first_dropped=timestamp(self._first),
            last_dropped=timestamp(self._last),
            overflow=handler.overflow,
            capacity=handler.capacity,
        )
        self.count.clear()
        self._told = now
        return record


class _Targets:
    """The handlers, found by name where a configuration gave names.

    `dictConfig` makes handlers in the order of their names, so those that are meant may not exist
    yet. What it passes is a list that knows its configurator, and that has each handler in the end.
    """

    def __init__(self, given: Sequence[logging.Handler | str] | logging.Handler) -> None:
        listed = [given] if isinstance(given, (logging.Handler, str)) else list(given)
        if not listed:
            raise ValueError("handlers is empty; name the handlers that are to write")
        self._found: tuple[logging.Handler, ...] | None = None
        self._listed = listed
        configurator: Any = getattr(given, "configurator", None)
        self._known: Any = configurator.config["handlers"] if configurator else None
        for each in listed:
            self._check(each)
        if self._known is None:
            self.resolved()

    def resolved(self) -> tuple[logging.Handler, ...]:
        if self._found is None:
            self._found = tuple(self._of_name(each) for each in self._listed)
            self._known = None
        return self._found

    def _check(self, each: Any) -> None:
        if isinstance(each, logging.Handler):
            return
        if not isinstance(each, str):
            raise TypeError(f"{each!r} is no handler; pass a logging.Handler or a handler's name")
        if (each if self._known is None else self._known.get(each)) is None:
            raise ValueError(
                f"there is no handler {each!r}; this configuration has {', '.join(self._known)}"
            )

    def _of_name(self, each: logging.Handler | str) -> logging.Handler:
        if isinstance(each, logging.Handler):
            return each
        found = _registered(each) if self._known is None else self._known[each]
        if not isinstance(found, logging.Handler):
            raise ValueError(  # noqa: TRY004 - the name is of the right type
                f"there is no handler {each!r} yet; make it, and give it that name, before the "
                "BackgroundHandler: in an ini file list it before"
            )
        return found


def _registered(name: str) -> Any:
    by_name: Any = getattr(logging, "getHandlerByName", None)  # Python 3.12
    return by_name(name) if by_name else logging._handlers.get(name)  # type: ignore[attr-defined]


def _drain_at_exit() -> None:
    """Have the queues written when the main thread ends, also that of a multiprocessing worker.

    Such a worker ends by `os._exit` and runs no atexit function, but those of `threading`; the
    interpreter runs both, and these while the handlers are all open still.
    """
    if _drain_all in _at_exit:
        return
    _at_exit.append(_drain_all)
    register: Any = getattr(threading, "_register_atexit", None)
    try:
        if register is not None:
            register(_drain_all)
    except RuntimeError:
        pass  # the interpreter is ending: `logging.shutdown` is to come


def _drain_all() -> None:
    for handler in list(_open_handlers):
        handler.drain(handler.flush_timeout_s)


def _start_empty_after_fork() -> None:
    for handler in list(_open_handlers):
        handler._start_empty()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_empty_after_fork)
