"""The rotating handler: a drop-in for the stdlib's, under many writers, kills and strangers."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import gzip
import json
import logging
import logging.config
import logging.handlers
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_log import MetricsLogger, RotatingJsonlHandler
from foundry_log.files import filenames, locks
from foundry_log.jsonl import read_jsonl
from tests.conservation import Crew, Task, assert_conserved

pytestmark = pytest.mark.unit

DEADLINE_S = 60
Make = Callable[..., RotatingJsonlHandler]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


@pytest.fixture
def make(path: Path) -> Iterator[Make]:
    """Make handlers of `path` that write the bare message; all are closed at the end."""
    made: list[RotatingJsonlHandler] = []

    def make_one(*args: Any, cls: Any = RotatingJsonlHandler, **options: Any) -> Any:
        handler = cls(path, *args, **options)
        handler.setFormatter(logging.Formatter("%(message)s"))
        made.append(handler)
        return handler

    yield make_one
    for handler in made:
        handler.close()


def log(handler: logging.Handler, *messages: object) -> None:
    for message in messages:
        handler.handle(logging.makeLogRecord({"msg": message}))


def files(path: Path) -> list[str]:
    """Return the names in the directory, without the lock file."""
    return sorted(name for name in os.listdir(path.parent) if not name.endswith(".lock"))


def history(path: Path) -> list[str]:
    """Return the lines of the rotated files and the live one, oldest first."""
    paths = [*filenames.rotated_files(str(path)), str(path)]
    return [line for name in paths for line in Path(name).read_text().splitlines()]


def expire_look(handler: RotatingJsonlHandler) -> None:
    """Let a second pass since the handler last looked at its path."""
    handler._file.looked -= 1.5


# --- a drop-in ---


def test_parameters_are_the_stdlibs_in_its_order(path: Path) -> None:
    """A call that was made for RotatingFileHandler means the same."""
    handler = RotatingJsonlHandler(str(path), "a", 100, 3, "latin-1", True, "replace")
    stdlib = logging.handlers.RotatingFileHandler(path, "a", 100, 3, "latin-1", True, "replace")
    for name in ("baseFilename", "mode", "maxBytes", "backupCount", "encoding", "errors"):
        assert getattr(handler, name) == getattr(stdlib, name)
    assert isinstance(handler, logging.handlers.RotatingFileHandler)
    assert not path.exists()
    handler.close()
    stdlib.close()


def test_without_a_formatter_lines_are_strict_json(path: Path) -> None:
    """The name of the class is its default."""
    handler = RotatingJsonlHandler(path)
    log(handler, "hello")
    handler.close()
    (entry,) = read_jsonl(path)
    assert entry["message"] == "hello"
    assert set(entry) == {"timestamp", "level", "logger", "message", "context"}


def test_a_line_stands_in_the_file_when_the_call_returns(make: Make, path: Path) -> None:
    """No flush is needed, and flush is harmless."""
    handler = make()
    log(handler, "hello")
    assert path.read_text() == "hello\n"
    handler.flush()
    assert path.read_text() == "hello\n"


def test_mode_a_keeps_what_is_there(make: Make, path: Path) -> None:
    """Appending is the default."""
    path.write_text("old\n")
    log(make(), "new")
    assert path.read_text() == "old\nnew\n"


def test_mode_w_empties_the_file_at_the_first_opening_alone(make: Make, path: Path) -> None:
    """Closing and writing again loses nothing."""
    path.write_text("old\n")
    handler = make("w")
    log(handler, "one")
    handler.close()
    log(handler, "two")
    assert path.read_text() == "one\ntwo\n"


def test_mode_w_with_rotation_is_mode_a(make: Make, path: Path) -> None:
    """As in the stdlib: a file that is rotated would be emptied for nothing."""
    path.write_text("old\n")
    handler = make("w", maxBytes=100, backupCount=1)
    assert handler.mode == "a"
    assert path.read_text() == "old\n"


def test_mode_x_refuses_a_file_that_is_there(path: Path) -> None:
    """And takes a new one."""
    RotatingJsonlHandler(path, "x").close()
    with pytest.raises(FileExistsError):
        RotatingJsonlHandler(path, "x")


def test_delay_opens_at_the_first_record(make: Make, path: Path) -> None:
    """Until then there is neither a file nor a directory."""
    handler = make(delay=True)
    assert not path.exists()
    log(handler, "x")
    assert path.exists()


def test_a_missing_directory_is_made(tmp_path: Path) -> None:
    """Also several levels, at construction."""
    RotatingJsonlHandler(tmp_path / "a" / "b" / "run.jsonl").close()
    assert (tmp_path / "a" / "b" / "run.jsonl").exists()


def test_an_opening_that_fails_raises_at_set_up(path: Path) -> None:
    """Without delay a wrong path is an error of the set-up."""
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        RotatingJsonlHandler(path)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"mode": "r"}, "mode='r' does not append"),
        ({"mode": "ab"}, "mode='ab' does not append"),
        ({"maxBytes": -1}, "maxBytes=-1 .* 0 or more"),
        ({"backupCount": -1}, "backupCount=-1 must be 0 or more"),
        ({"max_age_days": 0}, "max_age_days=0 must be above 0"),
        ({"permissions": 0o440}, "permissions=0o440 keep the owner from reading or writing"),
        ({"when": "noon"}, "when='noon' is no unit"),
        ({"when": "H", "interval": 0}, "interval=0 must be"),
        ({"encoding": "utf-16"}, "does not keep ASCII; use 'utf-8'"),
        ({"encoding": "utf-32-le"}, "does not keep ASCII"),
        ({"encoding": "cp037"}, "does not keep ASCII"),
        ({"encoding": "utf-9"}, "unknown encoding: utf-9; use encoding='utf-8'"),
        ({"errors": "shrug"}, "unknown error handler name 'shrug'"),
    ],
)
def test_a_parameter_out_of_range_is_refused(
    path: Path, options: dict[str, Any], rule: str
) -> None:
    """The message says the value and the rule, and no file is made."""
    with pytest.raises(ValueError, match=rule):
        RotatingJsonlHandler(path, **options)
    assert not path.exists()


def test_a_name_that_leaves_no_room_for_rotated_ones_is_refused(tmp_path: Path) -> None:
    """255 bytes are all there is; without rotation the name may use them."""
    name = tmp_path / ("x" * 230)
    with pytest.raises(ValueError, match="use at most 200 bytes"):
        RotatingJsonlHandler(name, maxBytes=1, backupCount=1)
    RotatingJsonlHandler(name).close()


def test_a_file_from_the_future_is_rotated_in_time_all_the_same(make: Make, path: Path) -> None:
    """Its clock was ahead, and has been put right since."""
    path.write_text("old\n")
    os.utime(path, (time.time() + 86_400, time.time() + 86_400))
    handler = make(when="S", stable_names=True)
    deadline = time.monotonic() + DEADLINE_S
    while not filenames.rotated_files(str(path)):
        assert time.monotonic() < deadline
        log(handler, "new")
    assert history(path)[0] == "old"


def test_latin_1_is_written_as_latin_1(make: Make, path: Path) -> None:
    """What it lacks is escaped, unless `errors` says otherwise."""
    log(make(encoding="latin-1"), "é €")
    assert path.read_bytes() == b"\xe9 \\u20ac\n"


def test_errors_says_how_text_without_a_form_is_written(make: Make, path: Path) -> None:
    """As in `str.encode`."""
    log(make(encoding="ascii", errors="replace"), "é")
    assert path.read_bytes() == b"?\n"


def test_errors_strict_counts_a_record_that_has_no_form(
    make: Make, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is lost, counted and reported, and the next is written."""
    handler = make(encoding="ascii", errors="strict")
    log(handler, "é", "é", "e")
    assert path.read_bytes() == b"e\n"
    assert handler.losses == {"UnicodeEncodeError": 2}
    assert capsys.readouterr().err.count("--- Logging error ---") == 1


