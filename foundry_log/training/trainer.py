"""Trainer: a training run from its configuration to its files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from foundry_log import signals
from foundry_log.adapters import StructuredLogger
from foundry_log.config import ExperimentConfig
from foundry_log.error_tracker import ErrorTracker
from foundry_log.extras import import_extra
from foundry_log.metrics import MetricsLogger
from foundry_log.performance import PerformanceLogger
from foundry_log.run_directory import RunDirectory
from foundry_log.session import configure
from foundry_log.training.result import Progress, TrainingResult
from foundry_log.training.tokenizer import ByteTokenizer, Tokenizer

if TYPE_CHECKING:
    import torch

    from foundry_log.training.loop import TrainingLoop


class Trainer:
    """Trains a small language model and logs everything about it.

        result = Trainer(ExperimentConfig(experiment_name="first"), "runs").train()

    Making one touches no handler and no level; `train` sets logging and, in the main thread, the
    handling of SIGTERM and its like up, and puts both back. The run's
    files stand in `<base_dir>/<experiment>/output`. On the CPU the same configuration gives the
    same losses again.

    Args:
        config: of the experiment.
        base_dir: parent of the experiment's directory.

    Raises:
        ImportError: torch is not installed.

    Attributes:
        logger: the StructuredLogger of the run, `foundry_log.training`.
        metrics, performance, errors: the loggers of figures, times and errors.
        directory: where each file is.
        result: what the latest `train` came to, also one that failed or was interrupted.
    """

    def __init__(self, config: ExperimentConfig, base_dir: str | os.PathLike[str] = ".") -> None:
        import_extra("torch", "torch", "Trainer")
        self.config = config
        self.directory = RunDirectory.of(base_dir, config.experiment_name)
        self.logger = StructuredLogger("foundry_log.training", config)
        files: dict[str, Any] = {
            "file_permissions": config.logging.file_permissions,
            "one_file_per_process": config.logging.one_file_per_process,
        }
        self.metrics = MetricsLogger(
            config.experiment_name,
            self.directory.path,
            max_size_mb=config.logging.max_log_size_mb,
            **files,
        )
        self.performance = PerformanceLogger(self.logger)
        self.errors = ErrorTracker(
            self.logger, self.directory.path, config.logging.max_errors_to_track, **files
        )
        self.result: TrainingResult | None = None
        self._progress = Progress()

    def train(self, tokenizer: Tokenizer | None = None) -> TrainingResult:
        """Train from the start to the end of the configuration's steps or epochs.

        Args:
            tokenizer: None for the configured one.

        Raises:
            FileNotFoundError, ValueError: data, tokenizer or device cannot be used.
            KeyboardInterrupt: it was interrupted; "Training interrupted" is the last record.
            Exception: whatever fails, once it stands in `errors.jsonl`.
        """
        from foundry_log.training.devices import device_choice

        device = device_choice(self.config.training.device)
        self.logger.update_context(device=device)
        self._progress, self.result = Progress(), None
        interrupted = False
        with configure(
            self.config,
            self.directory.path,
            context={"device": device},
            handle_signals=signals.is_possible(),
        ):
            try:
                self._run(tokenizer, device)
            except KeyboardInterrupt:
                interrupted = True
                raise
            except Exception as error:
                where = {"step": self._progress.step, "epoch": self._progress.epoch}
                self.errors.log_error(error, where)
                raise
            finally:
                self.result = self._progress.result(device, interrupted)
                self._finish(self.result)
        return self.result

    def _run(self, tokenizer: Tokenizer | None, device_name: str) -> None:
        from foundry_log.training import devices

        if self.config.logging.log_to_wandb:
            self.logger.warning(
                "log_to_wandb is on, but this version sends nothing to Weights & Biases; the "
                "metrics are in metrics.jsonl"
            )
        device = devices.usable_device(device_name)
        with devices.current(device), devices.reproducible(device, self.config.random_seed):
            self._loop(tokenizer, device).run()
        self.logger.info(
            "Training finished",
            step=self._progress.steps_done,
            loss=self._progress.last_loss,
            eval_loss=self._progress.eval_loss,
            seconds=self._progress.seconds,
        )

    def _loop(self, tokenizer: Tokenizer | None, device: torch.device) -> TrainingLoop:
        """Load the data, make the model, and return the loop over both."""
        from foundry_log.training.checkpoints import CheckpointWriter
        from foundry_log.training.data import load_datasets
        from foundry_log.training.loop import TrainingLoop
        from foundry_log.training.model import LanguageModel, parameter_count

        tokenizer = tokenizer or ByteTokenizer(self.config.tokenizer.vocab_size)
        with self.performance.time_block("load_data"):
            data = load_datasets(self.config.data, tokenizer)
        self._progress.bytes_per_token = data.bytes_per_token
        self.logger.info("Dataset loaded", **data.facts)
        model = LanguageModel(
            self.config.model, tokenizer.vocab_size, self.config.data.sequence_length
        ).to(device)
        self.logger.info("Model made", parameters=parameter_count(model))
        return TrainingLoop(
            self.config,
            model,
            data,
            device,
            logger=self.logger,
            metrics=self.metrics,
            performance=self.performance,
            checkpoints=CheckpointWriter(self.directory.checkpoints, self.logger, self.performance),
            progress=self._progress,
        )

    def _finish(self, result: TrainingResult) -> None:
        """Write the timing report and the last record, and close the run's own files."""
        try:
            self.performance.export_timing_report(
                self.directory.timing_report, permissions=self.config.logging.file_permissions
            )
        except OSError as error:
            self.logger.warning("The timing report could not be written: %s", error)
        if result.interrupted:
            self.logger.warning(
                "Training interrupted", step=result.steps, epoch=self._progress.epoch
            )
        self.metrics.close()
        self.errors.close()
