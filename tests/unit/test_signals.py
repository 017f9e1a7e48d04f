"""Signals: the last record, then what the signal would have done, once, whatever the moment."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from foundry_log import RotatingJsonlHandler
from foundry_log.jsonl import read_jsonl
from foundry_log.signals import DEFAULT_SIGNALS, SignalWatch

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals"),
]

DEADLINE_S = 60.0

SETUP = """
import ctypes, logging, os, random, signal, sys, threading, time
from foundry_log import RotatingJsonlHandler
from foundry_log.signals import SignalWatch

def log_to(path, **options):
    handler = RotatingJsonlHandler(path, **options)
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel("INFO")
    return handler

def ready():
    print("ready", flush=True)

def nothing():
    pass

"""
LOG = SETUP + "handler = log_to(sys.argv[1])\n"
WATCHED = LOG + "watch = SignalWatch(flush=nothing)\n"
WAIT = "ready()\nwhile True: time.sleep(60)\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


@contextlib.contextmanager
def running(script: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has said it is ready; killed at the deadline, wherever it hangs."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as process:

        def kill() -> None:
            with contextlib.suppress(ProcessLookupError):  # its children too: they have the pipes
                os.killpg(process.pid, signal.SIGKILL)

        limit = threading.Timer(DEADLINE_S, kill)
        limit.start()
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                pytest.fail(f"the script failed:\n{process.communicate()[1]}")
            yield process
        finally:
            limit.cancel()
            limit.join()
            kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and standard output of a process that is silent on standard error."""
    output, errors = process.communicate(timeout=DEADLINE_S)
    assert errors == ""
    return process.returncode, output


def end_of(script: str, path: Path, number: int = signal.SIGTERM) -> tuple[int, str]:
    """What becomes of a script at one signal."""
    with running(script, path) as process:
        process.send_signal(number)
        return ended(process)


def messages(path: Path) -> list[str]:
    reader = read_jsonl(path)
    found = [entry["message"] for entry in reader]
    assert reader.skipped == 0
    return found


def last_records(path: Path) -> list[str]:
    return [message for message in messages(path) if " received: flushing" in message]


# --- the default action ---


@pytest.mark.parametrize("number", DEFAULT_SIGNALS)
def test_the_default_action_follows_the_last_record(path: Path, number: signal.Signals) -> None:
    """The shell and SLURM see a process ended by that signal; the record says what happened."""
    with running(WATCHED + WAIT, path) as process:
        sent = time.time()
        process.send_signal(number)
        assert ended(process) == (-number, "")
    (entry,) = read_jsonl(path)
    assert entry["level"] == "WARNING"
    assert entry["logger"] == "foundry_log.signals"
    assert entry["message"] == f"{number.name} received: flushing, then the default action"
    received = datetime.fromisoformat(entry["context"].pop("received")).timestamp()
    assert sent - 1 < received < sent + DEADLINE_S
    assert entry["context"] == {
        "signal": number.name,
        "signal_number": number,
        "pid": process.pid,
        "next": "the default action",
        "deadline_s": 5.0,
    }


def test_the_flush_of_the_caller_comes_between(path: Path) -> None:
    """What is held back is written after the last record and before the end."""
    script = LOG + "watch = SignalWatch(flush=lambda: logging.info('flushed'))\n" + WAIT
    assert end_of(script, path) == (-signal.SIGTERM, "")
    assert messages(path)[1:] == ["flushed"]


def test_a_flush_that_fails_is_reported_and_the_process_ends_by_the_signal(path: Path) -> None:
    """No error of ours keeps a process alive."""
    with running(LOG + "watch = SignalWatch(flush=lambda: 1 / 0)\n" + WAIT, path) as process:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == -signal.SIGTERM
    assert "ZeroDivisionError" in errors
    assert len(last_records(path)) == 1


def test_a_wait_for_a_thread_that_never_ends_is_interrupted(path: Path) -> None:
    """Other threads do not hold the end up, whatever they wait for."""
    script = WATCHED + "thread = threading.Thread(target=threading.Event().wait)\nthread.start()\n"
    assert end_of(script + "ready()\nthread.join()\n", path) == (-signal.SIGTERM, "")
    assert len(last_records(path)) == 1


def test_a_burst_is_one_delivery(path: Path) -> None:
    """Whoever is impatient gets one last record and one end."""
    with running(WATCHED + WAIT, path) as process:
        for _ in range(20):
            process.send_signal(signal.SIGTERM)
        assert ended(process) == (-signal.SIGTERM, "")
    assert len(last_records(path)) == 1


