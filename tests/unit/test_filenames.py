"""The grammar of rotated names: round trips, order, and what is not ours."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundry_log.files import filenames

pytestmark = pytest.mark.unit

SECONDS = st.integers(0, 253_402_300_799).map(float)  # 1970 to 9999
NAMES = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=20
).filter(lambda name: name not in (".", ".."))


def touched(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


def found(folder: Path, live: str) -> list[str]:
    return [os.path.basename(path) for path in filenames.rotated_files(str(folder / live))]


def test_a_stamped_name_has_the_utc_time_before_the_suffix() -> None:
    """The suffix stays, so that tools still know the type."""
    name = filenames.stamped_name("/logs/run.jsonl", 1_795_242_191.123456)
    assert name == "/logs/run.20261121T062311123456Z.jsonl"


def test_a_name_without_suffix_gets_the_stamp_at_its_end() -> None:
    """There is nothing to put it before."""
    assert filenames.stamped_name("/logs/run", 0.0) == "/logs/run.19700101T000000000000Z"


def test_a_dot_in_the_directory_is_no_suffix() -> None:
    """Only the file's own name is split."""
    assert filenames.stamped_name("/a.b/run", 0.0) == "/a.b/run.19700101T000000000000Z"


@given(seconds=SECONDS, later=SECONDS)
def test_names_sort_as_their_times(seconds: float, later: float) -> None:
    """Text order is time order."""
    first, second = sorted((seconds, later))
    names = [filenames.stamped_name("run.jsonl", time) for time in (first, second)]
    assert names == sorted(names)


@given(seconds=SECONDS, earlier=st.floats(0, 1e9))
def test_a_clock_that_steps_back_still_gives_a_later_name(seconds: float, earlier: float) -> None:
    """The new name sorts behind the newest one, also within one microsecond."""
    before = filenames.stamped_name("run.jsonl", seconds)
    after = filenames.stamped_name("run.jsonl", max(seconds - earlier, 0.0), after=before)
    assert after > before
    assert after != before


def test_a_newest_file_with_a_number_does_not_move_the_stamp() -> None:
    """Numbers say nothing about the time."""
    name = filenames.stamped_name("run.jsonl", 0.0, after="run.jsonl.1")
    assert name == filenames.stamped_name("run.jsonl", 0.0)


@given(live=NAMES, seconds=st.lists(SECONDS, max_size=5), numbers=st.sets(st.integers(1, 999_999)))
def test_every_rotated_name_is_found_again_oldest_first(
    live: str, seconds: list[float], numbers: set[int]
) -> None:
    """Round trip of both grammars, for any file name."""
    numbers = set(sorted(numbers)[:5])
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, live)
        stamped: list[str] = []
        for second in seconds:
            after = stamped[-1] if stamped else None
            stamped.append(filenames.stamped_name(path, second, after=after))
        numbered = [filenames.numbered_name(path, number) for number in sorted(numbers)[::-1]]
        Path(path).touch()
        for name in stamped + numbered:
            Path(name).touch()
        assert filenames.rotated_files(path) == numbered + stamped


@given(live=NAMES, other=NAMES)
def test_a_name_that_is_found_is_one_the_grammar_makes(live: str, other: str) -> None:
    """Whatever stands beside the live file, only our own names are taken for rotated ones."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, other).touch()
        for path in filenames.rotated_files(os.path.join(folder, live)):
            assert path.startswith(os.path.join(folder, live).rsplit(".", 1)[0])
            assert path != os.path.join(folder, live)


@pytest.mark.parametrize(
    "stranger",
    [
        "run.jsonl",
        "run.jsonl.0",
        "run.jsonl.01",
        "run.jsonl.-1",
        "run.jsonl.1.gz",
        "run.jsonl.20261121",
        "run.jsonl.²",
        "run.jsonl.١",
        "run.jsonl.bak",
        "run.b.20261121T062311123456Z.jsonl",
        "run.20261121T062311123456Z.json",
        "run.20261121T062311123456.jsonl",
        "run.20261121T0623111234567Z.jsonl",
        "run.99999999T999999999999Z.jsonl",
        "run.٢٠٢٦١١٢١T062311123456Z.jsonl",
        "rerun.20261121T062311123456Z.jsonl",
        ".run.jsonl.lock",
    ],
)
def test_a_stranger_is_not_a_rotated_file(tmp_path: Path, stranger: str) -> None:
    """What is not of the grammar is neither read nor pruned."""
    touched(tmp_path, stranger)
    assert found(tmp_path, "run.jsonl") == []


@pytest.mark.parametrize(
    "live", ["a[1]*?.jsonl", "über.jsonl", "a.b.c.jsonl", ".hidden", "run", "-"]
)
def test_odd_names_have_rotated_files_too(tmp_path: Path, live: str) -> None:
    """Glob characters, dots, no suffix and letters of any script are only letters."""
    stamped = os.path.basename(filenames.stamped_name(live, 5.0))
    touched(tmp_path, live, f"{live}.1", stamped, "a1x.jsonl.1")
    assert found(tmp_path, live) == [f"{live}.1", stamped]


@pytest.mark.parametrize("folder", ["missing", "file/below"])
def test_a_directory_that_is_not_there_has_no_rotated_files(tmp_path: Path, folder: str) -> None:
    """Neither a missing directory nor a file in its place is an error."""
    touched(tmp_path, "file")
    assert found(tmp_path / folder, "run.jsonl") == []


def test_a_bare_name_is_looked_for_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path without a directory works."""
    monkeypatch.chdir(tmp_path)
    touched(tmp_path, "run.jsonl.1")
    assert filenames.rotated_files("run.jsonl") == ["run.jsonl.1"]


