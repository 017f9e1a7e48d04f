"""The oracle of conservation: each fault turns it red for its own reason, our handler never."""

from __future__ import annotations

import functools
import gzip
import logging
import logging.handlers
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from foundry_log import RotatingJsonlHandler
from tests.conservation import (
    Conservation,
    Crew,
    Task,
    assert_conserved,
    record_entry,
    record_line,
    verify,
)

pytestmark = [
    pytest.mark.unit,
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

A, B, C = "0-0-0-50", "0-0-1-50", "0-0-2-50"
_FAULT_EVERY = 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


def note(path: Path, *names: str) -> None:
    path.with_name(path.name + ".acknowledged-0-0").write_text("".join(f"{n}\n" for n in names))


def text(*names: str) -> bytes:
    return "".join(f"{record_line(name)}\n" for name in names).encode()


# --- files made by hand ---


def test_each_record_once_on_its_own_line_is_sound(path: Path) -> None:
    """Blanks before a record are what healing leaves."""
    note(path, A, B)
    path.write_bytes(text(A) + b"    " + text(B))
    assert verify(path) == Conservation(acknowledged=2, found=2)


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        (text(A), {"lost": (B,)}),
        (text(A, B, A), {"doubled": (A,), "disordered": (A,)}),
        (text(A, B, C, C), {"doubled": (C,)}),
        (text(B, A), {"disordered": (A,)}),
        (text(A)[:-1] + text(B), {"glued": (A, B)}),
        (b'{"record": "7-0' + text(A, B), {"glued": (A,)}),
        (text(A) + text(B)[:40], {"torn": (B,)}),
        (text(A) + text(B)[-50:], {"torn": (B,)}),
        (text(A) + text(B)[:-1], {"torn": (B,)}),
        (text(A) + text(B).replace(b"0.0", b"0_0"), {"torn": (B,)}),
        (text(A) + text(B)[:40] + b"\x00" * 10 + text(B)[50:], {"torn": (B,)}),
        (text(A, B) + text(C).replace(b"0.0", b"0_0"), {"torn": (C,)}),
        (text(A, B) + text(B)[:40] + b"\n", {"torn": (B,)}),
    ],
)
def test_each_fault_has_its_name(
    path: Path, content: bytes, faults: dict[str, tuple[str, ...]]
) -> None:
    """Acknowledged were A and B; C was not, and may be missing, but not double or wrong."""
    note(path, A, B)
    path.write_bytes(content)
    assert verify(path).faults == faults


def test_a_fragment_of_a_record_that_was_not_acknowledged_is_no_fault(path: Path) -> None:
    """It is counted."""
    note(path, A, B)
    path.write_bytes(text(A) + text(C)[:40] + b"\n" + text(B) + text(C)[:-1])
    assert verify(path) == Conservation(acknowledged=2, found=2, fragments=2)


def test_a_torn_note_is_no_acknowledgement(path: Path) -> None:
    """Its writer was killed before it could say so."""
    note(path, A)
    with path.with_name(path.name + ".acknowledged-0-1").open("w") as notes:
        notes.write("0-1-0-50\n0-1-1-5")
    path.write_bytes(text(A, "0-1-0-50"))
    assert verify(path).acknowledged == 2
    assert_conserved(path)


def test_rotated_compressed_and_single_processes_files_belong_to_the_log(path: Path) -> None:
    """Locks, notes and other logs do not; a compressed file counts once its original is gone."""
    stamp = "20261121T062311123456Z"
    path.write_bytes(text("1-0-0-9"))
    path.with_name("run.jsonl.1").write_bytes(text("1-0-1-9"))
    path.with_name(f"run.{stamp}.jsonl.gz").write_bytes(gzip.compress(text("1-0-2-9")))
    path.with_name("run.20261121T062311123457Z.jsonl").write_bytes(text("1-0-3-9"))
    path.with_name("run.20261121T062311123457Z.jsonl.gz").write_bytes(b"\x1f\x8b half")
    path.with_name("run@node7-4711.jsonl").write_bytes(text("1-0-4-9"))
    path.with_name(f"run@node7-4711.{stamp}.jsonl").write_bytes(text("1-0-5-9"))
    for stranger in (".run.jsonl.lock", "run.jsonl.acknowledged-1-0", "run.txt", "rerun.jsonl"):
        path.with_name(stranger).write_text("strange\n")
    path.with_name("run.jsonl.acknowledged-1-0").write_text("1-0-6-9\n")
    result = verify(path)
    assert (result.found, result.fragments, result.lost) == (6, 0, ("1-0-6-9",))


