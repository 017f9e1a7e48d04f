"""Rotation: records through a file of at most 1 MB, ten old files kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.checks import Check, expect, strict_object
from tests.benchmarks.goals import Goal
from tests.benchmarks.harness import Comparison, Contender, Start, Subject
from tests.benchmarks.loggers import (
    CALL,
    RECORD_LIMIT,
    RECORD_LINE,
    extra_calls,
    json_formatter,
    keyword_calls,
    limit_encoder,
    loguru_logger,
    our_formatter,
    our_logger,
    stdlib_logger,
)

MAX_BYTES = 1_000_000
BACKUPS = 10


def rotated_lines(
    directory: Path,
    *,
    at: tuple[str, ...] = (),
    last_line_beyond: bool = False,
    is_rotated: bool = True,
) -> Check:
    """Return a check of the live file and its backups.

    None is too large or too many, every line is strict JSON with its fields, and together they hold
    the latest steps without a gap, from 0 if nothing had to go.

    Args:
        directory: of the files.
        at: where in a line the fields are, as of `json_lines`.
        last_line_beyond: the last line of a file may reach beyond the size.
        is_rotated: False for one file of any size.
    """

    def check(count: int) -> None:
        files = [path for path in directory.iterdir() if not path.name.startswith(".")]
        expect(len(files) <= BACKUPS + 1, f"{len(files)} files")
        steps = []
        for path in files:
            content = path.read_bytes()
            lines = content.splitlines()
            allowed = MAX_BYTES + (len(lines[-1]) if last_line_beyond else 0)
            expect(
                len(content) <= allowed or not is_rotated, f"{path.name} has {len(content)} bytes"
            )
            for line in lines:
                found: Any = strict_object(line)
                for name in at:
                    found = found[name]
                expect(all(found.get(name) == CALL[name] for name in CALL), f"{line[:200]!r}")
                steps.append(found["step"])
        steps.sort()
        first = 0 if len(files) <= BACKUPS else steps[0]
        expect(steps == list(range(first, count)), f"{len(steps)} lines from {first} to {count}")

    return check


def rotating(
    handler: Callable[[Path], logging.Handler],
    formatter: Callable[[Mapping[str, Any]], logging.Formatter],
    **layout: Any,
) -> Start:
    """Return what starts a stdlib logger over a rotating handler; see `rotated_lines`."""

    def start(directory: Path) -> Iterator[Subject]:
        with stdlib_logger(handler(directory / "run.jsonl"), formatter({})) as log:
            yield Subject(extra_calls(log), rotated_lines(directory, **layout))

    return start


def _ours(path: Path) -> logging.Handler:
    from foundry_log import RotatingJsonlHandler

    return RotatingJsonlHandler(path, maxBytes=MAX_BYTES, backupCount=BACKUPS)


def _ours_stable(path: Path) -> logging.Handler:
    from foundry_log import RotatingJsonlHandler

    return RotatingJsonlHandler(path, maxBytes=MAX_BYTES, backupCount=BACKUPS, stable_names=True)


def _stdlib(path: Path) -> logging.Handler:
    import logging.handlers

    return logging.handlers.RotatingFileHandler(path, maxBytes=MAX_BYTES, backupCount=BACKUPS)


def _concurrent(path: Path) -> logging.Handler:
    from concurrent_log_handler import ConcurrentRotatingFileHandler

    handler: logging.Handler = ConcurrentRotatingFileHandler(
        str(path), maxBytes=MAX_BYTES, backupCount=BACKUPS
    )
    return handler


def rotation_loguru(directory: Path) -> Iterator[Subject]:
    log = loguru_logger(directory / "run.jsonl", rotation=MAX_BYTES, retention=BACKUPS)
    yield Subject(keyword_calls(log), rotated_lines(directory, at=("record", "extra")))
    log.remove()


def rotating_structured(directory: Path) -> Iterator[Subject]:
    with stdlib_logger(_ours(directory / "run.jsonl"), our_formatter({})):
        check = rotated_lines(directory, at=("context",))
        yield Subject(keyword_calls(our_logger()), check)


def _ours_never(path: Path) -> logging.Handler:
    from foundry_log import RotatingJsonlHandler

    return RotatingJsonlHandler(path)


class FinishedLine(logging.Formatter):
    """Encodes a finished dict, as the limit does, so that what is left is the handler."""

    def __init__(self) -> None:
        super().__init__()
        self._encode = limit_encoder()

    def format(self, record: logging.LogRecord) -> str:
        line = {**RECORD_LINE, "context": {"step": record.__dict__["step"], **CALL}}
        return self._encode(line).decode()


def handler_alone(handler: Callable[[Path], logging.Handler], is_rotated: bool = True) -> Start:
    """Return what hands one finished record to a handler; see `FinishedLine`."""

    def start(directory: Path) -> Iterator[Subject]:
        made = handler(directory / "run.jsonl")
        made.setFormatter(FinishedLine())
        record = logging.makeLogRecord({})

        def run(steps: range) -> None:
            for step in steps:
                record.__dict__["step"] = step
                made.handle(record)

        yield Subject(run, rotated_lines(directory, at=("context",), is_rotated=is_rotated))
        made.close()

    return start


ENCODER = json_formatter("orjson")
ENCODER_NEEDS = ("pythonjsonlogger", "orjson")

ROTATION = Comparison(
    "rotation",
    "a plain record with five fields, the file rotated at 1 MB, ten kept",
    (
        RECORD_LIMIT,
        Contender(
            "foundry_log, numbered",
            rotating(_ours, our_formatter, at=("context",)),
            role="ours",
            goal=Goal(2.5),
        ),
        Contender(
            "foundry_log, stable names",
            rotating(_ours_stable, our_formatter, at=("context",)),
            role="ours",
        ),
        Contender(
            "foundry_log, numbered, StructuredLogger",
            rotating_structured,
            role="ours",
            goal=Goal(2.5),
        ),
        Contender(
            "foundry_log, not rotated",
            rotating(_ours_never, our_formatter, at=("context",), is_rotated=False),
            role="ours",
        ),
        Contender("foundry_log, the handler alone", handler_alone(_ours), role="ours"),
        Contender(
            "foundry_log, the handler alone, not rotated",
            handler_alone(_ours_never, is_rotated=False),
            role="ours",
        ),
        Contender(
            "stdlib RotatingFileHandler + orjson", rotating(_stdlib, ENCODER), needs=ENCODER_NEEDS
        ),
        Contender(
            "concurrent-log-handler + orjson",
            rotating(_concurrent, ENCODER, last_line_beyond=True),  # it looks before it adds
            needs=("concurrent_log_handler", *ENCODER_NEEDS),
        ),
        Contender("loguru serialize", rotation_loguru, needs=("loguru",)),
    ),
    count=50_000,
    quick=500,
    batches=1,
    repeats=5,
)
