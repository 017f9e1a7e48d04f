"""MetricsLogger: one line of JSON for each training step, and questions to the history."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import islice
from logging import INFO
from pathlib import Path
from typing import Any

from foundry_log.context import bound_fields
from foundry_log.encoding import encode_value, to_plain
from foundry_log.files.history import histories
from foundry_log.files.locks import thread_lock
from foundry_log.filters import RedactingFilter
from foundry_log.formatters import EntryFormatter, entry_line
from foundry_log.handlers.direct import hand_over, takers
from foundry_log.handlers.losses import cause_of
from foundry_log.handlers.owned import owned_handler
from foundry_log.handlers.rotating_jsonl import RotatingJsonlHandler
from foundry_log.jsonl import JsonlCursor, read_jsonl
from foundry_log.metric_statistics import MetricStatistics
from foundry_log.records import entry_record

MAX_SHOWN = 20
"""Metrics of a step that its line for people names; the file has all."""

_log = logging.getLogger("foundry_log.metrics")


class MetricsLogger:
    """Writes the metrics of a run to `<output_dir>/metrics.jsonl`.

    A line stands in the file when the call returns, whatever levels, `logging.disable` or a
    `dictConfig` do: the logger owns its file. The same record is then offered to the logger
    `foundry_log.metrics.<experiment>`, which does not propagate; put a handler there to send
    metrics elsewhere. Its record carries a copy of the line's fields as `record.foundry_entry`.

    NaN and infinities are written as null with their names beside them, and read back as floats.
    Where the records of `foundry_log.metrics` are redacted, so are the lines.
    Safe from several threads, and from several processes that write the same file. Logging
    never raises; what could not be written is counted in `losses` and reported once per cause.
    Questions raise OSError where a file cannot be read.

    Args:
        experiment_name: of the run.
        output_dir: of the file; made if it is missing.
        max_size_mb: MiB (2^20 bytes) at which the file is rotated, under a name with the time in
            it. Rotated files are read with the live one, and never removed.
        file_permissions, one_file_per_process: as of `LoggingConfig`.
    """

    def __init__(
        self,
        experiment_name: str,
        output_dir: str | os.PathLike[str],
        *,
        max_size_mb: float = 100,
        file_permissions: int = 0o640,
        one_file_per_process: bool | None = None,
    ) -> None:
        self.experiment_name = experiment_name
        self.output_dir = Path(output_dir)
        self.metrics_file = self.output_dir / "metrics.jsonl"
        self._handler = owned_handler(
            self.metrics_file, max_size_mb, _log, file_permissions, one_file_per_process
        )
        self._sinks = logging.getLogger(f"{_log.name}.{experiment_name}")
        self._sinks.propagate = False
        self._path = Path(os.path.abspath(self.metrics_file))  # the process may change directory
        self._index = _Index(self._path, self._handler)
        self.sink_failures: Counter[str] = Counter()
        """Records that a handler of `foundry_log.metrics.<experiment>` refused, by cause."""

    @property
    def losses(self) -> Mapping[str, int]:
        """Lines that could not be written, by cause."""
        return self._handler.losses

    def log_step(self, step: int, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Write `{"timestamp", "step", "epoch", "metrics"}` and log `Step …` at INFO.

        Inside of scopes (`bound`) their fields follow under `context`.

        Args:
            step: number of the optimizer step.
            epoch: number of the epoch.
            metrics: name to number, or to anything that JSON can be made of; scalars of numpy and
                torch become numbers.
        """
        entry = {
            "step": step if type(step) is int else to_plain(step),
            "epoch": epoch if type(epoch) is int else to_plain(epoch),
            "metrics": to_plain(metrics),
        }
        self._log("Step", entry, "metrics")

    def log_epoch_summary(self, epoch: int, summary: Mapping[str, Any]) -> None:
        """Write `{"timestamp", "epoch", "summary"}` and log `Epoch …` at INFO."""
        self._log("Epoch", {"epoch": to_plain(epoch), "summary": to_plain(summary)}, "summary")

    def get_metrics_history(self) -> list[dict[str, Any]]:
        """Return all entries of the file and of its rotated files, oldest first."""
        return list(read_jsonl(self._path))

    def get_metrics_for_steps(self, start: int, end: int) -> list[dict[str, Any]]:
        """Return the entries of the steps from `start` to `end`, both included, oldest first."""
        return [
            entry
            for entry in read_jsonl(self._path)
            if isinstance(entry.get("step"), (int, float)) and start <= entry["step"] <= end
        ]

    def compute_statistics(self, metric_name: str) -> dict[str, float]:
        """Return `count`, `mean`, `min`, `max`, `std` over the finite values of a metric.

        Values of the whole history count. While it is this logger alone that has written, that is
        all it has logged, answered from memory; rotated files that somebody removes count on.
        Where the files hold entries of an earlier or another process too, the first question reads
        them, and later ones what has been added. `std` is the sample standard deviation, 0.0 for
        one value. Empty for a metric without finite values.
        """
        return self._index.statistics(metric_name)

    def close(self) -> None:
        """Close the file; a later line opens it again."""
        self._handler.close()

    def _log(self, kind: str, entry: dict[str, Any], values: str) -> None:
        """Write a plain entry, whose first field is its number, and say so to people."""
        scopes = bound_fields()
        if scopes:
            entry["context"] = to_plain(dict(scopes))
        self._write(kind, entry, entry[values])
        if _log.isEnabledFor(INFO):
            message = f"{_titled(kind, entry)}: {_listed(entry[values])}"
            reached = takers(_log, INFO)
            if not (reached and hand_over(reached, _log, INFO, message, dict(scopes))):
                _log.info(message, stacklevel=3)

    def _write(self, kind: str, entry: dict[str, Any], values: Any) -> None:
        handler, sinks, index = self._handler, self._sinks, self._index
        is_direct = (
            handler.is_direct
            and type(handler.formatter) is EntryFormatter
            and not (sinks.handlers or RedactingFilter.is_used)
        )
        if index.is_whole is None or not is_direct:
            index.before_entry(is_direct)
        if not is_direct:
            self._write_record(_titled(kind, entry), entry)
            return
        # The handler's one filter redacts, so it has nothing to do.
        parts = (time.time(), INFO, "INFO", sinks.name, kind, entry)
        if type(values) is dict and "metrics" in entry:
            index.logged.add(values)
        try:
            handler.write(entry_line(parts[0], entry) + b"\n", parts)
        except BaseException:  # Ctrl-C: the line may stand in the file, or not
            index.is_whole = False
            raise

    def _write_record(self, message: str, entry: dict[str, Any]) -> None:
        sinks = self._sinks
        record = entry_record(sinks.name, INFO, message, entry)
        self._handler.handle(record)
        if sinks.handlers:
            try:
                sinks.handle(record)
            except Exception as error:  # a handler of somebody else's that lets its errors out
                self._report_sink(cause_of(error))

    def _report_sink(self, cause: str) -> None:
        self.sink_failures[cause] += 1
        if self.sink_failures[cause] == 1:
            _log.warning(
                "A handler of %s fails: %s", self._sinks.name, cause, exc_info=True, stacklevel=5
            )


