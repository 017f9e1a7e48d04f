"""Which files are logs, whether they may travel, and what is told of them."""

from __future__ import annotations

import gzip
import os
import time
from pathlib import Path

import pytest

from foundry_log import RotatingJsonlHandler
from foundry_log.files import filenames
from foundry_log.shipping.metadata import metadata_of, time_of_line, times
from foundry_log.shipping.readiness import Judge, Readiness
from foundry_log.shipping.scanning import (
    RUN_INFO,
    Kind,
    LogFile,
    Scope,
    blob_part,
    classify,
    log_files,
)

pytestmark = pytest.mark.unit

STAMPED = "run.20261121T062311123456Z.jsonl"


def write(path: Path, text: str = "line\n", age_s: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    seconds = time.time() - age_s
    os.utime(path, (seconds, seconds))
    return path


def found(root: Path, scope: Scope | None = None) -> dict[str, LogFile]:
    """Log files by their relative path; any error fails the test."""

    def unread(path: str, error: OSError) -> None:
        raise error

    return {file.relative: file for file in log_files(str(root), scope or Scope(), unread)}


def readiness_of(root: Path, name: str, is_finished: bool = False) -> Readiness:
    return Judge().judge([found(root)[name]], time.time(), is_finished)[0][1]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("shop-worker-7__2026-11-21.log", Kind.ROTATED),
        ("shop-worker-7__2026-11-21.1.log.gz", Kind.ROTATED),
        ("shop_2026-11-21.log", Kind.ROTATED),
        ("shop-worker-7.current.log", Kind.LIVE),
        ("shop.current.log", Kind.LIVE),
        (STAMPED, Kind.ROTATED),
        (STAMPED + ".gz", Kind.ROTATED),
        ("run@rank1.20261121T062311123456Z.jsonl", Kind.ROTATED),
        ("run.jsonl.1", Kind.NUMBERED),
        ("metrics.jsonl", Kind.RUN),
        ("run@node7-4711.jsonl", Kind.RUN),
        ("run.log", Kind.RUN),
        (RUN_INFO, Kind.RUN),
        (f".{STAMPED}.todo", None),
        (".run.jsonl.lock", None),
        ("model.pt", None),
        ("run.jsonl.20261121", None),
        ("report.html", None),
        ("data.csv.1", None),
    ],
)
def test_a_name_tells_the_kind(name: str, kind: Kind | None) -> None:
    """Of get_logger's files and those of runs."""
    named = classify(name, in_run=True)
    assert (named and named.kind) == kind


def test_live_files_are_taken_in_runs_alone() -> None:
    """Anybody's `data.json` is no log."""
    assert classify("data.json", in_run=True) is not None
    assert classify("data.json") is None


def test_an_application_is_not_one_whose_name_goes_on(tmp_path: Path) -> None:
    """`foo` takes no file of `foo-bar`, nor the other way round."""
    for name in ("foo-worker-1__2026-11-21.log", "foo-bar-worker-1__2026-11-21.log"):
        write(tmp_path / name)
    write(tmp_path / "foo_2026-11-21.log")
    write(tmp_path / "foo%2Dbar_2026-11-21.log")
    assert set(found(tmp_path, Scope("foo"))) == {
        "foo-worker-1__2026-11-21.log", "foo_2026-11-21.log",
    }  # fmt: skip
    assert set(found(tmp_path, Scope("foo-bar"))) == {
        "foo-bar-worker-1__2026-11-21.log", "foo%2Dbar_2026-11-21.log",
    }  # fmt: skip


def test_a_scope_may_be_one_process(tmp_path: Path) -> None:
    """Its files and the leader's."""
    for name in ("foo-a__2026-11-21.log", "foo-b__2026-11-21.log", "foo_2026-11-21.log"):
        write(tmp_path / name)
    assert set(found(tmp_path, Scope("foo", "a"))) == {
        "foo-a__2026-11-21.log", "foo_2026-11-21.log",
    }  # fmt: skip


