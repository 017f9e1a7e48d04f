"""Readers: past torn lines, through rotation, from the end, and only what is new."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_log import RotatingJsonlHandler
from foundry_log.encoding import encode_line
from foundry_log.formatters import EntryFormatter
from foundry_log.jsonl import JsonlCursor, read_jsonl, tail_jsonl
from foundry_log.records import entry_record

pytestmark = pytest.mark.unit

ENTRIES = [{"n": 1}, {"n": 2, "text": "zwei\n\u2028é"}, {"n": 3, "list": [1, [2]]}, {"n": 4}]
CONTENT = b"".join(encode_line(entry) + b"\n" for entry in ENTRIES)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


def lines(*numbers: int) -> bytes:
    return b"".join(b'{"n":%d}\n' % number for number in numbers)


def numbers(entries: Any) -> list[int]:
    return [entry["n"] for entry in entries]


def advanced(cursor: JsonlCursor) -> list[int]:
    taken: list[dict[str, Any]] = []
    cursor.advance(taken.append)
    return numbers(taken)


# --- reading all ---


def test_no_file_is_an_empty_history(path: Path) -> None:
    """Nothing has been written yet, which is no error."""
    assert list(read_jsonl(path)) == []
    assert tail_jsonl(path, 5) == []
    assert advanced(JsonlCursor(path)) == []


def test_a_file_in_the_directorys_place_is_an_empty_history(path: Path) -> None:
    """The path cannot hold a file."""
    path.touch()
    assert list(read_jsonl(path / "below.jsonl")) == []


def test_a_file_that_cannot_be_read_raises(path: Path) -> None:
    """An empty answer would be a lie: here a directory stands in the file's place."""
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        list(read_jsonl(path))


def test_nan_and_infinities_come_back(path: Path) -> None:
    """What was written is what is read."""
    path.write_bytes(encode_line({"a": math.nan, "b": [math.inf, -math.inf]}) + b"\n")
    (entry,) = read_jsonl(path)
    assert math.isnan(entry["a"])
    assert entry["b"] == [math.inf, -math.inf]


@pytest.mark.parametrize("cut", range(len(CONTENT) + 1))
def test_a_file_cut_at_any_byte_gives_every_complete_entry(path: Path, cut: int) -> None:
    """The rest of a line is counted once, and a blank rest is nothing."""
    path.write_bytes(CONTENT[:cut])
    complete = CONTENT[:cut].count(b"\n")
    reader = read_jsonl(path)
    assert list(reader) == ENTRIES[:complete]
    assert reader.skipped == (0 if CONTENT[:cut].endswith(b"\n") or cut == 0 else 1)
    assert tail_jsonl(path, 10) == ENTRIES[:complete][::-1]


@pytest.mark.parametrize(
    "torn", [b"{", b'{"n": 1}{"n": 2}', b"[1]", b"null", b"7", b'"text"', b"\xff\xfe", b"{NaN}"]
)
def test_a_line_that_is_no_object_is_skipped_and_counted(path: Path, torn: bytes) -> None:
    """Whatever a killed writer or a stranger left."""
    path.write_bytes(lines(1) + torn + b"\n" + lines(2))
    reader = read_jsonl(path)
    assert numbers(reader) == [1, 2]
    assert reader.skipped == 1
    assert numbers(tail_jsonl(path, 9)) == [2, 1]
    assert advanced(JsonlCursor(path)) == [1, 2]


def test_blank_lines_and_blanks_before_an_entry_do_not_count(path: Path) -> None:
    """A mended fragment is nothing but spaces."""
    path.write_bytes(b"   \n\n      " + lines(1) + b"  ")
    reader = read_jsonl(path)
    assert numbers(reader) == [1]
    assert reader.skipped == 0


def test_each_iteration_counts_anew(path: Path) -> None:
    """`skipped` is of the latest iteration."""
    path.write_bytes(b"torn\n" + lines(1))
    reader = read_jsonl(path)
    for _ in range(2):
        assert numbers(reader) == [1]
        assert reader.skipped == 1


