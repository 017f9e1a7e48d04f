"""`get_logger`: one file for the process or the application, one console, and no failure."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import foundry_log
from foundry_log import ConsoleHandler, LoggingConfig
from foundry_log.files.leadership import Leadership
from foundry_log.handlers.daily_log import DailyLogHandler
from foundry_log.logger import (
    FOLLOWERS_WAIT_S,
    get_app_name,
    get_logger,
    shutdown_logging,
)

pytestmark = pytest.mark.unit

DEADLINE_S = 60
VARIABLES = (
    *("APP_NAME_FOR_LOGGER", "PROCESS_NAME", "APP_LOGS_DIR", "APP_LOGS_MODE", "LOG_LEVEL"),
    "APP_LOGS_RETENTION_DAYS",
)


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The application "shop" with its files in `tmp_path`/logs, and nothing left of it."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("APP_NAME_FOR_LOGGER", "shop")
    monkeypatch.setenv("APP_LOGS_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    shutdown_logging()


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """The directory of the files."""
    return tmp_path / "logs"


def names(folder: Path) -> list[str]:
    """The visible files."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def messages(*files: Path) -> list[str]:
    return [line.rpartition(" | ")[2] for file in files for line in file.read_text().splitlines()]


def file_handlers() -> list[DailyLogHandler]:
    return [h for h in logging.getLogger().handlers if isinstance(h, DailyLogHandler)]


def until(is_so: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < limit, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.02)


# --- the application's name ---


def test_the_applications_name_is_that_of_the_environment() -> None:
    """It stands in the names of the files."""
    assert get_app_name() == "shop"


