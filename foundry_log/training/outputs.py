"""Where else a run's records go while it trains: trackers, and figures of the machine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from foundry_log.config import ExperimentConfig
from foundry_log.metrics import MetricsLogger
from foundry_log.process import rank_fields
from foundry_log.run_directory import RunDirectory
from foundry_log.sinks.base import SinkHandler
from foundry_log.system_metrics import SystemMonitor

_TRACKERS = ("wandb", "tensorboard")
"""Packages that may log, on threads of their own, about what they are given."""


@contextmanager
def trackers(config: ExperimentConfig, directory: RunDirectory, *, is_new: bool) -> Iterator[None]:
    """Send metrics, and whatever is a warning or worse, to the trackers of the configuration.

    They are closed at the end, each within its deadline. `is_new` tells W&B that this is another
    run than the one before in that directory.
    """
    metrics = logging.getLogger(f"foundry_log.metrics.{config.experiment_name}")
    root = logging.getLogger()
    with ExitStack() as stack:  # a Ctrl-C while one is closed leaves no other behind
        for sink in _wanted(config, directory, is_new):
            forward = _Warnings(sink)
            stack.push(_closing(sink))
            stack.callback(forward.close)
            stack.callback(metrics.removeHandler, sink)
            stack.callback(root.removeHandler, forward)
            metrics.addHandler(sink)
            root.addHandler(forward)
        yield


@contextmanager
def system_monitor(
    config: ExperimentConfig, directory: RunDirectory, metrics: MetricsLogger
) -> Iterator[None]:
    """Write figures of the machine, in the first process on it."""
    interval_s = config.logging.system_metrics_interval_s
    if interval_s is None or rank_fields().get("local_rank"):
        yield
        return
    monitor = SystemMonitor(
        directory.path,
        interval_s,
        offer=metrics.offer,
        file_permissions=config.logging.file_permissions,
        one_file_per_process=config.logging.one_file_per_process,
        rank_files=config.logging.rank_files,
    )
    with monitor:
        yield


def _wanted(
    config: ExperimentConfig, directory: RunDirectory, is_new: bool
) -> Iterator[SinkHandler]:
    settings = config.logging
    if rank_fields().get("rank"):
        return  # a tracker gets the first rank's figures, or with `reduce_metrics` those of all
    if settings.log_to_wandb:
        from foundry_log.sinks.wandb import WandbHandler, new_run_id

        yield WandbHandler(
            settings.wandb_project,
            config.experiment_name,
            mode=settings.wandb_mode,
            directory=str(directory.path),
            run_id=new_run_id() if is_new else None,
            checkpoints=settings.log_checkpoints,
        )
    if settings.log_to_tensorboard:
        from foundry_log.sinks.tensorboard import TensorBoardHandler

        yield TensorBoardHandler(str(directory.tensorboard))


def _closing(sink: SinkHandler) -> Callable[..., None]:
    """Return what closes a sink at the end of a block; W&B is told whether that has failed."""

    def close(kind: type[BaseException] | None, *_: object) -> None:
        finish = getattr(sink, "finish", None)
        if finish is None:
            sink.close()
        else:
            finish(exit_code=int(kind is not None))

    return close


class _Warnings(logging.Handler):
    """Hands warnings and worse of the whole program to a tracker."""

    def __init__(self, sink: SinkHandler) -> None:
        super().__init__(logging.WARNING)
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        # Alarms have reached it with the metrics, and what it says itself must not go round.
        if record.name != "foundry_log.metrics" and record.name.partition(".")[0] not in _TRACKERS:
            self._sink.handle(record)