def test_rotated_files_come_first_oldest_first(path: Path) -> None:
    """One history, whatever names rotation gave."""
    Path(f"{path}.2").write_bytes(lines(1))
    Path(f"{path}.1").write_bytes(lines(2))
    path.with_name("run.20260101T000000000000Z.jsonl").write_bytes(lines(3))
    path.write_bytes(lines(4))
    assert numbers(read_jsonl(path)) == [1, 2, 3, 4]
    assert numbers(read_jsonl(path, rotated=False)) == [4]
    assert numbers(tail_jsonl(path, 3)) == [4, 3, 2]


def test_an_iteration_ends_where_the_files_ended_when_it_began(path: Path) -> None:
    """A snapshot: later lines of the live file are for the next iteration, also after rotation."""
    path.write_bytes(lines(1, 2))
    Path(f"{path}.1").write_bytes(lines(0))
    iteration = iter(read_jsonl(path))
    assert next(iteration) == {"n": 0}
    with open(path, "ab") as file:
        file.write(lines(3))
    os.rename(f"{path}.1", f"{path}.2")
    os.rename(path, f"{path}.1")
    path.write_bytes(lines(4))
    assert numbers(iteration) == [1, 2]
    assert numbers(read_jsonl(path)) == [0, 1, 2, 3, 4]


def test_an_abandoned_iteration_closes_its_files(path: Path) -> None:
    """No descriptor stays behind."""
    path.write_bytes(lines(1, 2))
    before = len(os.listdir("/dev/fd"))
    iteration = iter(read_jsonl(path))
    next(iteration)
    assert isinstance(iteration, Iterator)
    iteration.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/dev/fd")) == before


# --- from the end ---


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 70_000), max_size=6),
    torn=st.sets(st.integers(0, 5)),
    tail=st.binary(max_size=20),
    count=st.integers(-1, 8),
)
def test_the_tail_is_the_history_reversed(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    torn: set[int],
    tail: bytes,
    count: int,
) -> None:
    """For lines shorter and longer than what is read at once, and torn ones between them."""
    path = tmp_path_factory.mktemp("tail") / "run.jsonl"
    with open(path, "wb") as file:
        for number, size in enumerate(sizes):
            line = json.dumps({"n": number, "text": "x" * size}).encode()
            file.write((line[:-1] if number in torn else line) + b"\n")
        file.write(tail)
    expected = list(read_jsonl(path))[::-1][: max(count, 0)]
    assert tail_jsonl(path, count) == expected


def test_the_tail_costs_what_it_returns(path: Path) -> None:
    """A file of a gibibyte, all hole but its end, is answered at once."""
    with open(path, "wb") as file:
        file.truncate(1 << 30)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + lines(1, 2))
    assert numbers(tail_jsonl(path, 2)) == [2, 1]


# --- only what is new ---


def test_a_cursor_gives_each_entry_once(path: Path) -> None:
    """The next question reads on where the last one stopped."""
    cursor = JsonlCursor(path)
    path.write_bytes(lines(1))
    assert advanced(cursor) == [1]
    assert advanced(cursor) == []
    with open(path, "ab") as file:
        file.write(lines(2, 3))
    assert advanced(cursor) == [2, 3]


def test_a_cursor_waits_for_the_end_of_a_line(path: Path) -> None:
    """A line that is being written is seen whole, next time."""
    cursor = JsonlCursor(path)
    path.write_bytes(lines(1) + b'{"n":')
    assert advanced(cursor) == [1]
    with open(path, "ab") as file:
        file.write(b"2}\n")
    assert advanced(cursor) == [2]


