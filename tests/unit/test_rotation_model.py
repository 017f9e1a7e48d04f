"""Histories of one file as Hypothesis makes them up: several writers, kills and strangers.

A model says which records must be there after each step. For a long run:
`FOUNDRY_LOG_MODEL_EXAMPLES=5000 pytest tests/unit/test_rotation_model.py`.
"""

from __future__ import annotations

import fcntl
import gzip
import itertools
import logging
import os
import shutil
import signal
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from foundry_log import RotatingJsonlHandler, read_jsonl
from foundry_log.jsonl import tail_jsonl
from tests.conservation import history_files, record_entry, record_line, record_name, records_in

pytestmark = pytest.mark.unit

EXAMPLES = os.environ.get("FOUNDRY_LOG_MODEL_EXAMPLES")
SETTINGS = settings(
    max_examples=int(EXAMPLES or 30),
    stateful_step_count=60 if EXAMPLES else 30,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
BACKUPS = 200
"""More than a history has steps: retention takes nothing."""

WRITERS = st.integers(0, 2)
SIZES = st.integers(0, 400)
PLACES = st.integers(0, 1_000)


class RotationModel(RuleBasedStateMachine):
    """One file, three handlers that write it, and everybody else who may lay hands on it.

    `expected` are the records that must be there, each once. A record leaves it when a rule deletes
    the file that it stands in. One is excused from the start if its handler had no occasion to see
    that its file was deleted: it looks at its path once a second, and before it rotates.
    """

    def __init__(self, stable: bool) -> None:
        super().__init__()
        self.stable = stable
        self.folder = tempfile.mkdtemp(prefix="rotation-model-")
        self.path = Path(self.folder, "run.jsonl")
        self.handlers: list[RotatingJsonlHandler] = []
        self.limits: list[int] = []
        self.expected: set[str] = set()
        self.perhaps: set[str] = set()
        """Whole records that lack their newline: their writer was killed, either way is right."""
        self.fragments = 0
        self.looks: set[int] = set()
        """Writers for which a second has passed since they looked at their path."""
        self.known: set[str] = set()
        """Names of the rotated files that were there already."""
        self.counter = itertools.count()

    @initialize(limits=st.tuples(*[st.sampled_from([0, 300, 1_000])] * 3))
    def open(self, limits: tuple[int, ...]) -> None:
        self.limits += limits
        self.handlers += [self.handler(limit) for limit in limits]

    def teardown(self) -> None:
        for handler in self.handlers:
            handler.close()
        shutil.rmtree(self.folder)

    # --- what writers do ---

    @rule(writer=WRITERS, size=SIZES)
    def write(self, writer: int, size: int) -> None:
        handler, name = self.handlers[writer], self.name(writer, size)
        is_fresh = writer in self.looks or not handler._file.is_open
        handler._file.looked = time.monotonic() - (1.5 if writer in self.looks else 0)
        self.looks.discard(writer)
        self.log(handler, name)
        if is_fresh:
            assert is_same_file(handler, self.path), "the handler did not follow its path"
        if any(is_same_file(handler, file) for file in history_files(self.path)):
            self.expected.add(name)

    @rule(writer=WRITERS)
    def rotate(self, writer: int) -> None:
        handler, before = self.handlers[writer], history_files(self.path)
        is_current = not handler._file.is_open or is_same_file(handler, self.path)
        handler.doRollover()
        assert is_same_file(handler, self.path)
        if not is_current:  # another has rotated
            assert {*history_files(self.path)} == {*before, self.path}

    @rule(writer=WRITERS)
    def close(self, writer: int) -> None:
        self.handlers[writer].close()

    @rule(writer=WRITERS)
    def replace(self, writer: int) -> None:
        self.handlers[writer].close()
        self.handlers[writer] = self.handler(self.limits[writer])

    @rule()
    def let_a_second_pass(self) -> None:
        self.looks = set(range(len(self.handlers)))

    @rule(writer=WRITERS, sizes=st.lists(SIZES, max_size=3), cut=PLACES)
    def fork_a_child_that_writes_and_is_killed(
        self, writer: int, sizes: list[int], cut: int
    ) -> None:
        names = [self.name(writer, size) for size in sizes]
        fragment = self.fragment(writer, cut)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pytest-xdist has a thread
            child = os.fork()
        if child == 0:
            try:
                for name in names:
                    self.log(self.handlers[writer], name)
                self.append(self.path, fragment)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        self.expected.update(names)  # the child opened the path itself

    @precondition(lambda self: self.files())
    @rule(writer=WRITERS, which=PLACES, cut=PLACES)
    def kill_a_writer_inside_a_write(self, writer: int, which: int, cut: int) -> None:
        self.append(self.choose(which), self.fragment(writer, cut))

    # --- what others do ---

    @precondition(lambda self: self.path.exists())
    @rule(create=st.booleans())
    def rename_as_logrotate_does(self, create: bool) -> None:
        self.path.rename(self.stranger("2000"))
        if create:
            self.path.touch()

    @precondition(lambda self: self.path.exists())
    @rule()
    def truncate_as_copytruncate_does(self) -> None:
        self.forget(self.path)
        os.truncate(self.path, 0)

    @precondition(lambda self: self.files())
    @rule(which=PLACES)
    def delete(self, which: int) -> None:
        file = self.choose(which)
        self.forget(file)
        file.unlink()
        file.with_name(file.name + ".gz").unlink(missing_ok=True)

    @precondition(lambda self: self.path.exists())
    @rule()
    def delete_the_live_file(self) -> None:
        self.forget(self.path)
        self.path.unlink()

    @precondition(lambda self: self.stable)
    @rule(size=SIZES)
    def step_the_clock_back(self, size: int) -> None:
        """Rotated files are there with stamps of a time to come."""
        name = self.name(9, size)
        self.append(self.stranger("2099"), f"{record_line(name)}\n".encode())
        self.expected.add(name)

    @precondition(lambda self: self.stable and len(self.files()) > 1)
    @rule(which=PLACES, to_the_end=st.booleans())
    def compress(self, which: int, to_the_end: bool) -> None:
        file = self.choose(which)
        if file == self.path or is_in_use(file):
            return
        content = gzip.compress(file.read_bytes())
        file.with_name(file.name + ".gz").write_bytes(content if to_the_end else content[:15])
        if to_the_end:
            file.unlink()

    # --- what must hold ---

    @invariant()
    def readers_give_each_record_once(self) -> None:
        reader = read_jsonl(self.path)
        entries = list(reader)
        assert all(entry == record_entry(entry["record"]) for entry in entries)
        given = Counter(entry["record"] for entry in entries)
        standing = Counter(name for file in history_files(self.path) for name in records_in(file))
        assert given == standing
        assert set(given.values()) <= {1}
        assert self.expected <= given.keys()
        assert given.keys() <= self.expected | self.perhaps
        assert reader.skipped <= self.fragments
        assert tail_jsonl(self.path, len(entries) + 1) == entries[::-1]

    @invariant()
    def stamped_names_only_grow(self) -> None:
        names = {file.name.removesuffix(".gz") for file in history_files(self.path)}
        names -= {self.path.name}
        if self.stable and self.known:
            assert all(name > max(self.known) for name in names - self.known)
        self.known = names

    @invariant()
    def nothing_is_counted_as_lost(self) -> None:
        for handler in self.handlers:
            assert not handler.losses
            assert not handler.failed_rotations

    # --- helpers ---

    def handler(self, limit: int) -> RotatingJsonlHandler:
        handler = RotatingJsonlHandler(
            self.path, maxBytes=limit, backupCount=BACKUPS, stable_names=self.stable
        )
        handler.setFormatter(logging.Formatter("%(message)s"))
        return handler

    def log(self, handler: RotatingJsonlHandler, name: str) -> None:
        handler.handle(logging.makeLogRecord({"msg": record_line(name)}))

    def name(self, writer: int, size: int) -> str:
        return record_name(writer, 0, next(self.counter), size)

    def fragment(self, writer: int, cut: int) -> bytes:
        """Return what a killed writer leaves: up to a whole record without its newline."""
        name = self.name(writer, 300)
        text = record_line(name).encode()
        self.fragments += 1
        if cut + 1 >= len(text):
            self.perhaps.add(name)
        return text[: cut + 1]

    def append(self, file: Path, content: bytes) -> None:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, content)
        os.close(descriptor)

    def files(self) -> list[Path]:
        """Return the files that are not compressed; their names tell their age, so it is stable."""
        return [file for file in history_files(self.path) if not file.name.endswith(".gz")]

    def choose(self, which: int) -> Path:
        files = self.files()
        return files[which % len(files)]

    def forget(self, file: Path) -> None:
        self.expected.difference_update(records_in(file))

    def stranger(self, year: str) -> Path:
        """Return a free name for a rotated file that no handler has made."""
        if self.stable:
            second = next(self.counter)
            name = f"run.{year}0101T00{second // 60:02}{second % 60:02}000000Z.jsonl"
        else:
            numbers = (int(f.name.rpartition(".")[2]) for f in self.files() if f != self.path)
            name = f"run.jsonl.{max(numbers, default=0) + 1}"
        self.known.add(name)
        return self.path.with_name(name)


def is_same_file(handler: RotatingJsonlHandler, file: Path) -> bool:
    return file.exists() and os.path.samestat(os.fstat(handler._file._descriptor), file.stat())


def is_in_use(file: Path) -> bool:
    with file.open("rb+") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.parametrize("stable", [True, False], ids=["stable", "numbered"])
def test_what_was_written_is_read_once_whatever_happens_to_the_files(stable: bool) -> None:
    """Except what others delete, and what is written to a deleted file before the next look."""
    run_state_machine_as_test(lambda: RotationModel(stable), settings=SETTINGS)