def test_what_the_readers_give_is_compared(path: Path) -> None:
    """Here they cannot know of a file whose name they do not have in their grammar."""
    note(path, A, B)
    path.write_bytes(text(B))
    path.with_name("run.jsonl.0").write_bytes(text(A))
    assert verify(path).faults == {"misread": (A,)}


def test_the_message_says_how_many_and_names_the_first(path: Path) -> None:
    """Enough to look for them in the files."""
    note(path, *(f"0-0-{number}-9" for number in range(12)))
    path.touch()
    with pytest.raises(AssertionError, match="12 acknowledged, 0 found, 0 fragments") as caught:
        assert_conserved(path)
    assert "12 lost: 0-0-0-9, 0-0-1-9, 0-0-2-9, 0-0-3-9, 0-0-4-9, …" in str(caught.value)


def test_the_payload_has_the_size_asked_for() -> None:
    """And every part of it tells whose it is."""
    entry = record_entry("3-1-7-5000")
    assert len(entry["payload"]) == 5000
    assert entry["payload"].startswith("3-1-7-5000.3-1-7-5000.")


# --- handlers with a fault, in real processes ---


class Appends(logging.Handler):
    """One `write` a record on an O_APPEND descriptor: sound as long as nobody is killed."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self._count += 1
        line = f"{self.format(record)}\n".encode()
        if self._count % _FAULT_EVERY == 0:
            self.fail(line)
        else:
            self.put(line)

    def put(self, line: bytes) -> None:
        os.write(self._file, line)

    def fail(self, line: bytes) -> None:
        self.put(line)

    def close(self) -> None:
        os.close(self._file)
        super().close()


class Loses(Appends):
    def fail(self, line: bytes) -> None:
        pass


class Doubles(Appends):
    def fail(self, line: bytes) -> None:
        self.put(line)
        self.put(line)


class Corrupts(Appends):
    def fail(self, line: bytes) -> None:
        middle = len(line) // 2
        self.put(line[:middle] + b"#" + line[middle + 1 :])


class DropsNewlines(Appends):
    def fail(self, line: bytes) -> None:
        self.put(line[:-1])


class HoldsBack(Appends):
    """A buffer that is emptied in the wrong order."""

    held = b""

    def fail(self, line: bytes) -> None:
        self.held = line

    def put(self, line: bytes) -> None:
        super().put(line)
        if self.held:
            line, self.held = self.held, b""
            super().put(line)


class WritesHalves(Appends):
    """Two writes a record, and between them another process gets its turn."""

    def fail(self, line: bytes) -> None:
        middle = len(line) // 2
        self.put(line[:middle])
        size = os.fstat(self._file).st_size
        deadline = time.monotonic() + 0.2  # the other process may have come to its end
        while os.fstat(self._file).st_size == size and time.monotonic() < deadline:
            os.sched_yield()
        self.put(line[middle:])


class DiesInTheWrite(Appends):
    def fail(self, line: bytes) -> None:
        self.put(line[: len(line) // 2])
        os.kill(os.getpid(), signal.SIGKILL)


def stdlib(path: str) -> logging.Handler:
    logging.raiseExceptions = False
    return logging.handlers.RotatingFileHandler(path, maxBytes=1_500, backupCount=400)


def write(
    path: Path, make: Callable[[str], logging.Handler], processes: int = 2, first: int = 0
) -> list[int | None]:
    """Let processes write 4 × 15 records each with the handler; return how they ended."""
    with Crew(Task(str(path), make, sizes=(50, 900), count=60, threads=1), first=first) as crew:
        for _ in range(processes):
            crew.start()
        return crew.join()


def test_a_sound_handler_passes(path: Path) -> None:
    """The handlers below differ from it by their fault alone."""
    assert write(path, Appends) == [0, 0]
    assert verify(path) == Conservation(acknowledged=120, found=120)


@pytest.mark.parametrize(
    ("make", "kind", "count"),
    [
        (Loses, "lost", 6),
        (Doubles, "doubled", 6),
        (Corrupts, "torn", 6),
        (HoldsBack, "disordered", 4),  # of six, the last of each is never written
    ],
)
def test_a_handler_with_a_fault_fails_for_that_reason(
    path: Path, make: type[Appends], kind: str, count: int
) -> None:
    """Each in every twentieth record, acknowledged like the others."""
    assert write(path, make) == [0, 0]
    result = verify(path)
    assert result.acknowledged == 120
    assert len(getattr(result, kind)) == count


def test_missing_newlines_glue_records(path: Path) -> None:
    """To the next one, of whichever process."""
    write(path, DropsNewlines)
    result = verify(path)
    assert result.glued
    assert set(result.faults) <= {"glued", "torn"}  # nothing follows the last line of all


def test_two_writes_a_record_tear_it_where_processes_meet(path: Path) -> None:
    """The halves stand apart."""
    assert write(path, WritesHalves) == [0, 0]
    result = verify(path)
    assert result.torn
    assert not result.doubled


def test_a_fragment_that_nobody_heals_takes_the_next_record_with_it(path: Path) -> None:
    """The record that was being written is excused; the one behind it is not."""
    assert write(path, DiesInTheWrite, processes=1) == [-signal.SIGKILL]
    assert write(path, Appends, processes=1, first=1) == [0]
    result = verify(path)
    assert result.faults == {"glued": ("1-0-0-50",)}
    assert (result.acknowledged, result.fragments) == (19 + 60, 1)


def test_our_handler_keeps_the_record_behind_such_a_fragment(path: Path) -> None:
    """The same death, and a successor that heals."""
    write(path, DiesInTheWrite, processes=1)
    write(path, RotatingJsonlHandler, processes=1, first=1)
    assert assert_conserved(path) == Conservation(19 + 60, 19 + 60, fragments=1)


def test_the_stdlibs_handler_loses_records_in_four_processes(path: Path) -> None:
    """They rename each other's files away; how soon that meets is chance, so it gets some goes."""
    for go in range(20):
        log = path.parent / f"go-{go}" / path.name
        log.parent.mkdir()
        write(log, stdlib, processes=4)
        if verify(log).lost:
            return
    pytest.fail("the check saw no loss in twenty goes")


@pytest.mark.parametrize("stable", [True, False])
def test_our_handler_conserves_under_kills(path: Path, stable: bool) -> None:
    """Forked and spawned processes, rotating all the while."""
    make = functools.partial(
        RotatingJsonlHandler, maxBytes=20_000, backupCount=700, stable_names=stable
    )
    dice = random.Random(f"kills-{stable}")
    with Crew(Task(str(path), make, sizes=(50, 5_000)), methods=("fork", "spawn")) as crew:
        for _ in range(3):
            crew.start()
        for _ in range(5):
            crew.kill_one(dice)
            crew.start()
    result = assert_conserved(path)
    assert result.acknowledged > 10
    assert result.fragments <= 5 + 3


def test_a_writer_that_ends_by_itself_is_no_victim(path: Path) -> None:
    """A crash is not taken for a kill."""
    with Crew(Task(str(path), DiesInTheWrite, threads=1)) as crew:
        crew.start()
        assert crew.join() == [-signal.SIGKILL]
        with pytest.raises(AssertionError, match="writer 0 ended by itself: -9"):
            crew.kill_one(Patient())


class Patient(random.Random):
    """Waits for more notes than the writer made."""

    def randrange(self, *_: object) -> int:  # type: ignore[override]
        return 10_000
