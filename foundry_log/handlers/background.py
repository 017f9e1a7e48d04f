"""A handler whose caller does not wait: other handlers write on a thread of its own."""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - see _drain_at_exit
import logging
import os
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from foundry_log.clock import timestamp
from foundry_log.filters import RedactingFilter
from foundry_log.handlers.direct import TakesParts, adds_fields_only, handed, takes_parts
from foundry_log.handlers.targets import Targets
from foundry_log.noticing import replaced
from foundry_log.records import KEPT, Parts, detached, parts_of, whole

OVERFLOWS = ("block", "drop_newest", "drop_oldest")
_LOOK_EVERY_S = 1.0
_FORK_WAITS_S = 1.0
_NAP_S = 0.005
_NAPS = 20
"""Short waits of an idle thread, before it has to be woken: to wake it costs its caller more than
all the rest does."""

_open_handlers: weakref.WeakValueDictionary[int, BackgroundHandler] = weakref.WeakValueDictionary()
_at_exit: list[Callable[[], None]] = []  # registered, in this process or before its fork


class BackgroundHandler(TakesParts):
    """Queues records, and lets a thread hand them to other handlers.

    The caller pays for a detached copy of the record: finished message, plain context, the
    exception as data and text (see `foundry_log.records.detached`), so that nothing it does to its
    objects afterwards changes a line. Levels, filters and formatters of the handlers count as
    usual, on the thread. What a handler raises is counted in `losses` and ends nothing. A record
    that one of the handlers logs while it works goes to the others at once; where there is no
    other, it counts as lost to `RecursionError`.

    A handler behind the queue that gets another filter or formatter while records wait sees those
    without thread and line of code.

    A crash loses what is queued, `capacity` records at the most. The end of the program, of a
    `multiprocessing` worker, `flush` and `close` wait until the queue is written; a process that
    ends by `os._exit` has to flush. A fork waits for the record that is at work, a second at the
    most, so that the child inherits no half of it; the child starts with an empty queue and a
    thread of its own. Thread-safe. Its handlers stay yours: it flushes them and closes none; a
    record that comes after `close` is handed on by its caller.

    Args:
        handlers: handlers, or the names of handlers of the same configuration (in an ini file those
            listed before it).
        capacity: records waiting or at work at the most, 1 or more.
        overflow: what a record meets that finds the queue full. `block` waits for room,
            `drop_newest` drops it, `drop_oldest` drops the one that waits longest (with a capacity
            of 1 none waits: the new one), whatever their levels; the record of a signal is always
            taken. What is dropped is counted by level in `dropped`, and a WARNING in the stream
            itself says so, once a second at the most and at each flush.
        flush_timeout_s: seconds that `flush`, `close` and the end of the program wait; what is not
            written by then is counted in `losses` as `TimeoutError` when the handler is closed, and
            so is what comes later, as long as one of the handlers does not return.

    Raises:
        ValueError: a parameter is out of range, or a name is no handler's.
        TypeError: one of `handlers` is neither handler nor name.
    """

    _tell_every_s = 1.0

    def __init__(
        self,
        handlers: Sequence[logging.Handler | str] | logging.Handler,
        capacity: int = 10_000,
        overflow: str = "block",
        flush_timeout_s: float = 5.0,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity} must be 1 or more records")
        if overflow not in OVERFLOWS:
            raise ValueError(f"overflow={overflow!r} is no rule; use one of {', '.join(OVERFLOWS)}")
        if not flush_timeout_s > 0:
            raise ValueError(f"flush_timeout_s={flush_timeout_s} must be above 0 seconds")
        self._targets = Targets(handlers, self)
        super().__init__()  # behind all that may fail: `logging` knows the handler from here on
        self.capacity = capacity
        self.overflow = overflow
        self.flush_timeout_s = flush_timeout_s
        self.dropped: Counter[str] = Counter()
        """Records that found no room, by level, since the handler was made."""
        self._at_work = threading.local()
        self._closed = False
        self._start_empty()
        _open_handlers[id(self)] = self
        self.is_direct = type(self) is BackgroundHandler

    def _start_empty(self) -> None:
        """Begin without records and thread: a new handler, or that of a forked child."""
        # Guards what follows. Re-entrant: a signal handler that logs may interrupt its owner.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._queue: deque[logging.LogRecord | Parts] = deque()
        self._taken = 0  # records taken from the queue since the start
        self._done = 0  # of these, handled
        self._is_asleep = False  # the thread, until somebody wakes it
        self._is_napping = False  # the thread, for some milliseconds
        self._is_awaited = False  # the thread, by others
        self._is_stuck = False  # the thread, beyond the deadline of an end
        self._untold = _Untold()
        self._worker: threading.Thread | None = None
        self._worker_id: int | None = None
        self._delivering = threading.Lock()  # held by the thread with a record, or by who forks
        self._forking: int | None = None

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
        if not self._is_worker():
            return super().handle(record)
        try:  # not by super: that counts who logs inside whom, and the target has begun already
            return self._handle(record)
        except Exception:
            self._outlive(record)
            return False

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a copy of the record, unless no handler wants its level."""
        if self._is_worker():  # one of the handlers logs
            self._deliver(record)
            return
        try:
            if any(_wants(handler, record) for handler in self.handlers):
                if record.args:
                    self._redact(record)
                copy = self._parts(record) or detached(record)
                if not self._put(copy):
                    self._deliver(copy)
        except Exception:
            self.handleError(record)

    def takes_parts(self) -> bool:
        """Return whether the parts of a record will do, here and behind the queue."""
        if not self.is_direct or replaced:
            return False
        if self.filters and not all(map(adds_fields_only, self.filters)):
            return False
        return all(map(takes_parts, self._targets.resolved()))

    def emit_parts(self, parts: Parts) -> None:
        """Queue the parts of a record, unless no handler wants its level."""
        level = parts[1]
        for handler in self._targets.resolved():
            if level >= handler.level:
                break
        else:
            return
        if self._worker_id == threading.get_ident() or not self._put(parts):
            self._deliver(parts)

    def _parts(self, record: logging.LogRecord) -> Parts | None:
        """Return what those behind the queue need of the record; None where one needs all of it."""
        if not all(map(takes_parts, self._targets.resolved())):
            return None
        try:
            return parts_of(record)
        except Exception:  # an attribute of a type that the stdlib never gives it
            return None

    def _redact(self, record: logging.LogRecord) -> None:
        """Take secrets out of arguments while they still have names: detached, they are text."""
        for handler in self.handlers:
            for each in handler.filters:
                if isinstance(each, RedactingFilter):
                    each.filter(record)

    def _put(self, record: logging.LogRecord | Parts) -> bool:
        """Queue the record, or drop one as the rule says; False where no thread will take it."""
        with self._lock:
            while True:
                if self._is_stuck:
                    self.losses["TimeoutError"] += 1
                    return True
                if self._closed or (self._worker is None and not self._has_worker()):
                    return False
                has_room = self._taken - self._done + len(self._queue) < self.capacity
                if has_room or _is_kept(record):
                    break
                if self.overflow == "block":
                    if self._forking == threading.get_ident():
                        break  # a signal or hook inside a fork: the thread waits for this one
                    self._wait(_LOOK_EVERY_S)
                elif not (self.overflow == "drop_oldest" and self._drop_oldest()):
                    self._drop(record)
                    return True
            self._queue.append(record)
            if self._is_asleep or (self._is_napping and 2 * len(self._queue) >= self.capacity):
                self._is_asleep = self._is_napping = False
                self._changed.notify_all()
        return True

    def _drop_oldest(self) -> bool:
        """Drop the record that waits longest; False where none may be dropped."""
        for position, record in enumerate(self._queue):
            if not _is_kept(record):
                del self._queue[position]
                self._drop(record)
                return True
        return False

    def _drop(self, dropped: logging.LogRecord | Parts) -> None:
        record = whole(dropped)
        self.dropped[str(record.levelname)] += 1
        self._untold.add(record)

    def _wait(self, timeout_s: float) -> None:
        """Wait for the thread to finish a record, or for the end."""
        if not self._is_awaited:
            self._is_awaited = True
            self._changed.notify_all()  # it may be napping
        self._changed.wait(timeout_s)

    # --- the thread's side ---

    def _is_worker(self) -> bool:
        return self._worker_id == threading.get_ident()

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
        self._worker_id = threading.get_ident()
        while (record := self._next()) is not None:
            with self._delivering:
                self._deliver(record)
            del record  # it would live until the next one comes
            with self._lock:
                self._done += 1
                self._tell_those_who_wait()
        with self._lock:
            self._worker_id = None
            self._is_stuck = False
            self._tell_those_who_wait()

    def _tell_those_who_wait(self) -> None:
        if self._is_awaited:
            self._is_awaited = False
            self._changed.notify_all()

    def _next(self) -> logging.LogRecord | Parts | None:
        """Return the next record, waiting for one; None once closed and empty."""
        naps = 0
        with self._lock:
            while True:
                record: logging.LogRecord | Parts | None
                record = self._untold.notice(self, is_last=self._closed and not self._queue)
                if record is None and self._queue:
                    record = self._queue.popleft()
                if record is not None:
                    self._taken += 1
                    return record
                if self._closed:
                    return None
                if naps < _NAPS:  # more is to come, as a rule, and nobody has the trouble of waking
                    naps += 1
                    self._is_napping = True
                    self._changed.wait(_NAP_S)
                    self._is_napping = False
                    continue
                self._is_asleep = True
                self._changed.wait(self._tell_every_s if self._untold.count else None)
                self._is_asleep = False

    def _deliver(self, record: logging.LogRecord | Parts) -> None:
        at_work: list[logging.Handler] = self._at_work.__dict__.setdefault("handlers", [])
        free = [handler for handler in self.handlers if handler not in at_work]
        if not free:  # their only handlers have logged this themselves
            self.losses["RecursionError"] += 1
        for handler in free:
            at_work.append(handler)
            try:
                record = _passed_on(record, handler)
            except Exception:
                self._outlive(record)
            except BaseException:  # an exit would end the thread and nothing else
                if not self._is_worker():
                    raise
                self._outlive(record)
            finally:
                at_work.remove(handler)

    def _outlive(self, record: logging.LogRecord | Parts) -> None:
        try:
            self.handleError(whole(record))
        except BaseException:
            # An override of somebody's that raises: the loss is counted, the thread goes on.
            if not self._is_worker():
                raise

    # --- the end ---

    def drain(self, timeout_s: float) -> bool:
        """Wait until what is queued now has been handled; return whether it has.

        Called by one of the handlers, on the thread, it does not wait and returns False.

        Args:
            timeout_s: seconds to wait at the most.
        """
        if self._is_worker():
            return False
        deadline = time.monotonic() + timeout_s
        with self._lock:
            goal = self._taken + len(self._queue)
            if self._untold.count:
                self._untold.hurry()
                goal += 1
            self._changed.notify_all()
            while self._done < goal and self._worker is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._wait(left)
            return self._done >= goal

    def flush(self) -> None:
        """Wait until what is queued now is written, `flush_timeout_s` at the most.

        Then flush the handlers, unless the time was up: one that does not return may hold its lock.
        """
        if not self.drain(self.flush_timeout_s) and not self._is_worker():
            return
        for handler in self.handlers:
            try:
                handler.flush()
            except Exception:  # the others are flushed, and `logging.shutdown` goes on to `close`
                self._outlive(logging.makeLogRecord({"msg": f"flush of {handler!r}"}))

    def close(self) -> None:
        """Write what is queued, end the thread, and report losses. Idempotent."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
            worker = self._worker
        if worker is not None and not self._is_worker():
            worker.join(self.flush_timeout_s)
            self._abandon(worker)
        super().close()

    def _abandon(self, worker: threading.Thread) -> None:
        """Wait no longer for the thread, and count what it has not written."""
        with self._lock:
            if self._worker is not worker:
                return  # somebody else has closed
            self._worker = None
            self._closed = True
            self._is_stuck = self._worker_id is not None
            unwritten = len(self._queue) + self._taken - self._done
            self._queue.clear()
            if unwritten:
                self.losses["TimeoutError"] += unwritten
            self._changed.notify_all()

    def _end_program(self) -> None:
        worker = self._worker
        if worker is not None and not self.drain(self.flush_timeout_s):
            self._abandon(worker)
            for handler in self.handlers:
                _spare_shutdown(handler)
        if _ends_abruptly():
            self.close()

    # --- fork ---

    def _before_fork(self) -> None:
        if not self._is_worker() and self._delivering.acquire(timeout=_FORK_WAITS_S):
            self._forking = threading.get_ident()

    def _after_fork_in_parent(self) -> None:
        if self._forking == threading.get_ident():
            self._forking = None
            self._delivering.release()


