"""The handlers under stress: how each is made, by the names that its rotated files get."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging
import logging.handlers
from collections.abc import Callable

from foundry_log import RotatingJsonlHandler

BACKUPS = 700
"""Rotated files kept; a round ends long before, so that retention takes no record."""

Make = Callable[[str], logging.Handler]

CONTENDERS = ("foundry_log", "stdlib", "concurrent-log-handler", "forgetful")
"""The last one loses records on purpose, to prove the check."""


def variants(contender: str, names: tuple[str, ...], max_bytes: int) -> dict[str, Make]:
    """Return factories of the contender's handler by a label of their rotated files' names.

    Args:
        contender: one of `CONTENDERS`.
        names: of `stable` and `numbered`; peers have numbered ones alone.
        max_bytes: size at which the file is rotated.

    Raises:
        ModuleNotFoundError: the contender is not installed.
    """
    if contender == "foundry_log":
        return _ours(names, max_bytes)
    if contender == "stdlib":
        return {"numbered": functools.partial(_stdlib, max_bytes=max_bytes)}
    if contender == "forgetful":
        return {"none": Forgetful}
    if importlib.util.find_spec("concurrent_log_handler") is None:
        raise ModuleNotFoundError(f"{contender} is not installed: pip install -e '.[bench]'")
    return {"numbered": functools.partial(_concurrent, max_bytes=max_bytes)}


class Forgetful(logging.FileHandler):
    """Drops every tenth record, and acknowledges it like the others."""

    _count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self._count += 1
        if self._count % 10:
            super().emit(record)


def _ours(names: tuple[str, ...], max_bytes: int) -> dict[str, Make]:
    ours = functools.partial(RotatingJsonlHandler, maxBytes=max_bytes, backupCount=BACKUPS)
    made: dict[str, Make] = {}
    if "numbered" in names:
        made["numbered"] = ours
    if "stable" in names:
        made["stable"] = functools.partial(ours, stable_names=True)
        if "compress" in inspect.signature(RotatingJsonlHandler).parameters:
            made["stable, gzip"] = functools.partial(ours, stable_names=True, compress=True)
    return made


def _stdlib(path: str, max_bytes: int) -> logging.Handler:
    _quieten()
    return logging.handlers.RotatingFileHandler(path, maxBytes=max_bytes, backupCount=BACKUPS)


def _concurrent(path: str, max_bytes: int) -> logging.Handler:
    from concurrent_log_handler import ConcurrentRotatingFileHandler

    _quieten()
    handler: logging.Handler = ConcurrentRotatingFileHandler(
        path, maxBytes=max_bytes, backupCount=BACKUPS
    )
    return handler


def _quieten() -> None:
    """Do without the stdlib's report of each record that its handler refuses."""
    logging.raiseExceptions = False
