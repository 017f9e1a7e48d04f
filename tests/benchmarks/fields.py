"""Twenty fields of a call: text, numbers, numpy's scalars, and some that are nested."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.checks import json_lines
from tests.benchmarks.goals import Goal
from tests.benchmarks.harness import Comparison, Contender, Run, Start, Subject
from tests.benchmarks.loggers import (
    BOUND,
    JSON_FORMATTERS,
    MESSAGE,
    RECORD_LINE,
    file_handler,
    json_formatter,
    limit,
    loguru_logger,
    our_formatter,
    our_handler,
    our_logger,
    picologging_logger,
    stdlib_logger,
    structlog_logger,
)

PLAIN: dict[str, Any] = {
    "epoch": 1,
    "phase": "train",
    "dataset": "wikitext",
    "is_best": False,
    "note": None,
    "lr": 0.0003,
    "weight_decay": 0.01,
    "batch": {"size": 32, "length": 128, "device": "cuda:0"},
    "optimizer": {"name": "adamw", "betas": [0.9, 0.999]},
    "layer_norms": [1.25, 0.75, 2.5],
    "tokens_per_s": 51234.5,
    "seconds": 0.0213,
}
NUMPY: dict[str, float | int] = {  # each is exact in 32 bits, so that every encoder writes the same
    "loss": 2.5,
    "grad_norm": 1.03125,
    "accuracy": 0.4127,
    "perplexity": 12.57,
    "tokens": 123_456_789,
    "samples": 4096,
    "memory_gb": 11.5,
}
FIELDS = {**PLAIN, **NUMPY}  # and `step`, the twentieth


def numpy_fields() -> dict[str, Any]:
    """Return the fields as a training loop has them."""
    import numpy as np

    kinds = {"loss": np.float32, "grad_norm": np.float32, "memory_gb": np.float32}
    numbers = {
        name: kinds.get(name, np.int64 if type(value) is int else np.float64)(value)
        for name, value in NUMPY.items()
    }
    return {**copy.deepcopy(PLAIN), **numbers}


def keywords(log: Any) -> Run:
    fields = numpy_fields()

    def run(steps: range) -> None:
        for step in steps:
            log.info(MESSAGE, step=step, **fields)

    return run


def extra(log: Any) -> Run:
    fields = numpy_fields()

    def run(steps: range) -> None:
        for step in steps:
            log.info(MESSAGE, extra={"step": step, **fields})

    return run


def dicts(log: Any) -> Run:
    fields = numpy_fields()

    def run(steps: range) -> None:
        for step in steps:
            log.info({"message": MESSAGE, "step": step, **fields})

    return run


def ours(directory: Path) -> Iterator[Subject]:
    path = directory / "ours.jsonl"
    with stdlib_logger(our_handler(path), our_formatter({})):
        check = json_lines(path, {**BOUND, **FIELDS}, at=("context",), texts=(MESSAGE,))
        yield Subject(keywords(our_logger()), check)


def stdlib(
    handler: Callable[[Path], logging.Handler],
    formatter: Callable[[Mapping[str, Any]], logging.Formatter],
    at: tuple[str, ...] = (),
) -> Start:
    """Return what starts a stdlib logger with this handler and formatter."""

    def start(directory: Path) -> Iterator[Subject]:
        path = directory / "stdlib.jsonl"
        with stdlib_logger(handler(path), formatter({})) as log:
            yield Subject(extra(log), json_lines(path, FIELDS, at=at, texts=(MESSAGE,)))

    return start


def structlog(directory: Path) -> Iterator[Subject]:
    path = directory / "structlog.jsonl"
    log, file = structlog_logger(path, encode=_encoder())
    yield Subject(keywords(log), json_lines(path, {**BOUND, **FIELDS}, texts=(MESSAGE,)))
    file.close()


def picologging(directory: Path) -> Iterator[Subject]:
    path = directory / "picologging.jsonl"
    log, handler = picologging_logger(path, encode=_encoder())
    yield Subject(dicts(log), json_lines(path, {**BOUND, **FIELDS}, texts=(MESSAGE,)))
    handler.close()


def loguru(directory: Path) -> Iterator[Subject]:
    path = directory / "loguru.jsonl"
    log = loguru_logger(path).patch(_without_numpy)  # its encoder would write them as text
    fields = {**BOUND, **FIELDS}
    yield Subject(keywords(log), json_lines(path, fields, at=("record", "extra")))
    log.remove()


def _encoder() -> Callable[..., bytes]:
    import orjson

    return functools.partial(orjson.dumps, option=orjson.OPT_SERIALIZE_NUMPY)


def _number(value: Any) -> Any:
    return value.item()


def _without_numpy(record: Any) -> None:
    fields = record["extra"]
    for name, value in fields.items():
        if hasattr(value, "item"):
            fields[name] = value.item()


FIELDS20 = Comparison(
    "fields20",
    "a record with twenty fields, three nested and seven of numpy, visible at once",
    (
        limit(
            {**RECORD_LINE, "context": {**BOUND, "step": 100, **FIELDS}},
            fields={**BOUND, **FIELDS},
            at=("context",),
        ),
        Contender(
            "foundry_log StructuredLogger", ours, role="ours", needs=("numpy",), goal=Goal(2.5)
        ),
        Contender(
            "foundry_log formatter and handler, extra",
            stdlib(our_handler, our_formatter, ("context",)),
            role="ours",
            needs=("numpy",),
        ),
        Contender("structlog, orjson", structlog, needs=("structlog", "orjson", "numpy")),
        Contender("picologging + orjson", picologging, needs=("picologging", "orjson", "numpy")),
        *(
            Contender(
                f"stdlib + python-json-logger {encoder}",
                stdlib(file_handler, json_formatter(encoder, json_default=_number)),
                needs=("pythonjsonlogger", encoder, "numpy"),
            )
            for encoder in JSON_FORMATTERS
        ),
        Contender("loguru serialize, numpy patched", loguru, needs=("loguru", "numpy")),
    ),
)
