"""What is done with rotated files: on a thread, by one process, and again after a kill."""

from __future__ import annotations

import gzip
import logging
import os
import random
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from foundry_log import RotatingJsonlHandler
from foundry_log.files import filenames, locks
from foundry_log.files.finishing import Finisher, Hook, compress
from foundry_log.handlers import rotating_jsonl

pytestmark = pytest.mark.unit

DEADLINE_S = 30.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


@pytest.fixture(autouse=True)
def waits_for_a_slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing waits for what is under way: a disk that syncs for seconds fails no test."""
    monkeypatch.setattr(rotating_jsonl, "_FINISH_WITHIN_S", DEADLINE_S)


class Reports:
    """What a finisher reports, and whether it was inside an `except` clause."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self.came = threading.Event()

    def __call__(self, text: str) -> None:
        self.all.append(text)
        self.came.set()


@pytest.fixture
def finisher(path: Path) -> Iterator[Callable[..., Finisher]]:
    """Make finishers of `path`; all are closed at the end."""
    made: list[Finisher] = []

    def make(*, compress: bool = False, hook: Hook | None = None, report: Any = None) -> Finisher:
        report = report or Reports()
        made.append(Finisher(lambda: [str(path)], compress=compress, hook=hook, report=report))
        return made[-1]

    yield make
    for each in made:
        each.close(DEADLINE_S)


def rotated(path: Path, second: int, content: str = "line\n") -> str:
    name = filenames.stamped_name(str(path), float(second))
    Path(name).write_text(content)
    return name


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def hidden(path: Path) -> list[str]:
    """Return markers and unfinished parts."""
    return [name for name in os.listdir(path.parent) if name.endswith((".todo", ".part"))]


def log(handler: logging.Handler, *messages: object) -> None:
    for message in messages:
        handler.handle(logging.makeLogRecord({"msg": message}))


# --- compression ---


def test_compression_keeps_content_permissions_and_time(path: Path) -> None:
    """Retention by age and access rules see no difference."""
    name = rotated(path, 1, "one\ntwo\n")
    os.chmod(name, 0o604)
    os.utime(name, ns=(5_000, 1_000_000_007))
    compress(name, name + ".gz")
    status = os.stat(name + ".gz")
    assert gzip.decompress(Path(name + ".gz").read_bytes()) == b"one\ntwo\n"
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o604, 1_000_000_007)
    assert os.listdir(path.parent) == [os.path.basename(name + ".gz")]


def test_a_compression_that_fails_leaves_the_original_alone(path: Path) -> None:
    """And no part of a gzip."""
    name = rotated(path, 1)
    os.mkdir(name + ".gz")
    with pytest.raises(IsADirectoryError):
        compress(name, name + ".gz")
    assert Path(name).read_text() == "line\n"
    assert not hidden(path)


# --- a finisher ---


def test_marked_files_are_compressed_and_told(path: Path, finisher: Any) -> None:
    """The hook gets the name under which the file now stands, oldest first."""
    told: list[str] = []
    one = finisher(compress=True, hook=told.append)
    names = [rotated(path, second) for second in (1, 2)]
    for name in names:
        one.mark(name)
    one.start()
    one.close(DEADLINE_S)
    assert told == [name + ".gz" for name in names]
    assert filenames.rotated_files(str(path)) == told
    assert not hidden(path)


def test_files_without_a_marker_are_left_alone(path: Path, finisher: Any) -> None:
    """Those of before the option was switched on, for one."""
    name = rotated(path, 1)
    one = finisher(compress=True)
    one.start()
    one.close(DEADLINE_S)
    assert os.path.exists(name)


def test_a_hook_alone_gets_the_file_as_it_is(path: Path, finisher: Any) -> None:
    """Nothing is compressed that was not to be."""
    told: list[str] = []
    one = finisher(hook=told.append)
    one.mark(rotated(path, 1))
    one.start()
    one.close(DEADLINE_S)
    assert told == filenames.rotated_files(str(path))


def test_a_hook_that_raises_is_reported_and_called_again(path: Path, finisher: Any) -> None:
    """The file stays marked until its hook has returned; the next file is not held up."""
    told: list[str] = []
    reports = Reports()

    def hook(name: str) -> None:
        told.append(name)
        if len(told) == 1:
            raise SystemExit("the store is away")

    one = finisher(hook=hook, report=reports)
    first, second = rotated(path, 1), rotated(path, 2)
    one.mark(first)
    one.mark(second)
    one.start()
    assert reports.came.wait(DEADLINE_S)
    until(lambda: len(told) == 2)
    assert one.is_unfinished(first)
    one.start()
    one.close(DEADLINE_S)
    assert told == [first, second, first]
    assert reports.all == [f"finishing {first}"]
    assert not one.is_unfinished(first)


