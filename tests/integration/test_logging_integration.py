"""The whole of it: a real Trainer, its files, its errors, its end by a signal.

Everything is real but for the spec's `mock_tokenizer`.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from foundry_log import (
    ExperimentConfig,
    JsonFormatter,
    LoggingConfig,
    RotatingJsonlHandler,
    RunDirectory,
    StructuredLogger,
    Trainer,
    configure,
    read_jsonl,
)

torch = pytest.importorskip("torch", reason="needs torch: pip install 'foundry_log[torch]'")
torch.set_num_threads(1)  # two threads are many times slower on some machines

pytestmark = pytest.mark.integration


def strict_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, each refused unless it is an object in strict JSON."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    entries = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert all(isinstance(entry, dict) for entry in entries)
    return entries


def records(directory: RunDirectory, message: str) -> list[dict[str, Any]]:
    """The records of a run with that message."""
    return [entry for entry in read_jsonl(directory.jsonl) if entry["message"] == message]


def block_checkpoint(trainer: Trainer, step: int) -> Path:
    """Put a file where a checkpoint would be written, and return it."""
    trainer.directory.checkpoints.mkdir(parents=True)
    path = trainer.directory.checkpoints / f".step_{step:06d}.partial"
    path.write_text("in the way")
    return path


class InterruptAt(logging.Handler):
    """A sink that presses Ctrl-C when a step has been logged."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def emit(self, record: logging.LogRecord) -> None:
        if record.__dict__["foundry_entry"].get("step") == self.step:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def interrupted(tiny_config: ExperimentConfig, temp_workspace: Path) -> Trainer:
    """A trainer whose run was interrupted after its fourth step."""
    trainer = Trainer(tiny_config, temp_workspace)
    logging.getLogger("foundry_log.metrics.test").addHandler(InterruptAt(4))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    return trainer


class TestTrainerLogging:
    """The spec's two."""

    def test_trainer_uses_structured_logging(
        self, tiny_config: ExperimentConfig, temp_workspace: Path
    ) -> None:
        """
        GIVEN: an experiment
        WHEN: a Trainer is made
        THEN: its logger is a StructuredLogger with the experiment as context.
        """
        trainer = Trainer(tiny_config, str(temp_workspace))
        assert isinstance(trainer.logger, StructuredLogger)
        assert trainer.logger.context["experiment"] == "test"

    def test_training_loop_logs_metrics(
        self, tiny_config: ExperimentConfig, temp_workspace: Path, mock_tokenizer: MagicMock
    ) -> None:
        """
        GIVEN: ten steps, each of which is logged
        WHEN: the training has run with a tokenizer of the user's
        THEN: `metrics.jsonl` has ten lines, each with step, metrics and loss.
        """
        tiny_config.training.train_steps = 10
        tiny_config.training.checkpoint_every_n_steps = 1000
        Trainer(tiny_config, str(temp_workspace)).train(mock_tokenizer)
        entries = strict_lines(temp_workspace / "test" / "output" / "metrics.jsonl")
        assert len(entries) == 10
        assert [entry["step"] for entry in entries] == list(range(1, 11))
        assert all("loss" in entry["metrics"] for entry in entries)


