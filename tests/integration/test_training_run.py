"""What a training run says of itself: bad numbers, hangs, memory, times, its machine, its data."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from foundry_log import ExperimentConfig, LoggingConfig, Trainer, read_jsonl

torch = pytest.importorskip("torch", reason="needs torch: pip install 'foundry_log[torch]'")
torch.set_num_threads(1)  # two threads are many times slower on some machines

pytestmark = pytest.mark.integration


def records(trainer: Trainer, message: str = "") -> list[dict[str, Any]]:
    """The records whose message begins so."""
    return [
        entry
        for entry in read_jsonl(trainer.directory.jsonl)
        if entry["message"].startswith(message)
    ]


def metrics(trainer: Trainer) -> dict[int, dict[str, Any]]:
    """The metrics of each logged step."""
    history = trainer.metrics.get_metrics_history()
    return {entry["step"]: entry["metrics"] for entry in history if "metrics" in entry}


def alarms(trainer: Trainer) -> list[tuple[str, str, int]]:
    """Kind, metric and step of each warning about a metric."""
    return [
        (entry["context"]["kind"], entry["context"]["metric"], entry["context"]["step"])
        for entry in records(trainer)
        if entry["level"] == "WARNING" and "kind" in entry["context"]
    ]


class TestBadNumbers:
    """Losses and gradients that nobody wants to see the next morning."""

    def test_a_nan_loss_is_one_warning_and_reads_back(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """
        GIVEN: a rate that makes the weights infinite at the second step
        WHEN: training goes on to its tenth
        THEN: one WARNING names the loss and the step, and the NaNs are in the history.
        """
        tiny_config.training.learning_rate = 1e30
        tiny_config.training.warmup_steps = 0
        trainer = Trainer(tiny_config, tmp_path)
        trainer.train()
        of_loss = [alarm for alarm in alarms(trainer) if alarm[1] == "loss"]
        values = {step: found["loss"] for step, found in metrics(trainer).items()}
        first = min(step for step, value in values.items() if value != value)
        assert of_loss == [("nan", "loss", first)]
        assert [step for step, value in values.items() if value != value] == list(range(first, 11))

    def test_exploding_gradients_are_a_warning(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """
        GIVEN: sixty quiet steps, and text of another kind from then on
        WHEN: a batch has gradients many times those of before
        THEN: a WARNING of the kind "spike" names the metric, its z-score and what was usual.
        """
        tiny_config.training.train_steps = 80
        tiny_config.training.learning_rate = 1e-12
        trainer = Trainer(tiny_config, tmp_path)

        class Explode(logging.Handler):
            """Makes the weights of the last layer a hundred times as large at step 60."""

            def emit(self, record: logging.LogRecord) -> None:
                entry = record.__dict__["foundry_entry"]
                if entry.get("step") == 60 and "metrics" in entry:
                    with torch.no_grad():
                        self.model.head.weight.mul_(300)

        handler = Explode()
        logging.getLogger("foundry_log.metrics.test").addHandler(handler)
        make = trainer._loop

        def remember(*args: Any) -> Any:
            loop = make(*args)
            handler.model = loop.model
            return loop

        trainer._loop = remember  # type: ignore[method-assign]
        trainer.train()
        assert ("spike", "grad_norm", 61) in alarms(trainer)
        assert ("spike", "loss", 61) in alarms(trainer)
        assert all(step == 61 for _, _, step in alarms(trainer)), "once until it is over"
        said = next(e["context"] for e in records(trainer) if e["context"].get("kind") == "spike")
        assert said["z_score"] > 8 and said["value"] > said["median"]


class TwoTokens:
    """A tokenizer of the smallest vocabulary."""

    vocab_size = 2

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % 2 for letter in text]


class TestErrors:
    """What goes wrong, with what is needed to understand it."""

    def test_a_step_that_hangs_leaves_the_stacks_of_all_threads(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """
        GIVEN: a step that waits for something that does not come
        WHEN: it has waited longer than `report_hang_after_s`
        THEN: the error log has the stacks of all threads, and training goes on when it can.
        """
        tiny_config.logging.report_hang_after_s = 0.3
        trainer = Trainer(tiny_config, tmp_path)
        seen = threading.Event()

        def hangs() -> list[dict[str, Any]]:
            """Those of the fifth step; the first one is slow where torch was not used before."""
            recent = trainer.errors.get_recent_errors()
            return [entry for entry in recent if entry["context"]["step"] == 5]

        class Hang(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if record.__dict__["foundry_entry"].get("step") == 5 and not seen.is_set():
                    self.hang_here()

            def hang_here(self) -> None:
                for _ in range(600):
                    if hangs():
                        seen.set()
                        return
                    seen.wait(0.1)

        logging.getLogger("foundry_log.metrics.test").addHandler(Hang())
        assert trainer.train().steps == 10
        (entry,) = hangs()
        assert entry in list(read_jsonl(trainer.directory.errors))
        assert entry["error_type"] == "HangError"
        stacks = entry["context"]["stacks"]
        assert any("hang_here" in line for line in stacks["MainThread"])
        assert len(stacks) > 1

    def test_a_long_evaluation_is_no_hang(
        self, tiny_config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """GIVEN batches that take long WHEN a few are evaluated THEN each is a sign of life."""
        from foundry_log import Watchdog

        beats: list[int | None] = []
        monkeypatch.setattr(Watchdog, "beat", lambda watchdog, step=None: beats.append(step))
        tiny_config.data.eval_fraction = 0.5
        tiny_config.training.eval_batches = 7
        Trainer(tiny_config, tmp_path).train()
        assert beats == [*range(1, 11), *[10] * 8], "each step, each batch, the checkpoint"

    def test_out_of_memory_says_how_much_was_in_use(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """
        GIVEN: a model larger than any machine
        WHEN: it is made
        THEN: the error is raised, and stands in the error log with the memory in use.
        """
        tiny_config.model.hidden_size = 2**20  # 13 TB in one layer
        trainer = Trainer(tiny_config, tmp_path)
        with pytest.raises(RuntimeError):
            trainer.train(TwoTokens())
        (entry,) = read_jsonl(trainer.directory.errors)
        assert entry["context"]["memory_gb"]["rss"] > 0

    def test_a_checkpoint_that_cannot_be_written_is_an_error_of_its_step(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """GIVEN a file in the way of one WHEN it is due THEN the error names step and epoch."""
        trainer = Trainer(tiny_config, tmp_path)
        trainer.directory.checkpoints.mkdir(parents=True)
        (trainer.directory.checkpoints / ".step_000010.partial").write_text("in the way")
        with pytest.raises(OSError):
            trainer.train()
        (entry,) = read_jsonl(trainer.directory.errors)
        assert (entry["context"]["step"], entry["context"]["epoch"]) == (10, 1)

    def test_a_place_where_no_checkpoint_can_be_is_refused_at_start(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """GIVEN a file in the place of their directory WHEN it trains THEN not a step is lost."""
        trainer = Trainer(tiny_config, tmp_path)
        trainer.directory.path.mkdir(parents=True, exist_ok=True)
        trainer.directory.checkpoints.write_text("in the way")
        with pytest.raises(OSError):
            trainer.train()
        (entry,) = read_jsonl(trainer.directory.errors)
        assert entry["context"]["step"] == 0


class TestPhases:
    """Everything a user might print is a record."""

    def test_the_way_of_the_data_is_logged(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """
        GIVEN: a text of 400 functions
        WHEN: it is read, tokenized and split
        THEN: a record of each has what it came to, in this order.
        """
        trainer = Trainer(tiny_config, tmp_path)
        trainer.train()
        phases = ["Text read", "Text tokenized", "Dataset loaded", "Model made"]
        found = [entry for entry in records(trainer) if entry["message"] in phases]
        assert [entry["message"] for entry in found] == phases
        read, tokenized, loaded, made = (entry["context"] for entry in found)
        size = (tiny_config.data.path / "text.py").stat().st_size  # type: ignore[operator]
        assert (read["files"], read["bytes"], read["skipped_files"]) == (1, size, 0)
        assert tokenized["tokens"] == size and tokenized["tokenizer"] == "ByteTokenizer"
        assert loaded["num_examples"] > 100 and loaded["columns"] == ["input_ids", "labels"]
        assert made["parameters"] > 1000

    def test_detailed_metrics_and_memory_come_at_their_intervals(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """
        GIVEN: details every four steps, memory every five
        WHEN: ten steps are trained
        THEN: lines 4 and 8 have norms of each layer and memory, and there are two memory records.
        """
        tiny_config.logging.log_detailed_metrics_every_n_steps = 4
        tiny_config.logging.log_memory_every_n_steps = 5
        trainer = Trainer(tiny_config, tmp_path)
        trainer.train()
        found = metrics(trainer)
        assert [step for step in found if "memory/rss" in found[step]] == [4, 8]
        assert [step for step in found if "grad_norm/head.weight" in found[step]] == [4, 8]
        assert all(found[4][name] > 0 for name in found[4] if name.startswith("grad_norm/"))
        assert len(records(trainer, "Memory - Process")) == 2

    def test_profiling_gives_the_models_flops_and_their_part_of_the_peak(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """
        GIVEN: a device that does 10^12 operations a second at best
        WHEN: a run is profiled
        THEN: each line has the model's operations a second, from its shape and the tokens a second.
        """
        tiny_config.logging.profile_performance = True
        tiny_config.training.peak_flops = 1e12
        trainer = Trainer(tiny_config, tmp_path)
        trainer.train()
        (made,) = records(trainer, "Model made")
        # 6 for each weight, and 12 for each layer, unit of width and position
        per_token = 6 * made["context"]["parameters"] + 12 * 1 * 16 * 16
        for found in metrics(trainer).values():
            flops = found["model_flops_per_sec"]
            assert flops == pytest.approx(per_token * found["tokens_per_sec"])
            assert found["mfu"] == pytest.approx(flops / 1e12)

    def test_the_machine_has_a_file_of_its_own(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """GIVEN a short interval WHEN a run has ended THEN CPU, memory, disk are in their file."""
        tiny_config.logging.system_metrics_interval_s = 0.05
        tiny_config.training.train_steps = 40
        trainer = Trainer(tiny_config, tmp_path)
        trainer.train()
        entries = list(read_jsonl(trainer.directory.system_metrics))
        assert len(entries) >= 2
        last = entries[-1]["system"]
        assert {"cpu.percent", "memory.process_rss_gb", "disk.percent"} <= set(last)
        assert all("system" not in entry for entry in read_jsonl(trainer.directory.metrics))

    def test_the_configuration_and_checkpoints_are_offered_to_sinks(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """GIVEN a sink of the user's WHEN a run has ended THEN it has had all there is to send."""
        entries: list[dict[str, Any]] = []

        class Sink(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                entries.append(record.__dict__["foundry_entry"])

        logging.getLogger("foundry_log.metrics.test").addHandler(Sink())
        trainer = Trainer(tiny_config, tmp_path)
        trainer.train()
        (config,) = [entry["config"] for entry in entries if "config" in entry]
        (checkpoint,) = [entry["checkpoint"] for entry in entries if "checkpoint" in entry]
        assert ExperimentConfig.model_validate(config) == tiny_config
        assert checkpoint["path"] == str(trainer.directory.checkpoints / "step_000010")
        assert (checkpoint["step"], checkpoint["epoch"]) == (10, 1)
        assert sum("metrics" in entry for entry in entries) == 10
        assert any("system" in entry for entry in entries)
        assert not any("config" in entry for entry in read_jsonl(trainer.directory.metrics))


class TestGradients:
    """What is done to them before a step."""

    def test_they_are_clipped_and_their_norm_of_before_is_logged(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """
        GIVEN: a largest norm far below what AdamW takes note of, and a usual one
        WHEN: both have trained
        THEN: the weights of the first have hardly moved, and its lines have the norms as they were.
        """
        tiny_config.training.weight_decay = 0
        moved = {}
        for norm in (1e-14, 1.0):
            tiny_config.training.max_grad_norm = norm
            tiny_config.training.checkpoint_every_n_steps = 1
            trainer = Trainer(tiny_config, tmp_path / str(norm))
            trainer.train()
            first, last = (
                torch.load(trainer.directory.checkpoints / f"step_{step:06d}" / "model.pt")
                for step in (1, 10)
            )
            moved[norm] = max(float((last[name] - first[name]).abs().max()) for name in first)
            assert all(found["grad_norm"] > 0.1 for found in metrics(trainer).values())
        assert moved[1e-14] < 1e-5 < 1e-3 < moved[1.0]


class TestCheckpoints:
    """Which of them are kept, and what they say of themselves."""

    def test_one_without_an_evaluation_has_no_loss_of_another(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """GIVEN an evaluation at step 4 WHEN step 5 is saved THEN its loss is not known."""
        tiny_config.training.checkpoint_every_n_steps = 5
        tiny_config.training.eval_every_n_steps = 4
        trainer = Trainer(tiny_config, tmp_path)
        trainer.train()
        losses = {
            step: json.loads(
                (trainer.directory.checkpoints / f"step_{step:06d}/checkpoint.json").read_bytes()
            )["eval_loss"]
            for step in (5, 10)
        }
        assert losses == {5: None, 10: metrics(trainer)[10]["eval_loss"]}

    def test_the_last_ones_and_the_best_are_kept(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """
        GIVEN: a rate that ruins the model after its start
        WHEN: one checkpoint and the best one are to be kept
        THEN: each was evaluated, and the one with the lowest loss and the last one are there.
        """
        tiny_config.training.train_steps = 20
        tiny_config.training.checkpoint_every_n_steps = 4
        tiny_config.training.keep_last_checkpoints = 1
        tiny_config.training.keep_best_checkpoint = True
        tiny_config.training.learning_rate = 0.5
        tiny_config.training.warmup_steps = 20
        trainer = Trainer(tiny_config, tmp_path)
        trainer.train()
        found = metrics(trainer)
        evaluated = {step: found[step]["eval_loss"] for step in (4, 8, 12, 16, 20)}
        best = min(evaluated, key=lambda step: evaluated[step])
        names = sorted(path.name for path in trainer.directory.checkpoints.iterdir())
        assert names == sorted({f"step_{best:06d}", "step_000020"})
        assert best != 20, "otherwise this shows nothing"

    def test_the_best_of_a_run_without_evaluation_is_refused_at_start(self) -> None:
        """GIVEN no text kept back WHEN the best checkpoint is wanted THEN it is refused."""
        with pytest.raises(ValueError, match=r"keep_best_checkpoint=True .*eval_fraction=0"):
            ExperimentConfig(
                experiment_name="x",
                data={"eval_fraction": 0},
                training={"keep_best_checkpoint": True},
            )


class TestPrecision:
    """Matrix products in fewer bits."""

    def test_bfloat16_trains_and_is_named(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """GIVEN bfloat16 WHEN it has trained THEN losses differ a little, weights are float32."""
        exact = Trainer(tiny_config, tmp_path / "a").train()
        tiny_config.training.precision = "bfloat16"
        trainer = Trainer(tiny_config, tmp_path / "b")
        result = trainer.train()
        assert result.last_loss != exact.last_loss
        assert result.last_loss == pytest.approx(exact.last_loss, rel=0.02)
        (start,) = records(trainer, "Starting training loop")
        assert start["context"]["precision"] == "bfloat16"
        saved = torch.load(trainer.directory.checkpoints / "step_000010" / "model.pt")
        assert {tensor.dtype for tensor in saved.values()} == {torch.float32}

    def test_evaluations_are_in_it_too(self, tiny_config: ExperimentConfig, tmp_path: Path) -> None:
        """GIVEN weights that do not move WHEN only the products differ THEN the eval loss does."""
        tiny_config.training.learning_rate = 1e-12
        exact = Trainer(tiny_config, tmp_path / "a").train()
        tiny_config.training.precision = "bfloat16"
        rounded = Trainer(tiny_config, tmp_path / "b").train()
        assert rounded.eval_loss != pytest.approx(exact.eval_loss, rel=1e-7)
        assert rounded.eval_loss == pytest.approx(exact.eval_loss, rel=0.02)

    def test_on_the_cpu_auto_is_float32(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """GIVEN no GPU WHEN precision is left open THEN nothing is rounded."""
        trainer = Trainer(tiny_config, tmp_path)
        trainer.train()
        (start,) = records(trainer, "Starting training loop")
        assert start["context"]["precision"] == "float32"

    def test_float16_without_a_gpu_is_refused_with_the_remedy(
        self, tiny_config: ExperimentConfig, tmp_path: Path
    ) -> None:
        """GIVEN the CPU WHEN float16 is asked for THEN it is refused before the first step."""
        tiny_config.training.precision = "float16"
        with pytest.raises(ValueError, match=r"precision='float16' needs a GPU.*use 'bfloat16'"):
            Trainer(tiny_config, tmp_path).train()


class TestStart:
    """What is said at start, before an hour has gone."""

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"training": {"train_steps": 0}}, "train_steps"),
            ({"training": {"learning_rte": 1}}, "did you mean 'learning_rate'"),
            ({"logging": {"log_to_wandbb": True}}, "did you mean 'log_to_wandb'"),
            ({"logging": {"rank_files": "some"}}, "rank_files"),
            ({"training": {"keep_last_checkpoints": 0}}, "keep_last_checkpoints"),
            ({"training": {"precision": "float8"}}, "precision"),
        ],
    )
    def test_a_wrong_setting(self, settings: dict[str, Any], said: str) -> None:
        """GIVEN a value or a field that cannot be WHEN it is made THEN the field is named."""
        with pytest.raises(ValueError, match=said):
            ExperimentConfig(experiment_name="x", **settings)

    def test_an_empty_dataset(self, tiny_config: ExperimentConfig, tmp_path: Path) -> None:
        """GIVEN files without text WHEN training begins THEN it says where it has looked."""
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "a.py").write_text("")
        tiny_config.data.path = tmp_path / "empty"
        with pytest.raises(ValueError, match=r"has no text.*data\.pattern='\*\.py'"):
            Trainer(tiny_config, tmp_path).train()


def test_steps_that_log_nothing_read_nothing_from_the_device(
    tiny_config: ExperimentConfig, tmp_path: Path
) -> None:
    """
    GIVEN: a line every ten steps
    WHEN: ten and thirty steps are trained
    THEN: values are read from tensors as often a logged step, and never in between.
    """
    from torch.optim.optimizer import register_optimizer_step_post_hook as after_optimizer
    from torch.optim.optimizer import register_optimizer_step_pre_hook as before_optimizer
    from torch.utils._python_dispatch import TorchDispatchMode

    class CountReads(TorchDispatchMode):
        """Counts single values that are read from a tensor, but for the optimizer's own."""

        reads, is_optimizing = 0, False

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if "_local_scalar_dense" in str(function) and not self.is_optimizing:
                self.reads += 1
            return function(*args, **(kwargs or {}))

        def __enter__(self) -> Any:
            def mark(is_optimizing: bool) -> Any:
                return lambda *_: setattr(self, "is_optimizing", is_optimizing)

            self.hooks = [before_optimizer(mark(True)), after_optimizer(mark(False))]
            return super().__enter__()

        def __exit__(self, *error: Any) -> None:
            for hook in self.hooks:
                hook.remove()
            super().__exit__(*error)

    tiny_config.data.eval_fraction = 0
    tiny_config.logging = LoggingConfig(log_metrics_every_n_steps=1000, log_to_wandb=False)
    tiny_config.training.checkpoint_every_n_steps = 1000
    counts = []
    for steps in (10, 30):
        tiny_config.training.train_steps = steps
        trainer = Trainer(tiny_config, tmp_path / str(steps))
        with CountReads() as mode:
            trainer.train()
        counts.append(mode.reads)
        assert list(metrics(trainer)) == [steps]
    assert counts[0] == counts[1]
