"""Readers: past torn lines, through rotation, from the end, and only what is new."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import math
import os
import random
import resource
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_log import RotatingJsonlHandler
from foundry_log.encoding import encode_line
from foundry_log.files import locks
from foundry_log.files.append_file import AppendFile
from foundry_log.files.filenames import compressed_name, process_name, rotated_files
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


def stamped(path: Path, number: int) -> Path:
    """The rotated file of the microsecond `number`."""
    return path.with_name(f"{path.stem}.20260101T{number:012d}Z{path.suffix}")


def compress(file: str | Path) -> Path:
    """Put the compressed file in the place of the plain one, whole at any moment."""
    packed = Path(compressed_name(str(file)))
    draft = packed.with_name("." + packed.name)
    draft.write_bytes(gzip.compress(Path(file).read_bytes()))
    os.rename(draft, packed)
    os.remove(file)
    return packed


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
    "torn",
    [b"{", b'{"n": 1}{"n": 2}', b"[1]", b"null", b"7", b'"text"', b"\xff\xfe", b"{NaN}", b"\0\0"],
)
def test_a_line_that_is_no_object_is_skipped_and_counted(path: Path, torn: bytes) -> None:
    """Whatever a killed writer or a stranger left."""
    path.write_bytes(lines(1) + torn + b"\n" + lines(2))
    reader = read_jsonl(path)
    assert numbers(reader) == [1, 2]
    assert reader.skipped == 1
    assert numbers(tail_jsonl(path, 9)) == [2, 1]
    assert advanced(JsonlCursor(path)) == [1, 2]


def test_nuls_before_an_entry_are_no_part_of_it(path: Path) -> None:
    """A truncation leaves them in front of a writer that knows its own position."""
    path.write_bytes(lines(1) + b"\0\0 \0" + lines(2))
    reader = read_jsonl(path)
    assert numbers(reader) == [1, 2]
    assert reader.skipped == 0
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
        st.sampled_from(["write", "write", "torn", "number", "stamp", "compress", "advance"]),
        max_size=40,
    )
)
def test_a_cursor_sees_what_a_full_read_sees(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    """Whatever the order of lines, fragments, rotations, compressions and questions."""
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
            os.rename(path, stamped(path, rotated))
        elif step == "compress":
            for name in [file for file in rotated_files(str(path)) if file.endswith("Z.jsonl")][:1]:
                compress(name)
        elif step == "advance":
            seen += advanced(cursor)
    assert seen == numbers(read_jsonl(path))


# --- whatever stands in a file, in bounded memory ---


@pytest.mark.parametrize("end", [b"", b'{"n":2}\n'])
def test_a_hole_takes_no_memory(path: Path, end: bytes) -> None:
    """What a loss of power or a truncation leaves: passed over; an object behind it is kept."""
    path.write_bytes(lines(1))
    os.truncate(path, 1 << 27)
    with open(path, "ab") as file:
        file.write(end)
    reader = read_jsonl(path)
    expected = [1, 2][: 1 + len(end) // 2]
    tracemalloc.start()
    try:
        assert numbers(reader) == expected
        assert numbers(tail_jsonl(path, 9)) == expected[::-1]
        assert advanced(JsonlCursor(path)) == expected
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert reader.skipped == (1 if len(expected) == 1 else 0)


def test_a_line_beyond_the_limit_is_passed_over_in_bounded_memory(path: Path) -> None:
    """An endless line of a stranger, here of a good 64 MiB, costs itself and not its neighbours."""
    with open(path, "wb") as file:
        file.write(lines(1))
        for _ in range(70):
            file.write(b"x" * 1_048_576)
        file.write(b"\n" + lines(2))
    cursor, reader = JsonlCursor(path), read_jsonl(path, max_line_bytes=1_000_000)
    tracemalloc.start()
    try:
        assert numbers(reader) == [1, 2]
        assert reader.skipped == 1
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
        assert numbers(read_jsonl(path)) == [1, 2]
        assert numbers(tail_jsonl(path, 9)) == [2, 1]
        assert advanced(cursor) == [1, 2]
        assert tracemalloc.get_traced_memory()[1] < 80_000_000
    finally:
        tracemalloc.stop()
    assert advanced(cursor) == []


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.one_of(st.integers(0, 40), st.integers(65_500, 65_600)), max_size=4),
    limit=st.one_of(st.integers(20, 70), st.integers(65_500, 65_600)),
)
def test_the_limit_is_the_length_of_a_line_without_its_newline(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int
) -> None:
    """For lines about the limit, and about what is read at once."""
    path = tmp_path_factory.mktemp("limit") / "run.jsonl"
    written = [encode_line({"n": number, "text": "x" * size}) for number, size in enumerate(sizes)]
    path.write_bytes(b"".join(line + b"\n" for line in written))
    reader = read_jsonl(path, max_line_bytes=limit)
    kept = [number for number, line in enumerate(written) if len(line) <= limit]
    assert numbers(reader) == kept
    assert reader.skipped == len(written) - len(kept)


def test_a_limit_below_one_is_refused(path: Path) -> None:
    """It would read nothing."""
    with pytest.raises(ValueError, match="max_line_bytes=0 must be 1 or more"):
        read_jsonl(path, max_line_bytes=0)


RECORDS = [{"n": number, "text": "é\\n" * number} for number in range(6)]
RECORD_LINES = [encode_line(record) + b"\n" for record in RECORDS]


@settings(deadline=None)
@given(cut=st.integers(0, len(b"".join(RECORD_LINES))), hole=st.sampled_from([0, 3, 200_000]))
def test_a_file_cut_anywhere_and_written_on_has_each_complete_record_once(
    tmp_path_factory: pytest.TempPathFactory, cut: int, hole: int
) -> None:
    """A writer that opens it, one that has it open, and a hole of NULs at the cut."""
    path = tmp_path_factory.mktemp("cut") / "run.jsonl"
    content = b"".join(RECORD_LINES)
    before = AppendFile(str(path))
    before.append(b'{"n":99}\n')
    before.close()
    path.write_bytes(content[:cut])
    with contextlib.closing(AppendFile(str(path))) as first:
        first.append(b'{"n":100}\n')
        with open(path, "ab") as file:
            file.write(b"\0" * hole + content[:cut][-7:].rstrip(b"\n"))
        first.append(b'{"n":101}\n')
        with contextlib.closing(AppendFile(str(path))) as second:
            second.append(b'{"n":102}\n')
    # A record that lacked nothing but its newline gets it from the next writer.
    complete = sum(
        cut >= len(b"".join(RECORD_LINES[: number + 1])) - 1 for number in range(len(RECORDS))
    )
    expected = [*range(complete), 100, 101, 102]
    assert numbers(read_jsonl(path)) == expected
    assert numbers(tail_jsonl(path, 99)) == expected[::-1]
    assert advanced(JsonlCursor(path)) == expected


@settings(deadline=None)
@given(junk=st.lists(st.binary(max_size=30), min_size=len(RECORDS), max_size=len(RECORDS)))
def test_junk_lines_between_records_cost_no_record(
    tmp_path_factory: pytest.TempPathFactory, junk: list[bytes]
) -> None:
    """Whatever bytes they are."""
    path = tmp_path_factory.mktemp("junk") / "run.jsonl"
    path.write_bytes(
        b"".join(b"#" + dirt + b"\n" + line for dirt, line in zip(junk, RECORD_LINES, strict=True))
    )
    tried = read_jsonl(path)
    assert [entry for entry in tried if "text" in entry] == RECORDS
    assert [entry for entry in tail_jsonl(path, 99) if "text" in entry] == RECORDS[::-1]


# --- many files ---


def test_a_history_may_have_more_files_than_a_process_may_open(path: Path) -> None:
    """Files with stamps are opened one at a time."""
    for number in range(1, 101):
        stamped(path, number).write_bytes(lines(number))
        if number % 3 == 0:
            compress(stamped(path, number))
    path.write_bytes(lines(101))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/dev/fd"))) + 20, hard))
    try:
        assert numbers(read_jsonl(path)) == list(range(1, 102))
        assert numbers(tail_jsonl(path, 999)) == list(range(101, 0, -1))
        assert advanced(JsonlCursor(path)) == list(range(1, 102))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_files_that_wait_for_their_turn_may_grow_be_compressed_or_go(path: Path) -> None:
    """The snapshot stays, but for what has been pruned."""
    for number in range(1, 5):
        stamped(path, number).write_bytes(lines(number))
    path.write_bytes(lines(5))
    iteration = iter(read_jsonl(path))
    assert next(iteration) == {"n": 1}
    for number in (2, 4):
        with open(stamped(path, number), "ab") as file:
            file.write(lines(10 + number))
    compress(stamped(path, 4))
    os.remove(stamped(path, 3))
    assert numbers(iteration) == [2, 4, 5]
    assert numbers(read_jsonl(path)) == [1, 2, 12, 4, 14, 5]


# --- compressed files ---


def test_compressed_files_are_read_in_their_place(path: Path) -> None:
    """Also beside the plain file that they were made of, and under odd names."""
    for number in range(1, 4):
        stamped(path, number).write_bytes(lines(number, 10 + number))
    compress(stamped(path, 1))
    compressed = compress(stamped(path, 2))
    stamped(path, 2).write_bytes(gzip.decompress(compressed.read_bytes()))
    path.write_bytes(lines(4))
    assert numbers(read_jsonl(path)) == [1, 11, 2, 12, 3, 13, 4]
    assert numbers(tail_jsonl(path, 6)) == [4, 13, 3, 12, 2, 11]
    assert advanced(JsonlCursor(path)) == [1, 11, 2, 12, 3, 13, 4]


@pytest.mark.parametrize("live", ["run", "run.gz", "a.b.gz"])
def test_a_live_file_may_have_any_suffix(tmp_path: Path, live: str) -> None:
    """What is compressed is told by the stamped name, not by the suffix alone."""
    path = tmp_path / live
    for number in (1, 2):
        stamped(path, number).write_bytes(lines(number))
    compress(stamped(path, 1))
    path.write_bytes(lines(3))
    assert numbers(read_jsonl(path)) == [1, 2, 3]


def test_a_compressed_file_cut_anywhere_gives_what_is_before_the_cut(path: Path) -> None:
    """One line skipped for the rest, and the next file is read."""
    stamped(path, 1).write_bytes(lines(*range(10, 40)))
    compressed = compress(stamped(path, 1))
    content = compressed.read_bytes()
    path.write_bytes(lines(99))
    found = []
    for cut in range(1, len(content)):
        compressed.write_bytes(content[:cut])
        reader = read_jsonl(path)
        *before, last = numbers(reader)
        assert (before, last) == (list(range(10, 10 + len(before))), 99)
        assert reader.skipped == 1
        assert numbers(tail_jsonl(path, 99)) == [99, *before[::-1]]
        assert advanced(JsonlCursor(path)) == [*before, 99]
        found.append(len(before))
    assert found == sorted(found)
    assert found[-1] == 30


def test_a_compressed_file_with_a_wrong_byte_costs_no_other_file(path: Path) -> None:
    """Each byte in turn."""
    stamped(path, 1).write_bytes(lines(*range(10, 40)))
    compressed = compress(stamped(path, 1))
    content = compressed.read_bytes()
    path.write_bytes(lines(99))
    for place in range(10, len(content)):
        compressed.write_bytes(
            content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :]
        )
        reader = read_jsonl(path)
        assert list(reader)[-1] == {"n": 99}
        assert reader.skipped >= 1
        taken: list[dict[str, Any]] = []
        JsonlCursor(path).advance(taken.append)
        assert taken[-1] == {"n": 99}
        assert tail_jsonl(path, 1) == [{"n": 99}]


def test_a_damaged_file_gives_most_of_what_is_before_the_damage(path: Path) -> None:
    """Not the little that came out of the same step of the decompression."""
    written = [100_000 + number for number in range(20_000)]
    stamped(path, 1).write_bytes(lines(*written))
    compressed = compress(stamped(path, 1))
    content = bytearray(compressed.read_bytes())
    middle = len(content) // 2
    content[middle:] = random.Random(0).randbytes(len(content) - middle)
    compressed.write_bytes(content)
    sound = [
        entry
        for entry, number in zip(read_jsonl(path), written, strict=False)
        if entry == {"n": number}
    ]
    assert 9_000 < len(sound) < 12_000


def test_a_cursor_reads_on_in_a_rotated_file_with_a_slow_writer(path: Path) -> None:
    """A writer that has not noticed the rotation yet adds to what had been read to its end."""
    stamped(path, 1).write_bytes(lines(1))
    cursor = JsonlCursor(path)
    assert advanced(cursor) == [1]
    with open(stamped(path, 1), "ab") as file:
        file.write(lines(2))
    path.write_bytes(lines(3))
    assert advanced(cursor) == [2, 3]


def test_a_cursor_goes_on_in_a_file_that_has_been_compressed(path: Path) -> None:
    """Also when it was the live file before, with lines that are new, and another has its inode."""
    path.write_bytes(lines(1, 2))
    cursor = JsonlCursor(path)
    assert advanced(cursor) == [1, 2]
    with open(path, "ab") as file:
        file.write(lines(3))
    os.rename(path, stamped(path, 1))
    compress(stamped(path, 1))
    path.write_bytes(lines(4))
    assert advanced(cursor) == [3, 4]
    assert advanced(cursor) == []
    os.rename(path, stamped(path, 2))
    compress(stamped(path, 2))
    assert advanced(cursor) == []


@pytest.mark.parametrize("packed", [True, False])
def test_a_cursor_does_not_open_a_rotated_file_that_it_has_read(path: Path, packed: bool) -> None:
    """Shown by other content in its place, of the same length: the next cursor gives that."""

    def content(*several: int) -> bytes:
        text = lines(*several)
        return gzip.compress(text).ljust(200, b"\0") if packed else text

    file = stamped(path, 1)
    file = Path(compressed_name(str(file))) if packed else file
    file.write_bytes(content(10, 20))
    cursor = JsonlCursor(path)
    assert advanced(cursor) == [10, 20]
    file.write_bytes(content(30, 40))
    path.write_bytes(lines(50))
    assert advanced(cursor) == [50]
    assert advanced(JsonlCursor(path)) == [30, 40, 50]


# --- files of single processes ---


def dated(*seconds: int) -> bytes:
    return b"".join(b'{"timestamp":"2026-01-01T00:00:%02dZ","n":%d}\n' % (s, s) for s in seconds)


def test_the_files_of_single_processes_are_merged_by_time(path: Path) -> None:
    """With their rotated files, compressed or not; an entry without a time keeps its place."""
    first, second = (Path(process_name(str(path), "node", pid)) for pid in (1, 2))
    path.write_bytes(dated(3, 9))
    stamped(first, 1).write_bytes(dated(1, 4))
    compress(stamped(first, 1))
    first.write_bytes(dated(6) + lines(60))
    stamped(second, 1).write_bytes(dated(2) + b"torn\n" + dated(7))
    reader = read_jsonl(path)
    assert numbers(reader) == [1, 2, 3, 4, 6, 60, 7, 9]
    assert reader.skipped == 1
    assert numbers(tail_jsonl(path, 4)) == [60, 9, 7, 6]
    assert numbers(tail_jsonl(path, 99))[-4:] == [4, 3, 2, 1]
    cursor = JsonlCursor(path)
    assert advanced(cursor) == [1, 2, 3, 4, 6, 60, 7, 9]
    second.write_bytes(dated(8, 12))
    with open(path, "ab") as file:
        file.write(dated(10))
    assert advanced(cursor) == [8, 10, 12]
    assert advanced(cursor) == []


def test_one_process_may_be_read_alone(path: Path) -> None:
    """Its file is a live file as any other, and no history reads a stranger's."""
    own = Path(process_name(str(path), "node", 1))
    own.write_bytes(lines(2))
    path.write_bytes(lines(1))
    path.with_name("running@node-1.jsonl").write_bytes(lines(3))
    assert numbers(read_jsonl(own)) == [2]
    assert sorted(numbers(read_jsonl(path))) == [1, 2]


