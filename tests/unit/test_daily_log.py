"""The daily file: its lines, its midnights, whose files it prunes, and who may be behind it."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from foundry_log.files import locks, owners
from foundry_log.handlers import rotating_jsonl
from foundry_log.handlers.daily_log import DATE_FORMAT, LINE_FORMAT, DailyLogHandler

pytestmark = pytest.mark.unit

# Two days that are over: the files are written today, so that a line's day is the clock's.
FIRST = datetime.date.today() - datetime.timedelta(days=9)


def midnight(days: int) -> float:
    """The local midnight that ends the day so many days after FIRST."""
    day = FIRST + datetime.timedelta(days=days + 1)
    return datetime.datetime.combine(day, datetime.time()).timestamp()


MIDNIGHT = midnight(0)

Make = Callable[..., DailyLogHandler]


class Clock:
    """Stands a minute before the midnight that ends FIRST."""

    now = MIDNIGHT - 60

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[Make]:
    """Makes handlers of the application "shop" that are closed in the end."""
    with contextlib.ExitStack() as stack:

        def made(app: str = "shop", process: str | None = "api", **options: Any) -> DailyLogHandler:
            handler = DailyLogHandler(tmp_path, app, process, **{"clock": clock, **options})
            stack.callback(handler.close)
            return handler

        yield made


def log(handler: logging.Handler, message: str) -> None:
    handler.handle(logging.LogRecord("a.b", logging.INFO, __file__, 7, message, (), None))


def names(folder: Path) -> list[str]:
    """The visible files."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def messages(path: Path) -> list[str]:
    return [line.rpartition(" | ")[2] for line in path.read_text().splitlines()]


def day_after(days: int) -> str:
    return (FIRST + datetime.timedelta(days=days)).isoformat()


def aged(path: Path, day: datetime.date) -> Path:
    """A file that was last written on that day."""
    path.write_text("old\n")
    noon = datetime.datetime.combine(day, datetime.time(12)).timestamp()
    os.utime(path, (noon, noon))
    return path


# --- lines and names ---


def test_a_line_is_as_the_contract_says(tmp_path: Path, make: Make) -> None:
    """Text for people, as the stdlib's formatter writes this format."""
    record = logging.LogRecord("a.b", logging.INFO, "/x/code.py", 7, "hello %s", ("you",), None)
    make().handle(record)
    expected = logging.Formatter(LINE_FORMAT, DATE_FORMAT).format(record)
    assert (tmp_path / "shop-api.current.log").read_text() == expected + "\n"
    assert expected.endswith("| code.py:7 | hello you")


def test_a_message_cannot_forge_a_line(tmp_path: Path, make: Make) -> None:
    """Its further lines are indented."""
    log(make(), "one\n2026-01-01 00:00:00.000 | ERROR | forged")
    assert (tmp_path / "shop-api.current.log").read_text().splitlines()[1].startswith("    2026")


def test_a_process_without_a_name_is_a_worker(tmp_path: Path, make: Make) -> None:
    """Its file bears its id."""
    make(process=None)
    assert names(tmp_path) == [f"shop-worker-{os.getpid()}.current.log"]


def test_a_shared_file_bears_the_application_alone(tmp_path: Path, make: Make) -> None:
    """All processes write it."""
    for number in range(2):
        log(make(is_shared=True), str(number))
    assert messages(tmp_path / "shop.current.log") == ["0", "1"]


def test_opening_notes_the_owner(tmp_path: Path, make: Make) -> None:
    """So that others know whether the file is still written, when nobody holds it."""
    make()
    owner = owners.read_owner(str(tmp_path / "shop-api.current.log"))
    assert owner is not None
    assert owner.pid == os.getpid()


def test_a_file_that_is_made_again_is_noted_again(tmp_path: Path, make: Make) -> None:
    """GIVEN somebody who removed file and note WHEN the process goes on THEN it is known again."""
    handler = make()
    live = tmp_path / "shop-api.current.log"
    owners.forget_owner(str(live))
    live.unlink()
    handler.rotate_if_due()
    owner = owners.read_owner(str(live))
    assert owner is not None
    assert owner.pid == os.getpid()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"retention_days": 0}, "retention_days=0 must be at least 1"),
        ({"app": "x" * 200}, "use shorter names"),
        ({"app": ""}, "must not be empty"),
    ],
)
def test_wrong_parameters_are_refused_at_once(
    make: Make, options: dict[str, Any], said: str
) -> None:
    """With the value, the rule and the remedy."""
    with pytest.raises(ValueError, match=said):
        make(**options)


