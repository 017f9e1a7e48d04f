"""Appending whole lines: fragments, short writes, files that others move, forks, descriptors."""

from __future__ import annotations

import copy
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_log.files import locks
from foundry_log.files.append_file import AppendFile

pytestmark = pytest.mark.unit

LINE = b'{"n": 1, "text": "abc"}\n'


@pytest.fixture
def file(tmp_path: Path) -> Iterator[AppendFile]:
    file = AppendFile(str(tmp_path / "run.jsonl"))
    yield file
    file.close()


def parsed(path: str | Path) -> list[object]:
    """Return the values of the lines that parse; a fragment line does not."""
    values = []
    for line in Path(path).read_bytes().split(b"\n"):
        try:
            values.append(json.loads(line))
        except ValueError:
            continue
    return values


def run_script(script: str, path: Path) -> str:
    """Return what a new interpreter prints that runs `script` for `path`."""
    command = [sys.executable, "-c", script, str(path)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))


# --- lines ---


def test_a_line_stands_in_the_file_when_append_returns(file: AppendFile) -> None:
    """Nothing is kept back in a buffer."""
    file.append(LINE)
    assert Path(file.path).read_bytes() == LINE


def test_the_size_counts_other_writers_bytes(file: AppendFile, tmp_path: Path) -> None:
    """Rotation by size needs the whole file's."""
    other = AppendFile(file.path)
    other.append(LINE)
    file.append(LINE)
    other.append(LINE)
    assert (file.size, other.size) == (2 * len(LINE), 3 * len(LINE))
    other.close()


def test_a_missing_directory_is_made(tmp_path: Path) -> None:
    """Also several levels of it."""
    file = AppendFile(str(tmp_path / "a" / "b" / "run.jsonl"))
    file.append(LINE)
    file.close()
    assert (tmp_path / "a" / "b" / "run.jsonl").read_bytes() == LINE


def test_a_new_file_has_the_permissions_asked_for(tmp_path: Path) -> None:
    """The umask is taken off, as for every file."""
    before = os.umask(0)
    try:
        file = AppendFile(str(tmp_path / "run"), permissions=0o604)
        file.open()
    finally:
        os.umask(before)
    file.close()
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o604


def test_truncate_empties_the_file_once(tmp_path: Path) -> None:
    """A second opening, after close, appends."""
    path = tmp_path / "run"
    path.write_bytes(b"old\n")
    file = AppendFile(str(path), truncate=True)
    file.append(b"one\n")
    file.close()
    file.append(b"two\n")
    file.close()
    assert path.read_bytes() == b"one\ntwo\n"


def test_exclusive_refuses_a_file_that_is_there(tmp_path: Path) -> None:
    """Mode `x`, and it leaves no descriptor open."""
    (tmp_path / "run").touch()
    before = descriptors()
    with pytest.raises(FileExistsError):
        AppendFile(str(tmp_path / "run"), exclusive=True).open()
    assert descriptors() == before


def test_a_directory_in_the_files_place_raises_and_leaks_nothing(tmp_path: Path) -> None:
    """Each attempt costs no descriptor."""
    file = AppendFile(str(tmp_path))
    before = descriptors()
    for _ in range(3):
        with pytest.raises(OSError, match="directory"):
            file.append(LINE)
    assert descriptors() == before


def test_a_failure_between_the_two_descriptors_leaks_neither(tmp_path: Path) -> None:
    """With one descriptor left, each attempt raises, and the next finds one left again."""
    script = """
import errno, os, resource, sys
from foundry_log.files.append_file import AppendFile
file = AppendFile(sys.argv[1])
free = os.open(os.devnull, os.O_RDONLY)
os.close(free)
resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, 1000))
for _ in range(3):
    try:
        file.append(b"line\\n")
    except OSError as error:
        print(errno.errorcode[error.errno], file.is_open)
resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))
file.append(b"line\\n")
"""
    done = run_script(script, tmp_path / "run")
    assert done.split() == ["EMFILE", "False"] * 3
    assert (tmp_path / "run").read_bytes() == b"line\n"


