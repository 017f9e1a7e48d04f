"""The stdlib's rotating file handler for whole lines, safe for many processes."""

from __future__ import annotations

import codecs
import contextlib
import locale
import logging
import logging.handlers
import math
import os
import pkgutil
import time
import weakref
from collections import Counter, deque
from pathlib import Path
from typing import Any

from foundry_log.files import filenames, locks
from foundry_log.files.append_file import AppendFile
from foundry_log.files.filesystems import shared_kind
from foundry_log.files.finishing import Finisher, Hook
from foundry_log.files.schedule import Schedule
from foundry_log.formatters import JsonFormatter
from foundry_log.handlers.direct import TakesParts
from foundry_log.handlers.losses import cause_of
from foundry_log.handlers.missing import Missing, Notice
from foundry_log.noticing import replaced
from foundry_log.process import host_name, rank
from foundry_log.records import Parts, whole

_LOOK_EVERY_S = 1.0
_RETRY_ROTATION_S = 10.0
_FINISH_WITHIN_S = 5.0
_LONGEST_NAME = 200  # of 255 bytes; stamps, markers and the like take the others

_log = logging.getLogger("foundry_log.handlers")
_warned: set[str] = set()  # directories of which this process has said that they are shared


class RotatingJsonlHandler(TakesParts, logging.handlers.RotatingFileHandler):
    """Appends each record as one line, which stands in the file when the logging call returns.

    A drop-in for `logging.handlers.RotatingFileHandler`: the same first parameters, `namer`,
    `rotator` and overridable methods. Any number of threads and of processes of one host may write
    the same local file; each line is one `write`, and what a killed process left of a line never
    touches another. Sizes are bytes. One writer never exceeds `maxBytes`, but for a single record
    that is larger; n concurrent writers exceed it by at most n records. A missing directory is
    made. Records that cannot be written are counted in `losses` and reported once per cause, and so
    are rotations that fail, in `failed_rotations`; the record is then written to the old file.
    After a full disk, or a file that could not be opened, the first line that can be written says
    how many records are missing.

    Where appends are not atomic (NFS, Lustre, SMB, FUSE and their like) each process writes a file
    of its own, `run@<host>-<pid>.jsonl`, and a warning says so once; readers of `run.jsonl` find
    them, and those of single ranks.

    A `rotator` that copies or compresses, instead of renaming, is for one process: another one may
    still write to the file that it reads. Readers and retention know files by their names, so a
    `namer` hides them from both.

    Without a formatter it writes the lines of `JsonFormatter()`; any formatter will do.

    Args:
        filename: the live file.
        mode: `a`; `w` empties the file at the first opening, `x` refuses one that is there. With
            rotation it is always `a`, as in the stdlib.
        maxBytes: size at which the file is rotated; 0 never rotates by size.
        backupCount: rotated files that are kept. 0 with the stdlib's names never rotates, as in the
            stdlib; with `stable_names` it keeps them all.
        encoding: of the text; None for UTF-8. It must write ASCII as ASCII.
        delay: open the file at the first record instead of now.
        errors: how text that the encoding lacks is written; None for `backslashreplace`.
        stable_names: rotated files carry a UTC stamp (`run.20261121T062311123456Z.jsonl`) and are
            never renamed again, in place of `.1`, `.2`, … which shift.
        max_age_days: rotated files last written longer ago are removed at the next rotation; None
            for never.
        when, interval, utc: rotate by time too, None for no; see
            `foundry_log.files.schedule.Schedule`.
        compress: replace rotated files by their gzip, `….jsonl.gz`, on a thread of its own. Needs
            `stable_names`.
        after_rotation: called with the path of each rotated file that nobody writes any more,
            compressed if it is to be: a function, or its dotted name. On the same thread, in one of
            the processes, and again where it raised or was killed: at least once. Until then the
            file is not removed. Closing waits five seconds for what is under way; the rest is done
            by the next process that opens the file. Needs `stable_names`, and the same in every
            process.
        per_process: give this process a file of its own; None does where the file system asks for
            it, False nowhere: where you know that one process writes.
        per_rank: put the rank into the file's name, `run@rank1.jsonl`, where a launcher such as
            torchrun has started several processes; readers of `run.jsonl` find the ranks' files.
        permissions: of new files, before the umask.
        fsync: wait for the device after each record, so that it survives a loss of power too.

    Raises:
        OSError: without `delay`, the file cannot be opened.
        ValueError: a parameter is out of range.
    """

    default_formatter = JsonFormatter()

    def __init__(
        self,
        filename: str | os.PathLike[str],
        mode: str = "a",
        maxBytes: int = 0,
        backupCount: int = 0,
        encoding: str | None = None,
        delay: bool = False,
        errors: str | None = None,
        *,
        stable_names: bool = False,
        max_age_days: float | None = None,
        when: str | None = None,
        interval: int = 1,
        utc: bool = False,
        compress: bool = False,
        after_rotation: Hook | str | None = None,
        per_process: bool | None = None,
        per_rank: bool = False,
        permissions: int = 0o640,
        fsync: bool = False,
    ) -> None:
        _check_numbers(mode, maxBytes, backupCount, max_age_days)
        if per_rank:
            filename = filenames.ranked(Path(filename), rank())
        if permissions & 0o600 != 0o600:
            raise ValueError(
                f"permissions={permissions:#o} keep the owner from reading or writing; use 0o640"
            )
        if (maxBytes or when) and len(os.fsencode(os.path.basename(filename))) > _LONGEST_NAME:
            raise ValueError(
                f"the name of {os.fspath(filename)!r} leaves no room for those of rotated files; "
                f"use at most {_LONGEST_NAME} bytes"
            )
        hook = _resolved(after_rotation)
        if (compress or hook) and not stable_names:
            raise ValueError(
                "compress and after_rotation need stable_names=True: what is done later must find "
                "the file under the name it had"
            )
        encoding = _checked_encoding(encoding, errors)
        self._schedule = Schedule(when, interval, utc) if when else None
        if bool(maxBytes or when) and (stable_names or backupCount > 0):
            mode = "a"
        self._file = AppendFile(
            os.fspath(filename),
            permissions=permissions,
            truncate=mode == "w",
            exclusive=mode == "x",
        )
        super().__init__(filename, mode, maxBytes, backupCount, encoding, True, errors)
        self.failed_rotations: Counter[str] = Counter()
        self._start_fresh()
        _handlers.add(self)
        self._given_name = self.baseFilename
        self._per_process = per_process
        self._named_for = -1  # process
        self._finisher: Finisher | None = None
        if compress or hook:
            self._finisher = Finisher(
                self._files_of_host,
                compress=compress,
                hook=hook,
                report=self._report_rotation,
                permissions=permissions,
            )
        self.stable_names = stable_names
        self.max_age_days = max_age_days
        self._permissions = permissions
        self._fsync = fsync
        self._due_at = float("inf")
        self._no_rotation_before = 0.0
        self._asks = type(self).shouldRollover is not RotatingJsonlHandler.shouldRollover
        self.is_direct = (
            type(self) is RotatingJsonlHandler
            and codecs.lookup(encoding).name == "utf-8"
            and errors in (None, "backslashreplace")
        )
        if not delay:
            self._open_file()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        turn = self.__dict__.get("_turn")
        if turn is not None:
            turn.calm_below = -1.0  # the stdlib's limits may be set later too, and what they mean

    def _start_fresh(self) -> None:
        """Begin with nothing under way: a new handler, or that of a forked child."""
        # Guarded by the handler's lock.
        self._turn = _Turn()
        self._missing = Missing()
        self._reported = self.losses.total()  # what the parent has lost is the parent's to say

    # --- a record to the file ---

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's line; what goes wrong is counted, never raised."""
        try:
            line = self._line(record)
        except Exception:
            self.handleError(record)
            return
        self.write(line, record)

    def emit_parts(self, parts: Parts) -> None:
        """Write the line of the record that has these parts; failures are counted."""
        formatter: Any = self.formatter or self.default_formatter
        try:
            line = formatter.line(*parts)
            if type(line) is str:
                line = line.encode("utf-8", "backslashreplace")
        except Exception:  # something was changed meanwhile: the long way knows what to do
            self.emit(whole(parts))
            return
        self.write(line + b"\n", parts)

    def write(self, line: bytes, record: logging.LogRecord | Parts) -> None:
        """Write a finished line, ended by a newline; failures are counted.

        For lines that need no record to be made. What logs inside of a write is a signal handler, a
        finalizer, or a `namer`: from halfway through, its line would be taken for another writer's,
        and its rotation would wait for ours. So it is left to the call of this thread that writes.

        Args:
            line: the bytes.
            record: what they are the line of, to be reported if they cannot be written.
        """
        file, turn, failures, notice = self._file, self._turn, None, None
        if self._missing.causes:
            notice = self._missing.notice(self._line)
        with self.lock or _NO_LOCK:
            if turn.is_taken:
                turn.waiting.append((line, record, notice))
                return
            try:
                turn.is_taken = True
                if (
                    file.size + len(line) <= turn.calm_below
                    and time.monotonic() - file.looked < _LOOK_EVERY_S
                    and not turn.waiting
                ):
                    file.append_next(line)
                elif turn.waiting:  # left by a write that was interrupted
                    turn.waiting.append((line, record, notice))
                else:
                    self._append(line, record, notice)
            except Exception as error:
                failures = [self._failed(record, error)]
            finally:
                turn.is_taken = False
            if turn.waiting:
                failures = [*(failures or ()), *self._write_waiting()]
        for failure in failures or ():
            self._report(*failure)

    def _write_waiting(self) -> list[_Failure]:
        """Write the lines that were left to this call, until nobody leaves any more."""
        turn = self._turn
        failures: list[_Failure] = []
        while turn.waiting:
            try:
                turn.is_taken = True
                while turn.waiting:
                    left = turn.waiting.popleft()
                    if left is None:
                        self._file.close()
                        continue
                    line, record, notice = left
                    try:
                        # What a rotation itself may have logged does not rotate: no end otherwise.
                        self._append(line, record, notice, may_rotate=False)
                    except Exception as error:
                        failures.append(self._failed(record, error))
            finally:
                turn.is_taken = False
        return failures

    def _failed(self, record: logging.LogRecord | Parts, error: Exception) -> _Failure:
        """Note what the file is missing; to be reported when the lock is free."""
        if isinstance(error, OSError):
            self._missing.add(cause_of(error), whole(record))
            self._turn.calm_below = -1.0
        return record, error

    def _report(self, record: logging.LogRecord | Parts, error: Exception) -> None:
        try:
            raise error
        except Exception:
            self.handleError(whole(record))

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line, without the newline."""
        return (self.formatter or self.default_formatter).format(record)

    def _line(self, record: logging.LogRecord) -> bytes:
        formatter: Any = self.formatter or self.default_formatter
        is_json = type(formatter) is JsonFormatter and formatter.is_direct
        line: bytes
        if is_json and self.is_direct and not replaced:
            line = formatter.encode(record)
        else:
            text = self.format(record) + self.terminator
            line = text.encode(self.encoding or "utf-8", self.errors or "backslashreplace")
        return line if line.endswith(b"\n") else line + b"\n"  # without, lines could not be told

    def _append(
        self,
        line: bytes,
        record: logging.LogRecord | Parts,
        notice: Notice | None,
        may_rotate: bool = True,
    ) -> None:
        """Write the line to the file, which is opened, followed and rotated as it takes."""
        self._prepare(len(line), whole(record), notice, may_rotate)
        self._file.append(line)
        if self._fsync:
            self._file.sync()

    def _prepare(
        self, incoming: int, record: logging.LogRecord, notice: Notice | None, may_rotate: bool
    ) -> None:
        """Have the file open that takes so many more bytes, rotated if it is time."""
        if notice is not None:
            incoming += len(notice.line)
        if not self._file.is_open:
            self._open_file()
        else:
            self._keep_up(record, every_s=_LOOK_EVERY_S)
        if not may_rotate:
            due = False
        elif self._asks or "shouldRollover" in self.__dict__:
            due = bool(self.shouldRollover(record))
        else:
            due = self._rotates and self._is_due(incoming)
        if due:
            self._roll(record)
        if notice is not None and notice.causes <= self._missing.causes:
            self._file.append(notice.line)  # first: it may fail as well
            self._missing.causes -= notice.causes
        is_asked = self._asks or self._schedule is not None or "shouldRollover" in self.__dict__
        is_calm = self._file.is_regular and not (is_asked or self._fsync or self._missing.causes)
        self._turn.calm_below = (self.maxBytes or math.inf) if is_calm else -1.0

    # --- rotation ---

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        """Return whether the file is rotated before `record` is written; for overriding."""
        if not self._rotates:
            return False
        if not self._file.is_open:
            self._open_file()
        return self._is_due(len(self._line(record)))

    def doRollover(self) -> None:
        """Rotate now, unless another process just has; then write on in the new file.

        Called from inside of itself, by a signal handler for one, it does nothing.

        Raises:
            TimeoutError: another process has been rotating for a second; it may be stopped.
            OSError: a file cannot be renamed or opened; the old one is written on.
        """
        self.acquire()
        try:
            if self._turn.is_rotating:
                return
            try:
                self._turn.is_rotating = True
                self._rotate_now()
            finally:
                self._turn.is_rotating = False
        finally:
            self.release()
        if self._finisher is not None:
            self._finisher.start()

    def _rotate_now(self) -> None:
        if not self._file.is_open:
            self._open_file()
        if not self._file.is_regular:
            return
        lock = filenames.lock_name(self.baseFilename)
        with locks.exclusive_file(lock, self._permissions, unless=self._file.moved) as is_ours:
            if is_ours and not self._file.moved():
                self._archive()
            self._follow()
            if is_ours:
                self._prune()

    @property
    def _rotates(self) -> bool:  # asked each time: the stdlib's limits may be set later too
        return bool(self.maxBytes or self._schedule) and bool(self.stable_names or self.backupCount)

    def _is_due(self, incoming: int) -> bool:
        file = self._file
        if not file.is_regular or file.size == 0:
            return False  # an empty file is never rotated, however large the record
        if self.maxBytes > 0 and file.size + incoming > self.maxBytes:
            return True
        return self._schedule is not None and time.time() >= self._due_at

    def _roll(self, record: logging.LogRecord) -> None:
        """Rotate, or report that it failed and write on: a record is never lost to a rename."""
        if time.monotonic() < self._no_rotation_before:
            return
        try:
            self.doRollover()
        except Exception:
            self._no_rotation_before = time.monotonic() + _RETRY_ROTATION_S
            self._count(self.failed_rotations, record)
        self._keep_up(record)  # an overridden doRollover, or half of a rotation, may have moved it

    def _archive(self) -> None:
        if self.stable_names:
            target = self.rotation_filename(self._stable_name())
            if self._finisher is not None:
                self._finisher.mark(target)
            self.rotate(self.baseFilename, target)
            return
        last = min(1, self.backupCount)
        # Up to the first free number, where a rotation that was killed has left a gap; beyond the
        # count where a slow writer's file moves on, to be removed later.
        while os.path.exists(self._numbered(last)) and (
            last < self.backupCount or locks.in_use(self._numbered(last))
        ):
            last += 1
        for number in range(last - 1, -1, -1):
            source = self._numbered(number) if number else self.baseFilename
            if os.path.exists(source):
                target = self._numbered(number + 1)
                if os.path.exists(target):
                    os.remove(target)
                self.rotate(source, target)

    def _stable_name(self) -> str:
        """Return the name that the live file gets now and keeps; the rotation lock is held."""
        older = filenames.rotated_files(self.baseFilename)
        return filenames.stamped_name(
            self.baseFilename, time.time(), after=older[-1] if older else None
        )

    def _numbered(self, number: int) -> str:
        return self.rotation_filename(filenames.numbered_name(self.baseFilename, number))

    def _prune(self) -> None:
        """Remove rotated files beyond the count or the age, except those that are written still."""
        rotated = filenames.rotated_files(self.baseFilename)
        surplus = self._beyond_count(rotated)
        if self.max_age_days is not None:
            oldest = time.time() - self.max_age_days * 86_400
            surplus += [path for path in rotated if _last_written(path) < oldest]
        for path in dict.fromkeys(surplus):
            if not (self._finisher and self._finisher.is_unfinished(path)):
                self._remove(path)

    def _remove(self, path: str) -> None:
        """Remove a file, unless anybody holds it locked; a failure is counted."""
        if locks.in_use(path):
            return
        try:
            os.remove(path)
        except FileNotFoundError:
            pass  # somebody else has removed it
        except OSError:
            self._report_rotation(f"removing {path}")

    def _report_rotation(self, doing: str) -> None:
        """Count what is being handled, and report it if its cause is new."""
        self._count(self.failed_rotations, logging.makeLogRecord({"msg": doing}))

    def _beyond_count(self, rotated: list[str]) -> list[str]:
        if self.stable_names:
            return rotated[: -self.backupCount] if self.backupCount else []
        beyond: list[str] = []
        while self.backupCount and os.path.exists(
            path := self._numbered(self.backupCount + 1 + len(beyond))
        ):
            beyond.append(path)
        return beyond

    # --- the file ---

    def _open_file(self) -> None:
        if self._named_for != os.getpid():
            self._name_for_process()
        self._file.open()
        self._set_due()
        self._finish_marked()  # what a process that was killed has left

    def _finish_marked(self) -> None:
        if self._finisher is not None:
            self._finisher.start_if_marked()

    def _files_of_host(self) -> list[str]:
        """Return the live file, and with it those of this host's other processes, also of ended."""
        others = filenames.process_files(self._given_name, filenames.host_part(host_name()))
        return list(dict.fromkeys([self.baseFilename, *others]))

    def _name_for_process(self) -> None:
        """Take the file's name; where several processes cannot share it, one of this process."""
        name, folder = self._given_name, os.path.dirname(self._given_name)
        kind = None
        if self._per_process is None:
            kind = shared_kind(folder)
        if self._per_process or kind:
            name = filenames.process_name(name, host_name(), os.getpid())
        self.baseFilename = self._file.path = name
        self._named_for = os.getpid()
        if kind:
            self._warn_of_sharing(
                kind, "Where only one process writes, per_process=False keeps the name."
            )

    def _warn_of_sharing(self, kind: str, remedy: str) -> None:
        """Say once for a directory that each process writes a file of its own there."""
        folder, name = os.path.split(self.baseFilename)
        if folder not in _warned:
            _warned.add(folder)
            _log.warning(
                "%s is on %s, where processes cannot append to one file: each writes its own, "
                "such as %s. %s",
                folder,
                kind,
                name,
                remedy,
            )

    def _follow(self) -> None:
        self._file.reopen()
        self._set_due()

    def _set_due(self) -> None:
        if self._schedule is not None and self._file.is_regular:
            now = time.time()  # a clock that was ahead must not put rotation off
            started = min(self._file.written_before, now) if self._file.size else now
            self._due_at = self._schedule.next_boundary(started)

    def _keep_up(self, record: logging.LogRecord, every_s: float = 0.0) -> None:
        """Follow the path if it has moved; where that fails, write on while the old file exists."""
        if not self._file.moved(every_s):
            return
        try:
            self._follow()
        except OSError:
            if self._file.is_removed:
                raise
            self._count(self.failed_rotations, record)

    def is_alone(self) -> bool:
        """Return whether the open file, those before it and no others hold its own lines alone."""
        file = self._file
        self.acquire()
        try:
            return (
                file.is_open
                and file.is_alone
                and file.has_grown_to() == file.size
                and not file.moved()
                and not filenames.process_files(self._given_name)
            )
        finally:
            self.release()

    def flush(self) -> None:
        """Do nothing: every record was written when its call returned."""

    def close(self) -> None:
        """Close the file and report losses; a later record opens it again. Idempotent.

        Called by a signal handler inside of a write, it leaves the file's end to that write.
        """
        failures: list[_Failure] = []
        self.acquire()
        try:
            if self._turn.is_taken:
                self._turn.waiting.append(None)
            else:
                failures = self._write_waiting()  # left by a write that was interrupted
                self._file.close()
        finally:
            self.release()
        for failure in failures:
            self._report(*failure)
        if self._finisher is not None:
            self._finish_marked()  # also those that this process had open until now
            self._finisher.close(_FINISH_WITHIN_S)
        super().close()


