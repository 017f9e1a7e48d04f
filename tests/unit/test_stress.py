"""The stress command: short runs of it, as people start it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.unit


def stress(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.stress", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def rows(output: str) -> list[dict[str, str]]:
    """Return the rows of the Markdown table by their heads."""
    lines = [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("|")]
    heads, _, *cells = lines
    return [dict(zip(heads, row, strict=True)) for row in cells]


def test_every_kind_of_names_is_under_stress() -> None:
    """Nothing that was acknowledged is lost, doubled, glued or torn."""
    done = stress("--quick", "--seed", "1", "--sizes", "100,50000")
    assert (done.returncode, done.stderr) == (0, "")
    table = rows(done.stdout)
    kinds = {(row["rotated names"], row["record, bytes"]) for row in table}
    sizes = ("100", "50,000")
    assert kinds >= {(names, size) for names in ("stable", "numbered") for size in sizes}
    for row in table:
        assert min(int(row[head].replace(",", "")) for head in ("kills", "acknowledged")) > 0
        for fault in ("lost", "doubled", "glued", "torn", "disordered", "misread"):
            assert row[fault] == "0", done.stdout


def test_a_handler_that_loses_makes_it_fail() -> None:
    """The table says how much."""
    done = stress("--quick", "--contender", "forgetful", "--sizes", "100")
    assert done.returncode == 1
    (row,) = rows(done.stdout)
    assert int(row["lost"].replace(",", "")) > 0


def test_options_choose_what_is_run() -> None:
    """Names, sizes and the number of writers."""
    done = stress(
        "--quick", "--numbered", "--sizes", "50,900", "--processes", "2", "--threads", "1"
    )
    assert done.returncode == 0
    chosen = [
        (row["rotated names"], row["record, bytes"], row["processes × threads"])
        for row in rows(done.stdout)
    ]
    assert chosen == [("numbered", "50", "2 × 1"), ("numbered", "900", "2 × 1")]


def test_an_option_out_of_range_is_refused() -> None:
    """With what it must be."""
    done = stress("--processes", "0")
    assert done.returncode == 2
    assert "0 must be 1 or more" in done.stderr
