"""The configuration of logging and of an experiment: validated, typed, plain data.

Every section refuses what it does not understand when it is made: a wrong value with its field, the
value, the rule and the remedy, an unknown field with the nearest known name. Assignments are
checked in the same way.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_serializer,
    model_validator,
)

from foundry_log.dict_config import dict_config
from foundry_log.files.filenames import check_name
from foundry_log.process import RankFiles
from foundry_log.redaction import Redactor

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def _level(value: Any) -> Any:
    if isinstance(value, int) and logging.getLevelName(value) in LEVELS:
        return logging.getLevelName(value)
    name = value.upper() if isinstance(value, str) else value
    if name not in LEVELS:
        raise ValueError(f"{value!r} is not a level; use one of {', '.join(LEVELS)}")
    return name


Level = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_level)]


def _positive(value: float) -> float:
    if not value > 0:
        least = "1 or more" if isinstance(value, int) else "a number above 0"
        raise ValueError(f"{value} must be greater than 0; use {least}")
    return value


Count = Annotated[int, AfterValidator(_positive)]
Positive = Annotated[float, AfterValidator(_positive)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


def _permissions(value: Any) -> Any:
    mode = value
    if isinstance(value, str):
        mode = int(value, 8) if re.fullmatch("(0o)?[0-7]{3,4}", value) else -1
    if isinstance(mode, int) and not (0 <= mode <= 0o777 and mode & 0o600 == 0o600):
        raise ValueError(
            f"{value!r} are no permissions with which the owner can read and write; use octal "
            'text such as "0640"'
        )
    return mode


Permissions = Annotated[int, BeforeValidator(_permissions)]
ExperimentName = Annotated[str, AfterValidator(check_name)]


class Section(BaseModel):
    """A part of the configuration: unknown fields are refused, assignments are checked."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for name in values:
                if name not in cls.model_fields:
                    near = difflib.get_close_matches(str(name), cls.model_fields, n=1, cutoff=0.5)
                    remedy = f"did you mean {near[0]!r}?" if near else "remove it."
                    known = ", ".join(cls.model_fields)
                    raise ValueError(
                        f"{cls.__name__} has no field {name!r}; {remedy} Its fields are: {known}"
                    )
        return values

    def __setattr__(self, name: str, value: Any) -> None:
        # pydantic leaves a value in place that a rule over several fields has refused.
        before = dict(self.__dict__)
        try:
            super().__setattr__(name, value)
        except ValueError:
            self.__dict__.update(before)
            raise


