"""The architecture: what a file may import, what the package promises, what an import does."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import foundry_log

pytestmark = pytest.mark.unit

PACKAGE = Path(foundry_log.__file__).parent

LAYERS = (
    # values: plain functions of any value, facts of the process, files and locks
    {
        "clock",
        "backoff",
        "encoding",
        "process",
        "extras",
        "threads",
        "running_stats",
        "files.*",
        "noticing",
        "redaction",
        "tracebacks",
        "exception_data",
        "decorating",
        "device_timing",
        "tensors",
    },
    # records and configuration
    {"context", "records", "config", "dict_config", "run_directory"},
    # formatters and filters
    {"formatters", "text_formatters", "filters"},
    # handlers and readers
    {"handlers.*", "jsonl"},
    # loggers and the set-up
    {
        "adapters",
        "plain_loggers",
        "metrics",
        "metric_statistics",
        "metric_history",
        "metric_alarms",
        "performance",
        "error_tracker",
        "system_metrics",
        "timer_thread",
        "watchdog",
        "signals",
        "logger",
        "session",
    },
    # sinks
    {"sinks.*"},
    # wings
    {"training.*", "shipping.*", "services.*"},
    # command line
    {"demo", "ship", "serve", "terminal", "cli"},
)

PUBLIC = {
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
}


def modules() -> dict[str, Path]:
    """Module name below the package to file; the packages' own `__init__` files left out."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }


def layer_of(module: str) -> int:
    """The layer that claims a module."""
    wing = module.split(".")[0] + ".*"
    found = [n for n, names in enumerate(LAYERS) if module in names or wing in names]
    assert len(found) == 1, f"{module} stands in {len(found)} layers; give it one in LAYERS"
    return found[0]


def imports_of(path: Path) -> set[str]:
    """Names of the package that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: imports are absolute"
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name.removeprefix("foundry_log.") for name in names if name.startswith("foundry_log.")}


def graph() -> dict[str, set[str]]:
    """Module to the modules it imports."""
    known = modules()
    return {name: imports_of(path) & set(known) - {name} for name, path in known.items()}


def test_imports_run_downwards() -> None:
    """A file imports from its own layer or a lower one, lazy imports counted."""
    upwards = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if layer_of(other) > layer_of(name)
    ]
    assert not upwards


def test_the_wings_do_not_import_each_other() -> None:
    """Who trains need not ship, and the other way round."""
    wings = {"training", "shipping", "services"}
    crossing = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if len({name.split(".")[0], other.split(".")[0]} & wings) == 2
    ]
    assert not crossing


def test_no_files_import_each_other_in_a_circle() -> None:
    """Within a layer too there is an order in which the files can be read."""
    left = graph()
    while left:
        leaves = [name for name, others in left.items() if not others & set(left)]
        assert leaves, f"a circle among {sorted(left)}"
        for name in leaves:
            del left[name]


def test_the_public_list_is_as_promised() -> None:
    """What is in `__all__` is what users may rely on."""
    assert set(foundry_log.__all__) == PUBLIC


def test_each_public_name_lives_in_the_package() -> None:
    """Dotted paths of configurations and pickles do not name the module behind."""
    for name in PUBLIC - {"Trainer"}:
        assert getattr(foundry_log, name).__module__ == "foundry_log", name


def test_an_unknown_name_is_an_attribute_error() -> None:
    """The lazy package fails like any module."""
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        foundry_log.Nonsense


def run_python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def test_importing_the_package_loads_none_of_its_dependencies() -> None:
    """`import foundry_log` is light."""
    heavy = "{'torch', 'numpy', 'pydantic', 'psutil', 'msgspec', 'pythonjsonlogger', 'logging'}"
    assert run_python(f"import sys, foundry_log; print({heavy} & set(sys.modules))") == "set()\n"


def test_the_formatter_does_not_load_pydantic_or_torch() -> None:
    """Each public name brings what it needs and no more."""
    code = (
        "import sys, foundry_log; foundry_log.JsonFormatter; foundry_log.RotatingJsonlHandler; "
        "print({'torch', 'numpy', 'pydantic', 'psutil'} & set(sys.modules))"
    )
    assert run_python(code) == "set()\n"


def test_importing_everything_changes_nothing_in_the_process() -> None:
    """No handler, level, record factory, signal handler, exception hook or thread."""
    code = """
import logging, signal, sys, threading, warnings
def state():
    return (
        logging.getLogger().handlers[:], logging.getLogger().level, logging.getLogRecordFactory(),
        [signal.getsignal(s) for s in signal.valid_signals()], sys.excepthook,
        threading.excepthook, threading.active_count(), logging.getLoggerClass(),
    )
before = state()
import foundry_log
for name in set(foundry_log.__all__) - {"Trainer"}:
    getattr(foundry_log, name)
print(state() == before)
"""
    assert run_python(code) == "True\n"
