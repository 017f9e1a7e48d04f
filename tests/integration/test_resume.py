"""Runs that end early and go on: the same losses, and a history without holes or doubles."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from foundry_log import ExperimentConfig, Trainer, read_jsonl

torch = pytest.importorskip("torch", reason="needs torch: pip install 'foundry_log[torch]'")
torch.set_num_threads(1)  # two threads are many times slower on some machines

pytestmark = pytest.mark.integration

SCRIPT = """
import sys, torch
from foundry_log import ExperimentConfig, Trainer
torch.set_num_threads(1)
config = ExperimentConfig.model_validate_json(open(sys.argv[1]).read())
result = Trainer(config, sys.argv[2]).train(resume=True)
print(repr(result.last_loss), repr(result.eval_loss), result.steps)
"""


@pytest.fixture
def config(tiny_config: ExperimentConfig) -> ExperimentConfig:
    """Thirty steps of two and a bit epochs, with dropout, and a checkpoint every four steps."""
    tiny_config.data.max_megabytes = 0.00045  # 13 steps an epoch
    tiny_config.model.dropout = 0.2
    tiny_config.training.epochs = None
    tiny_config.training.train_steps = 30
    tiny_config.training.checkpoint_every_n_steps = 4
    tiny_config.training.eval_every_n_steps = 10
    tiny_config.logging.console_level = "ERROR"
    tiny_config.logging.system_metrics_interval_s = None
    return tiny_config


class InterruptAt(logging.Handler):
    """A sink that presses Ctrl-C when a step has been logged."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def emit(self, record: logging.LogRecord) -> None:
        entry = record.__dict__.get("foundry_entry", {})
        if "metrics" in entry and entry["step"] == self.step:
            signal.raise_signal(signal.SIGINT)


