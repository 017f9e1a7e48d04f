"""One file that many processes append lines to, each line whole.

A line is one `write(2)` on an O_APPEND descriptor, so the kernel places lines of several processes
one behind the other. Three things can still go wrong, and are mended here:

- A writer killed inside its write, or a full disk, leaves a *fragment* without a newline, and the
  next line would be glued to it. After each append the byte before it is looked at, unless it is
  this writer's own; a fragment is overwritten with spaces, which JSON allows before a value. One
  that is there when the file is opened gets a newline instead: it may be somebody's whole line.
- The path may have moved: rotated by another process, renamed or deleted by anyone. `moved` tells.
- A rotated file may still have a slow writer. Every writer holds a shared lock on the file it has
  open; who wants to compress, move or delete a rotated file takes the exclusive one first.

A fork leaves the child with the parent's descriptors, whose locks are the parent's: the child
closes them and opens its own at its next append. So that it knows them all, a fork waits while
another thread opens a file.
"""

from __future__ import annotations

import errno
import math
import os
import stat
import time
import weakref
from typing import Any

from foundry_log.files import locks

_BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_BLOCK = 65_536
_CURRENT = os.SEEK_CUR
_OPEN_ATTEMPTS = 1000
_LOOKS_AT_END = 3

_open_files: weakref.WeakSet[AppendFile] = weakref.WeakSet()


