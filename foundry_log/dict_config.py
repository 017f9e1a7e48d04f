"""The set-up of a run as the plain data that `logging.config.dictConfig` takes.

It names handlers, formatters and filters by their dotted names and imports none of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

from foundry_log.process import RankFiles, file_rank, rank, rank_label

LOG_NAME = "run.log"
JSONL_NAME = "run.jsonl"
MEBIBYTE = 1024 * 1024
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class LoggingSettings(Protocol):
    """What of `LoggingConfig` decides the set-up of handlers."""

    console_level: Any
    file_level: Any
    use_structured_logging: bool
    max_log_files: int
    max_log_size_mb: int
    compress_rotated_logs: bool
    after_rotation: str | None
    one_file_per_process: bool | None
    rank_files: RankFiles
    file_permissions: int
    background_writing: bool
    background_queue_size: int
    background_overflow: Any
    redact_secrets: bool
    redact_keys: list[str]
    redact_patterns: list[str]
    ship_to: str | None
    ship_every_s: float
    delete_shipped_after_days: float | None


def dict_config(
    settings: LoggingSettings,
    directory: str | os.PathLike[str],
    context: Mapping[str, Any],
    console: bool,
) -> dict[str, Any]:
    """Return the dict; see `LoggingConfig.to_dict_config`."""
    handlers = _file_handlers(settings, directory) if _writes_files(settings) else {}
    if console:
        handlers["console"] = {
            "class": "foundry_log.ConsoleHandler",
            "level": _console_level(settings),
            "formatter": "console",
        }
    if not handlers:  # without any, the stdlib's last resort would speak up
        handlers["nowhere"] = {"class": "logging.NullHandler"}
    filters: dict[str, Any] = {
        "context": {"()": "foundry_log.ContextFilter", "fields": dict(context)}
    }
    if settings.redact_secrets:  # last: it is to see what the others have added
        filters["redaction"] = {
            "()": "foundry_log.RedactingFilter",
            "keys": list(settings.redact_keys),
            "patterns": list(settings.redact_patterns),
        }
    for handler in handlers.values():
        handler["filters"] = list(filters)
    attached = list(handlers)
    if settings.background_writing:
        handlers["background"] = {
            "class": "foundry_log.BackgroundHandler",
            "handlers": attached,
            "capacity": settings.background_queue_size,
            "overflow": settings.background_overflow,
        }
        attached = ["background"]
    if settings.ship_to is not None and _writes_files(settings):
        handlers["shipping"] = _shipping_handler(settings, directory)
        attached.append("shipping")
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": filters,
        "formatters": {
            "console": {"()": "foundry_log.ConsoleFormatter", **_prefix()},
            "plain": {"()": "foundry_log.PlainFormatter"},
            "json": {"()": "foundry_log.JsonFormatter"},
        },
        "handlers": handlers,
        "root": {"level": _lowest(settings, console), "handlers": attached},
    }


def _writes_files(settings: LoggingSettings) -> bool:
    return settings.rank_files == "each" or rank() in (None, 0)


def _file_handlers(
    settings: LoggingSettings, directory: str | os.PathLike[str]
) -> dict[str, dict[str, Any]]:
    handlers = {"log": _file_handler(settings, os.path.join(directory, LOG_NAME), "plain")}
    if settings.use_structured_logging:
        handlers["jsonl"] = _file_handler(settings, os.path.join(directory, JSONL_NAME), "json")
    return handlers


def _file_handler(settings: LoggingSettings, path: str, formatter: str) -> dict[str, Any]:
    return {
        "class": "foundry_log.RotatingJsonlHandler",
        "level": settings.file_level,
        "formatter": formatter,
        "filename": os.path.abspath(path),
        "maxBytes": settings.max_log_size_mb * MEBIBYTE,
        "backupCount": settings.max_log_files,
        "stable_names": True,
        "compress": settings.compress_rotated_logs,
        "after_rotation": settings.after_rotation,
        "per_process": settings.one_file_per_process,
        "per_rank": file_rank(settings.rank_files) is not None,
        "permissions": settings.file_permissions,
        "delay": True,  # a directory that cannot be written costs a report, not the program's start
    }


def _shipping_handler(
    settings: LoggingSettings, directory: str | os.PathLike[str]
) -> dict[str, Any]:
    return {
        "class": "foundry_log.ShippingHandler",
        "directory": os.path.abspath(directory),
        "to": settings.ship_to,
        "scan_interval_s": settings.ship_every_s,
        "delete_after_days": settings.delete_shipped_after_days,
    }


def _console_level(settings: LoggingSettings) -> str:
    """Return the configured level; of other ranks than the first, warnings are what one reads."""
    configured = str(settings.console_level)
    return configured if rank() in (None, 0) else max(configured, "WARNING", key=_LEVELS.index)


def _prefix() -> dict[str, str]:
    label = rank_label()
    return {"prefix": f"[{label}] "} if label else {}


def _lowest(settings: LoggingSettings, console: bool) -> str:
    used = [str(settings.file_level)] if _writes_files(settings) else []
    used += [_console_level(settings)] if console else []
    return min(used or ["CRITICAL"], key=_LEVELS.index)
