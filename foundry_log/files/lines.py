"""The lines of a file of any size and in any state, in bounded memory."""

from __future__ import annotations

import gzip
import io
import os
import sys
import zlib
from collections.abc import Iterator
from itertools import chain

MAX_LINE_BYTES = 64 * 1_048_576
"""Longer lines are passed over, so that no file can fill the memory."""
NO_OBJECT = b"\0"
"""Stands for a line that is passed over."""
DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)
"""What a damaged compressed file raises where it is read."""

_BLOCK = 65_536
_SMALL_BLOCK = 8_192
_HOLE = bytes(_BLOCK)


class Lines:
    """The complete lines between two places of a file, without newlines, in bounded memory.

    `NO_OBJECT` stands for a line of more than `limit` bytes, and for the rest of a compressed file
    from where it is damaged. Afterwards `end` is where the last complete line ended, and `rest` is
    what stands behind.
    """

    def __init__(
        self,
        file: io.BufferedIOBase,
        *,
        limit: int = MAX_LINE_BYTES,
        start: int = 0,
        end: int = sys.maxsize,
    ) -> None:
        self.end = start
        self.rest = b""
        self._file = file
        self._limit = limit
        self._stop = end

    def __iter__(self) -> Iterator[bytes]:
        return chain.from_iterable(self._batches())

    def _batches(self) -> Iterator[list[bytes]]:
        begun, position = _LongLine(self._limit), self.end
        # What a damaged file has in the block of the damage cannot be had.
        size = _SMALL_BLOCK if isinstance(self._file, gzip.GzipFile) else _BLOCK
        try:
            self._file.seek(position)
            while block := self._file.read1(min(size, self._limit, self._stop - position)):
                position += len(block)
                if block == _HOLE:
                    begun.add(block)
                    continue
                first, *lines = block.split(b"\n")
                begun.add(first)
                if lines:
                    lines.insert(0, begun.joined())
                    begun = _LongLine(self._limit, lines[-1])
                    self.end = position - len(lines.pop())
                    yield lines
            self.rest = begun.joined()
        except DAMAGE:
            yield [NO_OBJECT]


def lines_from_end(file: io.BufferedIOBase) -> Iterator[bytes]:
    """Yield the complete lines of a file as `Lines` does, last first."""
    position = file.seek(0, os.SEEK_END)
    begun: _LongLine | None = None  # what stands behind the last newline is no complete line
    size = _SMALL_BLOCK  # often a few lines are asked for
    while position > 0:
        size = min(2 * size, _BLOCK, position)
        position -= size
        file.seek(position)
        block = file.read(size)
        if block == _HOLE:
            first, lines = block, []
        else:
            first, *lines = block.split(b"\n")
        if lines:
            if begun is not None:
                begun.add(lines.pop())
                yield begun.joined(backwards=True)
            else:
                lines.pop()
            yield from reversed(lines)
            begun = _LongLine(MAX_LINE_BYTES)
        if begun is not None:
            begun.add(first)
    if begun is not None:
        yield begun.joined(backwards=True)


class _LongLine:
    """The pieces of a line, as long as they are within the limit; a hole of NULs takes one byte."""

    def __init__(self, limit: int, first: bytes = b"") -> None:
        self._left = limit
        self._pieces: list[bytes] = []
        self.add(first)

    def add(self, piece: bytes) -> None:
        """Take the next piece, without a newline."""
        if piece == _HOLE or (piece and piece == bytes(len(piece))):
            piece = b"\0"  # no object has one inside, and before it NULs do not count
        self._left -= len(piece)
        if self._left >= 0:
            self._pieces.append(piece)
        else:
            self._pieces.clear()

    def joined(self, *, backwards: bool = False) -> bytes:
        """Return the line, or what stands for one that is too long."""
        if self._left < 0:
            return NO_OBJECT
        return b"".join(self._pieces[::-1] if backwards else self._pieces)
