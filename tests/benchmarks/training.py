"""What logging adds to a step of the training loop, with every local output on."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.checks import expect, json_lines
from tests.benchmarks.goals import Goal
from tests.benchmarks.harness import Comparison, Contender, Start, Subject
from tests.benchmarks.setups import silent_console

STEP_S = 0.02
_NEVER = 10**9


def on_top_of_off(directory: Path, step_s: float = 0.0, turn: int = 50) -> Iterator[Subject]:
    """The demo's loop with everything logged, less the same loop with nothing logged.

    Both are the real loop with the demo's settings, by turns. The model and the optimizer are
    stand-ins that do next to nothing, so that what logging adds is not lost in the noise of what
    they take; the model's parameters have the demo's names, of which each hundredth line has the
    norms. What threads of its own cost a run counts too, the watchdog's and the system monitor's:
    of the latter each line that is due in so many steps of 20 ms is written here, by the caller.

    Args:
        directory: of the run's files.
        step_s: seconds that the model sleeps in each step, for what logging costs after a while
            in which processor and caches were put to other use.
        turn: steps that are done with logging, and then without.
    """
    from foundry_log import SystemMonitor, Trainer, Watchdog, configure
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
    assert config.logging.report_hang_after_s and config.logging.system_metrics_interval_s
    watchdog = Watchdog(config.logging.report_hang_after_s, trainer.errors)
    monitor = SystemMonitor(directory, offer=trainer.metrics.offer)
    sampled_every = round(config.logging.system_metrics_interval_s / STEP_S)
    loops = [
        _loop(trainer, config, watchdog.beat, step_s),
        _loop(trainer, quiet, lambda step: None, step_s),
    ]
    handler = ProgressHandler(_NoView())
    sinks = logging.getLogger("foundry_log.metrics.bench")
    with ExitStack() as stack:
        stack.enter_context(silent_console())
        stack.enter_context(configure(config, directory))
        sinks.addHandler(handler)
        stack.callback(sinks.removeHandler, handler)
        for each in (trainer.metrics, trainer.errors, monitor, watchdog):
            stack.callback(each.close)
        watchdog.start()

        def run(steps: range) -> int:
            added_ns = 0
            for first in range(0, len(steps), turn):
                now = steps[first : first + turn]
                samples = sum(step % sampled_every == 0 for step in now)
                added_ns += _timed(*loops[0], len(now)) + _sampled(monitor, samples)
                added_ns -= _timed(*loops[1], len(now))
            return added_ns

        def check(count: int) -> None:
            every = config.logging
            logged = count // every.log_metrics_every_n_steps
            path = trainer.metrics.metrics_file
            names = ('"loss":', '"grad_norm":', '"tokens_per_sec":', '"model_flops_per_sec":')
            json_lines(path, {"epoch": 0, "attempt": 1}, texts=names, numbered=False)(logged)
            _check_number(
                path,
                '"weight_norm/tokens.weight"',
                count // every.log_detailed_metrics_every_n_steps,
            )
            _check_number(
                monitor.metrics_file, '"memory.percent"', len(range(0, count, sampled_every))
            )
            for name in ("data", "forward", "backward", "optimizer"):
                blocks = trainer.performance.get_timing_statistics(name).get("count", 0)
                expect(blocks == count, f"{blocks} blocks {name!r} of {count} steps")
            beaten = watchdog._last[0]
            expect(beaten == count, f"the watchdog has heard of step {beaten}, not {count}")
            _check_number(directory / "run.jsonl", '"Step ', logged)
            trainer.metrics.log_step(_NEVER, 0, {"loss": math.nan})
            _check_number(directory / "run.jsonl", "loss is not finite", 1)

        yield Subject(run, check)


def _check_number(path: Path, marker: str, wanted: int) -> None:
    found = path.read_text().count(marker) if path.exists() else 0
    expect(found == wanted, f"{found} times {marker!r} in {path.name} where it is {wanted}")


def _timed(loop: Any, batches: Any, steps: int) -> int:
    started = time.perf_counter_ns()
    for _ in range(steps):
        loop._run_step(batches)
    return time.perf_counter_ns() - started


def _sampled(monitor: Any, samples: int) -> int:
    started = time.perf_counter_ns()
    for _ in range(samples):
        monitor._sample()
    return time.perf_counter_ns() - started


def _loop(trainer: Any, config: Any, beat: Any, step_s: float) -> tuple[Any, Any]:
    """Return a loop over stand-ins, and the batches that it never comes to the end of."""
    import torch

    from foundry_log.training.data import Datasets
    from foundry_log.training.loop import TrainingLoop
    from foundry_log.training.model import LanguageModel
    from foundry_log.training.ranks import Ranks
    from foundry_log.training.result import Progress

    class Model(LanguageModel):
        def forward(self, tokens: Any, targets: Any = None) -> Any:
            if step_s:
                time.sleep(step_s)
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


def _contender(name: str, start: Start) -> Contender:
    return Contender(
        name,
        start,
        role="ours",
        needs=("torch",),
        remedy="pip install -e '.[torch]'",
        goal=Goal(1.0, unit="% of a step of 20 ms"),
    )


TRAINING = Comparison(
    "training",
    "what all of the demo's logging adds to one step, each tenth of which is a line of metrics",
    (_contender("foundry_log, all local outputs on", on_top_of_off),),
    count=4_000,
    quick=200,
    repeats=5,
)

TRAINING_PACED = Comparison(
    "training_paced",
    "the same of steps that take 20 ms",
    (
        _contender(
            "foundry_log, all local outputs on", partial(on_top_of_off, step_s=STEP_S, turn=10)
        ),
    ),
    count=500,
    quick=20,
    batches=1,
    repeats=5,
)
