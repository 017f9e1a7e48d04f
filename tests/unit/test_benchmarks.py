"""The benchmarks' harness: isolation, verification, skipping, ratios. No test looks at a time."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import foundry_log

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
        ("repeats one of any order", "WrongOutput: step=6 where 7 was logged"),
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
    assert set(times) == {"limit", "right", "late but buffered", "too slow for its goal"}
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
    remedy = "pip install -e '.[bench]'"
    expected = {
        "missing": f"needs a_module_that_nobody_has; {remedy}",
        "missing name": f"needs json.a_module_that_nobody_has; {remedy}",
    }
    assert workloads["selftest"]["skipped"] == expected
    assert all(f"skipped  {name}: {why}" in done.stdout for name, why in expected.items())


@pytest.mark.parametrize(
    ("contender", "goal", "verdict"),
    [
        ("right", "≤ 1,000,000,000 × limit", "met"),
        ("too slow for its goal", "≤ 0.000 × right", "MISSED"),
        ("dies", "≤ 1.00 × limit", "FAILED"),
        ("missing", "≤ 1.00 ms", "skipped"),
    ],
)
def test_the_summary_has_each_goal_with_its_verdict(
    selftest: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
    contender: str,
    goal: str,
    verdict: str,
) -> None:
    """Goals are met, missed, or say why there is no figure; those of `--long` are not there."""
    done, _ = selftest
    summary = done.stdout[done.stdout.rindex("\nwork ") :]
    assert re.search(rf"^selftest  {contender}  .*{goal}  .*{verdict}", summary, re.M), summary
    assert "selftest  long" not in summary


def test_the_summary_names_machine_versions_and_command(
    selftest: tuple[subprocess.CompletedProcess[str], dict[str, Any]],
) -> None:
    """A figure that is quoted carries what it depends on."""
    done, _ = selftest
    machine, command = done.stdout.splitlines()[-2:]
    assert machine.startswith(f"Python {platform.python_version()}, ")
    assert f"foundry_log {foundry_log.__version__}" in machine
    assert command.startswith("python -m tests.benchmarks ")
    assert command.endswith(" selftest --quick --repeats 2")


COMPARISONS = {
    "structured": ("limit: ", "foundry_log StructuredLogger", "stdlib FileHandler, text"),
    "plain": ("limit: ", "foundry_log formatter and handler", "stdlib FileHandler, text"),
    "setup": ("limit: ", "foundry_log.configure, StructuredLogger", "foundry_log.configure, plain"),
    "fields20": ("limit: ",),  # the others need numpy
    "background": ("limit: ", "foundry_log BackgroundHandler, plain logger"),
    "background_paced": ("limit: ", "foundry_log BackgroundHandler, StructuredLogger"),
    "threads": ("limit: ", "foundry_log StructuredLogger", "stdlib FileHandler, text"),
    "log_step": ("limit: ", "foundry_log MetricsLogger", "csv + flush"),
    "statistics": ("foundry_log, 10,000 steps", "foundry_log, 200,000 steps"),
    "last_errors": ("limit: ", "foundry_log, 200,000 lines"),
    "training": (),  # needs torch
    "training_paced": (),
    "trackers": ("foundry_log, no tracker", "foundry_log, a tracker that sleeps 5 s a call"),
    "time_block": ("limit: ", "foundry_log time_block", "contextmanager, dict of lists"),
    "disabled": ("limit: ", "foundry_log StructuredLogger", "stdlib, extra"),
    "exception": ("limit: ", "foundry_log StructuredLogger", "stdlib FileHandler, text"),
    "rotation": ("limit: ", "foundry_log, numbered", "foundry_log, stable names"),
    "processes": ("limit: ", "foundry_log", "foundry_log StructuredLogger"),
    "import": ("limit: ", "foundry_log + JsonFormatter", "python-json-logger json"),
    "ship_scan": ("limit: ", "LogMonitorService.scan"),
    "ship_idle": ("LogMonitorService.scan",),
    "ship_queue": ("limit: ", "upload_file"),
}


COUNTS = {
    "rotation": ["--count", "6500"],  # enough for files to be rotated
    "statistics": [],
    "training_paced": [],  # a step takes its 20 ms
    "trackers": [],
    "import": [],
    "ship_idle": [],
}


QUICK = {"structured", "log_step", "ship_queue"}
"""Workloads that every run of the suite tries; the others take a minute together."""


@pytest.mark.parametrize(
    "workload",
    [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.long]) for name in COMPARISONS],
)
def test_each_workload_runs_and_every_output_is_right(workload: str, tmp_path: Path) -> None:
    """A few operations of each contender that is installed; the table has what the JSON has."""
    counts = COUNTS.get(workload, ["--count", "30"])
    done, workloads = benchmarks(tmp_path / "result.json", workload, "--quick", *counts)
    result = workloads[workload]
    assert result["failed"] == {}
    assert done.returncode == 0, done.stderr
    names = [row["name"] for row in result["rows"]]
    for expected in COMPARISONS[workload]:
        assert any(name.startswith(expected) for name in names), names
    has_limit = any(row["role"] == "limit" for row in result["rows"])
    assert all(bool(row["to_limit"]) is has_limit for row in result["rows"])
    for name in names:
        assert re.search(
            # What is added may be less than nothing on a busy machine, and so may its ratio.
            rf"^{re.escape(name)}  +[-\d.,]+  +± -?\d+%  +[-–\d.,]+  +[-–\d.,]+$",
            done.stdout,
            re.M,
        )


def test_memory_is_sampled_from_start_to_end(tmp_path: Path) -> None:
    """Every tenth of the run has its sample; too few steps here to say that memory is flat."""
    done, workloads = benchmarks(tmp_path / "result.json", "memory", "--count", "500")
    result = workloads["memory"]
    assert [steps for steps, _ in result["samples"]] == [0, *range(50, 501, 50)]
    assert "MB from a tenth to the end: flat" in done.stdout
    assert done.returncode == 0


def test_an_unknown_workload_is_refused(tmp_path: Path) -> None:
    """The message lists those that there are."""
    done, _ = benchmarks(tmp_path / "result.json", "speed")
    assert done.returncode == 2
    assert "'speed' is none of structured, plain, setup" in done.stderr
