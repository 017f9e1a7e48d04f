"""Which files of a directory are logs, and what kind of: found by their names, in one walk.

shop-worker-7__2026-11-21.log        of get_logger, rotated
shop-worker-7.current.log            of get_logger, live
run.20261121T062311123456Z.jsonl     rotated by name, also .gz: the name stays
run.jsonl.1                          rotated by number: the names shift
*.jsonl, *.log, *.json               live files of a run, beside its run_info.json

Everything else is left alone: hidden files, symbolic links, and in a run's directory those of its
checkpoints and trackers.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from foundry_log.files import filenames
from foundry_log.files.app_filenames import AppLogName, encoded, format_name, parse_name
from foundry_log.shipping.identity import Identity

RUN_INFO = "run_info.json"
NOT_LOGS = frozenset({"checkpoints", "tensorboard", "wandb"})
"""Directories that hold no logs, where they stand beside a run's `run_info.json`."""

_STAMPED = re.compile(r"(?P<stem>.+)\.\d{8}T\d{12}Z(?P<suffix>\.\w+)(?:\.gz)?", re.ASCII)
_NUMBERED = re.compile(r"(?P<live>.+\.(?:jsonl|log))\.[1-9]\d{0,5}", re.ASCII)
_RUN_FILE = re.compile(r".+\.(?:jsonl|log|json)", re.ASCII)

_ENDINGS = (".log", ".jsonl", ".json", ".gz", *"0123456789")

Unread = Callable[[str, OSError], None]


class Kind(enum.Enum):
    """What a log file is, as its name tells."""

    ROTATED = "rotated"
    """Nobody writes it any more, and its name stays."""
    NUMBERED = "numbered"
    """Nobody writes it any more, and its name shifts with each rotation."""
    LIVE = "live"
    """An application's, which is renamed once its writers are gone."""
    RUN = "run"
    """A run's, which keeps its name."""


@dataclass(frozen=True)
class Named:
    """What a name says: the kind of file, its live file's name, and whose it is, if it tells."""

    kind: Kind
    live: str
    app_name: AppLogName | None = None


@dataclass(frozen=True)
class LogFile:
    """A log file that was found.

    `relative` is the path below the directory that was scanned, with slashes. `in_run` says whether
    it lies in a run's directory.
    """

    path: str
    relative: str
    named: Named
    identity: Identity
    in_run: bool = False

    @property
    def kind(self) -> Kind:
        """What it is."""
        return self.named.kind

    @property
    def folder(self) -> str:
        """The directory it lies in."""
        return os.path.dirname(self.path)

    @property
    def live_path(self) -> str:
        """The path of the live file that it is or was rotated from."""
        return os.path.join(self.folder, self.named.live)

    @property
    def modified(self) -> float:
        """When it was last written, in seconds since the epoch."""
        return self.identity.mtime_ns / 1e9

    @property
    def stable_relative(self) -> str:
        """`relative` with a name that does not shift: of a numbered file, by its last line."""
        if self.kind is not Kind.NUMBERED:
            return self.relative
        folder = self.relative.rpartition("/")[0]
        name = filenames.stamped_name(self.named.live, self.modified)
        return f"{folder}/{name}" if folder else name


@dataclass(frozen=True)
class Scope:
    """Which logs are taken.

    Args:
        app: those of `get_logger` of this application alone, in the directory itself; None for all
            logs of all kinds, those of sub-directories too.
        process: of these those of this process and of the leader; None for all processes'.
        is_run: the directory itself is a run's, also without a `run_info.json`.
    """

    app: str | None = None
    process: str | None = None
    is_run: bool = False

    def is_run_directory(self, relative: str, entries: Iterable[os.DirEntry[str]]) -> bool:
        """Return whether live files are taken that stand in this directory below the first."""
        if self.app is not None:
            return False
        return (self.is_run and not relative) or any(entry.name == RUN_INFO for entry in entries)

    @functools.cached_property
    def _beginnings(self) -> tuple[str, ...]:
        begin = encoded(self.app or "")
        return begin, begin.replace("-", "%2D")

    def may_include(self, name: str) -> bool:
        """Return whether a file of this name may be taken: False spares a look at it."""
        if self.app is not None and not name.startswith(self._beginnings):
            return False
        return name.endswith(_ENDINGS) and not name.startswith(".")

    def includes(self, named: Named) -> bool:
        """Return whether a file of this name is taken."""
        if self.app is None:
            return True
        name = named.app_name
        return (
            name is not None
            and name.app == self.app
            and (self.process is None or name.process in (None, self.process))
        )


