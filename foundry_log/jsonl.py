"""Reading JSON Lines: through rotation, past torn lines, from the end, and only what is new."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain, islice
from typing import Any, BinaryIO

from foundry_log.encoding import decode_line
from foundry_log.files.filenames import numbered_name, rotated_files

_BLOCK = 65_536
_LOOKS = 20

_Identity = tuple[int, int]
_HEAD = 64


class JsonlReader:
    """The entries of a file and of its rotated files, oldest first.

    Iterating reads a snapshot: what stood in the files when the iteration began, also while they
    are written and rotated. Each entry is a dict, NaN and infinities restored. A line that is not a
    JSON object (a fragment that a killed writer left) is skipped and counted; so is a last line
    without a newline. No file at all is an empty history.

    One line is in memory at a time. Iterate as often as you like, one iteration at a time.

    Args:
        path: the live file.
        rotated: read its rotated files too.

    Raises:
        OSError: a file cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], *, rotated: bool = True) -> None:
        self.path = os.path.abspath(path)
        self.rotated = rotated
        self.skipped = 0
        """Lines skipped in the latest iteration so far; blank lines do not count."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.skipped = 0
        with ExitStack() as files:
            opened = _opened(self.path, self.rotated, files)
            ends = [os.fstat(file.fileno()).st_size for file in opened]
            for file, end in zip(opened, ends, strict=True):
                yield from self._entries(file, end)

    def _entries(self, file: BinaryIO, end: int) -> Iterator[dict[str, Any]]:
        for line in file:
            end -= len(line)
            if end < 0:
                return  # written since the iteration began
            entry = _entry(line)
            if entry is not None:
                yield entry
            elif line.strip():
                self.skipped += 1


def read_jsonl(path: str | os.PathLike[str], *, rotated: bool = True) -> JsonlReader:
    """Return a reader of the JSON Lines file `path`; see `JsonlReader`."""
    return JsonlReader(path, rotated=rotated)


def tail_jsonl(path: str | os.PathLike[str], count: int) -> list[dict[str, Any]]:
    """Return the last `count` entries, newest first, reading the files from their ends.

    Costs what the entries cost, whatever the length of the files. Torn lines are skipped.
    """
    with ExitStack() as files:
        opened = _opened(os.path.abspath(path), True, files)
        found = map(_entry, chain.from_iterable(map(_lines_from_end, reversed(opened))))
        return list(islice((entry for entry in found if entry is not None), max(count, 0)))


class JsonlCursor:
    """Reads on where it stopped: each `advance` gives the entries that are new since the last.

    It follows rotation as long as the rotated files are there. A file that was truncated, or that
    has got the inode of one that was removed, is read from its start: a file is known again by its
    first bytes too, which a time stamp makes its own. Not thread-safe.

    Args:
        path: the live file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.path.abspath(path)
        self._places: dict[tuple[int, int], tuple[int, bytes]] = {}  # offset and first bytes

    def advance(self, take: Callable[[dict[str, Any]], None]) -> None:
        """Call `take` with each entry that is complete and was not given before, oldest first."""
        places: dict[tuple[int, int], tuple[int, bytes]] = {}
        with ExitStack() as files:
            for file in _opened(self._path, True, files):
                status = os.fstat(file.fileno())
                identity = (status.st_dev, status.st_ino)
                offset, head = self._places.get(identity, (0, b""))
                if offset > status.st_size or file.read(len(head)) != head:
                    offset = 0
                offset = self._read(file, offset, take)
                file.seek(0)
                places[identity] = (offset, file.read(min(offset, _HEAD)))
        self._places = places

    def _read(self, file: BinaryIO, offset: int, take: Callable[[dict[str, Any]], None]) -> int:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                break  # being written, or torn: seen whole next time, or never
            offset += len(line)
            entry = _entry(line)
            if entry is not None:
                take(entry)
        return offset


def _entry(line: bytes) -> dict[str, Any] | None:
    """Return the object of a complete line, or None."""
    try:
        return decode_line(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


def _opened(path: str, rotated: bool, files: ExitStack) -> list[BinaryIO]:
    """Return the files of a history, oldest first, each once although they may rotate meanwhile.

    The live file is opened first; whatever its name becomes, the older files are those that a look
    from the newest rotated file to the oldest finds behind it. Numbered names shift towards the
    oldest, the way the look goes, so it passes no file by; one that it meets twice is known by its
    inode. A look that does not find the live file counts if that has not moved in the meantime.
    """
    found: dict[_Identity, BinaryIO] = {}
    live: _Identity | None = None
    older: list[_Identity] = []
    for _ in range(_LOOKS):
        live = live or _look(path, found, files)
        if not rotated:
            break
        seen = [_look(name, found, files) for name in _newest_first(path)]
        older = [identity for identity in seen if identity is not None]
        if live in older:
            older = older[len(older) - older[::-1].index(live) :]
            break
        if live == _look(path, found, files):
            break
    order = dict.fromkeys(older if live is None else [live, *older])
    return [found[identity] for identity in reversed(order)]


def _look(name: str, found: dict[_Identity, BinaryIO], files: ExitStack) -> _Identity | None:
    """Return which file has the name, None for none; it is open afterwards."""
    try:
        status = os.stat(name)
        identity = (status.st_dev, status.st_ino)
        if identity not in found:
            file = files.enter_context(open(name, "rb"))  # noqa: SIM115
            status = os.fstat(file.fileno())
            identity = (status.st_dev, status.st_ino)
            found.setdefault(identity, file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return identity


def _newest_first(path: str) -> Iterator[str]:
    """Yield the names that rotated files have or may get while they are looked at.

    A directory that is listed while names shift may leave one out: all numbers up to the highest
    are tried, and those that are reached meanwhile, past the gap that a shift leaves for a moment.
    """
    highest = 0
    for name in reversed(rotated_files(path)):
        suffix = name[len(path) + 1 :]
        if suffix.isdigit():
            highest = max(highest, int(suffix))
        else:
            yield name
    number = 1
    while number <= highest or any(
        os.path.exists(numbered_name(path, beyond)) for beyond in (number, number + 1)
    ):
        yield numbered_name(path, number)
        number += 1


def _lines_from_end(file: BinaryIO) -> Iterator[bytes]:
    """Yield the complete lines of a file, last first."""
    position = file.seek(0, os.SEEK_END)
    pieces: list[bytes] = []  # of the line whose beginning is not read yet, its end first
    is_complete = False  # what stands behind the last newline of the file is not
    while position > 0:
        size = min(_BLOCK, position)
        position -= size
        file.seek(position)
        first, *lines = file.read(size).split(b"\n")
        for line in reversed(lines):
            pieces.append(line)
            if is_complete:
                yield b"".join(reversed(pieces)) + b"\n"
            pieces = []
            is_complete = True
        pieces.append(first)
    if is_complete:
        yield b"".join(reversed(pieces)) + b"\n"