# --- a fragment about to be blanked ---


def test_a_cursor_waits_for_a_line_behind_a_fragment(path: Path) -> None:
    """Its writer blanks the fragment after the append; a look in between must not miss the line."""
    cursor = JsonlCursor(path)
    path.write_bytes(lines(1) + b'{"n":' + lines(2))
    assert advanced(cursor) == [1]
    with open(path, "r+b") as file:
        file.seek(len(lines(1)))
        file.write(b"     ")
    assert advanced(cursor) == [2]
    with open(path, "ab") as file:
        file.write(b"torn\n" + lines(3))
    assert advanced(cursor) == [3]
    assert advanced(cursor) == []


def test_a_cursor_waits_for_such_a_line_with_another_behind_it_too(path: Path) -> None:
    """A third writer was faster than the second's healing."""
    path.write_bytes(lines(1) + b'{"n":' + lines(2, 3))

    def heal() -> None:
        with open(path, "r+b") as file:
            file.seek(len(lines(1)))
            file.write(b"     ")

    got: list[int] = []
    JsonlCursor(path).advance(lambda entry: (got.append(entry["n"]), heal()))  # type: ignore[arg-type,func-returns-value]
    assert got == [1, 2, 3]


# --- while somebody writes and rotates ---


def compress_idle_files(path: Path, until: threading.Event) -> None:
    """Compress what no writer has open, as it comes."""
    while not until.is_set():
        for name in rotated_files(str(path)):
            if name.endswith(path.suffix) and not locks.in_use(name):
                compress(name)


