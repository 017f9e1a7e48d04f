"""Records: structured, plain, disabled, and with an exception.

Each contender writes the same facts: time, level, logger, message, three fields that are bound once
and five that the call gives. Where a logger cannot bind, its formatter has the three as constants,
which is to its advantage.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.benchmarks.checks import counted, json_lines, nothing_but, text_lines
from tests.benchmarks.harness import Comparison, Contender, Subject

MESSAGE = "Step done"
BOUND = {"experiment": "bench", "git_hash": "4f1c" * 10, "device": "cuda:0"}
CALL = {"loss": 2.5, "lr": 0.0003, "epoch": 1, "phase": "train"}  # and `step`, the fifth
STAMP = "2026-11-21T06:23:11.123456+00:00"
JSON_LAYOUT = "%(asctime)s %(levelname)s %(name)s %(message)s"
TEXT_LAYOUT = (
    "%(asctime)s %(levelname)s %(name)s %(message)s "
    "step=%(step)s loss=%(loss)s lr=%(lr)s epoch=%(epoch)s phase=%(phase)s"
)
Writer = Callable[[str, dict[str, Any]], None]


# --- the limit ------------------------------------------------------------------------------------

LIMIT_ENCODER = "orjson" if importlib.util.find_spec("orjson") else "msgspec"


def limit_encoder() -> Callable[[Any], bytes]:
    """Return orjson's encoder, or msgspec's where orjson is missing."""
    if LIMIT_ENCODER == "orjson":
        import orjson

        return orjson.dumps
    import msgspec

    return msgspec.json.encode


def limit(line: Mapping[str, Any], **layout: Any) -> Contender:
    """Return the limit for a line in a file: a finished dict encoded and given to the kernel.

    Args:
        line: the dict.
        layout: as of `json_lines`: the fields to check and where they are.
    """

    def start(directory: Path) -> Iterator[Subject]:
        path = directory / "limit.jsonl"
        encode, write = limit_encoder(), os.write
        finished = dict(line)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

        def run(steps: range) -> None:
            for _ in steps:
                write(descriptor, encode(finished) + b"\n")

        yield Subject(run, json_lines(path, numbered=False, **layout))
        os.close(descriptor)

    return Contender(f"limit: {LIMIT_ENCODER} + os.write", start, role="limit")


RECORD_LINE = {
    "timestamp": STAMP,
    "level": "INFO",
    "logger": "bench",
    "message": MESSAGE,
    "context": {**BOUND, "step": 100, **CALL},
}
RECORD_LIMIT = limit(RECORD_LINE, fields={**BOUND, **CALL}, at=("context",), texts=(MESSAGE,))


# --- loggers set up -------------------------------------------------------------------------------


@contextmanager
def stdlib_logger(handler: logging.Handler, formatter: logging.Formatter | None) -> Iterator[Any]:
    """Give the logger `bench` this one handler at INFO."""
    handler.setFormatter(formatter)
    logger = logging.getLogger("bench")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)
    handler.close()


def file_handler(path: Path) -> logging.Handler:
    """Return the stdlib's handler of an ordinary file."""
    return logging.FileHandler(path)


def our_handler(path: Path) -> logging.Handler:
    """Return our handler as a run has it: rotating at 100 MB."""
    from foundry_log import RotatingJsonlHandler

    return RotatingJsonlHandler(path, maxBytes=100_000_000, backupCount=10)


def our_formatter(bound: Mapping[str, Any]) -> logging.Formatter:
    """Return our formatter; the bound fields come with the record."""
    from foundry_log import JsonFormatter

    return JsonFormatter()


def our_logger() -> Any:
    """Return a StructuredLogger over the logger `bench`, whose context is `BOUND`."""
    from foundry_log import StructuredLogger

    config = SimpleNamespace(experiment_name=BOUND["experiment"])
    logger = StructuredLogger("bench", config)
    logger.update_context(**BOUND)
    return logger


def text_formatter(bound: Mapping[str, Any]) -> logging.Formatter:
    """Return the stdlib's formatter with the five fields as text."""
    return logging.Formatter(TEXT_LAYOUT)


def json_formatter(module: str, name: str) -> Callable[[Mapping[str, Any]], logging.Formatter]:
    """Return what makes a formatter of python-json-logger."""

    def make(bound: Mapping[str, Any]) -> logging.Formatter:
        kind = getattr(importlib.import_module(f"pythonjsonlogger.{module}"), name)
        formatter: logging.Formatter = kind(JSON_LAYOUT, static_fields=dict(bound))
        return formatter

    return make