@pytest.mark.parametrize("value", [None, "", " "])
def test_an_application_without_a_name_is_warned_about_once(
    value: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its files would be mixed with those of others."""
    if value is None:
        monkeypatch.delenv("APP_NAME_FOR_LOGGER")
    else:
        monkeypatch.setenv("APP_NAME_FOR_LOGGER", value)
    assert [get_app_name(), get_app_name()] == ["unknown_app"] * 2
    (record,) = caplog.records
    assert "set it to the application's name" in record.getMessage()


# --- file and console ---


def test_a_line_stands_in_the_file_of_the_process_and_on_the_console(
    logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same line in both, at once."""
    get_logger("a").info("hello")
    line = (logs / f"shop-worker-{os.getpid()}.current.log").read_text()
    assert capsys.readouterr().err == line
    _, level, name, process, thread, place, message = line.split(" | ")
    assert (level, name, message) == ("INFO", "a", "hello\n")
    assert process == f"[MainProcess-{os.getpid()}]"
    assert thread == f"[MainThread-{threading.get_ident()}]"
    assert place.startswith("test_logger.py:")


def test_a_process_with_a_name_bears_it(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PROCESS_NAME in place of the worker's number."""
    monkeypatch.setenv("PROCESS_NAME", "api")
    get_logger("a")
    assert names(logs) == ["shop-api.current.log"]


def test_the_file_is_one_for_the_whole_process() -> None:
    """However many loggers are asked for, and however often."""
    first, second = get_logger("a"), get_logger("b")
    assert get_logger("a") is first is logging.getLogger("a")
    assert len(file_handlers()) == 1
    for logger in (first, second):
        assert [type(handler).__mro__[1] for handler in logger.handlers] == [ConsoleHandler]


def test_parent_and_child_show_a_record_once(
    logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each has a console, and the record passes both."""
    child, parent = get_logger("a.b.c"), get_logger("a")
    child.info("child")
    parent.info("parent")
    assert capsys.readouterr().err.count("\n") == 2
    assert messages(logs / names(logs)[0]) == ["child", "parent"]


def test_a_child_that_does_not_propagate_has_its_own_console(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """There is nobody further up to show its records."""
    get_logger("a")
    child = get_logger("a.b")
    child.propagate = False
    child.info("child")
    assert capsys.readouterr().err.count("child") == 1


@contextlib.contextmanager
def added(handler: logging.Handler, name: str | None) -> Iterator[logging.Handler]:
    """Somebody's handler on the logger of that name; None for the root."""
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize("name", [None, "a", "a.b"])
@pytest.mark.parametrize("stream", ["stderr", "stdout"])
def test_a_console_of_somebody_elses_shows_a_record_alone(
    capsys: pytest.CaptureFixture[str], name: str | None, stream: str
) -> None:
    """As `basicConfig` and many a `dictConfig` put one on the root; also on the logger itself."""
    get_logger("a")
    logger = get_logger("a.b")
    with added(logging.StreamHandler(getattr(sys, stream)), name):
        logger.info("line")
    shown = capsys.readouterr()
    assert (shown.out + shown.err).count("line\n") == 1


def refuse(record: logging.LogRecord) -> bool:
    record.msg = "refused"
    return False


def fail(record: logging.LogRecord) -> bool:
    raise RuntimeError("a broken filter")


@pytest.mark.parametrize("hides", ["stream", "level", "filter"])
def test_what_somebody_elses_handler_does_not_show_is_on_the_console(
    capsys: pytest.CaptureFixture[str], hides: str
) -> None:
    """It writes elsewhere, or lets this record not pass; its filter changes nothing here."""
    logger = get_logger("a")
    stream = io.StringIO() if hides == "stream" else sys.stderr
    handler = logging.StreamHandler(stream)
    if hides == "level":
        handler.setLevel(logging.ERROR)
    if hides == "filter":
        handler.addFilter(refuse)
    with added(handler, None):
        logger.info("line")
    assert capsys.readouterr().err.count("line\n") == 1


def test_a_broken_filter_of_somebody_elses_costs_no_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It raises to the caller as ever, in its own handler's turn."""
    logger = get_logger("a")
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(fail)
    with added(handler, None), pytest.raises(RuntimeError, match="broken"):
        logger.info("line")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(" | line")


def test_other_libraries_are_in_the_file_and_not_chattier(logs: Path) -> None:
    """Their warnings are wanted, and their levels are their own."""
    level = logging.getLogger().level
    get_logger("a").debug("not asked for")
    logging.getLogger("library").info("chatter")
    logging.getLogger("library").warning("trouble")
    assert messages(logs / names(logs)[0]) == ["trouble"]
    assert logging.getLogger().level == level


# --- levels ---


@pytest.mark.parametrize("level", ["debug", "DEBUG", " Debug ", logging.DEBUG])
def test_a_level_may_be_a_name_or_a_number(level: int | str) -> None:
    """In any case."""
    assert get_logger("a", level).level == logging.DEBUG


@pytest.mark.parametrize("level", ["LOUD", "", -1, True, 1.5, b"INFO"])
def test_a_wrong_level_is_the_callers_mistake(level: int | str) -> None:
    """It is told which ones there are."""
    with pytest.raises(ValueError, match=r"log_level=.* DEBUG, INFO, WARNING, ERROR, CRITICAL"):
        get_logger("a", level)
    assert not file_handlers()


def test_without_a_level_it_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """INFO where that says nothing."""
    assert get_logger("a").level == logging.INFO
    monkeypatch.setenv("LOG_LEVEL", "warning")
    assert get_logger("b").level == logging.WARNING


def test_a_level_that_a_logger_has_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody has set on purpose is not undone by the next module that asks."""
    monkeypatch.setenv("LOG_LEVEL", "WARNING")
    get_logger("a", "DEBUG")
    assert get_logger("a").level == logging.DEBUG


def test_a_wrong_level_in_the_environment_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No program stops for it."""
    monkeypatch.setenv("LOG_LEVEL", "LOUD")
    assert [get_logger(name).level for name in "ab"] == [logging.INFO] * 2
    assert caplog.text.count("LOG_LEVEL='LOUD' is no level") == 1


# --- what fails leaves the console ---


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("APP_LOGS_MODE", "both", "APP_LOGS_MODE='both' is unknown; use one of process, leader"),
        ("APP_LOGS_RETENTION_DAYS", "0", "APP_LOGS_RETENTION_DAYS='0' is no number of days"),
        ("APP_LOGS_RETENTION_DAYS", "a week", "APP_LOGS_RETENTION_DAYS='a week' is no number"),
        ("APP_NAME_FOR_LOGGER", "x" * 300, "use shorter names"),
        ("APP_LOGS_DIR", "file/logs", "Not a directory"),
    ],
)
def test_what_stops_the_file_is_one_warning_and_the_console_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    value: str,
    said: str,
) -> None:
    """With the reason; nothing is raised, and nothing is left half set up."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setenv(variable, value)
    get_logger("a").info("one")
    get_logger("b").info("two")
    (warning,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "no log file" in warning.getMessage()
    assert said in warning.getMessage()
    assert [line[-3:] for line in capsys.readouterr().err.splitlines()] == ["one", "two"]
    assert not file_handlers()


def test_after_a_shutdown_the_file_is_tried_again(
    tmp_path: Path, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was wrong may have been mended."""
    monkeypatch.setenv("APP_LOGS_MODE", "both")
    get_logger("a")
    shutdown_logging()
    monkeypatch.setenv("APP_LOGS_MODE", "process")
    get_logger("a").info("line")
    assert messages(logs / names(logs)[0]) == ["line"]