def test_encoding_locale_is_the_locales(make: Make) -> None:
    """The stdlib's word for the platform's encoding."""
    handler = make(encoding="locale")
    log(handler, "plain")
    assert not handler.losses


def test_a_lone_surrogate_is_escaped(make: Make, path: Path) -> None:
    """UTF-8 has no form for it; the record is kept."""
    log(make(), "\ud800")
    assert path.read_bytes() == b"\\ud800\n"


def test_the_terminator_may_be_another(make: Make, path: Path) -> None:
    """As in the stdlib's StreamHandler."""
    handler = make()
    handler.terminator = " |\n"
    log(handler, "x")
    assert path.read_text() == "x |\n"


def test_new_files_have_the_permissions_asked_for(path: Path) -> None:
    """0640 by default, other ones on request, also after rotation."""
    before = os.umask(0)
    try:
        handler = RotatingJsonlHandler(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        handler.close()
        path.unlink()
        handler = RotatingJsonlHandler(path, permissions=0o600, backupCount=1)
        log(handler, "x")
        handler.doRollover()
        handler.close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_fsync_writes_the_same_lines(make: Make, path: Path) -> None:
    """It only waits for the device."""
    log(make(fsync=True), "x", "y")
    assert path.read_text() == "x\ny\n"


def test_closed_twice_is_closed(make: Make) -> None:
    """And says nothing the second time."""
    handler = make()
    handler.close()
    handler.close()


def test_a_record_after_close_opens_the_file_again(make: Make, path: Path) -> None:
    """A late record is not lost."""
    handler = make()
    log(handler, "one")
    handler.close()
    log(handler, "two")
    assert path.read_text() == "one\ntwo\n"


def test_close_may_race_with_records(make: Make, path: Path) -> None:
    """Each record still stands once."""
    handler = make()
    threads = [
        threading.Thread(target=lambda: log(handler, *range(300))),
        threading.Thread(target=lambda: [handler.close() for _ in range(300)]),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert [int(line) for line in history(path)] == list(range(300))


def test_levels_and_filters_decide_as_in_the_stdlib(make: Make, path: Path) -> None:
    """A filter that says no is the end of the record."""
    handler = make()
    handler.addFilter(lambda record: "no" not in record.getMessage())
    assert handler.handle(logging.makeLogRecord({"msg": "yes"}))
    assert not handler.handle(logging.makeLogRecord({"msg": "no"}))
    assert path.read_text() == "yes\n"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="filters return records from Python 3.12")
def test_a_filter_may_replace_the_record(make: Make, path: Path) -> None:
    """What it returns is written and returned."""
    handler, other = make(), logging.makeLogRecord({"msg": "other"})
    handler.addFilter(lambda record: other)
    assert handler.handle(logging.makeLogRecord({"msg": "one"})) is other
    assert path.read_text() == "other\n"


def test_a_formatter_that_raises_costs_its_record_alone(
    make: Make, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing reaches the caller; the loss is counted under the exception's name."""
    handler = make()
    handler.handle(logging.makeLogRecord({"msg": "%d", "args": ("x",)}))
    log(handler, "fine")
    assert path.read_text() == "fine\n"
    assert handler.losses == {"TypeError": 1}
    assert "TypeError" in capsys.readouterr().err


def test_a_pipe_gets_lines_and_is_never_rotated(tmp_path: Path) -> None:
    """A FIFO has no size."""
    path, got = tmp_path / "fifo", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    handler = RotatingJsonlHandler(path, maxBytes=1, backupCount=1)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log(handler, "one", "two")
    handler.doRollover()
    handler.close()
    reader.join(DEADLINE_S)
    assert got == [b"one\ntwo\n"]
    assert os.listdir(tmp_path) == ["fifo"]


def test_a_device_gets_lines_and_is_never_rotated() -> None:
    """`/dev/null` stays where it is."""
    handler = RotatingJsonlHandler(os.devnull, maxBytes=1, backupCount=1, when="S")
    log(handler, "one", "two")
    handler.close()
    assert not handler.losses
    assert not handler.failed_rotations


# --- configured by data ---


def test_a_dict_config_makes_it(tmp_path: Path) -> None:
    """By its dotted name, with any of its parameters."""
    path = tmp_path / "logs" / "run.jsonl"
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": "foundry_log.JsonFormatter"}},
            "handlers": {
                "file": {
                    "class": "foundry_log.RotatingJsonlHandler",
                    "formatter": "json",
                    "filename": str(path),
                    "maxBytes": 300,
                    "stable_names": True,
                }
            },
            "loggers": {"rotating.dict": {"level": "INFO", "handlers": ["file"]}},
        }
    )
    for number in range(10):
        logging.getLogger("rotating.dict").info("line %d", number)
    assert [entry["message"] for entry in read_jsonl(path)] == [f"line {n}" for n in range(10)]
    assert len(files(path)) > 2


def test_an_ini_file_makes_it_with_positional_arguments(tmp_path: Path) -> None:
    """`args` are the stdlib's, in its order."""
    path, ini = tmp_path / "run.jsonl", tmp_path / "logging.ini"
    ini.write_text(
        f"""
[loggers]
keys = root,mine
[handlers]
keys = file
[formatters]
keys = json
[logger_root]
handlers =
[logger_mine]
qualname = rotating.ini
level = INFO
handlers = file
[handler_file]
class = foundry_log.RotatingJsonlHandler
formatter = json
args = ({str(path)!r}, "a", 300, 2)
[formatter_json]
class = foundry_log.JsonFormatter
"""
    )
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        logging.config.fileConfig(ini, disable_existing_loggers=False)
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
    for number in range(10):
        logging.getLogger("rotating.ini").info("line %d", number)
    assert files(path) == ["logging.ini", "run.jsonl", "run.jsonl.1", "run.jsonl.2"]
    assert list(read_jsonl(path))[-1]["message"] == "line 9"


def test_a_queue_listener_writes_to_it(make: Make, path: Path) -> None:
    """It is a Handler like any other."""
    listener = logging.handlers.QueueListener(multiprocessing.get_context("spawn").Queue(), make())
    listener.start()
    listener.queue.put(logging.makeLogRecord({"msg": "queued"}))  # type: ignore[attr-defined]
    listener.stop()
    listener.queue.close()  # type: ignore[attr-defined]
    listener.queue.join_thread()  # type: ignore[attr-defined]
    assert path.read_text() == "queued\n"


# --- rotation by size ---


def test_numbered_names_are_the_stdlibs_to_the_byte(tmp_path: Path, make: Make, path: Path) -> None:
    """The same records leave the same files with the same contents."""
    (tmp_path / "std").mkdir()
    stdlib = logging.handlers.RotatingFileHandler(
        tmp_path / "std" / "run.jsonl", maxBytes=50, backupCount=3
    )
    ours, dice = make(maxBytes=50, backupCount=3), random.Random(1)
    for number in range(60):
        message = f"{number}" + "x" * dice.randrange(30)
        log(stdlib, message)
        log(ours, message)
    stdlib.close()
    assert [n for n in files(path) if n != "std"] == files(tmp_path / "std" / "run.jsonl")
    for name in files(tmp_path / "std" / "run.jsonl"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "std" / name).read_bytes()