def _passed_on(
    record: logging.LogRecord | Parts, handler: logging.Handler
) -> logging.LogRecord | Parts:
    """Have a handler handle the record; return it as those that come after get it."""
    if isinstance(record, tuple):
        if record[1] < handler.level:
            return record
        if takes_parts(handler):
            return handed(handler, record)  # type: ignore[arg-type]
        record = whole(record)  # somebody has changed the handler since the record was queued
    if _wants(handler, record):
        handler.handle(record)
    return record


def _is_kept(record: logging.LogRecord | Parts) -> bool:
    return not isinstance(record, tuple) and KEPT in record.__dict__


def _wants(handler: logging.Handler, record: logging.LogRecord) -> bool:
    try:
        return record.levelno >= handler.level
    except TypeError:  # what a filter put there is no level
        return True


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

    def hurry(self) -> None:
        """Have the next notice come at once."""
        self._told = float("-inf")

    def notice(self, handler: BackgroundHandler, is_last: bool) -> logging.LogRecord | None:
        """Return the record that says what was dropped, if there is some and it is time."""
        now = time.monotonic()
        if not self.count or (now - self._told < handler._tell_every_s and not is_last):
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


def _drain_at_exit() -> None:
    """Have the queues written when the main thread ends, also that of a multiprocessing worker.

    Such a worker ends by `os._exit` and runs no atexit function, but those of `threading`; the
    interpreter runs both, and these while the handlers are all open still. The latest comes first:
    a handler may need an executor for what is left, which that module's own function shuts down. It
    is imported above, not here: in the child of a fork another thread's import would never end.
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


def finish_queues(timeout_s: float = 2.0) -> None:
    """Wait until every queue of this process is written, each `timeout_s` seconds at the most.

    May be called by a signal handler, whatever it has interrupted.
    """
    for handler in _all_open():
        handler.drain(timeout_s)


def _drain_all() -> None:
    for handler in _all_open():
        handler._end_program()


def _ends_abruptly() -> bool:
    """Return whether no `logging.shutdown` is to come: in a worker of multiprocessing."""
    multiprocessing = sys.modules.get("multiprocessing.process")
    return multiprocessing is not None and multiprocessing.parent_process() is not None


def _spare_shutdown(handler: logging.Handler) -> None:
    """Have `logging.shutdown` not wait for ever for the lock of a handler that does not return."""
    lock: Any = handler.lock
    if lock is None:
        return
    if lock.acquire(blocking=False):
        lock.release()
        return
    listed: list[Any] = logging._handlerList  # type: ignore[attr-defined]
    listed[:] = [reference for reference in listed if reference() is not handler]


def _all_open() -> list[BackgroundHandler]:
    """Return the handlers there are; one step, so that others may be made meanwhile."""
    return [found for each in _open_handlers.valuerefs() if (found := each()) is not None]


def _before_fork() -> None:
    for handler in _all_open():
        handler._before_fork()


def _after_fork_in_parent() -> None:
    for handler in _all_open():
        handler._after_fork_in_parent()


def _start_empty_after_fork() -> None:
    for handler in _all_open():
        handler._start_empty()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_start_empty_after_fork,
    )