def test_links_and_hidden_files_are_passed_by(tmp_path: Path) -> None:
    """Nothing out of the directory is shipped, though the directory itself may be a link."""
    secret = write(tmp_path / "elsewhere" / STAMPED)
    root = tmp_path / "root"
    write(root / ("a" + STAMPED))
    (root / STAMPED).symlink_to(secret)
    (root / "folder").symlink_to(secret.parent)
    write(root / ".hidden" / STAMPED)
    (tmp_path / "link").symlink_to(root)
    assert set(found(root)) == set(found(tmp_path / "link")) == {"a" + STAMPED}


def test_a_run_is_taken_without_checkpoints_and_trackers(tmp_path: Path) -> None:
    """Their directories are left alone where they stand beside run_info.json."""
    for name in (RUN_INFO, "run.jsonl", "checkpoints/a.log.1", "wandb/debug.log.1", "model.pt"):
        write(tmp_path / "exp" / "output" / name)
    assert set(found(tmp_path)) == {f"exp/output/{RUN_INFO}", "exp/output/run.jsonl"}


def test_a_directory_that_cannot_be_read_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    """Also the one that was to be scanned; one that is missing holds nothing."""
    file = write(tmp_path / STAMPED)
    told: list[str] = []
    assert not list(log_files(str(file), Scope(), lambda path, error: told.append(path)))
    assert told == [str(file)]
    assert not list(log_files(str(tmp_path / "missing"), Scope(), lambda *_: told.append("")))
    assert told == [str(file)]


def test_a_numbered_file_gets_a_name_that_stays(tmp_path: Path) -> None:
    """By the time of its last line: tomorrow it has another number."""
    path = write(tmp_path / "sub" / "run.jsonl.1")
    os.utime(path, (1_795_242_191.5, 1_795_242_191.5))
    file = found(tmp_path)["sub/run.jsonl.1"]
    assert file.stable_relative == "sub/run.20261121T062311500000Z.jsonl"


@pytest.mark.parametrize(
    ("text", "part"), [("a b.log", "a b.log"), ("..", ".%2E"), ("a\\b/\n", "a%5Cb%2F%0A")]
)
def test_a_part_of_a_blob_name_is_safe(text: str, part: str) -> None:
    """No part can climb, or be refused."""
    assert blob_part(text) == part


# --- whether a file may travel ---


@pytest.mark.parametrize(
    ("name", "rests_s"), [(STAMPED, 30), ("run.jsonl.1", 30), ("run.jsonl", 600)]
)
def test_files_rest_before_they_travel(tmp_path: Path, name: str, rests_s: int) -> None:
    """Rotated ones for 30 seconds, live ones for ten minutes; nobody waits at the end."""
    write(tmp_path / RUN_INFO, age_s=2000)
    path = write(tmp_path / name, age_s=rests_s - 5)
    assert readiness_of(tmp_path, name) is Readiness.WAITING
    assert readiness_of(tmp_path, name, is_finished=True) is Readiness.READY
    write(path, age_s=rests_s + 1)
    assert readiness_of(tmp_path, name) is Readiness.READY


def test_a_time_in_the_future_counts_as_now(tmp_path: Path) -> None:
    """The file rests from when it was first seen."""
    write(tmp_path / STAMPED, age_s=-5000)
    files, judge, now = list(found(tmp_path).values()), Judge(), time.time()
    assert judge.judge(files, now)[0][1] is Readiness.WAITING
    assert judge.judge(files, now + 29)[0][1] is Readiness.WAITING
    assert judge.judge(files, now + 31)[0][1] is Readiness.READY


def test_a_marked_file_waits_for_its_compression(tmp_path: Path) -> None:
    """It is about to be replaced, or told to a hook."""
    path = write(tmp_path / STAMPED, age_s=100)
    marker = Path(filenames.marker_name(str(path)))
    marker.write_text("")
    assert readiness_of(tmp_path, STAMPED) is Readiness.WAITING
    marker.unlink()
    assert readiness_of(tmp_path, STAMPED) is Readiness.READY


