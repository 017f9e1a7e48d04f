"""A training run of two ranks, started by the real torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foundry_log import ExperimentConfig, Trainer, read_jsonl

torch = pytest.importorskip("torch", reason="needs torch: pip install 'foundry_log[torch]'")
torch.set_num_threads(1)  # two threads are many times slower on some machines

pytestmark = [pytest.mark.integration, pytest.mark.long]

SCRIPT = """
import sys, torch
from foundry_log import ExperimentConfig, Trainer
torch.set_num_threads(1)
config = ExperimentConfig.model_validate_json(open(sys.argv[1]).read())
Trainer(config, sys.argv[2]).train(resume=True)
"""


@pytest.fixture
def config(tiny_config: ExperimentConfig) -> ExperimentConfig:
    """Twelve steps, a checkpoint every five, and an evaluation at the end."""
    tiny_config.training.train_steps = 12
    tiny_config.training.checkpoint_every_n_steps = 5
    tiny_config.logging.system_metrics_interval_s = None
    return tiny_config


def launched(config: ExperimentConfig, base: Path, ranks: int = 2) -> subprocess.Popen[str]:
    """torchrun with that many ranks of the script."""
    (base / "config.json").write_text(config.model_dump_json())
    (base / "train.py").write_text(SCRIPT)
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={ranks}", str(base / "train.py")),
            *(str(base / "config.json"), str(base)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finished(process: subprocess.Popen[str]) -> str:
    """What it has shown on the terminal, once it has ended well."""
    try:
        _, shown = process.communicate(timeout=100)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, shown
    return shown


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something that a process does; at most a minute."""
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)


def by_step(path: Path, name: str) -> dict[int, Any]:
    """A metric of each step in a file."""
    return {e["step"]: e["metrics"][name] for e in read_jsonl(path) if "metrics" in e}


def test_two_ranks_train_as_one_with_twice_the_batch(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    """
    GIVEN: two ranks with batches of two, and one process with batches of four
    WHEN: both have trained
    THEN: mean losses agree; each rank has files of its own, which read as one, merged by time;
        and one process is refused their checkpoint, by name of what differs.
    """
    finished(launched(config, tmp_path))
    directory = tmp_path / "test" / "output"
    double = config.model_copy(deep=True)
    double.training.batch_size = 4
    alone = Trainer(double, tmp_path / "alone")
    alone.train()
    expected = by_step(alone.directory.metrics, "loss")

    ranks = [by_step(directory / f"metrics@rank{rank}.jsonl", "loss") for rank in (0, 1)]
    means = {step: (ranks[0][step] + ranks[1][step]) / 2 for step in ranks[0]}
    assert ranks[0] != ranks[1]
    assert means == pytest.approx(expected, rel=1e-4)
    norms = [by_step(directory / f"metrics@rank{rank}.jsonl", "grad_norm") for rank in (0, 1)]
    assert norms[0] == norms[1]
    assert norms[0] == pytest.approx(by_step(alone.directory.metrics, "grad_norm"), rel=1e-3)

    files = ("run{}.log", "run{}.jsonl", "metrics{}.jsonl", "timing_report{}.json")
    of_each = {name.format(f"@rank{rank}") for name in files for rank in (0, 1)}
    found = {path.name for path in directory.iterdir() if path.is_file()}
    assert {name for name in found if not name.endswith(".lock")} == of_each | {"run_info.json"}
    merged = list(read_jsonl(directory / "run.jsonl"))
    assert {entry["context"]["rank"] for entry in merged} == {0, 1}
    assert {"local_rank", "world_size", "node", "host"} <= set(merged[0]["context"])
    stamps = [entry["timestamp"] for entry in merged]
    assert stamps == sorted(stamps)
    checkpoints = sorted(path.name for path in (directory / "checkpoints").iterdir())
    assert checkpoints == ["step_000005", "step_000010", "step_000012"]

    with pytest.raises(ValueError, match="ranks=1, and the checkpoint's run had 2"):
        Trainer(config, tmp_path).train(resume=True)


def test_reduced_metrics_stand_once(config: ExperimentConfig, tmp_path: Path) -> None:
    """
    GIVEN: metrics reduced over the ranks, files of the first rank alone
    WHEN: two ranks have trained with dropout, and one process with twice the batch
    THEN: there is one file set under plain names, one line a step with the mean loss.
    """
    config.logging.reduce_metrics = True
    config.logging.rank_files = "first"
    shown = finished(launched(config, tmp_path))
    directory = tmp_path / "test" / "output"
    config.training.batch_size = 4
    alone = Trainer(config, tmp_path / "alone")
    alone.train()
    found = by_step(directory / "metrics.jsonl", "loss")
    assert found == pytest.approx(by_step(alone.directory.metrics, "loss"), rel=1e-4)
    assert not list(directory.glob("*@rank*"))
    assert "Starting training loop" in shown
    assert all("[rank 0]" in line for line in shown.splitlines() if "Starting training" in line)


def test_killed_and_resumed_two_ranks_have_the_same_end(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    """
    GIVEN: two ranks, one of which is killed with SIGKILL in the middle
    WHEN: the run is started again
    THEN: the other one does not hang, and each rank's losses are those of one run.
    """
    config.model.dropout = 0.2
    config.data.max_megabytes = 0.0018  # epochs of 26 steps, none of which ends at a checkpoint
    config.training.epochs = None
    config.training.train_steps = 100
    config.training.checkpoint_every_n_steps = 20
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    finished(launched(config, tmp_path / "whole"))
    process = launched(config, tmp_path / "parts")
    directory = tmp_path / "parts" / "test" / "output"
    second = directory / "metrics@rank1.jsonl"
    try:
        until(lambda: second.exists() and len(by_step(second, "loss")) > 50, process)
        children = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        assert len(children) == 2
        os.kill(int(children[1]), signal.SIGKILL)
        process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    finished(launched(config, tmp_path / "parts"))

    for rank in (0, 1):
        summaries = []
        for name in ("whole", "parts"):
            path = tmp_path / name / "test" / "output" / f"metrics@rank{rank}.jsonl"
            entries = [json.loads(line) for line in path.read_text().splitlines()]
            summaries.append({e["epoch"]: e["summary"]["loss"] for e in entries if "summary" in e})
        assert summaries[0] == summaries[1]
        assert summaries[0], "otherwise this shows nothing"
        histories = []
        for name in ("whole", "parts"):
            path = tmp_path / name / "test" / "output" / f"metrics@rank{rank}.jsonl"
            entries = [json.loads(line) for line in path.read_text().splitlines()]
            # The present history: the last line of each step, as each attempt rewinds to its start.
            histories.append({e["step"]: e["metrics"]["loss"] for e in entries if "metrics" in e})
        assert histories[0] == histories[1]
        assert len(histories[1]) == 100