def test_on_a_network_file_system_each_process_has_its_own_file(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Appends are not atomic there, so that even a shared file is one of host and process."""
    monkeypatch.setattr("foundry_log.handlers.daily_log.shared_kind", lambda folder: "nfs4")
    monkeypatch.setattr(rotating_jsonl, "_warned", set())
    make(is_shared=True)
    (name,) = names(tmp_path)
    assert name.startswith(f"shop-api.{os.getpid()}@")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "A directory on a local disk keeps the name" in caplog.text


# --- midnight ---


def test_the_first_line_after_midnight_begins_a_new_file(
    tmp_path: Path, make: Make, clock: Clock
) -> None:
    """The old one has the day that is over in its name."""
    handler = make()
    log(handler, "yesterday")
    clock.now = MIDNIGHT
    log(handler, "today")
    assert messages(tmp_path / f"shop-api__{day_after(0)}.log") == ["yesterday"]
    assert messages(tmp_path / "shop-api.current.log") == ["today"]


def test_an_idle_process_rotates_by_a_timer(tmp_path: Path, make: Make, clock: Clock) -> None:
    """Nobody need write for the day to end."""
    handler = make()
    log(handler, "yesterday")
    handler.rotate_if_due()
    assert names(tmp_path) == ["shop-api.current.log"]
    clock.now = MIDNIGHT
    handler.rotate_if_due()
    handler.rotate_if_due()
    assert names(tmp_path) == ["shop-api.current.log", f"shop-api__{day_after(0)}.log"]


def test_a_day_without_lines_leaves_no_file(tmp_path: Path, make: Make, clock: Clock) -> None:
    """The next line belongs to its own day."""
    handler = make()
    clock.now = MIDNIGHT
    handler.rotate_if_due()
    log(handler, "today")
    clock.now = midnight(1)
    handler.rotate_if_due()
    assert messages(tmp_path / f"shop-api__{day_after(1)}.log") == ["today"]


def test_without_a_timer_the_line_after_an_empty_day_has_its_own_day(
    tmp_path: Path, make: Make, clock: Clock
) -> None:
    """What is due is decided before the line is written."""
    handler = make()
    clock.now = MIDNIGHT
    log(handler, "one")
    log(handler, "two")
    assert messages(tmp_path / "shop-api.current.log") == ["one", "two"]


def test_what_another_run_left_is_rotated_under_the_day_of_its_last_line(
    tmp_path: Path, make: Make
) -> None:
    """However long ago that is."""
    day = FIRST - datetime.timedelta(days=3)
    aged(tmp_path / "shop-api.current.log", day)
    log(make(), "new")
    assert names(tmp_path) == ["shop-api.current.log", f"shop-api__{day.isoformat()}.log"]


def test_a_torn_last_line_does_not_put_yesterdays_lines_into_todays_file(
    tmp_path: Path, make: Make
) -> None:
    """The newline that it gets is of today, and its day is not."""
    day = FIRST - datetime.timedelta(days=3)
    live = aged(tmp_path / "shop-api.current.log", day)
    written = live.stat().st_mtime
    live.write_text("old\ntorn")
    os.utime(live, (written, written))
    log(make(), "new")
    assert messages(live) == ["new"]
    assert len(names(tmp_path)) == 2


@pytest.fixture
def any_time() -> Iterator[Path]:
    """A directory whose files can have any time; most file systems end in some century."""
    if not os.path.isdir("/dev/shm"):
        pytest.skip("needs a tmpfs")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.parametrize("seconds", [-1e12, -1.0, 1e12])
def test_a_time_that_no_calendar_has_stops_nothing(
    any_time: Path, clock: Clock, seconds: float
) -> None:
    """Restored by a tool, or from a broken clock: the lines are written, and pruning goes on."""
    other = any_time / f"shop-worker-{dead_pid()}.current.log"
    for path in (any_time / "shop-api.current.log", other):
        path.write_text("old\n")
        os.utime(path, (seconds, seconds))
    with contextlib.closing(
        DailyLogHandler(any_time, "shop", "api", clock=clock, retention_days=10**5)
    ) as handler:
        log(handler, "new")
        os.utime(any_time / "shop-api.current.log", (seconds, seconds))
        handler.doRollover()
        handler.prune()
    rotated = any_time.glob("shop-api__*.log")
    assert sorted(line for path in rotated for line in messages(path)) == ["new", "old"]
    assert other.exists()
    assert (handler.losses.total(), handler.failed_rotations.total()) == (0, 0)


def test_a_closed_file_is_rotated_by_the_timer_too(
    tmp_path: Path, make: Make, clock: Clock
) -> None:
    """A `dictConfig` closes every handler, and an idle process does not open its own again."""
    handler = make()
    log(handler, "yesterday")
    handler.close()
    os.utime(tmp_path / "shop-api.current.log", (clock.now, clock.now))
    clock.now = MIDNIGHT
    handler.rotate_if_due()
    assert messages(tmp_path / f"shop-api__{day_after(0)}.log") == ["yesterday"]


def test_a_closed_file_that_cannot_be_opened_for_rotation_is_counted(
    tmp_path: Path, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """The timer has other things to do."""
    handler = make()
    handler.close()
    (tmp_path / "shop-api.current.log").unlink()
    (tmp_path / "shop-api.current.log").mkdir()
    handler.rotate_if_due()
    assert handler.failed_rotations.total() == 1
    assert "IsADirectoryError" in capsys.readouterr().err


def test_further_files_of_a_day_are_numbered_and_none_is_renamed(
    tmp_path: Path, make: Make
) -> None:
    """Who was told of a name finds it, compressed or not."""
    handler = make()
    contents = {}
    for number in range(3):
        log(handler, str(number))
        handler.doRollover()
        suffix = f".{number}" if number else ""
        contents[f"shop-api__{day_after(0)}{suffix}.log"] = [str(number)]
    assert {name: messages(tmp_path / name) for name in contents} == contents
    first = tmp_path / f"shop-api__{day_after(0)}.log"
    first.rename(f"{first}.gz")
    log(handler, "3")
    handler.doRollover()
    assert messages(tmp_path / f"shop-api__{day_after(0)}.3.log") == ["3"]


def test_a_clock_that_steps_back_overwrites_nothing(
    tmp_path: Path, make: Make, clock: Clock
) -> None:
    """The same midnight again gives a further file of the same day."""
    handler = make()
    for number in range(2):
        clock.now = MIDNIGHT - 60
        handler.close()
        log(handler, str(number))
        clock.now = MIDNIGHT
        handler.rotate_if_due()
    assert messages(tmp_path / f"shop-api__{day_after(0)}.log") == ["0"]
    assert messages(tmp_path / f"shop-api__{day_after(0)}.1.log") == ["1"]


def test_a_patient_process_leaves_the_rotation_to_another(
    tmp_path: Path, make: Make, clock: Clock
) -> None:
    """It follows the file, and rotates only where that other one has not come in time."""
    leader, follower = make(is_shared=True), make(is_shared=True)
    follower.patience_s = 30.0
    log(follower, "first day")
    clock.now = MIDNIGHT + 29
    log(follower, "late")
    assert names(tmp_path) == ["shop.current.log"]
    leader.rotate_if_due()
    follower.rotate_if_due()  # it looks where the file is
    log(follower, "second day")
    assert messages(tmp_path / f"shop_{day_after(0)}.log") == ["first day", "late"]
    clock.now = midnight(1) + 30
    log(follower, "third day")
    assert messages(tmp_path / f"shop_{day_after(1)}.log") == ["second day"]
    assert messages(tmp_path / "shop.current.log") == ["third day"]


def test_a_leader_that_never_writes_rotates_what_others_wrote(
    tmp_path: Path, make: Make, clock: Clock
) -> None:
    """The file's size counts, not what this process knows of it."""
    leader, follower = make(is_shared=True), make(is_shared=True)
    follower.patience_s = 30.0
    log(follower, "first day")
    clock.now = MIDNIGHT
    leader.rotate_if_due()
    assert names(tmp_path) == ["shop.current.log", f"shop_{day_after(0)}.log"]


def test_processes_that_rotate_at_once_give_one_file(
    tmp_path: Path, make: Make, clock: Clock
) -> None:
    """The rotation lock lets one do it, and the others see that it is done."""
    handlers = [make(is_shared=True) for _ in range(4)]
    log(handlers[0], "first day")
    clock.now = MIDNIGHT
    threads = [threading.Thread(target=handler.rotate_if_due) for handler in handlers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert names(tmp_path) == ["shop.current.log", f"shop_{day_after(0)}.log"]


def test_a_rotation_that_fails_is_counted_and_loses_no_line(
    tmp_path: Path, make: Make, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line is written to the old file, and the failure reported once."""
    handler = make()
    log(handler, "yesterday")
    (tmp_path / ".shop-api.current.log.lock").mkdir()
    clock.now = MIDNIGHT
    log(handler, "today")
    handler.rotate_if_due()
    assert messages(tmp_path / "shop-api.current.log") == ["yesterday", "today"]
    assert handler.failed_rotations.total() == 1
    assert "IsADirectoryError" in capsys.readouterr().err


def test_the_child_of_a_fork_has_its_own_file(tmp_path: Path, make: Make) -> None:
    """Named after its own process, with a note of its own."""
    handler = make(process=None)
    log(handler, "parent")
    child = os.fork()
    if child == 0:
        try:
            log(handler, "child")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert messages(tmp_path / f"shop-worker-{child}.current.log") == ["child"]
    assert messages(tmp_path / f"shop-worker-{os.getpid()}.current.log") == ["parent"]
    owner = owners.read_owner(str(tmp_path / f"shop-worker-{child}.current.log"))
    assert owner is not None
    assert owner.pid == child


def test_opening_tells_once_for_each_process(make: Make) -> None:
    """A child can start what its parent's threads did."""
    handler = make(delay=True)
    opened: list[int] = []
    handler.after_opening = lambda: opened.append(os.getpid())
    log(handler, "one")
    log(handler, "two")
    assert opened == [os.getpid()]


# --- retention ---


def test_old_files_of_the_application_are_pruned_and_no_others(tmp_path: Path, make: Make) -> None:
    """Whichever process wrote them; the day in the name counts."""
    handler = make(retention_days=3)
    old, young = day_after(-4), day_after(-3)
    gone = [f"shop-api__{old}.log", f"shop-worker-3__{old}.1.log.gz", f"shop_{old}.log"]
    kept = [
        *(f"shop-api__{young}.log", f"shop-bar-api__{old}.log", f"shopping-api__{old}.log"),
        *(f"shop%2Dbar_{old}.log", f"shop-api__{old}.log.bak", f"shop-api_{old}.log", "notes.txt"),
    ]
    for name in gone + kept:
        (tmp_path / name).write_text("line\n")
    handler.prune()
    assert names(tmp_path) == sorted([*kept, "shop-api.current.log"])


def test_a_rotation_prunes(tmp_path: Path, make: Make, clock: Clock) -> None:
    """Once a day is often enough."""
    handler = make(retention_days=1)
    log(handler, "line")
    (tmp_path / f"shop-gone__{day_after(-1)}.log").write_text("line\n")
    clock.now = MIDNIGHT
    handler.rotate_if_due()
    assert names(tmp_path) == ["shop-api.current.log", f"shop-api__{day_after(0)}.log"]


def test_who_prunes_at_another_time_is_told_of_a_rotation(
    tmp_path: Path, make: Make, clock: Clock
) -> None:
    """Removing ten thousands of files is not for the call that logs first after midnight."""
    handler = make(retention_days=1)
    told: list[str] = []
    handler.after_rotating = lambda: told.append("rotated")
    log(handler, "line")
    old = tmp_path / f"shop-gone__{day_after(-1)}.log"
    old.write_text("line\n")
    clock.now = MIDNIGHT
    log(handler, "next")
    assert (told, old.exists()) == (["rotated"], True)


def test_without_retention_nothing_is_removed(tmp_path: Path, make: Make) -> None:
    """None keeps files for ever."""
    old = aged(tmp_path / "shop-api__1999-01-01.log", datetime.date(1999, 1, 1))
    make(retention_days=None).prune()
    assert old.exists()


def test_a_file_that_somebody_holds_is_not_pruned(tmp_path: Path, make: Make) -> None:
    """It is being shipped, compressed, or still written."""
    old = aged(tmp_path / "shop-api__1999-01-01.log", datetime.date(1999, 1, 1))
    handler = make()
    with locks.try_exclusive_file(str(old)):
        handler.prune()
    assert old.exists()
    handler.prune()
    assert not old.exists()


def dead_pid() -> int:
    """The id of a process that has just ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return process.pid


def test_an_old_live_file_of_an_ended_process_is_pruned_with_its_note(
    tmp_path: Path, make: Make
) -> None:
    """No later process writes under that name, so nobody else would."""
    live = aged(tmp_path / f"shop-worker-{dead_pid()}.current.log", datetime.date(1999, 1, 1))
    Path(owners.owner_name(str(live))).write_text("{}")
    make().prune()
    assert names(tmp_path) == ["shop-api.current.log"]
    assert not os.path.exists(owners.owner_name(str(live)))


def test_a_live_file_that_may_be_written_is_kept(tmp_path: Path, make: Make) -> None:
    """Its process lives, it is young, or nobody knows."""
    long_ago = datetime.date(1999, 1, 1)
    unknown = aged(tmp_path / "shop-other.current.log", long_ago)
    idle = make(process="idle")
    alive = aged(tmp_path / "shop-idle.current.log", long_ago)
    young = aged(tmp_path / f"shop-worker-{dead_pid()}.current.log", FIRST)
    make().prune()
    assert [path.exists() for path in (unknown, alive, young)] == [True, True, True]
    assert idle.losses.total() == 0


def test_a_directory_of_such_a_name_is_left_alone(tmp_path: Path, make: Make) -> None:
    """Pruning goes on with the next one."""
    (tmp_path / "shop-a__1999-01-01.log").mkdir()
    old = aged(tmp_path / "shop-b__1999-01-01.log", datetime.date(1999, 1, 1))
    make().prune()
    assert not old.exists()
    assert (tmp_path / "shop-a__1999-01-01.log").is_dir()


def test_the_note_of_an_abandoned_file_is_removed_before_the_file(tmp_path: Path) -> None:
    """Afterwards a new process may have made both again, and its note would be lost."""
    live = aged(tmp_path / f"shop-worker-{dead_pid()}.current.log", datetime.date(1999, 1, 1))
    note = Path(owners.owner_name(str(live)))
    note.write_text("{}")
    script = """
import os, sys
from foundry_log.handlers.daily_log import DailyLogHandler
handler = DailyLogHandler(sys.argv[1], "shop", delay=True)
def on_event(event, values):
    if event == "os.remove":
        print(os.path.basename(values[0]))
sys.addaudithook(on_event)
handler.prune()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == [note.name, live.name]


def lock_of(tmp_path: Path, process: object, day: datetime.date) -> Path:
    """A lock file of the application "shop", made on that day."""
    return aged(tmp_path / f".shop-{process}.current.log.lock", day)


def test_the_lock_of_a_worker_that_is_long_gone_is_pruned(tmp_path: Path, make: Make) -> None:
    """Each worker that sees a midnight makes one, and no other one has its name."""
    lock = lock_of(tmp_path, f"worker-{dead_pid()}", datetime.date(1999, 1, 1))
    make().prune()
    assert not lock.exists()


def test_a_lock_that_may_be_taken_again_is_kept(tmp_path: Path, make: Make) -> None:
    """It is held, young, of a process that lives or has a name, or beside a live file."""
    long_ago = datetime.date(1999, 1, 1)
    held = lock_of(tmp_path, f"worker-{dead_pid()}", long_ago)
    kept = [
        held,
        lock_of(tmp_path, f"worker-{os.getpid()}", long_ago),
        lock_of(tmp_path, "mailer", long_ago),
        aged(tmp_path / f".store-worker-{dead_pid()}.current.log.lock", long_ago),
        lock_of(tmp_path, f"worker-{dead_pid()}", FIRST),
        lock_of(tmp_path, f"worker-{dead_pid()}", long_ago),
    ]
    aged(tmp_path / kept[-1].name[1:].removesuffix(".lock"), FIRST)
    with locks.try_exclusive_file(str(held)):
        make().prune()
    assert [path.name for path in kept if not path.exists()] == []
