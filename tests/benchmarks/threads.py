"""Four threads that write one file at once."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.goals import Goal
from tests.benchmarks.harness import Comparison, Contender, Run, Start, Subject
from tests.benchmarks.loggers import (
    BOUND,
    RECORD_LIMIT,
    file_handler,
    json_formatter,
    our_formatter,
    our_handler,
    text_formatter,
)
from tests.benchmarks.records import (
    plain,
    structured_loguru,
    structured_ours,
    structured_structlog,
)

THREADS = 4


def threaded(start: Start) -> Start:
    """Return what starts the same contender, each run shared by the threads."""

    def begin(directory: Path) -> Iterator[Subject]:
        for subject in start(directory):
            yield Subject(shared(subject.run), subject.check)

    return begin


def shared(run: Run) -> Run:
    """Return the run by threads, each with its part of the steps."""

    def all_threads(steps: range) -> None:
        crew = [
            threading.Thread(target=run, args=(steps[number::THREADS],))
            for number in range(THREADS)
        ]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()

    return all_threads


THREADS_WORKLOAD = Comparison(
    "threads",
    f"a record with five fields by {THREADS} threads into one file; wall time over all records",
    (
        Contender(RECORD_LIMIT.name, threaded(RECORD_LIMIT.start), role="limit"),
        Contender("limit, but one thread", RECORD_LIMIT.start, role="limit"),
        Contender(
            "foundry_log StructuredLogger",
            threaded(functools.partial(structured_ours, in_any_order=True)),
            role="ours",
            goal=Goal(2.5),
        ),
        Contender(
            "foundry_log formatter and handler",
            threaded(plain(our_handler, our_formatter, {}, at=("context",), in_any_order=True)),
            role="ours",
        ),
        Contender(
            "structlog, orjson",
            threaded(functools.partial(structured_structlog, in_any_order=True)),
            needs=("structlog", "orjson"),
        ),
        Contender(
            "loguru serialize",
            threaded(functools.partial(structured_loguru, in_any_order=True)),
            needs=("loguru",),
        ),
        Contender(
            "stdlib FileHandler, text", threaded(plain(file_handler, text_formatter, {}, at=None))
        ),
        Contender(
            "stdlib + python-json-logger orjson",
            threaded(plain(file_handler, json_formatter("orjson"), BOUND, in_any_order=True)),
            needs=("pythonjsonlogger", "orjson"),
        ),
    ),
)
