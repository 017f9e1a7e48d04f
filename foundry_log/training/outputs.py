"""Where else a run's records go while it trains: trackers, and figures of the machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from foundry_log.config import ExperimentConfig
from foundry_log.metrics import MetricsLogger
from foundry_log.process import rank_fields
from foundry_log.run_directory import RunDirectory
from foundry_log.sinks.base import SinkHandler
from foundry_log.system_metrics import SystemMonitor


@contextmanager
def trackers(config: ExperimentConfig, directory: RunDirectory) -> Iterator[None]:
    """Send metrics, and whatever is a warning or worse, to the trackers of the configuration.

    They are closed at the end, each within its deadline.
    """
    metrics = logging.getLogger(f"foundry_log.metrics.{config.experiment_name}")
    root = logging.getLogger()
    sinks = list(_wanted(config, directory))
    forwards = [_Warnings(sink) for sink in sinks]
    for sink, forward in zip(sinks, forwards, strict=True):
        metrics.addHandler(sink)
        root.addHandler(forward)
    try:
        yield
    finally:
        for sink, forward in zip(sinks, forwards, strict=True):
            root.removeHandler(forward)
            metrics.removeHandler(sink)
            forward.close()
            sink.close()


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


def _wanted(config: ExperimentConfig, directory: RunDirectory) -> Iterator[SinkHandler]:
    settings = config.logging
    if rank_fields().get("rank"):
        return  # a tracker gets the first rank's figures, or with `reduce_metrics` those of all
    if settings.log_to_wandb:
        from foundry_log.sinks.wandb import WandbHandler

        yield WandbHandler(
            settings.wandb_project,
            config.experiment_name,
            mode=settings.wandb_mode,
            directory=str(directory.path),
            checkpoints=settings.log_checkpoints,
        )
    if settings.log_to_tensorboard:
        from foundry_log.sinks.tensorboard import TensorBoardHandler

        yield TensorBoardHandler(str(directory.tensorboard))


class _Warnings(logging.Handler):
    """Hands warnings and worse of the whole program to a tracker."""

    def __init__(self, sink: SinkHandler) -> None:
        super().__init__(logging.WARNING)
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "foundry_log.metrics":  # whose alarms have reached it with the metrics
            self._sink.handle(record)
