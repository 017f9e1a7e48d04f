"""Reading JSON Lines: through rotation, past torn lines, from the end, and only what is new."""

from __future__ import annotations

import gzip
import heapq
import io
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple

from foundry_log.encoding import decode_line
from foundry_log.files.history import Identity, Part, beginning, histories, opened
from foundry_log.files.lines import MAX_LINE_BYTES, Lines, lines_from_end

_LOOKS_AT_DOUBTFUL = 3
_HEALED_WITHIN_S = 0.005

_Entry = dict[str, Any]
_Entries = Generator[_Entry, None, None]

# --- all, the last, the new -----------------------------------------------------------------------


class JsonlReader:
    """The entries of a file and of its rotated files, compressed ones too, oldest first.

    Iterating reads a snapshot: what stood in the files when the iteration began, also while they
    are written, rotated and compressed; a file that is pruned before its turn is gone. Each entry
    is a dict, NaN and infinities restored. A line that is not a JSON object (a fragment that a
    killed writer left) is skipped and counted; so is a last line without a newline, one that is too
    long, and the rest of a damaged compressed file. NULs before an object, the hole that a
    truncation leaves, are no part of it. No file at all is an empty history.

    Files that single ranks (`run@rank1.jsonl`) or processes (`run@host-pid.jsonl`) have to
    themselves belong to the history of `run.jsonl`. Where there are several such histories they
    are merged by the text of the field `timestamp`; an entry without one keeps its place in its
    own file.

    In memory is one line at a time, of each history. Open are the live file, the numbered ones,
    since their names shift, and one with a stamp, of each history. Iterate as often as you like,
    one iteration at a time.

    Args:
        path: the live file.
        rotated: read its rotated files too.
        max_line_bytes: longer lines are skipped, without being held in memory.

    Raises:
        OSError: a file cannot be read.
        ValueError: `max_line_bytes` is below 1.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        rotated: bool = True,
        max_line_bytes: int = MAX_LINE_BYTES,
    ) -> None:
        if max_line_bytes < 1:
            raise ValueError(f"max_line_bytes={max_line_bytes} must be 1 or more")
        self.path = os.path.abspath(path)
        self.rotated = rotated
        self.max_line_bytes = max_line_bytes
        self.skipped = 0
        """Lines skipped in the latest iteration so far; blank lines do not count."""

    def __iter__(self) -> Iterator[_Entry]:
        self.skipped = 0
        with ExitStack() as files:
            found = histories(self.path, self.rotated, files)
            yield from _merged([self._entries(parts) for parts in found.values()], files)

    def _entries(self, parts: list[Part]) -> _Entries:
        for part in parts:
            with opened(part) as file:
                lines = Lines(file, limit=self.max_line_bytes, end=part.end)
                for line in lines:
                    entry = _entry(line)
                    if entry is not None:
                        yield entry
                    elif line.strip():
                        self.skipped += 1
                if lines.rest.strip():
                    self.skipped += 1


def read_jsonl(
    path: str | os.PathLike[str], *, rotated: bool = True, max_line_bytes: int = MAX_LINE_BYTES
) -> JsonlReader:
    """Return a reader of the JSON Lines file `path`; see `JsonlReader`."""
    return JsonlReader(path, rotated=rotated, max_line_bytes=max_line_bytes)


def tail_jsonl(path: str | os.PathLike[str], count: int) -> list[_Entry]:
    """Return the last `count` entries, newest first, reading the files from their ends.

    Costs what the entries cost, whatever the length of the files; but a compressed file that it
    reaches is read whole. Skips what `JsonlReader` skips, and merges what that merges; an entry
    without a time stamp counts as new as the one behind it in its file.

    Raises:
        OSError: a file cannot be read.
    """
    with ExitStack() as files:
        parts_of = histories(os.path.abspath(path), True, files)
        found = [_newest_first(parts, max(count, 0)) for parts in reversed(parts_of.values())]
        return list(islice(_merged(found, files, reverse=True), max(count, 0)))


class JsonlCursor:
    """Reads on where it stopped: each `advance` gives the entries that are new since the last.

    It reads what `JsonlReader` reads, and follows rotation and compression as long as the rotated
    files are there. A file that was truncated, or that has got the inode of one that was removed,
    is read from its start: a file is known again by its first bytes too, which a time stamp makes
    its own. By these it knows a file again that has been compressed. Not thread-safe.

    Args:
        path: the live file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.path.abspath(path)
        self._places: dict[str, _Places] = {}  # of each history

    def advance(self, take: Callable[[_Entry], None]) -> None:
        """Call `take` with each entry that is complete and was not given before, oldest first.

        Entries of several histories are merged, as far as they are new.

        Raises:
            OSError: a file cannot be read; as after an error in `take`, no place is lost.
        """
        places: dict[str, _Places] = {}
        with ExitStack() as files:
            found = []
            for live, parts in histories(self._path, True, files).items():
                places[live] = {}
                known = dict(self._places.get(live, {}))
                found.append(_news(parts, known, places[live]))
            for entry in _merged(found, files):
                take(entry)
        self._places = places