def test_the_lock_file_is_hidden_beside_the_live_file() -> None:
    """Its name is the live file's, so that two files never share one."""
    assert filenames.lock_name("/logs/run.jsonl") == "/logs/.run.jsonl.lock"
    assert filenames.lock_name("run") == ".run.lock"


@pytest.mark.parametrize("name", ["exp-1", "a.b", "größe", "x" * 200, "...", "with space"])
def test_a_name_that_is_one_component_of_a_path_is_kept(name: str) -> None:
    """Experiments may be called what people call them."""
    assert filenames.check_name(name) == name


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("", "names no directory"),
        ("  ", "names no directory"),
        (".", "names no directory"),
        ("..", "names no directory"),
        ("a/b", "character '/'"),
        ("..\\up", "character"),
        ("c:x", "character ':'"),
        ("line\nbreak", "character"),
        ("nul\0", "character"),
        ("é" * 101, "200 bytes"),
    ],
)
def test_a_name_that_leaves_its_directory_is_refused(name: str, rule: str) -> None:
    """The message says which rule and what to do."""
    with pytest.raises(ValueError, match=rule):
        filenames.check_name(name)


# --- compressed files, markers, files of single processes ---


def test_a_compressed_file_keeps_its_place(tmp_path: Path) -> None:
    """Compression changes no order."""
    first, second, third = (filenames.stamped_name("run.jsonl", float(n)) for n in range(3))
    touched(tmp_path, first, filenames.compressed_name(second), third)
    assert found(tmp_path, "run.jsonl") == [first, second + ".gz", third]


def test_a_file_that_is_there_twice_is_named_once(tmp_path: Path) -> None:
    """A compression that was killed before it removed the original doubles no line."""
    name = filenames.stamped_name("run.jsonl", 1.0)
    touched(tmp_path, name, filenames.compressed_name(name))
    assert found(tmp_path, "run.jsonl") == [name]


def test_the_next_stamp_sorts_behind_a_compressed_file() -> None:
    """Also when the clock has stepped back."""
    newest = filenames.compressed_name(filenames.stamped_name("run.jsonl", 50.0))
    assert filenames.stamped_name("run.jsonl", 1.0, after=newest) > newest.removesuffix(".gz")


def test_a_live_file_may_be_called_gz(tmp_path: Path) -> None:
    """Its rotated files end like it, and are found."""
    name = filenames.stamped_name("run.gz", 1.0)
    touched(tmp_path, name)
    assert found(tmp_path, "run.gz") == [name]


def test_marked_files_are_found_whether_they_are_there_or_not(tmp_path: Path) -> None:
    """And those of other live files are not."""
    older, newer = (str(tmp_path / filenames.stamped_name("run.jsonl", float(n))) for n in (0, 1))
    other = str(tmp_path / filenames.stamped_name("eval.jsonl", 1.0))
    for path in (newer, older, other):
        Path(filenames.marker_name(path)).touch()
    (tmp_path / ".run.jsonl.todo").touch()
    assert filenames.marked_files(str(tmp_path / "run.jsonl")) == [older, newer]
    assert found(tmp_path, "run.jsonl") == []


def test_the_files_of_single_processes_are_found(tmp_path: Path) -> None:
    """Live, or rotated only; a dash or dot in the host's name and strangers do no harm."""
    path = str(tmp_path / "run.jsonl")
    alive = filenames.process_name(path, "node-1.example", 12)
    rotated = filenames.process_name(path, "node2", 7)
    Path(alive).touch()
    Path(filenames.stamped_name(rotated, 5.0)).touch()
    touched(tmp_path, "run.jsonl", "run@home.jsonl", "run@n-1.log", "rerun@n-1.jsonl")
    assert filenames.process_files(path) == [alive, rotated]
    assert os.path.basename(alive) == "run@node-1.example-12.jsonl"
    assert filenames.rotated_files(path) == []