def test_a_run_whose_files_are_held_goes_on(tmp_path: Path) -> None:
    """None of its live files travels, not even those that nobody holds, unless nothing follows."""
    write(tmp_path / RUN_INFO, age_s=2000)
    write(tmp_path / "run.jsonl", age_s=2000)
    handler = RotatingJsonlHandler(tmp_path / "run.jsonl")
    assert readiness_of(tmp_path, RUN_INFO) is Readiness.IN_USE
    assert readiness_of(tmp_path, RUN_INFO, is_finished=True) is Readiness.READY
    assert readiness_of(tmp_path, "run.jsonl", is_finished=True) is Readiness.IN_USE
    handler.close()
    assert readiness_of(tmp_path, RUN_INFO) is Readiness.READY


def test_the_oldest_file_comes_first(tmp_path: Path) -> None:
    """By the time of the last line."""
    for name, age_s in (("b.log.1", 100), ("a.log.1", 50), ("c.log.1", 200)):
        write(tmp_path / name, age_s=age_s)
    judged = Judge().judge(found(tmp_path).values(), time.time())
    assert [file.relative for file, _ in judged] == ["c.log.1", "b.log.1", "a.log.1"]


# --- what is told of a file ---


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        (b'{"timestamp": "2026-11-21T06:23:11.500000+00:00", "message": ""}', 1_795_242_191.5),
        (b'{"timestamp": "2026-11-21T06:23:11Z"}', 1_795_242_191.0),
        (b'   {"timestamp": "2026-11-21T07:23:11+01:00"}', 1_795_242_191.0),
        (b'{"timestamp": 5}', None),
        (b'{"timestamp": "yesterday"}', None),
        (b'{"message": "2026"', None),
        (b"Traceback", None),
        (b"", None),
        (b"\xff\xfe", None),
    ],
)
def test_a_line_tells_its_time(line: bytes, seconds: float | None) -> None:
    """Or nothing: no line raises."""
    assert time_of_line(line) == seconds


def test_a_line_for_people_tells_local_time() -> None:
    """As get_logger writes it."""
    expected = time.mktime((2026, 11, 21, 6, 23, 11, 0, 0, -1)) + 0.123
    assert time_of_line(b"2026-11-21 06:23:11.123 | INFO | x") == pytest.approx(expected)


def test_first_and_last_line_are_found_past_others(tmp_path: Path) -> None:
    """A traceback at either end has no time."""
    line = '{{"timestamp": "2026-11-21T06:23:{:02}+00:00"}}\n'
    text = "torn\n" + "".join(line.format(second) for second in range(11, 15)) + "  File x\n"
    path = write(tmp_path / STAMPED, text)
    assert times(str(path)) == (1_795_242_191.0, 1_795_242_194.0)


def test_a_gzip_tells_its_first_line_and_its_time_of_change(tmp_path: Path) -> None:
    """It is not unpacked for its last line."""
    path = tmp_path / (STAMPED + ".gz")
    path.write_bytes(gzip.compress(b'{"timestamp": "2026-11-21T06:23:11+00:00"}\n' * 9))
    os.utime(path, (1_795_242_200, 1_795_242_200))
    told = metadata_of(found(tmp_path)[path.name])
    assert told["first"] == "2026-11-21T06:23:11.000000+00:00"
    assert told["last"] == "2026-11-21T06:23:20.000000+00:00"


def test_a_damaged_gzip_and_an_empty_file_are_shipped_all_the_same(tmp_path: Path) -> None:
    """With what is known of them."""
    (tmp_path / (STAMPED + ".gz")).write_bytes(b"\x1f\x8bnonsense")
    write(tmp_path / "shop-api__2026-11-21.log", "")
    files = found(tmp_path)
    assert "first" not in metadata_of(files[STAMPED + ".gz"])
    told = metadata_of(files["shop-api__2026-11-21.log"])
    assert (told["app"], told["process"]) == ("shop", "api")
    assert told["source"] == "shop-api__2026-11-21.log"