def structlog_logger(path: Path, level: int = logging.INFO) -> tuple[Any, Any]:
    """Return structlog as its guide on performance sets it up, and the file to close."""
    import orjson
    import structlog

    file = path.open("ab", buffering=0)
    structlog.configure(
        cache_logger_on_first_use=True,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(serializer=orjson.dumps),
        ],
        logger_factory=structlog.BytesLoggerFactory(file=file),
    )
    return structlog.get_logger().bind(logger="bench", **BOUND), file


def loguru_logger(path: Path, level: str = "INFO", **options: Any) -> Any:
    """Return loguru with one file of serialized records."""
    from loguru import logger

    logger.remove()
    logger.add(path, level=level, serialize=True, diagnose=False, backtrace=False, **options)
    return logger.bind(**BOUND)


def picologging_logger(path: Path, level: int = logging.INFO) -> tuple[Any, Any]:
    """Return picologging's logger, whose message is the dict of fields, and its handler."""
    from datetime import datetime, timezone

    import orjson
    import picologging

    class JsonFormatter(picologging.Formatter):  # type: ignore[misc]
        def format(self, record: Any) -> str:
            stamp = datetime.fromtimestamp(record.created, timezone.utc).isoformat()
            line = {
                "timestamp": stamp,
                "level": record.levelname,
                "logger": record.name,
                **record.msg,
                **BOUND,
            }
            return orjson.dumps(line).decode()

    handler = picologging.FileHandler(str(path))
    handler.setFormatter(JsonFormatter())
    logger = picologging.Logger("bench", level)
    logger.addHandler(handler)
    return logger, handler


# --- structured: context as keywords --------------------------------------------------------------


def structured_ours(directory: Path) -> Iterator[Subject]:
    path = directory / "ours.jsonl"
    with stdlib_logger(our_handler(path), our_formatter({})):
        log = our_logger()

        def run(steps: range) -> None:
            for step in steps:
                log.info(MESSAGE, step=step, loss=2.5, lr=0.0003, epoch=1, phase="train")

        fields = {**BOUND, **CALL}
        yield Subject(run, json_lines(path, fields, at=("context",), texts=(MESSAGE,)))


def structured_structlog(directory: Path) -> Iterator[Subject]:
    path = directory / "structlog.jsonl"
    log, file = structlog_logger(path)

    def run(steps: range) -> None:
        for step in steps:
            log.info(MESSAGE, step=step, loss=2.5, lr=0.0003, epoch=1, phase="train")

    yield Subject(run, json_lines(path, {**BOUND, **CALL}, texts=(MESSAGE,)))
    file.close()


def structured_loguru(directory: Path) -> Iterator[Subject]:
    path = directory / "loguru.jsonl"
    log = loguru_logger(path)

    def run(steps: range) -> None:
        for step in steps:
            log.info(MESSAGE, step=step, loss=2.5, lr=0.0003, epoch=1, phase="train")

    fields = {**BOUND, **CALL}
    yield Subject(run, json_lines(path, fields, at=("record", "extra"), texts=(MESSAGE,)))
    log.remove()


def structured_picologging(directory: Path) -> Iterator[Subject]:
    path = directory / "picologging.jsonl"
    log, handler = picologging_logger(path)

    def run(steps: range) -> None:
        for step in steps:
            log.info(
                {
                    "message": MESSAGE,
                    "step": step,
                    "loss": 2.5,
                    "lr": 0.0003,
                    "epoch": 1,
                    "phase": "train",
                }
            )

    yield Subject(run, json_lines(path, {**BOUND, **CALL}, texts=(MESSAGE,)))
    handler.close()


# --- plain: the stdlib's call with `extra` --------------------------------------------------------


def plain(
    handler: Callable[[Path], logging.Handler],
    formatter: Callable[[Mapping[str, Any]], logging.Formatter],
    bound: Mapping[str, Any],
    *,
    at: tuple[str, ...] | None = (),
) -> Callable[[Path], Iterator[Subject]]:
    """Return what starts a stdlib logger with this handler and formatter.

    Args:
        handler: makes the handler of a path.
        formatter: makes the formatter of the bound fields.
        bound: fields that the formatter has as constants.
        at: where in a line the fields are, as of `json_lines`; None for plain text.
    """

    def start(directory: Path) -> Iterator[Subject]:
        path = directory / "stdlib.log"
        with stdlib_logger(handler(path), formatter(bound)) as log:

            def run(steps: range) -> None:
                for step in steps:
                    log.info(
                        MESSAGE,
                        extra={
                            "step": step,
                            "loss": 2.5,
                            "lr": 0.0003,
                            "epoch": 1,
                            "phase": "train",
                        },
                    )

            check = text_lines(path, MESSAGE, "phase=train")
            if at is not None:
                check = json_lines(path, {**bound, **CALL}, at=at, texts=(MESSAGE,))
            yield Subject(run, check)

    return start