def test_a_lock_that_the_interrupted_thread_holds_delays_the_end_no_longer_than_the_deadline(
    path: Path,
) -> None:
    """The record wants the handler's lock, and the main thread never lets go of it."""
    script = LOG + "watch = SignalWatch(flush=nothing, deadline_s=0.2)\nhandler.acquire()\n"
    assert end_of(script + WAIT, path) == (-signal.SIGTERM, "")


def test_a_main_thread_stuck_in_c_code_ends_after_its_grace(path: Path) -> None:
    """It never runs a Python handler again: here it waits for a mutex that it holds itself."""
    script = LOG + (
        "watch = SignalWatch(flush=nothing, grace_s=0.2)\n"
        "libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)\n"
        "libc.pthread_mutex_init(mutex, None)\n"
        "libc.pthread_mutex_lock(mutex)\n"
        "threading.Timer(0.1, ready).start()\n"  # while the main thread is stuck
        "libc.pthread_mutex_lock(mutex)\n"
    )
    assert end_of(script, path) == (-signal.SIGTERM, "")
    assert len(last_records(path)) == 1


def test_a_signal_that_is_ignored_stays_ignored(path: Path) -> None:
    """`nohup` means what it says."""
    script = LOG + "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    script += "watch = SignalWatch(flush=nothing)\nready()\nsys.stdin.readline()\nprint('alive')\n"
    with running(script, path) as process:
        process.send_signal(signal.SIGHUP)
        output, errors = process.communicate("go on\n", timeout=DEADLINE_S)
    assert (process.returncode, output, errors) == (0, "alive\n", "")
    assert messages(path) == []


# --- a handler of the user's ---


def test_the_handler_of_before_runs_once_after_the_last_record_and_its_records_stand(
    path: Path,
) -> None:
    """It can save a checkpoint and say so, and decides how the process ends."""
    script = LOG + (
        "def save(number, frame):\n"
        "    logging.info('saved at %d in %s', number, frame.f_code.co_name)\n"
        "    sys.exit(7)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "watch = SignalWatch(flush=nothing)\n"
        "def train():\n"
        "    while True: time.sleep(60)\n"
        "ready()\n"
        "train()\n"
    )
    assert end_of(script, path) == (7, "")
    last = "SIGTERM received: flushing, then __main__.save"
    assert messages(path) == [last, "saved at 15 in train"]


class Calls:
    """A user's handler that returns, and lets a test wait for it."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def __call__(self, number: int, frame: Any) -> None:
        self.numbers.append(number)

    def wait_for(self, count: int) -> None:
        """Wait in the main thread, where signal handlers run."""
        wait_until(lambda: len(self.numbers) >= count)


def wait_until(is_true: Callable[[], bool]) -> None:
    limit = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < limit, "it never came"
        time.sleep(0.001)


@pytest.fixture
def calls() -> Iterator[Calls]:
    """The handler of SIGUSR1 for one test."""
    handler = Calls()
    before = signal.signal(signal.SIGUSR1, handler)
    yield handler
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def log(path: Path) -> RotatingJsonlHandler:
    """Takes what the watch logs in this process."""
    handler = RotatingJsonlHandler(path)
    logging.getLogger("foundry_log.signals").addHandler(handler)
    return handler


@contextlib.contextmanager
def watching(**options: Any) -> Iterator[SignalWatch]:
    options = {"flush": lambda: None, "signals": [signal.SIGUSR1], **options}
    watch = SignalWatch(**options)
    try:
        yield watch
    finally:
        watch.close()


@pytest.mark.usefixtures("log")
def test_after_a_handler_that_returns_the_next_signal_goes_the_same_way(
    path: Path, calls: Calls
) -> None:
    """The process goes on; nothing of a delivery is left over for the next one, or makes one."""
    with watching():
        for count in range(1, 31):
            os.kill(os.getpid(), signal.SIGUSR1)
            calls.wait_for(count)
            assert len(calls.numbers) == count
    assert calls.numbers == [signal.SIGUSR1] * 30
    assert len(last_records(path)) == 30


@pytest.mark.usefixtures("log")
def test_two_signals_at_a_time_each_have_their_record_and_their_action(
    path: Path, calls: Calls
) -> None:
    """One waits for the other."""
    before = signal.signal(signal.SIGUSR2, calls)
    try:
        with watching(signals=[signal.SIGUSR1, signal.SIGUSR2]):
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR2)
            calls.wait_for(2)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert sorted(calls.numbers) == [signal.SIGUSR1, signal.SIGUSR2]
    assert len(last_records(path)) == 2


def test_deliveries_at_any_moment_never_become_more_actions(calls: Calls) -> None:
    """Bursts run into the drain, the second sending and the action; at least one of each acts."""
    sent = 0
    with watching():
        for burst in range(30):
            known = len(calls.numbers)
            for _ in range(burst % 4 + 1):
                os.kill(os.getpid(), signal.SIGUSR1)
                sent += 1
                time.sleep(burst / 3_000)
            calls.wait_for(known + 1)
    assert 30 <= len(calls.numbers) <= sent


@pytest.mark.usefixtures("log")
def test_without_the_wake_up_descriptor_everything_works(path: Path, calls: Calls) -> None:
    """Somebody else has it, and gets the signals' numbers."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    before = signal.set_wakeup_fd(write_end)
    try:
        with watching():
            os.kill(os.getpid(), signal.SIGUSR1)
            calls.wait_for(1)
            assert signal.SIGUSR1 in os.read(read_end, 100)
        assert signal.set_wakeup_fd(before) == write_end
    finally:
        signal.set_wakeup_fd(before)
        os.close(read_end)
        os.close(write_end)
    assert (len(calls.numbers), len(last_records(path))) == (1, 1)


