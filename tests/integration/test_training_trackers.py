"""A training run and its trackers: the real W&B offline, real event files, and all of it at once.

Each run is a process of its own: wandb keeps threads and a service until its process ends.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from foundry_log import (
    ExperimentConfig,
    LoggingConfig,
    MetricsLogger,
    RunDirectory,
    Trainer,
    read_jsonl,
)

torch = pytest.importorskip("torch", reason="needs torch: pip install 'foundry_log[torch]'")
for package in ("wandb", "tensorboard"):
    pytest.importorskip(
        package, reason=f"needs {package}: pip install 'foundry_log[test-frameworks]'"
    )

torch.set_num_threads(1)  # two threads are many times slower on some machines

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

from tests.wandb_files import WandbRun  # noqa: E402

pytestmark = [pytest.mark.integration, pytest.mark.frameworks, pytest.mark.slow]

SCRIPT = """
import os, sys, time, torch
from foundry_log import ExperimentConfig, Trainer
torch.set_num_threads(1)
config = ExperimentConfig.model_validate_json(open(sys.argv[1]).read())
trainer = Trainer(config, sys.argv[2])
if sys.argv[3]:
    import logging, signal
    class Kill(logging.Handler):
        def emit(self, record):
            entry = record.__dict__.get("foundry_entry", {})
            if "metrics" in entry and entry["step"] == int(sys.argv[3]):
                end = time.monotonic() + 60  # W&B takes longer to begin than the steps before
                while not any(trainer.directory.path.glob("wandb/offline-run-*/*.wandb")):
                    assert time.monotonic() < end
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
    logging.getLogger("foundry_log.metrics.test").addHandler(Kill())
trainer.train(resume=True)
"""


TALK = """
import logging
class Talk(logging.Handler):
    def emit(self, record):
        if "metrics" in record.__dict__.get("foundry_entry", {}):
            text = "x" * 8_000
            logging.getLogger("library").error("sent %s", text, extra={"password": "hunter2"})
logging.getLogger("foundry_log.metrics.test").addHandler(Talk())
"""


def train(config: ExperimentConfig, base: Path, kill_at: str = "", script: str = SCRIPT) -> str:
    """Train in a process that has no login anywhere, and return what it has shown."""
    (base / "config.json").write_text(config.model_dump_json())
    known = {name: each for name, each in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", script, str(base / "config.json"), str(base), kill_at],
        env={
            **known,
            "HOME": str(base / "home"),
            "NETRC": str(base / "netrc"),
            "WANDB_ERROR_REPORTING": "false",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode != 0) == bool(kill_at), done.stderr
    return done.stderr


@pytest.fixture
def config(tiny_config: ExperimentConfig) -> ExperimentConfig:
    """Thirty steps, two epochs and a bit, for both trackers."""
    tiny_config.data.max_megabytes = 0.00045  # 13 steps an epoch
    tiny_config.training.epochs = None
    tiny_config.training.train_steps = 30
    tiny_config.training.checkpoint_every_n_steps = 10
    tiny_config.logging.log_to_wandb = True
    tiny_config.logging.log_to_tensorboard = True
    return tiny_config


def losses(directory: RunDirectory) -> dict[int, float]:
    """The loss of each step in the run's own file; the latest line of a step counts."""
    entries = read_jsonl(directory.metrics)
    return {e["step"]: e["metrics"]["loss"] for e in entries if "metrics" in e}


def scalars(directory: RunDirectory, name: str) -> dict[int, float]:
    """What TensorBoard reads."""
    found = EventAccumulator(str(directory.tensorboard), size_guidance={"scalars": 0}).Reload()
    return {event.step: event.value for event in found.Scalars(name)}


def of_wandb(run: WandbRun, name: str) -> dict[int, Any]:
    """A column of the rows that W&B has, by step."""
    return {row["step"]: row[name] for row in run.rows() if name in row}


def test_both_trackers_get_what_the_files_have(config: ExperimentConfig, tmp_path: Path) -> None:
    """
    GIVEN: a run for W&B without a login, and for TensorBoard
    WHEN: it has ended
    THEN: each has all steps, epochs, the configuration and the checkpoints; one warning says that
        W&B is offline, and how to send it later.
    """
    shown = train(config, tmp_path)
    directory = RunDirectory.of(tmp_path, "test")
    expected = losses(directory)
    assert list(expected) == list(range(1, 31))

    run = WandbRun(directory.path)
    assert of_wandb(run, "loss") == expected
    assert list(of_wandb(run, "epoch_summary/loss")) == [13, 26]
    assert {row["epoch"] for row in run.rows() if "loss" in row} == {1, 2, 3}
    assert any("system/memory.percent" in row for row in run.rows())
    settings = {
        update.key: json.loads(update.value_json)
        for record in run.of("config")
        for update in record.update
    }
    assert settings["training"]["train_steps"] == 30
    assert [set(each.aliases) for each in run.of("artifact")] == [
        {"latest", f"step-{step}"} for step in (10, 20, 30)
    ]
    assert scalars(directory, "loss") == pytest.approx(expected, rel=1e-6)
    assert list(scalars(directory, "epoch/loss")) == [13, 26]
    assert sum("wandb login" in line for line in shown.splitlines()) == 1


