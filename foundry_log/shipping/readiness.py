"""Whether a log file may travel: it rests, nobody writes it, and no work is left on it."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable

from foundry_log.files import filenames, locks, owners
from foundry_log.shipping.identity import Identity
from foundry_log.shipping.scanning import Kind, LogFile

ROTATED_RESTS_S = 30.0
"""Seconds since the last line after which a rotated file may travel."""
LIVE_RESTS_S = 600.0
"""Seconds since the last line after which a live file may, once its writers are gone."""


class Readiness(enum.Enum):
    """What is to be done with a file."""

    READY = "ship"
    WAITING = "wait"
    """It was written a moment ago, or is to be compressed or told to somebody's hook first."""
    IN_USE = "in use"
    """Somebody writes it, or may do so."""


class Judge:
    """Says which files may travel; remembers since when it has seen those from the future."""

    def __init__(self) -> None:
        self._first_seen: dict[Identity, float] = {}

    def judge(
        self, files: Iterable[LogFile], now: float, is_finished: bool = False
    ) -> list[tuple[LogFile, Readiness]]:
        """Return the files, oldest first, each with what is to be done with it.

        Args:
            files: log files.
            now: seconds since the epoch.
            is_finished: do not wait for files to rest: nothing more will come. What is written
                still is left alone all the same.
        """
        ordered = sorted(files, key=lambda file: (file.identity.mtime_ns, file.path))
        self._note_future(ordered, now)
        runs_in_use: dict[str, bool] = {}
        return [(file, self._readiness(file, now, is_finished, runs_in_use)) for file in ordered]

    def _readiness(
        self, file: LogFile, now: float, is_finished: bool, runs: dict[str, bool]
    ) -> Readiness:
        if file.kind is Kind.LIVE and locks.in_use(file.path):
            return Readiness.IN_USE
        is_live = file.kind in (Kind.LIVE, Kind.RUN)
        if not is_finished and self._rests_s(file, now) < (
            LIVE_RESTS_S if is_live else ROTATED_RESTS_S
        ):
            return Readiness.WAITING
        if has_work_left(file) and self._is_worked_on(file, now):
            return Readiness.WAITING
        if file.kind is Kind.LIVE and is_written(file):
            return Readiness.IN_USE
        if file.kind is Kind.RUN and is_finished and locks.in_use(file.path):
            return Readiness.IN_USE
        if file.kind is Kind.RUN and not is_finished:
            if file.folder not in runs:
                runs[file.folder] = run_is_going(file.folder)
            if runs[file.folder]:
                return Readiness.IN_USE
        return Readiness.READY

    def _is_worked_on(self, file: LogFile, now: float) -> bool:
        """Return whether somebody may do the work: one who is dead has left it for ever."""
        return self._rests_s(file, now) < LIVE_RESTS_S or locks.in_use(file.live_path)

    def _rests_s(self, file: LogFile, now: float) -> float:
        """Return for how many seconds nobody has written; a time in the future counts as now."""
        return now - min(file.modified, self._first_seen.get(file.identity, now))

    def _note_future(self, files: list[LogFile], now: float) -> None:
        """Keep since when files have had a time that has not come yet, and forget the others."""
        before = self._first_seen
        self._first_seen = {
            file.identity: before.get(file.identity, now)
            for file in files
            if file.modified > now or file.identity in before
        }


def has_work_left(file: LogFile) -> bool:
    """Return whether a rotated file is about to be compressed, or told to a hook."""
    if file.kind is not Kind.ROTATED:
        return False
    original = file.path.removesuffix(filenames.compressed_name(""))
    return os.path.exists(filenames.marker_name(original))


def is_written(file: LogFile) -> bool:
    """Return whether an application's live file has a writer, or may have one."""
    name = file.named.app_name
    return owners.may_be_written(file.path, name.pid if name else None)


def run_is_going(folder: str) -> bool:
    """Return whether anybody holds one of the live files in a run's directory.

    All of them belong to one run: the documents that nobody holds wait for the others.
    """
    try:
        with os.scandir(folder) as entries:
            return any(
                entry.name.endswith((".jsonl", ".log"))
                and not entry.name.startswith(".")
                and entry.is_file(follow_symlinks=False)
                and locks.in_use(entry.path)
                for entry in entries
            )
    except OSError:
        return True