@pytest.mark.usefixtures("log")
def test_a_later_handler_that_calls_ours_runs_once_and_waits_for_the_drain(
    path: Path, calls: Calls
) -> None:
    """Chaining is common; the signal is not sent to such a handler a second time."""
    later = []
    with watching():
        ours = signal.getsignal(signal.SIGUSR1)
        assert callable(ours)

        def chain(number: int, frame: Any) -> None:
            later.append(len(last_records(path)))
            ours(number, frame)
            later.append(len(last_records(path)))

        signal.signal(signal.SIGUSR1, chain)
        os.kill(os.getpid(), signal.SIGUSR1)
        calls.wait_for(1)
        signal.signal(signal.SIGUSR1, ours)
    assert (later, len(calls.numbers)) == ([0, 1], 1)


def test_a_later_handler_in_our_place_is_left_to_itself(path: Path) -> None:
    """Woken by the system, we neither log nor end the process; close waits for all we serve."""
    script = LOG + (
        "watch = SignalWatch(flush=nothing, grace_s=0.1)\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('theirs', flush=True))\n"
        "ready()\n"
        "sys.stdin.readline()\n"
        "watch.close()\n"
    )
    with running(script, path) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert process.stdout.readline() == "theirs\n"
        output, errors = process.communicate("go on\n", timeout=DEADLINE_S)
    assert (process.returncode, output, errors) == (0, "", "")
    assert messages(path) == []


# --- asyncio ---


