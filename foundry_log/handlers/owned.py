"""The handler of a file of entries, owned by the one logger that calls it: no level, `propagate` or
`dictConfig` comes between a step or an error and its line.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foundry_log.dict_config import MEBIBYTE
from foundry_log.filters import RedactingFilter
from foundry_log.formatters import EntryFormatter
from foundry_log.handlers.background import BackgroundHandler
from foundry_log.handlers.rotating_jsonl import RotatingJsonlHandler


def owned_handler(
    path: Path,
    max_size_mb: float,
    logger: logging.Logger | logging.LoggerAdapter[Any],
    permissions: int = 0o640,
    per_process: bool | None = None,
) -> RotatingJsonlHandler:
    """Return the handler; its directory is made.

    Args:
        path: of the file; rotated under names that stay, never pruned.
        max_size_mb: MiB (2^20 bytes) at which it is rotated.
        logger: that says the same for people. Where its records are redacted, so are the entries.
        permissions: of new files, before the umask.
        per_process: as of `RotatingJsonlHandler`.
    """
    handler = RotatingJsonlHandler(
        path,
        maxBytes=int(max_size_mb * MEBIBYTE),
        stable_names=True,
        delay=True,
        permissions=permissions,
        per_process=per_process,
    )
    handler.setFormatter(EntryFormatter())
    handler.addFilter(_SameRedaction(logger))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        pass  # each line tries again, and the first that fails is reported
    return handler


class _SameRedaction(logging.Filter):
    """Takes out of entries what is taken out of a logger's records at the time."""

    def __init__(self, logger: logging.Logger | logging.LoggerAdapter[Any]) -> None:
        super().__init__()
        self._logger = logger

    def filter(self, record: logging.LogRecord) -> bool:
        for redaction in redactions(self._logger):
            redaction.filter(record)
        return True


def redactions(logger: Any) -> Iterator[RedactingFilter]:
    """Yield the redacting filters of all handlers that the logger's records reach."""
    while isinstance(logger, logging.LoggerAdapter):
        logger = logger.logger
    while isinstance(logger, logging.Logger):
        for handler in logger.handlers:
            behind = handler.handlers if isinstance(handler, BackgroundHandler) else ()
            for writer in (handler, *behind):
                yield from (f for f in writer.filters if isinstance(f, RedactingFilter))
        logger = logger.parent if logger.propagate else None