def test_a_run_that_is_killed_and_resumed_is_one_run_to_its_trackers(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    """
    GIVEN: a run that is killed at its 17th step
    WHEN: it has gone on behind its checkpoint of step 10
    THEN: TensorBoard shows each step once, and W&B has the same run again with the next attempt.
    """
    train(config, tmp_path, kill_at="17")
    train(config, tmp_path)
    directory = RunDirectory.of(tmp_path, "test")
    expected = losses(directory)
    run = WandbRun(directory.path)
    assert len(run.paths) == 2 and len({path.name for path in run.paths}) == 1
    rows = [row for row in run.rows() if "loss" in row]
    assert [row["step"] for row in rows] == list(range(11, 31))
    assert {row["attempt"] for row in rows} == {2}
    assert scalars(directory, "loss") == pytest.approx(expected, rel=1e-6)


def test_nan_is_an_alert_once(config: ExperimentConfig, tmp_path: Path) -> None:
    """GIVEN a rate that ruins the run WHEN the loss is NaN THEN W&B has one alert of it."""
    config.training.learning_rate = 1e30
    config.training.warmup_steps = 0
    config.training.checkpoint_every_n_steps = 1000
    train(config, tmp_path)
    alerts = WandbRun(RunDirectory.of(tmp_path, "test").path).of("alert")
    assert [alert.title for alert in alerts].count("loss is not finite: nan") == 1


def test_a_run_that_fails_has_failed_for_its_tracker_too(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    """GIVEN a setting that cannot be WHEN the run ends by it THEN W&B has error and status."""
    config.training.precision = "float16"
    train(config, tmp_path, kill_at="0")
    run = WandbRun(RunDirectory.of(tmp_path, "test").path)
    assert [alert.level for alert in run.of("alert")] == ["ERROR"]
    assert [end.exit_code for end in run.of("exit")] == [1]


def test_everything_at_once(config: ExperimentConfig, tmp_path: Path) -> None:
    """
    GIVEN: profiling, details, memory, system metrics, a queue, compression, small files, redaction,
        both trackers, kept checkpoints, a library that logs a password, and a kill in the middle
    WHEN: the run has gone on to its end
    THEN: all of it is there, files were rotated and compressed, the password is nowhere, and the
        history has each step once, with the losses of a run that logs next to nothing.
    """
    config.training.train_steps = 200
    config.training.checkpoint_every_n_steps = 40
    config.training.keep_last_checkpoints = 2
    config.training.keep_best_checkpoint = True
    config.training.gradient_accumulation_steps = 2
    config.logging = LoggingConfig(log_metrics_every_n_steps=1, log_to_wandb=False)
    plain = Trainer(config, tmp_path / "plain")
    plain.train()

    settings = config.logging = LoggingConfig(log_metrics_every_n_steps=1, log_to_tensorboard=True)
    settings.profile_performance = True
    settings.log_detailed_metrics_every_n_steps = 5
    settings.log_memory_every_n_steps = 20
    settings.system_metrics_interval_s = 0.2
    settings.background_writing = True
    settings.compress_rotated_logs = True
    settings.redact_secrets = True
    settings.max_log_size_mb = 1
    script = SCRIPT.replace("trainer.train", TALK + "trainer.train")
    train(config, tmp_path, kill_at="105", script=script)
    train(config, tmp_path, script=script)

    directory = RunDirectory.of(tmp_path, "test")
    for name in ("run", "metrics", "system_metrics"):
        reader = read_jsonl(directory.path / f"{name}.jsonl")
        assert sum(1 for _ in reader) > 0
        assert reader.skipped <= 1, "at most what the killed process was writing"
    metrics = MetricsLogger("test", directory.path)
    history = [entry for entry in metrics.get_metrics_history() if "metrics" in entry]
    assert [entry["step"] for entry in history] == list(range(1, 201))
    assert {entry["attempt"] for entry in history} == {1, 2}
    assert losses(directory) == losses(plain.directory)
    assert list(directory.path.glob("run.*.jsonl.gz")) and list(directory.path.glob("run.*.log.gz"))
    for path in directory.path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            content = gzip.decompress(content) if path.suffix == ".gz" else content
            assert b"hunter2" not in content, path
    assert metrics.compute_statistics("loss")["count"] == 200
    assert scalars(directory, "loss").keys() == {entry["step"] for entry in history}
    assert len(list(directory.checkpoints.glob("step_*[0-9]"))) in (2, 3)
    report = json.loads(directory.timing_report.read_text())
    assert {"data", "forward", "backward", "optimizer", "log_metrics", "evaluate"} <= set(report)
    assert not directory.errors.exists()
