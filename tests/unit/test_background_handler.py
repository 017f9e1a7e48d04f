"""The background queue: overflow, order, ends of all kinds, forks, signals, hostile handlers."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import logging.config
import logging.handlers
import queue
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_log import (
    BackgroundHandler,
    JsonFormatter,
    RotatingJsonlHandler,
    StructuredLogger,
    bound,
)
from foundry_log.handlers import background
from foundry_log.jsonl import read_jsonl
from foundry_log.records import KEPT
from foundry_log.text_formatters import ConsoleFormatter, PlainFormatter

pytestmark = pytest.mark.unit

DEADLINE_S = 20
Make = Callable[..., BackgroundHandler]


class Recorder(logging.Handler):
    """Keeps what it gets, once `gate` is open; says by `entered` that a record is at work."""

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.records: list[logging.LogRecord] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.entered.set()
        assert self.gate.wait(DEADLINE_S)
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records if not is_notice(record)]

    @property
    def notices(self) -> list[logging.LogRecord]:
        return [record for record in self.records if is_notice(record)]


def is_notice(record: logging.LogRecord) -> bool:
    return record.name == "foundry_log.handlers"


def shut(target: Recorder, handler: logging.Handler, first: str = "first") -> None:
    """Close the gate, and log one record that stands before it, at work."""
    target.gate.clear()
    target.entered.clear()
    log(handler, first)
    assert target.entered.wait(DEADLINE_S)


@pytest.fixture
def make() -> Iterator[Make]:
    """Make background handlers, all closed at the end."""
    made: list[BackgroundHandler] = []

    def make_one(*args: Any, **options: Any) -> BackgroundHandler:
        handler = BackgroundHandler(*args, **options)
        made.append(handler)
        return handler

    yield make_one
    for handler in made:
        for target in handler.handlers:
            if isinstance(target, Recorder):
                target.gate.set()
        handler.close()
        for thread in threading.enumerate():
            if thread.name == "foundry_log-background":
                thread.join(DEADLINE_S)


@pytest.fixture
def logger() -> logging.Logger:
    """A logger that no other handler, pytest's for one, is attached to."""
    return logging.Logger("background-test")


@pytest.fixture
def structured() -> StructuredLogger:
    """A logger that is attached to the root, as others are."""
    made = StructuredLogger("background-test", SimpleNamespace(experiment_name="test"))
    made.logger.setLevel(logging.DEBUG)
    return made


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the stdlib's reports from standard error."""
    monkeypatch.setattr(logging, "raiseExceptions", False)


def log(handler: logging.Handler, *messages: object, **fields: Any) -> None:
    usual = {"levelname": "INFO", "levelno": logging.INFO}
    for message in messages:
        handler.handle(logging.makeLogRecord({"msg": message, **usual, **fields}))