def test_a_file_that_is_written_still_is_left_for_later(path: Path, finisher: Any) -> None:
    """Whoever has it open holds it; nothing is compressed under a writer."""
    name = rotated(path, 1)
    told: list[str] = []
    both = finisher(compress=True, hook=told.append)
    both.mark(name)
    with open(name, "ab") as writer:
        assert locks.try_shared(writer.fileno())
        both.start()
        both.close(DEADLINE_S)
        assert (told, os.path.exists(name)) == ([], True)
    both.start()
    both.close(DEADLINE_S)
    assert told == [name + ".gz"]


def test_a_file_that_one_process_is_at_is_left_to_it(path: Path, finisher: Any) -> None:
    """The lock on the marker is the claim."""
    name = rotated(path, 1)
    told: list[str] = []
    one = finisher(hook=told.append)
    one.mark(name)
    with locks.try_exclusive_file(filenames.marker_name(name)):
        one.start()
        one.close(DEADLINE_S)
    assert told == []
    assert one.is_unfinished(name)


def test_the_marker_of_a_file_that_is_gone_is_removed(path: Path, finisher: Any) -> None:
    """Somebody has removed the file, or the kill came before the renaming."""
    one = finisher(compress=True)
    one.mark(filenames.stamped_name(str(path), 1.0))
    one.start()
    one.close(DEADLINE_S)
    assert not hidden(path)


def test_the_marker_of_a_file_that_is_about_to_come_is_kept(path: Path, finisher: Any) -> None:
    """It is there before the file has its name, while the rotation's lock is held."""
    one = finisher(compress=True)
    name = filenames.stamped_name(str(path), 1.0)
    with locks.exclusive_file(filenames.lock_name(str(path)), 0o600):
        one.mark(name)
        one.start()
        time.sleep(0.05)  # the thread comes to wait for the lock, or has not come so far: both do
        rotated(path, 1)
    one.start()  # as the rotation does once it has let go of the lock
    one.close(DEADLINE_S)
    assert filenames.rotated_files(str(path)) == [name + ".gz"]


def test_a_compression_killed_before_its_last_step_is_finished(path: Path, finisher: Any) -> None:
    """Both files are there; afterwards the gzip alone, complete."""
    name = rotated(path, 1, "whole\n")
    Path(name + ".gz").write_bytes(gzip.compress(b"whole\n"))
    one = finisher(compress=True)
    one.mark(name)
    one.start()
    one.close(DEADLINE_S)
    assert filenames.rotated_files(str(path)) == [name + ".gz"]
    assert gzip.decompress(Path(name + ".gz").read_bytes()) == b"whole\n"


def test_there_is_no_thread_without_work(path: Path, finisher: Any) -> None:
    """It ends when all is done, and starts again when asked."""
    one = finisher(compress=True)
    before = threading.active_count()
    one.start()
    until(lambda: threading.active_count() == before)
    one.mark(rotated(path, 1))
    one.start()
    until(lambda: filenames.rotated_files(str(path))[0].endswith(".gz"))


def test_close_does_not_wait_for_ever(path: Path, finisher: Any) -> None:
    """A hook that hangs is left behind after the deadline, its file marked."""
    gate = threading.Event()
    one = finisher(hook=lambda name: gate.wait(DEADLINE_S))
    name = rotated(path, 1)
    one.mark(name)
    one.start()
    one.close(0.05)
    assert one.is_unfinished(name)
    gate.set()
    one.close(DEADLINE_S)


# --- behind the handler ---


def test_the_handler_compresses_what_it_rotates(path: Path) -> None:
    """Off the logging path; close waits for it."""
    handler = RotatingJsonlHandler(path, maxBytes=300, stable_names=True, compress=True)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log(handler, *(f"{number} {'x' * 90}" for number in range(30)))
    handler.close()
    files = filenames.rotated_files(str(path))
    assert len(files) == 9
    assert all(name.endswith(".gz") for name in files)
    lines = b"".join(gzip.decompress(Path(name).read_bytes()) for name in files)
    lines += path.read_bytes()
    assert [int(line.split()[0]) for line in lines.splitlines()] == list(range(30))


def test_a_hook_may_be_named_by_a_configuration(path: Path) -> None:
    """As `package.module.function`."""
    handler = RotatingJsonlHandler(
        path, maxBytes=1, stable_names=True, after_rotation="os.remove", delay=True
    )
    log(handler, 1, 2, 3)
    handler.close()
    assert filenames.rotated_files(str(path)) == []
    assert not handler.failed_rotations


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"compress": True}, "compress and after_rotation need stable_names=True"),
        ({"after_rotation": print}, "need stable_names=True"),
        ({"after_rotation": "os.nonsense", "stable_names": True}, "names no function"),
        ({"after_rotation": "os.sep", "stable_names": True}, "cannot be called"),
    ],
)
def test_options_that_cannot_work_are_refused(path: Path, options: Any, rule: str) -> None:
    """At set-up, with the remedy."""
    with pytest.raises(ValueError, match=rule):
        RotatingJsonlHandler(path, **options)
    assert not path.exists()


