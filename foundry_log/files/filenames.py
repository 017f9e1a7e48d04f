"""The names of a rotated file's relatives: one grammar for writers, readers and pruning.

run.jsonl                            the live file
run.jsonl.1, run.jsonl.2             numbered, the stdlib's: 1 is the newest, and names shift
run.20261121T062311123456Z.jsonl     stamped in UTC with microseconds: a name never changes
run.20261121T062311123456Z.jsonl.gz  the same file, compressed
.run.jsonl.lock                      held while one process rotates
.run.20261121T062311123456Z.jsonl.todo   that rotated file is to be compressed, or told to a hook
run@rank1.jsonl                      one rank's own, in a distributed run
run@node7-4711.jsonl                 one process's own, where several cannot share a file
run@rank1@node7-4711.jsonl           the same of a rank's process
"""

from __future__ import annotations

import datetime
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

_COMPRESSED = ".gz"
_MARKER = ".todo"
_UTC = datetime.timezone.utc
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=_UTC)
_STAMP = re.compile(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)(\d{6})Z", re.ASCII)
_NUMBER = re.compile(r"[1-9]\d{0,5}", re.ASCII)  # eight digits would be somebody's date
_OWN = re.compile(r"(?:@rank(?:0|[1-9]\d*))?(?:@(?P<host>[^@]+)-\d+)?", re.ASCII)
_UNSAFE = re.compile(r"[\x00-\x1f\x7f/\\:]")


def lock_name(path: str) -> str:
    """Return the path of the lock file beside `path`."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.lock")


def numbered_name(path: str, number: int) -> str:
    """Return the stdlib's name of the rotated file `number`, 1 for the newest."""
    return f"{path}.{number}"


def stamped_name(path: str, seconds: float, after: str | None = None) -> str:
    """Return the rotated name with the UTC time `seconds` since the epoch in it.

    Args:
        path: of the live file.
        seconds: the time of the rotation.
        after: the newest stamped name so far; the new one sorts behind it even when the clock has
            stepped back or two rotations share a microsecond.
    """
    micros = round(seconds * 1_000_000)
    stem, suffix = os.path.splitext(path)
    name = f"{stem}.{_stamp(micros)}{suffix}"
    last = _micros_of(after, path) if after is not None else None
    if last is not None and last >= micros:
        name = f"{stem}.{_stamp(last + 1)}{suffix}"
    return name


def compressed_name(path: str) -> str:
    """Return the name that the rotated file `path` has once it is compressed."""
    return path + _COMPRESSED


