"""The caller's side of a queue: what a logging call costs while a thread does the writing."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import queue
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tests.benchmarks.checks import json_lines
from tests.benchmarks.goals import Goal
from tests.benchmarks.harness import Comparison, Contender, Run, Start, Subject
from tests.benchmarks.loggers import (
    BOUND,
    CALL,
    MESSAGE,
    RECORD_LIMIT,
    extra_calls,
    fast,
    file_handler,
    json_formatter,
    keyword_calls,
    loguru_logger,
    our_formatter,
    our_handler,
    our_logger,
    stdlib_logger,
)

BURST = 2_000
CAPACITY = 100_000
PAUSE_S = 0.001
Drain = Callable[[], object]
Pace = Callable[[Run, Drain], Run]
Sink = Callable[[Path], AbstractContextManager[tuple[Any, Drain]]]


# --- when the calls come --------------------------------------------------------------------------


def in_bursts(run: Run, drain: Drain) -> Run:
    """Return the run in bursts; the queue is drained in between, outside of the time."""

    def timed(steps: range) -> int:
        total_ns = 0
        for first in range(0, len(steps), BURST):
            started = time.perf_counter_ns()
            run(steps[first : first + BURST])
            total_ns += time.perf_counter_ns() - started
            drain()
        return total_ns

    return timed


def paced(run: Run, drain: Drain) -> Run:
    """Return the run at a call a millisecond, of which the calls alone are timed."""

    def timed(steps: range) -> int:
        total_ns = 0
        for number in range(len(steps)):
            time.sleep(PAUSE_S)
            started = time.perf_counter_ns()
            run(steps[number : number + 1])
            total_ns += time.perf_counter_ns() - started
        drain()
        return total_ns

    return timed


# --- where they go --------------------------------------------------------------------------------


@contextlib.contextmanager
def our_queue(path: Path) -> Iterator[tuple[Any, Drain]]:
    """Our queue before our handler."""
    from foundry_log import BackgroundHandler

    target = our_handler(path)
    target.setFormatter(our_formatter({}))
    handler = BackgroundHandler(target, capacity=CAPACITY)
    with stdlib_logger(handler, None) as logger:
        yield logger, handler.flush
    target.close()


@contextlib.contextmanager
def our_file(path: Path) -> Iterator[tuple[Any, Drain]]:
    """Our handler, and no queue."""
    with stdlib_logger(our_handler(path), our_formatter({})) as logger:
        yield logger, _nothing


@contextlib.contextmanager
def stdlib_queue(path: Path) -> Iterator[tuple[Any, Drain]]:
    """The stdlib's queue before its handler of a file."""
    target = file_handler(path)
    target.setFormatter(json_formatter("orjson")({}))
    records: queue.Queue[Any] = queue.Queue(-1)
    listener = logging.handlers.QueueListener(records, target)
    listener.start()
    with stdlib_logger(logging.handlers.QueueHandler(records), None) as logger:
        yield logger, records.join
    listener.stop()
    target.close()


def _nothing() -> None:
    pass


def structured(sink: Sink, pace: Pace) -> Start:
    """Return what starts a StructuredLogger over the sink."""

    def start(directory: Path) -> Iterator[Subject]:
        path = directory / "run.jsonl"
        with sink(path) as (_, drain):
            check = json_lines(path, {**BOUND, **CALL}, at=("context",), texts=(MESSAGE,))
            yield Subject(pace(keyword_calls(our_logger()), drain), check)

    return start


def plain(sink: Sink, pace: Pace, at: tuple[str, ...] = ("context",)) -> Start:
    """Return what starts a plain logger over the sink."""

    def start(directory: Path) -> Iterator[Subject]:
        path = directory / "run.jsonl"
        with sink(path) as (log, drain):
            check = json_lines(path, CALL, at=at, texts=(MESSAGE,))
            yield Subject(pace(extra_calls(log), drain), check)

    return start


def limit(pace: Pace) -> Start:
    """Return the limit of a direct record, at this pace."""

    def start(directory: Path) -> Iterator[Subject]:
        for subject in RECORD_LIMIT.start(directory):
            yield Subject(pace(subject.run, _nothing), subject.check)

    return start


def loguru(pace: Pace) -> Start:
    """Return what starts loguru with its own queue."""

    def start(directory: Path) -> Iterator[Subject]:
        path = directory / "loguru.jsonl"
        log = loguru_logger(path, enqueue=True)
        check = json_lines(path, {**BOUND, **CALL}, at=("record", "extra"), texts=(MESSAGE,))
        yield Subject(pace(keyword_calls(log), log.complete), check)
        log.remove()

    return start


_STDLIB = "stdlib QueueHandler + python-json-logger orjson"


def _contenders(pace: Pace) -> tuple[Contender, ...]:
    goal = Goal(1 / 3, than=_STDLIB)
    return (
        Contender(RECORD_LIMIT.name, limit(pace), role="limit"),
        Contender(
            "foundry_log BackgroundHandler, StructuredLogger",
            structured(our_queue, pace),
            role="ours",
            goal=goal,
        ),
        Contender(
            "foundry_log BackgroundHandler, plain logger",
            plain(our_queue, pace),
            role="ours",
            goal=goal,
        ),
        Contender(
            "foundry_log BackgroundHandler, plain logger, fast loggers",
            fast(plain(our_queue, pace)),
            role="ours",
            goal=goal,
        ),
        Contender("foundry_log direct, StructuredLogger", structured(our_file, pace), role="ours"),
        Contender("foundry_log direct, plain logger", plain(our_file, pace), role="ours"),
        Contender(_STDLIB, plain(stdlib_queue, pace, ()), needs=("pythonjsonlogger", "orjson")),
        Contender("loguru serialize, enqueue", loguru(pace), needs=("loguru",)),
    )


BACKGROUND = Comparison(
    "background",
    f"the caller's side of a queue, in bursts of {BURST:,} records",
    _contenders(in_bursts),
)

BACKGROUND_PACED = Comparison(
    "background_paced",
    "the caller's side of a queue, at one record a millisecond",
    _contenders(paced),
    count=1_000,
    quick=50,
    repeats=5,
)