@pytest.mark.parametrize("names", ["stamped", "numbered", "compressed"])
def test_a_reader_meets_each_entry_once_while_the_file_rotates(path: Path, names: str) -> None:
    """Each snapshot is 0, 1, 2, … without a gap, at least up to what was written before it."""
    handler = RotatingJsonlHandler(
        path, maxBytes=4_000, backupCount=500, stable_names=names != "numbered", delay=True
    )
    handler.setFormatter(EntryFormatter())
    written = [0]

    def write() -> None:
        while written[0] < 5_000:
            handler.handle(entry_record("x", logging.INFO, "", {"n": written[0]}))
            written[0] += 1

    is_over = threading.Event()
    crew = [threading.Thread(target=write)]
    if names == "compressed":
        crew.append(threading.Thread(target=compress_idle_files, args=(path, is_over)))
    for thread in crew:
        thread.start()
    cursor, advanced_to = JsonlCursor(path), 0
    try:
        while crew[0].is_alive():
            before = written[0]
            seen = numbers(read_jsonl(path))
            assert seen == list(range(len(seen)))
            assert len(seen) >= before
            new = advanced(cursor)
            assert new == list(range(advanced_to, advanced_to + len(new)))
            advanced_to += len(new)
    finally:
        is_over.set()
        for thread in crew:
            thread.join(60)
        handler.close()
    assert numbers(read_jsonl(path)) == list(range(written[0]))
    assert not handler.losses


