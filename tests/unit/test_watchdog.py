"""Watchdog: a hang is an error with all stacks, once, and its end is a record."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from foundry_log import ErrorTracker, read_jsonl
from foundry_log.watchdog import MAX_FRAMES, HangError, Watchdog, stacks

pytestmark = pytest.mark.unit

DEADLINE_S = 20


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watchdog(error_tracker: ErrorTracker, clock: Clock) -> Watchdog:
    """Ten minutes, by a clock of the test, looked at by the test."""
    return Watchdog(600, error_tracker, clock=clock)


def hangs(tracker: ErrorTracker) -> list[dict[str, Any]]:
    """The entries of the error log."""
    path = tracker.errors_file
    return list(read_jsonl(path)) if path.exists() else []


class TestHangs:
    def test_steps_that_come_in_time_say_nothing(
        self, watchdog: Watchdog, clock: Clock, error_tracker: ErrorTracker
    ) -> None:
        """A look tells when a hang would be due."""
        for step in range(5):
            watchdog.beat(step)
            clock.now += 599
            assert watchdog.look() == 1
        assert hangs(error_tracker) == []

    def test_a_hang_is_an_error_with_step_seconds_and_stacks(
        self, watchdog: Watchdog, clock: Clock, error_tracker: ErrorTracker
    ) -> None:
        """It stands in the error log while the run still hangs."""
        watchdog.beat(17)
        clock.now += 600
        assert watchdog.look() == 600
        (entry,) = hangs(error_tracker)
        assert entry["error_type"] == "HangError"
        assert entry["error_message"] == "no step for 600 s; last step 17"
        assert (entry["context"]["step"], entry["context"]["seconds"]) == (17, 600)
        assert "stacks" in entry["context"]

    def test_the_first_step_may_hang_too(
        self, watchdog: Watchdog, clock: Clock, error_tracker: ErrorTracker
    ) -> None:
        """Time counts from the start."""
        clock.now += 700
        watchdog.look()
        (entry,) = hangs(error_tracker)
        assert entry["error_message"] == "no step for 700 s; no step was done before"
        assert entry["context"]["step"] is None

    def test_a_hang_is_logged_once(
        self, watchdog: Watchdog, clock: Clock, error_tracker: ErrorTracker
    ) -> None:
        """However long it lasts."""
        watchdog.beat(1)
        for _ in range(5):
            clock.now += 600
            watchdog.look()
        assert len(hangs(error_tracker)) == 1

    def test_its_end_is_a_record_and_the_next_one_an_error_again(
        self,
        watchdog: Watchdog,
        clock: Clock,
        error_tracker: ErrorTracker,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The record says how long the step took."""
        watchdog.beat(1)
        clock.now += 600
        watchdog.look()
        clock.now += 60
        watchdog.beat(2)
        record = caplog.records[-1]
        assert (record.levelno, record.getMessage()) == (
            logging.WARNING,
            "Steps go on after 660 s",
        )
        assert record.funcName == "test_its_end_is_a_record_and_the_next_one_an_error_again"
        fields = vars(record)
        assert (fields["step"], fields["last_step"], fields["seconds"]) == (2, 1, 660)
        watchdog.beat(3)
        assert caplog.records[-1] is record
        clock.now += 600
        watchdog.look()
        assert len(hangs(error_tracker)) == 2

    def test_a_beat_without_a_step_keeps_the_last(
        self, watchdog: Watchdog, clock: Clock, error_tracker: ErrorTracker
    ) -> None:
        """A long evaluation beats; a hang in it names the step before."""
        watchdog.beat(17)
        clock.now += 500
        watchdog.beat()
        clock.now += 500
        assert watchdog.look() == 100
        clock.now += 100
        watchdog.look()
        assert hangs(error_tracker)[0]["error_message"] == "no step for 600 s; last step 17"

    @pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
    def test_a_timeout_that_is_none_is_refused(
        self, error_tracker: ErrorTracker, timeout_s: float
    ) -> None:
        """Field, value, rule and remedy."""
        with pytest.raises(ValueError, match=r"timeout_s=\S+ must be above 0; 600 is usual"):
            Watchdog(timeout_s, error_tracker)