def test_an_event_loop_that_takes_the_wake_up_descriptor_changes_nothing(path: Path) -> None:
    """Its own signals reach it, and ours reach us."""
    script = WATCHED + (
        "import asyncio\n"
        "async def main():\n"
        "    loop, got = asyncio.get_running_loop(), asyncio.Event()\n"
        "    loop.add_signal_handler(signal.SIGUSR1, got.set)\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    await got.wait()\n"
        "    ready()\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    assert end_of(script, path) == (-signal.SIGTERM, "")
    assert len(last_records(path)) == 1


def test_a_callback_of_an_event_loop_is_called_once(path: Path) -> None:
    """The loop hears of the signal directly, so it is not sent again after the drain."""
    script = LOG + (
        "import asyncio\n"
        "async def main():\n"
        "    loop, flushed, calls = asyncio.get_running_loop(), asyncio.Event(), []\n"
        "    loop.add_signal_handler(signal.SIGTERM, calls.append, 1)\n"
        "    watch = SignalWatch(flush=lambda: loop.call_soon_threadsafe(flushed.set))\n"
        "    ready()\n"
        "    await flushed.wait()\n"
        "    watch.close()\n"
        "    for _ in range(5): await asyncio.sleep(0)\n"
        "    print(len(calls))\n"
        "asyncio.run(main())\n"
    )
    assert end_of(script, path) == (0, "1\n")
    assert last_records(path) == ["SIGTERM received: flushing, then the event loop's callback"]


# --- fork ---


def test_a_forked_child_dies_of_its_signals_at_once_and_the_parent_hears_nothing(
    path: Path,
) -> None:
    """Whichever thread forks, and however soon after the fork the signal comes."""
    script = WATCHED + (
        "def round():\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        while True: signal.pause()\n"
        "    os.kill(child, signal.SIGTERM)\n"
        "    status = os.waitpid(child, 0)[1]\n"
        "    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM\n"
        "for _ in range(60):\n"
        "    round()\n"
        "    thread = threading.Thread(target=round)\n"
        "    thread.start()\n"
        "    thread.join()\n"
        "assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())\n"
        "logging.info('undisturbed')\n"
    )
    assert end_of(script + WAIT, path) == (-signal.SIGTERM, "")
    assert messages(path)[0] == "undisturbed"
    assert len(messages(path)) == 2


def test_a_child_has_the_handlers_of_before_and_no_descriptor_of_ours(path: Path) -> None:
    """As if nobody had watched; the inherited watch may be closed there too."""
    script = LOG + (
        "before = signal.getsignal(signal.SIGTERM), len(os.listdir('/dev/fd'))\n"
        "watch = SignalWatch(flush=nothing)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    handler.close()\n"
        "    now = signal.getsignal(signal.SIGTERM), len(os.listdir('/dev/fd'))\n"
        "    watch.close()\n"
        "    os._exit(now[0] != before[0] or signal.set_wakeup_fd(-1) != -1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "ready()\n"
        "watch.close()\n"
    )
    with running(script, path) as process:
        assert ended(process) == (0, "")


def test_a_childs_handler_that_calls_ours_does_not_wait(path: Path) -> None:
    """There is nobody in the child to wait for."""
    script = LOG + (
        "watch = SignalWatch(flush=nothing, deadline_s=600)\n"
        "ours = signal.getsignal(signal.SIGTERM)\n"
        "signal.signal(signal.SIGTERM, lambda *signal: ours(*signal))\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    while True: signal.pause()\n"
        "os.kill(child, signal.SIGTERM)\n"
        "assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM\n"
        "ready()\n"
    )
    with running(script, path) as process:
        assert ended(process) == (0, "")
    assert messages(path) == []


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_of_multiprocessing_is_terminated(path: Path, method: str) -> None:
    """DataLoader workers end at once, and their parent goes on."""
    script = WATCHED + (
        "import multiprocessing\n"
        f"context = multiprocessing.get_context({method!r})\n"
        "process = context.Process(target=time.sleep, args=(60,))\n"
        "process.start()\n"
        "process.terminate()\n"
        "process.join()\n"
        "logging.info('ended with %d', process.exitcode)\n"
        "ready()\n"
    )
    with running(script, path) as process:
        assert ended(process) == (0, "")
    assert messages(path) == ["ended with -15"]


FORKING = (
    LOG
    + """
def stop(number, frame):
    signal.signal(number, lambda *_: None)  # what comes while this unwinds must not raise again
    sys.exit(7)

def run(told):
    signal.signal(signal.SIGTERM, stop)
    SignalWatch(flush=nothing)
    os.write(told, b"!")
    while True:
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)

for round in range(25):
    listen, told = os.pipe()
    child = os.fork()
    if not child:
        try:
            run(told)
        except SystemExit as end:
            os._exit(end.code)
    os.read(listen, 1)
    os.close(listen), os.close(told)
    status = None
    while status is None:  # a second signal can find the action due in the middle of a fork
        os.kill(child, signal.SIGTERM)
        time.sleep(random.uniform(0, 0.001))
        ended, result = os.waitpid(child, os.WNOHANG)
        status = result if ended else None
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 7, (round, status)
ready()
"""
)


def test_what_a_handler_raises_is_not_swallowed_by_a_fork(path: Path) -> None:
    """Python drops exceptions inside the hooks of a fork: no action is started there."""
    with running(FORKING, path) as process:
        assert ended(process) == (0, "")
    assert len(last_records(path)) >= 25


# --- set-up and close ---


def test_close_brings_everything_back_and_may_come_twice(calls: Calls) -> None:
    """Handler, wake-up descriptor, thread and descriptors are as before."""
    threads, descriptors = threading.active_count(), len(os.listdir("/dev/fd"))
    with watching() as watch:
        assert signal.getsignal(signal.SIGUSR1) is not calls
        watch.close()
        assert signal.getsignal(signal.SIGUSR1) is calls
        wakeup = signal.set_wakeup_fd(-1)
        assert wakeup == -1
        assert threading.active_count() == threads
        assert len(os.listdir("/dev/fd")) == descriptors
        os.kill(os.getpid(), signal.SIGUSR1)
        calls.wait_for(1)


def test_close_leaves_a_handler_that_came_later(calls: Calls) -> None:
    """What is not ours is not taken away."""
    later = Calls()
    with watching():
        signal.signal(signal.SIGUSR1, later)
    assert signal.getsignal(signal.SIGUSR1) is later


@pytest.mark.usefixtures("log")
def test_close_waits_for_a_signal_that_has_arrived(path: Path, calls: Calls) -> None:
    """Its record is written and its action runs before the handlers go."""
    for count in range(1, 21):
        with watching():
            os.kill(os.getpid(), signal.SIGUSR1)
        calls.wait_for(count)
    assert len(calls.numbers) == 20
    assert len(last_records(path)) == 20


def test_a_signal_at_any_moment_of_close_acts_once(calls: Calls) -> None:
    """Served, passed on, or after everything is as before: it is neither lost nor doubled."""
    for count in range(1, 101):
        with watching():
            sender = threading.Thread(target=send_in, args=(count * 5e-6,))
            sender.start()
        sender.join()
        calls.wait_for(count)
        assert len(calls.numbers) == count


def send_in(delay_s: float) -> None:
    time.sleep(delay_s)
    os.kill(os.getpid(), signal.SIGUSR1)


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize("first", ["inner", "outer"])
def test_two_watches_may_be_nested(path: Path, calls: Calls, first: str) -> None:
    """The inner hands on to the outer, closed or not, and the action still runs once."""
    with watching() as outer, watching() as inner:
        os.kill(os.getpid(), signal.SIGUSR1)
        calls.wait_for(1)
        assert len(last_records(path)) == 2
        {"inner": inner, "outer": outer}[first].close()
        os.kill(os.getpid(), signal.SIGUSR1)
        calls.wait_for(2)
        assert len(last_records(path)) == 3
    os.kill(os.getpid(), signal.SIGUSR1)
    calls.wait_for(3)
    assert (len(calls.numbers), len(last_records(path))) == (3, 3)


def test_another_thread_can_neither_make_nor_close_a_watch(calls: Calls) -> None:
    """Python sets signal handlers in the main thread alone; the message says so."""
    errors: list[str] = []

    def attempt(work: Callable[[], object]) -> None:
        with pytest.raises(ValueError, match="main thread") as caught:
            work()
        errors.append(str(caught.value))

    with watching() as watch:
        for work in (watch.close, lambda: SignalWatch(flush=lambda: None)):
            thread = threading.Thread(target=attempt, args=(work,))
            thread.start()
            thread.join()
    assert len(errors) == 2
    assert signal.getsignal(signal.SIGUSR1) is calls


@pytest.mark.parametrize(
    "options",
    [
        {"deadline_s": 0},
        {"grace_s": -1.0},
        {"deadline_s": float("nan")},
        {"signals": [signal.SIGKILL]},
        {"signals": [0]},
        {"signals": [signal.SIGUSR1, 4_000]},
    ],
)
def test_a_wrong_value_is_refused_and_nothing_is_changed(
    calls: Calls, options: dict[str, Any]
) -> None:
    """Before a thread is started or a handler replaced."""
    with pytest.raises(ValueError, match=r"deadline_s|signals: "):
        SignalWatch(flush=lambda: None, **options)
    assert signal.getsignal(signal.SIGUSR1) is calls


# --- any moment ---

TORTURE = (
    SETUP
    + """
def run(path, told):
    log_to(path, maxBytes=20_000, stable_names=True)
    SignalWatch(flush=nothing)
    number = 0
    while True:
        logging.info(str(number))
        os.write(told, b"%d\\n" % number)
        number += 1

for round in range(30):
    path = f"{sys.argv[1]}.{round}"
    told = os.open(path + ".told", os.O_CREAT | os.O_WRONLY)
    child = os.fork()
    if not child:
        run(path, told)
    while not os.fstat(told).st_size:
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.05))
    os.kill(child, signal.SIGTERM)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM, status
    os.close(told)
ready()
"""
)


def test_at_any_moment_of_a_busy_writer_no_line_is_lost_or_torn(path: Path) -> None:
    """Every acknowledged line stands once, over rotations, and so does the last record."""
    with running(TORTURE, path) as process:
        assert ended(process) == (0, "")
    for number in range(30):
        live = path.with_name(f"{path.name}.{number}")
        acknowledged = live.with_name(live.name + ".told").read_text().split()
        found = Counter(messages(live))
        assert found.pop("SIGTERM received: flushing, then the default action") == 1
        assert set(found.values()) == {1}
        assert set(acknowledged) <= set(found)
        assert len(found) - len(acknowledged) <= 1