def classify(name: str, in_run: bool = False) -> Named | None:
    """Return what a file's name says, None for one that is no log.

    Args:
        name: without a directory.
        in_run: whether it stands beside a `run_info.json`.
    """
    if name.startswith("."):
        return None
    app_name = parse_name(name)
    if app_name is not None:
        if app_name.date is None:
            return Named(Kind.LIVE, name, app_name)
        live = AppLogName(app_name.app, app_name.process)
        return Named(Kind.ROTATED, format_name(live), app_name)
    stamped = _STAMPED.fullmatch(name)
    if stamped is not None:
        return Named(Kind.ROTATED, stamped["stem"] + stamped["suffix"])
    numbered = _NUMBERED.fullmatch(name)
    if numbered is not None:
        return Named(Kind.NUMBERED, numbered["live"])
    return Named(Kind.RUN, name) if in_run and _RUN_FILE.fullmatch(name) else None


def log_files(
    root: str,
    scope: Scope,
    unread: Unread,
    is_wanted: Callable[[Identity], bool] = lambda identity: True,
) -> Iterator[LogFile]:
    """Yield the log files below `root`, in no order.

    What vanishes meanwhile is passed by. Symbolic links are not followed; `root` may be one.

    Args:
        root: an existing directory.
        scope: which of them.
        unread: called with a path and the error for each directory or file that cannot be read;
            the others are yielded all the same.
        is_wanted: asked of each file that may be a log by the ending of its name; those of which it
            is false are passed by. In a large directory most are, and names take long to read.
    """
    folders = [""]
    while folders:
        relative = folders.pop()
        folder = os.path.join(root, relative) if relative else root
        entries = _entries(folder, unread)
        in_run = scope.is_run_directory(relative, entries)
        before = f"{relative}/" if relative else ""
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if scope.app is None and entry.is_dir(follow_symlinks=False):
                    if not (in_run and entry.name in NOT_LOGS):
                        folders.append(before + entry.name)
                    continue
                if not (scope.may_include(entry.name) and entry.is_file(follow_symlinks=False)):
                    continue
                identity = Identity.of(entry.stat(follow_symlinks=False))
                named = classify(entry.name, in_run) if is_wanted(identity) else None
                if named is not None and scope.includes(named):
                    yield LogFile(entry.path, before + entry.name, named, identity, in_run)
            except FileNotFoundError:
                pass  # rotated, compressed or removed meanwhile
            except OSError as error:
                unread(entry.path, error)


def renamed(file: LogFile, path: str) -> LogFile:
    """Return what `file` is under its new path, in the same directory."""
    name = os.path.basename(path)
    named = classify(name)
    assert named is not None, path
    relative = file.relative[: len(file.relative) - len(os.path.basename(file.path))] + name
    return dataclasses.replace(file, path=path, relative=relative, named=named)


def _entries(folder: str, unread: Unread) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []  # vanished meanwhile
    except OSError as error:
        unread(folder, error)
        return []


def blob_part(text: str) -> str:
    """Return a part of a path as a blob's name can have it, what it cannot have as `%XX`."""
    safe = "".join(
        letter if letter.isprintable() and letter not in "/\\" else _quoted(letter)
        for letter in text
    )
    return safe[:-1] + "%2E" if safe.endswith(".") else safe


def _quoted(letter: str) -> str:
    return "".join(f"%{byte:02X}" for byte in letter.encode("utf-8", "surrogateescape"))