def test_close_twice_and_append_again(file: AppendFile) -> None:
    """Closing is idempotent; a later line opens the file again."""
    file.append(LINE)
    file.close()
    file.close()
    assert not file.is_open
    file.append(LINE)
    assert Path(file.path).read_bytes() == LINE * 2


def test_sync_waits_for_the_device(file: AppendFile) -> None:
    """And does nothing for a file that is not open."""
    file.sync()
    file.append(LINE)
    file.sync()
    assert Path(file.path).read_bytes() == LINE


def test_a_pipe_takes_lines_and_has_no_size(tmp_path: Path) -> None:
    """A FIFO gets the bytes, also more than it holds at once, and is never rotated or followed."""
    path, line, got = tmp_path / "fifo", b"x" * 300_000 + b"\n", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    file = AppendFile(str(path))
    file.append(line)
    assert not file.is_regular
    assert not file.moved()
    file.close()
    reader.join(20)
    assert got == [line]


def test_a_device_takes_lines() -> None:
    """`/dev/null` is no file with a size."""
    file = AppendFile(os.devnull)
    file.append(LINE)
    assert file.size == 0
    assert not file.is_regular
    file.close()


# --- fragments ---


@pytest.mark.parametrize("cut", range(len(LINE)))
def test_a_fragment_at_the_end_of_the_file_is_not_glued(tmp_path: Path, cut: int) -> None:
    """Whatever byte a writer was killed at before, the next line is on its own."""
    path = tmp_path / "run.jsonl"
    path.write_bytes(LINE + LINE[:cut])
    file = AppendFile(str(path))
    file.append(b'{"n": 2}\n')
    file.close()
    assert parsed(path)[0] == json.loads(LINE)
    assert parsed(path)[-1] == {"n": 2}
    assert path.read_bytes().endswith(b'\n{"n": 2}\n') or cut == 0


def test_a_whole_line_that_lacks_only_its_newline_is_kept(tmp_path: Path) -> None:
    """It may be of another tool, which writes none behind the last line."""
    path = tmp_path / "run.jsonl"
    path.write_bytes(b'{"n": 1}')
    file = AppendFile(str(path))
    file.append(b'{"n": 2}\n')
    file.close()
    assert parsed(path) == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize("length", [1, 5, 4096, 65_535, 65_536, 65_537, 200_000])
@pytest.mark.parametrize("before", [b"", LINE])
def test_a_fragment_left_while_the_file_is_open_is_blanked(
    file: AppendFile, length: int, before: bytes
) -> None:
    """The line that lands behind it parses, since JSON allows spaces before a value."""
    file.open()
    Path(file.path).write_bytes(before + b"{" * length)  # in place: the same file
    file.append(b'{"n": 2}\n')
    assert Path(file.path).read_bytes() == before + b" " * length + b'{"n": 2}\n'


def test_another_writers_whole_line_is_left_alone(file: AppendFile) -> None:
    """Only what does not end in a newline is a fragment."""
    file.append(LINE)
    with open(file.path, "ab") as other:
        other.write(b"other\n")
    file.append(LINE)
    assert Path(file.path).read_bytes() == LINE + b"other\n" + LINE


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.one_of(st.integers(0, 2), st.binary(min_size=1, max_size=9)), min_size=1, max_size=25
    )
)
def test_lines_of_several_writers_stand_whole_whatever_fragments_fall_between(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int | bytes]
) -> None:
    """Model: the lines appended, in order, whatever bytes dead writers left between them."""
    path = tmp_path_factory.mktemp("model") / "run.jsonl"
    writers = [AppendFile(str(path)) for _ in range(3)]
    expected = []
    for number, step in enumerate(steps):
        if isinstance(step, int):
            writers[step].append(json.dumps({"n": number}).encode() + b"\n")
            expected.append({"n": number})
        else:
            with open(path, "ab") as dead:
                dead.write(b"#" + step.replace(b"\n", b"x"))  # no JSON, and no whole line
    for writer in writers:
        writer.close()
    assert parsed(path) == expected


# --- a full disk ---