@pytest.mark.parametrize("options", [{"maxBytes": 10}, {"backupCount": 3}, {}])
def test_without_both_a_size_and_a_count_nothing_rotates(
    make: Make, path: Path, options: dict[str, int]
) -> None:
    """As in the stdlib, with the stdlib's names."""
    log(make(**options), *range(50))
    assert files(path) == ["run.jsonl"]


def test_stable_names_without_a_count_keep_every_file(make: Make, path: Path) -> None:
    """Nothing is pruned unless it is asked for."""
    log(make(maxBytes=10, stable_names=True), *range(100, 150))
    assert [int(line) for line in history(path)] == list(range(100, 150))
    assert len(files(path)) == 25


def test_a_stable_name_never_changes_again(make: Make, path: Path) -> None:
    """A hook that runs later finds the file it was told of."""
    handler = make(maxBytes=10, stable_names=True)
    seen: dict[str, str] = {}
    for number in range(30):
        log(handler, 100 + number)
        for name in filenames.rotated_files(str(path)):
            assert seen.setdefault(name, Path(name).read_text()) == Path(name).read_text()


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=40),
    limit=st.integers(1, 100),
    stable=st.booleans(),
    letter=st.sampled_from("xé€😀"),
)
def test_one_writer_exceeds_the_size_only_by_a_larger_record(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    limit: int,
    stable: bool,
    letter: str,
) -> None:
    """Sizes are bytes; a file is either within the limit or one single record."""
    path = tmp_path_factory.mktemp("size") / "run.jsonl"
    handler = RotatingJsonlHandler(path, maxBytes=limit, backupCount=100, stable_names=stable)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log(handler, *(letter * size for size in sizes))
    handler.close()
    assert history(path) == [letter * size for size in sizes]
    for name in files(path):
        content = (path.parent / name).read_bytes()
        assert len(content) <= limit or content.count(b"\n") == 1


def test_a_live_file_of_an_earlier_run_counts(make: Make, path: Path) -> None:
    """The size is the file's, not what this handler wrote."""
    path.write_text("x" * 95 + "\n")
    log(make(maxBytes=100, backupCount=1), "12345")
    assert path.read_text() == "12345\n"
    assert files(path) == ["run.jsonl", "run.jsonl.1"]


@pytest.mark.parametrize("name", ["a[1]*?", "über.log", "a.b.c.jsonl", ".hidden", "no suffix"])
@pytest.mark.parametrize("stable", [True, False])
def test_files_of_any_name_rotate(tmp_path: Path, name: str, stable: bool) -> None:
    """Glob characters, dots, no suffix, other scripts."""
    handler = RotatingJsonlHandler(tmp_path / name, maxBytes=1, backupCount=2, stable_names=stable)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log(handler, *range(6))
    handler.close()
    assert history(tmp_path / name) == ["3", "4", "5"]
    assert len(files(tmp_path / name)) == 3


# --- retention ---


def test_a_count_keeps_the_newest_files(make: Make, path: Path) -> None:
    """With both kinds of names."""
    log(make(maxBytes=1, backupCount=3, stable_names=True), *range(9))
    assert history(path) == ["5", "6", "7", "8"]


def test_files_with_numbers_of_an_earlier_set_up_are_pruned_as_the_oldest(
    make: Make, path: Path
) -> None:
    """A run that changes to stable names keeps its order."""
    log(make(maxBytes=1, backupCount=3), *range(4))
    log(make(maxBytes=1, backupCount=3, stable_names=True), 4, 5)
    assert history(path) == ["2", "3", "4", "5"]


def test_a_change_to_numbers_removes_nothing_that_is_stamped(make: Make, path: Path) -> None:
    """The file that has just been rotated is not the oldest because of its name."""
    stamped = make(maxBytes=1, backupCount=3, stable_names=True)
    log(stamped, *range(4))
    stamped.close()
    log(make(maxBytes=1, backupCount=2), 4, 5, 6, 7)
    assert sorted(history(path)) == ["0", "1", "2", "5", "6", "7"]


def test_a_smaller_count_removes_the_numbers_beyond_it(make: Make, path: Path) -> None:
    """`backupCount` is what is kept, also of an earlier set-up."""
    log(make(maxBytes=1, backupCount=5), *range(6))
    log(make(maxBytes=1, backupCount=2), 6)
    assert history(path) == ["4", "5", "6"]


def test_age_removes_what_was_last_written_longer_ago(make: Make, path: Path) -> None:
    """At the next rotation; younger files stay."""
    handler = make(maxBytes=1, stable_names=True, max_age_days=2)
    log(handler, *range(4))
    oldest, *others = filenames.rotated_files(str(path))
    os.utime(oldest, (time.time() - 2.5 * 86_400,) * 2)
    os.utime(others[0], (time.time() - 1.5 * 86_400,) * 2)
    log(handler, 4)
    assert history(path) == ["1", "2", "3", "4"]


