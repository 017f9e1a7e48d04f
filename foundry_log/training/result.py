"""How far a training run has come, and what it came to."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path


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
    """Whether a KeyboardInterrupt ended it."""


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
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return time.monotonic() - self.started

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
