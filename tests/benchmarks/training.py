"""What logging adds to a step of the training loop, with every local output on."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.checks import expect, json_lines
from tests.benchmarks.goals import Goal
from tests.benchmarks.harness import Comparison, Contender, Subject
from tests.benchmarks.setups import silent_console

_NEVER = 10**9
_TURN = 50


def on_top_of_off(directory: Path) -> Iterator[Subject]:
    """The demo's loop with everything logged, less the same loop with nothing logged.

    Both are the real loop with the demo's settings. The model and the optimizer are stand-ins that
    do next to nothing, so that what logging adds is not lost in the noise of what they take; the
    model's parameters have the demo's names, of which each hundredth line has the norms.
    """
    from foundry_log import Trainer, Watchdog, configure
    from foundry_log.demo import ProgressHandler, demo_config

    config = demo_config("bench", _NEVER, "cpu")
    config.logging.console_level = "INFO"
    config.training.eval_every_n_steps = config.training.checkpoint_every_n_steps = _NEVER
    quiet = config.model_copy(deep=True)
    quiet.logging.profile_performance = False
    quiet.logging.log_metrics_every_n_steps = _NEVER
    quiet.logging.log_detailed_metrics_every_n_steps = _NEVER
    quiet.logging.log_memory_every_n_steps = _NEVER
    trainer = Trainer(config, directory)
    watchdog = Watchdog(600, trainer.errors)
    loops = [
        _loop(trainer, config, watchdog.beat),
        _loop(trainer, quiet, lambda step: None),
    ]
    handler = ProgressHandler(_NoView())
    sinks = logging.getLogger("foundry_log.metrics.bench")
    with silent_console(), configure(config, directory):
        sinks.addHandler(handler)

        def run(steps: range) -> int:
            added_ns = 0
            for first in range(0, len(steps), _TURN):
                turn = len(steps[first : first + _TURN])
                logged_ns, plain_ns = (_timed(loop, batches, turn) for loop, batches in loops)
                added_ns += logged_ns - plain_ns
            return added_ns

        def check(count: int) -> None:
            logged = count // config.logging.log_metrics_every_n_steps
            json_lines(trainer.metrics.metrics_file, {"epoch": 0}, numbered=False)(logged)
            blocks = trainer.performance.get_timing_statistics("forward")["count"]
            expect(blocks == count, f"{blocks} timed blocks of {count} steps")
            told = (directory / "run.jsonl").read_text().count('"Step ')
            expect(told == logged, f"{told} records of {logged} logged steps")

        yield Subject(run, check)
        sinks.removeHandler(handler)
        trainer.metrics.close()
        trainer.errors.close()


def _timed(loop: Any, batches: Any, turn: int) -> int:
    started = time.perf_counter_ns()
    for _ in range(turn):
        loop._run_step(batches)
    return time.perf_counter_ns() - started


def _loop(trainer: Any, config: Any, beat: Any) -> tuple[Any, Any]:
    """Return a loop over stand-ins, and the batches that it never comes to the end of."""
    import torch

    from foundry_log.training.data import Datasets
    from foundry_log.training.loop import TrainingLoop
    from foundry_log.training.model import LanguageModel
    from foundry_log.training.ranks import Ranks
    from foundry_log.training.result import Progress

    class Model(LanguageModel):
        def forward(self, tokens: Any, targets: Any = None) -> Any:
            return first.sum()

    class Optimizer:
        param_groups = [{"lr": 0.0}]

        def step(self) -> None:
            pass

        zero_grad = step

    shape = config.model.model_copy(update={"hidden_size": 4, "num_heads": 1})
    model = Model(shape, 256, 2)
    first = next(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    data: Any = Datasets(range(_NEVER * config.training.batch_size), range(0), 1.0)  # type: ignore[arg-type]
    loop = TrainingLoop(
        config,
        model,
        data,
        torch.device("cpu"),
        ranks=Ranks(),
        logger=trainer.logger,
        metrics=trainer.metrics,
        performance=trainer.performance,
        checkpoints=None,  # type: ignore[arg-type]
        progress=Progress(),
        beat=beat,
        is_to_stop=lambda: False,
    )
    loop.optimizer = Optimizer()  # type: ignore[assignment]
    return loop, itertools.repeat((torch.zeros(1), torch.zeros(1)))


class _NoView:
    """The progress bar's place, empty: drawing it is not logging."""

    def update(self, step: int, metrics: dict[str, Any]) -> None:
        pass


TRAINING = Comparison(
    "training",
    "what the demo's logging adds to one step: five timed blocks, each tenth step's metrics",
    (
        Contender(
            "foundry_log, all local outputs on",
            on_top_of_off,
            role="ours",
            needs=("torch",),
            remedy="pip install -e '.[torch]'",
            goal=Goal(1.0, unit="% of a step of 20 ms"),
        ),
    ),
    count=4_000,
    quick=200,
    repeats=5,
)