_JSON_LOGGERS = (
    ("msgspec", "msgspec", "MsgspecFormatter"),
    ("orjson", "orjson", "OrjsonFormatter"),
    ("json", "json", "JsonFormatter"),
)


def stdlib_peers(bound: Mapping[str, Any]) -> tuple[Contender, ...]:
    """Return the stdlib with plain text and with each encoder of python-json-logger."""
    return (
        Contender("stdlib FileHandler, text", plain(file_handler, text_formatter, {}, at=None)),
        *(
            Contender(
                f"stdlib + python-json-logger {encoder}",
                plain(file_handler, json_formatter(module, name), bound),
                needs=("pythonjsonlogger", encoder),
            )
            for encoder, module, name in _JSON_LOGGERS
        ),
    )


STRUCTURED = Comparison(
    "structured",
    "a record with five fields, context bound before, visible at once",
    (
        RECORD_LIMIT,
        Contender("foundry_log StructuredLogger", structured_ours, role="ours"),
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
        ),
        Contender(
            "foundry_log formatter, FileHandler",
            plain(file_handler, our_formatter, {}, at=("context",)),
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


def _keyword_calls(log: Any) -> Callable[[range], None]:
    def run(steps: range) -> None:
        for step in steps:
            log.info(MESSAGE, step=step, loss=2.5, lr=0.0003, epoch=1, phase="train")

    return run


def disabled_ours(directory: Path) -> Iterator[Subject]:
    path = directory / "ours.jsonl"
    with stdlib_logger(our_handler(path), our_formatter({})) as logger:
        logger.setLevel(logging.WARNING)
        log = our_logger()
        last = nothing_but(path, lambda: log.warning(MESSAGE), MESSAGE)
        yield Subject(_keyword_calls(log), last)


def disabled_stdlib(directory: Path) -> Iterator[Subject]:
    path = directory / "stdlib.log"
    formatter = logging.Formatter(JSON_LAYOUT)
    with stdlib_logger(file_handler(path), formatter) as log:
        log.setLevel(logging.WARNING)

        def run(steps: range) -> None:
            for step in steps:
                log.info(
                    MESSAGE,
                    extra={"step": step, "loss": 2.5, "lr": 0.0003, "epoch": 1, "phase": "train"},
                )

        yield Subject(run, nothing_but(path, lambda: log.warning(MESSAGE), MESSAGE))


def disabled_structlog(directory: Path) -> Iterator[Subject]:
    path = directory / "structlog.jsonl"
    log, file = structlog_logger(path, logging.WARNING)
    yield Subject(_keyword_calls(log), nothing_but(path, lambda: log.warning(MESSAGE), MESSAGE))
    file.close()


def disabled_loguru(directory: Path) -> Iterator[Subject]:
    path = directory / "loguru.jsonl"
    log = loguru_logger(path, "WARNING")
    yield Subject(_keyword_calls(log), nothing_but(path, lambda: log.warning(MESSAGE), MESSAGE))
    log.remove()


def disabled_picologging(directory: Path) -> Iterator[Subject]:
    path = directory / "picologging.jsonl"
    log, handler = picologging_logger(path, logging.WARNING)

    def run(steps: range) -> None:
        for step in steps:
            log.info(
                {
                    "message": MESSAGE,
                    "step": step,
                    "loss": 2.5,
                    "lr": 0.0003,
                    "epoch": 1,
                    "phase": "train",
                }
            )

    yield Subject(run, nothing_but(path, lambda: log.warning({"message": MESSAGE}), MESSAGE))
    handler.close()


DISABLED = Comparison(
    "disabled",
    "a call with five fields below the level",
    (
        Contender("limit: an empty function", disabled_limit, role="limit"),
        Contender("foundry_log StructuredLogger", disabled_ours, role="ours"),
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


def caught(call: Callable[[int], object]) -> Callable[[range], None]:
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
) -> Callable[[Path], Iterator[Subject]]:
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
        Contender("foundry_log StructuredLogger", exception_ours, role="ours"),
        Contender(
            "foundry_log formatter and handler",
            exception_stdlib(our_handler, our_formatter, at=("context",)),
        ),
        Contender(
            "stdlib FileHandler, text", exception_stdlib(file_handler, text_formatter, at=None)
        ),
        Contender(
            "stdlib + python-json-logger orjson",
            exception_stdlib(file_handler, json_formatter("orjson", "OrjsonFormatter")),
            needs=("pythonjsonlogger", "orjson"),
        ),
        Contender("structlog, orjson", exception_structlog, needs=("structlog", "orjson")),
        Contender("loguru serialize", exception_loguru, needs=("loguru",)),
    ),
    count=5_000,
    quick=50,
)