class LoggingConfig(Section):
    """How a run logs. All fields have defaults; see each field for its meaning and unit."""

    console_level: Level = "INFO"
    """Least level that is shown on the terminal."""
    file_level: Level = "DEBUG"
    """Least level that is written to the log files."""
    use_structured_logging: bool = True
    """Write JSON Lines beside the log for people, and give StructuredLogger's text as JSON."""
    log_to_wandb: bool = True
    """Send what the Trainer logs to Weights & Biases; where it is not installed, say so once."""
    wandb_project: str | None = None
    """Project of the W&B run; None for W&B's own default."""
    wandb_mode: Literal["online", "offline", "disabled"] | None = None
    """None for online where there is a login, otherwise offline; nobody is asked for one."""
    log_to_tensorboard: bool = False
    """Write TensorBoard's event files, below the run's directory."""
    log_checkpoints: Literal["reference", "upload", "none"] = "reference"
    """What W&B gets of a checkpoint: where it is, its files, or nothing."""
    max_log_files: Count = 10
    """Rotated log files that are kept; metrics and errors are kept for ever."""
    max_log_size_mb: Count = 100
    """Size in MiB (2^20 bytes) at which a file is rotated."""
    compress_rotated_logs: bool = False
    """Replace rotated log files by their gzip, on a thread of its own."""
    after_rotation: str | None = None
    """Dotted name of a function that is called with the path of each rotated log file, on a thread
    of its own and at least once."""
    file_permissions: Permissions = 0o640
    """Of new log files, before the umask: a number, or octal text such as "0640"."""
    one_file_per_process: bool | None = None
    """Give each process log files of its own, `run@<host>-<pid>.jsonl`; None where the file system
    cannot be appended to by several (NFS, Lustre, SMB, FUSE)."""
    rank_files: RankFiles = "each"
    """Under torchrun or srun: `each` rank has a file set of its own, `run@rank1.jsonl`, or the
    `first`, rank 0, writes alone, under plain names. Any rank's errors are written either way."""
    background_writing: bool = False
    """Write on a thread of its own; a crash then loses what is queued."""
    background_queue_size: Count = 10_000
    """Records that wait at the most."""
    background_overflow: Literal["block", "drop_newest", "drop_oldest"] = "block"
    """What a record meets that finds the queue full."""
    redact_secrets: bool = False
    """Blank passwords, tokens, keys and their like in whatever is logged."""
    redact_keys: list[str] = Field(default_factory=list)
    """Names of more fields that are secret."""
    redact_patterns: list[str] = Field(default_factory=list)
    """Regular expressions of more texts that are secret."""
    ship_to: str | None = Field(default=None, repr=False)
    """Where finished files go: `https://<account>.blob.core.windows.net/<container>[/<prefix>]`, or
    `file:///<path>`; None for nowhere. Files that tell the configuration leave a SAS out."""
    ship_every_s: Positive = 60.0
    """Seconds from one look for finished files to the next."""
    delete_shipped_after_days: Positive | None = None
    """Days after which a rotated file that was shipped is removed here; None for never."""
    log_metrics_every_n_steps: Count = 10
    """Steps from one line of metrics to the next."""
    log_detailed_metrics_every_n_steps: Count = 100
    """Steps from one line with the norms of each parameter to the next."""
    reduce_metrics: bool = False
    """Of several ranks: one line for all of them, with means of losses and norms and sums of rates,
    in place of a line of each."""
    spike_z: Positive | None = 8.0
    """Robust z-score above which a loss or gradient norm is reported as a spike; None for never."""
    report_hang_after_s: Positive | None = 600.0
    """Seconds without a step after which the stacks of all threads go to the errors; None for
    never."""
    system_metrics_interval_s: Positive | None = 15.0
    """Seconds from one line of CPU, memory, disk, network and GPU to the next; None for none."""
    profile_performance: bool = False
    """Time the parts of each step (data, forward, backward, optimizer, the logging itself), and log
    the model's FLOP/s."""
    log_memory_every_n_steps: Count = 100
    """Steps from one record of memory use to the next."""
    max_errors_to_track: Count = 1000
    """Errors that are kept in memory; the file has them all."""

    @field_serializer("ship_to", when_used="json")
    def _without_secret(self, address: str | None) -> str | None:
        return address and address.partition("?")[0]

    @model_validator(mode="after")
    def _try_redaction(self) -> LoggingConfig:
        Redactor(self.redact_keys, self.redact_patterns)
        return self

    def to_dict_config(
        self,
        directory: str | os.PathLike[str] = "logs",
        *,
        context: Mapping[str, Any] | None = None,
        console: bool = True,
    ) -> dict[str, Any]:
        """Return the set-up as plain data for `logging.config.dictConfig`.

        A new dict each time, of names, numbers and text alone: it can be changed, merged with yours
        or saved as JSON. It keeps existing loggers alive; applied twice, it doubles nothing.

        Args:
            directory: where `run.log` (for people) and `run.jsonl` go; made at the first record.
            context: fields that every record gets, below those of scopes and calls.
            console: also show records on standard error.
        """
        return dict_config(self, directory, context or {}, console)


class DataConfig(Section):
    """What is trained on."""

    path: Path | None = None
    """A text file, or a directory of them; None for the sources of Python's standard library."""
    pattern: str = "*.py"
    """Names of the files of a directory that are read, in its sub-directories too."""
    max_megabytes: Positive = 2.0
    """MB (10^6 bytes) read at the most."""
    sequence_length: Count = 64
    """Tokens of one example."""
    eval_fraction: Fraction = 0.05
    """Part of the text, its end, that is kept for evaluation."""