def test_the_files_of_ranks_are_found(tmp_path: Path) -> None:
    """Live, rotated or compressed, and those of their processes, which are of both families."""
    path = tmp_path / "run.jsonl"
    first, second = (filenames.ranked(path, number) for number in (0, 1))
    own = filenames.process_name(str(second), "node-1.example", 12)
    first.touch()
    Path(filenames.compressed_name(filenames.stamped_name(str(second), 5.0))).touch()
    Path(filenames.numbered_name(own, 3)).touch()
    touched(tmp_path, "run@rank01.jsonl", "run@rank.jsonl", "run@rank1.log", "run@rank-1@x.jsonl")
    touched(tmp_path, "run@rank1@.jsonl", "run@rank1@n-1@n-1.jsonl", "rerun@rank1.jsonl")
    assert filenames.process_files(str(path)) == [str(first), str(second), own]
    assert filenames.process_files(str(second)) == [own]
    assert filenames.process_files(str(first)) == []
    assert second.name == "run@rank1.jsonl"
    assert os.path.basename(own) == "run@rank1@node-1.example-12.jsonl"


def test_a_host_may_be_called_like_a_rank(tmp_path: Path) -> None:
    """A process has a number behind its host."""
    path = str(tmp_path / "run.jsonl")
    own = filenames.process_name(path, "rank1", 12)
    touched(tmp_path, os.path.basename(own))
    assert filenames.process_files(path) == filenames.process_files(path, "rank1") == [own]
    assert filenames.process_files(str(tmp_path / "run@rank1.jsonl")) == []


def test_the_files_of_a_host_are_its_processes_own(tmp_path: Path) -> None:
    """A rank's file may be another host's: who finishes what a process left passes it by."""
    path = tmp_path / "run.jsonl"
    own = filenames.process_name(str(filenames.ranked(path, 1)), "node", 12)
    touched(tmp_path, "run@rank1.jsonl", os.path.basename(own))
    assert filenames.process_files(str(path), "node") == [own]


def test_without_a_rank_the_name_stays() -> None:
    """One process alone has no use for it."""
    assert filenames.ranked(Path("logs/run.jsonl"), None) == Path("logs/run.jsonl")
    assert filenames.ranked(Path("a.b/run"), 12) == Path("a.b/run@rank12")


@given(
    live=NAMES,
    rank=st.none() | st.integers(0, 10**6),
    host=st.none() | st.from_regex(r"[A-Za-z0-9-]{1,12}", fullmatch=True),
    pid=st.integers(1, 4_194_304),
    rotation=st.sampled_from(["live", "numbered", "stamped", "compressed"]),
    seconds=SECONDS,
)
def test_every_name_of_a_rank_or_process_is_found_again(
    live: str, rank: int | None, host: str | None, pid: int, rotation: str, seconds: float
) -> None:
    """Whatever the live file is called, by its family and by its rank's, as the same file."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, live)
        of_rank = str(filenames.ranked(Path(path), rank))
        own = of_rank if host is None else filenames.process_name(of_rank, host, pid)
        stamped = filenames.stamped_name(own, seconds)
        name = {
            "live": own,
            "numbered": filenames.numbered_name(own, 7),
            "stamped": stamped,
            "compressed": filenames.compressed_name(stamped),
        }[rotation]
        Path(name).touch()
        assert filenames.process_files(path) == ([] if own == path else [own])
        assert filenames.process_files(of_rank) == ([] if own == of_rank else [own])
        assert filenames.rotated_files(own) == ([] if name == own else [name])


@given(live=NAMES, other=st.from_regex(r"@?[a-z0-9@.TZ-]{0,24}", fullmatch=True))
def test_what_is_found_is_a_name_of_a_rank_or_process(live: str, other: str) -> None:
    """And the file that was there is the one, or a rotated one of it."""
    with tempfile.TemporaryDirectory() as folder:
        stem, suffix = os.path.splitext(live)
        Path(folder, stem + other + suffix).touch()
        for path in filenames.process_files(os.path.join(folder, live)):
            assert os.path.basename(path).startswith(stem + "@")
            assert os.path.exists(path) or filenames.rotated_files(path)


def test_a_host_cannot_leave_the_directory() -> None:
    """Nor break the grammar."""
    assert filenames.process_name("/a/run.jsonl", "../x@y", 1) == "/a/run@..-x-y-1.jsonl"