_handlers: weakref.WeakSet[RotatingJsonlHandler] = weakref.WeakSet()


def _start_fresh_after_fork() -> None:
    for handler in list(_handlers):
        handler._start_fresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_fresh_after_fork)


_NO_LOCK: Any = contextlib.nullcontext()  # where somebody has taken the handler's away
_Failure = tuple["logging.LogRecord | Parts", Exception]


class _Turn:
    """Who is at the file: guarded by the handler's lock, so always the thread that asks."""

    __slots__ = ("calm_below", "is_rotating", "is_taken", "waiting")

    def __init__(self) -> None:
        self.calm_below = -1.0
        """Size in bytes up to which a line takes an append and nothing else; -1 for never."""
        self.is_taken = False
        self.is_rotating = False
        self.waiting: deque[tuple[bytes, logging.LogRecord | Parts, Notice | None] | None] = deque()
        """Lines left to the write that is under way; None where the file is to be closed."""


def _resolved(hook: Hook | str | None) -> Hook | None:
    """Return the function that a configuration names.

    Raises:
        ValueError: it names none.
    """
    if isinstance(hook, str):
        try:
            hook = pkgutil.resolve_name(hook)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"after_rotation={hook!r} names no function ({error}); use 'package.module.name'"
            ) from error
    if hook is not None and not callable(hook):
        raise ValueError(f"after_rotation={hook!r} cannot be called; pass a function of one path")
    return hook


def _last_written(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except FileNotFoundError:
        return time.time()


def _checked_encoding(encoding: str | None, errors: str | None) -> str:
    if encoding == "locale":  # the stdlib's word for it
        encoding = locale.getpreferredencoding(False)
    encoding = encoding or "utf-8"
    try:
        keeps_ascii = "{\n".encode(encoding) == b"{\n"
        codecs.lookup_error(errors or "strict")
    except LookupError as error:
        raise ValueError(f"{error}; use encoding='utf-8', errors=None") from error
    if not keeps_ascii:
        raise ValueError(f"encoding={encoding!r} does not keep ASCII; use 'utf-8'")
    return encoding


def _check_numbers(mode: str, max_bytes: int, backups: int, age: float | None) -> None:
    if mode not in ("a", "w", "x"):
        raise ValueError(f"mode={mode!r} does not append text; use 'a', 'w' or 'x'")
    if max_bytes < 0 or backups < 0:
        raise ValueError(f"maxBytes={max_bytes} and backupCount={backups} must be 0 or more")
    if age is not None and age <= 0:
        raise ValueError(f"max_age_days={age} must be above 0, or None to keep files for ever")
