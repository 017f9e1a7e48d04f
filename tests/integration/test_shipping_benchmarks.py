"""The benchmarks that need a server run, and what arrives there is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.integration, pytest.mark.services]


@pytest.mark.parametrize("workload", ["ship_small", "ship_large"])
def test_each_contender_uploads_everything(workload: str, azurite: Any, tmp_path: Path) -> None:
    """GIVEN the server's program WHEN each contender runs THEN none fails and none is left out."""
    result = tmp_path / "result.json"
    command = [sys.executable, "-m", "tests.benchmarks", workload, "--quick", "--count", "10"]
    done = subprocess.run(
        [*command, "--json", str(result)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )

    found = json.loads(result.read_text())["workloads"][workload]
    assert (found["failed"], found["skipped"]) == ({}, {})
    assert len(found["rows"]) == 3
    assert done.returncode == 0, done.stderr
