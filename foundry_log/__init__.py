"""Logging for training runs and services, on top of the standard library's `logging`.

Everything a run says is a LogRecord: messages, steps, errors, timings. See the README.

Importing this package configures nothing and imports next to nothing: each public name loads its
module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.6.0"

_HOME = {
    "AsyncBlobStorageUploader": "shipping.blob_storage",
    "AsyncServiceBusHandler": "services.service_bus",
    "AzureOpenAIService": "services.azure_openai_service",
    "BackgroundHandler": "handlers.background",
    "ConsoleFormatter": "text_formatters",
    "ConsoleHandler": "handlers.console",
    "ContentFilterError": "services.model_errors",
    "ContextFilter": "filters",
    "ErrorTracker": "error_tracker",
    "ExperimentConfig": "config",
    "JsonFormatter": "formatters",
    "LogMonitorService": "shipping.log_monitor",
    "LoggingConfig": "config",
    "LoggingSession": "session",
    "MetricsLogger": "metrics",
    "OutputLengthError": "services.model_errors",
    "PerformanceLogger": "performance",
    "PlainFormatter": "text_formatters",
    "RedactingFilter": "filters",
    "RefusalError": "services.model_errors",
    "RejectMessage": "services.service_bus",
    "RetryLater": "services.service_bus",
    "RotatingJsonlHandler": "handlers.rotating_jsonl",
    "RunDirectory": "run_directory",
    "ShippingHandler": "shipping.handler",
    "SinkHandler": "sinks.base",
    "StructuredLogger": "adapters",
    "SystemMonitor": "system_metrics",
    "TensorBoardHandler": "sinks.tensorboard",
    "TokenBudgetError": "services.model_errors",
    "TokenClient": "services.token_client",
    "Trainer": "training.trainer",
    "WandbHandler": "sinks.wandb",
    "Watchdog": "watchdog",
    "bound": "context",
    "configure": "session",
    "decode_line": "encoding",
    "encode_line": "encoding",
    "fast_loggers": "plain_loggers",
    "get_app_name": "logger",
    "get_logger": "logger",
    "read_jsonl": "jsonl",
    "shutdown_logging": "logger",
    "with_token_limit_retry": "services.retry_helpers",
    "with_token_limit_retry_decorator": "services.retry_helpers",
}

__all__ = [
    "AsyncBlobStorageUploader",
    "AsyncServiceBusHandler",
    "AzureOpenAIService",
    "BackgroundHandler",
    "ConsoleFormatter",
    "ConsoleHandler",
    "ContentFilterError",
    "ContextFilter",
    "ErrorTracker",
    "ExperimentConfig",
    "JsonFormatter",
    "LogMonitorService",
    "LoggingConfig",
    "LoggingSession",
    "MetricsLogger",
    "OutputLengthError",
    "PerformanceLogger",
    "PlainFormatter",
    "RedactingFilter",
    "RefusalError",
    "RejectMessage",
    "RetryLater",
    "RotatingJsonlHandler",
    "RunDirectory",
    "ShippingHandler",
    "SinkHandler",
    "StructuredLogger",
    "SystemMonitor",
    "TensorBoardHandler",
    "TokenBudgetError",
    "TokenClient",
    "Trainer",
    "WandbHandler",
    "Watchdog",
    "bound",
    "configure",
    "decode_line",
    "encode_line",
    "fast_loggers",
    "get_app_name",
    "get_logger",
    "read_jsonl",
    "shutdown_logging",
    "with_token_limit_retry",
    "with_token_limit_retry_decorator",
]

if TYPE_CHECKING:
    from foundry_log.adapters import StructuredLogger
    from foundry_log.config import ExperimentConfig, LoggingConfig
    from foundry_log.context import bound
    from foundry_log.encoding import decode_line, encode_line
    from foundry_log.error_tracker import ErrorTracker
    from foundry_log.filters import ContextFilter, RedactingFilter
    from foundry_log.formatters import JsonFormatter
    from foundry_log.handlers.background import BackgroundHandler
    from foundry_log.handlers.console import ConsoleHandler
    from foundry_log.handlers.rotating_jsonl import RotatingJsonlHandler
    from foundry_log.jsonl import read_jsonl
    from foundry_log.logger import get_app_name, get_logger, shutdown_logging
    from foundry_log.metrics import MetricsLogger
    from foundry_log.performance import PerformanceLogger
    from foundry_log.plain_loggers import fast_loggers
    from foundry_log.run_directory import RunDirectory
    from foundry_log.services.azure_openai_service import AzureOpenAIService
    from foundry_log.services.model_errors import (
        ContentFilterError,
        OutputLengthError,
        RefusalError,
        TokenBudgetError,
    )
    from foundry_log.services.retry_helpers import (
        with_token_limit_retry,
        with_token_limit_retry_decorator,
    )
    from foundry_log.services.service_bus import (
        AsyncServiceBusHandler,
        RejectMessage,
        RetryLater,
    )
    from foundry_log.services.token_client import TokenClient
    from foundry_log.session import LoggingSession, configure
    from foundry_log.shipping.blob_storage import AsyncBlobStorageUploader
    from foundry_log.shipping.handler import ShippingHandler
    from foundry_log.shipping.log_monitor import LogMonitorService
    from foundry_log.sinks.base import SinkHandler
    from foundry_log.sinks.tensorboard import TensorBoardHandler
    from foundry_log.sinks.wandb import WandbHandler
    from foundry_log.system_metrics import SystemMonitor
    from foundry_log.text_formatters import ConsoleFormatter, PlainFormatter
    from foundry_log.training.trainer import Trainer
    from foundry_log.watchdog import Watchdog


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    value.__module__ = __name__  # the path that configurations and pickles name stays put
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
