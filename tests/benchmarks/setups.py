"""The whole set-up of a program: console, a log for people, and JSON Lines."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.checks import json_lines, text_lines
from tests.benchmarks.goals import Goal
from tests.benchmarks.harness import Comparison, Contender, Run, Start, Subject
from tests.benchmarks.loggers import (
    BOUND,
    CALL,
    LIMIT_ENCODER,
    MESSAGE,
    RECORD_LINE,
    extra_calls,
    fast,
    json_formatter,
    keyword_calls,
    limit_encoder,
    our_logger,
    text_formatter,
)

MAX_BYTES = 100 * 1024 * 1024
BACKUPS = 10


@contextlib.contextmanager
def silent_console() -> Iterator[Any]:
    """Let standard error be /dev/null, and yield it."""
    with open(os.devnull, "w") as console, contextlib.redirect_stderr(console):
        yield console


def three_outputs(
    directory: Path,
    console: Any,
    run: Run,
    *,
    at: tuple[str, ...] = (),
    marker: str = "phase=train",
    numbered: bool = True,
) -> Subject:
    """Return the subject whose check looks at both files, and at one more line on the console.

    Args:
        directory: of `run.log` and `run.jsonl`.
        console: the open /dev/null, in whose place a file is put for that line.
        run: logs.
        at: as of `json_lines`.
        numbered: as of `json_lines`.
        marker: stands in each line for people.
    """
    lines = json_lines(directory / "run.jsonl", CALL, at=at, texts=(MESSAGE,), numbered=numbered)
    text = text_lines(directory / "run.log", MESSAGE, marker)

    def check(count: int) -> None:
        lines(count)
        text(count)
        shown = directory / "console"
        descriptor = os.open(shown, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, console.fileno())
        os.close(descriptor)
        run(range(count, count + 1))
        text_lines(shown, MESSAGE, marker)(1)

    return Subject(run, check)


def limit(directory: Path) -> Iterator[Subject]:
    """A finished dict encoded, and three writes."""
    encode, write = limit_encoder(), os.write
    finished, text = dict(RECORD_LINE), f"{MESSAGE} phase=train\n".encode()
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with silent_console() as console:
        shown = console.fileno()
        log, jsonl = (os.open(directory / name, flags) for name in ("run.log", "run.jsonl"))

        def run(steps: range) -> None:
            for _ in steps:
                write(shown, text)
                write(log, text)
                write(jsonl, encode(finished) + b"\n")

        yield three_outputs(directory, console, run, at=("context",), numbered=False)
        os.close(log)
        os.close(jsonl)


def ours(calls: Callable[[], Run]) -> Start:
    """Return what starts `configure` as it is."""

    def start(directory: Path) -> Iterator[Subject]:
        import foundry_log

        with (
            silent_console() as console,
            foundry_log.configure(foundry_log.LoggingConfig(), directory),
        ):
            yield three_outputs(directory, console, calls(), at=("context",))

    return start


def stdlib(encoder: str) -> Start:
    """Return what gives the root logger the stdlib's three handlers."""

    def start(directory: Path) -> Iterator[Subject]:
        root = logging.getLogger()
        with silent_console() as console:
            handlers = [
                logging.StreamHandler(console),
                _rotating(directory / "run.log"),
                _rotating(directory / "run.jsonl"),
            ]
            makers = (text_formatter, text_formatter, json_formatter(encoder))
            for handler, formatter in zip(handlers, makers, strict=True):
                handler.setFormatter(formatter({}))
                root.addHandler(handler)
            root.setLevel(logging.DEBUG)
            yield three_outputs(directory, console, extra_calls(logging.getLogger("bench")))
            for handler in handlers:
                root.removeHandler(handler)
                handler.close()

    return start


def _rotating(path: Path) -> logging.Handler:
    return logging.handlers.RotatingFileHandler(path, maxBytes=MAX_BYTES, backupCount=BACKUPS)


def structlog_over_stdlib(directory: Path) -> Iterator[Subject]:
    """structlog as its guide sets several outputs up: over the stdlib's handlers."""
    import orjson
    import structlog

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        cache_logger_on_first_use=True,
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )

    def formatter(renderer: Any) -> Any:
        steps = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
        return structlog.stdlib.ProcessorFormatter(processors=steps)

    text = structlog.dev.ConsoleRenderer(colors=False)
    encode = structlog.processors.JSONRenderer(
        serializer=lambda value, **options: orjson.dumps(value, **options).decode()
    )
    root = logging.getLogger()
    with silent_console() as console:
        handlers = {
            logging.StreamHandler(console): text,
            _rotating(directory / "run.log"): text,
            _rotating(directory / "run.jsonl"): encode,
        }
        for handler, renderer in handlers.items():
            handler.setFormatter(formatter(renderer))
            root.addHandler(handler)
        root.setLevel(logging.DEBUG)
        log = structlog.get_logger("bench").bind(**BOUND)
        yield three_outputs(directory, console, keyword_calls(log))
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def loguru_three(directory: Path) -> Iterator[Subject]:
    """loguru with three sinks."""
    from loguru import logger

    quiet: dict[str, Any] = {"diagnose": False, "backtrace": False, "level": "DEBUG"}
    text = "{time} {level} {name} {message} {extra}"
    with silent_console() as console:
        logger.remove()
        logger.add(console, format=text, colorize=False, **quiet)
        for name, options in (("run.log", {"format": text}), ("run.jsonl", {"serialize": True})):
            logger.add(directory / name, rotation=MAX_BYTES, retention=BACKUPS, **options, **quiet)
        log = logger.bind(**BOUND)
        marker = "'phase': 'train'"
        yield three_outputs(
            directory, console, keyword_calls(log), at=("record", "extra"), marker=marker
        )
        logger.remove()


_STDLIB = "stdlib, three handlers, orjson"

SETUP = Comparison(
    "setup",
    "the set-up as it is: console to /dev/null, a log for people, JSON Lines; five fields",
    (
        Contender(f"limit: {LIMIT_ENCODER} + three os.write", limit, role="limit"),
        Contender(
            "foundry_log.configure, StructuredLogger",
            ours(lambda: keyword_calls(our_logger())),
            role="ours",
            goal=Goal(0.5, than=_STDLIB),
        ),
        Contender(
            "foundry_log.configure, plain logger",
            ours(lambda: extra_calls(logging.getLogger("bench"))),
            role="ours",
            goal=Goal(0.5, than=_STDLIB),
        ),
        Contender(
            "foundry_log.configure, plain logger, fast loggers",
            fast(ours(lambda: extra_calls(logging.getLogger("bench")))),
            role="ours",
            goal=Goal(0.5, than=_STDLIB),
        ),
        Contender(_STDLIB, stdlib("orjson"), needs=("pythonjsonlogger", "orjson")),
        Contender("stdlib, three handlers, json", stdlib("json"), needs=("pythonjsonlogger",)),
        Contender(
            "structlog over the same three", structlog_over_stdlib, needs=("structlog", "orjson")
        ),
        Contender("loguru, three sinks", loguru_three, needs=("loguru",)),
    ),
    count=10_000,
)
