"""How far a training run has come, and what it came to."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TrainingResult:
    """What one `Trainer.train()` came to; losses are in nats per token, None where not measured."""

    steps: int
    """Optimizer steps that were completed."""
    epochs: int
    """Epochs that were completed."""
    first_loss: float | None
    """Of the first step."""
    last_loss: float | None
    """Of the latest step that was logged; the last one of a complete run."""
    eval_loss: float | None
    """Of the latest evaluation."""
    eval_bits_per_byte: float | None
    """The same per byte of text, in bits."""
    bytes_per_token: float | None
    """Of the text; turns nats per token into bits per byte."""
    seconds: float
    """Wall time, with everything."""
    peak_memory_gb: float | None
    """Most memory (10^9 bytes) in use at a step that was logged: of the GPU, else the process."""
    device: str
    """What it computed on."""
    checkpoint: Path | None
    """The latest checkpoint's directory."""
    interrupted: bool
    """Whether a KeyboardInterrupt or a signal ended it."""


_KEPT = (
    "epoch",
    "steps_done",
    "epochs_done",
    "last_loss",
    "first_loss",
    "eval_loss",
    "eval_bits_per_byte",
    "eval_step",
    "peak_memory_gb",
)


@dataclass
class Progress:
    """How far a run is; the loop writes it, and it is still there when the loop has failed."""

    step: int = 0
    """Number of the step at hand, from 1; 0 before the first."""
    epoch: int = 0
    """Number of the epoch at hand, from 1; 0 before the first."""
    steps_done: int = 0
    epochs_done: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    eval_loss: float | None = None
    eval_bits_per_byte: float | None = None
    bytes_per_token: float | None = None
    peak_memory_gb: float | None = None
    checkpoint: Path | None = None
    checkpoint_step: int | None = None
    """Of the latest checkpoint that was written."""
    eval_step: int | None = None
    """Of the latest evaluation."""
    epoch_seconds_before: float = 0.0
    """Wall time that an earlier process has spent on the epoch at hand."""
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return time.monotonic() - self.started

    def evaluated(self, step: int, loss: float, bits: float) -> None:
        """Take note of an evaluation: nats per token, bits per byte."""
        self.eval_step, self.eval_loss, self.eval_bits_per_byte = step, loss, bits

    def state(self, epoch_seconds: float) -> dict[str, Any]:
        """Return what a checkpoint keeps of this, as plain values.

        Args:
            epoch_seconds: that this process has spent on the epoch at hand.
        """
        kept: dict[str, Any] = {name: getattr(self, name) for name in _KEPT}
        if epoch_seconds:
            epoch_seconds += self.epoch_seconds_before
        return {**kept, "epoch_seconds_before": epoch_seconds}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` has given."""
        for name in (*_KEPT, "epoch_seconds_before"):
            setattr(self, name, state[name])
        self.step = self.checkpoint_step = self.steps_done

    def result(self, device: str, interrupted: bool) -> TrainingResult:
        """Return what the run has come to by now."""
        return TrainingResult(
            steps=self.steps_done,
            epochs=self.epochs_done,
            first_loss=self.first_loss,
            last_loss=self.last_loss,
            eval_loss=self.eval_loss,
            eval_bits_per_byte=self.eval_bits_per_byte,
            bytes_per_token=self.bytes_per_token,
            seconds=self.seconds,
            peak_memory_gb=self.peak_memory_gb,
            device=device,
            checkpoint=self.checkpoint,
            interrupted=interrupted,
        )


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """Return a loss in the unit that does not depend on the tokenizer."""
    return nats_per_token / math.log(2) / bytes_per_token
