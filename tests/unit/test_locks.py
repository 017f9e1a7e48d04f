"""Locks between processes: who excludes whom, and what a fork or a kill leaves behind."""

from __future__ import annotations

import contextlib
import os
import platform
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from foundry_log.files import locks

pytestmark = pytest.mark.unit

HOLDER = """
import sys
from foundry_log.files import locks
with locks.exclusive_file(sys.argv[1], 0o600):
    print("held", flush=True)
    sys.stdin.readline()
"""

# Every flock(2) of the process is refused with ENOLCK, as on a file system without locks.
REFUSE_FLOCK = """
import ctypes, platform, struct
number = {"x86_64": 73, "aarch64": 32}[platform.machine()]
refuse, allow = (0x06, 0, 0, 0x50000 | 37), (0x06, 0, 0, 0x7FFF0000)
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), refuse, allow]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
program = Program(len(steps), ctypes.addressof(code))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(program)):
    raise SystemExit("seccomp is refused")
"""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_two_descriptors_share_a_shared_lock(tmp_path: Path) -> None:
    """Writers do not exclude each other."""
    with opened(tmp_path / "f") as one, opened(tmp_path / "f") as two:
        assert locks.try_shared(one)
        assert locks.try_shared(two)


def test_an_exclusive_lock_is_refused_while_anybody_shares_one(tmp_path: Path) -> None:
    """Who wants to remove a file learns that it is being written."""
    with opened(tmp_path / "f") as one, opened(tmp_path / "f") as two:
        locks.try_shared(one)
        assert not locks.try_exclusive(two)


def test_a_shared_lock_is_refused_while_somebody_holds_the_file_alone(tmp_path: Path) -> None:
    """A writer that comes late sees that the file is being taken away."""
    with opened(tmp_path / "f") as one, opened(tmp_path / "f") as two:
        assert locks.try_exclusive(one)
        assert not locks.try_shared(two)


def test_in_use_tells_of_a_lock_in_this_or_another_process(tmp_path: Path) -> None:
    """A held lock is the proof of life."""
    path = tmp_path / "f"
    with opened(path) as descriptor:
        assert not locks.in_use(str(path))
        locks.try_shared(descriptor)
        assert locks.in_use(str(path))


def test_a_file_that_is_gone_is_not_in_use(tmp_path: Path) -> None:
    """There is nothing left to protect."""
    assert not locks.in_use(str(tmp_path / "never"))


def test_what_cannot_be_opened_counts_as_in_use(tmp_path: Path) -> None:
    """Unknown counts as alive: a directory cannot be opened for writing."""
    assert locks.in_use(str(tmp_path))


def test_a_lock_that_is_refused_lets_writing_go_on_and_nothing_be_removed() -> None:
    """Where the kernel refuses to lock, shared counts as granted and exclusive does not."""
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    assert locks.try_shared(writing)
    assert not locks.try_exclusive(writing)


def test_the_lock_file_stays_and_can_be_taken_again(tmp_path: Path) -> None:
    """Removing it would let two holders in."""
    path = tmp_path / "lock"
    for _ in range(2):
        with locks.exclusive_file(str(path), 0o600):
            assert locks.in_use(str(path))
    assert path.exists()
    assert not locks.in_use(str(path))


def test_an_error_inside_releases_the_lock(tmp_path: Path) -> None:
    """A rotation that fails does not stop the next."""
    path = tmp_path / "lock"
    with pytest.raises(OSError, match="boom"), locks.exclusive_file(str(path), 0o600):
        raise OSError("boom")
    assert not locks.in_use(str(path))


def test_the_lock_of_a_killed_holder_is_free(tmp_path: Path) -> None:
    """The kernel releases what a dead process held."""
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert locks.in_use(str(path))
        holder.kill()
    with locks.exclusive_file(str(path), 0o600):
        pass


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    """Two rotations never overlap."""
    path = tmp_path / "lock"
    with locks.exclusive_file(str(path), 0o600):
        waiting = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert waiting.stdout is not None
        ready, _, _ = select.select([waiting.stdout], [], [], 0.5)
        assert not ready
    with waiting:
        assert waiting.stdout.readline() == b"held\n"
        waiting.communicate(b"\n", timeout=20)