class TestMoments:
    """What a run says, record by record."""

    def test_the_start_of_training_has_its_settings(
        self, tiny_config: ExperimentConfig, temp_workspace: Path
    ) -> None:
        """
        GIVEN: a configuration
        WHEN: training starts
        THEN: the record has what decides its course.
        """
        trainer = Trainer(tiny_config, temp_workspace)
        trainer.train()
        (record,) = records(trainer.directory, "Starting training loop")
        expected = {
            "experiment": "test",
            "device": "cpu",
            "epochs": 1,
            "total_steps": 10,
            "batch_size": 2,
            "gradient_accumulation": 1,
            "learning_rate": 3e-3,
            "warmup_steps": 2,
        }
        assert expected.items() <= record["context"].items()

    def test_data_processing_is_logged(
        self, tiny_config: ExperimentConfig, temp_workspace: Path
    ) -> None:
        """
        GIVEN: a text of known size
        WHEN: it has been loaded
        THEN: the record has the number of examples and their columns.
        """
        (temp_workspace / "data" / "text.py").write_text("x" * 1000)
        trainer = Trainer(tiny_config, temp_workspace)
        trainer.train()
        (record,) = records(trainer.directory, "Dataset loaded")
        context = record["context"]
        assert context["num_examples"] == 59  # (950 - 1) // 16
        assert context["num_eval_examples"] == 3  # (50 - 1) // 16
        assert context["columns"] == ["input_ids", "labels"]
        (record,) = records(trainer.directory, "Text read")
        assert record["context"]["source"] == str(temp_workspace / "data")

    def test_checkpoints_are_logged(
        self, tiny_config: ExperimentConfig, temp_workspace: Path
    ) -> None:
        """
        GIVEN: a checkpoint every five steps
        WHEN: ten steps have run
        THEN: both are announced, then reported with their size and time.
        """
        tiny_config.training.checkpoint_every_n_steps = 5
        trainer = Trainer(tiny_config, temp_workspace)
        trainer.train()
        begun = records(trainer.directory, "Saving checkpoint")
        done = records(trainer.directory, "Checkpoint saved successfully")
        assert [record["context"]["step"] for record in begun] == [5, 10]
        assert [record["context"]["step"] for record in done] == [5, 10]
        for record in begun:
            assert Path(record["context"]["checkpoint_dir"]).is_dir()
        assert all(record["context"]["checkpoint_size_gb"] > 0 for record in done)

    def test_a_checkpoint_has_the_weights_of_its_step(
        self, tiny_config: ExperimentConfig, temp_workspace: Path
    ) -> None:
        """
        GIVEN: a run of ten steps with a checkpoint at the fifth
        WHEN: another one ends at the fifth
        THEN: with a constant rate both have the same weights.
        """
        tiny_config.training.warmup_steps = 1000  # the rate does not depend on the end then
        tiny_config.training.checkpoint_every_n_steps = 5
        Trainer(tiny_config, temp_workspace / "a").train()
        tiny_config.training.train_steps = 5
        Trainer(tiny_config, temp_workspace / "b").train()
        first, second = (
            torch.load(
                temp_workspace / run / "test/output/checkpoints/step_000005/model.pt",
                weights_only=True,
            )
            for run in "ab"
        )
        assert all(torch.equal(first[name], second[name]) for name in first)


class TestErrors:
    """A run that fails."""

    def test_an_error_during_training_is_logged_and_raised(
        self, tiny_config: ExperimentConfig, temp_workspace: Path
    ) -> None:
        """
        GIVEN: a directory in which no checkpoint can be written
        WHEN: the checkpoint of the fifth step is due
        THEN: the error is raised, and stands in errors.jsonl with step, epoch and traceback.
        """
        tiny_config.training.checkpoint_every_n_steps = 5
        trainer = Trainer(tiny_config, temp_workspace)
        block_checkpoint(trainer, 5)
        with pytest.raises(OSError):
            trainer.train()
        (entry,) = strict_lines(trainer.directory.errors)
        assert entry["context"] == {"step": 5, "epoch": 1}
        assert "checkpoints.py" in entry["traceback"]
        errors = [line for line in read_jsonl(trainer.directory.jsonl) if line["level"] == "ERROR"]
        assert len(errors) == 1
        assert errors[0]["exception"]["type"] == entry["error_type"]

    def test_what_was_measured_before_an_error_is_kept(
        self, tiny_config: ExperimentConfig, temp_workspace: Path
    ) -> None:
        """
        GIVEN: a run that fails at its fifth step
        WHEN: it has failed
        THEN: five lines of metrics, the timing report and the result are there.
        """
        tiny_config.training.checkpoint_every_n_steps = 5
        trainer = Trainer(tiny_config, temp_workspace)
        block_checkpoint(trainer, 5)
        with pytest.raises(OSError):
            trainer.train()
        assert len(strict_lines(trainer.directory.metrics)) == 5
        assert "tokenize" in json.loads(trainer.directory.timing_report.read_text())
        assert trainer.result is not None
        assert (trainer.result.steps, trainer.result.interrupted) == (5, False)

    def test_a_trainer_can_train_after_an_error(
        self, tiny_config: ExperimentConfig, temp_workspace: Path
    ) -> None:
        """
        GIVEN: a run that failed
        WHEN: the cause is gone and the same trainer trains again
        THEN: it comes to its end.
        """
        trainer = Trainer(tiny_config, temp_workspace)
        blocked = block_checkpoint(trainer, 10)
        with pytest.raises(OSError):
            trainer.train()
        blocked.unlink()
        assert trainer.train().steps == 10