class TestThread:
    def test_a_run_that_really_hangs_is_seen_by_the_thread(
        self, error_tracker: ErrorTracker, mock_logger: logging.Logger
    ) -> None:
        """GIVEN: A started watchdog, and a main thread that waits for something
        WHEN: No step comes
        THEN: The error shows where the main thread waits.
        """
        seen = Seen(logging.ERROR)
        mock_logger.addHandler(seen)
        with Watchdog(0.05, error_tracker) as watchdog:
            watchdog.beat(3)
            wait_for_what_never_comes(seen.record)
        mock_logger.removeHandler(seen)
        (entry,) = hangs(error_tracker)
        threads = entry["context"]["stacks"]
        assert next(iter(threads)) == "MainThread"
        assert any("wait_for_what_never_comes" in line for line in threads["MainThread"])
        assert "foundry_log watchdog" not in threads

    def test_starting_and_closing_twice_is_once(self, error_tracker: ErrorTracker) -> None:
        """One thread, and none afterwards."""
        watchdog = Watchdog(3600, error_tracker)
        watchdog.close()
        for _ in range(2):
            watchdog.start()
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("foundry_log watchdog") == 1
        for _ in range(2):
            watchdog.close()

    def test_what_came_before_the_start_does_not_count(
        self, error_tracker: ErrorTracker, clock: Clock
    ) -> None:
        """A model that took an hour to load is no hang."""
        watchdog = Watchdog(600, error_tracker, clock=clock)
        clock.now += 3600
        watchdog.start()
        assert watchdog.look() == 600
        watchdog.close()
        assert hangs(error_tracker) == []

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_forked_child_is_not_watched(self, tmp_path: Path) -> None:
        """It may beat and close."""
        command = [sys.executable, "-c", FORKS, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stdout == "0\n", done.stderr


FORKS = """
import logging, os, sys, threading, warnings
from foundry_log import ErrorTracker
from foundry_log.watchdog import Watchdog
warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the point
with Watchdog(3600, ErrorTracker(logging.getLogger(), sys.argv[1])) as watchdog:
    child = os.fork()
    if not child:
        watchdog.start()
        watchdog.beat(1)
        watchdog.close()
        os._exit(threading.active_count() - 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


class TestStacks:
    def test_each_thread_has_its_frames_outermost_first(
        self, held_in: Callable[[str], None]
    ) -> None:
        """One text for a frame: file, line, function and code."""
        held_in("loader")
        lines = stacks()["loader"]
        where = next(at for at, line in enumerate(lines) if " in hold: " in line)
        assert __file__ in lines[where]
        assert any("in run" in line for line in lines[:where])

    def test_threads_of_the_same_name_are_all_there(self, held_in: Callable[[str], None]) -> None:
        """The later ones have their number behind the name."""
        for _ in range(3):
            held_in("loader")
        names = [name for name in stacks() if name.startswith("loader")]
        assert len(set(names)) == 3
        assert "loader" in names

    def test_of_a_deep_stack_the_innermost_frames_are_kept(
        self, held_in: Callable[[str], None]
    ) -> None:
        """Bounded, and at the end that matters; the main thread's comes first."""
        held_in("loader")
        found: dict[str, list[str]] = {}

        def dive(depth: int) -> None:
            if depth:
                dive(depth - 1)
                return
            looking = threading.Thread(target=lambda: found.update(stacks()))
            looking.start()
            looking.join(DEADLINE_S)

        dive(2 * MAX_FRAMES)
        lines = found[threading.main_thread().name]
        assert next(iter(found)) == "MainThread"
        assert len(lines) == MAX_FRAMES
        assert any("in dive: looking." in line for line in lines)


def test_a_beat_does_next_to_nothing(watchdog: Watchdog) -> None:
    """It calls nothing but the clock."""
    calls: list[str] = []

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            calls.append(frame.f_code.co_name if event == "call" else argument.__name__)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        watchdog.beat(1)
    finally:
        sys.setprofile(before)
    assert calls == ["beat", "__call__", "setprofile"]


def test_an_error_without_a_traceback_is_a_whole_entry(
    error_tracker: ErrorTracker,
) -> None:
    """A HangError was never raised."""
    error_tracker.log_error(HangError("no step"))
    assert hangs(error_tracker)[0]["traceback"] == "foundry_log.watchdog.HangError: no step\n"


class Seen(logging.Handler):
    """Tells when a record came."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.record = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.record.set()


def wait_for_what_never_comes(event: threading.Event) -> None:
    assert event.wait(DEADLINE_S)


@pytest.fixture
def held_in() -> Iterator[Callable[[str], None]]:
    """A function that starts a thread of a name, which stays in `hold` until the test is over."""
    may_end, threads = threading.Event(), []

    def start(name: str) -> None:
        held = threading.Event()

        def hold() -> None:
            held.set()
            may_end.wait(DEADLINE_S)

        thread = threading.Thread(target=hold, name=name)
        threads.append(thread)
        thread.start()
        assert held.wait(DEADLINE_S)

    yield start
    may_end.set()
    for thread in threads:
        thread.join(DEADLINE_S)
