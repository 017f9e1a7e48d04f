"""The benchmarks' harness: isolation, verification, skipping, ratios. No test looks at a time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.unit


def benchmarks(
    result: Path, *arguments: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run the command as people do; return the process and the workloads of its JSON file."""
    command = [sys.executable, "-m", "tests.benchmarks", "--json", str(result), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    document = json.loads(result.read_text()) if result.exists() else {"workloads": {}}
    return done, document["workloads"]


@pytest.fixture(scope="module")
def selftest(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """The workload of contenders that go wrong, run twice by turns."""
    result = tmp_path_factory.mktemp("selftest") / "result.json"
    return benchmarks(result, "selftest", "--quick", "--repeats", "2")


@pytest.mark.parametrize(
    ("contender", "reason"),
    [
        ("loses one", "WrongOutput: 21 lines where 22 were logged"),
        ("repeats a step", "WrongOutput: step=6 where 7 was logged"),
        ("late", "WrongOutput: 0 lines where 22 were logged"),
        ("writes NaN", "NaN is not JSON"),
        ("forgets a field", "no field 'loss'"),
        ("raises", "RuntimeError: no step 0"),
        ("dies", "exit status 3"),
    ],
)
def test_a_contender_with_wrong_output_is_failed_and_not_timed(
    selftest: tuple[subprocess.CompletedProcess[str], dict[str, Any]], contender: str, reason: str
) -> None:
    """Whatever goes wrong, the row is gone, the reason is shown and the exit status says so."""
    done, workloads = selftest
    result = workloads["selftest"]
    assert reason in result["failed"][contender]
    assert contender not in {row["name"] for row in result["rows"]}
    assert contender not in result["times_us"]
    assert f"FAILED   {contender}: " in done.stdout
    assert done.returncode == 1


def test_right_contenders_are_timed_among_the_wrong_ones(
    selftest: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    """One figure for each process; what is complete only at its close counts where that is said."""
    _, workloads = selftest
    times = workloads["selftest"]["times_us"]
    assert set(times) == {"limit", "right", "late but buffered"}
    assert all(len(figures) == 2 and min(figures) > 0 for figures in times.values())


def test_ratios_are_medians_of_the_ratios_within_each_repeat(
    selftest: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    """The limit is 1 times itself, ours 1 times ours, and the others follow from the raw times."""
    _, workloads = selftest
    result = workloads["selftest"]
    rows = {row["name"]: row for row in result["rows"]}
    times = result["times_us"]
    assert rows["limit"]["to_limit"] == rows["right"]["to_ours"] == 1.0
    ratios = [ours / limit for ours, limit in zip(times["right"], times["limit"], strict=True)]
    assert rows["right"]["to_limit"] == pytest.approx(sum(ratios) / 2)
    assert rows["right"]["median_us"] == pytest.approx(sum(times["right"]) / 2)


def test_a_missing_peer_is_skipped_with_the_way_to_install_it(
    selftest: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    """An absent package is no failure, and the message names the extra."""
    done, workloads = selftest
    expected = "needs a_module_that_nobody_has; pip install -e '.[bench]'"
    assert workloads["selftest"]["skipped"] == {"missing": expected}
    assert f"skipped  missing: {expected}" in done.stdout


COMPARISONS = {
    "structured": ("limit: ", "foundry_log StructuredLogger", "stdlib FileHandler, text"),
    "plain": ("limit: ", "foundry_log formatter and handler", "stdlib FileHandler, text"),
    "log_step": ("limit: ", "foundry_log MetricsLogger", "csv + flush"),
    "time_block": ("limit: ", "foundry_log time_block", "contextmanager, dict of lists"),
    "disabled": ("limit: ", "foundry_log StructuredLogger", "stdlib, extra"),
    "exception": ("limit: ", "foundry_log StructuredLogger", "stdlib FileHandler, text"),
    "rotation": ("limit: ", "foundry_log, numbered", "foundry_log, stable names"),
    "import": ("limit: ", "foundry_log + JsonFormatter", "python-json-logger json"),
}


@pytest.mark.parametrize("workload", COMPARISONS)
def test_each_workload_runs_and_every_output_is_right(workload: str, tmp_path: Path) -> None:
    """A few operations of each contender that is installed; the table has what the JSON has."""
    counts = () if workload == "import" else ("--count", "30")
    done, workloads = benchmarks(tmp_path / "result.json", workload, "--quick", *counts)
    result = workloads[workload]
    assert result["failed"] == {}
    assert done.returncode == 0, done.stderr
    names = [row["name"] for row in result["rows"]]
    for expected in COMPARISONS[workload]:
        assert any(name.startswith(expected) for name in names), names
    assert all(row["to_limit"] and row["to_ours"] for row in result["rows"])
    for name in names:
        assert re.search(
            rf"^{re.escape(name)}  +[\d.,]+  +± \d+%  +[\d.,]+  +[\d.,]+$", done.stdout, re.M
        )


def test_memory_is_sampled_from_start_to_end(tmp_path: Path) -> None:
    """Every tenth of the run has its sample; too few steps here to say that memory is flat."""
    done, workloads = benchmarks(tmp_path / "result.json", "memory", "--count", "500")
    result = workloads["memory"]
    assert [steps for steps, _ in result["samples"]] == [0, *range(50, 501, 50)]
    assert "MB from a tenth to the end: flat" in done.stdout
    assert done.returncode == 0


def test_rotation_is_exercised_at_its_real_size(tmp_path: Path) -> None:
    """Enough records for files to be rotated; their check finds each step once."""
    _, workloads = benchmarks(
        tmp_path / "result.json", "rotation", "--count", "9000", "--repeats", "1"
    )
    assert workloads["rotation"]["failed"] == {}


def test_an_unknown_workload_is_refused(tmp_path: Path) -> None:
    """The message lists those that there are."""
    done, _ = benchmarks(tmp_path / "result.json", "speed")
    assert done.returncode == 2
    assert "'speed' is none of structured, plain, log_step" in done.stderr