def marker_name(path: str) -> str:
    """Return the path of the marker beside the rotated file `path`: there is work left on it."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}{_MARKER}")


def marked_files(path: str) -> list[str]:
    """Return the rotated files of the live file `path` that have a marker, oldest first.

    The files themselves may be gone, or compressed already.
    """
    folder, live = os.path.split(path)
    names = (name[1 : -len(_MARKER)] for name in _names(folder) if name.endswith(_MARKER))
    ours = sorted(name for name in names if _micros_of(name, live) is not None)
    return [os.path.join(folder, name) for name in ours]


def ranked(path: Path, rank: int | None) -> Path:
    """Return the live file that one rank of a distributed run has to itself, beside `path`.

    Args:
        path: of the file that all ranks' files stand in for.
        rank: from 0; None, where there is one process, leaves `path` as it is.
    """
    stem, suffix = os.path.splitext(path)
    return path if rank is None else Path(f"{stem}@rank{rank}{suffix}")


def process_name(path: str, host: str, pid: int) -> str:
    """Return the name of the live file that one process of one host has to itself."""
    stem, suffix = os.path.splitext(path)
    return f"{stem}@{host_part(host)}-{pid}{suffix}"


def process_files(path: str, host: str | None = None) -> list[str]:
    """Return the live files of single ranks and processes that stand in for `path`, by name.

    One that has only rotated files is among them.

    Args:
        path: that they stand in for; of a rank's file, those of its processes.
        host: whose processes, as `host_part` writes it; None for all, and for the ranks' own.
    """
    folder, live = os.path.split(path)
    stem, suffix = os.path.splitext(live)
    found = set()
    for name in _names(folder):
        if name.startswith(stem + "@"):
            for candidate in _live_names(name, suffix):
                own = _OWN.fullmatch(candidate, len(stem), len(candidate) - len(suffix))
                if own is not None and host in (None, own["host"]):
                    found.add(candidate)
    return [os.path.join(folder, name) for name in sorted(found)]


def rotated_files(path: str) -> list[str]:
    """Return the existing rotated files of the live file `path`, oldest first.

    Both grammars are found; numbered files, where there are both, count as the older. A file that
    is there compressed and not, since its compression was killed before the end, is named once, by
    its own name.
    """
    folder, live = os.path.split(path)
    names = _names(folder)
    numbered = [(number, name) for name in names if (number := _number_of(name, live)) is not None]
    stamped = sorted(
        name
        for name in names
        if _micros_of(name, live) is not None
        and not (name.endswith(_COMPRESSED) and name[: -len(_COMPRESSED)] in names)
    )
    ordered = [name for _, name in sorted(numbered, reverse=True)] + stamped
    return [os.path.join(folder, name) for name in ordered]


def check_name(name: str) -> str:
    """Return `name` if it can stand as one component of a path, as an experiment's does.

    Raises:
        ValueError: it is empty, too long, `.` or `..`, or has a separator or control character.
    """
    if not name.strip() or name in (".", ".."):
        raise ValueError(f"{name!r} names no directory; use letters, digits, '-', '_' and '.'")
    unsafe = _UNSAFE.search(name)
    if unsafe:
        raise ValueError(
            f"{name!r} has the character {unsafe.group()!r}, which would leave its directory or "
            "break its file names; replace it, for example by '-'"
        )
    if len(os.fsencode(name)) > 200:
        raise ValueError(f"{name[:20]!r}… has more than 200 bytes; use a shorter name")
    return name


def host_part(host: str) -> str:
    """Return a host's name as it stands in the name of a file."""
    return _UNSAFE.sub("-", host).replace("@", "-")


def _names(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder or "."))
    except (FileNotFoundError, NotADirectoryError):
        return set()  # a directory that may not be listed is an error of its own


def _live_names(name: str, suffix: str) -> Iterator[str]:
    """Yield the names ending in `suffix` of live files that `name` may be, or be a rotated one of.

    They may well be no names of ours.
    """
    stem = name.removesuffix(_COMPRESSED).removesuffix(suffix)
    numbered = name.rpartition(".")[0]
    for live in (name, numbered, stem.rpartition(".")[0] + suffix):
        if live.endswith(suffix) and (name == live or _is_rotated(name, live)):
            yield live


def _is_rotated(name: str, live: str) -> bool:
    return _number_of(name, live) is not None or _micros_of(name, live) is not None


def _number_of(name: str, live: str) -> int | None:
    rest = name[len(live) + 1 :]
    return int(rest) if name.startswith(live + ".") and _NUMBER.fullmatch(rest) else None


def _micros_of(name: str, live: str) -> int | None:
    """Return the time in a stamped name of `live` in microseconds since the epoch, or None."""
    stem, suffix = os.path.splitext(live)
    if not name.startswith(stem + "."):
        return None
    fields = _STAMP.match(name, len(stem) + 1)
    if fields is None or name[fields.end() :] not in (suffix, suffix + _COMPRESSED):
        return None
    year, month, day, hour, minute, second, micro = map(int, fields.groups())
    try:
        moment = datetime.datetime(year, month, day, hour, minute, second, micro, _UTC)
    except ValueError:
        return None  # the thirteenth month: not a name of ours
    return (moment - _EPOCH) // datetime.timedelta(microseconds=1)


def _stamp(micros: int) -> str:
    second, fraction = divmod(micros, 1_000_000)
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(second))}{fraction:06d}Z"
