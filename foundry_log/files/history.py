"""The files of a history: the live one and its rotated ones, each once although they may rotate."""

from __future__ import annotations

import gzip
import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from foundry_log.files.filenames import (
    compressed_name,
    numbered_name,
    process_files,
    rotated_files,
)
from foundry_log.files.lines import DAMAGE

_HEAD = 64
_LOOKS = 20
_LOOKS_FOR_ONE = 2

Identity = tuple[int, int]
_COMPRESSED = compressed_name("")


class Part(NamedTuple):
    """A file of a history: held open, or known by a stamped name and opened in its turn."""

    name: str
    identity: Identity
    size: int
    file: io.BufferedIOBase | None
    is_compressed: bool = False

    @property
    def end(self) -> int:
        """The bytes of its content that were there when it was looked at."""
        return sys.maxsize if self.is_compressed else self.size


def histories(path: str, rotated: bool, files: ExitStack) -> dict[str, list[Part]]:
    """Return the files behind `path` and behind each file of a single process, by live name.

    A compressed file is read alone: it is one of the rotated files.
    """
    if _is_gzip(path):
        status, name = os.stat(path), path.removesuffix(_COMPRESSED)
        return {path: [Part(name, _identity(status), status.st_size, None, is_compressed=True)]}
    return {live: _parts(live, rotated, files) for live in [path, *process_files(path)]}


@contextmanager
def opened(part: Part) -> Iterator[io.BufferedIOBase]:
    """Open a file in its turn; compressed since, it is read so, and gone, it is empty."""
    if part.file is not None:
        yield part.file
        return
    try:
        file = None if part.is_compressed else open(part.name, "rb")  # noqa: SIM115
    except FileNotFoundError:
        file = None
    with file or _decompressed(part.name) as found:
        yield found


def _decompressed(name: str) -> io.BufferedIOBase:
    try:
        return gzip.open(compressed_name(name))
    except FileNotFoundError:
        return io.BytesIO()


def _parts(path: str, rotated: bool, files: ExitStack) -> list[Part]:
    """Return the files of a history, oldest first, each once although they may rotate meanwhile.

    The live file is opened first; whatever its name becomes, the older files are those that a look
    from the newest rotated file to the oldest finds behind it. Numbered names shift towards the
    oldest, the way the look goes, so it passes no file by; one that it meets twice is known by its
    inode, and one that is compressed meanwhile by its first bytes. They are held open for the same
    reason, all of them; stamped names stay, and a stamped file is opened in its turn. A look that
    does not find the live file counts if that has not moved in the meantime. One that a second look
    misses too has been pruned: the file that is live by then is taken.
    """
    held: dict[Identity, Part] = {}
    live: Part | None = None
    older: list[Part] = []
    for look in range(_LOOKS):
        if live is None or look % _LOOKS_FOR_ONE == 0:
            live = _held(path, held, files)
        if not rotated:
            break
        older = list(_older(path, held, files))
        if live == _held(path, held, files):
            break
        place = _place_of(live, older)
        if place is not None:
            older = older[place + 1 :]
            break
    newest_first = older if live is None else [live, *older]
    unique = {part.identity: part for part in newest_first}
    return [_measured(part) for part in reversed(unique.values())]


def _place_of(live: Part | None, older: list[Part]) -> int | None:
    """Return where a file that was live stands among the rotated ones; None if it does not.

    Of several places it is the last: where more than one rotation came in between, files that are
    newer than it stand before that.
    """
    if live is None or live.file is None:
        return None
    places = [place for place, part in enumerate(older) if part.identity == live.identity]
    if places:
        return places[-1]
    begin = beginning(live.file)
    for place, part in enumerate(older):
        if part.is_compressed and begin:
            with opened(part) as file:
                if beginning(file).startswith(begin):
                    return place
    return None


def beginning(file: io.BufferedIOBase) -> bytes:
    """Return the first bytes of a file, by which it is known again; none where it is damaged."""
    try:
        file.seek(0)
        return file.read(_HEAD)
    except DAMAGE:
        return b""


def _measured(part: Part) -> Part:
    """Return a file that is held open with its size of now."""
    if part.file is None:
        return part
    return part._replace(size=os.fstat(part.file.fileno()).st_size)


def _held(name: str, held: dict[Identity, Part], files: ExitStack) -> Part | None:
    """Return the file that has the name, None for none; it is open afterwards."""
    try:
        identity = _identity(os.stat(name))
        if identity not in held:
            file = files.enter_context(open(name, "rb"))  # noqa: SIM115
            identity = _identity(os.fstat(file.fileno()))
            held.setdefault(identity, Part(name, identity, 0, file))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return held[identity]


def _stamped(name: str) -> Part | None:
    """Return the file that has the stamped name, or its compressed form; None if it is gone."""
    for is_compressed in (False, True):
        try:
            status = os.stat(compressed_name(name) if is_compressed else name)
        except FileNotFoundError:
            continue
        return Part(name, _identity(status), status.st_size, None, is_compressed)
    return None


def _is_gzip(path: str) -> bool:
    """Whether it is a compressed file and not a live one of such a name."""
    if not path.endswith(_COMPRESSED) or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _older(path: str, held: dict[Identity, Part], files: ExitStack) -> Iterator[Part]:
    """Yield the rotated files there are, newest first.

    A directory that is listed while names shift may leave one out: all numbers up to the highest
    are tried, and those that are reached meanwhile, past the gap that a shift leaves for a moment.
    A listing may miss a file that is compressed meanwhile under both of its names; the next one
    finds it, so there are two.
    """
    listed = [*rotated_files(path), *rotated_files(path)]
    suffixes = {name: name[len(path) + 1 :] for name in listed}
    stamped = {_plain(name, path) for name in listed if not suffixes[name].isdigit()}
    highest = max((int(suffix) for suffix in suffixes.values() if suffix.isdigit()), default=0)
    for name in sorted(stamped, reverse=True):
        part = _stamped(name)
        if part is not None:
            yield part
    number = 1
    while number <= highest or any(
        os.path.exists(numbered_name(path, beyond)) for beyond in (number, number + 1)
    ):
        part = _held(numbered_name(path, number), held, files)
        if part is not None:
            yield part
        number += 1


def _plain(name: str, path: str) -> str:
    """Return the stamped name of a rotated file of `path` that may be compressed."""
    is_compressed = name.endswith(os.path.splitext(path)[1] + _COMPRESSED)
    return name.removesuffix(_COMPRESSED) if is_compressed else name
