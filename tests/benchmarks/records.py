"""Records: structured, plain, disabled, and with an exception."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.checks import counted, json_lines, nothing_but, text_lines
from tests.benchmarks.goals import Goal
from tests.benchmarks.harness import Comparison, Contender, Run, Start, Subject
from tests.benchmarks.loggers import (
    BOUND,
    CALL,
    JSON_FORMATTERS,
    JSON_LAYOUT,
    MESSAGE,
    RECORD_LIMIT,
    RECORD_LINE,
    dict_calls,
    extra_calls,
    fast,
    file_handler,
    json_formatter,
    keyword_calls,
    limit,
    loguru_logger,
    our_formatter,
    our_handler,
    our_logger,
    picologging_logger,
    stdlib_logger,
    structlog_logger,
    text_formatter,
)

# --- structured: context as keywords --------------------------------------------------------------


def structured_ours(directory: Path, **layout: Any) -> Iterator[Subject]:
    path = directory / "ours.jsonl"
    with stdlib_logger(our_handler(path), our_formatter({})):
        fields = {**BOUND, **CALL}
        check = json_lines(path, fields, at=("context",), texts=(MESSAGE,), **layout)
        yield Subject(keyword_calls(our_logger()), check)


def structured_structlog(directory: Path, **layout: Any) -> Iterator[Subject]:
    path = directory / "structlog.jsonl"
    log, file = structlog_logger(path)
    yield Subject(
        keyword_calls(log), json_lines(path, {**BOUND, **CALL}, texts=(MESSAGE,), **layout)
    )
    file.close()


def structured_loguru(directory: Path, **layout: Any) -> Iterator[Subject]:
    path = directory / "loguru.jsonl"
    log = loguru_logger(path)
    fields = {**BOUND, **CALL}
    check = json_lines(path, fields, at=("record", "extra"), texts=(MESSAGE,), **layout)
    yield Subject(keyword_calls(log), check)
    log.remove()


def structured_picologging(directory: Path) -> Iterator[Subject]:
    path = directory / "picologging.jsonl"
    log, handler = picologging_logger(path)
    yield Subject(dict_calls(log), json_lines(path, {**BOUND, **CALL}, texts=(MESSAGE,)))
    handler.close()


# --- plain: the stdlib's call with `extra` --------------------------------------------------------


def plain(
    handler: Callable[[Path], logging.Handler],
    formatter: Callable[[Mapping[str, Any]], logging.Formatter],
    bound: Mapping[str, Any],
    *,
    at: tuple[str, ...] | None = (),
    **layout: Any,
) -> Start:
    """Return what starts a stdlib logger with this handler and formatter.

    Args:
        handler: makes the handler of a path.
        formatter: makes the formatter of the bound fields.
        bound: fields that the formatter has as constants.
        at: where in a line the fields are, as of `json_lines`; None for plain text.
        layout: more of `json_lines`'s arguments.
    """

    def start(directory: Path) -> Iterator[Subject]:
        path = directory / "stdlib.log"
        with stdlib_logger(handler(path), formatter(bound)) as log:
            check = text_lines(path, MESSAGE, "phase=train", numbered=True)
            if at is not None:
                check = json_lines(path, {**bound, **CALL}, at=at, texts=(MESSAGE,), **layout)
            yield Subject(extra_calls(log), check)

    return start


def stdlib_peers(bound: Mapping[str, Any], **layout: Any) -> tuple[Contender, ...]:
    """Return the stdlib with plain text and with each encoder of python-json-logger."""
    return (
        Contender("stdlib FileHandler, text", plain(file_handler, text_formatter, {}, at=None)),
        *(
            Contender(
                f"stdlib + python-json-logger {encoder}",
                plain(file_handler, json_formatter(encoder), bound, **layout),
                needs=("pythonjsonlogger", encoder),
            )
            for encoder in JSON_FORMATTERS
        ),
    )


STRUCTURED = Comparison(
    "structured",
    "a record with five fields, context bound before, visible at once",
    (
        RECORD_LIMIT,
        Contender("foundry_log StructuredLogger", structured_ours, role="ours", goal=Goal(3.0)),
        Contender("structlog, orjson", structured_structlog, needs=("structlog", "orjson")),
        Contender("loguru serialize", structured_loguru, needs=("loguru",)),
        Contender("picologging + orjson", structured_picologging, needs=("picologging", "orjson")),
        *stdlib_peers(BOUND),
    ),
)

PLAIN = Comparison(
    "plain",
    "logging.getLogger().info(..., extra=five fields), visible at once",
    (
        RECORD_LIMIT,
        Contender(
            "foundry_log formatter and handler",
            plain(our_handler, our_formatter, {}, at=("context",)),
            role="ours",
            goal=Goal(4.5),
        ),
        Contender(
            "foundry_log, fast loggers opted in",
            fast(plain(our_handler, our_formatter, {}, at=("context",))),
            role="ours",
            goal=Goal(3.0),
        ),
        Contender(
            "foundry_log formatter, FileHandler",
            plain(file_handler, our_formatter, {}, at=("context",)),
            role="ours",
        ),
        *stdlib_peers({}),
    ),
)


# --- disabled: a call below the level -------------------------------------------------------------


def disabled_limit(directory: Path) -> Iterator[Subject]:
    def info(message: str, /, **fields: Any) -> None:
        pass

    calls = 0

    def run(steps: range) -> None:
        nonlocal calls
        for step in steps:
            info(MESSAGE, step=step, loss=2.5, lr=0.0003, epoch=1, phase="train")
        calls += len(steps)

    yield Subject(run, counted(lambda: calls))


def disabled_ours(directory: Path) -> Iterator[Subject]:
    path = directory / "ours.jsonl"
    with stdlib_logger(our_handler(path), our_formatter({})) as logger:
        logger.setLevel(logging.WARNING)
        log = our_logger()
        last = nothing_but(path, lambda: log.warning(MESSAGE), MESSAGE)
        yield Subject(keyword_calls(log), last)


def disabled_stdlib(directory: Path) -> Iterator[Subject]:
    path = directory / "stdlib.log"
    formatter = logging.Formatter(JSON_LAYOUT)
    with stdlib_logger(file_handler(path), formatter) as log:
        log.setLevel(logging.WARNING)
        yield Subject(extra_calls(log), nothing_but(path, lambda: log.warning(MESSAGE), MESSAGE))


def disabled_structlog(directory: Path) -> Iterator[Subject]:
    path = directory / "structlog.jsonl"
    log, file = structlog_logger(path, logging.WARNING)
    yield Subject(keyword_calls(log), nothing_but(path, lambda: log.warning(MESSAGE), MESSAGE))
    file.close()


def disabled_loguru(directory: Path) -> Iterator[Subject]:
    path = directory / "loguru.jsonl"
    log = loguru_logger(path, "WARNING")
    yield Subject(keyword_calls(log), nothing_but(path, lambda: log.warning(MESSAGE), MESSAGE))
    log.remove()


def disabled_picologging(directory: Path) -> Iterator[Subject]:
    path = directory / "picologging.jsonl"
    log, handler = picologging_logger(path, logging.WARNING)
    last = nothing_but(path, lambda: log.warning({"message": MESSAGE}), MESSAGE)
    yield Subject(dict_calls(log), last)
    handler.close()


DISABLED = Comparison(
    "disabled",
    "a call with five fields below the level",
    (
        Contender("limit: an empty function", disabled_limit, role="limit"),
        Contender(
            "foundry_log StructuredLogger",
            disabled_ours,
            role="ours",
            goal=Goal(1.0, than="stdlib, extra"),
        ),
        Contender("stdlib, extra", disabled_stdlib),
        Contender("structlog", disabled_structlog, needs=("structlog", "orjson")),
        Contender("loguru", disabled_loguru, needs=("loguru",)),
        Contender("picologging", disabled_picologging, needs=("picologging", "orjson")),
    ),
    count=200_000,
    quick=2_000,
)


# --- exception: the record of an except block -----------------------------------------------------

ERROR = "loss is not finite"
TRACEBACK = (ERROR, "in _epoch", "in _forward", "in _loss")


def _epoch() -> None:
    _step()


def _step() -> None:
    _forward()


def _forward() -> None:
    _loss()


def _loss() -> None:
    raise ValueError(ERROR)


def caught(call: Callable[[int], object]) -> Run:
    """Return a run that calls for each step in one `except` block, five frames above the error."""

    def run(steps: range) -> None:
        try:
            _epoch()
        except ValueError:
            for step in steps:
                call(step)

    return run


def _finished_error() -> dict[str, Any]:
    import traceback

    try:
        _epoch()
    except ValueError:
        text = traceback.format_exc()
    error = {"type": "ValueError", "message": ERROR, "traceback": text}
    return {**RECORD_LINE, "level": "ERROR", "exception": error}


def exception_ours(directory: Path) -> Iterator[Subject]:
    path = directory / "ours.jsonl"
    with stdlib_logger(our_handler(path), our_formatter({})):
        log = our_logger()
        run = caught(lambda step: log.exception(MESSAGE, step=step, **CALL))
        yield Subject(run, json_lines(path, {**BOUND, **CALL}, at=("context",), texts=TRACEBACK))


def exception_stdlib(
    handler: Callable[[Path], logging.Handler],
    formatter: Callable[[Mapping[str, Any]], logging.Formatter],
    *,
    at: tuple[str, ...] | None = (),
) -> Start:
    """Return what starts a stdlib logger that logs the exception; arguments as of `plain`."""

    def start(directory: Path) -> Iterator[Subject]:
        path = directory / "stdlib.log"
        with stdlib_logger(handler(path), formatter({})) as log:
            run = caught(lambda step: log.exception(MESSAGE, extra={"step": step, **CALL}))
            check = text_lines(path, MESSAGE, f"ValueError: {ERROR}", "in _epoch", "in _loss")
            if at is not None:
                check = json_lines(path, CALL, at=at, texts=TRACEBACK)
            yield Subject(run, check)

    return start


def exception_structlog(directory: Path) -> Iterator[Subject]:
    path = directory / "structlog.jsonl"
    log, file = structlog_logger(path)
    run = caught(lambda step: log.exception(MESSAGE, step=step, **CALL))
    yield Subject(run, json_lines(path, {**BOUND, **CALL}, texts=TRACEBACK))
    file.close()


def exception_loguru(directory: Path) -> Iterator[Subject]:
    path = directory / "loguru.jsonl"
    log = loguru_logger(path)
    run = caught(lambda step: log.exception(MESSAGE, step=step, **CALL))
    yield Subject(run, json_lines(path, {**BOUND, **CALL}, at=("record", "extra"), texts=TRACEBACK))
    log.remove()


EXCEPTION = Comparison(
    "exception",
    "a record with five fields and an exception five frames deep",
    (
        limit(_finished_error(), fields={**BOUND, **CALL}, at=("context",), texts=TRACEBACK),
        Contender(
            "foundry_log StructuredLogger",
            exception_ours,
            role="ours",
            goal=Goal(0.5, than="stdlib FileHandler, text"),
        ),
        Contender(
            "foundry_log formatter and handler",
            exception_stdlib(our_handler, our_formatter, at=("context",)),
            role="ours",
            goal=Goal(0.5, than="stdlib FileHandler, text"),
        ),
        Contender(
            "stdlib FileHandler, text", exception_stdlib(file_handler, text_formatter, at=None)
        ),
        Contender(
            "stdlib + python-json-logger orjson",
            exception_stdlib(file_handler, json_formatter("orjson")),
            needs=("pythonjsonlogger", "orjson"),
        ),
        Contender("structlog, orjson", exception_structlog, needs=("structlog", "orjson")),
        Contender("loguru serialize", exception_loguru, needs=("loguru",)),
    ),
    count=5_000,
    quick=50,
)
