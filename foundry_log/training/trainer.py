"""Trainer: a training run from its configuration to its files."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry_log import signals
from foundry_log.adapters import StructuredLogger
from foundry_log.config import ExperimentConfig
from foundry_log.error_tracker import ErrorTracker
from foundry_log.extras import import_extra
from foundry_log.files.filenames import ranked
from foundry_log.metrics import MetricsLogger
from foundry_log.performance import PerformanceLogger
from foundry_log.process import rank
from foundry_log.run_directory import RunDirectory
from foundry_log.session import configure
from foundry_log.training.outputs import system_monitor, trackers
from foundry_log.training.result import Progress, TrainingResult
from foundry_log.training.stopping import StopRequest, act, stop_request
from foundry_log.training.tokenizer import ByteTokenizer, Tokenizer
from foundry_log.watchdog import Watchdog

if TYPE_CHECKING:
    import torch

    from foundry_log.training.checkpoints import Checkpoints
    from foundry_log.training.data import Datasets
    from foundry_log.training.loop import TrainingLoop
    from foundry_log.training.ranks import Ranks


class Trainer:
    """Trains a small language model and logs everything about it.

        result = Trainer(ExperimentConfig(experiment_name="first"), "runs").train()

    Making one touches no handler and no level; `train` sets logging, trackers and, in the main
    thread, the handling of SIGTERM and its like up, and puts all of it back. The run's files stand
    in `<base_dir>/<experiment>/output`. On the CPU the same configuration gives the same losses
    again, in one go or resumed.

    Under `torchrun` each process trains on its share of every step, on the GPU of its local rank or
    the CPU, and writes files of its own; see `LoggingConfig.rank_files` and `reduce_metrics`.

    Args:
        config: of the experiment.
        base_dir: parent of the experiment's directory.

    Raises:
        ImportError: torch is not installed.
        TypeError: `config` is no ExperimentConfig.

    Attributes:
        logger: the StructuredLogger of the run, `foundry_log.training`.
        metrics, performance, errors: the loggers of figures, times and errors.
        directory: where each file is.
        result: what the latest `train` came to, also one that failed or was interrupted.
    """

    def __init__(self, config: ExperimentConfig, base_dir: str | os.PathLike[str] = ".") -> None:
        import_extra("torch", "torch", "Trainer")
        if not isinstance(config, ExperimentConfig):
            raise TypeError(
                f"Trainer takes an ExperimentConfig, not {type(config).__name__}; make one of a "
                "dict with ExperimentConfig(**settings)"
            )
        self.config = config
        self.directory = RunDirectory.of(base_dir, config.experiment_name)
        self.logger = StructuredLogger("foundry_log.training", config)
        files: dict[str, Any] = {
            "file_permissions": config.logging.file_permissions,
            "one_file_per_process": config.logging.one_file_per_process,
            "rank_files": config.logging.rank_files,
        }
        self.metrics = MetricsLogger(
            config.experiment_name,
            self.directory.path,
            max_size_mb=config.logging.max_log_size_mb,
            spike_z=config.logging.spike_z,
            **files,
        )
        self.performance = PerformanceLogger(self.logger)
        self.errors = ErrorTracker(
            self.logger, self.directory.path, config.logging.max_errors_to_track, **files
        )
        self.result: TrainingResult | None = None
        self._progress = Progress()

    def train(
        self,
        tokenizer: Tokenizer | None = None,
        *,
        resume: bool | str | os.PathLike[str] = False,
    ) -> TrainingResult:
        """Train to the end of the configuration's steps or epochs.

        SIGTERM, SIGHUP and SIGXCPU, where the program leaves them their default action, end the run
        behind the step at hand, with a checkpoint; then the signal takes its course. A second one
        acts at once, and so does one of several ranks, which cannot agree on a step.

        Args:
            tokenizer: None for the configured one.
            resume: False starts anew; checkpoints and metrics of an earlier run in the directory
                are set aside, not removed. True goes on behind the latest checkpoint, or starts
                where there is none. A path goes on behind that checkpoint.

        Raises:
            FileNotFoundError, ValueError: data, tokenizer, device or checkpoint cannot be used.
            TypeError: `resume` is neither.
            OSError: checkpoints cannot be written, said before the first step.
            KeyboardInterrupt: it was interrupted; "Training interrupted" is the last record.
            Exception: whatever fails, once it stands in `errors.jsonl`.
        """
        from foundry_log.training.devices import device_choice

        if not isinstance(resume, (bool, str, os.PathLike)):
            raise TypeError(f"resume={resume!r} must be True, False or the path of a checkpoint")
        device = device_choice(self.config.training.device)
        self.logger.update_context(device=device)
        self._progress, self.result = Progress(), None
        self.performance.reset_timers()
        stop = StopRequest()
        try:
            with (
                stop_request(is_wanted=rank() is None) as stop,
                configure(
                    self.config,
                    self.directory.path,
                    context={"device": device},
                    handle_signals=signals.is_possible(),
                ),
            ):
                return self._train(tokenizer, device, resume, stop)
        finally:
            if stop.signal is not None:  # also where the checkpoint that it asks for has failed
                act(stop.signal)

    def _train(
        self,
        tokenizer: Tokenizer | None,
        device: str,
        resume: bool | str | os.PathLike[str],
        stop: StopRequest,
    ) -> TrainingResult:
        interrupted = ""
        try:
            with trackers(self.config, self.directory, is_new=resume is False):
                try:
                    self._run(tokenizer, device, resume, stop)
                    interrupted = stop.name
                except KeyboardInterrupt:
                    interrupted = "KeyboardInterrupt"
                    raise
                except Exception as error:
                    self._log_error(error, device)
                    raise
        finally:
            result = self.result = self._progress.result(device, bool(interrupted))
            self._finish(result, interrupted)
        return result

    def _run(
        self,
        tokenizer: Tokenizer | None,
        device_name: str,
        resume: bool | str | os.PathLike[str],
        stop: StopRequest,
    ) -> None:
        from foundry_log.training import devices
        from foundry_log.training.ranks import process_group

        device = devices.usable_device(device_name)
        with ExitStack() as stack:
            stack.enter_context(devices.current(device))
            stack.enter_context(devices.reproducible(device, self.config.random_seed))
            ranks = stack.enter_context(process_group(device))
            data = self._data(tokenizer)
            checkpoints = self._checkpoints()
            watchdog = self._watchdog(stack)
            loop = self._loop(data, device, ranks, checkpoints, watchdog, stop)
            self._begin(loop, checkpoints, ranks, resume)
            # Behind the attempt's beginning, whose number all that trackers get carries.
            self.metrics.offer("Configuration", {"config": self.config.model_dump(mode="json")})
            stack.enter_context(system_monitor(self.config, self.directory, self.metrics))
            loop.run()
        if stop.signal is None:
            self.logger.info(
                "Training finished",
                step=self._progress.steps_done,
                loss=self._progress.last_loss,
                eval_loss=self._progress.eval_loss,
                seconds=self._progress.seconds,
            )

    # --- the parts of a run ---

    def _data(self, tokenizer: Tokenizer | None) -> tuple[Datasets, int]:
        """Read, tokenize and split the text; return it with the size of its vocabulary."""
        from foundry_log.training.data import read_corpus, split, tokenize

        config = self.config.data
        tokenizer = tokenizer or ByteTokenizer(self.config.tokenizer.vocab_size)
        with self.performance.time_block("read_text"):
            corpus = read_corpus(config)
        self.logger.info("Text read", **corpus.facts())
        with self.performance.time_block("tokenize"):
            tokens = tokenize(corpus.texts, tokenizer)
        self.logger.info(
            "Text tokenized",
            tokenizer=type(tokenizer).__name__,
            vocab_size=tokenizer.vocab_size,
            tokens=len(tokens),
            bytes_per_token=corpus.bytes_read / len(tokens),
        )
        data = split(tokens, config, corpus.bytes_read / len(tokens))
        self._progress.bytes_per_token = data.bytes_per_token
        self.logger.info("Dataset loaded", **data.facts())
        return data, tokenizer.vocab_size

    def _checkpoints(self) -> Checkpoints:
        from foundry_log.training.checkpoints import Checkpoints

        return Checkpoints(
            self.directory.checkpoints,
            self.logger,
            self.performance,
            keep_last=self.config.training.keep_last_checkpoints,
            keep_best=self.config.training.keep_best_checkpoint,
        )

    def _watchdog(self, stack: ExitStack) -> Watchdog | None:
        timeout_s = self.config.logging.report_hang_after_s
        if timeout_s is None:
            return None
        watchdog = Watchdog(timeout_s, self.errors)
        watchdog.start()
        stack.callback(watchdog.close)
        return watchdog

    def _loop(
        self,
        data: tuple[Datasets, int],
        device: torch.device,
        ranks: Ranks,
        checkpoints: Checkpoints,
        watchdog: Watchdog | None,
        stop: StopRequest,
    ) -> TrainingLoop:
        from foundry_log.training.loop import TrainingLoop
        from foundry_log.training.model import LanguageModel, parameter_count

        datasets, vocab_size = data
        length = self.config.data.sequence_length
        model = LanguageModel(self.config.model, vocab_size, length).to(device)
        self.logger.info("Model made", parameters=parameter_count(model))
        return TrainingLoop(
            self.config,
            model,
            datasets,
            device,
            ranks=ranks,
            logger=self.logger,
            metrics=self.metrics,
            performance=self.performance,
            checkpoints=checkpoints,
            progress=self._progress,
            beat=watchdog.beat if watchdog else lambda step: None,
            is_to_stop=lambda: stop.signal is not None,
        )

    def _begin(
        self,
        loop: TrainingLoop,
        checkpoints: Checkpoints,
        ranks: Ranks,
        resume: bool | str | os.PathLike[str],
    ) -> None:
        """Begin a new attempt: at the first step, or behind a checkpoint."""
        from foundry_log.training.devices import set_seed
        from foundry_log.training.run_state import agreed

        if not ranks.rank:
            checkpoints.prepare()
        path = None if resume is False else self._resumed_path(checkpoints, resume)
        if path is not None:
            loop.restore(
                checkpoints.load(
                    path, model=loop.model.state_dict(), optimizer=loop.optimizer.state_dict()
                )
            )
            if path.absolute() not in {each.path.absolute() for each in checkpoints.all()}:
                self.logger.warning(
                    "Going on behind a checkpoint of another run, or one that was set aside: the "
                    "history of the steps before it is not its own",
                    checkpoint_dir=path,
                )
        elif ranks.size > 1:  # the same weights on each rank, but other activations dropped
            set_seed(loop.device, self.config.random_seed + ranks.rank)
        step = self._progress.steps_done
        agreed(0, ranks)  # all ranks have read theirs
        if ranks.rank:
            loop.attempt = self.metrics.resume(step, agreed(0, ranks))
        else:
            # First: a run killed in between goes on behind the latest checkpoint that is left.
            checkpoints.set_aside(step)
            loop.attempt = agreed(self.metrics.resume(step), ranks)
        self.logger.update_context(attempt=loop.attempt)

    def _resumed_path(
        self, checkpoints: Checkpoints, resume: bool | str | os.PathLike[str]
    ) -> Path | None:
        if not isinstance(resume, bool):
            return Path(resume)
        latest = checkpoints.latest()
        if latest is None:
            self.logger.info(
                "There is no checkpoint to go on from: starting at the first step",
                checkpoint_dir=self.directory.checkpoints,
            )
            return None
        return latest.path

    # --- the end ---

    def _log_error(self, error: Exception, device: str) -> None:
        from foundry_log.training.memory_errors import memory_context

        where = {"step": self._progress.step, "epoch": self._progress.epoch}
        self.errors.log_error(error, {**where, **memory_context(error, device)})

    def _finish(self, result: TrainingResult, interrupted: str) -> None:
        """Write the timing report and the last record, and close the run's own files."""
        path = self.directory.timing_report
        if self.config.logging.rank_files == "each":
            path = ranked(path, rank())
        try:
            if self.config.logging.rank_files == "each" or not rank():
                self.performance.export_timing_report(
                    path, permissions=self.config.logging.file_permissions
                )
        except OSError as error:
            self.logger.warning("The timing report could not be written: %s", error)
        if interrupted:
            self.logger.warning(
                "Training interrupted",
                step=result.steps,
                epoch=self._progress.epoch,
                by=interrupted,
                checkpoint_dir=result.checkpoint,
            )
        self.metrics.close()
        self.errors.close()
