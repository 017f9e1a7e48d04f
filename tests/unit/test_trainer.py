"""The Trainer: what it computes, when it logs, and how it refuses."""

from __future__ import annotations

import json
import logging
import math
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from foundry_log import ExperimentConfig, Trainer, read_jsonl
from foundry_log.config import TrainingConfig
from foundry_log.training.learning_rate import learning_rate

torch = pytest.importorskip("torch", reason="needs torch: pip install 'foundry_log[torch]'")
torch.set_num_threads(1)  # two threads are many times slower on some machines

from foundry_log.training.devices import usable_device  # noqa: E402 - it imports torch
from foundry_log.training.loop import Plan  # noqa: E402
from foundry_log.training.model import LanguageModel, parameter_norms  # noqa: E402

pytestmark = pytest.mark.unit


def lines(path: Path, key: str) -> list[dict[str, Any]]:
    """The entries of a file that have `key`."""
    return [entry for entry in read_jsonl(path) if key in entry]


def steps(trainer: Trainer, metric: str = "loss") -> list[int]:
    """Steps whose line has the metric."""
    entries = lines(trainer.directory.metrics, "metrics")
    return [entry["step"] for entry in entries if metric in entry["metrics"]]


def messages(trainer: Trainer) -> list[str]:
    """The messages of the run's log, in order."""
    return [entry["message"] for entry in read_jsonl(trainer.directory.jsonl)]


def losses(trainer: Trainer) -> list[float]:
    """The loss of each line of metrics."""
    return [entry["metrics"]["loss"] for entry in lines(trainer.directory.metrics, "metrics")]


