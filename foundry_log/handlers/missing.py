"""What a file has not got, and the line in it that says so once it can be written again."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from foundry_log.clock import timestamp
from foundry_log.formatters import JsonFormatter
from foundry_log.records import ENTRY

LOGGER = "foundry_log.handlers"
_default_formatter = JsonFormatter()


@dataclass(frozen=True)
class Notice:
    """A line that says how many records are missing, and which of the handler's it counts."""

    line: bytes
    causes: Counter[str]


class Missing:
    """Counts the records that the file has not got since it was last told of some."""

    def __init__(self) -> None:
        self.causes: Counter[str] = Counter()  # guarded by the handler's lock
        self._first = self._last = 0.0

    def add(self, cause: str, record: logging.LogRecord) -> None:
        """Count a record that could not be written."""
        self._last = record.created
        self._first = self._first if self.causes else record.created
        self.causes[cause] += 1

    def notice(self, write: Callable[[logging.LogRecord], bytes]) -> Notice:
        """Return the notice, in the handler's format where that can be."""
        causes = Counter(self.causes)
        listed = ", ".join(f"{cause}: {count}" for cause, count in causes.items())
        text = f"missing here, since they could not be written: {causes.total()} records ({listed})"
        fields = {
            "missing_records": causes.total(),
            "causes": dict(causes),
            "first_missing": timestamp(self._first),
            "last_missing": timestamp(self._last),
        }
        record = logging.LogRecord(LOGGER, logging.WARNING, "", 0, text, None, None)
        record.__dict__.update(fields)
        record.__dict__[ENTRY] = {"message": text, **fields}  # a file of entries has nothing else
        try:
            return Notice(write(record), causes)
        except Exception:  # a format that asks for fields of its own records
            return Notice((_default_formatter.format(record) + "\n").encode(), causes)