@pytest.mark.parametrize("stable", [True, False])
def test_a_file_that_a_slow_writer_has_open_is_not_pruned(
    make: Make, path: Path, stable: bool
) -> None:
    """What that writer adds is found; once it has moved on, retention holds again."""
    slow, fast = make(maxBytes=1, backupCount=1, stable_names=stable), None
    log(slow, "first")
    fast = make(maxBytes=1, backupCount=1, stable_names=stable)
    log(fast, "a", "b", "c", "d")
    slow._file.append(b"slow\n")
    assert history(path) == ["first", "slow", "c", "d"]
    slow.close()
    log(fast, "e", "f")
    assert history(path) == ["e", "f"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave a file to another user")
def test_a_file_that_may_not_be_removed_does_not_stop_rotation() -> None:
    """Another user's in a directory with the sticky bit: reported once, the others are pruned."""
    script = """
import logging, os, sys
from foundry_log import RotatingJsonlHandler
os.setgid(65534), os.setuid(65534)
handler = RotatingJsonlHandler(sys.argv[1], maxBytes=1, backupCount=1, stable_names=True)
handler.setFormatter(logging.Formatter("%(message)s"))
for number in range(5):
    handler.handle(logging.makeLogRecord({"msg": number}))
print(dict(handler.losses), dict(handler.failed_rotations))
"""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o1777)
        path, foreign = Path(folder, "run.jsonl"), Path(folder, "run.20000101T000000000000Z.jsonl")
        foreign.write_text("foreign\n")
        foreign.chmod(0o666)
        done = subprocess.run(
            [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
        )
        assert history(path) == ["foreign", "3", "4"]
    assert done.stdout.strip() == "{} {'PermissionError EPERM': 4}"
    assert done.stderr.count("--- Logging error ---") == 1
    assert str(foreign) in done.stderr


def test_a_directory_of_a_rotated_files_name_does_not_stop_rotation(
    make: Make, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be opened counts as in use, and stays."""
    odd = path.with_name("run.20000101T000000000000Z.jsonl")
    handler = make(maxBytes=1, backupCount=1, stable_names=True, max_age_days=1)
    odd.mkdir()
    os.utime(odd, (0, 0))
    log(handler, *range(5))
    assert not handler.losses
    assert history_of_files(path) == ["3", "4"]
    assert capsys.readouterr().err == ""


def history_of_files(path: Path) -> list[str]:
    names = [*filenames.rotated_files(str(path)), str(path)]
    return [line for n in names if os.path.isfile(n) for line in Path(n).read_text().splitlines()]


def test_an_explicit_rollover_without_a_count_removes_nothing(make: Make, path: Path) -> None:
    """`backupCount=0` never rotates with the stdlib's names, and never prunes."""
    handler = make()
    log(handler, "x")
    Path(f"{path}.1").write_text("precious\n")
    handler.doRollover()
    assert history(path) == ["precious", "x"]


# --- rotation by time ---


def rewind(handler: RotatingJsonlHandler, path: Path, seconds: float) -> None:
    """Let the file be one that was last written `seconds` ago, as a handler finds it."""
    handler.close()
    os.utime(path, (time.time() - seconds,) * 2)


@pytest.mark.parametrize(("when", "age"), [("H", 3600), ("midnight", 86_400), ("W0", 7 * 86_400)])
def test_a_file_of_an_earlier_period_is_rotated_at_the_next_record(
    make: Make, path: Path, when: str, age: float
) -> None:
    """Also when no process ran at the boundary."""
    handler = make(when=when, backupCount=2)
    log(handler, "old")
    rewind(handler, path, age)
    log(handler, "new")
    assert Path(f"{path}.1").read_text() == "old\n"
    assert path.read_text() == "new\n"


def test_a_file_of_this_period_is_written_on(make: Make, path: Path) -> None:
    """A restart is no reason to rotate."""
    handler = make(when="D", interval=400, utc=True, backupCount=2)
    log(handler, "old")
    handler.close()
    log(handler, "new")
    assert path.read_text() == "old\nnew\n"


def test_one_of_several_writers_rotates_at_a_boundary(make: Make, path: Path) -> None:
    """The others follow: one rotated file, no matter how many reach the boundary."""
    writers = [make(when="H", stable_names=True) for _ in range(4)]
    for writer in writers:
        log(writer, "old")
        writer._due_at = 0.0  # the hour is over
    for writer in writers:
        log(writer, "new")
    assert len(filenames.rotated_files(str(path))) == 1
    assert path.read_text() == "new\n" * 4


def test_seconds_pass_for_a_real_clock(make: Make, path: Path) -> None:
    """The boundary of a running handler comes by itself."""
    handler = make(when="S", stable_names=True)
    log(handler, "old")
    deadline = time.monotonic() + DEADLINE_S
    while not filenames.rotated_files(str(path)):
        assert time.monotonic() < deadline
        log(handler, "new")
    assert history(path)[0] == "old"


def test_a_clock_that_steps_back_keeps_the_order_of_names(make: Make, path: Path) -> None:
    """A file rotated after one "of tomorrow" sorts behind it."""
    log(make(maxBytes=1, stable_names=True), "0")
    tomorrow = filenames.stamped_name(str(path), time.time() + 86_400)
    Path(tomorrow).write_text("from tomorrow\n")
    log(make(maxBytes=1, stable_names=True), "1", "2")
    assert history(path) == ["from tomorrow", "0", "1", "2"]


# --- what users override ---


def test_should_rollover_of_a_subclass_is_asked_before_every_record(make: Make, path: Path) -> None:
    """Whatever the size."""

    class ByText(RotatingJsonlHandler):
        def shouldRollover(self, record: logging.LogRecord) -> bool:
            return "cut" in record.getMessage()

    log(make(cls=ByText, backupCount=5), "a", "cut", "b", "cut")
    assert [Path(f"{path}.{n}").read_text() for n in (2, 1)] == ["a\n", "cut\nb\n"]
    assert path.read_text() == "cut\n"


def test_should_rollover_of_an_instance_is_asked_too(make: Make, path: Path) -> None:
    """Where somebody patches one handler."""
    handler = make(backupCount=5)
    handler.shouldRollover = lambda record: record.getMessage() == "2"
    log(handler, 1, 2, 3)
    assert path.read_text() == "2\n3\n"


def test_should_rollover_can_be_asked_from_outside(make: Make, path: Path) -> None:
    """It answers for the record's encoded length, also before the file is open."""
    handler = make(maxBytes=9, backupCount=1, delay=True, encoding="latin-1")
    path.write_text("1234\n")
    for message, answer in [("123", False), ("ééé", False), ("1234", True), ("\ud800", True)]:
        assert handler.shouldRollover(logging.makeLogRecord({"msg": message})) is answer
    assert make(delay=True).shouldRollover(logging.makeLogRecord({"msg": "x"})) is False


def test_do_rollover_of_a_subclass_is_called(make: Make, path: Path) -> None:
    """With super() it is ours and something more."""
    calls = []

    class Counting(RotatingJsonlHandler):
        def doRollover(self) -> None:
            super().doRollover()
            calls.append(files(path))

    log(make(cls=Counting, maxBytes=1, backupCount=1), 1, 2)
    assert calls == [["run.jsonl", "run.jsonl.1"]]


def test_do_rollover_that_does_without_ours_is_followed_at_once(make: Make, path: Path) -> None:
    """A subclass written for the stdlib's handler renames the file itself."""

    class Renaming(RotatingJsonlHandler):
        def doRollover(self) -> None:
            os.rename(self.baseFilename, self.baseFilename + ".mine")

    log(make(cls=Renaming, maxBytes=1, backupCount=1), 1, 2)
    assert Path(f"{path}.mine").read_text() == "1\n"
    assert path.read_text() == "2\n"


def test_namer_and_rotator_of_the_stdlibs_cookbook_work(make: Make, path: Path) -> None:
    """Compressed on rotation, numbers shifting: Logging Cookbook, "rotator and namer"."""
    handler = make(maxBytes=1, backupCount=3)
    handler.namer = lambda name: name + ".gz"

    def compress(source: str, target: str) -> None:
        if source.endswith(".gz"):
            os.rename(source, target)
            return
        with open(source, "rb") as plain, gzip.open(target, "wb") as packed:
            shutil.copyfileobj(plain, packed)
        os.remove(source)

    handler.rotator = compress
    log(handler, *range(6))
    assert files(path) == ["run.jsonl", *(f"run.jsonl.{n}.gz" for n in (1, 2, 3))]
    for number, content in [(1, b"4\n"), (2, b"3\n"), (3, b"2\n")]:
        assert gzip.decompress(Path(f"{path}.{number}.gz").read_bytes()) == content
    assert not handler.losses


def test_rotation_filename_and_rotate_of_a_subclass_are_used(make: Make, path: Path) -> None:
    """The stdlib's two other hooks."""

    class Hooks(RotatingJsonlHandler):
        def rotation_filename(self, default_name: str) -> str:
            return default_name + "-x"

        def rotate(self, source: str, dest: str) -> None:
            os.rename(source, dest + "y")

    log(make(cls=Hooks, maxBytes=1, backupCount=1), 1, 2)
    assert files(path) == ["run.jsonl", "run.jsonl.1-xy"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), ValueError("broken")])
