"""The limit, and loggers set up the way their own guides do it, for every workload of records.

Each contender writes the same facts: time, level, logger, message, three fields that are bound once
and five that the call gives. Where a logger cannot bind, its formatter has the three as constants,
which is to its advantage.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.benchmarks.checks import json_lines
from tests.benchmarks.harness import Contender, Run, Start, Subject

MESSAGE = "Step done"
BOUND = {"experiment": "bench", "git_hash": "4f1c" * 10, "device": "cuda:0"}
CALL = {"loss": 2.5, "lr": 0.0003, "epoch": 1, "phase": "train"}  # and `step`, the fifth
STAMP = "2026-11-21T06:23:11.123456+00:00"
JSON_LAYOUT = "%(asctime)s %(levelname)s %(name)s %(message)s"
TEXT_LAYOUT = (
    "%(asctime)s %(levelname)s %(name)s %(message)s "
    "step=%(step)s loss=%(loss)s lr=%(lr)s epoch=%(epoch)s phase=%(phase)s"
)


# --- calls ----------------------------------------------------------------------------------------


def keyword_calls(log: Any) -> Run:
    """Return what logs the five fields as keywords."""

    def run(steps: range) -> None:
        for step in steps:
            log.info(MESSAGE, step=step, loss=2.5, lr=0.0003, epoch=1, phase="train")

    return run


def fast(start: Start) -> Start:
    """Return a contender's start with the switch on that makes plain loggers fast."""

    def start_fast(directory: Path) -> Iterator[Subject]:
        import foundry_log

        with foundry_log.fast_loggers():
            yield from start(directory)

    return start_fast


def extra_calls(log: Any) -> Run:
    """Return what logs the five fields as the stdlib's `extra`."""

    def run(steps: range) -> None:
        for step in steps:
            log.info(
                MESSAGE,
                extra={"step": step, "loss": 2.5, "lr": 0.0003, "epoch": 1, "phase": "train"},
            )

    return run


def dict_calls(log: Any) -> Run:
    """Return what logs message and fields as one dict."""

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

    return run


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


JSON_FORMATTERS = {
    "msgspec": "MsgspecFormatter",
    "orjson": "OrjsonFormatter",
    "json": "JsonFormatter",
}
"""Encoder to formatter of python-json-logger."""


def json_formatter(
    encoder: str, **options: Any
) -> Callable[[Mapping[str, Any]], logging.Formatter]:
    """Return what makes a formatter of python-json-logger."""

    def make(bound: Mapping[str, Any]) -> logging.Formatter:
        module = importlib.import_module(f"pythonjsonlogger.{encoder}")
        kind = getattr(module, JSON_FORMATTERS[encoder])
        formatter: logging.Formatter = kind(JSON_LAYOUT, static_fields=dict(bound), **options)
        return formatter

    return make


def structlog_logger(
    path: Path, level: int = logging.INFO, encode: Callable[..., bytes] | None = None
) -> tuple[Any, Any]:
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
            structlog.processors.JSONRenderer(serializer=encode or orjson.dumps),
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


def picologging_logger(
    path: Path, level: int = logging.INFO, encode: Callable[..., bytes] | None = None
) -> tuple[Any, Any]:
    """Return picologging's logger, whose message is the dict of fields, and its handler."""
    from datetime import datetime, timezone

    import orjson
    import picologging

    encoded = encode or orjson.dumps

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
            return encoded(line).decode()

    handler = picologging.FileHandler(str(path))
    handler.setFormatter(JsonFormatter())
    logger = picologging.Logger("bench", level)
    logger.addHandler(handler)
    return logger, handler