class AppendFile:
    """Appends lines to `path`; opens it at the first one, and its directory if that is missing.

    Not thread-safe: the caller's lock is held round every method. Process-safe on local file
    systems of one host.

    Args:
        path: the file, kept as an absolute path.
        permissions: of a new file, before the umask.
        truncate: empty the file at the first opening.
        exclusive: fail with FileExistsError at the first opening if the file is there.
    """

    def __init__(
        self,
        path: str,
        *,
        permissions: int = 0o640,
        truncate: bool = False,
        exclusive: bool = False,
    ) -> None:
        self.path = os.path.abspath(path)
        self.size = 0
        """Bytes in the file when this writer last looked, other writers' included."""
        self._permissions = permissions
        self._first_flags = (os.O_TRUNC if truncate else 0) | (os.O_EXCL if exclusive else 0)
        self._descriptor = -1  # O_APPEND: every line
        self._patch = -1  # without it: on an O_APPEND one Linux ignores the position of a write
        self._own_end = -1  # where this writer's last line ended
        self.is_alone = True
        """Whether all that it has found in its files so far were its own lines."""
        self.written_before = 0.0
        """When the file was last written before it was opened here, in seconds since the epoch."""
        self._regular = True
        self._identity = (-1, -1)
        self.looked = -math.inf
        """When the path was last seen to be the open file, by `time.monotonic`."""

    @property
    def is_open(self) -> bool:
        """Whether descriptors are held."""
        return self._descriptor >= 0

    @property
    def is_regular(self) -> bool:
        """Whether the path is a file that has a size, and not a pipe or a device."""
        return self._regular

    @property
    def is_removed(self) -> bool:
        """Whether the open file has no name any more, so that what is written to it is gone."""
        return self._descriptor >= 0 and os.fstat(self._descriptor).st_nlink == 0

    def has_grown_to(self) -> int:
        """Return the size that the open file has now; as last seen where none is open."""
        return os.fstat(self._descriptor).st_size if self._descriptor >= 0 else self.size

    def open(self) -> None:
        """Open the file now.

        Raises:
            OSError: it cannot be opened or created.
        """
        if self._descriptor < 0:
            with locks.opening:
                self._descriptor, self._patch = self._opened()
                _open_files.add(self)

    def append(self, line: bytes) -> None:
        """Write one line that ends in a newline; when this returns it stands whole in the file.

        Raises:
            OSError: the line was not written; nothing of it is left in the file.
        """
        if self._descriptor < 0:
            self.open()
        if not self._regular:
            self._write_stream(line)
            return
        self.append_next(line)

    def append_next(self, line: bytes) -> None:
        """Do what `append` does, of an open file that is regular."""
        written = os.write(self._descriptor, line)
        end = os.lseek(self._descriptor, 0, _CURRENT)
        if written != len(line):
            end = self._written_again(line, end - written, end)
        start, own_end = end - len(line), self._own_end
        self._own_end = self.size = end
        if start != own_end:
            self.is_alone = self.is_alone and start == 0 and own_end < 0
            if start > 0:
                self._heal(start)

    def moved(self, every_s: float = 0.0) -> bool:
        """Return whether the path is no longer the file that is open.

        Args:
            every_s: seconds for which the last answer "no" is good enough.
        """
        if self._descriptor < 0 or not self._regular:
            return False
        now = time.monotonic()
        if every_s and now - self.looked < every_s:
            return False
        try:
            status = os.stat(self.path)
            if (status.st_dev, status.st_ino) != self._identity:
                return True
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            pass  # the path cannot be looked at; the file that is open can be written
        self.looked = now
        return False

    def reopen(self) -> None:
        """Follow the path to the file that stands there now, a new one if there is none.

        Raises:
            OSError: it cannot be opened; the old file stays open and is written on.
        """
        if self._descriptor < 0:
            self.open()
            return
        if self.has_grown_to() != self.size:
            self.is_alone = False
        with locks.opening:
            descriptor, patch = self._opened()
            # The number of the descriptor stays: whoever writes without our lock, or is inside a
            # write now, never meets a closed descriptor or one that another file has got since.
            os.dup2(descriptor, self._descriptor, inheritable=False)
            os.close(descriptor)
            patch, self._patch = self._patch, patch
            if patch >= 0:
                os.close(patch)

    def sync(self) -> None:
        """Wait until the device has what was written (`fsync`)."""
        if self._descriptor >= 0:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the descriptors; the next append opens the file again. Idempotent."""
        descriptors, self._descriptor, self._patch = (self._descriptor, self._patch), -1, -1
        self.looked = -math.inf
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)
        _open_files.discard(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be copied: the copy's end would close descriptors of this one.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"{type(self).__name__} holds open files and cannot be copied or pickled")

    def __del__(self) -> None:
        self.close()  # a writer that was dropped holds neither descriptors nor its lock

    def _opened(self) -> tuple[int, int]:
        """Return two descriptors of the file that is at the path, locked against removal."""
        for _ in range(_OPEN_ATTEMPTS):
            descriptor = self._create()
            try:
                status = os.fstat(descriptor)
                regular = stat.S_ISREG(status.st_mode)
                is_held = regular and locks.try_shared(descriptor)
                patch = self._second(descriptor) if is_held else -1
            except BaseException:
                os.close(descriptor)
                raise
            if patch >= 0 or not regular:
                self._regular = regular
                self._identity = (status.st_dev, status.st_ino)
                self._own_end = -1
                self.written_before = status.st_mtime
                self.size = self._ended(descriptor, patch) if regular else 0
                self.looked = time.monotonic()
                return descriptor, patch
            os.close(descriptor)  # it was rotated away between two calls: take the next one
            time.sleep(0.001)
        raise OSError(errno.EBUSY, "the file keeps being replaced while it is opened", self.path)

    def _create(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _BINARY | self._first_flags
        try:
            descriptor = os.open(self.path, flags, self._permissions)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            descriptor = os.open(self.path, flags, self._permissions)
        self._first_flags = 0
        return descriptor

    def _second(self, descriptor: int) -> int:
        """Return another descriptor of the same file, or -1 when the path has moved on."""
        try:
            patch = os.open(self.path, os.O_RDWR | _BINARY)
        except FileNotFoundError:
            return -1
        if os.path.sameopenfile(descriptor, patch):
            return patch
        os.close(patch)
        return -1

    def _ended(self, descriptor: int, patch: int) -> int:
        """Write the newline that the file's last line lacks, if any; return the file's size."""
        size = 0
        try:
            for _ in range(_LOOKS_AT_END):
                size = os.lseek(patch, 0, os.SEEK_END)
                os.lseek(patch, max(size - 1, 0), os.SEEK_SET)
                if os.read(patch, 1) in (b"\n", b""):
                    return size
                time.sleep(0.0005)  # another process may be in the middle of its write
            return size + os.write(descriptor, b"\n")
        except OSError:
            return size  # the first line to be appended mends it, or fails for the same reason

    def _written_again(self, line: bytes, begin: int, end: int) -> int:
        """Blank the part of the line that was written and write all of it; return its end."""
        self._overwrite(begin, end)
        # Asked once more, the kernel either has room again or says what is wrong.
        written = os.write(self._descriptor, line)
        end = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        if written != len(line):
            self._overwrite(end - written, end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        return end

    def _heal(self, start: int) -> None:
        """Blank what stands before `start` if it is not a whole line."""
        os.lseek(self._patch, start - 1, os.SEEK_SET)
        if os.read(self._patch, 1) in (b"\n", b""):  # nothing: somebody has truncated the file
            return
        begin = start
        while begin > 0:
            size = min(_BLOCK, begin)
            os.lseek(self._patch, begin - size, os.SEEK_SET)
            block = os.read(self._patch, size)
            if len(block) < size:
                return  # truncated since: what stands there now is not what we saw
            begin -= size
            newline = block.rfind(b"\n")
            if newline >= 0:
                begin += newline + 1
                break
        self._overwrite(begin, start)

    def _overwrite(self, begin: int, end: int) -> None:
        os.lseek(self._patch, begin, os.SEEK_SET)
        while begin < end:
            begin += os.write(self._patch, b" " * min(_BLOCK, end - begin))

    def _write_stream(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]


def open_files() -> list[str]:
    """Return the paths of the files that this process has open to append to."""
    return sorted({file.path for file in list(_open_files) if file.is_open})


def sync_all() -> None:
    """Wait until the device has what this process wrote to any file that is open."""
    for file in list(_open_files):
        try:
            file.sync()
        except OSError:
            pass  # a pipe or a terminal, or closed meanwhile; the device has what it has


def _abandon_after_fork() -> None:
    for file in list(_open_files):
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_after_fork)
