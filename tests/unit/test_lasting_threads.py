"""Threads that work while the interpreter ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from foundry_log.shipping.lasting_threads import LastingThreads

pytestmark = pytest.mark.unit


@pytest.fixture
def threads() -> Iterator[LastingThreads]:
    """Two threads, ended behind the test."""
    executor = LastingThreads(2, "lasting")
    yield executor
    executor.shutdown()


def test_a_call_has_its_result_and_its_error(threads: LastingThreads) -> None:
    """Keywords go along; whatever is raised is the caller's."""
    assert threads.submit(int, "ff", base=16).result(5) == 255
    with pytest.raises(ValueError, match="nonsense"):
        threads.submit(int, "nonsense").result(5)
    with pytest.raises(SystemExit):
        threads.submit(sys.exit).result(5)
    assert threads.submit(int).result(5) == 0


def test_an_event_loop_takes_it(threads: LastingThreads) -> None:
    """`asyncio.to_thread` runs on its threads."""
    loop = asyncio.new_event_loop()
    loop.set_default_executor(threads)

    async def names() -> set[str]:
        asked = (asyncio.to_thread(lambda: threading.current_thread().name) for _ in range(20))
        return set(await asyncio.gather(*asked))

    try:
        assert loop.run_until_complete(names()) <= {"lasting-0", "lasting-1"}
    finally:
        loop.close()


def test_a_cancelled_call_is_not_made(threads: LastingThreads) -> None:
    """GIVEN both threads at work WHEN a waiting call is cancelled THEN nobody makes it."""
    gate, calls = threading.Event(), []
    busy = [threads.submit(gate.wait, 5) for _ in range(2)]
    waiting = threads.submit(calls.append, 1)
    assert waiting.cancel()
    gate.set()
    assert all(each.result(5) for each in busy)
    threads.submit(int).result(5)
    assert not calls


def test_shutting_down_waits_for_what_was_submitted() -> None:
    """And a second time does nothing."""
    threads, done = LastingThreads(1, "lasting"), []
    for number in range(5):
        threads.submit(done.append, number)
    threads.shutdown()
    threads.shutdown()
    assert done == [0, 1, 2, 3, 4]


def test_it_takes_work_in_functions_of_atexit() -> None:
    """Where the stdlib's raises."""
    code = """
import atexit, concurrent.futures
from foundry_log.shipping.lasting_threads import LastingThreads
ours, theirs = LastingThreads(1, "lasting"), concurrent.futures.ThreadPoolExecutor(1)
theirs.submit(int).result()
def at_the_end():
    print(ours.submit(int, "7").result(5))
    try:
        theirs.submit(int)
    except RuntimeError:
        print("refused")
atexit.register(at_the_end)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("7\nrefused\n", "")
