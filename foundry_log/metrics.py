"""MetricsLogger: one line of JSON for each training step, and questions to the history."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import islice
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

from foundry_log.context import bound_fields
from foundry_log.encoding import encode_value, to_plain
from foundry_log.files.filenames import ranked
from foundry_log.files.history import histories
from foundry_log.files.locks import thread_lock
from foundry_log.filters import RedactingFilter
from foundry_log.formatters import EntryFormatter, entry_line
from foundry_log.handlers.direct import hand_over, takers
from foundry_log.handlers.losses import cause_of
from foundry_log.handlers.owned import owned_handler
from foundry_log.handlers.rotating_jsonl import RotatingJsonlHandler
from foundry_log.jsonl import JsonlCursor, read_jsonl, tail_jsonl
from foundry_log.metric_alarms import Alarm, MetricAlarms
from foundry_log.metric_history import (
    FIRST_ATTEMPT,
    MARKER,
    Attempts,
    LatestStep,
    attempt_of,
    current,
    marked,
)
from foundry_log.metric_statistics import MetricStatistics
from foundry_log.process import RankFiles, file_rank
from foundry_log.records import entry_record
from foundry_log.tensors import plain_metrics

MAX_SHOWN = 20
"""Metrics of a step that its line for people names, the file has all; and alarms of a step that
have a record of their own."""
LOOKED_AT = 100
"""Entries at the end of the file that show the attempt a logger takes part in."""

_log = logging.getLogger("foundry_log.metrics")


class MetricsLogger:
    """Writes the metrics of a run to `<output_dir>/metrics.jsonl`.

    A line stands in the file when the call returns, whatever levels, `logging.disable` or a
    `dictConfig` do: the logger owns its file. The same record is then offered to the logger
    `foundry_log.metrics.<experiment>`, which does not propagate; put a handler there to send
    metrics elsewhere. Its record carries a copy of the line's fields as `record.foundry_entry`.

    Each line names its `attempt`, from 1. A logger takes part in the latest attempt that the last
    100 entries of the file show, looked at before its first entry; `resume` begins a new one.
    Under a launcher of several processes each rank has a file, and lines, of its own.

    NaN and infinities are written as null with their names beside them, and read back as floats.
    A metric that becomes one of these, or leaps up (see `MetricAlarms`), is a WARNING record of
    `foundry_log.metrics`, once until an INFO record says that it is over; the handlers at
    `foundry_log.metrics.<experiment>` get both too. Their context: `metric`, `value`, `step`,
    `epoch` and `kind` ("nan", "infinity" or "spike"), of a spike `z_score` and `median`, at the end
    `since_step` and `steps`. A step that does not rise, also above what those 100 entries show, is
    written like any other, and a WARNING says so once until steps rise again (`step`,
    `latest_step`); the same step with other names, as those of an evaluation, is no such case.

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
        spike_z: robust z-score, above 0, from which on a loss or gradient norm is a spike; None
            for no alarms of that kind.
        rank_files: `each` rank of a distributed run writes a file of its own, such as
            `metrics@rank1.jsonl`, with its `rank` in the lines; or the `first` alone writes
            `metrics.jsonl`: loggers of the others write and say nothing, and answer from that file.

    Raises:
        ValueError: `spike_z` or `rank_files` is none of these.
    """

    def __init__(
        self,
        experiment_name: str,
        output_dir: str | os.PathLike[str],
        *,
        max_size_mb: float = 100,
        file_permissions: int = 0o640,
        one_file_per_process: bool | None = None,
        spike_z: float | None = 8.0,
        rank_files: RankFiles = "each",
    ) -> None:
        if spike_z is not None and not 0 < spike_z < math.inf:
            raise ValueError(
                f"spike_z={spike_z!r} must be a number above 0, such as 8.0, or None for no alarms"
            )
        rank = file_rank(rank_files)
        self._is_silent = rank_files == "first" and rank is not None
        self._rank = None if self._is_silent else rank
        self.experiment_name = experiment_name
        self.output_dir = Path(output_dir)
        self.metrics_file = ranked(self.output_dir / "metrics.jsonl", self._rank)
        self._handler = owned_handler(
            self.metrics_file, max_size_mb, _log, file_permissions, one_file_per_process
        )
        self._sinks = logging.getLogger(f"{_log.name}.{experiment_name}")
        self._sinks.propagate = False
        self._path = Path(os.path.abspath(self.metrics_file))  # the process may change directory
        self._index = _Index(self._path, self._handler)
        self._attempt: int | None = None  # before the first entry
        self._numbering = thread_lock()  # held while a number is chosen
        self._given: set[int] = set()  # chosen, and not yet logged
        self._spike_z = spike_z
        self._latest = LatestStep()
        self._alarms = MetricAlarms(spike_z)
        self.sink_failures: Counter[str] = Counter()
        """Records that a handler of `foundry_log.metrics.<experiment>` refused, by cause."""

    @property
    def losses(self) -> Mapping[str, int]:
        """Lines that could not be written, by cause."""
        return self._handler.losses

    def log_step(self, step: int, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Write `{"timestamp", "step", "epoch", "metrics", "attempt"}` and log `Step …` at INFO.

        Inside of scopes (`bound`) their fields follow under `context`.

        Args:
            step: number of the optimizer step.
            epoch: number of the epoch.
            metrics: name to number, or to anything that JSON can be made of; scalars of numpy and
                torch become numbers, those of torch with one read for each device.
        """
        if self._is_silent:
            return
        number = step if type(step) is int else to_plain(step)
        values = plain_metrics(metrics)
        entry = {
            "step": number,
            "epoch": epoch if type(epoch) is int else to_plain(epoch),
            "metrics": values,
            "attempt": self._attempt or self._joined(),
        }
        self._log("Step", entry, values)
        if type(number) is int:
            latest = self._latest
            if number > latest.number:
                latest.number = number
                latest.metrics = values
            elif number in self._given:
                self._given.discard(number)
            elif latest.is_late(number, values):
                self._say_late(number, latest.number)
        if type(values) is dict:
            alarms = self._alarms.check(number, values)
            if alarms:
                self._raise_alarms(alarms, entry)

    def log_next(self, metrics: Mapping[str, Any]) -> int:
        """Log metrics of what has no step of its own, such as a request; return the step they got.

        It is the one behind the highest that this logger has logged or the last 100 entries of the
        file show, from 1; the epoch is 0. Thread-safe; several processes that number so have a file
        each (`rank_files`, or a directory for each).
        """
        if self._is_silent:
            return 0
        with self._numbering:
            if self._attempt is None:
                self._joined()
            step = int(max(self._latest.number, 0)) + 1
            self._latest.number = step
            self._given.add(step)
        self.log_step(step, 0, metrics)
        return step

    def log_epoch_summary(
        self, epoch: int, summary: Mapping[str, Any], step: int | None = None
    ) -> None:
        """Write `{"timestamp", "epoch", "summary", "step", "attempt"}` and log `Epoch …` at INFO.

        Args:
            epoch: number of the epoch.
            summary: name to value, as the metrics of a step.
            step: the last one that the summary is of; None for the latest that was logged here,
                and left out before the first.
        """
        if self._is_silent:
            return
        entry = {"epoch": to_plain(epoch), "summary": plain_metrics(summary)}
        if step is not None or self._latest.number > -math.inf:
            entry["step"] = to_plain(self._latest.number if step is None else step)
        entry["attempt"] = self._attempt or self._joined()
        self._log("Epoch", entry, entry["summary"])

    def resume(self, step: int, attempt: int | None = None) -> int:
        """Begin a new attempt of the run, which goes on behind `step`, and return its number.

        What earlier attempts have logged of later steps is superseded: questions leave it out,
        also where an earlier process goes on writing. Where there are entries, the line
        `{"timestamp", "attempt", "resumed_from_step"}` says so; handlers at
        `foundry_log.metrics.<experiment>` get it too. Costs a reading of the whole history, that
        the first `compute_statistics` is spared.

        Args:
            step: the last step that is done, from 0. 0 is from scratch, and supersedes all.
            attempt: from 1; None for one more than the highest so far. Ranks and other processes
                that resume one run together pass a common number.

        Raises:
            ValueError: `step` or `attempt` is out of range.
            OSError: a file cannot be read.
        """
        _check_count("step", step, 0)
        highest = self._index.highest_attempt()
        if attempt is None:
            if self._rank is not None:  # the run may have had another number of ranks, or none
                highest = max(highest, _end_of(self._path.with_name("metrics.jsonl"))[0])
            attempt = highest + 1
        _check_count("attempt", attempt, max(highest, FIRST_ATTEMPT))
        self._attempt = attempt
        self._latest, self._alarms = LatestStep(), MetricAlarms(self._spike_z)
        if highest and not self._is_silent:
            self._index.is_whole = False
            self._write("Attempt", self._ranked({"attempt": attempt, MARKER: step}), None)
        return attempt

    def offer(self, kind: str, entry: Mapping[str, Any]) -> None:
        """Hand an entry to the handlers at `foundry_log.metrics.<experiment>`, not to the file.

        For what trackers want to know besides metrics: the configuration, checkpoints. Never
        raises; failures are counted in `sink_failures`.

        Args:
            kind: what it is, the message of the record.
            entry: its fields, in `record.foundry_entry` as plain values, with `attempt` behind.
        """
        if self._is_silent or not self._sinks.handlers:
            return
        plain = to_plain(entry)
        fields = plain if type(plain) is dict else {"value": plain}
        fields = self._ranked({**fields, "attempt": self._attempt or self._joined()})
        record = entry_record(self._sinks.name, INFO, _text(to_plain(kind)), fields)
        self._handler.filter(record)  # its one filter redacts
        self._hand_to_sinks(record)

    def get_metrics_history(self, all_attempts: bool = False) -> list[dict[str, Any]]:
        """Return the entries of the file and of its rotated files, oldest first.

        Args:
            all_attempts: False leaves out what a later attempt has superseded, and the lines that
                say where one begins: the history has each step as it counts. True gives all,
                superseded entries with `"superseded": True` in them.
        """
        entries = read_jsonl(self._path)
        return marked(entries) if all_attempts else current(entries)

    def get_metrics_for_steps(self, start: int, end: int) -> list[dict[str, Any]]:
        """Return the entries of the steps from `start` to `end`, both included, oldest first.

        Without summaries, and without what a later attempt has superseded.
        """
        return [
            entry
            for entry in current(read_jsonl(self._path), start, end)
            if "metrics" in entry and isinstance(entry.get("step"), (int, float))
        ]

    def compute_statistics(self, metric_name: str) -> dict[str, float]:
        """Return `count`, `mean`, `min`, `max`, `std` over the finite values of a metric.

        Values of the whole history count, but for superseded ones, see `resume`. While it is this
        logger alone that has written, and it has not resumed, that is all it has logged, answered
        from memory; rotated files that somebody removes count on. Else the first question reads the
        files, later ones what has been added, and all once more where an attempt has begun since.
        `std` is the sample standard deviation, 0.0 for one value. Empty for a metric without finite
        values.
        """
        return self._index.statistics(metric_name)

    def close(self) -> None:
        """Close the file; a later line opens it again."""
        self._handler.close()

    def _joined(self) -> int:
        """Return the attempt that this logger takes part in, found out before its first entry."""
        try:
            found, step = _end_of(self._path)
        except OSError:  # a line that cannot be written either is reported, and the next one asks
            return FIRST_ATTEMPT
        if self._attempt is None:
            self._attempt = found or FIRST_ATTEMPT
            self._latest.number = max(self._latest.number, step)
        return self._attempt

    def _ranked(self, entry: dict[str, Any]) -> dict[str, Any]:
        if self._rank is not None:
            entry["rank"] = self._rank
        return entry

    def _log(self, kind: str, entry: dict[str, Any], values: Any) -> None:
        """Write a plain entry, whose first field is its number, and say so to people."""
        if self._rank is not None:
            entry["rank"] = self._rank
        scopes = bound_fields()
        if scopes:
            entry["context"] = to_plain(dict(scopes))
        self._write(kind, entry, values)
        if _log.isEnabledFor(INFO):
            message = f"{_titled(kind, entry)}: {_listed(values)}"
            reached = takers(_log, INFO)
            if not (reached and hand_over(reached, _log, INFO, message, dict(scopes))):
                _log.info(message, stacklevel=3)

    def _write(self, kind: str, entry: dict[str, Any], values: Any) -> None:
        handler, sinks, index = self._handler, self._sinks, self._index
        is_direct = (
            handler.is_direct
            and type(handler.formatter) is EntryFormatter
            and not RedactingFilter.is_used
        )
        has_sinks = bool(sinks.handlers)  # whose records carry the values: they may change them
        if index.is_whole is None or has_sinks or not is_direct:
            index.before_entry(is_direct and not has_sinks)
        if not is_direct:
            record = entry_record(sinks.name, INFO, _titled(kind, entry), entry)
            handler.handle(record)
            self._hand_to_sinks(record)
            return
        # The handler's one filter redacts, so it has nothing to do.
        parts = (time.time(), INFO, "INFO", sinks.name, kind, entry)
        if type(values) is dict and "metrics" in entry and not has_sinks:
            index.logged.add(values)
        try:
            handler.write(entry_line(parts[0], entry) + b"\n", parts)
        except BaseException:  # Ctrl-C: the line may stand in the file, or not
            index.is_whole = False
            raise
        if has_sinks:
            record = entry_record(sinks.name, INFO, _titled(kind, entry), entry)
            record.created, record.msecs = parts[0], parts[0] % 1 * 1000
            self._hand_to_sinks(record)

    def _hand_to_sinks(self, record: logging.LogRecord) -> None:
        if self._sinks.handlers:
            try:
                # Not by `handle`: somebody's dictConfig may have disabled the logger.
                passed: Any = self._sinks.filter(record)
                if passed:
                    self._sinks.callHandlers(record if passed is True else passed)
            except Exception as error:  # a handler of somebody else's that lets its errors out
                self._report_sink(cause_of(error))

    def _say_late(self, step: int, latest: float) -> None:
        message = (
            f"Step {_text(step)} comes after step {_text(latest)}; it is written all the same. A "
            "run that goes on behind a checkpoint, or begins anew, says so by resume()"
        )
        _tell(_record(WARNING, message, {"step": step, "latest_step": latest}))

    def _raise_alarms(self, alarms: list[Alarm], entry: dict[str, Any]) -> None:
        where = {"step": entry["step"], "epoch": entry["epoch"]}
        records = [_alarm_record(alarm, where) for alarm in alarms[:MAX_SHOWN]]
        rest = alarms[MAX_SHOWN:]
        if rest:
            level = INFO if all(alarm.is_over for alarm in rest) else WARNING
            message = f"{len(rest)} more metrics have alarms, or are usual again"
            records.append(_record(level, message, {**where, "metrics": len(rest)}))
        for record in records:
            _tell(record)
            self._hand_to_sinks(record)

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
        self._attempts = Attempts()
        self._is_stale = False  # whether what was read has entries that are superseded by now
        self._lock = thread_lock()  # guards the four above, and the look before the first entry

    def before_entry(self, is_seen: bool) -> None:
        """Take note that an entry is to be written; whether `logged` gets to see it as it is."""
        if not is_seen:
            self.is_whole = False
            return
        with self._lock:  # nobody writes the first entry while another one looks
            if self.is_whole is None:
                self.is_whole = self._is_nothing_there()

    def highest_attempt(self) -> int:
        """Return the highest attempt in the files; 0 where they have no entry."""
        with self._lock:
            self._read_on()
            return self._attempts.highest

    def statistics(self, name: str) -> dict[str, float]:
        if self.is_whole and not self._handler.losses and self._handler.is_alone():
            return self.logged.summary(name)
        with self._lock:
            self._read_on()
            while self._is_stale:
                self._begin_again()
            return self._read.summary(name)

    def _read_on(self) -> None:
        known, read, was_stale = dict(self._attempts.markers), self._read, self._is_stale
        # Until the end: after an error the cursor gives again what was taken in, and a signal
        # handler that asks meanwhile has to begin again.
        self._is_stale = True
        self._cursor.advance(self._take)
        has_news = self._attempts.markers != known
        self._is_stale = was_stale or has_news or self._read is not read

    def _begin_again(self) -> None:
        """Read all once more: an attempt has turned up that supersedes what was taken in."""
        self._cursor, self._read = JsonlCursor(self._path), MetricStatistics()
        self._attempts = Attempts(self._attempts.markers)
        self._is_stale = False
        self._read_on()

    def _take(self, entry: dict[str, Any]) -> None:
        place = self._attempts.take(entry)
        metrics = entry.get("metrics")
        if place and type(metrics) is dict and not self._attempts.supersede(place):
            self._read.add(metrics)

    def _is_nothing_there(self) -> bool:
        try:
            with ExitStack() as files:
                found = histories(str(self._path), True, files)
                return not any(part.size for parts in found.values() for part in parts)
        except OSError:
            return False


