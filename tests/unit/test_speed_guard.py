"""A guard against gross regressions: the work that a call does is counted, and never timed."""

from __future__ import annotations

import itertools
import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from foundry_log import (
    BackgroundHandler,
    JsonFormatter,
    LoggingConfig,
    MetricsLogger,
    PerformanceLogger,
    RedactingFilter,
    RotatingJsonlHandler,
    SinkHandler,
    StructuredLogger,
    configure,
)

pytestmark = pytest.mark.unit

MEASURED = {
    "structured": (115, 36),
    "nested": (423, 105),
    "plain": (259, 74),
    "disabled": (2, 5),
    "exception": (456, 158),
    "three_outputs": (386, 142),
    "background": (98, 38),
    "log_step": (108, 38),
    "tracked_step": (293, 119),
    "time_block": (20, 10),
}
"""Lines run and functions called, Python's and C's, by one operation of Python 3.13; the others
from 3.10 on differ by some percent. A failure prints what to write here."""

MARGIN = 1.5
"""More than versions differ, and less than work that is done twice."""

Call = Callable[[], object]


# --- what one operation does ----------------------------------------------------------------------


@contextmanager
def _logger(handler: logging.Handler) -> Iterator[logging.Logger]:
    """Yield the logger "guard" at INFO over this one handler."""
    logger = logging.getLogger("guard")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)
    handler.close()
    logger.propagate = True


def _file(directory: Path) -> logging.Handler:
    handler = RotatingJsonlHandler(directory / "run.jsonl")
    handler.setFormatter(JsonFormatter())
    return handler


def _structured() -> StructuredLogger:
    return StructuredLogger("guard", SimpleNamespace(experiment_name="guard"))


def structured(directory: Path) -> Iterator[Call]:
    with _logger(_file(directory)):
        log = _structured()
        yield lambda: log.info("Step done", step=1, loss=2.5, lr=0.0003, epoch=1, phase="train")


def nested(directory: Path) -> Iterator[Call]:
    layers = [{"name": f"layer {number}", "norms": [0.5, 1.25, 2.5]} for number in range(8)]
    with _logger(_file(directory)):
        log = _structured()
        yield lambda: log.info("Step done", step=1, layers=layers)


def plain(directory: Path) -> Iterator[Call]:
    fields = {"step": 1, "loss": 2.5, "lr": 0.0003, "epoch": 1, "phase": "train"}
    with _logger(_file(directory)) as logger:
        yield lambda: logger.info("Step done", extra=fields)


def disabled(directory: Path) -> Iterator[Call]:
    with _logger(_file(directory)):
        log = _structured()
        yield lambda: log.debug("Step done", step=1, loss=2.5, lr=0.0003, epoch=1, phase="train")


def exception(directory: Path) -> Iterator[Call]:
    with _logger(_file(directory)):
        log = _structured()
        try:
            raise ValueError("loss is not finite")
        except ValueError:
            yield lambda: log.exception("Step failed", step=1)


def three_outputs(directory: Path) -> Iterator[Call]:
    root = logging.getLogger()
    others, root.handlers = root.handlers, []  # pytest's, for which there is the long way
    with (directory / "console").open("w") as console, redirect_stderr(console):
        with configure(LoggingConfig(), directory):
            log = _structured()
            yield lambda: log.info("Step done", step=1, loss=2.5, lr=0.0003, epoch=1, phase="train")
    root.handlers = others


def background(directory: Path) -> Iterator[Call]:
    with _logger(BackgroundHandler(_file(directory))):
        log = _structured()
        yield lambda: log.info("Step done", step=1, loss=2.5, lr=0.0003, epoch=1, phase="train")


def log_step(directory: Path) -> Iterator[Call]:
    yield from _steps(directory, "guard")


def tracked_step(directory: Path) -> Iterator[Call]:
    """Of these the caller's side: what the tracker's thread does is not counted."""
    sink = SinkHandler()
    logger = logging.getLogger("foundry_log.metrics.tracked")
    logger.addHandler(sink)
    yield from _steps(directory, "tracked")
    logger.removeHandler(sink)
    sink.close()


def _steps(directory: Path, experiment: str) -> Iterator[Call]:
    logging.getLogger("foundry_log.metrics").setLevel(logging.WARNING)
    redacts, RedactingFilter.is_used = RedactingFilter.is_used, False  # by other tests
    names = ("loss", "grad_norm", *(f"metric_{number}" for number in range(6)))
    metrics = dict.fromkeys(names, 0.125)
    log, steps = MetricsLogger(experiment, directory), itertools.count()
    yield lambda: log.log_step(next(steps), 1, metrics)
    log.close()
    RedactingFilter.is_used = redacts


def time_block(directory: Path) -> Iterator[Call]:
    logger = logging.getLogger("guard")
    logger.setLevel(logging.WARNING)
    performance = PerformanceLogger(logger)

    def block() -> None:
        with performance.time_block("forward"):
            pass

    yield block


OPERATIONS = {
    start.__name__: contextmanager(start)
    for start in (
        structured,
        nested,
        plain,
        disabled,
        exception,
        three_outputs,
        background,
        log_step,
        tracked_step,
        time_block,
    )
}


# --- counting -------------------------------------------------------------------------------------


def work(call: Call) -> tuple[int, int]:
    """Return lines and functions; of a few calls the least, so that what is done now and then, as a
    look at the clock's next second, does not count.
    """
    for _ in range(20):
        call()
    return min(_lines(call) for _ in range(5)), min(_functions(call) for _ in range(5))


def _lines(call: Call) -> int:
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()  # that of coverage
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def _functions(call: Call) -> int:
    count = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_does_not_do_much_more_than_it_did(operation: str, tmp_path: Path) -> None:
    """Lines and function calls stay within half as much again of the table."""
    with OPERATIONS[operation](tmp_path) as call:
        done = work(call)
    for found, measured in zip(done, MEASURED[operation], strict=True):
        assert found <= math.ceil(MARGIN * measured), f'"{operation}": {done},'


@pytest.mark.parametrize("operation", OPERATIONS)
def test_work_that_is_done_twice_is_noticed(operation: str, tmp_path: Path) -> None:
    """The guard's proof; it fails too when the table has grown generous: write what it prints."""
    with OPERATIONS[operation](tmp_path) as call:
        once = work(call)
        twice = work(lambda: (call(), call()))
    for found, measured in zip(twice, MEASURED[operation], strict=True):
        assert found > math.ceil(MARGIN * measured), f'"{operation}": {once},'
