"""The demo: a real training run with everything logged, watched from a terminal or a pipe."""

from __future__ import annotations

import itertools
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from foundry_log.config import ExperimentConfig
from foundry_log.extras import import_extra
from foundry_log.records import ENTRY
from foundry_log.training.summary import run_summary
from foundry_log.training.trainer import Trainer

if TYPE_CHECKING:
    from rich.console import Console

STEPS = 900
"""Steps that take some three quarters of a minute on one slow core, and complete an epoch."""

_PLAIN_LINES = 20


class UsageError(Exception):
    """The demo cannot start; the message says what to change."""


def run_demo(
    steps: int = STEPS, out: str | os.PathLike[str] = "runs", device: str | None = None
) -> int:
    """Train with everything logged, show progress on stderr, print the summary on stdout.

    Sets torch to one thread: the model is too small to gain from more, and on some machines loses
    much by them.

    Args:
        steps: of training.
        out: parent of the run's directory, which is new each time: `demo-<date>-<time>`.
        device: None for a GPU where there is one.

    Returns:
        The exit code: 0, 1 after an error, 130 after an interrupt.

    Raises:
        ImportError: torch or rich is missing.
        UsageError: the device or the directory cannot be used.
    """
    torch = import_extra("torch", "demo", "foundry-log demo")
    import_extra("rich", "demo", "foundry-log demo")
    torch.set_num_threads(1)
    _check_device(device)
    trainer = Trainer(demo_config(_new_run(Path(out)), steps, device), out)
    code = 0
    try:
        with _progress(trainer.config.experiment_name, steps):
            trainer.train()
    except KeyboardInterrupt:
        code = 130
    except Exception:
        if trainer.result is None:
            raise  # it failed before there was a run, and so before anything was logged
        code = 1
    if trainer.result is not None:
        timings = trainer.performance.timing_report()
        errors = trainer.errors.get_error_summary()
        print(run_summary(trainer.result, trainer.directory, timings, errors))
    return code


def demo_config(name: str, steps: int, device: str | None) -> ExperimentConfig:
    """Return the demo's experiment: 0.9 MB of Python's sources, some 390,000 weights."""
    return ExperimentConfig.model_validate(
        {
            "experiment_name": name,
            "data": {"max_megabytes": 0.9, "sequence_length": 96},
            "model": {"hidden_size": 96, "num_layers": 3, "num_heads": 4},
            "training": {
                "epochs": None,
                "train_steps": steps,
                "batch_size": 12,
                "learning_rate": 3e-3,
                "warmup_steps": min(50, steps // 5),
                "eval_every_n_steps": 300,
                "checkpoint_every_n_steps": 300,
                "device": device,
            },
            "logging": {
                "console_level": "WARNING",  # the progress bar stands where the lines would
                "log_to_wandb": False,
                "profile_performance": True,
                "system_metrics_interval_s": 5,
            },
        }
    )


def _check_device(name: str | None) -> None:
    from foundry_log.training.devices import device_choice, usable_device

    try:
        usable_device(device_choice(name), "--device")
    except ValueError as error:
        raise UsageError(str(error)) from error


def _new_run(out: Path) -> str:
    """Make the directory of a new run and return its name."""
    stamp = time.strftime("demo-%Y%m%d-%H%M%S")
    names = itertools.chain([stamp], (f"{stamp}-{number}" for number in itertools.count(2)))
    try:
        out.mkdir(parents=True, exist_ok=True)
        return next(name for name in names if _make(out / name))
    except OSError as error:
        raise UsageError(f"--out={str(out)!r} cannot be written ({error})") from error


def _make(directory: Path) -> bool:
    """Make a directory; return False where something has that name."""
    try:
        directory.mkdir()
    except FileExistsError:
        return False
    return True


class _View(Protocol):
    """Shows how far a run is."""

    def update(self, step: int, metrics: dict[str, Any]) -> None:
        """Show what was logged of a step."""


class ProgressHandler(logging.Handler):
    """A sink of metrics: hands the steps it gets to a view, as any other sink sends them on."""

    def __init__(self, view: _View) -> None:
        super().__init__()
        self._view = view

    def emit(self, record: logging.LogRecord) -> None:
        """Show a step; what else comes here is not shown."""
        entry = getattr(record, ENTRY, {})
        if "metrics" in entry:
            self._view.update(entry["step"], entry["metrics"])


@contextmanager
def _progress(experiment: str, steps: int) -> Iterator[None]:
    """Show the experiment's steps on stderr while the context lasts."""
    from rich.console import Console

    sinks = logging.getLogger(f"foundry_log.metrics.{experiment}")
    with _view(Console(stderr=True), steps) as view:
        handler = ProgressHandler(view)
        sinks.addHandler(handler)
        try:
            yield
        finally:
            sinks.removeHandler(handler)


@contextmanager
def _view(console: Console, steps: int) -> Iterator[_View]:
    if not console.is_terminal:
        yield _PlainLines(steps)
        return
    from rich import progress as rich

    columns = (
        rich.TextColumn("step {task.completed}/{task.total}"),
        rich.BarColumn(),
        rich.TextColumn("{task.description}"),
        rich.TimeRemainingColumn(),
    )
    # Without auto_refresh rich starts no thread, which it would not wait for at the end.
    with rich.Progress(*columns, console=console, auto_refresh=False) as progress:
        yield _Bar(progress, progress.add_task("starting", total=steps))


class _Bar:
    """A progress bar of rich."""

    def __init__(self, progress: Any, task: Any) -> None:
        self._progress = progress
        self._task = task

    def update(self, step: int, metrics: dict[str, Any]) -> None:
        self._progress.update(
            self._task, completed=step, description=_figures(metrics), refresh=True
        )


class _PlainLines:
    """A line on stderr now and then, for a pipe or a file."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._next = 0

    def update(self, step: int, metrics: dict[str, Any]) -> None:
        if step >= self._next or step == self._steps:
            self._next = step + self._steps // _PLAIN_LINES
            print(f"step {step}/{self._steps}  {_figures(metrics)}", file=sys.stderr, flush=True)


def _figures(metrics: dict[str, Any]) -> str:
    return f"loss {metrics['loss']:.3f}, {metrics['tokens_per_sec']:,.0f} tokens/s"