def _end_of(path: Path) -> tuple[int, float]:
    """Return the highest attempt among the last entries of a history, and its highest step.

    0 and minus infinity where there are none.
    """
    entries = tail_jsonl(path, LOOKED_AT)
    attempt = max(map(attempt_of, entries), default=0)
    steps = (entry.get("step") for entry in entries if attempt_of(entry) == attempt)
    return attempt, max((step for step in steps if type(step) is int), default=-math.inf)


def _check_count(name: str, value: Any, least: int) -> None:
    if type(value) is not int or value < least:
        raise ValueError(f"{name}={value!r} must be an integer from {least} on")


def _alarm_record(alarm: Alarm, where: dict[str, Any]) -> logging.LogRecord:
    context = {"metric": alarm.metric, "value": alarm.value, **where, "kind": alarm.kind}
    name = _text(alarm.metric)
    if alarm.is_over:
        ended = {"since_step": alarm.since_step, "steps": alarm.steps}
        message = f"{name} is usual again: {_number(alarm.value)}"
        return _record(INFO, message, {**context, **ended})
    if alarm.kind == "spike":
        found = {"z_score": alarm.z_score, "median": alarm.median}
        message = f"{name} has a spike: {_number(alarm.value)}, median {_number(alarm.median)}"
        return _record(WARNING, message, {**context, **found})
    return _record(WARNING, f"{name} is not finite: {alarm.value}", context)


def _record(level: int, message: str, context: dict[str, Any]) -> logging.LogRecord:
    """Return a record of `foundry_log.metrics` that names the line which has called this module."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename == _SOURCE and frame.f_back is not None:
        frame = frame.f_back
    code = frame.f_code
    return _log.makeRecord(
        _log.name, level, code.co_filename, frame.f_lineno, message, (), None, code.co_name, context
    )


_SOURCE = _record.__code__.co_filename


def _tell(record: logging.LogRecord) -> None:
    if _log.isEnabledFor(record.levelno):
        _log.handle(record)


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