def test_a_short_write_is_taken_back_and_writing_resumes_with_room(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stops a write half-way, as a full disk does: no fragment, and an error."""
    script = """
import resource, sys
from foundry_log.files.append_file import AppendFile
file = AppendFile(sys.argv[1])
file.append(b"1" * 99 + b"\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (150, resource.RLIM_INFINITY))
for _ in range(3):
    try:
        file.append(b"2" * 99 + b"\\n")
    except OSError as error:
        print(error.errno)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
file.append(b"3" * 99 + b"\\n")
"""
    path = tmp_path / "run"
    assert run_script(script, path).split() == ["27"] * 3  # EFBIG
    assert path.read_bytes() == b"1" * 99 + b"\n" + b" " * 50 + b"3" * 99 + b"\n"


def test_a_limit_on_the_files_size_leaves_no_fragment(file: AppendFile) -> None:
    """The line that does not fit is blanked, and what lands behind it parses."""
    file.append(LINE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(LINE) + 7, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.append(LINE)
        assert Path(file.path).read_bytes() == LINE + b" " * 7
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file.append(LINE)
    assert Path(file.path).read_bytes() == LINE + b" " * 7 + LINE


def test_one_descriptor_left_is_not_enough_and_is_given_back(file: AppendFile) -> None:
    """Two are needed: the first is closed again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
    try:
        for _ in range(2):
            with pytest.raises(OSError, match="Too many open files"):
                file.open()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not file.is_open


def test_no_descriptor_left_raises_and_the_file_stays_as_it_was(file: AppendFile) -> None:
    """With RLIMIT_NOFILE reached a move cannot be followed: it is told again each time."""
    file.append(LINE)
    os.rename(file.path, file.path + ".moved")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() - 1, hard))
    try:
        for _ in range(2):
            assert file.moved()
            with pytest.raises(OSError, match="Too many open files"):
                file.reopen()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    file.append(LINE)
    assert Path(file.path + ".moved").read_bytes() == LINE * 2
    file.reopen()
    file.append(LINE)
    assert Path(file.path).read_bytes() == LINE


# --- what others do to the path ---


def test_a_renamed_file_has_moved_and_reopen_follows_the_path(file: AppendFile) -> None:
    """As logrotate's `create` does it."""
    file.append(b"one\n")
    assert not file.moved()
    os.rename(file.path, file.path + ".1")
    Path(file.path).touch()
    assert file.moved()
    file.reopen()
    file.append(b"two\n")
    assert Path(file.path).read_bytes() == b"two\n"
    assert not file.moved()


def test_a_deleted_file_has_moved_and_is_made_again(file: AppendFile) -> None:
    """Until then it tells that what is written would be gone."""
    file.append(b"one\n")
    assert not file.is_removed
    os.remove(file.path)
    assert file.is_removed
    assert file.moved()
    file.reopen()
    file.append(b"two\n")
    assert Path(file.path).read_bytes() == b"two\n"


def test_a_directory_replaced_by_a_file_counts_as_moved(tmp_path: Path) -> None:
    """The path cannot exist any more."""
    file = AppendFile(str(tmp_path / "d" / "run"))
    file.append(LINE)
    os.rename(tmp_path / "d", tmp_path / "e")
    (tmp_path / "d").touch()
    assert file.moved()
    file.close()


def test_a_path_that_cannot_be_looked_at_has_not_moved(tmp_path: Path) -> None:
    """Behind a loop of links nothing is known, and the open file can still be written."""
    file = AppendFile(str(tmp_path / "d" / "run"))
    file.append(LINE)
    os.rename(tmp_path / "d", tmp_path / "e")
    (tmp_path / "d").symlink_to("d")
    assert not file.moved()
    file.append(LINE)
    assert (tmp_path / "e" / "run").read_bytes() == LINE * 2
    file.close()


def test_the_answer_no_is_kept_for_the_time_asked(file: AppendFile) -> None:
    """A stat at most so often; the answer yes is never kept."""
    file.append(LINE)
    file.looked -= 60
    assert not file.moved(every_s=60)
    os.remove(file.path)
    assert not file.moved(every_s=60)
    file.looked -= 60
    assert file.moved(every_s=60)
    assert file.moved(every_s=60)