def in_threads(count: int, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def waits_in_put(handler: BackgroundHandler) -> bool:
    """Return, in time, whether somebody waits for room."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if handler._is_awaited:
            return True
        time.sleep(0.001)
    return False


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the entries; a child that opens the file inside a write may leave a blank line."""
    reader = read_jsonl(path)
    entries = list(reader)
    assert reader.skipped == 0
    return entries


def numbers(path: Path) -> list[int]:
    return [line["context"]["n"] for line in lines(path)]


PRELUDE = """
import logging, os, signal, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # forks with threads, from Python 3.12
import foundry_log
path = sys.argv[1]
target = foundry_log.RotatingJsonlHandler(path)
log = logging.getLogger("child"); log.setLevel(logging.INFO); log.propagate = False
def serve(*targets, **options):
    handler = foundry_log.BackgroundHandler(list(targets) or [target], **options)
    log.addHandler(handler)
    return handler
class Slow(logging.Handler):
    def emit(self, record):
        time.sleep(0.002)
        target.handle(record)
class Stuck(logging.Handler):
    def emit(self, record):
        threading.Event().wait()
"""


def start(path: Path, program: str) -> subprocess.Popen[str]:
    script = path.with_name(f"program{random.randrange(10**9)}.py")
    script.write_text(PRELUDE + program)
    return subprocess.Popen(
        [sys.executable, str(script), str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(path: Path, program: str) -> tuple[int, str, str]:
    process = start(path, program)
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, err


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


# --- the caller does not wait; overflow ---


def test_the_call_returns_while_the_target_is_stuck(make: Make) -> None:
    """What the caller waits for is a place in the queue."""
    target = Recorder()
    handler = make(target)
    shut(target, handler)
    log(handler, *range(100))

    assert target.messages == []
    target.gate.set()
    handler.flush()
    assert target.messages == ["first", *map(str, range(100))]


def test_drop_newest_keeps_what_came_first(make: Make) -> None:
    """The record at work and those that wait are `capacity` together."""
    target = Recorder()
    handler = make(target, capacity=3, overflow="drop_newest")
    shut(target, handler)
    log(handler, *range(5))
    target.gate.set()
    handler.close()

    assert target.messages == ["first", "0", "1"]
    assert handler.dropped == {"INFO": 3}


def test_drop_oldest_keeps_what_came_last(make: Make) -> None:
    """The record at work cannot be dropped any more."""
    target = Recorder()
    handler = make(target, capacity=3, overflow="drop_oldest")
    shut(target, handler)
    log(handler, *range(5))
    target.gate.set()
    assert handler.drain(DEADLINE_S)
    handler.close()

    assert target.messages == ["first", "3", "4"]
    assert handler.dropped == {"INFO": 3}


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest"])
def test_a_capacity_of_one_never_waits_when_it_may_drop(make: Make, overflow: str) -> None:
    """The one that is at work takes the only place."""
    target = Recorder()
    handler = make(target, capacity=1, overflow=overflow)
    shut(target, handler)
    log(handler, 1, 2)
    target.gate.set()
    handler.close()

    assert target.messages == ["first"]
    assert handler.dropped == {"INFO": 2}


def test_block_waits_for_room_and_goes_on_in_order(make: Make) -> None:
    """Nothing is dropped, and nobody overtakes itself."""
    target = Recorder()
    handler = make(target, capacity=2, overflow="block")
    shut(target, handler)
    returned: list[int] = []

    def work() -> None:
        for n in range(50):
            log(handler, n)
            returned.append(n)

    thread = threading.Thread(target=work)
    thread.start()
    assert waits_in_put(handler)
    assert returned == [0]
    target.gate.set()
    thread.join(DEADLINE_S)
    handler.close()

    assert target.messages == ["first", *map(str, range(50))]
    assert not handler.dropped


@pytest.mark.parametrize("capacity", [1, 3, 10_000])
def test_threads_lose_nothing_and_keep_their_order(make: Make, capacity: int) -> None:
    """Eight threads, one queue that is full or is not."""
    target = Recorder()
    handler = make(target, capacity=capacity)
    in_threads(8, lambda t: log(handler, *(f"{t} {n}" for n in range(150))))
    handler.close()

    for t in range(8):
        own = [message for message in target.messages if message.startswith(f"{t} ")]
        assert own == [f"{t} {n}" for n in range(150)]


@settings(max_examples=60, deadline=None)
@given(
    overflow=st.sampled_from(background.OVERFLOWS),
    capacity=st.integers(1, 6),
    steps=st.lists(st.sampled_from(["log", "log", "log", "shut", "open", "flush"]), max_size=40),
)
def test_written_and_dropped_are_what_was_logged(
    overflow: str, capacity: int, steps: list[str]
) -> None:
    """Under each rule, whatever the target does, and in order."""
    target = Recorder()
    handler = BackgroundHandler(target, capacity, overflow)
    logged = 0
    for step in steps:
        if step == "log":
            if overflow == "block" and not target.gate.is_set() and logged % capacity == 0:
                target.gate.set()  # nobody else would
            log(handler, logged)
            logged += 1
        elif step == "shut" and overflow != "block":
            target.gate.clear()
        else:
            target.gate.set()
            if step == "flush":
                handler.flush()
    target.gate.set()
    handler.close()

    written = [int(message) for message in target.messages]
    told = sum(sum(notice.__dict__["dropped"].values()) for notice in target.notices)
    assert written == sorted(set(written))
    assert len(written) + handler.dropped.total() == logged
    assert told == handler.dropped.total()
    if overflow == "block":
        assert len(written) == logged


# --- what is said about drops ---


def test_the_stream_says_what_was_dropped(make: Make) -> None:
    """By level, with the times of the first and the last."""
    target = Recorder()
    handler = make(target, capacity=1, overflow="drop_newest")
    shut(target, handler)
    log(handler, 1, 2, created=1_700_000_000.0)
    log(handler, 3, levelname="ERROR", created=1_700_000_001.0)
    target.gate.set()
    handler.close()

    (notice,) = target.notices
    line = json.loads(JsonFormatter().format(notice))
    assert line["level"] == "WARNING"
    assert line["message"] == (
        "3 records were dropped, the background queue was full (INFO: 2, ERROR: 1)"
    )
    assert line["context"] == {
        "dropped": {"INFO": 2, "ERROR": 1},
        "first_dropped": "2023-11-14T22:13:20.000000+00:00",
        "last_dropped": "2023-11-14T22:13:21.000000+00:00",
        "overflow": "drop_newest",
        "capacity": 1,
    }


def idle(handler: BackgroundHandler) -> bool:
    """Whether the thread waits for a record."""
    with handler._lock:
        return handler._is_asleep and not handler._queue


def test_drops_are_told_at_intervals_at_a_flush_and_at_close(make: Make) -> None:
    """A second drop within the interval waits for one of the others."""
    target = Recorder()
    handler = make(target, capacity=1, overflow="drop_newest")
    handler._tell_every_s = 3600.0

    def drop_one() -> None:
        shut(target, handler)
        log(handler, "dropped")
        target.gate.set()
        deadline = time.monotonic() + DEADLINE_S
        while not idle(handler):
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def told() -> list[int]:
        return [notice.__dict__["dropped"]["INFO"] for notice in target.notices]

    for _ in range(3):
        drop_one()
    assert told() == [1]
    handler.flush()
    assert told() == [1, 2]
    drop_one()
    assert told() == [1, 2]
    handler.close()
    assert told() == [1, 2, 1]


@pytest.mark.parametrize(
    ("overflow", "others"),
    [("block", ["one", "two"]), ("drop_newest", ["one", "two"]), ("drop_oldest", ["five"])],
)
def test_a_record_that_is_kept_finds_room_and_stays(
    make: Make, overflow: str, others: list[str]
) -> None:
    """As that of a signal; the others are dropped round it."""
    target = Recorder()
    handler = make(target, capacity=3, overflow=overflow)
    shut(target, handler)
    log(handler, "one", "two")
    log(handler, "why", **{KEPT: True})
    if overflow != "block":
        log(handler, "three", "four", "five")
    target.gate.set()
    assert handler.drain(DEADLINE_S)
    assert sorted(target.messages) == sorted(["first", "why", *others])
    logged = 4 if overflow == "block" else 7
    assert handler.dropped.total() == logged - len(target.messages)


def test_drops_are_told_although_nothing_more_is_logged(make: Make) -> None:
    """The thread wakes by itself when it is time."""
    target = Recorder()
    handler = make(target, capacity=1, overflow="drop_newest")
    handler._tell_every_s = 0.05
    for _ in range(2):
        shut(target, handler)
        log(handler, "dropped")
        target.gate.set()
        assert handler.drain(DEADLINE_S)
    deadline = time.monotonic() + DEADLINE_S
    while len(target.notices) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)

    assert len(target.notices) == 2


@pytest.mark.parametrize("created", [float("nan"), 1e300, "never", None])
def test_a_strange_time_does_not_end_the_thread(make: Make, created: Any) -> None:
    """Filters can put anything on a record, and the notice shows when it was dropped."""
    target = Recorder()
    handler = make(target, capacity=1, overflow="drop_newest")
    shut(target, handler)
    log(handler, "dropped", created=created)
    target.gate.set()
    handler.flush()
    log(handler, "alive")
    handler.close()

    assert target.messages == ["first", "alive"]
    assert len(target.notices) == 1


# --- hostile handlers ---


class Broken(logging.Filter):
    """Raises as a filter, a formatter and a handler, as often as it has errors left."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def filter(self, record: logging.LogRecord) -> bool:
        if record.getMessage() == "bad":
            raise self.error("on purpose")
        return True

    def format(self, record: logging.LogRecord) -> str:
        self.filter(record)
        return record.getMessage()


class RaisingRecorder(Recorder):
    """Formats, and raises what the formatter raises."""

    def emit(self, record: logging.LogRecord) -> None:
        self.format(record)
        super().emit(record)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("place", ["filter", "formatter"])
def test_the_thread_outlives_what_a_target_raises(
    make: Make, place: str, error: type[BaseException]
) -> None:
    """It is counted, the record goes to the other target, and the next to both."""
    hurt, sound = RaisingRecorder(), Recorder()
    broken = Broken(error)
    if place == "filter":
        hurt.addFilter(broken)
    else:
        hurt.setFormatter(broken)  # type: ignore[arg-type]
    handler = make([hurt, sound])
    log(handler, "bad", "good")
    handler.close()

    assert hurt.messages == ["good"]
    assert sound.messages == ["bad", "good"]
    assert handler.losses == {error.__name__: 1}


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_the_thread_outlives_a_handle_error_that_raises(error: type[BaseException]) -> None:
    """An override of somebody's, of the target and of the queue itself."""

    class Raises(BackgroundHandler):
        def handleError(self, record: logging.LogRecord) -> None:
            raise error("on purpose")

    target = RaisingRecorder()
    target.addFilter(Broken(error))
    target.handleError = Raises.handleError  # type: ignore[method-assign,assignment]
    handler = Raises(target)
    log(handler, "bad", "good")
    handler.close()

    assert target.messages == ["good"]


def test_levels_and_filters_count_on_both_sides(make: Make, logger: logging.Logger) -> None:
    """Those of the queue on the caller's, those of each target on the thread."""
    loud, all_of_it = Recorder(logging.ERROR), Recorder()
    all_of_it.addFilter(lambda record: "secret" not in record.getMessage())
    handler = make([loud, all_of_it])
    handler.setLevel(logging.INFO)
    handler.addFilter(lambda record: "noise" not in record.getMessage())
    logger.addHandler(handler)
    logger.debug("quiet")
    logger.info("noise")
    logger.info("one")
    logger.error("secret")
    handler.close()

    assert loud.messages == ["secret"]
    assert all_of_it.messages == ["one"]


def test_what_no_target_wants_is_not_copied(make: Make) -> None:
    """Nor is its message made."""

    class Unwanted:
        def __str__(self) -> str:
            raise AssertionError("it was formatted")

    handler = make(Recorder(logging.ERROR))
    log(handler, Unwanted())
    handler.close()

    assert not handler.losses


@pytest.mark.skipif(sys.version_info < (3, 12), reason="filters replace records from Python 3.12")
def test_a_filter_may_replace_the_record(make: Make) -> None:
    """On either side, as of Python 3.12."""
    target = Recorder()
    target.addFilter(lambda r: logging.makeLogRecord({**r.__dict__, "msg": r.msg + " there"}))
    handler = make(target)
    handler.addFilter(lambda r: logging.makeLogRecord({**r.__dict__, "msg": r.msg + " here"}))
    log(handler, "seen")
    handler.close()

    assert target.messages == ["seen here there"]


def test_a_targets_filter_changes_nothing_of_the_callers_record(make: Make) -> None:
    """Handlers that the record meets later on its way see it as it was."""
    target = Recorder()

    def redact(record: logging.LogRecord) -> bool:
        record.msg = "redacted"
        return True

    target.addFilter(redact)
    handler = make(target)
    record = logging.makeLogRecord({"msg": "password", "levelno": logging.INFO})
    handler.handle(record)
    handler.close()

    assert target.messages == ["redacted"]
    assert record.msg == "password"


# --- the caller's objects ---


def test_what_the_caller_changes_afterwards_is_not_seen(
    make: Make, structured: StructuredLogger
) -> None:
    """Arguments, extra fields, bound context and the exception are those of the call."""
    target = Recorder()
    handler = make(target)
    shut(target, handler)
    structured.logger.addHandler(handler)
    values = [1]
    error = ValueError("then", values)
    with bound(scope=values):
        structured.logger.error("%s", values, extra={"field": values}, exc_info=error)
        structured.info("structured", data=values)
    values.append(2)
    error.args = ("now",)
    target.gate.set()
    handler.close()

    plain, other = (json.loads(JsonFormatter().format(each)) for each in target.records[1:])
    assert plain["message"] == "[1]"
    assert plain["context"] == {"scope": [1], "field": [1]}
    assert "then" in plain["exception"]["message"]
    assert other["context"]["data"] == [1]


def test_the_exceptions_frames_are_let_go(make: Make, logger: logging.Logger) -> None:
    """A tensor of a failed step does not wait in the queue."""

    class Tensor:
        pass

    target = Recorder()
    handler = make(target)
    shut(target, handler)
    logger.addHandler(handler)

    def fail() -> weakref.ref[Tensor]:
        tensor = Tensor()
        try:
            raise ValueError("step failed")
        except ValueError:
            logger.exception("%s", tensor, extra={"tensor": tensor})
        return weakref.ref(tensor)

    tensor = fail()
    gc.collect()
    assert tensor() is None
    target.gate.set()
    handler.close()
    assert "step failed" in (target.records[-1].exc_text or "")


def test_a_written_record_is_let_go(logger: logging.Logger) -> None:
    """Also the last one, and although the handler is never closed by those who made it."""
    passed: list[weakref.ref[logging.LogRecord]] = []

    class Passes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            passed.append(weakref.ref(record))

    handler = BackgroundHandler(Passes())
    log(handler, *range(100))
    assert handler.drain(DEADLINE_S)
    gc.collect()
    alive = [each for each in passed if each() is not None]
    handler.close()

    assert len(passed) == 100
    assert alive == []


def test_a_record_class_of_somebody_formats_its_own_message(make: Make) -> None:
    """Such as one with `{}` in place of `%`."""

    class Braces(logging.LogRecord):
        def getMessage(self) -> str:
            return str(self.msg).format(*(self.args or ()))

    target = Recorder()
    handler = make(target)
    handler.handle(Braces("n", logging.INFO, "", 1, "{} of {}", (1, 2), None))
    handler.close()

    assert target.messages == ["1 of 2"]


def test_a_queue_handlers_record_passes(make: Make, structured: StructuredLogger) -> None:
    """One that the stdlib has flattened, with its traceback in the text."""
    waiting: queue.Queue[logging.LogRecord] = queue.Queue()
    structured.logger.addHandler(logging.handlers.QueueHandler(waiting))
    try:
        raise ValueError("bad")
    except ValueError:
        structured.exception("failed", step=1)
    target = Recorder()
    handler = make(target)
    handler.handle(waiting.get())
    handler.close()

    line = json.loads(JsonFormatter().format(target.records[0]))
    assert line["message"] == "failed"
    assert line["context"]["step"] == 1
    assert "ValueError: bad" in str(line)


@pytest.mark.parametrize(
    "formatter",
    [JsonFormatter(), ConsoleFormatter(), PlainFormatter(), logging.Formatter()],
    ids=lambda formatter: type(formatter).__name__,
)
@pytest.mark.parametrize("is_structured", [True, False])
def test_a_line_is_the_one_that_was_written_without_the_queue(
    make: Make, structured: StructuredLogger, formatter: logging.Formatter, is_structured: bool
) -> None:
    """Message, context and exception, through each formatter."""
    logger = structured.logger
    direct, behind = Recorder(), Recorder()
    handler = make(behind)
    logger.addHandler(direct)
    logger.addHandler(handler)
    with bound(scope=1):
        try:
            raise ValueError("bad")
        except ValueError:
            if is_structured:
                structured.exception("failed", step=1)
            else:
                logger.exception("failed %s", [1], extra={"step": 1})
        expected = formatter.format(direct.records[0])
    handler.close()

    found = formatter.format(behind.records[0])
    assert found.replace('\\n"}}', '"}}') == expected  # the traceback's last newline


def test_the_record_names_its_caller(make: Make, logger: logging.Logger) -> None:
    """Line, function, thread and process."""
    direct, behind = Recorder(), Recorder()
    handler = make(behind)
    logger.addHandler(direct)
    logger.addHandler(handler)
    in_threads(1, lambda _: logger.info("here"))
    handler.close()

    names = ("lineno", "funcName", "threadName", "thread", "process", "pathname", "created")
    (one,), (other,) = direct.records, behind.records
    assert [getattr(one, name) for name in names] == [getattr(other, name) for name in names]
    assert other.threadName != "foundry_log-background"


def test_tasks_of_an_event_loop_log(make: Make, logger: logging.Logger) -> None:
    """Each with the context that is bound in it."""
    target = Recorder()
    handler = make(target)
    logger.addHandler(handler)

    async def work(number: int) -> None:
        with bound(number=number):
            await asyncio.sleep(0)
            logger.info("%d", number)

    async def all_of_them() -> None:
        await asyncio.gather(*(work(number) for number in range(20)))

    asyncio.run(all_of_them())
    handler.close()

    found = [json.loads(JsonFormatter().format(record)) for record in target.records]
    assert sorted(line["context"]["number"] for line in found) == list(range(20))
    assert all(line["message"] == str(line["context"]["number"]) for line in found)


# --- handlers that log ---


class Chatty(Recorder):
    """Logs a record of its own for each that it gets."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        self.say("about " + record.getMessage())
        super().emit(record)


@pytest.mark.usefixtures("quiet")
def test_a_target_that_logs_does_not_hear_itself(make: Make, logger: logging.Logger) -> None:
    """As the only one: it would never end. What nobody hears counts as lost."""
    target = Chatty(logger.info)
    handler = make(target)
    logger.addHandler(handler)
    logger.info("one")
    logger.info("two")
    handler.close()

    assert target.messages == ["one", "two"]
    assert handler.losses == {"RecursionError": 2}


@pytest.mark.parametrize("through", ["logger", "root", "structured"])
def test_what_a_target_logs_goes_to_the_others(
    make: Make, structured: StructuredLogger, through: str
) -> None:
    """Through the same logger, the root logger, or a StructuredLogger."""
    root = logging.getLogger()
    says = {
        "logger": structured.logger.warning,
        "root": root.warning,
        "structured": structured.warning,
    }
    chatty, other = Chatty(says[through]), Recorder()
    handler = make([chatty, other])
    where = root if through == "root" else structured.logger
    where.addHandler(handler)
    structured.logger.info("one")
    handler.close()
    where.removeHandler(handler)

    assert chatty.messages == ["one"]
    assert ["about one" in message for message in other.messages] == [True, False]
    assert not handler.losses


@pytest.mark.usefixtures("quiet")
def test_a_filter_that_fails_on_what_a_target_logs_hurts_no_target(
    make: Make, logger: logging.Logger
) -> None:
    """The record that the target was writing is written; the other one counts as lost."""

    def refuse(record: logging.LogRecord) -> bool:
        if record.getMessage().startswith("about"):
            raise RuntimeError("on purpose")
        return True

    chatty = Chatty(logger.info)
    handler = make(chatty)
    handler.addFilter(refuse)
    logger.addHandler(handler)
    logger.info("one")
    handler.close()

    assert chatty.messages == ["one"]
    assert handler.losses == {"RuntimeError": 1}


def test_a_repr_that_logs_is_heard(make: Make, logger: logging.Logger) -> None:
    """It is made on the caller's side, with no lock held."""

    class Talks:
        def __str__(self) -> str:
            logger.info("from inside")
            return "talks"

    target = Recorder()
    handler = make(target, capacity=1)
    logger.addHandler(handler)
    logger.info("%s", Talks())
    handler.close()

    assert target.messages == ["from inside", "talks"]


def test_a_target_may_flush_and_close_the_queue(make: Make) -> None:
    """It does not wait for itself."""

    class Flushes(Recorder):
        def emit(self, record: logging.LogRecord) -> None:
            handler.flush()
            handler.close()
            super().emit(record)

    target = Flushes()
    handler = make(target)
    log(handler, 1, 2)
    handler.close()

    assert target.messages == ["1", "2"]


@pytest.mark.usefixtures("quiet")
def test_flush_reaches_every_target(make: Make) -> None:
    """Also past one whose own flush fails, which counts."""

    class Fails(Recorder):
        def flush(self) -> None:
            raise RuntimeError("on purpose")

    stream = io.StringIO()
    buffered = logging.handlers.MemoryHandler(100, target=logging.StreamHandler(stream))
    handler = make([Fails(), buffered])
    log(handler, "kept")
    handler.flush()

    assert stream.getvalue() == "kept\n"
    assert handler.losses == {"RuntimeError": 1}
    handler.close()
    buffered.close()


# --- signals ---


@pytest.mark.parametrize("capacity", [2, 10_000])
def test_a_signal_handler_may_log_while_the_call_it_interrupts_queues(
    path: Path, capacity: int
) -> None:
    """Hundreds of times, with a queue that is full and one that is not: no deadlock, no loss.

    In a process of its own: the locks of whoever measures or traces this one are not ours.
    """
    status, out, err = run(
        path,
        f"""
handler = serve(capacity={capacity})
counts = {{"main": 0, "signal": 0}}
def say(who):
    log.info(who, extra={{"n": counts[who]}})
    counts[who] += 1
going_on = True
def on_alarm(*_):
    say("signal")
    if going_on:
        signal.setitimer(signal.ITIMER_REAL, 0.0005)
signal.signal(signal.SIGALRM, on_alarm)
signal.setitimer(signal.ITIMER_REAL, 0.0005)
end = time.monotonic() + 0.7
while time.monotonic() < end:
    say("main")
going_on = False
signal.setitimer(signal.ITIMER_REAL, 0)
handler.close()
print(counts["main"], counts["signal"], handler.losses["RecursionError"], len(handler.losses))
""",
    )
    main, signals, nested, kinds = map(int, out.split())
    found = lines(path)
    of_main = [line["context"]["n"] for line in found if line["message"] == "main"]
    assert status == 0, err
    assert of_main == list(range(main))
    assert signals > 100
    assert len(found) - len(of_main) + nested == signals
    assert kinds <= 1


def test_a_blocked_call_can_be_interrupted(make: Make) -> None:
    """By Ctrl-C, while the queue is full."""
    target = Recorder()
    handler = make(target, capacity=1)
    shut(target, handler)
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        if waits_in_put(handler):
            signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        log(handler, "blocked")
    thread.join()
    target.gate.set()
    log(handler, "goes on")
    handler.close()

    assert target.messages == ["first", "goes on"]


# --- close ---


def test_close_is_idempotent_and_later_records_are_written_by_their_callers(make: Make) -> None:
    """Nothing is lost after the end, either."""
    target = Recorder()
    handler = make(target)
    log(handler, "before")
    handler.close()
    handler.close()
    log(handler, "after")

    assert target.messages == ["before", "after"]
    assert not handler.losses


@pytest.mark.parametrize("capacity", [2, 10_000])
def test_close_races_with_logging(make: Make, capacity: int) -> None:
    """Four threads log while it closes: each record is there once."""
    target = Recorder()
    handler = make(target, capacity=capacity)
    underway = threading.Barrier(5)

    def work(t: int) -> None:
        underway.wait(DEADLINE_S)
        log(handler, *(f"{t} {n}" for n in range(300)))

    def close() -> None:
        underway.wait(DEADLINE_S)
        handler.close()

    in_threads(5, lambda t: close() if t == 4 else work(t))
    handler.close()
    assert sorted(target.messages) == sorted(f"{t} {n}" for t in range(4) for n in range(300))


def test_close_lets_those_go_that_wait_for_room(make: Make) -> None:
    """They write themselves."""
    target = Recorder()
    handler = make(target, capacity=1)
    shut(target, handler)
    waiting = threading.Thread(target=lambda: log(handler, "waited"))
    waiting.start()
    assert waits_in_put(handler)
    closing = threading.Thread(target=handler.close)
    closing.start()
    target.gate.set()
    waiting.join(DEADLINE_S)
    closing.join(DEADLINE_S)

    assert target.messages == ["first", "waited"]


def test_what_a_stuck_target_keeps_is_counted(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """Close has a deadline; later records are counted too, until the target returns."""
    target = Recorder()
    handler = make(target, flush_timeout_s=0.05)
    shut(target, handler)
    log(handler, 1, 2)
    handler.flush()
    handler.close()
    log(handler, 3)
    assert handler.losses == {"TimeoutError": 4}
    assert "lost 3 records (TimeoutError: 3)" in capsys.readouterr().err

    target.gate.set()
    for thread in threading.enumerate():
        if thread.name == "foundry_log-background":
            thread.join(DEADLINE_S)
    log(handler, "again")
    assert target.messages == ["first", "again"]


def test_logging_shutdown_writes_what_is_queued(make: Make) -> None:
    """It flushes and closes, the youngest handler first."""
    target = Recorder()
    handler = make(target)
    log(handler, *range(500))
    logging.shutdown([weakref.ref(target), weakref.ref(handler)])

    assert len(target.messages) == 500


def test_where_no_thread_can_be_started_the_caller_writes(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process at its limit of threads still logs."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    target = Recorder()
    handler = make(target)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        log(handler, "direct")
    assert target.messages == ["direct"]
    log(handler, "queued")
    handler.close()
    assert target.messages == ["direct", "queued"]


# --- configuration ---


def configuration(**handlers: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": handlers,
        "loggers": {
            "background-test": {
                "level": "DEBUG",
                "propagate": False,
                "handlers": [name for name in handlers if "queue" in name],
            }
        },
    }


def queue_of(*names: Any, **options: Any) -> dict[str, Any]:
    return {"class": "foundry_log.BackgroundHandler", "handlers": list(names), **options}


def file_at(path: Path) -> dict[str, Any]:
    return {"class": "logging.FileHandler", "filename": str(path), "mode": "w"}


@pytest.fixture
def configured() -> Iterator[logging.Logger]:
    """The logger of the configurations; what they make is closed at the end."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield logging.getLogger("background-test")
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
    root.setLevel(level)
    root.handlers[:] = handlers


def queue_behind(logger: logging.Logger) -> BackgroundHandler:
    (handler,) = (each for each in logger.handlers if isinstance(each, BackgroundHandler))
    return handler


@pytest.mark.parametrize("name", ["a_queue", "queue_z"])
def test_dict_config_takes_names_in_any_order(
    configured: logging.Logger, tmp_path: Path, name: str
) -> None:
    """It makes handlers by alphabet: the targets before or after the queue."""
    handlers = {name: queue_of("file", "other"), "file": file_at(tmp_path / "one")}
    handlers["other"] = file_at(tmp_path / "two")
    logging.config.dictConfig(configuration(**handlers))
    configured.info("there")
    queue_behind(configured).flush()

    assert (tmp_path / "one").read_text() == (tmp_path / "two").read_text() == "there\n"


def test_configuring_again_writes_what_is_queued(
    configured: logging.Logger, tmp_path: Path
) -> None:
    """The queue is closed before the file behind it, whichever was made first."""
    for name in ("one", "two"):
        handlers = {"a_queue": queue_of("file"), "file": file_at(tmp_path / name)}
        logging.config.dictConfig(configuration(**handlers))
        for n in range(2000):
            configured.info("%s %d", name, n)
    logging.config.dictConfig(configuration(a_queue=queue_of("file"), file=file_at(tmp_path / "3")))

    for name in ("one", "two"):
        assert (tmp_path / name).read_text().splitlines() == [f"{name} {n}" for n in range(2000)]


@pytest.mark.parametrize(
    ("handlers", "message"),
    [
        (["nowhere"], "there is no handler 'nowhere'; this configuration has a_queue"),
        ([], "handlers is empty"),
        ([5], "5 is no handler"),
        (5, "handlers=5 is no list"),
        (None, "handlers=None is no list"),
        ("nowhere", "there is no handler 'nowhere'"),
    ],
)
@pytest.mark.usefixtures("configured")
def test_wrong_handlers_are_refused_by_dict_config(handlers: Any, message: str) -> None:
    """At configuration, with what is wrong."""
    config = configuration(a_queue={**queue_of(), "handlers": handlers})
    with pytest.raises(ValueError, match="Unable to configure handler 'a_queue'") as caught:
        logging.config.dictConfig(config)
    assert message in str(caught.value.__cause__)


@pytest.mark.parametrize(
    "options",
    [{"capacity": 0}, {"overflow": "wait"}, {"flush_timeout_s": 0}, {"flush_timeout_s": -1}],
)
def test_values_out_of_range_are_refused(options: dict[str, Any]) -> None:
    """With the field and its value."""
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        BackgroundHandler(Recorder(), **options)


INI = """
[loggers]
keys=root,test
[formatters]
keys=
[handlers]
keys={keys}
[logger_root]
handlers=
[logger_test]
qualname=background-test
level=INFO
propagate=0
handlers=queue
[handler_file]
class=FileHandler
args=(r"{path}",)
[handler_queue]
class=foundry_log.BackgroundHandler
args=(["file"], 100, "drop_oldest")
"""


def test_an_ini_file_names_a_handler_listed_before(configured: logging.Logger, path: Path) -> None:
    """With the options in their order."""
    ini = path.with_name("logging.ini")
    ini.write_text(INI.format(keys="file,queue", path=path))
    logging.config.fileConfig(ini, disable_existing_loggers=False)
    handler = queue_behind(configured)
    configured.info("there")
    handler.close()
    handler.handlers[0].close()

    assert path.read_text() == "there\n"
    assert (handler.capacity, handler.overflow) == (100, "drop_oldest")


@pytest.mark.usefixtures("configured")
def test_an_ini_file_with_the_order_reversed_is_refused(path: Path) -> None:
    """It says what to do."""
    ini = path.with_name("logging.ini")
    ini.write_text(INI.format(keys="queue,file", path=path))
    with pytest.raises(ValueError, match=r"no handler 'file' yet.*in an ini file list it before"):
        logging.config.fileConfig(ini, disable_existing_loggers=False)


# --- ends of processes ---

ENDS = {
    "end": "",
    "sys.exit": "sys.exit(3)",
    "exception": "raise RuntimeError('unhandled')",
    "shutdown": "logging.shutdown()",
    "thread": "threading.Thread(target=lambda: [log.info('', extra={'n': n + 100}) "
    "for n in range(20) if not time.sleep(0.001)]).start()",
    "atexit": "import atexit; atexit.register(log.info, '', extra={'n': 100})",
}


@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_a_program_writes_what_is_queued(path: Path, end: str) -> None:
    """However it ends, and although the target is slow."""
    program = "serve(Slow())\nfor n in range(100): log.info('', extra={'n': n})\n" + ENDS[end]
    run(path, program)
    more = {"thread": 20, "atexit": 1}.get(end, 0)

    assert numbers(path) == list(range(100 + more))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_multiprocessing_write_what_is_queued(path: Path, method: str) -> None:
    """At their end, with the queue set up by the parent or by themselves."""
    program = f"""
import multiprocessing
def work(n):
    if not log.handlers: serve(Slow())
    for i in range(100): log.info("", extra={{"n": n * 100 + i}})
if __name__ == "__main__":
    if "{method}" == "fork": serve(Slow())
    context = multiprocessing.get_context("{method}")
    log.info("", extra={{"n": 200}})
    workers = [context.Process(target=work, args=(n,)) for n in range(2)]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    sys.exit(any(worker.exitcode for worker in workers))
"""
    code, _, err = run(path, program)

    assert (code, err) == (0, "")
    assert sorted(numbers(path)) == list(range(201 if method == "fork" else 200))


def test_a_pool_of_processes_writes_what_is_queued(path: Path) -> None:
    """That of concurrent.futures, whose workers end when it is shut down."""
    program = """
import concurrent.futures, multiprocessing
def work(n):
    if not log.handlers: serve(Slow())
    log.info("", extra={"n": n})
if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        list(pool.map(work, range(100)))
"""
    code, _, err = run(path, program)

    assert (code, err) == (0, "")
    assert sorted(numbers(path)) == list(range(100))


@pytest.mark.parametrize("locked", [True, False])
def test_a_target_that_never_returns_does_not_hold_the_end(path: Path, locked: bool) -> None:
    """Nor does its lock; what was not written is said on standard error."""
    program = f"""
stuck = Stuck()
if not {locked}: stuck.lock = None; stuck.handle = stuck.emit
handler = serve(stuck, flush_timeout_s=0.2)
for n in range(3): log.info("", extra={{"n": n}})
import atexit; atexit.register(log.info, "later")
"""
    code, _, err = run(path, program)

    assert code == 0
    assert "lost 4 records (TimeoutError: 4)" in err


def test_a_worker_that_is_stuck_says_so_too(path: Path) -> None:
    """A multiprocessing worker runs no `logging.shutdown`."""
    program = """
import multiprocessing
serve(Stuck(), flush_timeout_s=0.2)
worker = multiprocessing.get_context("fork").Process(target=log.info, args=("one",))
worker.start(); worker.join()
"""
    _, _, err = run(path, program)

    assert "lost 1 records (TimeoutError: 1)" in err


@pytest.mark.parametrize("capacity", [1, 7, 200])
def test_a_kill_loses_at_most_the_capacity(path: Path, capacity: int) -> None:
    """And what is missing is what came last."""
    program = f"""
serve(capacity={capacity})
n = 0
while True:
    log.info("", extra={{"n": n}})
    os.write(1, b"%d\\n" % n)
    n += 1
"""
    process = start(path, program)
    assert process.stdout is not None
    for _ in range(random.randrange(50, 1500)):
        process.stdout.readline()
    process.kill()
    out, _ = process.communicate(timeout=DEADLINE_S)
    acknowledged = int(out.splitlines()[-1]) if out.strip() else None
    with path.open("rb") as file:
        found = [json.loads(line)["context"]["n"] for line in file if line.endswith(b"}\n")]

    assert found == list(range(len(found)))
    if acknowledged is not None:
        assert acknowledged + 1 - len(found) <= capacity


# --- fork ---


def test_records_that_wait_at_a_fork_are_written_once(path: Path) -> None:
    """By the parent; the child starts with an empty queue."""
    program = """
serve(Slow())
for n in range(100): log.info("", extra={"n": n})
child = os.fork()
log.info("", extra={"n": 100 if child else 101})
if child: os.waitpid(child, 0)
"""
    code, _, err = run(path, program)

    assert (code, err) == (0, "")
    assert sorted(numbers(path)) == list(range(102))


def test_a_fork_copies_no_half_written_record(path: Path) -> None:
    """A buffered file behind the queue: the child would write the parent's buffer once more."""
    program = """
class Halves(logging.FileHandler):
    def emit(self, record):
        self.stream.write(f'{{"context": {{"n": {record.n}}}}}\\n')
        entered.set()
        time.sleep(0.002)  # the fork finds the record in the buffer
        self.flush()
entered = threading.Event()
serve(Halves(path))
n = 0
for _ in range(15):
    entered.clear()
    for _ in range(5):
        log.info("", extra={"n": n}); n += 1
    entered.wait()
    child = os.fork()
    if not child: sys.exit()
    os.waitpid(child, 0)
"""
    code, _, err = run(path, program)

    assert (code, err) == (0, "")
    assert numbers(path) == list(range(75))


def test_a_record_imports_nothing(path: Path) -> None:
    """In a forked child the lock of a module that another thread was importing is held for ever."""
    code, out, err = run(
        path,
        """
handler = serve()
before = set(sys.modules)
log.info("", extra={"n": 0})
handler.flush()
print({name for name in set(sys.modules) - before if name.startswith("concurrent")})
handler.close()
""",
    )
    assert (code, out.strip()) == (0, "set()"), err


def test_forks_while_other_threads_log(path: Path) -> None:
    """Many times, and with a queue that is full: no deadlock, and nothing lost or doubled."""
    program = """
serve(capacity=5)
stop = threading.Event()
counts = [0, 0, 0]
def work(t):
    while not stop.is_set():
        log.info("", extra={"n": t * 10**6 + counts[t]}); counts[t] += 1
threads = [threading.Thread(target=work, args=(t,)) for t in range(3)]
for thread in threads: thread.start()
for fork in range(40):
    child = os.fork()
    if not child:
        for n in range(3): log.info("", extra={"n": 10**7 + fork * 10 + n})
        for handler in log.handlers: handler.close()
        os._exit(0)
    os.waitpid(child, 0)
stop.set()
for thread in threads: thread.join()
print(*counts)
"""
    code, out, err = run(path, program)

    assert (code, err) == (0, "")
    expected = [t * 10**6 + n for t, count in enumerate(out.split()) for n in range(int(count))]
    expected += [10**7 + fork * 10 + n for fork in range(40) for n in range(3)]
    assert sorted(numbers(path)) == expected


def test_a_fork_does_not_wait_for_ever_for_a_target(path: Path) -> None:
    """Nor do threads that fork at the same time stop the queue."""
    program = """
class Gate(logging.Handler):
    gate = threading.Event()
    def emit(self, record):
        self.gate.wait(); target.handle(record)
serve(Gate(), capacity=2)
log.info("", extra={"n": 0})
def fork():
    child = os.fork()
    if not child: os._exit(0)
    os.waitpid(child, 0)
threads = [threading.Thread(target=fork) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
Gate.gate.set()
for n in range(1, 20): log.info("", extra={"n": n})
"""
    code, _, err = run(path, program)

    assert (code, err) == (0, "")
    assert numbers(path) == list(range(20))


def test_a_hook_inside_a_fork_may_log_into_a_full_queue(path: Path) -> None:
    """The thread stands still until the fork is over: the call must not wait for it."""
    program = """
handler = serve(Slow(), capacity=1)
def hook(): [log.info("", extra={"n": n}) for n in range(5, 10)]
for n in range(5): log.info("", extra={"n": n})
handler._before_fork()
hook()
handler._after_fork_in_parent()
"""
    code, _, err = run(path, program)

    assert (code, err) == (0, "")
    assert numbers(path) == list(range(10))


@pytest.mark.parametrize("how", ["half full", "flush", "close"])
def test_a_napping_thread_is_woken_when_it_matters(
    make: Make, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Before records are dropped or waited for; otherwise nobody has the trouble."""
    monkeypatch.setattr("foundry_log.handlers.background._NAP_S", 60.0)
    target = Recorder()
    handler = make(target, capacity=4, overflow="drop_newest")
    log(handler, "one")
    deadline = time.monotonic() + DEADLINE_S
    while not handler._is_napping or target.messages != ["one"]:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    log(handler, "two")
    with handler._lock:
        assert handler._is_napping
    if how == "half full":
        log(handler, "three")
        while len(target.messages) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    elif how == "flush":
        handler.flush()
    else:
        handler.close()

    assert target.messages == ["one", "two", "three"][: 3 if how == "half full" else 2]
    assert not handler.dropped


def test_a_record_that_is_kept_is_kept_on_its_short_way_too(make: Make, tmp_path: Path) -> None:
    """Before handlers that need no record a queue holds none; the last one of a signal stays."""
    target = RotatingJsonlHandler(tmp_path / "run.jsonl")
    handler = make(target, capacity=1, overflow="drop_newest")
    target.acquire()
    try:
        log(handler, "at work", "dropped")
        log(handler, "why", **{KEPT: True})
    finally:
        target.release()
    handler.flush()
    target.close()

    messages = [line["message"] for line in read_jsonl(tmp_path / "run.jsonl")]
    assert [text for text in messages if "were dropped" not in text] == ["at work", "why"]
    assert handler.dropped == {"INFO": 1}
