"""The training loop: steps, evaluations, checkpoints, and what is logged of each."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foundry_log.adapters import StructuredLogger
from foundry_log.config import ExperimentConfig, TrainingConfig
from foundry_log.metrics import MetricsLogger
from foundry_log.performance import PerformanceLogger
from foundry_log.training.checkpoints import CheckpointWriter
from foundry_log.training.data import Datasets, epoch_order
from foundry_log.training.devices import memory_in_use, wait_for
from foundry_log.training.learning_rate import learning_rate
from foundry_log.training.model import LanguageModel, parameter_norms
from foundry_log.training.result import Progress, bits_per_byte

_QUIET = 5
"""Level of the blocks of a step, below DEBUG: a record for each would bury the log, and the timing
report has them all."""

Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Plan:
    """The length of a run."""

    epochs: int
    """Epochs that are begun."""
    steps_per_epoch: int
    total_steps: int

    @classmethod
    def of(cls, config: TrainingConfig, num_examples: int) -> Plan:
        """Return the plan for that many examples.

        Raises:
            ValueError: they are fewer than one step takes.
        """
        needed = config.batch_size * config.gradient_accumulation_steps
        if num_examples < needed:
            raise ValueError(
                f"training.batch_size={config.batch_size} times gradient_accumulation_steps="
                f"{config.gradient_accumulation_steps} takes {needed} examples a step, and the "
                f"text has {num_examples}; give more text (data.path, data.max_megabytes), a "
                "shorter data.sequence_length or a smaller batch"
            )
        per_epoch = num_examples // needed
        limits = [config.train_steps, config.epochs and config.epochs * per_epoch]
        total = min(limit for limit in limits if limit)
        return cls(math.ceil(total / per_epoch), per_epoch, total)


class TrainingLoop:
    """Trains a model over the plan's steps; one object a run.

    Args:
        config: of the experiment.
        model: on `device`.
        data: to train on and to evaluate with.
        device: to compute on.
        logger, metrics, performance, checkpoints: where what happens goes.
        progress: kept up to date, also when the loop fails.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        model: LanguageModel,
        data: Datasets,
        device: torch.device,
        *,
        logger: StructuredLogger,
        metrics: MetricsLogger,
        performance: PerformanceLogger,
        checkpoints: CheckpointWriter,
        progress: Progress,
    ) -> None:
        self.plan = Plan.of(config.training, len(data.train))
        self.config = config
        self.model = model
        self.data = data
        self.device = device
        self.optimizer = _optimizer(model, config.training)
        self.progress = progress
        self._logger = logger
        self._metrics = metrics
        self._performance = performance
        self._checkpoints = checkpoints
        self._pace = _Pace()
        self._first_loss = torch.zeros((), device=device)  # read when the first line is written

    def run(self) -> None:
        """Train to the end of the plan."""
        training = self.config.training
        self._logger.info(
            "Starting training loop",
            epochs=self.plan.epochs,
            total_steps=self.plan.total_steps,
            steps_per_epoch=self.plan.steps_per_epoch,
            batch_size=training.batch_size,
            gradient_accumulation=training.gradient_accumulation_steps,
            learning_rate=training.learning_rate,
            warmup_steps=training.warmup_steps,
        )
        for epoch in range(1, self.plan.epochs + 1):
            self._run_epoch(epoch)

    def _run_epoch(self, epoch: int) -> None:
        self.progress.epoch = epoch
        started = time.monotonic()
        order = epoch_order(len(self.data.train), self.config.random_seed, epoch)
        batches = self.data.train.batches(self.config.training.batch_size, order)
        steps = min(self.plan.steps_per_epoch, self.plan.total_steps - self.progress.steps_done)
        loss_sum = torch.zeros((), device=self.device)
        for _ in range(steps):
            loss_sum += self._run_step(batches)
        if steps == self.plan.steps_per_epoch:
            self.progress.epochs_done += 1
            summary = {
                "loss": loss_sum.item() / steps,
                "eval_loss": self.progress.eval_loss,
                "steps": steps,
                "seconds": time.monotonic() - started,
            }
            self._metrics.log_epoch_summary(epoch, summary)

    def _run_step(self, batches: Batches) -> Tensor:
        """Do one optimizer step and what is due after it; return its loss, on the device."""
        step = self.progress.step = self.progress.steps_done + 1
        rate = self._learning_rate(step)
        self._pace.start()
        loss = self._accumulate_gradients(batches)
        norms = self._parameter_norms(step)
        grad_norm = self._update(rate)
        if step == 1:
            self._first_loss = loss
        self.progress.steps_done = step
        is_logged = bool(norms) or self._is_logged(step)
        losses = self._read(loss, grad_norm) if is_logged else {}
        self._pace.stop()
        evaluation = self._evaluate(step) if self._is_evaluated(step) else {}
        if is_logged:
            with self._timed("log_metrics"):
                self._log_step(step, {**losses, "lr": rate}, {**evaluation, **norms})
        self._do_what_is_due(step)
        return loss

    def _accumulate_gradients(self, batches: Batches) -> Tensor:
        parts = self.config.training.gradient_accumulation_steps
        total = torch.zeros((), device=self.device)
        for _ in range(parts):
            with self._timed("data"):
                tokens, targets = (part.to(self.device) for part in next(batches))
            with self._timed("forward"):
                loss = self.model.loss(tokens, targets) / parts
            with self._timed("backward"):
                torch.autograd.backward(loss)
            total += loss.detach()
        return total

    def _update(self, rate: float) -> Tensor:
        """Change the weights and return the norm of the gradient before it was clipped."""
        with self._timed("optimizer"):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            norm = torch.nn.utils.clip_grad_norm_(
                self.model.parameters(), self.config.training.max_grad_norm
            )
            self.optimizer.step()
            self.optimizer.zero_grad()
        return norm

    def _read(self, loss: Tensor, grad_norm: Tensor) -> dict[str, float]:
        """Return the step's figures; the one place that waits for the device."""
        figures = torch.stack([self._first_loss, loss, grad_norm])
        self.progress.first_loss, self.progress.last_loss, norm = figures.tolist()
        return {"loss": self.progress.last_loss, "grad_norm": norm}

    def _log_step(self, step: int, figures: dict[str, float], more: dict[str, float]) -> None:
        memory = memory_in_use(self.device)
        self.progress.peak_memory_gb = max(memory, self.progress.peak_memory_gb or 0.0)
        training = self.config.training
        samples = training.batch_size * training.gradient_accumulation_steps
        steps_per_sec = self._pace.steps_per_second()
        metrics = {
            **figures,
            "tokens_per_sec": steps_per_sec * samples * self.config.data.sequence_length,
            "samples_per_sec": steps_per_sec * samples,
            "memory_gb": memory,
            **more,
        }
        self._metrics.log_step(step, self.progress.epoch, metrics)

    def _evaluate(self, step: int) -> dict[str, float]:
        started = time.perf_counter()
        with self._performance.time_block("evaluate"):
            loss = evaluate(self.model, self.data, self.config.training, self.device)
        bits = bits_per_byte(loss, self.data.bytes_per_token)
        self.progress.eval_loss, self.progress.eval_bits_per_byte = loss, bits
        figures = {"eval_loss": loss, "eval_bits_per_byte": bits}
        self._logger.info(
            "Evaluation done",
            step=step,
            epoch=self.progress.epoch,
            **figures,
            eval_time_seconds=time.perf_counter() - started,
        )
        return figures

    def _do_what_is_due(self, step: int) -> None:
        if step % self.config.logging.log_memory_every_n_steps == 0:
            self._performance.log_memory_usage()
        if self._is_due(step, self.config.training.checkpoint_every_n_steps):
            self.progress.checkpoint = self._checkpoints.save(
                step, self.progress.epoch, self.model.state_dict(), self.optimizer.state_dict()
            )

    def _parameter_norms(self, step: int) -> dict[str, float]:
        is_due = step % self.config.logging.log_detailed_metrics_every_n_steps == 0
        return parameter_norms(self.model) if is_due else {}

    def _learning_rate(self, step: int) -> float:
        training = self.config.training
        return learning_rate(
            step, self.plan.total_steps, training.learning_rate, training.warmup_steps
        )

    def _is_logged(self, step: int) -> bool:
        every = self.config.logging.log_metrics_every_n_steps
        return self._is_due(step, every) or self._is_evaluated(step)

    def _is_evaluated(self, step: int) -> bool:
        every = self.config.training.eval_every_n_steps
        return len(self.data.evaluation) > 0 and self._is_due(step, every)

    def _is_due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.plan.total_steps

    def _timed(self, name: str) -> AbstractContextManager[object]:
        return self._block(name) if self.config.logging.profile_performance else _NOT_TIMED

    @contextmanager
    def _block(self, name: str) -> Iterator[None]:
        with self._performance.time_block(name, _QUIET):
            yield
            wait_for(self.device)  # otherwise a GPU's block would last as long as its launch


_NOT_TIMED = nullcontext()


class _Pace:
    """Steps a second since the last question, without what happens between steps."""

    def __init__(self) -> None:
        self._started = self._seconds = 0.0
        self._steps = 0

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self) -> None:
        self._seconds += time.perf_counter() - self._started
        self._steps += 1

    def steps_per_second(self) -> float:
        steps, seconds = self._steps, self._seconds
        self._steps, self._seconds = 0, 0.0
        return steps / max(seconds, 1e-9)


def evaluate(
    model: LanguageModel, data: Datasets, config: TrainingConfig, device: torch.device
) -> float:
    """Return the mean loss, in nats per token, of the first `eval_batches` that were kept back."""
    total, examples = torch.zeros((), device=device), 0
    model.eval()
    try:
        with torch.inference_mode():
            for number, (tokens, targets) in enumerate(data.evaluation.batches(config.batch_size)):
                if number >= config.eval_batches:
                    break
                total += model.loss(tokens.to(device), targets.to(device)) * len(tokens)
                examples += len(tokens)
    finally:
        model.train()
    return total.item() / examples


def _optimizer(model: LanguageModel, config: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW that decays matrices, and neither biases nor the scales of norms."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate)
