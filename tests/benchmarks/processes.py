"""Four processes that write one rotating file at once."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.benchmarks.checks import expect, strict_object
from tests.benchmarks.goals import Goal
from tests.benchmarks.harness import Comparison, Contender, Subject
from tests.benchmarks.loggers import (
    CALL,
    LIMIT_ENCODER,
    MESSAGE,
    RECORD_LINE,
    limit_encoder,
    our_formatter,
    our_logger,
)
from tests.benchmarks.rotation import ENCODER, ENCODER_NEEDS, MAX_BYTES, FinishedLine

PROCESSES = 4
BACKUPS = 200  # enough for every line to be there at the end
Log = Callable[[int], None]


def _serve(make: Callable[[Path], Log], directory: Path, orders: Connection) -> None:
    """Log the steps that are asked for, until None is."""
    log = make(directory)
    while (steps := orders.recv()) is not None:
        for step in steps:
            log(step)
        orders.send(None)


def sharing(make: Callable[[Path], Log]) -> Callable[[Path], Iterator[Subject]]:
    """Return what starts the processes; each sets up a logger of its own with `make`."""

    def start(directory: Path) -> Iterator[Subject]:
        context = multiprocessing.get_context("fork")
        crew = []
        for _ in range(PROCESSES):
            here, there = context.Pipe()
            # A daemon ends with the contender, also where that goes wrong.
            process = context.Process(target=_serve, args=(make, directory, there), daemon=True)
            process.start()
            crew.append((process, here))

        def run(steps: range) -> None:
            for number, (_, orders) in enumerate(crew):
                orders.send(steps[number::PROCESSES])
            for _, orders in crew:
                orders.recv()

        yield Subject(run, lambda count: check(directory, count))
        for process, orders in crew:
            orders.send(None)
            process.join()

    return start


def check(directory: Path, count: int) -> None:
    """Each step stands once, on a line of its own, and no file is far beyond its size.

    A blank line is none: our handler ends what it finds unended when it opens a file, and that may
    be a line that another process is just writing.
    """
    steps = []
    for path in directory.iterdir():
        if path.name.startswith("."):
            continue
        content = path.read_bytes()
        expect(len(content) <= MAX_BYTES + 4_000, f"{path.name} has {len(content)} bytes")
        for line in content.splitlines():
            if not line:
                continue
            found: Any = strict_object(line)
            found = found.get("context", found)
            expect(all(found.get(name) == CALL[name] for name in CALL), f"{line[:200]!r}")
            steps.append(found["step"])
    expect(sorted(steps) == list(range(count)), f"{len(steps)} lines of {count} steps")


def _limit(directory: Path) -> Log:
    """A finished dict encoded and appended; a file of another number each MB, as if rotated."""
    encode, write = limit_encoder(), os.write
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    length = len(encode(RECORD_LINE)) + 20
    descriptors: list[int] = []
    finished: dict[str, Any] = {**RECORD_LINE, "context": {"step": 0, **CALL}}
    context = finished["context"]

    def log(step: int) -> None:
        number = step * length // MAX_BYTES
        while len(descriptors) <= number:
            descriptors.append(os.open(directory / f"limit.{len(descriptors)}", flags))
        context["step"] = step
        write(descriptors[number], encode(finished) + b"\n")

    return log


def _logger(handler: logging.Handler, formatter: logging.Formatter) -> Log:
    handler.setFormatter(formatter)
    logger = logging.Logger("bench", logging.INFO)
    logger.addHandler(handler)
    return lambda step: logger.info(MESSAGE, extra={"step": step, **CALL})


def _ours(directory: Path) -> Log:
    return _logger(_our_handler(directory), our_formatter({}))


def _ours_structured(directory: Path) -> Log:
    handler = _our_handler(directory)
    handler.setFormatter(our_formatter({}))
    logger = our_logger()
    logger.logger.propagate = False
    logger.logger.setLevel(logging.INFO)
    logger.logger.addHandler(handler)
    return lambda step: logger.info(MESSAGE, step=step, **CALL)


def _our_handler(directory: Path) -> logging.Handler:
    from foundry_log import RotatingJsonlHandler

    return RotatingJsonlHandler(
        directory / "run.jsonl", maxBytes=MAX_BYTES, backupCount=BACKUPS, stable_names=True
    )


def _ours_alone(directory: Path) -> Log:
    handler = _our_handler(directory)
    handler.setFormatter(FinishedLine())
    record = logging.makeLogRecord({})

    def log(step: int) -> None:
        record.__dict__["step"] = step
        handler.handle(record)

    return log


def _concurrent(directory: Path) -> Log:
    from concurrent_log_handler import ConcurrentRotatingFileHandler

    handler: logging.Handler = ConcurrentRotatingFileHandler(
        str(directory / "run.jsonl"), maxBytes=MAX_BYTES, backupCount=BACKUPS
    )
    return _logger(handler, ENCODER({}))


PROCESSES_WORKLOAD = Comparison(
    "processes",
    f"a plain record with five fields, by {PROCESSES} processes into one file rotated at 1 MB",
    (
        Contender(f"limit: {LIMIT_ENCODER} + os.write", sharing(_limit), role="limit"),
        Contender("foundry_log", sharing(_ours), role="ours", goal=Goal(2.5)),
        Contender(
            "foundry_log StructuredLogger",
            sharing(_ours_structured),
            role="ours",
            goal=Goal(2.5),
        ),
        Contender("foundry_log, the handler alone", sharing(_ours_alone), role="ours"),
        Contender(
            "concurrent-log-handler + orjson",
            sharing(_concurrent),
            needs=("concurrent_log_handler", *ENCODER_NEEDS),
        ),
    ),
    count=80_000,
    quick=800,
    batches=4,
    repeats=5,
)
