"""The benchmarks that need a server run, and what arrives there is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICES = "needs test-services: pip install 'foundry_log[test-services]'"
pytestmark = [pytest.mark.integration, pytest.mark.services]


def figures(workload: str, directory: Path, *arguments: str) -> dict[str, Any]:
    """What the command finds out about one workload."""
    result = directory / "result.json"
    command = [sys.executable, "-m", "tests.benchmarks", workload, "--quick", *arguments]
    done = subprocess.run(
        [*command, "--json", str(result)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(result.read_text())["workloads"][workload]
    return found


@pytest.mark.parametrize("workload", ["ship_small", "ship_large"])
def test_each_contender_uploads_everything(workload: str, azurite: Any, tmp_path: Path) -> None:
    """GIVEN the server's program WHEN each contender runs THEN none fails and none is left out."""
    found = figures(workload, tmp_path, "--count", "10")
    assert (found["failed"], found["skipped"]) == ({}, {})
    assert len(found["rows"]) == 3


@pytest.mark.parametrize(
    ("workload", "package"), [("budget", "aiohttp"), ("model", "instructor"), ("bus", "proton")]
)
def test_each_service_does_all_its_work(workload: str, package: str, tmp_path: Path) -> None:
    """GIVEN servers on loopback WHEN limit and service run THEN the servers have seen it all."""
    pytest.importorskip(package, reason=SERVICES)
    found = figures(workload, tmp_path)
    assert (found["failed"], found["skipped"]) == ({}, {})
    assert len(found["rows"]) == 2


def test_memory_of_a_bus_handler_is_sampled_from_start_to_end(tmp_path: Path) -> None:
    """Too few messages here to say that memory is flat."""
    pytest.importorskip("proton", reason=SERVICES)
    found = figures("bus_memory", tmp_path)
    assert found["samples"][0][0] < 30 < 290 < found["samples"][-1][0] <= 300