def test_a_rotation_that_fails_loses_no_record_and_is_reported_once(
    make: Make, path: Path, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    """Whatever a rotator raises, the old file is written on."""
    handler = make(maxBytes=1, backupCount=1)

    def fail(source: str, target: str) -> None:
        raise error

    handler.rotator = fail
    log(handler, 1, 2, 3)
    handler._no_rotation_before = 0.0  # the pause between attempts is over
    log(handler, 4)
    assert path.read_text() == "1\n2\n3\n4\n"
    assert not handler.losses
    assert handler.failed_rotations.total() == 2
    assert capsys.readouterr().err.count("--- Logging error ---") == 1


def test_a_rotation_that_succeeds_again_ends_the_trouble(make: Make, path: Path) -> None:
    """The next attempt rotates everything that had piled up."""
    handler = make(maxBytes=1, backupCount=1)
    handler.rotator = lambda source, target: os.rename(source, "/missing/x")
    with contextlib.redirect_stderr(None):
        log(handler, 1, 2)
    handler.rotator = None
    handler._no_rotation_before = 0.0
    log(handler, 3)
    assert Path(f"{path}.1").read_text() == "1\n2\n"
    assert path.read_text() == "3\n"


def test_a_rotator_that_fails_after_it_took_the_file_away_loses_no_record(
    make: Make, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The record goes to a new live file, not into the removed one."""
    handler = make(maxBytes=1, backupCount=1)

    def half(source: str, target: str) -> None:
        shutil.copy(source, target)
        os.remove(source)
        raise OSError("half-way")

    handler.rotator = half
    log(handler, 1, 2)
    assert history(path) == ["1", "2"]
    assert capsys.readouterr().err.count("--- Logging error ---") == 1


def test_a_planted_name_with_an_impossible_date_does_not_stop_rotation(
    make: Make, path: Path
) -> None:
    """A stranger's file cannot cost records."""
    stranger = path.with_name("run.99999999T999999999999Z.jsonl")
    stranger.touch()
    log(make(maxBytes=1, stable_names=True), 1, 2)
    assert history(path) == ["1", "2"]
    assert stranger.exists()


# --- what others do to the file ---


@pytest.mark.parametrize("create", [True, False])
def test_a_file_renamed_by_somebody_is_followed_within_a_second(
    make: Make, path: Path, create: bool
) -> None:
    """logrotate, with its `create` or without: until then lines go to the renamed file."""
    handler = make()
    log(handler, "one")
    os.rename(path, f"{path}.old")
    if create:
        path.touch()
    log(handler, "two")
    expire_look(handler)
    log(handler, "three")
    assert Path(f"{path}.old").read_text() == "one\ntwo\n"
    assert path.read_text() == "three\n"


def test_a_deleted_file_is_made_again_within_a_second_of_the_real_clock(
    make: Make, path: Path
) -> None:
    """No hand on the handler's clock here."""
    handler = make()
    log(handler, "one")
    os.remove(path)
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert time.monotonic() < deadline
        log(handler, "two")
    assert path.read_text() == "two\n"


def test_a_removed_directory_is_made_again(make: Make, path: Path, tmp_path: Path) -> None:
    """With the file in it."""
    handler = make()
    log(handler, "one")
    shutil.rmtree(tmp_path)
    expire_look(handler)
    log(handler, "two")
    assert path.read_text() == "two\n"


def test_a_truncated_file_is_written_on_from_its_start(make: Make, path: Path) -> None:
    """As after `copytruncate`: no hole, and the size begins anew."""
    handler = make(maxBytes=1000, backupCount=1)
    log(handler, "x" * 900)
    os.truncate(path, 0)
    log(handler, "y" * 50, "z" * 900)
    assert history(path) == ["y" * 50, "z" * 900]


def test_records_go_to_the_renamed_file_while_no_new_one_can_be_opened(
    make: Make, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With no descriptor left a move cannot be followed; nothing is lost, once it is reported."""
    handler = make()
    log(handler, "one")
    os.rename(path, f"{path}.old")
    expire_look(handler)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) - 1, hard))
    try:
        log(handler, "two", "three")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    log(handler, "four")
    assert Path(f"{path}.old").read_text() == "one\ntwo\nthree\n"
    assert path.read_text() == "four\n"
    assert handler.failed_rotations == {"OSError EMFILE": 2}
    assert not handler.losses
    assert capsys.readouterr().err.count("--- Logging error ---") == 1


def test_records_are_counted_while_the_file_is_gone_and_none_can_be_made(
    make: Make, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A removed file is no place to write to: every record is counted, none silently lost."""
    handler = make()
    log(handler, "one")
    shutil.rmtree(tmp_path)
    tmp_path.touch()
    expire_look(handler)
    log(handler, "two", "three")
    assert sum(handler.losses.values()) == 2
    tmp_path.unlink()
    log(handler, "four")
    notice, four = path.read_text().splitlines()
    assert four == "four"
    assert "2 records (NotADirectoryError ENOTDIR: 2)" in notice
    handler.close()
    report = capsys.readouterr().err
    assert report.count("--- Logging error ---") == 1
    assert "lost 2 records" in report


def test_a_full_disk_is_counted_and_writing_resumes(path: Path) -> None:
    """RLIMIT_FSIZE in a process of its own: no fragment, one report, a summary at close."""
    script = """
import logging, resource, sys
from foundry_log import RotatingJsonlHandler
handler = RotatingJsonlHandler(sys.argv[1])
handler.setFormatter(logging.Formatter('{"text": "%(message)s"}'))
def log(text):
    handler.handle(logging.makeLogRecord({"msg": text}))
log("before")
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
for _ in range(5):
    log("x" * 90)
log("short")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log("after")
handler.close()
print(dict(handler.losses))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    notices = [text for text in texts if text.startswith("missing here")]
    assert [text for text in texts if text not in notices] in (
        ["before", "after"],
        ["before", "short", "after"],
    )
    lost = 5 + ("short" not in texts)
    assert sum(int(re.findall(r": (\d+) records", text)[0]) for text in notices) == lost
    assert done.stdout.strip() == str({"OSError EFBIG": lost})
    assert done.stderr.count("--- Logging error ---") == 1
    assert f"lost {lost} records" in done.stderr


def missing_line(path: Path) -> dict[str, Any]:
    """Return the one line that says that records are missing."""
    (entry,) = [entry for entry in read_jsonl(path) if "missing" in json.dumps(entry)]
    return entry


@pytest.fixture
def no_room(path: Path) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """Return what makes the file impossible to open for a while: a directory in its place."""

    @contextlib.contextmanager
    def blocked() -> Iterator[None]:
        path.mkdir()
        try:
            yield
        finally:
            path.rmdir()

    return blocked


def test_the_first_line_after_a_failure_says_what_is_missing_and_since_when(
    path: Path, no_room: Any
) -> None:
    """As data, in the handler's own format, before the line that could be written."""
    handler = RotatingJsonlHandler(path, delay=True)
    with no_room():
        for created in (1.0, 2.0, 3.0):
            handler.handle(logging.makeLogRecord({"msg": "lost", "created": created}))
    log(handler, "back", "again")
    entries = list(read_jsonl(path))
    assert [entry["message"] for entry in entries[1:]] == ["back", "again"]
    assert entries[0]["level"] == "WARNING"
    assert entries[0]["context"] == {
        "missing_records": 3,
        "causes": {"IsADirectoryError EISDIR": 3},
        "first_missing": "1970-01-01T00:00:01.000000+00:00",
        "last_missing": "1970-01-01T00:00:03.000000+00:00",
    }
    assert handler.losses.total() == 3
    handler.close()


def test_a_format_that_asks_for_more_still_gets_the_notice(make: Make, path: Path) -> None:
    """As a line of JSON of its own."""
    handler = make()
    handler.setFormatter(logging.Formatter("%(request)s %(message)s"))
    handler._missing.add("OSError ENOSPC", logging.makeLogRecord({}))
    handler.handle(logging.makeLogRecord({"msg": "served", "request": "a1"}))
    notice, line = path.read_text().splitlines()
    assert json.loads(notice)["context"]["causes"] == {"OSError ENOSPC": 1}
    assert line == "a1 served"


def test_metrics_say_what_is_missing(path: Path, no_room: Any) -> None:
    """A file of entries gets an entry."""
    metrics = MetricsLogger("x", path.parent)
    metrics._handler._given_name = str(path)
    with no_room():
        metrics.log_step(1, 0, {"loss": 1.0})
    metrics.log_step(2, 0, {"loss": 0.5})
    metrics.close()
    notice, step = read_jsonl(path)
    assert (notice["missing_records"], step["step"]) == (1, 2)


def test_losses_of_the_formatter_are_not_the_files(make: Make, path: Path) -> None:
    """They are counted, but no line speaks of them."""
    handler = make()
    handler.handle(logging.makeLogRecord({"msg": "%d", "args": ("x",)}))
    log(handler, "fine")
    assert path.read_text() == "fine\n"


@pytest.mark.skipif(not Path("/proc/self/ns").exists(), reason="needs a mount namespace of Linux")
def test_a_disk_that_is_full_and_free_again(tmp_path: Path) -> None:
    """A tmpfs of 64 KB: acknowledged lines stand, the rest is counted in the file itself."""
    script = """
import json, logging, os, subprocess, sys
from foundry_log import RotatingJsonlHandler, read_jsonl
disk = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
path = os.path.join(disk, "run.jsonl")
with open(os.path.join(disk, "hog"), "wb") as hog:
    hog.write(b"x" * 40_000)
handler = RotatingJsonlHandler(path, maxBytes=8_000, stable_names=True)
told = []
def log(number):
    before = handler.losses.total()
    handler.handle(logging.makeLogRecord({"msg": f"{number} " + "y" * 400}))
    if handler.losses.total() == before:
        told.append(number)
for number in range(200): log(number)
os.remove(os.path.join(disk, "hog"))
for number in range(200, 220): log(number)
handler.close()
reader = read_jsonl(path)
entries = list(reader)
found = [int(e["message"].split()[0]) for e in entries if "y" * 400 in e["message"]]
missing = [e["context"] for e in entries if "missing_records" in e["context"]]
print(json.dumps({
    "intact": found == told, "last": found[-1], "lost": 220 - len(found), "skipped": reader.skipped,
    "missing": sum(m["missing_records"] for m in missing), "causes": [*missing[0]["causes"]],
}))
"""
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip("this user may not mount")
    found = json.loads(done.stdout)
    assert (found["intact"], found["last"], found["skipped"]) == (True, 219, 0)
    assert found["lost"] > 50
    assert found["missing"] == found["lost"]
    assert found["causes"] == ["OSError ENOSPC"]


# --- who logs while a line is being written ---


def run_alone(script: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@pytest.mark.parametrize("max_bytes", [0, 2_000])
def test_a_signal_handler_that_logs_anywhere_in_a_write_loses_nothing(
    path: Path, max_bytes: int
) -> None:
    """At a thousand signals a second or so, inside of writes, healing and rotations."""
    script = f"""
import logging, os, signal, sys, time
from foundry_log import RotatingJsonlHandler
handler = RotatingJsonlHandler(sys.argv[1], maxBytes={max_bytes}, stable_names=True)
handler.setFormatter(logging.Formatter('{{"name": "%(message)s"}}'))
counts = {{"main": 0, "signal": 0}}
def log(kind):
    handler.handle(logging.makeLogRecord({{"msg": f"{{kind}}-{{counts[kind]}}"}}))
    counts[kind] += 1
going_on = True
def on_signal(*_):
    log("signal")
    if going_on:
        signal.setitimer(signal.ITIMER_REAL, 0.0005)
signal.signal(signal.SIGALRM, on_signal)
signal.setitimer(signal.ITIMER_REAL, 0.0005)
until = time.monotonic() + 1.5
while time.monotonic() < until:
    log("main")
going_on = False  # or a signal that is under way sets the timer once more
signal.setitimer(signal.ITIMER_REAL, 0)
handler.close()
print(counts["main"], counts["signal"], dict(handler.losses), dict(handler.failed_rotations))
"""
    done = run_alone(script, path)
    assert (done.returncode, done.stderr) == (0, "")
    main, signals, *lost = done.stdout.split(maxsplit=2)
    assert lost == ["{} {}\n"]
    reader = read_jsonl(path)
    found = Counter(entry["name"] for entry in reader)
    expected = [f"main-{n}" for n in range(int(main))]
    expected += [f"signal-{n}" for n in range(int(signals))]
    assert int(signals) > 100
    assert found == Counter(expected)
    assert reader.skipped == 0


def test_a_signal_handler_that_closes_the_file_anywhere_in_a_write_loses_nothing(
    path: Path,
) -> None:
    """The write that it interrupts comes to its end first; the next record opens the file again."""
    script = """
import logging, signal, sys, time
from foundry_log import RotatingJsonlHandler
handler = RotatingJsonlHandler(sys.argv[1], maxBytes=20_000, stable_names=True)
closed, going_on = 0, True
def on_signal(*_):
    global closed
    closed += 1
    handler.close()
    assert handler._turn.is_taken or not handler._file.is_open
    if going_on:
        signal.setitimer(signal.ITIMER_REAL, 0.0005)
signal.signal(signal.SIGALRM, on_signal)
signal.setitimer(signal.ITIMER_REAL, 0.0005)
until, count = time.monotonic() + 1, 0
while time.monotonic() < until:
    handler.handle(logging.makeLogRecord({"msg": str(count)}))
    count += 1
going_on = False
signal.setitimer(signal.ITIMER_REAL, 0)
handler.close()
assert not handler._file.is_open
print(count, closed, dict(handler.losses), dict(handler.failed_rotations))
"""
    done = run_alone(script, path)
    assert (done.returncode, done.stderr) == (0, "")
    count, closed, *lost = done.stdout.split(maxsplit=2)
    assert lost == ["{} {}\n"]
    assert int(closed) > 100
    found = [int(entry["message"]) for entry in read_jsonl(path)]
    assert sorted(found) == list(range(int(count)))


def test_a_close_inside_of_a_write_is_done_when_the_write_is(make: Make, path: Path) -> None:
    """What the same signal handler logs after it opens the file once more."""
    handler = make()
    seen = []

    class Closes(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return str(record.msg)

    def close_inside(name: str) -> str:
        handler.close()
        seen.append(handler._file.is_open)
        return name

    handler.setFormatter(Closes())
    handler.maxBytes, handler.backupCount, handler.namer = 5, 1, close_inside
    log(handler, "one", "two two")
    assert seen[0]
    assert not handler._file.is_open
    assert path.read_text() == "two two\n"
    assert not handler.losses


def test_a_torn_last_line_does_not_make_an_old_file_new(make: Make, path: Path) -> None:
    """GIVEN a file of last week whose writer was killed WHEN it is opened THEN it is rotated."""
    path.write_text("old\ntorn")
    os.utime(path, (time.time() - 7 * 86_400,) * 2)
    handler = make(when="midnight", stable_names=True)
    log(handler, "today")
    assert path.read_text() == "today\n"


@pytest.mark.parametrize("hook", ["namer", "rotator"])
def test_a_namer_or_rotator_that_logs_does_not_wait_for_itself(path: Path, hook: str) -> None:
    """Its record follows the one that it was called for."""
    script = f"""
import logging, os, sys
from foundry_log import RotatingJsonlHandler
handler = RotatingJsonlHandler(sys.argv[1], maxBytes=1, backupCount=9)
handler.setFormatter(logging.Formatter("%(message)s"))
def log(text):
    handler.handle(logging.makeLogRecord({{"msg": text}}))
def namer(name):
    log("named")
    return name
def rotator(source, target):
    log("rotated")
    handler.doRollover()
    os.rename(source, target)
handler.{hook} = {hook}
log("one")
log("two")
handler.close()
print(dict(handler.losses), dict(handler.failed_rotations))
"""
    done = run_alone(script, path)
    assert (done.stdout, done.stderr) == ("{} {}\n", "")
    assert {"one", "two"} < set(history(path))


def test_a_terminator_without_a_newline_gets_one(make: Make, path: Path) -> None:
    """Otherwise the lines of two writers could not be told apart."""
    one, two = make(), make()
    one.terminator = two.terminator = "\r"
    log(one, "a")
    log(two, "b")
    log(one, "c")
    assert path.read_bytes() == b"a\r\nb\r\nc\r\n"


def test_a_rotation_waits_a_second_for_one_that_was_stopped(path: Path) -> None:
    """Then it is counted as failed, once reported, and the record goes to the old file."""
    holder = os.fork()
    if holder == 0:
        try:
            with locks.exclusive_file(filenames.lock_name(str(path)), 0o600):
                path.with_name("held").touch()
                os.kill(os.getpid(), signal.SIGSTOP)
        finally:
            os._exit(0)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not path.with_name("held").exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        done = run_alone(
            """
import logging, sys
from foundry_log import RotatingJsonlHandler
handler = RotatingJsonlHandler(sys.argv[1], maxBytes=1, stable_names=True)
handler.setFormatter(logging.Formatter("%(message)s"))
for number in range(100):
    handler.handle(logging.makeLogRecord({"msg": number}))
print(dict(handler.losses), dict(handler.failed_rotations))
""",
            path,
        )
    finally:
        os.kill(holder, signal.SIGCONT)
        os.waitpid(holder, 0)
    assert done.stdout == "{} {'TimeoutError ETIMEDOUT': 1}\n"
    assert done.stderr.count("--- Logging error ---") == 1
    assert [int(line) for line in path.read_text().splitlines()] == list(range(100))


def test_a_rotation_killed_in_the_middle_of_its_shift_strips_no_archive(
    make: Make, path: Path
) -> None:
    """The gap that it left is filled by the next; what retention covers stays."""
    handler = make(maxBytes=1, backupCount=4)
    log(handler, *range(5))
    os.rename(f"{path}.2", f"{path}.3.moved")  # .4 and .3 have been shifted, .2 not yet
    os.remove(f"{path}.4")
    os.rename(f"{path}.3", f"{path}.4")
    os.rename(f"{path}.3.moved", f"{path}.3")
    assert history(path) == ["1", "2", "3", "4"]
    log(handler, 5)
    assert history(path) == ["1", "2", "3", "4", "5"]


def test_a_child_does_not_repeat_what_the_parent_has_lost(path: Path, no_room: Any) -> None:
    """Neither in the file nor at its close."""
    handler = RotatingJsonlHandler(path, delay=True)
    with no_room():
        log(handler, "lost")
    pid = os.fork()
    if pid == 0:
        log(handler, "child")
        os._exit(0)
    os.waitpid(pid, 0)
    assert [entry["message"] for entry in read_jsonl(path)] == ["child"]
    log(handler, "parent")
    handler.close()
    messages = [entry["message"] for entry in read_jsonl(path)]
    assert len(messages) == 3
    assert "1 records" in messages[1]


def test_a_handler_that_is_dropped_keeps_nothing_open(path: Path) -> None:
    """As the stdlib's."""
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        log(RotatingJsonlHandler(path), "x")
    gc.collect()
    assert len(os.listdir("/dev/fd")) == before
    assert not locks.in_use(str(path))


def test_children_forked_while_files_are_opened_hold_none_of_them(path: Path) -> None:
    """A rotated file that an idle child held would never be compressed or removed."""
    done = run_alone(
        """
import logging, os, signal, sys, threading, time, warnings
from foundry_log import RotatingJsonlHandler
from foundry_log.files import filenames, locks
warnings.simplefilter("ignore")
handler = RotatingJsonlHandler(sys.argv[1], maxBytes=1, stable_names=True)
stop = threading.Event()
def write():
    while not stop.is_set():
        handler.handle(logging.makeLogRecord({"msg": "x"}))
thread = threading.Thread(target=write)
thread.start()
children = []
try:
    for _ in range(60):
        pid = os.fork()
        if pid == 0:
            signal.pause()
        children.append(pid)
    stop.set()
    thread.join()
    until = time.monotonic() + 20  # a child may not have run so far
    while held := [n for n in filenames.rotated_files(sys.argv[1]) if locks.in_use(n)]:
        if time.monotonic() > until:
            break
        time.sleep(0.01)
finally:
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
print(len(held))
""",
        path,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_rotated_files_that_may_only_be_read_are_pruned(path: Path) -> None:
    """A hook may have protected them; the directory decides who removes."""
    script = """
import logging, os, sys
from foundry_log import RotatingJsonlHandler
os.chmod(os.path.dirname(sys.argv[1]), 0o777)
os.setgid(65534), os.setuid(65534)
handler = RotatingJsonlHandler(sys.argv[1], maxBytes=1, backupCount=1, stable_names=True)
handler.rotator = lambda source, target: (os.rename(source, target), os.chmod(target, 0o444))
for number in range(5):
    handler.handle(logging.makeLogRecord({"msg": number}))
print(dict(handler.losses), dict(handler.failed_rotations))
"""
    if os.getuid() != 0:
        pytest.skip("needs root to become somebody else")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        done = run_alone(script, Path(folder, "run.jsonl"))
        assert (done.stdout, done.stderr) == ("{} {}\n", "")
        assert len(filenames.rotated_files(os.path.join(folder, "run.jsonl"))) == 1


# --- a file system where processes cannot share a file ---


def test_each_process_writes_a_file_of_its_own_where_it_is_asked_to(path: Path) -> None:
    """Named by host and process; a forked child takes another; readers find them all."""
    handler = RotatingJsonlHandler(path, per_process=True, maxBytes=300, stable_names=True)
    log(handler, "parent")
    pid = os.fork()
    if pid == 0:
        log(handler, "child", "child", "child")
        os._exit(bool(handler.losses))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    log(handler, "parent")
    handler.close()
    mine, its = (
        filenames.process_name(str(path), socket.gethostname(), n) for n in (os.getpid(), pid)
    )
    assert sorted(filenames.process_files(str(path))) == sorted([mine, its])
    assert not path.exists()
    assert [entry["message"] for entry in read_jsonl(mine)] == ["parent", "parent"]
    assert [entry["message"] for entry in read_jsonl(its)] == ["child"] * 3
    assert len(filenames.rotated_files(its)) > 0


def test_a_shared_file_system_is_said_once_and_written_by_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The table of mounts is the machine's; here it says that this directory is on NFS."""
    table = [SimpleNamespace(mountpoint="/", fstype="ext4")]
    table.append(SimpleNamespace(mountpoint=str(tmp_path.resolve()), fstype="nfs4"))
    monkeypatch.setattr("psutil.disk_partitions", lambda **_: table)
    for name in ("run.jsonl", "eval.jsonl"):
        handler = RotatingJsonlHandler(tmp_path / name)
        log(handler, "x")
        handler.close()
        assert filenames.process_files(str(tmp_path / name)) == [handler.baseFilename]
    (warning,) = [r for r in caplog.records if r.name == "foundry_log.handlers"]
    assert "is on nfs4" in warning.getMessage()
    assert "per_process=False" in warning.getMessage()
    sole = RotatingJsonlHandler(tmp_path / "sole.jsonl", per_process=False)
    sole.close()
    assert (tmp_path / "sole.jsonl").exists()


# --- a file of each rank ---


def test_each_rank_writes_a_file_of_its_own(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rotated ones too; readers of the plain name find them all."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        handler = RotatingJsonlHandler(path, per_rank=True, maxBytes=200, stable_names=True)
        log(handler, *(f"{n} of {rank}" for n in range(4)))
        handler.close()
    assert handler.baseFilename == str(path.with_name(f"{path.stem}@rank0{path.suffix}"))
    assert len(filenames.rotated_files(handler.baseFilename)) > 0
    assert not path.exists()
    texts = [entry["message"] for entry in read_jsonl(path)]
    assert texts == [f"{n} of {rank}" for rank in (1, 0) for n in range(4)]


def test_a_rank_on_a_shared_file_system_has_both_in_its_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is the rank's, and the plain name's."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    handler = RotatingJsonlHandler(path, per_rank=True, per_process=True)
    log(handler, "x")
    handler.close()
    ranked = filenames.ranked(path, 1)
    assert handler.baseFilename == filenames.process_name(
        str(ranked), socket.gethostname(), os.getpid()
    )
    assert [len(list(read_jsonl(name))) for name in (ranked, path)] == [1, 1]


def test_without_a_launcher_the_name_is_the_given_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one process of a launcher need another."""
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    handler = RotatingJsonlHandler(path, per_rank=True)
    handler.close()
    assert handler.baseFilename == str(path)


# --- many writers ---


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("stable", [True, False])
def test_every_record_of_many_processes_and_threads_stands_once(
    path: Path, method: str, stable: bool
) -> None:
    """Rotating all the while; a file exceeds its size by at most a record of each writer."""
    make = functools.partial(
        RotatingJsonlHandler, maxBytes=20_000, backupCount=700, stable_names=stable
    )
    with Crew(Task(str(path), make, sizes=(200,), threads=2, count=250), [method]) as crew:
        for _ in range(4):
            crew.start()
        assert crew.join() == [0] * 4
    result = assert_conserved(path)
    assert (result.acknowledged, result.fragments) == (4 * 2 * 250, 0)
    rotated = filenames.rotated_files(str(path))
    assert len(rotated) > 10
    longest = max(len(line) for name in rotated for line in Path(name).read_bytes().split(b"\n"))
    assert max(map(os.path.getsize, rotated)) <= 20_000 + 8 * longest


def test_a_handler_made_before_the_fork_serves_parent_and_children(make: Make, path: Path) -> None:
    """Each process opens descriptors of its own; rotation in one leaves the others whole."""
    handler = make(maxBytes=2_000, backupCount=500, stable_names=True)
    log(handler, "parent-before")
    children = []
    for child in range(3):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                log(handler, *(f"child-{child}-{number}" for number in range(200)))
                status = 0 if not handler.losses else 2
            finally:
                os._exit(status)
        children.append(pid)
    log(handler, *(f"parent-{number}" for number in range(200)))
    for pid in children:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    expected = {"parent-before", *(f"parent-{n}" for n in range(200))}
    expected |= {f"child-{c}-{n}" for c in range(3) for n in range(200)}
    lines = history(path)
    assert len(lines) == len(expected)
    assert set(lines) == expected


def test_forks_while_other_threads_write_leave_every_child_able_to_write(path: Path) -> None:
    """A fork may fall into a write or a rotation: no deadlock, no loss.

    In a process of its own, since Python warns of forks beside threads.
    """
    script = """
import logging, os, sys, threading, warnings
from foundry_log import RotatingJsonlHandler
warnings.simplefilter("ignore")
handler = RotatingJsonlHandler(sys.argv[1], maxBytes=500, stable_names=True)
handler.setFormatter(logging.Formatter('"%(message)s"'))
stop, written = threading.Event(), [0, 0]
def log(text):
    handler.handle(logging.makeLogRecord({"msg": text}))
def write(thread):
    while not stop.is_set():
        log(f"thread-{thread}-{written[thread]}")
        written[thread] += 1
crew = [threading.Thread(target=write, args=(n,)) for n in range(2)]
for thread in crew: thread.start()
for child in range(25):
    pid = os.fork()
    if pid == 0:
        for number in range(20): log(f"child-{child}-{number}")
        os._exit(bool(handler.losses))
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
for thread in crew: thread.join()
assert not handler.losses and not handler.failed_rotations
print(*written)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    counts = [int(count) for count in done.stdout.split()]
    expected = [f'"child-{child}-{number}"' for child in range(25) for number in range(20)]
    expected += [f'"thread-{t}-{n}"' for t, count in enumerate(counts) for n in range(count)]
    assert Counter(history(path)) == Counter(expected)


@pytest.mark.parametrize(("size", "kills"), [(100, 8), (5_000, 8), (150_000, 12)])
@pytest.mark.parametrize("stable", [True, False])
def test_no_acknowledged_record_is_lost_doubled_or_glued_when_writers_are_killed(
    path: Path, size: int, kills: int, stable: bool
) -> None:
    """SIGKILL at any moment, rotation included; survivors and successors write on."""
    make = functools.partial(
        RotatingJsonlHandler, maxBytes=max(20_000, 4 * size), backupCount=700, stable_names=stable
    )
    dice = random.Random(size)
    with Crew(Task(str(path), make, sizes=(size,))) as crew:
        for _ in range(3):
            crew.start()
        for _ in range(kills):
            crew.kill_one(dice)
            crew.start()
    assert assert_conserved(path).acknowledged >= kills


def test_the_lock_of_a_rotated_file_is_its_writers_life_sign(make: Make, path: Path) -> None:
    """Who compresses or ships a rotated file asks for it first."""
    slow = make(maxBytes=1, stable_names=True)
    log(slow, "x")
    log(make(maxBytes=1, stable_names=True), "y")
    (rotated,) = filenames.rotated_files(str(path))
    assert locks.in_use(rotated)
    expire_look(slow)
    log(slow, "z")
    assert not locks.in_use(rotated)


def test_limits_that_are_set_later_count(path: Path) -> None:
    """The stdlib's handler asks its attributes at each record, and so does this one."""
    handler = RotatingJsonlHandler(path)
    handler.maxBytes, handler.backupCount = 200, 3
    for _ in range(20):
        handler.handle(logging.makeLogRecord({"msg": "x" * 50}))
    handler.close()

    assert len(filenames.rotated_files(str(path))) == 3


@pytest.mark.parametrize("then", ["the next record", "close"])
def test_a_line_that_an_interrupted_write_has_left_is_written_in_its_turn(
    make: Make, path: Path, then: str
) -> None:
    """A signal handler logged inside of a write, and Ctrl-C ended that before its turn came."""
    handler = make()
    log(handler, "one")
    left = logging.makeLogRecord({"msg": "by signal"})
    handler._turn.waiting.append((handler._line(left), left, None))
    if then == "the next record":
        log(handler, "two")
    else:
        handler.close()

    assert (
        path.read_text().splitlines()
        == ["one", "by signal", "two"][: 3 if then == "the next record" else 2]
    )


def test_a_handler_without_its_lock_still_writes(make: Make, path: Path) -> None:
    """As handlers of the standard library may have none."""
    handler = make()
    handler.lock = None
    log(handler, "one")
    handler.createLock()

    assert path.read_text().count("one") == 1