class TestInterrupt:
    """A run that is stopped."""

    def test_the_last_record_says_so(self, interrupted: Trainer) -> None:
        """
        GIVEN: a run of ten steps
        WHEN: SIGINT arrives after the fourth
        THEN: the last record names the step, and it is no error.
        """
        last = strict_lines(interrupted.directory.jsonl)[-1]
        assert last["message"] == "Training interrupted"
        assert (last["context"]["step"], last["context"]["epoch"]) == (4, 1)
        assert interrupted.errors.get_error_summary() == {}

    def test_the_steps_before_are_all_there(self, interrupted: Trainer) -> None:
        """
        GIVEN: a run of ten steps
        WHEN: SIGINT arrives after the fourth
        THEN: metrics, timing report and result have four steps.
        """
        entries = strict_lines(interrupted.directory.metrics)
        assert [entry["step"] for entry in entries] == [1, 2, 3, 4]
        assert interrupted.directory.timing_report.exists()
        assert interrupted.result is not None
        assert (interrupted.result.steps, interrupted.result.interrupted) == (4, True)

    @pytest.mark.slow
    def test_ctrl_c_ends_the_demo_in_good_order(self, tmp_path: Path) -> None:
        """
        GIVEN: the demo in a process of its own, far from its end
        WHEN: it gets SIGINT once its first step is shown
        THEN: it ends with 130, a summary, a last record, and files that parse.
        """
        pytest.importorskip("rich", reason="needs the demo: pip install 'foundry_log[demo]'")
        command = [sys.executable, "-m", "foundry_log.cli", "demo", "--steps=1000000"]
        with subprocess.Popen(
            [*command, f"--out={tmp_path}", "--device=cpu"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stderr is not None
                assert process.stderr.readline().startswith("step 10/")
                process.send_signal(signal.SIGINT)
                output, _ = process.communicate(timeout=60)
            finally:
                process.kill()  # it would not end by itself; one that has ended is left alone
        assert process.returncode == 130
        assert output.startswith("Training interrupted after ")
        (run,) = tmp_path.iterdir()
        directory = RunDirectory(run / "output")
        assert strict_lines(directory.jsonl)[-1]["message"] == "Training interrupted"
        assert strict_lines(directory.metrics)[0]["step"] == 10
        assert directory.timing_report.exists()


class TestLoggingState:
    """A run inside a program that has its own logging."""

    def test_the_set_up_of_before_is_back_after_training(
        self, tiny_config: ExperimentConfig, temp_workspace: Path
    ) -> None:
        """
        GIVEN: a program with a handler on the root logger
        WHEN: training has ended
        THEN: handlers and level are as before, and the handler has the run's records.
        """
        root = logging.getLogger()
        path = temp_workspace / "program.jsonl"
        handler = RotatingJsonlHandler(path)
        handler.setFormatter(JsonFormatter())
        root.addHandler(handler)
        before = (root.handlers[:], root.level)
        try:
            Trainer(tiny_config, temp_workspace).train()
            assert (root.handlers, root.level) == before
        finally:
            root.removeHandler(handler)
            handler.close()
        assert "Starting training loop" in {entry["message"] for entry in strict_lines(path)}

    def test_metrics_do_not_hang_on_the_logger_tree(
        self, tiny_config: ExperimentConfig, temp_workspace: Path
    ) -> None:
        """
        GIVEN: a program that has turned logging off
        WHEN: training runs
        THEN: every step is in metrics.jsonl all the same.
        """
        logging.disable(logging.CRITICAL)
        trainer = Trainer(tiny_config, temp_workspace)
        trainer.train()
        assert len(strict_lines(trainer.directory.metrics)) == 10


class TestRotation:
    """A run that outgrows its files."""

    @pytest.mark.slow
    def test_files_rotate_during_training(
        self, tiny_config: ExperimentConfig, temp_workspace: Path
    ) -> None:
        """
        GIVEN: files of at most 1 MiB, and 400 steps with some 4 kB each in both of them
        WHEN: training has run
        THEN: files were rotated, none is too large, and no step is lost or doubled.
        """
        tiny_config.training.train_steps = 400
        tiny_config.model.num_layers = 4
        tiny_config.logging.max_log_size_mb = 1
        tiny_config.logging.log_detailed_metrics_every_n_steps = 1
        tiny_config.logging.console_level = "ERROR"
        trainer = Trainer(tiny_config, temp_workspace)

        class Talkative(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                logging.getLogger("library").debug("seen: %s", "x" * 4000)

        logging.getLogger("foundry_log.metrics.test").addHandler(Talkative())
        trainer.train()
        for name in ("metrics", "run"):
            files = list(trainer.directory.path.glob(f"{name}*.jsonl"))
            assert len(files) > 1
            assert all(path.stat().st_size <= 2**20 for path in files)
        logged = [entry["step"] for entry in trainer.metrics.get_metrics_history()]
        assert logged == list(range(1, 401))
        begun = [entry["message"].split(":")[0] for entry in read_jsonl(trainer.directory.jsonl)]
        assert [text for text in begun if text.startswith("Step ")] == [
            f"Step {step}" for step in logged
        ]


class TestEndToEnd:
    """Everything on."""

    @pytest.fixture
    def everything(
        self,
        tiny_config: ExperimentConfig,
        temp_workspace: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> Trainer:
        """A run of two epochs and a bit with all of logging on, ended by an error; no W&B there."""
        monkeypatch.setitem(sys.modules, "wandb", None)
        tiny_config.data.max_megabytes = 0.00045  # 13 steps an epoch
        tiny_config.training.epochs = None
        tiny_config.training.train_steps = 30
        tiny_config.training.eval_every_n_steps = 10
        tiny_config.training.checkpoint_every_n_steps = 10
        tiny_config.logging.log_to_wandb = True
        tiny_config.logging.profile_performance = True
        tiny_config.logging.log_memory_every_n_steps = 7
        tiny_config.logging.log_detailed_metrics_every_n_steps = 5
        trainer = Trainer(tiny_config, temp_workspace)
        trainer.train()
        trainer.errors.log_error(ValueError("an error after the end"), {"loss": float("nan")})
        trainer.errors.close()
        return trainer

    def test_every_line_of_every_file_parses_strictly(self, everything: Trainer) -> None:
        """
        GIVEN: a run with all of logging on
        WHEN: it has ended
        THEN: each .jsonl file is there, and every line of it is strict JSON that reads back.
        """
        files = sorted(path.name for path in everything.directory.path.glob("*.jsonl"))
        assert files == ["errors.jsonl", "metrics.jsonl", "run.jsonl", "system_metrics.jsonl"]
        for name in files:
            path = everything.directory.path / name
            reader = read_jsonl(path)
            assert len(list(reader)) == len(strict_lines(path)) > 0
            assert reader.skipped == 0

    def test_metrics_have_every_step_and_completed_epoch(self, everything: Trainer) -> None:
        """
        GIVEN: 30 steps of epochs of 13
        WHEN: they have run
        THEN: there are 30 lines of steps, and summaries of the two epochs that were completed.
        """
        entries = strict_lines(everything.directory.metrics)
        assert [entry["step"] for entry in entries if "metrics" in entry] == list(range(1, 31))
        assert [entry["epoch"] for entry in entries if "summary" in entry] == [1, 2]

    def test_records_come_in_the_order_of_events(self, everything: Trainer) -> None:
        """
        GIVEN: a run with all of logging on
        WHEN: its log is read from the top
        THEN: data, start, steps, evaluations, checkpoints and the end follow each other.
        """
        log = [entry["message"] for entry in read_jsonl(everything.directory.jsonl)]
        moments = [
            "Dataset loaded",
            "Starting training loop",
            "Evaluation done",
            "Saving checkpoint",
            "Checkpoint saved successfully",
            "Training finished",
        ]
        places = [log.index(moment) for moment in moments]
        assert places == sorted(places)
        assert log[-1] == "Training finished"
        assert [log.count(moment) for moment in moments] == [1, 1, 3, 3, 3, 1]

    def test_the_run_can_be_understood_later(self, everything: Trainer) -> None:
        """
        GIVEN: the directory of a run
        WHEN: the configuration in run_info.json is read
        THEN: it makes the same experiment.
        """
        info = json.loads(everything.directory.info.read_text())
        assert ExperimentConfig(**info["config"]) == everything.config

    def test_the_report_says_where_the_time_went(self, everything: Trainer) -> None:
        """
        GIVEN: a run with profiling on
        WHEN: the timing report is read
        THEN: it has each part of a step and each rare block, as often as they ran.
        """
        report = json.loads(everything.directory.timing_report.read_text())
        assert {name: timer["count"] for name, timer in report.items()} == {
            "read_text": 1,
            "tokenize": 1,
            "data": 30,
            "forward": 30,
            "backward": 30,
            "optimizer": 30,
            "log_metrics": 30,
            "evaluate": 3,
            "save_model": 3,
            "save_optimizer": 3,
        }

    def test_the_log_for_people_has_a_line_a_record(self, everything: Trainer) -> None:
        """
        GIVEN: a run without an error
        WHEN: run.log is read
        THEN: it has as many lines as run.jsonl has records.
        """
        people = everything.directory.log.read_text().splitlines()
        assert len(people) == len(strict_lines(everything.directory.jsonl))


class Rows(torch.utils.data.Dataset):  # type: ignore[misc]
    """Logs each row that it is asked for, in whatever process."""

    def __len__(self) -> int:
        return 400

    def __getitem__(self, index: int) -> int:
        logging.getLogger("rows").info("row %d %s", index, "x" * 5_000, extra={"row": index})
        return index


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_data_loader_workers_write_the_runs_files(tmp_path: Path, background: bool) -> None:
    """GIVEN two workers WHEN each row is logged and the file rotates THEN each stands once."""
    config = LoggingConfig(max_log_size_mb=1, background_writing=background)
    with configure(config, tmp_path, console=False) as session:
        loader = torch.utils.data.DataLoader(Rows(), batch_size=8, num_workers=2)
        assert sum(len(batch) for batch in loader) == 400

    found = [line["context"]["row"] for line in read_jsonl(session.directory.jsonl)]
    assert sorted(found) == list(range(400))
    assert len(list(tmp_path.glob("run.*.jsonl"))) >= 1