def test_a_truncated_file_is_appended_to_at_its_new_end(file: AppendFile) -> None:
    """As logrotate's `copytruncate` does it: no hole of zeros."""
    file.append(LINE * 50)
    os.truncate(file.path, 0)
    file.append(LINE)
    assert Path(file.path).read_bytes() == LINE
    assert file.size == len(LINE)


def test_reopen_keeps_the_descriptors_number(file: AppendFile) -> None:
    """Whoever is inside a write never meets a closed descriptor."""
    file.append(LINE)
    number, before = file._descriptor, descriptors()
    os.rename(file.path, file.path + ".1")
    file.reopen()
    assert file._descriptor == number
    assert descriptors() == before


def test_reopen_of_a_closed_file_opens_it(file: AppendFile) -> None:
    """There is no old descriptor to replace."""
    file.reopen()
    assert file.is_open


def test_a_file_that_is_always_taken_away_is_given_up(
    file: AppendFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening ends with an error, not in a loop."""
    Path(file.path).touch()
    monkeypatch.setattr("foundry_log.files.append_file._OPEN_ATTEMPTS", 3)
    holder = os.open(file.path, os.O_RDWR)
    try:
        assert locks.try_exclusive(holder)
        with pytest.raises(OSError, match="keeps being replaced"):
            file.open()
    finally:
        os.close(holder)


# --- processes ---


def test_an_open_file_is_in_use_until_it_is_closed(file: AppendFile) -> None:
    """Nobody may take a rotated file away from its slow writer."""
    file.append(LINE)
    os.rename(file.path, file.path + ".1")
    assert locks.in_use(file.path + ".1")
    file.close()
    assert not locks.in_use(file.path + ".1")


def test_descriptors_are_not_inherited_by_programs(file: AppendFile) -> None:
    """A subprocess that runs on holds no lock."""
    file.append(LINE)
    os.rename(file.path, file.path + ".1")
    file.reopen()  # the descriptor that dup2 made
    for descriptor in (file._descriptor, file._patch):
        assert not os.get_inheritable(descriptor)


def test_a_forked_child_writes_through_descriptors_of_its_own(file: AppendFile) -> None:
    """The child's lines arrive, and its end does not free the parent's lock."""
    file.append(b"parent\n")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if not file.is_open else 2
            file.append(b"child\n")
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert locks.in_use(file.path)
    file.append(b"parent\n")
    assert Path(file.path).read_bytes() == b"parent\nchild\nparent\n"


def test_a_parent_that_closes_frees_the_file_although_its_child_lives(file: AppendFile) -> None:
    """The child has closed what it inherited."""
    file.append(LINE)
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(told, b".")
        while True:
            signal.pause()
    os.read(ready, 1)
    file.close()
    try:
        assert not locks.in_use(file.path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(told)


def test_a_line_that_another_process_is_writing_is_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel shows a write of several pages before it is done; a blank line would follow."""
    path = tmp_path / "run.jsonl"
    path.write_bytes(b'{"half":')

    def other_goes_on(_: float) -> None:
        with open(path, "ab") as other:
            other.write(b" 1}\n")

    monkeypatch.setattr("foundry_log.files.append_file.time.sleep", other_goes_on)
    file = AppendFile(str(path))
    file.append(LINE)
    file.close()

    assert path.read_bytes() == b'{"half": 1}\n' + LINE


def test_a_copy_that_fails_leaves_the_descriptors_alone(file: AppendFile) -> None:
    """GIVEN a copy of whatever holds the file THEN it is refused, and lines go where they did."""
    file.append(b"{}\n")
    for how in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be copied"):
            how(file)
    other = open(os.devnull)  # noqa: SIM115 - takes the number of a descriptor that was closed
    file.append(b"{}\n")
    other.close()
    assert parsed(file.path) == [{}, {}]


def test_when_a_file_was_written_is_known_although_opening_ends_its_last_line(
    tmp_path: Path,
) -> None:
    """Its lines are of that time, and the newline is not."""
    path = tmp_path / "run.jsonl"
    path.write_bytes(b'{"torn')
    os.utime(path, (1000, 1000))
    file = AppendFile(str(path))
    file.open()
    file.close()
    assert path.read_bytes() == b'{"torn\n'
    assert file.written_before == 1000
