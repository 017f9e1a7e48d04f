"""The training loop: steps, evaluations, checkpoints, and what is logged of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from foundry_log.adapters import StructuredLogger
from foundry_log.config import ExperimentConfig, TrainingConfig
from foundry_log.metrics import MetricsLogger
from foundry_log.performance import PerformanceLogger
from foundry_log.process import memory_usage
from foundry_log.training.checkpoints import Checkpoints, LoadedCheckpoint
from foundry_log.training.data import Datasets, epoch_order
from foundry_log.training.devices import memory_in_use
from foundry_log.training.evaluation import evaluate
from foundry_log.training.flops import flops_per_token, peak_flops
from foundry_log.training.learning_rate import learning_rate
from foundry_log.training.model import LanguageModel, parameter_count, parameter_norms
from foundry_log.training.plan import Plan, examples_per_step
from foundry_log.training.precision import Precision
from foundry_log.training.ranks import Ranks, reduce_metrics
from foundry_log.training.result import Progress, bits_per_byte
from foundry_log.training.run_state import (
    check_same_data,
    of_each,
    random_state,
    restore_random_state,
)

_QUIET = 5
"""Level of the blocks of a step, below DEBUG: a record for each would bury the log, and the timing
report has them all."""

Batches = Iterator[tuple[Tensor, Tensor]]


class TrainingLoop:
    """Trains a model over the plan's steps; one object a run.

    Of several ranks each computes its part of every step; the first one writes the checkpoints.

    Args:
        config: of the experiment.
        model: on `device`.
        data: to train on and to evaluate with.
        device: to compute on.
        ranks: that share the work.
        logger, metrics, performance, checkpoints: where what happens goes.
        progress: kept up to date, also when the loop fails.
        beat: told the number of each step when it begins.
        is_to_stop: asked after each step; True ends the run with a checkpoint of that step.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        model: LanguageModel,
        data: Datasets,
        device: torch.device,
        *,
        ranks: Ranks,
        logger: StructuredLogger,
        metrics: MetricsLogger,
        performance: PerformanceLogger,
        checkpoints: Checkpoints,
        progress: Progress,
        beat: Callable[[int], None],
        is_to_stop: Callable[[], bool],
    ) -> None:
        self.plan = Plan.of(config.training, len(data.train), ranks.size)
        self.config = config
        self.model = model
        self.data = data
        self.device = device
        self.ranks = ranks
        self.precision = Precision(config.training.precision, device)
        self.optimizer = _optimizer(model, config.training)
        self.progress = progress
        self.attempt = 1
        self._module = _shared(model, device, ranks)
        self._logger = logger
        self._metrics = metrics
        self._performance = performance
        self._checkpoints = checkpoints
        self._beat = beat
        self._is_to_stop = is_to_stop
        self._reduces = config.logging.reduce_metrics and ranks.size > 1
        self._writes = not (self._reduces and ranks.rank)
        self._pace = _Pace()
        self._epoch_started = time.monotonic()
        # Figures that stay on the device until a line is written:
        self._first_loss = torch.zeros((), device=device)
        self._loss_sum = torch.zeros((), device=device)  # of the epoch at hand

    def run(self) -> None:
        """Train to the end of the plan, or to the step at which it is to stop."""
        self._announce()
        done = self.progress.steps_done
        if done >= self.plan.total_steps:
            self._logger.warning(
                "Nothing is left to train", steps_done=done, total_steps=self.plan.total_steps
            )
        for epoch in range(done // self.plan.steps_per_epoch + 1, self.plan.epochs + 1):
            self.progress.epoch = epoch
            self._epoch_started = time.monotonic()
            batches = self._batches(epoch)
            while self.progress.steps_done < self._end_of(epoch):
                self._run_step(batches)
                if self._is_to_stop():
                    self._save_checkpoint()
                    return

    def restore(self, loaded: LoadedCheckpoint) -> None:
        """Go on behind a checkpoint.

        Raises:
            ValueError: its place in the data is another one in this run's.
        """
        state = loaded.state
        check_same_data(state["data"], self._data_facts())
        self.model.load_state_dict(loaded.model)
        decays = [group["weight_decay"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(loaded.optimizer or {})
        for group, decay in zip(self.optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay  # this run's, as its learning rate is
        if state["scaler"]:  # empty unless the checkpoint's run was in float16
            self.precision.scaler.load_state_dict(state["scaler"])
        own = state["ranks"][self.ranks.rank]
        self._first_loss = own["first_loss"].to(self.device)
        self._loss_sum = own["loss_sum"].to(self.device)
        self.progress.restore(own["progress"])
        self.progress.checkpoint = loaded.checkpoint.path
        if state["schedule"] != self._schedule():
            self._logger.warning(
                "The learning rate takes another course than before",
                before=state["schedule"],
                now=self._schedule(),
            )
        restore_random_state(own["random"], self.device)

    # --- one step ---

    def _run_step(self, batches: Batches) -> None:
        """Do one optimizer step and what is due after it."""
        step = self.progress.step = self.progress.steps_done + 1
        self._beat(step)
        rate = self._learning_rate(step)
        self._pace.start()
        loss = self._accumulate_gradients(batches)
        grad_norm, norms = self._update(step, rate)
        self._loss_sum += loss
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

    def _accumulate_gradients(self, batches: Batches) -> Tensor:
        parts = self.config.training.gradient_accumulation_steps
        total = torch.zeros((), device=self.device)
        for part in range(1, parts + 1):
            with self._timed("data"):
                tokens, targets = (each.to(self.device) for each in next(batches))
            with self._unshared(part < parts):
                with self._timed("forward", self.device), self.precision.autocast():
                    loss = self._module(tokens, targets) / parts
                with self._timed("backward", self.device):
                    torch.autograd.backward(self.precision.scaler.scale(loss))
            total += loss.detach()
        return total

    def _update(self, step: int, rate: float) -> tuple[Tensor, dict[str, float]]:
        """Change the weights; return the gradient's norm before it was clipped, and all norms."""
        scaler = self.precision.scaler
        with self._timed("optimizer", self.device):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            scaler.unscale_(self.optimizer)
            norms = self._details(step)
            norm = nn.utils.clip_grad_norm_(
                self.model.parameters(), self.config.training.max_grad_norm
            )
            scaler.step(self.optimizer)
            scaler.update()
            self.optimizer.zero_grad()
        return norm, norms

    def _read(self, loss: Tensor, grad_norm: Tensor) -> dict[str, float]:
        """Return the step's figures; the one place that waits for the device."""
        figures = torch.stack([self._first_loss, loss, grad_norm])
        self.progress.first_loss, self.progress.last_loss, norm = figures.tolist()
        return {"loss": self.progress.last_loss, "grad_norm": norm}

    def _log_step(self, step: int, figures: dict[str, float], more: dict[str, float]) -> None:
        memory = memory_in_use(self.device)
        self.progress.peak_memory_gb = max(memory, self.progress.peak_memory_gb or 0.0)
        samples = examples_per_step(self.config.training, 1) * self._pace.steps_per_second()
        rates = {
            "tokens_per_sec": samples * self.config.data.sequence_length,
            "samples_per_sec": samples,
        }
        metrics = {**figures, **rates, "memory_gb": memory, **self._flops(rates), **more}
        if self._reduces:
            metrics = reduce_metrics(metrics)
            summed = metrics.keys() & {*rates, "model_flops_per_sec"}
            metrics.update({name: metrics[name] * self.ranks.size for name in summed})
        if self._writes:
            self._metrics.log_step(step, self.progress.epoch, metrics)

    def _flops(self, rates: dict[str, float]) -> dict[str, float]:
        """Return what the model computes a second, and its part of what the device could."""
        if not self.config.logging.profile_performance:
            return {}
        done = rates["tokens_per_sec"] * self._flops_per_token()
        peak = self.config.training.peak_flops or _peak_of(self.device, self.precision.name)
        return {"model_flops_per_sec": done, **({"mfu": done / peak} if peak else {})}

    def _flops_per_token(self) -> float:
        shape = self.config.model
        return flops_per_token(
            parameter_count(self.model),
            shape.num_layers,
            shape.hidden_size,
            self.config.data.sequence_length,
        )

    def _details(self, step: int) -> dict[str, float]:
        """Return the norms of each parameter and the memory in use, where they are due."""
        if step % self.config.logging.log_detailed_metrics_every_n_steps:
            return {}
        memory = {f"memory/{name}": value for name, value in memory_usage().items()}
        return {**parameter_norms(self.model), **memory}

    # --- what is due after a step ---

    def _do_what_is_due(self, step: int) -> None:
        # The summary stands before the checkpoint: whoever goes on behind it does not log it again.
        if step % self.plan.steps_per_epoch == 0:
            self._finish_epoch()
        if step % self.config.logging.log_memory_every_n_steps == 0:
            self._performance.log_memory_usage()
        if self._has_checkpoint(step):
            self._save_checkpoint()

    def _evaluate(self, step: int) -> dict[str, float]:
        started = time.perf_counter()
        with self._performance.time_block("evaluate"), self.precision.autocast():
            loss = evaluate(
                self.model,
                self.data,
                self.config.training,
                self.device,
                self.ranks,
                lambda: self._beat(step),
            )
        bits = bits_per_byte(loss, self.data.bytes_per_token)
        self.progress.evaluated(step, loss, bits)
        figures = {"eval_loss": loss, "eval_bits_per_byte": bits}
        self._logger.info(
            "Evaluation done",
            step=step,
            epoch=self.progress.epoch,
            **figures,
            eval_time_seconds=time.perf_counter() - started,
        )
        return figures

    def _finish_epoch(self) -> None:
        self.progress.epochs_done += 1
        steps = self.plan.steps_per_epoch
        loss = self._loss_sum.item() / steps
        if self._reduces:
            loss = reduce_metrics({"loss": loss})["loss"]
        summary = {
            "loss": loss,
            "eval_loss": self.progress.eval_loss,
            "steps": steps,
            "seconds": time.monotonic() - self._epoch_started + self.progress.epoch_seconds_before,
        }
        self._loss_sum = torch.zeros((), device=self.device)
        self.progress.epoch_seconds_before = 0.0
        if self._writes:
            self._metrics.log_epoch_summary(
                self.progress.epoch, summary, step=self.progress.steps_done
            )

    def _save_checkpoint(self) -> None:
        step = self.progress.steps_done
        if self.progress.checkpoint_step == step:
            return
        state = self._state()  # all ranks have a part in it
        self.progress.checkpoint_step = step
        if self.ranks.rank:
            return
        self._beat(step)
        saved = self._checkpoints.save(
            step,
            self.progress.epoch,
            attempt=self.attempt,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            state=state,
            eval_loss=self.progress.eval_loss if self.progress.eval_step == step else None,
        )
        self.progress.checkpoint = saved.path
        facts = {
            "path": str(saved.path),
            "step": step,
            "epoch": saved.epoch,
            "size_bytes": saved.size_bytes,
            "eval_loss": saved.eval_loss,
        }
        self._metrics.offer("Checkpoint", {"checkpoint": facts})

    # --- what a resumed run needs ---

    def _state(self) -> dict[str, Any]:
        in_epoch = self.progress.steps_done % self.plan.steps_per_epoch
        seconds = time.monotonic() - self._epoch_started if in_epoch else 0.0
        return {
            "data": self._data_facts(),
            "schedule": self._schedule(),
            "scaler": self.precision.scaler.state_dict(),
            "ranks": of_each(
                {
                    "random": random_state(self.device),
                    "first_loss": self._first_loss.cpu(),
                    "loss_sum": self._loss_sum.cpu(),
                    "progress": self.progress.state(epoch_seconds=seconds),
                },
                self.ranks,
            ),
        }

    def _data_facts(self) -> dict[str, Any]:
        """Return what decides which examples a step has."""
        training = self.config.training
        return {
            "examples": len(self.data.train),
            "crc32 of their tokens": self.data.train.crc32,
            "data.sequence_length": self.config.data.sequence_length,
            "training.batch_size": training.batch_size,
            "training.gradient_accumulation_steps": training.gradient_accumulation_steps,
            "random_seed": self.config.random_seed,
            "ranks": self.ranks.size,
        }

    def _schedule(self) -> dict[str, Any]:
        return {
            "total_steps": self.plan.total_steps,
            "learning_rate": self.config.training.learning_rate,
            "warmup_steps": self.config.training.warmup_steps,
        }

    # --- plain questions ---

    def _announce(self) -> None:
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
            precision=self.precision.name,
            steps_done=self.progress.steps_done,
            attempt=self.attempt,
        )
        if training.train_steps is not None and training.train_steps > self.plan.total_steps:
            self._logger.warning(
                "The epochs end before training.train_steps; with epochs=None they would not",
                train_steps=training.train_steps,
                total_steps=self.plan.total_steps,
                epochs=training.epochs,
            )

    def _batches(self, epoch: int) -> Batches:
        """Return this rank's batches of an epoch that have not been trained on."""
        training, per_epoch = self.config.training, self.plan.steps_per_epoch
        size = examples_per_step(training, self.ranks.size)
        order = epoch_order(len(self.data.train), self.config.random_seed, epoch)
        order = order[self.progress.steps_done % per_epoch * size : per_epoch * size]
        batches = self.data.train.batches(training.batch_size, order)
        return islice(batches, self.ranks.rank, None, self.ranks.size)

    def _end_of(self, epoch: int) -> int:
        return min(epoch * self.plan.steps_per_epoch, self.plan.total_steps)

    def _learning_rate(self, step: int) -> float:
        training = self.config.training
        return learning_rate(
            step, self.plan.total_steps, training.learning_rate, training.warmup_steps
        )

    def _is_logged(self, step: int) -> bool:
        every = self.config.logging.log_metrics_every_n_steps
        return self._is_due(step, every) or self._is_evaluated(step)

    def _is_evaluated(self, step: int) -> bool:
        training = self.config.training
        is_due = self._is_due(step, training.eval_every_n_steps) or (
            training.keep_best_checkpoint and self._has_checkpoint(step)
        )
        return is_due and len(self.data.evaluation) > 0

    def _has_checkpoint(self, step: int) -> bool:
        return self._is_due(step, self.config.training.checkpoint_every_n_steps)

    def _is_due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.plan.total_steps

    def _timed(
        self, name: str, device: torch.device | None = None
    ) -> AbstractContextManager[object]:
        if not self.config.logging.profile_performance:
            return _NOTHING
        return self._performance.time_block(name, _QUIET, device)

    def _unshared(self, is_wanted: bool) -> AbstractContextManager[object]:
        """Return a context in which gradients are not yet added up over the ranks."""
        if is_wanted and isinstance(self._module, DistributedDataParallel):
            return self._module.no_sync()
        return _NOTHING


_NOTHING = nullcontext()


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


def _shared(model: LanguageModel, device: torch.device, ranks: Ranks) -> nn.Module:
    """Return the model, made to add up its gradients over several ranks."""
    if ranks.size == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def _peak_of(device: torch.device, dtype: str) -> float | None:
    if device.type != "cuda":
        return None
    return peak_flops(torch.cuda.get_device_name(device), dtype)


def _optimizer(model: LanguageModel, config: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW that decays matrices, and neither biases nor the scales of norms."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate)