def test_a_live_file_that_is_rotated_and_compressed_under_a_reader_is_met_once(path: Path) -> None:
    """Its name and its inode are other ones by the time that the rotated files are looked at."""

    def write() -> None:
        for number in range(2_000):
            with open(path, "ab") as file:
                file.write(lines(number))
            if number % 20 == 19:
                os.rename(path, stamped(path, number))
                compress(stamped(path, number))

    thread = threading.Thread(target=write)
    thread.start()
    cursor, gone_on = JsonlCursor(path), []
    try:
        while thread.is_alive():
            seen = numbers(read_jsonl(path))
            assert seen == list(range(len(seen)))
            gone_on += advanced(cursor)
            assert gone_on == list(range(len(gone_on)))
    finally:
        thread.join(60)
    assert gone_on + advanced(cursor) == list(range(2_000))


def test_a_compressed_file_is_read_by_its_own_name(path: Path) -> None:
    """As it was handed on, elsewhere or here; the live file beside it is another."""
    path.write_bytes(b'{"n":3}\n')
    handed_on = path.with_name("run.jsonl.gz")
    handed_on.write_bytes(gzip.compress(b'{"n":1}\n{"n":2}\n'))
    assert [entry["n"] for entry in read_jsonl(handed_on)] == [1, 2]
    assert [entry["n"] for entry in tail_jsonl(handed_on, 1)] == [2]
    text = path.with_name("text.gz")
    text.write_bytes(b'{"n":4}\n')
    assert [entry["n"] for entry in read_jsonl(text)] == [4]


def test_a_file_that_moves_on_at_each_look_is_met_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is rotated and compressed faster than a reader looks: known again by its first bytes."""
    path.write_bytes(lines(0))
    written = 1

    def rotates_first(live: str) -> list[str]:
        nonlocal written
        os.rename(path, stamped(path, written))
        compress(stamped(path, written))
        path.write_bytes(lines(written))
        written += 1
        return rotated_files(live)

    cursor, gone_on = JsonlCursor(path), []
    monkeypatch.setattr("foundry_log.files.history.rotated_files", rotates_first)
    for _ in range(3):
        seen = numbers(read_jsonl(path))
        assert seen == list(range(len(seen)))
        gone_on += advanced(cursor)
        assert gone_on == list(range(len(gone_on)))
    assert len(gone_on) > 3
