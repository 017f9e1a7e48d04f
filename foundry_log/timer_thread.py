"""A thread that does something again and again until it is closed."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable

from foundry_log.files.locks import thread_lock
from foundry_log.handlers.losses import cause_of
from foundry_log.threads import start_thread

RETRY_S = 10.0
"""Seconds after which work that has raised is tried again."""
CLOSE_WITHIN_S = 5.0
"""Seconds for which closing waits for work that is under way."""

_log = logging.getLogger("foundry_log.timer_thread")


class TimerThread:
    """Calls `work` at once, and again after as many seconds as it has returned.

    It belongs to the process that starts it: in the child of a fork there is no thread, and nothing
    starts one. A daemon thread, which does not keep the interpreter alive. Work that raises is
    counted in `failures`, reported once per cause, and tried again. Thread-safe.

    Args:
        name: of the thread.
        work: returns the seconds to wait, 0 or more.
    """

    def __init__(self, name: str, work: Callable[[], float]) -> None:
        self.name = name
        self.failures: Counter[str] = Counter()
        """How often the work has raised, by cause."""
        self._work = work
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._process = os.getpid()
        self._lock = thread_lock()  # guards the four above

    @property
    def is_started(self) -> bool:
        """Whether it has been started, and not closed since."""
        return self._thread is not None

    @property
    def is_inherited(self) -> bool:
        """Whether another process has started it, of which this one is a child."""
        return self._thread is not None and self._process != os.getpid()

    def start(self) -> None:
        """Start the thread, unless it has been started."""
        with self._lock:
            if self._thread is not None:
                return
            self._process, self._stop = os.getpid(), threading.Event()
            self._thread = threading.Thread(
                target=self._run, args=(self._stop,), name=self.name, daemon=True
            )
            start_thread(self._thread)

    def close(self, timeout_s: float = CLOSE_WITHIN_S) -> bool:
        """Let the thread end; return whether it has ended, after at most `timeout_s` seconds.

        A second call does nothing, and so does one in the child of a fork. `start` begins anew.
        """
        with self._lock:
            if self.is_inherited:  # whose event may be locked for ever
                return True
            thread, self._thread = self._thread, None
            self._stop.set()
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout_s)
        if thread.is_alive():
            _log.warning("%s is still at work %g s after it was closed", self.name, timeout_s)
        return not thread.is_alive()

    def _run(self, stop: threading.Event) -> None:
        wait_s = 0.0
        while not stop.wait(min(wait_s, threading.TIMEOUT_MAX)):
            try:
                wait_s = self._work()
            except BaseException as error:  # an exit would end the thread and nothing else
                wait_s = RETRY_S
                self._count(error)

    def _count(self, error: BaseException) -> None:
        cause = cause_of(error)
        self.failures[cause] += 1
        if self.failures[cause] == 1:
            _log.warning("%s fails: %s", self.name, cause, exc_info=error)
