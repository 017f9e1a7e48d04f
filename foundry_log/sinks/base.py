"""The handler behind every tracker: off the training path, bounded, retried and isolated."""

from __future__ import annotations

import copy
import functools
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from foundry_log.filters import RedactingFilter
from foundry_log.handlers.background import BackgroundHandler
from foundry_log.handlers.losses import cause_of
from foundry_log.handlers.owned import redactions
from foundry_log.records import ENTRY, Parts, message_of
from foundry_log.text_formatters import PlainFormatter

MAX_PAUSE_S = 10.0
_CALL = "_foundry_call"
_log = logging.getLogger("foundry_log.sinks")
_plain = PlainFormatter()


class SinkHandler(BackgroundHandler):
    """Sends the metrics of a run to a tracker, on a thread of its own.

    Attached to the logger `foundry_log.metrics.<experiment>` it gets all that a run measures, and
    attached to any other logger that one's warnings. A subclass overrides what its tracker can use
    of `open`, `metrics`, `summary`, `config`, `checkpoint`, `system`, `text`, `resumed` and `end`.
    Each is called on the thread, one after the other; each may be slow, and may raise.

    Whatever happens to the tracker, the caller is not held up and nothing is raised to it; the
    run's files have everything. A record that fails is tried again, and then counted in `losses`
    by its cause; the first of each cause is a WARNING of `foundry_log.sinks`. From then on the
    sink is failing: each record gets one try, and the tracker is opened anew now and then, until
    a record has arrived. Where the tracker's package is missing, a WARNING says what to install,
    and all records are counted and let go at once.

    Where a logger's records are redacted, by a handler of its own or above, so is what is sent of
    them. What the sink's own thread logs does not come back to it. A sink belongs to the process
    that made it: in a forked child it takes nothing and counts that as `forked`; after `close` as
    `closed`. The end of the program closes it. Thread-safe.

    Leave the handler's level alone: metrics are INFO records, and `text_level` is for the others.

    Args:
        capacity: records waiting or at work at the most, 1 or more.
        overflow: `drop_newest`, `drop_oldest` or `block`, as of `BackgroundHandler`; what is
            dropped is counted in `dropped`.
        retries: further tries of a record that fails, 0 or more.
        retry_delay_s: seconds before the first of them; doubled each time up to 10, and
            shortened at random by half at the most.
        flush_timeout_s: seconds that `flush`, `close` and the end of the program wait; what has not
            been sent by then is counted as `TimeoutError`.
        text_level: least level of the records that are text: all but metrics and the like.
        reopen_after_s: seconds between two attempts to open a tracker that fails.

    Raises:
        ValueError: a parameter is out of range.
    """

    def __init__(
        self,
        *,
        capacity: int = 10_000,
        overflow: str = "drop_newest",
        retries: int = 3,
        retry_delay_s: float = 0.5,
        flush_timeout_s: float = 10.0,
        text_level: str | int = "WARNING",
        reopen_after_s: float = 30.0,
    ) -> None:
        if retries < 0:
            raise ValueError(f"retries={retries} must be 0 or more further tries")
        if not retry_delay_s >= 0:
            raise ValueError(f"retry_delay_s={retry_delay_s} must be 0 or more seconds")
        if not reopen_after_s >= 0:
            raise ValueError(f"reopen_after_s={reopen_after_s} must be 0 or more seconds")
        self.text_level = _level_of(text_level)
        self._delivery = _Delivery(self, retries, retry_delay_s, reopen_after_s)
        self._owner = os.getpid()
        super().__init__([self._delivery], capacity, overflow, flush_timeout_s)

    # --- what a subclass overrides; each is called on the thread ---

    created = 0.0
    """Seconds from the epoch to when the record at work was logged."""

    def open(self) -> None:
        """Get ready, before the first record: import the package, connect.

        Called again where records have failed for `reopen_after_s`; what the call before has opened
        is then to be let go.
        """

    def metrics(
        self, step: int, epoch: int, values: Mapping[str, float], entry: Mapping[str, Any]
    ) -> None:
        """Take the metrics of a step.

        Args:
            step: number of the optimizer step; may come late or again.
            epoch: number of the epoch.
            values: the numbers among the metrics, NaN and infinities as they are; those inside of
                a dict as `outer/inner`.
            entry: the whole line of the file: `step`, `epoch`, `metrics`, `attempt` and what more
                there is. Not to be changed; neither are other arguments.
        """

    def summary(self, epoch: int, values: Mapping[str, float], entry: Mapping[str, Any]) -> None:
        """Take the summary of an epoch; arguments as of `metrics`."""

    def config(self, values: Mapping[str, Any]) -> None:
        """Take the configuration, nested and plain."""

    def checkpoint(self, facts: Mapping[str, Any]) -> None:
        """Take note of a directory with a checkpoint.

        Args:
            facts: `path`, `step`, `epoch`, `size_bytes` and `eval_loss` (None where unknown).
        """

    def system(self, values: Mapping[str, float]) -> None:
        """Take measurements of the machine, such as `cpu_percent`."""

    def text(self, record: logging.LogRecord) -> None:
        """Take a message; `self.format(record)` gives its line."""

    def resumed(self, attempt: int, step: int) -> None:
        """Take note that attempt number `attempt` goes on behind `step`."""

    def end(self) -> None:
        """Finish, after the last record; called once at most, and only where `open` succeeded."""

    # --- the caller's side ---

    def call(self, function: Callable[[], object]) -> bool:
        """Have the thread call a function in its turn, once the tracker is open.

        It is queued, retried and counted like a record.

        Returns:
            False where the sink is closed, or another process's.
        """
        record = logging.LogRecord(_log.name, logging.INFO, "", 0, "a call", None, None)
        record.__dict__[_CALL] = function
        return self._is_own() and self._put(record)

    def handle(self, record: logging.LogRecord) -> Any:
        """Filter and queue the record, unless it is no business of this sink."""
        if self._is_worker() or (ENTRY not in record.__dict__ and self._is_too_low(record)):
            return False
        if not self._is_own():
            self._add(self.losses, "forked")
            return False
        return super().handle(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a copy of the record, without what is taken out of its logger's records."""
        if RedactingFilter.is_used:  # behind a queue they redact copies of their own
            record = _redacted(record)
        super().emit(record)

    def _is_own(self) -> bool:
        return self._owner == os.getpid()

    def _is_too_low(self, record: logging.LogRecord) -> bool:
        try:
            return record.levelno < self.text_level
        except TypeError:  # what a filter put there is no level
            return False

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record by the handler's formatter, else as in a file for people."""
        return (self.formatter or _plain).format(record)

    # --- the end ---

    def close(self) -> None:
        """Send what is queued, finish, end the thread, and report losses. Idempotent.

        It waits for `flush_timeout_s` at the most; pauses between retries end at once.
        """
        if self._is_own():
            self._delivery.hurry()
        super().close()

    def _next(self) -> logging.LogRecord | Parts | None:
        record = super()._next()
        if record is None:
            self._delivery.end()
        return record

    def _end_program(self) -> None:
        self.close()  # now, as packages of trackers have exit functions that run before logging's

    def _before_fork(self) -> None:
        """Do not wait for the tracker: the child has no use for it."""


class _Delivery(logging.Handler):
    """The one handler behind a sink's queue: gives each record to the right method.

    All but `hurry` happens on the sink's thread.
    """

    def __init__(
        self, sink: SinkHandler, retries: int, retry_delay_s: float, reopen_after_s: float
    ) -> None:
        super().__init__()
        self._sink = sink
        self._retries = retries
        self._retry_delay_s = retry_delay_s
        self._reopen_after_s = reopen_after_s
        self._ending = threading.Event()
        self._is_open = False
        self._is_missing = False
        self._error: BaseException | None = None  # the latest, while the sink is failing
        self._tried = float("-inf")  # when opening was tried last, or failing began
        self._lost = 0  # records, while the sink is failing
        self._warned: set[str] = set()

    def createLock(self) -> None:
        """Have no lock: who closes the handler must not wait for a slow tracker."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Deliver the record, or count it."""
        sink = self._sink
        if not sink._is_worker():  # closed, or no thread to be had: not at the caller's expense
            sink._add(sink.losses, "closed")
        elif self._is_missing:
            sink._add(sink.losses, "ImportError")
        else:
            self._deliver(record)
            if hasattr(record, "first_dropped"):
                self._warn("dropped", "%s: %s", type(sink).__name__, message_of(record)[0])
        return True

    def hurry(self) -> None:
        """End the pauses between tries, from now on."""
        self._ending.set()

    def end(self) -> None:
        """Finish, where there is something to be finished."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            self._sink.end()
        except BaseException as error:  # a tracker's exit would end the thread and nothing else
            message = "%s could not finish: %s"
            self._warn("end", message, type(self._sink).__name__, _shown(error), error=error)

    def _deliver(self, record: logging.LogRecord) -> None:
        for pause_s in self._pauses():
            try:
                work = _work(self._sink, record)
                if work is None:
                    return
                self._make_ready()
                self._sink.created = record.created
                work()
            except BaseException as error:  # a tracker's exit or CancelledError is a failure too
                failure = error
            else:
                self._note_success()
                return
            if self._is_missing or pause_s is None:
                break
            self._ending.wait(pause_s)
        self._give_up(failure)

    def _pauses(self) -> Iterator[float | None]:
        """Yield the seconds to wait after each try that fails; None after the last."""
        if self._error is None:
            for n in range(self._retries):
                longest = min(self._retry_delay_s * 2.0 ** min(n, 32), MAX_PAUSE_S)
                yield longest * random.uniform(0.5, 1.0)
        yield None

    def _make_ready(self) -> None:
        """Open the tracker, where it is time to.

        Raises:
            BaseException: it is not open.
        """
        if self._error is not None and time.monotonic() < self._tried + self._reopen_after_s:
            if not self._is_open:
                raise self._error
            return
        if self._is_open and self._error is None:
            return
        self._is_open = False
        try:
            self._sink.open()
        except ImportError:
            self._is_missing = True
            raise
        finally:
            self._tried = time.monotonic()  # behind it: to open may take long
        self._is_open = True

    def _note_success(self) -> None:
        if self._error is not None:
            name = type(self._sink).__name__
            _log.info("%s works again; records that it lacks: %d", name, self._lost)
            self._error = None

    def _give_up(self, error: BaseException) -> None:
        sink = self._sink
        if self._error is None:
            self._lost = 0
            self._tried = time.monotonic()
        self._lost += 1
        cause = "ImportError" if self._is_missing else cause_of(error)
        sink._add(sink.losses, cause)
        if self._is_missing:
            self._warn(cause, "%s; nothing is sent, the run's files have everything", error)
        else:
            message = "%s could not send a record: %s; the run's files have it"
            self._warn(cause, message, type(sink).__name__, _shown(error), error=error)
        self._error = error.with_traceback(None)  # its frames would live as long as the failure

    def _warn(self, cause: str, message: str, *args: Any, error: Any = None) -> None:
        if cause not in self._warned:
            self._warned.add(cause)
            _log.warning(message, *args, exc_info=error)


def _work(sink: SinkHandler, record: logging.LogRecord) -> Callable[[], object] | None:
    """Return what the sink does about a record; None where that is nothing."""
    call: Any = record.__dict__.get(_CALL)
    if call is not None:
        return call  # type: ignore[no-any-return]
    found = _addressed(record)
    if found is None or getattr(type(sink), found[0]) is getattr(SinkHandler, found[0]):
        return None
    return functools.partial(getattr(sink, found[0]), *found[1:])


def _addressed(record: logging.LogRecord) -> tuple[Any, ...] | None:
    """Return the name of the method that a record is for, and its arguments."""
    entry: Any = record.__dict__.get(ENTRY)
    if type(entry) is not dict:
        return "text", record
    if "metrics" in entry:
        return "metrics", entry["step"], entry["epoch"], flat_numbers(entry["metrics"]), entry
    if "summary" in entry:
        return "summary", entry["epoch"], flat_numbers(entry["summary"]), entry
    if "resumed_from_step" in entry:
        return "resumed", entry.get("attempt", 1), entry["resumed_from_step"]
    if "system" in entry:
        return "system", flat_numbers(entry["system"])
    name = next((name for name in ("config", "checkpoint") if name in entry), None)
    return (name, entry[name]) if name else None


def flat_numbers(values: Any) -> dict[str, float]:
    """Return the numbers of a nested dict under names like `outer/inner`; what is none is left out.

    True and False are 1 and 0; integers beyond the floats, which trackers refuse, are left out.
    """
    found: dict[str, float] = {}
    if isinstance(values, Mapping):
        for name, value in values.items():
            if isinstance(value, bool):
                found[str(name)] = int(value)
            elif isinstance(value, float) or (isinstance(value, int) and _is_a_float(value)):
                found[str(name)] = value
            elif isinstance(value, Mapping):
                inner = flat_numbers(value)
                found.update({f"{name}/{below}": number for below, number in inner.items()})
    return found


def _is_a_float(value: int) -> bool:
    try:
        float(value)
    except OverflowError:
        return False
    return True


def _redacted(record: logging.LogRecord) -> logging.LogRecord:
    """Return the record, or a copy of it where its logger's records are redacted."""
    found = list(redactions(logging.getLogger(record.name)))
    if found:
        record = copy.copy(record)  # other handlers may be meant to see it as it is
        for redaction in found:
            redaction.filter(record)
    return record


def _level_of(level: str | int) -> int:
    found = level if isinstance(level, int) else logging.getLevelName(str(level).upper())
    if not isinstance(found, int):
        raise ValueError(  # noqa: TRY004 - the name is of the right type
            f"text_level={level!r} is no level; use a name such as WARNING, or a number"
        )
    return found


def _shown(error: BaseException) -> str:
    return f"{cause_of(error)}: {error}"