def interrupt(config: ExperimentConfig, base: Path, step: int, **how: Any) -> Trainer:
    """A trainer whose run was interrupted once it had logged a step."""
    trainer = Trainer(config, base)
    sinks = logging.getLogger(f"foundry_log.metrics.{config.experiment_name}")
    handler = InterruptAt(step)
    sinks.addHandler(handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.train(**how)
    finally:
        sinks.removeHandler(handler)
    return trainer


def losses(trainer: Trainer) -> list[tuple[int, float]]:
    """Step and loss of the present history."""
    history = trainer.metrics.get_metrics_history()
    return [(entry["step"], entry["metrics"]["loss"]) for entry in history if "metrics" in entry]


def summaries(trainer: Trainer) -> list[tuple[int, float]]:
    """Epoch and mean loss of the present history."""
    history = trainer.metrics.get_metrics_history()
    return [(entry["epoch"], entry["summary"]["loss"]) for entry in history if "summary" in entry]


def weights(trainer: Trainer, step: int) -> dict[str, Any]:
    """The weights in a checkpoint."""
    found: dict[str, Any] = torch.load(
        trainer.directory.checkpoints / f"step_{step:06d}" / "model.pt", weights_only=True
    )
    return found


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two states have the same bits."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


class TestResume:
    """Going on behind a checkpoint, in one process."""

    @pytest.mark.parametrize("step", [5, 13, 16, 27])
    def test_a_resumed_run_is_the_one_that_was_never_interrupted(
        self, config: ExperimentConfig, tmp_path: Path, step: int
    ) -> None:
        """
        GIVEN: a run that is interrupted, in the middle of an epoch, at its end, at a checkpoint
        WHEN: it goes on behind its latest checkpoint
        THEN: losses, epoch summaries and weights have the same bits as those of one run.
        """
        whole = Trainer(config, tmp_path / "whole")
        expected = whole.train()
        interrupt(config, tmp_path / "parts", step)
        resumed = Trainer(config, tmp_path / "parts")
        result = resumed.train(resume=True)

        assert losses(resumed) == losses(whole)
        assert summaries(resumed) == summaries(whole)
        assert same(weights(resumed, 30), weights(whole, 30))
        for name in ("steps", "epochs", "first_loss", "last_loss", "eval_loss"):
            assert getattr(result, name) == getattr(expected, name), name

    def test_it_may_be_interrupted_again_and_again(
        self, config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """GIVEN three interruptions WHEN it has ended THEN the history is that of one run."""
        whole = Trainer(config, tmp_path / "whole")
        whole.train()
        for step in (6, 7, 21):
            interrupt(config, tmp_path / "parts", step, resume=True)
        resumed = Trainer(config, tmp_path / "parts")
        resumed.train(resume=True)

        assert losses(resumed) == losses(whole)
        attempts = [entry["attempt"] for entry in resumed.metrics.get_metrics_history()]
        assert sorted(set(attempts)) == [1, 3, 4]  # of the second attempt nothing is left
        begun = [
            entry["context"]["attempt"]
            for entry in read_jsonl(resumed.directory.jsonl)
            if entry["message"] == "Evaluation done"
        ]
        assert begun[-1] == 4
        latest = resumed.directory.checkpoints / "step_000030" / "checkpoint.json"
        assert json.loads(latest.read_text())["attempt"] == 4
        everything = resumed.metrics.get_metrics_history(all_attempts=True)
        superseded = [
            (entry["attempt"], entry["step"])
            for entry in everything
            if entry.get("superseded") and "metrics" in entry
        ]
        assert superseded == [(1, 5), (1, 6), (2, 5), (2, 6), (2, 7), (3, 21)]

    def test_an_epoch_has_the_time_of_all_its_processes(
        self, config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """
        GIVEN: a second lost in an epoch, before the checkpoint at which it is interrupted twice
        WHEN: it has gone on to its end
        THEN: that epoch's summary has the second, and the next one's no more than its process took.
        """

        class Wait(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                entry = record.__dict__["foundry_entry"]
                if "metrics" in entry and entry["step"] == 2:
                    time.sleep(1)

        logging.getLogger("foundry_log.metrics.test").addHandler(Wait())
        for step in (5, 9):
            interrupt(config, tmp_path, step, resume=True)
        trainer = Trainer(config, tmp_path)
        result = trainer.train(resume=True)
        history = trainer.metrics.get_metrics_history()
        first, second = (e["summary"]["seconds"] for e in history if "summary" in e)
        assert first >= 1
        assert second <= result.seconds

    def test_a_checkpoint_by_its_path(self, config: ExperimentConfig, tmp_path: Path) -> None:
        """
        GIVEN: a run that has ended
        WHEN: it is taken up behind a checkpoint in its middle
        THEN: the later checkpoints are set aside, and the history is rewound and written anew.
        """
        first = Trainer(config, tmp_path)
        first.train()
        before = losses(first)
        again = Trainer(config, tmp_path)
        interrupted_at = 18
        interrupt(
            config, tmp_path, interrupted_at, resume=first.directory.checkpoints / "step_000012"
        )
        assert [step for step, _ in losses(again)] == list(range(1, interrupted_at + 1))
        names = sorted(path.name for path in first.directory.checkpoints.iterdir())
        assert names[:5] == [
            "step_000004",
            "step_000008",
            "step_000012",
            "step_000016",
            "step_000016.attempt1",
        ]
        result = again.train(resume=True)
        assert (result.steps, losses(again)) == (30, before)

    def test_starting_anew_leaves_what_was_there_readable(
        self, config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """
        GIVEN: a run that was interrupted
        WHEN: the same experiment is trained from the start
        THEN: its history is that of the new run, the old one is marked, its checkpoints set aside.
        """
        interrupt(config, tmp_path, 9)
        trainer = Trainer(config, tmp_path)
        trainer.train()
        assert [step for step, _ in losses(trainer)] == list(range(1, 31))
        everything = trainer.metrics.get_metrics_history(all_attempts=True)
        assert sum(1 for entry in everything if entry.get("superseded")) == 9
        assert (trainer.directory.checkpoints / "step_000008.attempt1" / "model.pt").exists()

    def test_killed_while_it_rewinds_it_has_no_hole(
        self, config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """
        GIVEN: a run that is started anew and ends before its history is rewound
        WHEN: it is resumed
        THEN: checkpoints and history begin at the same step, so that none is missing.
        """
        Trainer(config, tmp_path).train()

        class Interrupt(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if "resumed_from_step" in record.__dict__["foundry_entry"]:
                    raise KeyboardInterrupt

        handler = Interrupt()
        sinks = logging.getLogger("foundry_log.metrics.test")
        sinks.addHandler(handler)
        with pytest.raises(KeyboardInterrupt):
            Trainer(config, tmp_path).train()
        sinks.removeHandler(handler)
        trainer = Trainer(config, tmp_path)
        trainer.train(resume=True)
        assert [step for step, _ in losses(trainer)] == list(range(1, 31))

    def test_another_weight_decay_is_taken(self, config: ExperimentConfig, tmp_path: Path) -> None:
        """GIVEN a run without weight decay WHEN it goes on with one THEN weights decay."""
        config.training.weight_decay = 0
        whole = Trainer(config, tmp_path / "whole")
        whole.train()
        interrupt(config, tmp_path / "parts", 16)
        config.training.weight_decay = 5
        resumed = Trainer(config, tmp_path / "parts")
        resumed.train(resume=True)
        before, after = (weights(trainer, 30)["head.weight"] for trainer in (whole, resumed))
        assert after.norm() < before.norm()

    def test_without_a_checkpoint_it_starts_at_the_first_step(
        self, config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """GIVEN an empty directory WHEN it resumes THEN it trains, and a record says so."""
        trainer = Trainer(config, tmp_path)
        assert trainer.train(resume=True).steps == 30
        said = [entry["message"] for entry in read_jsonl(trainer.directory.jsonl)]
        assert sum("no checkpoint to go on from" in message for message in said) == 1

    def test_a_run_that_has_ended_has_nothing_left_to_do(
        self, config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """GIVEN a run that is done WHEN it is resumed THEN nothing is added to it."""
        first = Trainer(config, tmp_path).train()
        again = Trainer(config, tmp_path)
        result = again.train(resume=True)
        assert (result.steps, result.last_loss) == (30, first.last_loss)
        assert result.checkpoint == again.directory.checkpoints / "step_000030"
        said = [entry["message"] for entry in read_jsonl(again.directory.jsonl)]
        assert said.count("Nothing is left to train") == 1
        assert result.checkpoint == first.checkpoint
        assert [step for step, _ in losses(again)] == list(range(1, 31))

    def test_a_longer_run_goes_on_and_says_that_the_rate_differs(
        self, config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """GIVEN a run that is done WHEN it gets more steps THEN it goes on, with a warning."""
        Trainer(config, tmp_path).train()
        config.training.train_steps = 34
        trainer = Trainer(config, tmp_path)
        assert trainer.train(resume=True).steps == 34
        (said,) = [
            entry["context"]
            for entry in read_jsonl(trainer.directory.jsonl)
            if entry["message"] == "The learning rate takes another course than before"
        ]
        assert (said["before"]["total_steps"], said["now"]["total_steps"]) == (30, 34)


class TestRefusals:
    """Checkpoints that cannot be gone on from."""

    @pytest.mark.parametrize(
        ("section", "field", "value", "found"),
        [
            ("training", "batch_size", 1, r"training\.batch_size=1, .* had 2"),
            ("data", "max_megabytes", 0.001, r"examples=\d+, .* had 26"),
            (None, "random_seed", 7, "random_seed=7, .* had 42"),
        ],
    )
    def test_another_place_in_the_data(
        self,
        config: ExperimentConfig,
        tmp_path: Path,
        section: str | None,
        field: str,
        value: Any,
        found: str,
    ) -> None:
        """GIVEN other data or batches WHEN it resumes THEN both are named, and no line is lost."""
        interrupt(config, tmp_path, 6)
        setattr(getattr(config, section) if section else config, field, value)
        trainer = Trainer(config, tmp_path)
        with pytest.raises(ValueError, match=found):
            trainer.train(resume=True)
        assert [step for step, _ in losses(trainer)] == [1, 2, 3, 4, 5, 6]
        assert trainer.errors.get_error_summary() == {"ValueError": 1}

    def test_another_text_of_the_same_size(self, config: ExperimentConfig, tmp_path: Path) -> None:
        """GIVEN as many examples of another text WHEN it resumes THEN it is refused."""
        interrupt(config, tmp_path, 6)
        assert config.data.path is not None
        for path in config.data.path.iterdir():
            path.write_text(path.read_text().replace("return", "assert"))
        with pytest.raises(ValueError, match=r"crc32 of their tokens=\d+, .* had \d+"):
            Trainer(config, tmp_path).train(resume=True)

    def test_another_shape_names_both(self, config: ExperimentConfig, tmp_path: Path) -> None:
        """GIVEN a wider model WHEN it resumes THEN it is refused with both shapes."""
        interrupt(config, tmp_path, 6)
        config.model.hidden_size = 32
        with pytest.raises(ValueError, match=r"\(256, 16\).*\(256, 32\)|\[256, 16\].*\[256, 32\]"):
            Trainer(config, tmp_path).train(resume=True)

    def test_a_truncated_one_offers_the_one_before(
        self, config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """GIVEN a latest checkpoint cut short WHEN it resumes THEN the one before is named."""
        trainer = interrupt(config, tmp_path, 9)
        latest = trainer.directory.checkpoints / "step_000008" / "optimizer.pt"
        os.truncate(latest, 100)
        with pytest.raises(ValueError, match=r"optimizer\.pt .*found 100 bytes.*resume from .*4$"):
            Trainer(config, tmp_path).train(resume=True)


@contextmanager
def started(
    config: ExperimentConfig, base: Path, script: str = SCRIPT
) -> Iterator[subprocess.Popen[str]]:
    """A process that trains, or goes on training; it does not outlive the block."""
    path = base / "config.json"
    path.write_text(config.model_dump_json())
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path), str(base)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something that a process does; at most a minute."""
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.002)


def steps_logged(directory: Path) -> Iterator[int]:
    """The steps in the metrics file, as they stand there."""
    for entry in read_jsonl(directory / "metrics.jsonl"):
        if "metrics" in entry:
            yield entry["step"]


def has_logged(directory: Path, step: int) -> Callable[[], bool]:
    """Whether a step beyond `step` stands in the metrics file."""
    path = directory / "metrics.jsonl"
    return lambda: path.exists() and max(steps_logged(directory), default=0) > step


class TestSignals:
    """A run in a process of its own, which somebody ends."""

    @pytest.mark.slow
    def test_killed_and_resumed_it_has_the_same_end(
        self, config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """
        GIVEN: a run that is killed with SIGKILL twice, in the middle of its steps
        WHEN: it is started again each time
        THEN: final losses are those of one run, and the history has neither holes nor doubles.
        """
        config.training.train_steps = 400
        whole = Trainer(config, tmp_path / "whole")
        expected = whole.train()
        base = tmp_path / "parts"
        base.mkdir()
        directory = base / "test" / "output"
        for goal in (40, 170):
            with started(config, base) as process:
                until(has_logged(directory, goal), process)
                process.kill()
                assert process.wait() == -signal.SIGKILL
        with started(config, base) as process:
            out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.split() == [repr(expected.last_loss), repr(expected.eval_loss), "400"]

        resumed = Trainer(config, base)
        assert losses(resumed) == losses(whole)
        assert summaries(resumed) == summaries(whole)
        assert resumed.metrics.compute_statistics("loss") == pytest.approx(
            whole.metrics.compute_statistics("loss"), rel=1e-12
        )
        assert same(weights(resumed, 400), weights(whole, 400))

    @pytest.mark.slow
    def test_sigterm_leaves_a_checkpoint_of_its_step(
        self, config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """
        GIVEN: a run that would have its next checkpoint much later
        WHEN: it gets SIGTERM
        THEN: it dies of it behind a whole step, with records and a checkpoint, and goes on there.
        """
        config.training.train_steps = 300
        config.training.checkpoint_every_n_steps = 10_000
        whole = Trainer(config, tmp_path / "whole")
        expected = whole.train()
        base = tmp_path / "parts"
        base.mkdir()
        directory = base / "test" / "output"
        with started(config, base) as process:
            until(has_logged(directory, 50), process)
            process.terminate()
            _, err = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGTERM, err

        step = max(steps_logged(directory))
        said = list(read_jsonl(directory / "run.jsonl"))
        assert any(entry["logger"] == "foundry_log.signals" for entry in said)
        last = said[-1]
        assert (last["message"], last["context"]["by"]) == ("Training interrupted", "SIGTERM")
        assert last["context"]["step"] == step
        assert (directory / "checkpoints" / f"step_{step:06d}" / "model.pt").exists()
        with started(config, base) as process:
            out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.split() == [repr(expected.last_loss), repr(expected.eval_loss), "300"]
        assert losses(Trainer(config, base)) == losses(whole)

    @pytest.mark.slow
    def test_sigterm_at_the_step_of_a_checkpoint_saves_it_once(
        self, config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """GIVEN one due at each step WHEN SIGTERM asks for one too THEN none is saved twice."""
        config.training.checkpoint_every_n_steps = 1
        ask = """
import logging, os, signal
class Ask(logging.Handler):
    def emit(self, record):
        entry = record.__dict__.get("foundry_entry", {})
        if "metrics" in entry and entry["step"] == 8:
            os.kill(os.getpid(), signal.SIGTERM)
logging.getLogger("foundry_log.metrics.test").addHandler(Ask())
result ="""
        with started(config, tmp_path, SCRIPT.replace("result =", ask)) as process:
            _, err = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGTERM, err
        said = read_jsonl(tmp_path / "test" / "output" / "run.jsonl")
        saved = [e["context"]["step"] for e in said if e["message"] == "Saving checkpoint"]
        assert saved == list(range(1, len(saved) + 1))
        assert 8 <= len(saved) < 30

    @pytest.mark.slow
    def test_sigterm_ends_it_also_where_its_checkpoint_cannot_be_written(
        self, config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """GIVEN a program that goes on after errors WHEN it gets SIGTERM THEN it dies of it."""
        config.training.train_steps = 100_000
        config.training.checkpoint_every_n_steps = 100_000
        script = SCRIPT.replace(
            "result = ", "import contextlib\nwith contextlib.suppress(OSError): "
        )
        assert script != SCRIPT
        directory = tmp_path / "test" / "output"
        script = script.replace("print(", "print() #")
        with started(config, tmp_path, script) as process:
            until(has_logged(directory, 20), process)
            (directory / "checkpoints").rmdir()
            (directory / "checkpoints").write_text("in the way")
            process.terminate()
            _, err = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGTERM, err
        (entry,) = read_jsonl(directory / "errors.jsonl")
        assert entry["error_type"] == "FileExistsError"

    @pytest.mark.slow
    def test_a_second_sigterm_does_not_wait(self, config: ExperimentConfig, tmp_path: Path) -> None:
        """
        GIVEN: a run whose steps take for ever
        WHEN: it gets SIGTERM a second time
        THEN: it ends at once, of that signal.
        """
        script = SCRIPT.replace(
            "result =",
            """
import logging, os, signal, time
class Stuck(logging.Handler):
    def emit(self, record):
        if "metrics" in record.__dict__.get("foundry_entry", {}):
            os.kill(os.getpid(), signal.SIGTERM)
            print("stuck", flush=True)
            while True:
                time.sleep(0.05)
logging.getLogger("foundry_log.metrics.test").addHandler(Stuck())
result =""",
        )
        with started(config, tmp_path, script) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "stuck\n"
            records = tmp_path / "test" / "output" / "run.jsonl"
            until(lambda: "foundry_log.signals" in records.read_text(), process)
            for _ in range(30):  # the first one may not have been passed on yet
                process.terminate()
                try:
                    process.wait(timeout=1)
                    break
                except subprocess.TimeoutExpired:
                    pass
        assert process.returncode == -signal.SIGTERM


def test_nothing_is_nan(config: ExperimentConfig, tmp_path: Path) -> None:
    """The runs that are compared above have finite losses, so that equal means equal."""
    trainer = Trainer(config, tmp_path)
    trainer.train()
    assert all(math.isfinite(loss) for _, loss in losses(trainer))
