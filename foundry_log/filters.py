"""Filters that add to a record and let all of them through."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from foundry_log.context import bound_fields
from foundry_log.encoding import to_plain
from foundry_log.records import CONTEXT


class ContextFilter(logging.Filter):
    """Gives records the fields of the configuration, below all others, and keeps their scopes.

    Put it on a handler (`to_dict_config` does) or on a logger. On a `QueueHandler` it is what
    carries the fields of `bound` to the thread that formats. The fields stay on the record for the
    handlers that come after.

    Args:
        fields: name to value; reduced to plain JSON values once, here.
        name: as in `logging.Filter`: only records of this logger and its children are touched.
    """

    def __init__(self, fields: Mapping[str, Any] | None = None, name: str = "") -> None:
        super().__init__(name)
        self.fields: dict[str, Any] = to_plain(dict(fields or {}))

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; always True."""
        if super().filter(record):
            known = record.__dict__.get(CONTEXT)
            if known is not None and type(known) is not dict:
                return True  # an `extra` that took our name: it is context like any other
            record.__dict__[CONTEXT] = {
                **self.fields,
                **(to_plain(dict(bound_fields())) if known is None else known),
            }
        return True
