"""Checkpoints: a directory each, whole or not there."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from foundry_log.adapters import StructuredLogger
from foundry_log.performance import PerformanceLogger

MODEL_FILE = "model.pt"
OPTIMIZER_FILE = "optimizer.pt"


class CheckpointWriter:
    """Writes `<root>/step_000500/` with the state of model and optimizer.

    The files are written to a hidden directory beside it, which is renamed when they are on the
    disk: a crash leaves the checkpoints of before and never half a one. One of the same step that
    an earlier run left is replaced. One writer at a time.

    Args:
        root: directory of the checkpoints; made with the first one.
        logger: gets "Saving checkpoint" and "Checkpoint saved successfully".
        performance: gets the blocks `save_model` and `save_optimizer`.
    """

    def __init__(
        self, root: Path, logger: StructuredLogger, performance: PerformanceLogger
    ) -> None:
        self.root = root
        self._logger = logger
        self._performance = performance

    def save(
        self, step: int, epoch: int, model: Mapping[str, Any], optimizer: Mapping[str, Any]
    ) -> Path:
        """Write the checkpoint of a step and return its directory.

        Args:
            step: number of the step that was completed.
            epoch: number of its epoch.
            model: what `model.state_dict()` gives.
            optimizer: what `optimizer.state_dict()` gives.

        Raises:
            OSError: it cannot be written; nothing of it is left.
        """
        target = self.root / f"step_{step:06d}"
        self._logger.info("Saving checkpoint", step=step, epoch=epoch, checkpoint_dir=target)
        started = time.perf_counter()
        size = self._write(target, model, optimizer)
        self._logger.info(
            "Checkpoint saved successfully",
            step=step,
            checkpoint_size_gb=size / 1e9,
            save_time_seconds=time.perf_counter() - started,
        )
        return target

    def _write(self, target: Path, model: Mapping[str, Any], optimizer: Mapping[str, Any]) -> int:
        partial = target.with_name(f".{target.name}.partial")
        _remove(partial)
        partial.mkdir(parents=True)
        try:
            with self._performance.time_block("save_model"):
                size = _save(model, partial / MODEL_FILE)
            with self._performance.time_block("save_optimizer"):
                size += _save(optimizer, partial / OPTIMIZER_FILE)
            _replace(target, partial)
        finally:
            _remove(partial)
        return size


def _save(state: Mapping[str, Any], path: Path) -> int:
    """Write a state and return its size in bytes, once the device has it."""
    with path.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def _replace(target: Path, source: Path) -> None:
    """Rename `source` to `target`; a directory cannot be renamed over another that has files."""
    replaced = target.with_name(f".{target.name}.replaced")
    _remove(replaced)
    if target.exists():
        target.rename(replaced)
    source.rename(target)
    _remove(replaced)


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)