def test_a_cursor_does_not_read_what_it_has_read(path: Path) -> None:
    """Shown by spoiling the old part in place: a reader of the whole file would miss an entry."""
    cursor = JsonlCursor(path)
    path.write_bytes(lines(*range(10, 60)))
    advanced(cursor)
    with open(path, "r+b") as file:
        file.seek(100)
        file.write(b"#" * 100)
        file.seek(0, os.SEEK_END)
        file.write(lines(99))
    assert advanced(cursor) == [99]


def test_a_truncated_file_is_read_from_its_start(path: Path) -> None:
    """As after logrotate's `copytruncate`."""
    cursor = JsonlCursor(path)
    path.write_bytes(lines(1, 2, 3))
    advanced(cursor)
    path.write_bytes(lines(4))
    assert advanced(cursor) == [4]


def test_a_file_that_was_truncated_and_has_grown_again_is_read_from_its_start(path: Path) -> None:
    """Its length alone does not show it, and its inode may be one that another file had."""
    cursor = JsonlCursor(path)
    path.write_bytes(lines(1, 2, 3))
    advanced(cursor)
    path.write_bytes(lines(4, 5, 6, 7))
    assert advanced(cursor) == [4, 5, 6, 7]


def test_an_error_in_the_callers_function_loses_no_place(path: Path) -> None:
    """The cursor stays where it was before the call that failed."""
    cursor = JsonlCursor(path)
    path.write_bytes(lines(1, 2))

    def fail(entry: dict[str, Any]) -> None:
        raise ValueError(entry["n"])

    with pytest.raises(ValueError, match="1"):
        cursor.advance(fail)
    assert advanced(cursor) == [1, 2]


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.sampled_from(["write", "write", "torn", "number", "stamp", "advance"]), max_size=40
    )
)
def test_a_cursor_sees_what_a_full_read_sees(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    """Whatever the order of lines, fragments, rotations and questions."""
    path = tmp_path_factory.mktemp("cursor") / "run.jsonl"
    cursor, seen, rotated = JsonlCursor(path), [], 0
    for number, step in enumerate([*steps, "advance"]):
        if step == "write":
            with open(path, "ab") as file:
                file.write(b'{"n":%d,"stamp":"%060d"}\n' % (number, number))
        elif step == "torn":
            with open(path, "ab") as file:
                file.write(b'{"n":%d' % number + b"\n" * (number % 2))
        elif step == "number" and path.exists() and not rotated:
            for old in range(50, 0, -1):
                if os.path.exists(f"{path}.{old}"):
                    os.rename(f"{path}.{old}", f"{path}.{old + 1}")
            os.rename(path, f"{path}.1")
        elif step == "stamp" and path.exists():
            rotated += 1
            os.rename(path, path.with_name(f"run.20260101T{rotated:012d}Z.jsonl"))
        elif step == "advance":
            seen += advanced(cursor)
    assert seen == numbers(read_jsonl(path))


# --- while somebody writes and rotates ---


@pytest.mark.parametrize("stable_names", [True, False])
def test_a_reader_meets_each_entry_once_while_the_file_rotates(
    path: Path, stable_names: bool
) -> None:
    """Each snapshot is 0, 1, 2, … without a gap, at least up to what was written before it."""
    handler = RotatingJsonlHandler(
        path, maxBytes=4_000, backupCount=500, stable_names=stable_names, delay=True
    )
    handler.setFormatter(EntryFormatter())
    written = [0]

    def write() -> None:
        while written[0] < 5_000:
            handler.handle(entry_record("x", logging.INFO, "", {"n": written[0]}))
            written[0] += 1

    thread = threading.Thread(target=write)
    thread.start()
    cursor, advanced_to = JsonlCursor(path), 0
    try:
        while thread.is_alive():
            before = written[0]
            seen = numbers(read_jsonl(path))
            assert seen == list(range(len(seen)))
            assert len(seen) >= before
            new = advanced(cursor)
            assert new == list(range(advanced_to, advanced_to + len(new)))
            advanced_to += len(new)
    finally:
        thread.join(60)
        handler.close()
    assert numbers(read_jsonl(path)) == list(range(written[0]))
    assert not handler.losses
