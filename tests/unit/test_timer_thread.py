"""TimerThread: work on a thread of its own, again and again until it is closed."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading

import pytest

from foundry_log.timer_thread import TimerThread

pytestmark = pytest.mark.unit

DEADLINE_S = 20


class Work:
    """Counts its calls; each says after how many seconds the next is due."""

    def __init__(self, *waits_s: float) -> None:
        self.calls = 0
        self.threads: list[str] = []
        self.done = threading.Event()
        self._waits_s = waits_s

    def __call__(self) -> float:
        self.calls += 1
        self.threads.append(threading.current_thread().name)
        if self.calls == len(self._waits_s):
            self.done.set()
        return self._waits_s[min(self.calls, len(self._waits_s)) - 1]


def test_it_works_at_once_and_again_after_what_the_work_says() -> None:
    """The first call does not wait; a long wait ends with the close."""
    work = Work(0.0, 0.001, 3600)
    timer = TimerThread("worker", work)
    timer.start()
    assert work.done.wait(DEADLINE_S)
    assert timer.close()
    assert (work.calls, set(work.threads)) == (3, {"worker"})


def test_a_wait_beyond_what_the_platform_takes_is_its_longest() -> None:
    """Who wants no second call may say so by a number."""
    work = Work(1e300)
    timer = TimerThread("worker", work)
    timer.start()
    assert work.done.wait(DEADLINE_S)
    assert timer._thread is not None
    timer._thread.join(0.05)
    assert timer._thread.is_alive()
    assert timer.close()


def test_work_that_exits_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    """It is counted like an error."""

    def work() -> float:
        raise SystemExit(1)

    timer = TimerThread("worker", work)
    timer.start()
    assert timer._thread is not None
    timer._thread.join(0.05)
    assert timer._thread.is_alive()
    assert timer.close()
    assert timer.failures == {"SystemExit": 1}
    assert caplog.messages == ["worker fails: SystemExit"]


def test_starting_and_closing_twice_is_once() -> None:
    """One thread; a second close finds nothing."""
    work = Work(3600)
    timer = TimerThread("worker", work)
    timer.start()
    timer.start()
    assert [thread.name for thread in threading.enumerate()].count("worker") == 1
    assert timer.close()
    assert timer.close()
    assert not timer.is_started


def test_it_can_begin_anew() -> None:
    """A start after a close has a thread of its own."""
    for _ in range(2):
        work = Work(3600)
        timer = TimerThread("worker", work)
        for _ in range(2):
            work.done.clear()
            work.calls = 0
            timer.start()
            assert work.done.wait(DEADLINE_S)
            assert timer.close()


def test_work_that_raises_is_tried_again_and_told_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each failure counts, and its cause is reported with its traceback."""
    monkeypatch.setattr("foundry_log.timer_thread.RETRY_S", 0.001)
    enough = threading.Event()

    def work() -> float:
        if timer.failures["KeyError"] == 3:
            enough.set()
        raise KeyError("it")

    timer = TimerThread("worker", work)
    timer.start()
    assert enough.wait(DEADLINE_S)
    assert timer.close()
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.WARNING, "worker fails: KeyError")
    assert record.exc_info is not None


def test_closing_waits_no_longer_than_asked_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Work that does not end is left, with a warning."""
    at_work, may_end = threading.Event(), threading.Event()

    def work() -> float:
        at_work.set()
        may_end.wait(DEADLINE_S)
        return 3600

    timer = TimerThread("worker", work)
    timer.start()
    assert at_work.wait(DEADLINE_S)
    thread = next(thread for thread in threading.enumerate() if thread.name == "worker")
    assert not timer.close(0.01)
    assert "worker is still at work" in caplog.text
    may_end.set()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def test_its_own_work_may_close_it() -> None:
    """A thread cannot wait for itself, and need not."""
    closed = threading.Event()

    def work() -> float:
        timer.close()
        closed.set()
        return 3600

    timer = TimerThread("worker", work)
    timer.start()
    assert closed.wait(DEADLINE_S)


FORKS = """
import os, threading, warnings
from foundry_log.timer_thread import TimerThread
warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the point
at_work = threading.Event()
def work():
    at_work.set()
    return 3600
timer = TimerThread("worker", work)
timer.start()
assert at_work.wait(20)
child = os.fork()
if not child:
    is_closed = timer.close()
    timer.start()
    is_well = is_closed and timer.is_inherited and threading.active_count() == 1
    os._exit(0 if is_well else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), timer.is_inherited, timer.close())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_neither_works_nor_waits() -> None:
    """Starting and closing there do nothing, and the parent's goes on."""
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60)
    assert done.stdout == "0 False True\n", done.stderr
