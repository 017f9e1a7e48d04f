"""The command: `python -m tests.benchmarks [--quick] [WORKLOAD ...]`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import foundry_log
from tests.benchmarks.catalogue import ALL, STANDARD, find
from tests.benchmarks.goals import Verdict, summary
from tests.benchmarks.harness import Settings

_PEERS = (
    "foundry_log",
    "orjson",
    "msgspec",
    "structlog",
    "loguru",
    "picologging",
    "python-json-logger",
    "concurrent-log-handler",
    "codetiming",
    "torchtnt",
    "tensorboard",
    "trackio",
    "wandb",
    "torch",
)


def main(arguments: list[str] | None = None) -> int:
    """Print a table a workload; return 1 where a contender failed or memory grew, else 0."""
    options = _parser().parse_args(arguments)
    settings = Settings(options.quick, options.repeats, options.count, options.long)
    results: dict[str, Any] = {}
    verdicts: list[Verdict] = []
    is_ok = True
    for name in options.workloads or STANDARD:
        report = find(name).run(settings)
        print(report.text(), end="\n\n", flush=True)
        results[name] = report.data()
        verdicts += report.verdicts()
        is_ok = is_ok and report.ok
    note = "a smoke test: the figures mean nothing\n" if options.quick else ""
    print(f"{note}{summary(verdicts)}\n{_machine_line(machine())}")
    print(shlex.join(["python", "-m", "tests.benchmarks", *(arguments or sys.argv[1:])]))
    if options.json:
        goals = [verdict.data() for verdict in verdicts]
        document = {"machine": machine(), "workloads": results, "goals": goals}
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0 if is_ok else 1


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    versions = {}
    for name in _PEERS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    versions["foundry_log"] = foundry_log.__version__  # that of the source, which is what ran
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "versions": versions,
    }


def _machine_line(facts: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    head = f"Python {facts['python']}, {facts['platform']}, {facts['cpu_count']} CPUs"
    return f"{head}; {packages}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="What logging costs, against the limit and the peers, outputs verified.",
    )
    parser.add_argument(
        "workloads",
        nargs="*",
        metavar="WORKLOAD",
        type=_workload,
        help=f"{', '.join(ALL)}; all but the last by default",
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test: figures mean nothing")
    parser.add_argument("--repeats", type=_positive, help="processes of each contender")
    parser.add_argument("--count", type=_positive, help="operations of each process")
    parser.add_argument(
        "--long",
        action="store_true",
        help="ten million steps for `memory`, a million lines for `last_errors`",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON too")
    return parser


def _workload(text: str) -> str:
    if text not in ALL:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(ALL)}")
    return text


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