# --- beginning and end ---


def test_a_shutdown_leaves_nothing(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No handler, no thread, no lead; before anything was begun and twice it is safe too."""
    shutdown_logging()
    get_logger("a").info("line")
    shutdown_logging()
    shutdown_logging()
    assert not logging.getLogger("a").handlers
    assert not file_handlers()
    assert "app-log-file" not in [thread.name for thread in threading.enumerate()]


def test_logging_begins_anew_after_a_shutdown(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the environment as it is then."""
    monkeypatch.setenv("PROCESS_NAME", "one")
    get_logger("a").info("first")
    shutdown_logging()
    monkeypatch.setenv("PROCESS_NAME", "two")
    get_logger("a").info("second")
    assert messages(logs / "shop-one.current.log") == ["first"]
    assert messages(logs / "shop-two.current.log") == ["second"]


def test_five_threads_that_ask_at_once_get_one_file_and_one_console() -> None:
    """Whoever is first sets it up."""
    barrier = threading.Barrier(5)

    def ask() -> None:
        barrier.wait(DEADLINE_S)
        get_logger("a").info("line")

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert len(file_handlers()) == 1
    assert len(logging.getLogger("a").handlers) == 1


def test_a_shutdown_while_others_log_loses_and_doubles_no_line(
    logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thread's lines are there up to one, which was not acknowledged before the shutdown."""
    monkeypatch.setenv("PROCESS_NAME", "api")
    logger = get_logger("a")
    logger.handlers.clear()  # thousands of lines on the console help nobody
    acknowledged = [0, 0, 0]
    stop = threading.Event()

    def write(thread: int) -> None:
        while not stop.is_set():
            logger.info("%d-%d", thread, acknowledged[thread])
            acknowledged[thread] += 1

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: min(acknowledged) > 200, "lines of each thread")
    before = acknowledged[:]
    shutdown_logging()
    after = acknowledged[:]
    until(lambda: all(after[n] < acknowledged[n] for n in range(3)), "threads that go on")
    stop.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    lines = messages(logs / "shop-api.current.log")
    for thread in range(3):
        written = [line for line in lines if line.startswith(f"{thread}-")]
        assert len(written) >= before[thread]
        assert written == [f"{thread}-{number}" for number in range(len(written))]


def test_a_dict_config_that_clears_the_root_is_no_end(logs: Path) -> None:
    """The next call of get_logger puts the file back."""
    handlers = logging.getLogger().handlers[:]
    get_logger("a")
    logging.getLogger().handlers[:] = handlers
    get_logger("a").info("line")
    assert len(file_handlers()) == 1
    assert messages(logs / names(logs)[0]) == ["line"]


DJANGO = """
import json, logging.config, os, sys, time
from foundry_log.logger import get_logger
logger = get_logger("shop.views")
file = logging.getLogger().handlers[0]
logging.config.dictConfig({
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"]},
})
limit = time.monotonic() + 60
while file not in logging.getLogger().handlers and time.monotonic() < limit:
    time.sleep(0.02)
logger.info("after")
"""


def test_the_file_is_back_after_a_dict_config_that_names_the_root(logs: Path) -> None:
    """As in frameworks that configure logging once the modules with their loggers are imported."""
    done = subprocess.run(
        [sys.executable, "-c", DJANGO],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    assert done.stderr.count("after") == 1
    assert messages(logs / names(logs)[0]) == ["after"]


def test_an_idle_program_rotates_also_after_a_dict_config(logs: Path) -> None:
    """That has removed and closed the handler, which nobody opens by logging."""
    get_logger("a").info("line")
    (handler,) = file_handlers()
    logging.getLogger().removeHandler(handler)
    handler.close()
    handler.clock = lambda: time.time() + 2 * 86_400
    until(lambda: len(names(logs)) == 2, "a rotated file")
    assert file_handlers() == [handler]


def test_a_logger_that_was_disabled_is_enabled_for_who_asks_for_it() -> None:
    """A `dictConfig` disables by default whatever it does not name."""
    get_logger("a").disabled = True
    assert not get_logger("a").disabled


def test_a_module_that_dict_config_imports_may_ask_for_its_logger(tmp_path: Path) -> None:
    """GIVEN another thread in its first call WHEN both warn and set up THEN nobody waits for ever.

    In a process of its own, where a deadline tells.
    """
    script = """
import faulthandler, logging.config, os, threading
from foundry_log.logger import get_logger, shutdown_logging
faulthandler.dump_traceback_later(20, exit=True)
del os.environ["APP_NAME_FOR_LOGGER"]
warning, configuring = threading.Event(), threading.Event()
class Waits(logging.Filter):
    def filter(self, record):
        warning.set()
        configuring.wait()
        return True
logging.getLogger("foundry_log.logger").addFilter(Waits())
def make():
    configuring.set()
    get_logger("plugin")
    return logging.NullHandler()
thread = threading.Thread(target=get_logger, args=("first",))
thread.start()
warning.wait()
logging.config.dictConfig({
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"plugin": {"()": make}},
    "root": {"handlers": ["plugin"]},
})
thread.join()
shutdown_logging()
print("ended")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.stdout == "ended\n", done.stderr


def test_a_thread_that_collects_garbage_as_it_begins_waits_for_nobody(tmp_path: Path) -> None:
    """GIVEN a dropped handler in a cycle THEN its end, which takes logging's lock, comes later.

    In a process of its own, where a deadline tells.
    """
    script = """
import faulthandler, gc, logging, threading
from foundry_log.logger import get_logger, shutdown_logging
faulthandler.dump_traceback_later(20, exit=True)
get_logger("a")
shutdown_logging()
begin = threading.Thread._set_ident
def busy(self):
    kept = [[] for _ in range(200_000)]  # enough for a collection
    begin(self)
threading.Thread._set_ident = busy
gc.collect()
gc.set_threshold(100_000)
dropped = logging.NullHandler()
dropped.cycle = dropped
del dropped
get_logger("a")
assert gc.isenabled()
shutdown_logging()
print("ended")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.stdout == "ended\n", done.stderr


def test_a_shutdown_does_not_wait_with_the_lock_that_a_thread_needs(tmp_path: Path) -> None:
    """GIVEN a thread that logs inside `dictConfig` WHEN it is shut down THEN both come to an end.

    In a process of its own, where a deadline tells.
    """
    script = """
import faulthandler, logging, threading
from foundry_log.files.locks import logging_lock
from foundry_log.logger import get_logger, shutdown_logging
faulthandler.dump_traceback_later(20, exit=True)
get_logger("a")
handler, = logging.getLogger().handlers
handler.acquire()  # whoever writes, and asks `logging` for something
thread = threading.Thread(target=shutdown_logging)
thread.start()
while handler in logging.getLogger().handlers:
    pass
with logging_lock:
    handler.release()
thread.join()
print("ended")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.stdout == "ended\n", done.stderr


def test_the_thread_prunes_after_a_rotation(logs: Path) -> None:
    """And not the call that logs first after midnight."""
    logs.mkdir()
    first, second = (logs / f"shop-gone__2001-01-0{day}.log" for day in (1, 2))
    first.write_text("old\n")
    logger = get_logger("a")
    logger.info("line")
    until(lambda: not first.exists(), "the pruning of a new process")
    second.write_text("old\n")
    (handler,) = file_handlers()
    assert handler.after_rotating is not None
    handler.clock = lambda: time.time() + 2 * 86_400
    logger.info("next day")
    until(lambda: not second.exists(), "the pruning after a rotation")


def test_configure_and_get_logger_go_together(
    tmp_path: Path, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each file has each line once, and so has the console."""
    logger = get_logger("a")
    with foundry_log.configure(LoggingConfig(), tmp_path / "run"):
        get_logger("a").info("both")
    logger.info("alone")
    assert messages(logs / names(logs)[0]) == ["both", "alone"]
    assert (tmp_path / "run" / "run.log").read_text().count("both") == 1
    console = capsys.readouterr().err
    assert (console.count("both"), console.count("alone")) == (1, 1)


@pytest.mark.parametrize("mode", ["process", "leader"])
def test_an_idle_program_rotates_at_midnight(
    logs: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Nobody writes after the day is over, and its file is finished all the same."""
    monkeypatch.setenv("APP_LOGS_MODE", mode)
    get_logger("a").info("line")
    (handler,) = file_handlers()
    handler.clock = lambda: time.time() + 2 * 86_400
    until(lambda: len(names(logs)) == 2, "a rotated file")
    assert sorted(messages(*(logs / name for name in names(logs)))) == ["line"]


# --- several processes ---


def forked(work: Callable[[], None]) -> int:
    """The id of a child that has done the work and ended."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(DEADLINE_S)
    assert process.exitcode == 0
    assert process.pid is not None
    return process.pid


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_goes_on_in_a_file_of_its_own(logs: Path) -> None:
    """Its first record opens it; the parent's file has the parent's lines."""
    logger = get_logger("a")
    logger.info("parent")
    child = forked(lambda: logger.info("child"))
    assert messages(logs / f"shop-worker-{os.getpid()}.current.log") == ["parent"]
    assert messages(logs / f"shop-worker-{child}.current.log") == ["child"]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_of_the_leader_follows(
    tmp_path: Path, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes the same file, and its parent still leads."""
    monkeypatch.setenv("APP_LOGS_MODE", "leader")
    logger = get_logger("a")
    place = Leadership("shop")
    until(lambda: place.leader() is not None, "a leader")

    def work() -> None:
        logger.info("child")
        (handler,) = file_handlers()
        assert handler.patience_s > 0
        assert "app-log-file" in [thread.name for thread in threading.enumerate()]
        shutdown_logging()

    forked(work)
    logger.info("parent")
    assert messages(logs / "shop.current.log") == ["child", "parent"]
    assert not place.try_to_lead()
    leader = place.leader()
    assert leader is not None
    assert leader.pid == os.getpid()


def test_the_leader_gives_its_place_back_at_shutdown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process leads at its next try."""
    monkeypatch.setenv("APP_LOGS_MODE", "leader")
    get_logger("a")
    place = Leadership("shop")
    until(lambda: place.leader() is not None, "a leader")
    shutdown_logging()
    assert place.try_to_lead()


def test_where_nobody_can_lead_the_lines_are_written_all_the_same(
    tmp_path: Path,
    logs: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As with the lock file of another user: one warning, and a patient rotation by everybody."""
    (tmp_path / "logger_shop.lock").mkdir()
    monkeypatch.setenv("APP_LOGS_MODE", "leader")
    get_logger("a").info("line")
    until(lambda: "app-log-file fails: IsADirectoryError" in caplog.text, "a warning")
    assert "line" in messages(logs / "shop.current.log")
    assert file_handlers()[0].patience_s == FOLLOWERS_WAIT_S


WRITER = """
import logging, os, sys, time
from foundry_log.logger import get_logger
name, midnight, flag, notes = sys.argv[1], float(sys.argv[2]), sys.argv[3], sys.argv[4]
logger = get_logger("w", "INFO")
logger.handlers.clear()
handler = logging.getLogger().handlers[0]
handler.clock = lambda: midnight + (5 if os.path.exists(flag) else -60)
handler.close()  # the next line opens it by that clock
told = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
number = 0
while True:
    line = f"{name}-{number}-{'x' * (number % 300)}"
    logger.info(line)
    os.write(told, line.encode() + b"\\n")
    number += 1
    time.sleep(0.001)
"""


@contextlib.contextmanager
def writers(
    tmp_path: Path, midnight: float, count: int
) -> Iterator[dict[int, subprocess.Popen[bytes]]]:
    """Processes that write until they are killed, and note each line that was acknowledged."""
    environment = {**os.environ, "APP_LOGS_MODE": "leader"}
    started = {}
    try:
        for number in range(count):
            command = [sys.executable, "-c", WRITER, str(number), str(midnight), tmp_path / "flag"]
            process = subprocess.Popen([*command, tmp_path / f"notes-{number}"], env=environment)
            started[process.pid] = process
        yield started
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def noted(tmp_path: Path) -> list[str]:
    return [line for path in tmp_path.glob("notes-*") for line in path.read_text().split("\n")[:-1]]


def test_when_the_leader_is_killed_another_rotates_and_no_line_is_lost(
    tmp_path: Path, logs: Path
) -> None:
    """Midnight comes when it is dead: a follower leads within seconds, and the others follow."""
    day = datetime.date.today() - datetime.timedelta(days=9)
    midnight = datetime.datetime.combine(
        day + datetime.timedelta(days=1), datetime.time()
    ).timestamp()
    place = Leadership("shop")
    rotated = logs / f"shop_{day.isoformat()}.log"
    with writers(tmp_path, midnight, count=3) as processes:
        until(lambda: all((tmp_path / f"notes-{n}").exists() for n in range(3)), "writers")
        until(lambda: place.leader() is not None, "a leader")
        first = json.loads(Path(place.path).read_text())["pid"]
        processes[first].send_signal(signal.SIGKILL)
        processes[first].wait()
        (tmp_path / "flag").touch()
        until(rotated.exists, "a rotation")
        second = place.leader()
        assert second is not None
        assert second.pid in processes.keys() - {first}
        seen = len(noted(tmp_path))
        until(lambda: len(noted(tmp_path)) > seen + 50, "lines after the rotation")
        size = (logs / "shop.current.log").stat().st_size
        until(lambda: (logs / "shop.current.log").stat().st_size > size, "growth of the new file")
    assert names(logs) == ["shop.current.log", rotated.name]
    written = Counter(messages(rotated, logs / "shop.current.log"))
    assert not set(noted(tmp_path)) - set(written)
    assert set(written.values()) == {1}