# --- entries --------------------------------------------------------------------------------------


def _entry(line: bytes) -> _Entry | None:
    """Return the object that is on a line, or None."""
    try:
        return decode_line(line)
    except ValueError:
        behind_hole = line.lstrip(b"\0 \t\r")
        return _entry(behind_hole) if len(behind_hole) < len(line) else None


def _newest_first(parts: list[Part], count: int) -> _Entries:
    """Yield the last entries of a history; `count` of a compressed file, at most."""
    for part in reversed(parts):
        with opened(part) as file:
            if isinstance(file, gzip.GzipFile):
                found = map(_entry, Lines(file))
                last = deque((entry for entry in found if entry is not None), maxlen=count)
                yield from reversed(last)
            else:
                for line in lines_from_end(file):
                    entry = _entry(line)
                    if entry is not None:
                        yield entry


def _merged(found: list[_Entries], files: ExitStack, *, reverse: bool = False) -> Iterable[_Entry]:
    """Return the entries of several histories by their time stamps; those of one as they are."""
    for entries in found:
        files.enter_context(closing(entries))
    if len(found) == 1:
        return found[0]
    dated = (_dated(entries, reverse) for entries in found)
    merged = heapq.merge(*dated, key=itemgetter(0), reverse=reverse)
    return map(itemgetter(1), merged)


def _dated(entries: _Entries, reverse: bool) -> Iterator[tuple[str, _Entry]]:
    """Yield each entry with a time that never steps back within its file."""
    latest = chr(sys.maxunicode) if reverse else ""
    for entry in entries:
        stamp = entry.get("timestamp")
        if isinstance(stamp, str):
            latest = min(latest, stamp) if reverse else max(latest, stamp)
        yield latest, entry


# --- places ---------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """How far a file has been read."""

    name: str
    offset: int
    head: bytes
    settled_size: int

    def is_end_of(self, part: Part) -> bool:
        """Whether nothing is new in a file whose name and content cannot be another's."""
        return part.file is None and (part.name, part.size) == (self.name, self.settled_size)


_Places = dict[Identity, _Place]


def _news(parts: list[Part], known: _Places, places: _Places) -> _Entries:
    """Yield the entries behind the known places, and note the new places."""
    for part in parts:
        place = known.get(part.identity)
        if place is not None and place.is_end_of(part):
            places[part.identity] = known.pop(part.identity)
            continue
        with opened(part) as file:
            offset = yield from _behind(file, _taken_place(part, beginning(file), known))
            size = part.size if part.is_compressed else offset
            head = beginning(file)[:offset]
            places[part.identity] = _Place(part.name, offset, head, size)


def _taken_place(part: Part, head: bytes, known: _Places) -> int:
    """Return how far the file has been read, and take its place out of the known ones.

    Compressed, it is another file of the same content. Of several that begin alike the older place
    is the older file's.
    """
    for identity in list(known) if part.is_compressed else [part.identity]:
        place = known.get(identity)
        if place is None or place.offset > part.end:
            continue
        if place.head and head.startswith(place.head):
            del known[identity]
            return place.offset
    return 0


def _behind(file: io.BufferedIOBase, offset: int) -> Generator[_Entry, None, int]:
    """Yield the complete entries behind `offset`; return where to read on.

    A line that does not parse may be one behind a fragment that its writer is about to blank, which
    takes it microseconds: the last one is left for the next time, one before is looked at again
    before it is passed over.
    """
    looks, is_exact = 0, True
    while True:
        lines, is_doubtful = Lines(file, start=offset), False
        for line in lines:
            if is_doubtful:
                looks += 1
                time.sleep(_HEALED_WITHIN_S)
                break
            entry = _entry(line)
            if entry is not None:
                yield entry
            elif is_exact and looks < _LOOKS_AT_DOUBTFUL and line.strip() and b"\0" not in line:
                is_doubtful = True
                continue
            is_exact = is_exact and b"\0" not in line  # of holes and long lines less is given
            offset += len(line) + 1
            looks = 0
        else:  # what is behind is being written, or torn
            return offset if is_doubtful else lines.end
