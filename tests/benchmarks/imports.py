"""What an import costs, and the making of a formatter, in a fresh interpreter.

The child measures itself, so that the interpreter's own start does not count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.benchmarks.checks import Check, expect, strict_object
from tests.benchmarks.goals import Goal
from tests.benchmarks.harness import ROOT, Comparison, Contender, Subject

_CHILD = """
import sys, time
started = time.perf_counter_ns()
{code}
elapsed = time.perf_counter_ns() - started
import json, logging
record = logging.LogRecord("bench", logging.INFO, "", 0, "imported", (), None)
print(json.dumps([elapsed, formatter.format(record)]))
"""
_STDLIB = "import logging.config; formatter = logging.Formatter()"
_OURS = "import foundry_log; formatter = foundry_log.JsonFormatter()"
_PEER = "from pythonjsonlogger.{} import {} as kind; formatter = kind()"


def fresh(code: str, *, is_json: bool) -> Callable[[Path], Iterator[Subject]]:
    """Return what runs `code`, which sets `formatter`, in an interpreter for each step."""

    def start(directory: Path) -> Iterator[Subject]:
        lines: list[str] = []
        command = [sys.executable, "-c", _CHILD.format(code=code)]
        environment = dict(os.environ, PYTHONPYCACHEPREFIX=str(directory))  # compiled to warm up
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def run(steps: range) -> int:
            total_ns = 0
            for _ in steps:
                done = subprocess.run(
                    command,
                    cwd=ROOT,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=True,
                    timeout=60,
                )
                elapsed_ns, line = json.loads(done.stdout)
                total_ns += elapsed_ns
                lines.append(line)
            return total_ns

        yield Subject(run, _formatted(lines, is_json))

    return start


def _formatted(lines: list[str], is_json: bool) -> Check:
    def check(count: int) -> None:
        expect(len(lines) == count, f"{len(lines)} lines of {count} interpreters")
        for line in lines:
            message = strict_object(line)["message"] if is_json else line
            expect(message == "imported", f"the formatter made {line!r}")

    return check


IMPORT = Comparison(
    "import",
    "a fresh interpreter imports and makes a formatter",
    (
        Contender("limit: import logging.config", fresh(_STDLIB, is_json=False), role="limit"),
        Contender(
            "foundry_log + JsonFormatter",
            fresh(_OURS, is_json=True),
            role="ours",
            goal=Goal(40.0, unit="ms"),
        ),
        Contender(
            "python-json-logger json",
            fresh(_PEER.format("json", "JsonFormatter"), is_json=True),
            needs=("pythonjsonlogger",),
        ),
        Contender(
            "python-json-logger msgspec",
            fresh(_PEER.format("msgspec", "MsgspecFormatter"), is_json=True),
            needs=("pythonjsonlogger", "msgspec"),
        ),
    ),
    count=10,
    quick=1,
    repeats=5,
)