class TokenizerConfig(Section):
    """How text becomes tokens; bytes are the only kind that is built in."""

    kind: Literal["byte"] = "byte"
    """One token a byte of UTF-8."""
    vocab_size: Annotated[int, Field(ge=256)] = 256
    """Number of different tokens that the model provides for; bytes need 256."""


class ModelConfig(Section):
    """The shape of the language model, a small transformer."""

    hidden_size: Count = 64
    """Width of the residual stream; a multiple of `num_heads`."""
    num_layers: Count = 2
    """Transformer blocks."""
    num_heads: Count = 4
    """Attention heads of each block."""
    dropout: Fraction = 0.0
    """Probability with which activations are dropped in training."""

    @model_validator(mode="after")
    def _divides(self) -> ModelConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is no multiple of num_heads={self.num_heads}; "
                f"use {self.num_heads * max(1, self.hidden_size // self.num_heads)}"
            )
        return self


class TrainingConfig(Section):
    """How the model is trained."""

    epochs: Count | None = 1
    """Passes over the training text; None, also where only `train_steps` is given, for as many as
    those take. Of both given the first that is reached ends the run."""
    train_steps: Count | None = None
    """Optimizer steps after which training ends, in the middle of an epoch too; None for no end
    before the epochs are done."""
    batch_size: Count = 16
    """Examples of one forward pass."""
    gradient_accumulation_steps: Count = 1
    """Forward passes of one optimizer step."""
    learning_rate: Positive = 3e-3
    """Peak of the schedule."""
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    """Steps over which the rate rises from 0; then it falls along a cosine to a tenth."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Of AdamW."""
    max_grad_norm: Positive = 1.0
    """Global norm to which gradients are clipped."""
    eval_every_n_steps: Count = 200
    """Steps from one evaluation to the next; the last step is always evaluated."""
    eval_batches: Count = 20
    """Batches of one evaluation."""
    checkpoint_every_n_steps: Count = 500
    """Steps from one checkpoint to the next; the last step always has one."""
    keep_last_checkpoints: Count | None = None
    """Checkpoints that are kept, the latest; None keeps all."""
    keep_best_checkpoint: bool = False
    """Also keep the one with the lowest evaluation loss; each checkpoint is evaluated then."""
    device: str | None = None
    """Such as `cpu` or `cuda:0`; None for a GPU where there is one."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of matrix products; weights stay in float32. `auto` is bfloat16 on a GPU that has it, float16
    on an older one, float32 elsewhere."""
    peak_flops: Positive | None = None
    """Floating-point operations a second that the device does at best, of which `mfu` is a part;
    None for what is known of the GPU."""

    @model_validator(mode="after")
    def _ends(self) -> TrainingConfig:
        if self.epochs is None and self.train_steps is None:
            raise ValueError("epochs=None and train_steps=None has no end; give one of them")
        if self.train_steps is not None and "epochs" not in self.model_fields_set:
            self.__dict__["epochs"] = None  # whoever gives steps alone means these
        return self


class ExperimentConfig(Section):
    """Everything a run is made from; only its name has no default."""

    experiment_name: ExperimentName
    """Names the run's directory: no separators, at most 200 bytes."""
    data: DataConfig = Field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)
    random_seed: Annotated[int, Field(ge=0)] = 42
    """Of initial weights and of the order of the examples."""

    @model_validator(mode="after")
    def _can_tell_the_best(self) -> ExperimentConfig:
        if self.training.keep_best_checkpoint and self.data.eval_fraction == 0:
            raise ValueError(
                "training.keep_best_checkpoint=True needs an evaluation, and data.eval_fraction=0 "
                "keeps no text for it; use a fraction such as 0.05"
            )
        return self
