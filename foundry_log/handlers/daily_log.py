"""The handler behind `get_logger`: text lines, a file a day, names that never change."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator

from foundry_log.files import locks, owners
from foundry_log.files.app_filenames import AppLogName, format_name, parse_name, worker_name
from foundry_log.files.filenames import host_part, lock_name
from foundry_log.files.filesystems import shared_kind
from foundry_log.handlers.rotating_jsonl import RotatingJsonlHandler
from foundry_log.process import host_name
from foundry_log.text_formatters import PlainFormatter

LINE_FORMAT = (
    "%(asctime)s.%(msecs)03d | %(levelname)s | %(name)s | [%(processName)s-%(process)d] | "
    "[%(threadName)s-%(thread)d] | %(filename)s:%(lineno)d | %(message)s"
)
DATE_FORMAT = "%Y-%m-%d %H:%M:%S"

_SECONDS_A_DAY = 86_400


class DailyLogHandler(RotatingJsonlHandler):
    """Appends lines of text to an application's file of today, and closes it at local midnight.

    A rotated file has the day of its last line in its name, and never changes it again; the names
    are those of `foundry_log.files.app_filenames`. What the class it extends promises of lines,
    threads, processes, forks and failures holds here too.

    Beside the live file lies a note of who has opened it, see `foundry_log.files.owners`. Where
    appends are not atomic (NFS and its like) each process writes a file of its own, and a warning
    says so.

    Without a formatter it writes the lines of `LINE_FORMAT`, and the context of structured records
    behind them.

    Args:
        directory: of the files; made if missing.
        app: name of the application.
        process: of this process; None for `worker-<pid>`, which in the child of a fork is its own.
        is_shared: write the one file of all processes of the application instead.
        retention_days: files whose day is longer ago are removed at rotation and by `prune`, those
            of the application's other processes too, and live files of processes that have ended;
            None for never.
        delay: open the file at the first record instead of now.
        permissions: of new files, before the umask.
        clock: gives the seconds since the epoch.

    Raises:
        OSError: without `delay`, the file cannot be opened.
        ValueError: a parameter is out of range, or the names are empty or too long.
    """

    default_formatter = PlainFormatter(LINE_FORMAT, DATE_FORMAT)  # type: ignore[assignment]

    def __init__(
        self,
        directory: str | os.PathLike[str],
        app: str,
        process: str | None = None,
        *,
        is_shared: bool = False,
        retention_days: int | None = 30,
        delay: bool = False,
        permissions: int = 0o640,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if retention_days is not None and retention_days < 1:
            raise ValueError(
                f"retention_days={retention_days} must be at least 1, or None to keep files forever"
            )
        self.app = app
        self.process = process
        self.is_shared = is_shared
        self.retention_days = retention_days
        self.patience_s = 0.0
        """Seconds after midnight for which the rotation is left to another process."""
        self.after_opening: Callable[[], None] = _nothing
        """Called, under the handler's lock, when a process opens its file, a forked child too."""
        self.after_rotating: Callable[[], None] | None = None
        """Called, under the handler's lock and the rotation's, in place of `prune`, which takes a
        second where there are ten thousands of files; None for `prune` itself."""
        self.clock = clock
        """Gives the seconds since the epoch; asked anew where the file is opened and rotated."""
        super().__init__(
            os.path.join(directory, self._live_name(is_own=False)),
            delay=True,
            stable_names=True,
            when="midnight",
            per_process=False,
            permissions=permissions,
        )
        if not delay:
            self._open_file()

    def rotate_if_due(self) -> None:
        """Rotate the file if its day is over, also when nobody writes.

        For a timer. A file that was closed, by `dictConfig` for one, is opened again. A failure is
        counted and reported, and tried again after some seconds. Thread-safe; safe in any number of
        processes at once.
        """
        self.acquire()
        try:
            record = logging.makeLogRecord({"msg": f"rotating {self.baseFilename}"})
            if self._file.is_open:
                self._keep_up(record)
            elif os.path.exists(self.baseFilename):
                self._open_file()
            if self._file.is_open and self._is_due(0):
                self._roll(record)
        except OSError:
            self._report_rotation(f"opening {self.baseFilename}")
        finally:
            self.release()

    def prune(self) -> None:
        """Remove the application's files that are older than `retention_days`.

        Never one that anybody holds locked or may still write, nor one of another application.
        Failures are counted and reported. Thread-safe.
        """
        if self.retention_days is None:
            return
        for path, name in self._files_of_app():
            if name.date is not None and self._is_too_old(name.date):
                self._remove(path)
            elif name.date is None and path != self.baseFilename:
                self._remove_abandoned(path, name)
        for path, pid in self._locked_by_workers():
            self._remove_lock(path, pid)

    # --- what differs from the class it extends ---

    def _name_for_process(self) -> None:
        folder = os.path.dirname(self._given_name)
        kind = shared_kind(folder)
        name = self._live_name(is_own=kind is not None)
        self._given_name = self.baseFilename = self._file.path = os.path.join(folder, name)
        self._named_for = os.getpid()
        if kind:
            self._warn_of_sharing(kind, "A directory on a local disk keeps the name.")

    def _live_name(self, *, is_own: bool) -> str:
        """Return the name of the live file; `is_own`: one of this process and host alone."""
        if is_own:
            process = f"{self.process or 'worker'}.{os.getpid()}@{host_part(host_name())}"
            return format_name(AppLogName(self.app, process))
        if self.is_shared:
            return format_name(AppLogName(self.app))
        return format_name(AppLogName(self.app, self.process or worker_name(os.getpid())))

    def _open_file(self) -> None:
        super()._open_file()
        self._note_owner()
        self.after_opening()

    def _follow(self) -> None:
        super()._follow()
        self._note_owner()  # somebody may have removed the note with the file

    def _note_owner(self) -> None:
        with contextlib.suppress(OSError):  # without it the file counts as one that is written
            owners.note_owner(self.baseFilename, self._permissions)

    def _is_due(self, incoming: int) -> bool:
        now = self.clock()
        if now < self._due_at or not self._file.is_regular:
            return False
        if self._file.has_grown_to() == 0:  # there is nothing to rotate, and a new day has begun
            self._set_due()
            return False
        return now >= self._due_at + self.patience_s

    def _set_due(self) -> None:
        if self._schedule is not None and self._file.is_regular:
            now = self.clock()  # a clock that was ahead must not put rotation off
            started = _past(self._file.written_before, now) if self._file.size else now
            self._due_at = self._schedule.next_boundary(started)

    def _stable_name(self) -> str:
        last = _written(self.baseFilename, self.clock())
        # What was written while the rotation was late belongs to the day that was rotated late.
        day = datetime.date.fromtimestamp(min(last, self._due_at - 1))
        live = parse_name(os.path.basename(self.baseFilename)) or AppLogName(self.app)
        folder = os.path.dirname(self.baseFilename)
        numbered = (AppLogName(live.app, live.process, day, number) for number in itertools.count())
        paths = (os.path.join(folder, format_name(name)) for name in numbered)
        return next(
            path for path in paths if not (os.path.lexists(path) or os.path.lexists(f"{path}.gz"))
        )

    def _prune(self) -> None:
        (self.after_rotating or self.prune)()

    def _files_of_app(self) -> Iterator[tuple[str, AppLogName]]:
        folder = os.path.dirname(self.baseFilename)
        for entry in sorted(os.listdir(folder)):
            name = parse_name(entry)
            if name is not None and name.app == self.app:
                yield os.path.join(folder, entry), name

    def _locked_by_workers(self) -> Iterator[tuple[str, int]]:
        """Give the live files of processes without a name that have a lock file, or have had."""
        folder = os.path.dirname(self.baseFilename)
        for entry in os.listdir(folder):
            live = entry[1:].removesuffix(".lock")
            name = parse_name(live) if entry == lock_name(live) else None
            if name is not None and name.app == self.app and name.date is None and name.pid:
                yield os.path.join(folder, live), name.pid

    def _is_too_old(self, day: datetime.date) -> bool:
        today = datetime.date.fromtimestamp(self.clock())
        return (today - day).days > (self.retention_days or 0)

    def _remove_abandoned(self, path: str, name: AppLogName) -> None:
        """Remove a live file that nobody has written for so long, and nobody will."""
        if not self._is_rested(path) or owners.may_be_written(path, name.pid):
            return
        try:
            with locks.try_exclusive_file(path) as descriptor:  # who opens it now opens a new one
                if descriptor is not None:
                    owners.forget_owner(path)  # before: afterwards there may be a new file's
                    os.remove(path)
        except OSError:
            self._report_rotation(f"removing {path}")

    def _remove_lock(self, live: str, pid: int) -> None:
        """Remove the lock file of an ended process's live file that is gone.

        Elsewhere lock files stay, since removing one lets two holders in; here nobody comes.
        """
        path = lock_name(live)
        if os.path.lexists(live) or not self._is_rested(path) or owners.may_be_written(live, pid):
            return
        try:
            with locks.try_exclusive_file(path) as descriptor:
                if descriptor is not None:
                    os.remove(path)
        except OSError:
            self._report_rotation(f"removing {path}")

    def _is_rested(self, path: str) -> bool:
        day = datetime.date.fromtimestamp(_written(path, self.clock()))
        return self._is_too_old(day)


def _nothing() -> None:
    pass


def _written(path: str, now: float) -> float:
    """Return when a file was last written; `now` if it is gone."""
    try:
        return _past(os.stat(path).st_mtime, now)
    except FileNotFoundError:
        return now


def _past(seconds: float, now: float) -> float:
    """Return a file's time, which may be any number, as one from 1970 until now."""
    return min(max(seconds, 0.0), now)