class TestConstruction:
    """Making a Trainer."""

    def test_it_touches_neither_handlers_nor_levels(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """`train` sets logging up, nothing before."""
        root = logging.getLogger()
        before = (root.handlers[:], root.level)
        trainer = Trainer(tiny_config, tmp_path)
        assert (root.handlers, root.level) == before
        assert (trainer.logger.logger.handlers, trainer.logger.logger.level) == ([], logging.NOTSET)

    def test_its_files_stand_below_the_base_directory(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """`<base_dir>/<experiment>/output`."""
        trainer = Trainer(tiny_config, str(tmp_path))
        assert trainer.directory.path == tmp_path / "test" / "output"
        assert trainer.metrics.metrics_file == trainer.directory.metrics
        assert trainer.errors.errors_file == trainer.directory.errors

    def test_there_is_no_result_before_training(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """Nothing was measured."""
        assert Trainer(tiny_config, tmp_path).result is None

    def test_without_torch_it_names_the_extra(self) -> None:
        """The module can be imported, and the first Trainer says what to install."""
        code = (
            "import sys; sys.modules['torch'] = None\n"
            "from foundry_log import Trainer, ExperimentConfig\n"
            "try: Trainer(ExperimentConfig(experiment_name='x'))\n"
            "except ImportError as error: print(error)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout == "Trainer needs torch: pip install 'foundry_log[torch]'\n", done.stderr

    def test_importing_it_does_not_import_torch(self) -> None:
        """A program that only has the class at hand does not pay for torch."""
        code = "import sys, foundry_log; foundry_log.Trainer; print('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout == "False\n", done.stderr


class TestResult:
    """What training comes to."""

    def test_the_same_seed_gives_the_same_losses(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """Initial weights, order and dropout all follow from it."""
        tiny_config.model.dropout = 0.2
        runs = [Trainer(tiny_config, tmp_path / name) for name in "ab"]
        for trainer in runs:
            torch.rand(3)  # what else the process draws does not matter
            trainer.train()
        assert losses(runs[0]) == losses(runs[1])

    def test_another_seed_gives_other_losses(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """So the seed is not ignored."""
        first = Trainer(tiny_config, tmp_path / "a").train()
        second = Trainer(tiny_config.model_copy(update={"random_seed": 7}), tmp_path / "b").train()
        assert first.first_loss != second.first_loss

    def test_the_process_keeps_its_own_random_numbers(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """A run inside a larger program does not reset its generator."""
        before = torch.get_rng_state()
        Trainer(tiny_config, tmp_path).train()
        assert torch.equal(torch.get_rng_state(), before)

    def test_it_leaves_the_number_of_threads(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """That is the program's to choose."""
        Trainer(tiny_config, tmp_path).train()
        assert torch.get_num_threads() == 1

    def test_the_result_says_what_was_reached(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """It is returned, and kept as `trainer.result`."""
        trainer = Trainer(tiny_config, tmp_path)
        result = trainer.train()
        logged = losses(trainer)
        assert trainer.result is result
        assert (result.steps, result.epochs, result.interrupted) == (10, 0, False)
        assert (result.first_loss, result.last_loss) == (logged[0], logged[-1])
        assert result.device == "cpu"
        assert result.bytes_per_token == 1.0
        assert result.checkpoint == trainer.directory.checkpoints / "step_000010"
        assert result.seconds > 0
        assert result.peak_memory_gb is not None

    def test_the_first_loss_is_that_of_the_first_step(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """Also where the first line comes later."""
        every = Trainer(tiny_config, tmp_path / "a").train()
        tiny_config.logging.log_metrics_every_n_steps = 10
        assert Trainer(tiny_config, tmp_path / "b").train().first_loss == every.first_loss

    def test_an_untrained_model_knows_nothing(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """The loss is in nats: at first about log(256), and 8 bits for each byte held out."""
        tiny_config.training.learning_rate = 1e-12
        result = Trainer(tiny_config, tmp_path).train()
        assert result.first_loss == pytest.approx(math.log(256), abs=0.1)
        assert result.eval_bits_per_byte == pytest.approx(8, abs=0.1)

    def test_the_loss_falls(self, tiny_config: ExperimentConfig, tmp_path: Path) -> None:
        """It learns."""
        tiny_config.training.train_steps = 60
        tiny_config.training.learning_rate = 0.02
        result = Trainer(tiny_config, tmp_path).train()
        assert result.first_loss is not None and result.last_loss is not None
        assert result.last_loss < result.first_loss - 1

    def test_accumulated_gradients_are_those_of_one_large_batch(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """Two batches of two and one of four make the same steps."""
        tiny_config.training.batch_size = 4
        whole = Trainer(tiny_config, tmp_path / "a")
        whole.train()
        tiny_config.training.batch_size = 2
        tiny_config.training.gradient_accumulation_steps = 2
        parts = Trainer(tiny_config, tmp_path / "b")
        parts.train()
        assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)

    def test_gradients_of_one_step_do_not_reach_the_next(
        self, tiny_config: ExperimentConfig, temp_workspace: Path
    ) -> None:
        """On equal batches weights that stay have gradients that stay."""
        (temp_workspace / "data" / "text.py").write_text("x" * 1000)
        tiny_config.training.learning_rate = 1e-12
        trainer = Trainer(tiny_config, temp_workspace)
        trainer.train()
        entries = lines(trainer.directory.metrics, "metrics")
        norms = [entry["metrics"]["grad_norm"] for entry in entries]
        assert norms == pytest.approx([norms[0]] * 10, rel=1e-4)

    def test_the_rate_is_the_schedules(self, tiny_config: ExperimentConfig, tmp_path: Path) -> None:
        """A longer warm-up learns less in the same steps."""
        tiny_config.training.warmup_steps = 0
        fast = Trainer(tiny_config, tmp_path / "a").train()
        tiny_config.training.warmup_steps = 10_000
        slow = Trainer(tiny_config, tmp_path / "b").train()
        assert fast.eval_loss is not None and slow.eval_loss is not None
        assert fast.eval_loss < slow.eval_loss

    def test_an_evaluation_changes_nothing_of_the_training(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """With dropout, which is off in it and on again afterwards."""
        tiny_config.model.dropout = 0.5
        seldom = Trainer(tiny_config, tmp_path / "a")
        seldom.train()
        tiny_config.training.eval_every_n_steps = 1
        often = Trainer(tiny_config, tmp_path / "b")
        often.train()
        assert losses(often) == losses(seldom)

    def test_training_again_starts_anew(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """A second `train` of the same object gives the same losses; its lines are added."""
        trainer = Trainer(tiny_config, tmp_path)
        assert trainer.train().last_loss == trainer.train().last_loss
        assert steps(trainer) == [*range(1, 11), *range(1, 11)]

    def test_a_tokenizer_of_the_user_is_used(
        self, tiny_config: ExperimentConfig, tmp_path: Path, mock_tokenizer: MagicMock
    ) -> None:
        """Anything with `encode` and `vocab_size`; the model has its vocabulary."""
        result = Trainer(tiny_config, tmp_path).train(mock_tokenizer)
        assert result.first_loss == pytest.approx(math.log(128), abs=0.1)


class TestWhatIsLogged:
    """Which steps have a line, and what is in it."""

    def test_ten_steps_at_the_default_interval_give_one_line(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """`log_metrics_every_n_steps` is 10 unless it is set."""
        tiny_config.logging.log_metrics_every_n_steps = 10
        trainer = Trainer(tiny_config, tmp_path)
        trainer.train()
        assert steps(trainer) == [10]

    def test_the_last_step_always_has_a_line(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """So the loss at the end of a run is known."""
        tiny_config.logging.log_metrics_every_n_steps = 4
        trainer = Trainer(tiny_config, tmp_path)
        trainer.train()
        assert steps(trainer) == [4, 8, 10]

    def test_a_line_has_the_figures_of_its_step(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """Samples have 16 tokens here."""
        trainer = Trainer(tiny_config, tmp_path)
        trainer.train()
        entry = lines(trainer.directory.metrics, "metrics")[0]
        metrics = entry["metrics"]
        assert (entry["step"], entry["epoch"]) == (1, 1)
        assert set(metrics) == {
            "loss",
            "lr",
            "grad_norm",
            "tokens_per_sec",
            "samples_per_sec",
            "memory_gb",
        }
        assert metrics["tokens_per_sec"] == pytest.approx(16 * metrics["samples_per_sec"])
        assert metrics["lr"] == pytest.approx(3e-3 / 2)
        assert all(value > 0 for value in metrics.values())

    def test_evaluations_are_in_the_line_of_their_step(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """Every n steps and at the end; a step that is evaluated has a line."""
        tiny_config.logging.log_metrics_every_n_steps = 100
        tiny_config.training.eval_every_n_steps = 4
        trainer = Trainer(tiny_config, tmp_path)
        trainer.train()
        assert steps(trainer, "eval_loss") == steps(trainer, "eval_bits_per_byte") == [4, 8, 10]
        assert messages(trainer).count("Evaluation done") == 3

    def test_without_text_kept_back_nothing_is_evaluated(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """`data.eval_fraction` 0 turns it off."""
        tiny_config.data.eval_fraction = 0
        trainer = Trainer(tiny_config, tmp_path)
        assert trainer.train().eval_loss is None
        assert steps(trainer, "eval_loss") == []

    def test_detailed_lines_have_the_norms_of_each_parameter(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """Every `log_detailed_metrics_every_n_steps`, whether or not the step has a line else."""
        tiny_config.logging.log_metrics_every_n_steps = 100
        tiny_config.logging.log_detailed_metrics_every_n_steps = 3
        trainer = Trainer(tiny_config, tmp_path)
        trainer.train()
        assert steps(trainer, "grad_norm/head.weight") == [3, 6, 9]
        assert steps(trainer, "weight_norm/blocks.0.attention_in.bias") == [3, 6, 9]
        assert steps(trainer) == [3, 6, 9, 10]

    def test_memory_is_recorded_every_n_steps(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """By a record of its own."""
        tiny_config.logging.log_memory_every_n_steps = 5
        trainer = Trainer(tiny_config, tmp_path)
        trainer.train()
        assert sum(message.startswith("Memory - Process") for message in messages(trainer)) == 2

    def test_an_epoch_that_was_completed_has_a_summary(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """Two epochs are completed here, and a third one is begun."""
        tiny_config.data.max_megabytes = 0.00045  # 428 bytes: 26 examples, 13 steps
        tiny_config.training.epochs = None
        tiny_config.training.train_steps = 30
        trainer = Trainer(tiny_config, tmp_path)
        assert trainer.train().epochs == 2
        summaries = lines(trainer.directory.metrics, "summary")
        assert [entry["epoch"] for entry in summaries] == [1, 2]
        logged = losses(trainer)[:13]
        assert summaries[0]["summary"]["loss"] == pytest.approx(sum(logged) / 13, rel=1e-5)
        assert summaries[0]["summary"]["steps"] == 13

    def test_an_epoch_that_ends_with_the_run_is_completed(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """Without `train_steps` the epochs decide."""
        tiny_config.data.max_megabytes = 0.00045
        tiny_config.training.epochs = 2
        tiny_config.training.train_steps = None
        trainer = Trainer(tiny_config, tmp_path)
        assert trainer.train().steps == 26
        assert len(lines(trainer.directory.metrics, "summary")) == 2

    def test_steps_that_log_nothing_make_no_records(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """Three times the steps, not a line more, with profiling on too."""
        tiny_config.logging.profile_performance = True
        tiny_config.logging.log_metrics_every_n_steps = 1000
        counts = []
        for number in (10, 30):
            tiny_config.training.train_steps = number
            trainer = Trainer(tiny_config, tmp_path / str(number))
            trainer.train()
            counts.append(len(messages(trainer)))
        assert counts[0] == counts[1]

    def test_profiling_times_the_parts_of_each_step(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """They are in the timing report, with every step counted."""
        tiny_config.logging.profile_performance = True
        tiny_config.training.gradient_accumulation_steps = 2
        trainer = Trainer(tiny_config, tmp_path)
        trainer.train()
        report = json.loads(trainer.directory.timing_report.read_text())
        counts = {name: report[name]["count"] for name in ("data", "forward", "backward")}
        assert counts == {"data": 20, "forward": 20, "backward": 20}
        assert report["optimizer"]["count"] == report["log_metrics"]["count"] == 10

    def test_without_profiling_only_rare_blocks_are_timed(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """A step costs nothing for it."""
        trainer = Trainer(tiny_config, tmp_path)
        trainer.train()
        assert set(json.loads(trainer.directory.timing_report.read_text())) == {
            "read_text",
            "tokenize",
            "evaluate",
            "save_model",
            "save_optimizer",
        }

    def test_checkpoints_come_every_n_steps_and_at_the_end(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """Each a directory of its step."""
        tiny_config.training.checkpoint_every_n_steps = 4
        trainer = Trainer(tiny_config, tmp_path)
        trainer.train()
        names = sorted(path.name for path in trainer.directory.checkpoints.iterdir())
        assert names == ["step_000004", "step_000008", "step_000010"]

    @pytest.mark.parametrize(("wanted", "warnings"), [(True, 1), (False, 0)])
    def test_wandb_that_is_not_installed_gives_one_warning(
        self,
        tiny_config: ExperimentConfig,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        wanted: bool,
        warnings: int,
    ) -> None:
        """It says what to install, and the run goes on."""
        monkeypatch.setitem(sys.modules, "wandb", None)
        tiny_config.logging.log_to_wandb = wanted
        trainer = Trainer(tiny_config, tmp_path)
        assert trainer.train().steps == 10
        said = [text for text in messages(trainer) if "pip install 'foundry_log[wandb]'" in text]
        assert len(said) == warnings

    def test_a_report_that_cannot_be_written_is_a_warning(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """The run is done; it does not fail for that."""
        trainer = Trainer(tiny_config, tmp_path)
        trainer.directory.timing_report.mkdir(parents=True)
        trainer.train()
        assert messages(trainer)[-1].startswith("The timing report could not be written")


class TestRefusals:
    """Wrong settings fail before the first step, and stand in the files."""

    @pytest.mark.parametrize("name", ["nonsense", "cuda:99", "meta"])
    def test_a_device_that_cannot_be_used(
        self, tiny_config: ExperimentConfig, tmp_path: Path, name: str
    ) -> None:
        """No such kind, no such number, nothing to compute with."""
        tiny_config.training.device = name
        trainer = Trainer(tiny_config, tmp_path)
        with pytest.raises(ValueError, match=rf"training\.device='{name}' cannot .* has 'cpu'"):
            trainer.train()
        assert trainer.errors.get_error_summary() == {"ValueError": 1}
        assert trainer.result is not None and trainer.result.steps == 0

    def test_a_text_shorter_than_a_step(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """The message has the numbers and three remedies."""
        tiny_config.training.batch_size = 1000
        with pytest.raises(
            ValueError, match=r"batch_size=1000 .* takes 1000 examples a step.*give"
        ):
            Trainer(tiny_config, tmp_path).train()

    def test_data_that_is_not_there(self, tiny_config: ExperimentConfig, tmp_path: Path) -> None:
        """The error is in `errors.jsonl`, at step 0."""
        tiny_config.data.path = tmp_path / "gone"
        trainer = Trainer(tiny_config, tmp_path)
        with pytest.raises(FileNotFoundError, match=r"data\.path"):
            trainer.train()
        (entry,) = read_jsonl(trainer.directory.errors)
        assert (entry["error_type"], entry["context"]) == (
            "FileNotFoundError",
            {"step": 0, "epoch": 0},
        )

    def test_a_run_without_an_end(self) -> None:
        """Neither epochs nor steps: the configuration refuses it."""
        with pytest.raises(ValueError, match="has no end; give one of them"):
            TrainingConfig(epochs=None)

    def test_what_is_no_configuration(self) -> None:
        """A dict is told what to make of it."""
        with pytest.raises(TypeError, match=r"not dict; make one .* ExperimentConfig\(\*\*"):
            Trainer({"experiment_name": "x"})  # type: ignore[arg-type]

    @pytest.mark.parametrize("resume", [None, 1])
    def test_a_resume_that_is_none(
        self, tiny_config: ExperimentConfig, tmp_path: Path, resume: Any
    ) -> None:
        """It says what it may be."""
        with pytest.raises(TypeError, match="must be True, False or the path"):
            Trainer(tiny_config, tmp_path).train(resume=resume)

    def test_a_device_in_the_words_of_its_caller(self) -> None:
        """A command line names its own option."""
        with pytest.raises(ValueError, match="--device='nonsense'"):
            usable_device("nonsense", "--device")


class TestPlan:
    """How long a run is."""

    @pytest.mark.parametrize(
        ("epochs", "train_steps", "plan"),
        [
            (1, None, Plan(epochs=1, steps_per_epoch=5, total_steps=5)),
            (3, None, Plan(epochs=3, steps_per_epoch=5, total_steps=15)),
            (3, 7, Plan(epochs=2, steps_per_epoch=5, total_steps=7)),
            (1, 7, Plan(epochs=1, steps_per_epoch=5, total_steps=5)),
            (None, 12, Plan(epochs=3, steps_per_epoch=5, total_steps=12)),
        ],
    )
    def test_epochs_and_steps_both_end_a_run(
        self, epochs: int | None, train_steps: int | None, plan: Plan
    ) -> None:
        """Whichever comes first; 23 examples make 5 steps of 4."""
        config = TrainingConfig(
            epochs=epochs, train_steps=train_steps, batch_size=2, gradient_accumulation_steps=2
        )
        assert Plan.of(config, 23) == plan

    def test_steps_alone_mean_these_steps(self) -> None:
        """However many epochs they take; given or assigned."""
        assert TrainingConfig(train_steps=7).epochs is None
        config = TrainingConfig()
        config.train_steps = 7
        assert (config.epochs, Plan.of(config, 32).total_steps) == (None, 7)
        assert TrainingConfig().epochs == 1
        assert TrainingConfig(epochs=2, train_steps=7).epochs == 2
        assert TrainingConfig(**config.model_dump()) == config

    def test_epochs_that_end_before_the_steps_are_a_warning(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """Both were asked for, and one is not done."""
        tiny_config.data.max_megabytes = 0.00045  # 13 steps
        tiny_config.training.epochs = 1
        tiny_config.training.train_steps = 30
        trainer = Trainer(tiny_config, tmp_path)
        assert trainer.train().steps == 13
        said = [text for text in messages(trainer) if text.startswith("The epochs end before")]
        assert len(said) == 1


class TestLearningRate:
    """The course of the rate."""

    @pytest.mark.parametrize(
        ("step", "rate"), [(1, 0.1), (5, 0.5), (10, 1.0), (60, 0.55), (110, 0.1)]
    )
    def test_it_rises_in_a_line_and_falls_along_a_cosine(self, step: int, rate: float) -> None:
        """From 0 to the peak at the tenth step, then to a tenth of it at the last."""
        assert learning_rate(step, 110, peak=1.0, warmup_steps=10) == pytest.approx(rate)

    def test_without_warm_up_it_starts_at_the_peak(self) -> None:
        """Nearly: the cosine has begun."""
        assert learning_rate(1, 1000, peak=1.0, warmup_steps=0) == pytest.approx(1.0, abs=1e-4)

    def test_a_warm_up_longer_than_the_run_never_ends(self) -> None:
        """The rate rises to the last step."""
        assert learning_rate(5, 5, peak=1.0, warmup_steps=10) == 0.5

    def test_a_run_of_its_warm_up_alone_ends_at_the_peak(self) -> None:
        """There is no course to divide by."""
        assert learning_rate(5, 5, peak=1.0, warmup_steps=5) == 1.0


class TestModel:
    """The language model."""

    def test_it_does_not_see_what_it_predicts(self, tiny_config: ExperimentConfig) -> None:
        """A change of a token changes no prediction before it."""
        torch.manual_seed(0)
        model = LanguageModel(tiny_config.model, vocab_size=10, max_length=8).eval()
        tokens = torch.arange(8)[None]
        changed = tokens.clone()
        changed[0, 5] = 9
        same = torch.isclose(model(tokens), model(changed)).all(dim=-1)[0].tolist()
        assert same == [True] * 5 + [False] * 3

    def test_norms_are_those_of_each_parameter(self, tiny_config: ExperimentConfig) -> None:
        """Gradients only where there are some."""
        model = LanguageModel(tiny_config.model, vocab_size=10, max_length=8)
        model.head.weight.grad = torch.full_like(model.head.weight, 2.0)
        norms = parameter_norms(model)
        assert norms["grad_norm/head.weight"] == pytest.approx(2 * math.sqrt(160))
        assert norms["weight_norm/norm.weight"] == pytest.approx(4)
        assert "grad_norm/norm.weight" not in norms


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_trains_on_a_gpu(tiny_config: ExperimentConfig, tmp_path: Path) -> None:
    """Without a device in the configuration, where there is one."""
    tiny_config.training.device = None
    tiny_config.logging.profile_performance = True
    trainer = Trainer(tiny_config, tmp_path)
    result = trainer.train()
    assert (result.device, result.steps) == ("cuda", 10)
    assert any(message.startswith("GPU memory") for message in messages(trainer))


def test_every_file_of_a_run_has_the_permissions(
    tmp_path: Path, tiny_config: ExperimentConfig
) -> None:
    """GIVEN 0600 WHEN a run writes all that it writes THEN nobody else may read any of it."""
    tiny_config.logging.file_permissions = 0o600
    trainer = Trainer(tiny_config, tmp_path)
    trainer.train()
    trainer.errors.log_error(ValueError("x"))
    trainer.errors.close()

    files = [path for path in trainer.directory.path.iterdir() if path.suffix != ".lock"]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in files if path.is_file()}
    assert len(modes) >= 6
    assert set(modes.values()) == {0o600}, modes
