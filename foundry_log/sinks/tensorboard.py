"""TensorBoard: event files of a run, by the SummaryWriter of torch."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundry_log.extras import import_extra
from foundry_log.sinks.base import SinkHandler


class TensorBoardHandler(SinkHandler):
    """Writes scalars and texts to the event files of a directory.

    Metrics keep their names, epoch summaries stand under `epoch/`, measurements of the machine
    under `system/` at the latest step; configuration, checkpoints and warnings are texts. Each has
    the time at which it was logged. Where a run goes on behind a checkpoint, TensorBoard is told to
    forget the steps behind it that an earlier attempt has written. Scalars are float32, as there.

    Needs torch and tensorboard: `pip install 'foundry_log[torch,tensorboard]'`. Several processes
    may write into one directory; give each rank its own, or the curves mix.

    Args:
        directory: of the event files; made if it is missing.
        flush_secs: seconds that events wait in memory at the most; `flush` and `close` write them.
        options: as of `SinkHandler`.

    Raises:
        ValueError: a parameter is out of range.
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, flush_secs: float = 30, **options: Any
    ) -> None:
        if not flush_secs > 0:
            raise ValueError(f"flush_secs={flush_secs} must be above 0 seconds")
        self.directory = Path(os.path.abspath(directory))  # the process may change directory
        self.flush_secs = flush_secs
        self._writer: Any = None
        self._step = 0  # the latest
        self._config: Mapping[str, Any] | None = None
        super().__init__(**options)

    def open(self) -> None:
        """Begin an event file."""
        self._begin()

    def metrics(
        self, step: int, epoch: int, values: Mapping[str, float], entry: Mapping[str, Any]
    ) -> None:
        """Write a scalar for each metric."""
        self._step = step
        self._scalars("", values, step)

    def summary(self, epoch: int, values: Mapping[str, float], entry: Mapping[str, Any]) -> None:
        """Write a scalar under `epoch/` for each value, at the entry's step."""
        self._scalars("epoch/", values, entry.get("step", self._step))

    def system(self, values: Mapping[str, float]) -> None:
        """Write a scalar under `system/` for each value."""
        self._scalars("system/", values, self._step)

    def config(self, values: Mapping[str, Any]) -> None:
        """Write the configuration as a block of JSON."""
        self._config = values
        self._add_text("config", _block(json.dumps(values, indent=2)), 0)

    def checkpoint(self, facts: Mapping[str, Any]) -> None:
        """Write what is known of a checkpoint as a block of JSON."""
        self._add_text("checkpoint", _block(json.dumps(facts, indent=2)), facts["step"])

    def text(self, record: logging.LogRecord) -> None:
        """Write a line under the name of its level."""
        self._add_text(f"log/{record.levelname}", _block(self.format(record)), self._step)

    def resumed(self, attempt: int, step: int) -> None:
        """Have the steps behind `step` forgotten that are there already; all of them behind 0."""
        self._step = step
        self._begin(purge_step=step + 1 if step else 0)
        if not step and self._config is not None:  # which stands at step 0
            self.config(self._config)

    def end(self) -> None:
        """Write what is left, and close the file."""
        self._writer.close()
        self._writer = None

    def flush(self) -> None:
        """Wait until all that is queued now stands in the files, `flush_timeout_s` at the most."""
        if self._worker is not None:  # else nothing was logged, or it is closed
            self.call(self._flush_writer)
        super().flush()

    def _flush_writer(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def _begin(self, purge_step: int | None = None) -> None:
        import_extra("tensorboard", "tensorboard", "TensorBoardHandler")
        import_extra("torch", "torch", "TensorBoardHandler")
        writing = import_extra("torch.utils.tensorboard", "tensorboard", "TensorBoardHandler")
        if self._writer is not None:
            self._writer.close()
        self._writer = writing.SummaryWriter(
            str(self.directory), purge_step=purge_step, flush_secs=self.flush_secs
        )

    def _scalars(self, prefix: str, values: Mapping[str, float], step: Any) -> None:
        for name, value in values.items():
            self._writer.add_scalar(prefix + name, value, global_step=step, walltime=self.created)

    def _add_text(self, name: str, text: str, step: Any) -> None:
        self._writer.add_text(name, text, global_step=step, walltime=self.created)


def _block(text: str) -> str:
    """Return Markdown that shows the text as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())