def test_a_process_forked_while_another_thread_holds_the_lock_does_not_keep_it(
    tmp_path: Path,
) -> None:
    """A child that lives on, a DataLoader worker for one, stops no later rotation."""
    path, inside, leave = tmp_path / "lock", threading.Event(), threading.Event()

    def rotate() -> None:
        with locks.exclusive_file(str(path), 0o600):
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=rotate)
    thread.start()
    inside.wait(20)
    child = _forked_sleeper()
    leave.set()
    thread.join(20)
    try:
        assert not locks.in_use(str(path))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_copy_of_the_descriptor_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A child made without Python's hooks has one: the lock is released, not just closed."""
    path = tmp_path / "lock"
    with locks.exclusive_file(str(path), 0o600):
        (descriptor,) = locks._held
        os.set_inheritable(descriptor, True)
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        assert not locks.in_use(str(path))
    finally:
        child.kill()
        child.wait(20)


def test_the_lock_is_free_when_its_holder_is_killed_after_a_fork(tmp_path: Path) -> None:
    """The child has closed its copy, so the parent's death is the end of the lock."""
    path = tmp_path / "lock"
    script = (
        "import os, sys, signal, time\n"
        "from foundry_log.files import locks\n"
        "with locks.exclusive_file(sys.argv[1], 0o600):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        print(os.getpid(), flush=True)\n"
        "        while True: time.sleep(60)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            assert locks.in_use(str(path))
            holder.kill()
            holder.wait(20)
            assert not locks.in_use(str(path))
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="needs Linux's seccomp on a known machine",
)
def test_where_locks_are_refused_writing_goes_on_and_nothing_is_removed(tmp_path: Path) -> None:
    """A file system without flock costs the rotation, which is reported, and no record."""
    script = REFUSE_FLOCK + (
        "import logging, os, sys\n"
        "from foundry_log import RotatingJsonlHandler\nfrom foundry_log.files import locks\n"
        "handler = RotatingJsonlHandler(sys.argv[1], maxBytes=200, backupCount=1)\n"
        "before = len(os.listdir('/proc/self/fd'))\n"
        "for number in range(20):\n"
        "    handler.handle(logging.makeLogRecord({'msg': f'line {number}'}))\n"
        "assert not handler.losses, handler.losses\n"
        "assert handler.failed_rotations['OSError ENOLCK'], handler.failed_rotations\n"
        "assert len(os.listdir('/proc/self/fd')) == before\n"
        "assert locks.in_use(sys.argv[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run.jsonl")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "seccomp is refused" in done.stderr:
        pytest.skip("this machine refuses seccomp filters")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Logging error") == 1
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 20


def _forked_sleeper() -> int:
    """Return the pid of a forked child that does nothing, with its hooks run."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(told, b".")
        while True:
            signal.pause()
    os.read(ready, 1)
    os.close(ready)
    os.close(told)
    return child


def test_a_thread_lock_is_free_in_the_child_of_a_fork() -> None:
    """A child forked while another thread holds it does not wait for ever.

    In a process of its own, since Python warns of forks beside threads.
    """
    script = """
import os, signal, threading, warnings
from foundry_log.files.locks import thread_lock
warnings.simplefilter("ignore")
lock, held, done = thread_lock(), threading.Event(), threading.Event()
def hold():
    with lock:
        held.set()
        done.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    with lock:
        os._exit(0)
status = os.waitpid(pid, 0)[1]
done.set()
thread.join()
print(status)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )

    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_fork_beside_a_dict_config_that_opens_a_file_goes_on(tmp_path: Path) -> None:
    """`dictConfig` has logging's lock when its handlers open files, and a fork needs both locks.

    In a process of its own, since Python warns of forks beside threads.
    """
    script = """
import faulthandler, logging.config, os, sys, threading, time, warnings
from foundry_log import RotatingJsonlHandler
from foundry_log.files import locks
faulthandler.dump_traceback_later(20, exit=True)
warnings.simplefilter("ignore")
configuring, forking = threading.Event(), threading.Event()
os.register_at_fork(before=forking.set)
def make():
    configuring.set()
    forking.wait()
    for _ in range(50):  # until the fork has got as far as it can
        if not locks.opening.acquire(blocking=False):
            break
        locks.opening.release()
        time.sleep(0.01)
    return RotatingJsonlHandler(sys.argv[1])
configuration = {"version": 1, "handlers": {"file": {"()": make}}}
thread = threading.Thread(target=logging.config.dictConfig, args=(configuration,))
thread.start()
configuring.wait()
pid = os.fork()
if pid == 0:
    logging.config.dictConfig({"version": 1, "root": {"level": "INFO"}})
    os._exit(0)
status = os.waitpid(pid, 0)[1]
thread.join()
logging.config.dictConfig({"version": 1, "root": {"level": "INFO"}})
print("ended", status)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run.jsonl")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "ended 0\n", done.stderr