def test_a_hook_that_fails_is_counted_and_its_file_is_kept(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Retention does not take what the hook has not got; the report comes once."""
    handler = RotatingJsonlHandler(
        path, maxBytes=1, backupCount=1, stable_names=True, after_rotation=lambda name: 1 / 0
    )
    log(handler, 1, 2, 3, 4)
    handler.close()
    assert len(filenames.rotated_files(str(path))) == 3
    assert set(handler.failed_rotations) == {"ZeroDivisionError"}
    assert not handler.losses
    assert capsys.readouterr().err.count("--- Logging error ---") == 1


def test_the_next_process_finishes_what_a_killed_one_has_left(path: Path) -> None:
    """Its handler looks for markers when it opens the file."""
    pid = os.fork()
    if pid == 0:
        handler = RotatingJsonlHandler(
            path, maxBytes=1, stable_names=True, after_rotation=lambda name: time.sleep(DEADLINE_S)
        )
        log(handler, 1, 2, 3)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    told: list[str] = []
    handler = RotatingJsonlHandler(path, stable_names=True, after_rotation=told.append)
    handler.close()
    assert told == filenames.rotated_files(str(path))
    assert len(told) == 2


def test_files_of_this_hosts_ended_processes_are_finished_and_no_others(path: Path) -> None:
    """Where each process has a file of its own nobody else would come for them."""
    host = socket.gethostname()
    ended = filenames.process_name(str(path), host, 1)
    elsewhere = filenames.process_name(str(path), f"{host}-2", 1)
    names = [filenames.stamped_name(each, 1.0) for each in (ended, elsewhere)]
    for name in names:
        Path(name).write_text("line\n")
        Path(filenames.marker_name(name)).touch()
    told: list[str] = []
    handler = RotatingJsonlHandler(
        path, per_process=True, stable_names=True, after_rotation=told.append
    )
    handler.close()
    assert told == names[:1]


def test_closing_finishes_what_others_rotated_while_this_process_was_idle(path: Path) -> None:
    """It had the file open until then; nobody may come after it."""
    idle = RotatingJsonlHandler(path, maxBytes=1, stable_names=True, compress=True)
    log(idle, 1)
    pid = os.fork()
    if pid == 0:
        log(idle, 2, 3)
        os._exit(0)  # as a worker does, without closing
    os.waitpid(pid, 0)
    idle.close()
    assert [name.endswith(".gz") for name in filenames.rotated_files(str(path))] == [True, True]
    assert not hidden(path)


def test_a_forked_child_has_a_thread_of_its_own(path: Path) -> None:
    """The parent's does not exist there, and its lock on a file is not inherited."""
    handler = RotatingJsonlHandler(path, maxBytes=1, stable_names=True, compress=True)
    log(handler, 1, 2, 3)
    pid = os.fork()
    if pid == 0:
        log(handler, 4, 5)
        handler.close()
        os._exit(len(handler.failed_rotations))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    log(handler, 6)
    handler.close()
    files = filenames.rotated_files(str(path))
    assert [name.endswith(".gz") for name in files] == [True] * 4  # the parent followed once
    assert not hidden(path)


def test_kills_at_any_moment_lose_no_line_and_no_call(path: Path) -> None:
    """Writers that compress and tell are killed; what they left is whole, and finished at last."""
    dice = random.Random(7)
    notes, told = path.with_name("acknowledged"), path.with_name("told")

    def note(file: Path, text: str) -> None:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, text.encode() + b"\n")
        os.close(descriptor)

    def handler() -> RotatingJsonlHandler:
        made = RotatingJsonlHandler(
            path,
            maxBytes=4_000,
            stable_names=True,
            compress=True,
            after_rotation=lambda name: note(told, os.path.basename(name)),
        )
        made.setFormatter(logging.Formatter("%(message)s"))
        return made

    for writer in range(25):
        pid = os.fork()
        if pid == 0:
            mine = handler()
            for number in range(10**6):
                log(mine, f"{writer}-{number} {'x' * 200}")
                note(notes, f"{writer}-{number}")
        time.sleep(dice.uniform(0.005, 0.06))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    last = handler()
    last.close()

    files = filenames.rotated_files(str(path))
    assert len(files) > 25
    assert all(name.endswith(".gz") for name in files)
    assert not hidden(path)
    content = b"".join(gzip.decompress(Path(name).read_bytes()) for name in files)
    lines = (content + path.read_bytes()).decode().splitlines()
    found = [line.split()[0] for line in lines if line.endswith("x" * 200)]
    assert len(found) == len(set(found))
    assert set(notes.read_text().splitlines()) <= set(found)
    assert {os.path.basename(name) for name in files} <= set(told.read_text().splitlines())