class _Index:
    """Statistics of each metric: of what was logged here, for as long as that is all there is.

    Where the files hold more, of an earlier process or another writer, it is the files that count:
    they are read at the first question, and what is new at the later ones.
    """

    def __init__(self, path: Path, handler: RotatingJsonlHandler) -> None:
        self._path = path
        self._handler = handler
        self.logged = MetricStatistics()
        self.is_whole: bool | None = None  # whether `logged` has all; None before the first entry
        self._cursor = JsonlCursor(path)
        self._read = MetricStatistics()
        self._lock = thread_lock()  # guards the two above, and the look before the first entry

    def before_entry(self, is_seen: bool) -> None:
        """Take note that an entry is to be written; whether `logged` gets to see it as it is."""
        if not is_seen:
            self.is_whole = False
            return
        with self._lock:  # nobody writes the first entry while another one looks
            if self.is_whole is None:
                self.is_whole = self._is_nothing_there()

    def statistics(self, name: str) -> dict[str, float]:
        if self.is_whole and not self._handler.losses and self._handler.is_alone():
            return self.logged.summary(name)
        with self._lock:
            self._cursor.advance(self._take)
            return self._read.summary(name)

    def _take(self, entry: dict[str, Any]) -> None:
        metrics = entry.get("metrics")
        if type(metrics) is dict:
            self._read.add(metrics)

    def _is_nothing_there(self) -> bool:
        try:
            with ExitStack() as files:
                found = histories(str(self._path), True, files)
                return not any(part.size for parts in found.values() for part in parts)
        except OSError:
            return False


def _titled(kind: str, entry: dict[str, Any]) -> str:
    return f"{kind} {_text(next(iter(entry.values())))}"


def _listed(values: Any) -> str:
    if not isinstance(values, dict):
        return encode_value(values).decode()
    shown = [f"{name}={_number(value)}" for name, value in islice(values.items(), MAX_SHOWN)]
    if len(values) > MAX_SHOWN:
        shown.append(f"… and {len(values) - MAX_SHOWN} more in the file")
    return _text(", ".join(shown))


def _number(value: Any) -> str:
    """Return four decimals; of a number too small for them, four in exponent form."""
    if isinstance(value, float):
        return f"{value:.4e}" if 0 < abs(value) < 0.001 else f"{value:.4f}"
    if isinstance(value, str):
        return value
    return _text(value) if isinstance(value, int) else encode_value(value).decode()


def _text(plain: Any) -> str:
    """Return text that any handler can write: without lone surrogates, and not too many digits."""
    try:
        return str(plain).encode("utf-8", "backslashreplace").decode()
    except ValueError:  # an integer of more digits than Python writes
        return encode_value(plain).decode()
