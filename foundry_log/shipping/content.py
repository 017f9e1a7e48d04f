"""What is uploaded: the bytes of an open file, read in blocks and hashed on the way."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncGenerator, Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

BLOCK = 4 * 1024 * 1024
"""Bytes that are read, hashed and sent at once."""

SMALL = 64 * 1024
"""Bytes up to which a file is read at once, like its directory entry: a thread takes longer."""


class ChangedError(OSError):
    """A file has changed while it was read."""


class Content:
    """The bytes that a file had when it was given, by an open descriptor; not by its name.

    A file that is renamed meanwhile is read on. One that shrinks, or is written to in place, is
    found out where its size or time of change tells. All but small ones are read on threads; use it
    from one task at a time.

    Args:
        descriptor: open for reading; its owner closes it.
        path: for messages.
    """

    def __init__(self, descriptor: int, path: str) -> None:
        status = os.fstat(descriptor)
        self.path = path
        self.size = status.st_size
        """Bytes that are uploaded: those that were there at the beginning."""
        self._descriptor = descriptor
        self._modified_ns = status.st_mtime_ns
        self._md5: bytes | None = None

    @property
    def md5(self) -> bytes:
        """The MD5 of all bytes, 16 bytes long; known once they have been read.

        Raises:
            ValueError: they have not.
        """
        if self._md5 is None:
            raise ValueError(f"{self.path} has not been read to its end yet")
        return self._md5

    async def blocks(self, size: int = BLOCK) -> AsyncGenerator[bytearray, None]:
        """Yield the bytes from the first to the last, `size` at a time; none of an empty file.

        Raises:
            OSError: they cannot be read, or have changed since they were looked at first.
        """
        digest = hashlib.md5(usedforsecurity=False)
        position = 0
        while position < self.size:
            # Made here: memory that each thread has of its own is several times as much.
            block = bytearray(min(size, self.size - position))
            if self.size <= SMALL:
                self._fill(block, position, digest.update)
            else:
                await in_thread(self._fill, block, position, digest.update)
            position += len(block)
            yield block
        self._check_unchanged()
        self._md5 = digest.digest()

    async def read_through(self) -> None:
        """Read all bytes for the sake of their MD5, unless it is known."""
        if self._md5 is None:
            async for _ in self.blocks():
                pass

    def _fill(self, block: bytearray, position: int, update: Callable[[bytearray], object]) -> None:
        done = 0
        while done < len(block):
            count = os.preadv(self._descriptor, [memoryview(block)[done:]], position + done)
            if not count:
                raise ChangedError(errno.EIO, "it has become shorter while it was read", self.path)
            done += count
        update(block)

    def _check_unchanged(self) -> None:
        status = os.fstat(self._descriptor)
        if (status.st_size, status.st_mtime_ns) != (self.size, self._modified_ns):
            raise ChangedError(errno.EIO, "it was written to while it was read", self.path)


async def in_thread(function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a function on a thread, and come back when it has ended, even if cancelled meanwhile.

    Otherwise it might go on with a descriptor that has been closed, or is another file's by now.
    """
    call = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(call)
    finally:
        if not call.done():
            await asyncio.wait([call])
