"""ContextFilter: fields of the configuration, and scopes that travel."""

from __future__ import annotations

import json
import logging
import logging.handlers
import queue
from typing import Any

import pytest

from foundry_log import ContextFilter, ExperimentConfig, JsonFormatter, StructuredLogger, bound

pytestmark = pytest.mark.unit


class Lines(logging.Handler):
    """Keeps the context of each line that JsonFormatter makes."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.contexts: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.contexts.append(json.loads(self.format(record))["context"])


@pytest.fixture
def lines() -> Lines:
    """A handler with the filter, on the logger "filtered"."""
    handler = Lines()
    handler.addFilter(ContextFilter({"run": 1, "step": "configuration"}))
    logger = logging.getLogger("filtered")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    return handler


def test_a_plain_loggers_record_gets_the_fields(lines: Lines) -> None:
    """Below those that the call gives."""
    logging.getLogger("filtered").info("x")
    logging.getLogger("filtered").info("x", extra={"step": "call"})

    assert lines.contexts == [
        {"run": 1, "step": "configuration"},
        {"run": 1, "step": "call"},
    ]


def test_the_order_of_precedence(lines: Lines, tiny_config: ExperimentConfig) -> None:
    """Call over scope over adapter over configuration."""
    log = StructuredLogger("filtered", tiny_config)
    log.context.clear()
    log.update_context(a="adapter", b="adapter", c="adapter")
    lines.filters[0].fields.update(a=0, b=0, c=0, d="configuration")  # type: ignore[union-attr]
    with bound(b="scope", c="scope"):
        log.info("x", c="call")

    context = lines.contexts[0]
    assert [context[name] for name in "abcd"] == ["adapter", "scope", "call", "configuration"]


def test_a_scope_wins_over_the_configuration(lines: Lines) -> None:
    """For records of plain loggers too."""
    with bound(step="scope"):
        logging.getLogger("filtered").info("x")

    assert lines.contexts == [{"run": 1, "step": "scope"}]


def test_scopes_travel_to_the_thread_that_formats() -> None:
    """On a QueueHandler the filter keeps what the thread that logged had bound, as it was."""
    records: queue.Queue[logging.LogRecord] = queue.Queue()
    handler = logging.handlers.QueueHandler(records)
    handler.addFilter(ContextFilter())
    logger = logging.getLogger("filtered")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    values = [1]
    with bound(values=values, odd={2}):
        logger.info("x")
    values.append(3)

    line = json.loads(JsonFormatter().format(records.get_nowait()))
    assert line["context"] == {"values": [1], "odd": [2]}


def test_only_records_of_the_named_logger_are_touched() -> None:
    """`name` means what it means in `logging.Filter`; the others pass untouched."""
    addition = ContextFilter({"run": 1}, name="mine")
    other = logging.makeLogRecord({"name": "other"})
    child = logging.makeLogRecord({"name": "mine.child"})

    assert addition.filter(other) is True
    assert addition.filter(child) is True
    assert not hasattr(other, "foundry_context")
    assert child.__dict__["foundry_context"] == {"run": 1}


def test_two_filters_add_up() -> None:
    """The first to see the record is nearer to the call, and wins."""
    record = logging.makeLogRecord({})
    for fields in ({"a": 1, "b": 1}, {"b": 2, "c": 2}):
        ContextFilter(fields).filter(record)

    assert record.__dict__["foundry_context"] == {"a": 1, "b": 1, "c": 2}


def test_values_are_reduced_once() -> None:
    """Any values are accepted, and the record stays plain data."""
    record = logging.makeLogRecord({})
    ContextFilter({"odd": {1}, "when": object}).filter(record)

    assert record.__dict__["foundry_context"] == {"odd": [1], "when": "builtins.object"}
