"""Blobs in a directory: for a disk that others collect from, and wherever no cloud is at hand."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from foundry_log.shipping.content import BLOCK, Content, in_thread
from foundry_log.shipping.store import (
    BlobExistsError,
    BlobFacts,
    StoreError,
    TemporaryError,
    check_blob_name,
)

OWN_DIRECTORY = ".foundry_log"
"""Where, below the store's directory, unfinished blobs and the metadata of finished ones are."""
LEFT_AFTER_S = 3600.0
"""Seconds without a write after which an unfinished blob is taken for one of a dead writer."""

_PARTS = "parts"
_METADATA = "metadata"
_MAY_PASS = {
    errno.EAGAIN, errno.EBUSY, errno.EDQUOT, errno.EINTR, errno.EIO, errno.EMFILE, errno.ENFILE,
    errno.ENOENT, errno.ENOMEM, errno.ENOSPC, errno.ESTALE, errno.ETIMEDOUT,
}  # fmt: skip
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_READ = os.O_RDONLY | _NO_LINK | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | getattr(os, "O_CLOEXEC", 0)


class LocalStore:
    """A directory as a `BlobStore`, for any number of processes at once.

    A blob is a file of its name. It is written elsewhere, synced to the disk, and then linked to
    its name, which fails where the name is taken. Its metadata is a JSON file of its own, found by
    the blob's name and MD5, so that no other writer's can be taken for it. The MD5 is that of the
    bytes that are there now: nobody may delete a file for what was noted once.

    No part of a blob's name may be a symbolic link, and none of its folders may be a blob. What the
    file system refuses for good is a `StoreError`; a full disk may be emptied, and is a
    `TemporaryError`.

    Args:
        directory: made by `open` if it is missing; on a file system with hard links.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = os.path.abspath(directory)
        self.url = Path(self._directory).as_uri()
        self._is_open = False

    def __repr__(self) -> str:
        return f"LocalStore({self._directory!r})"

    async def open(self) -> None:
        """Make the directory if it is missing, and remove what writers that died have left.

        Raises:
            StoreError: it cannot be made, or written to.
        """
        with self._translating(self._directory):
            await in_thread(self._prepare)
        self._is_open = True

    async def close(self) -> None:
        """Do nothing but refuse further blobs until `open`."""
        self._is_open = False

    async def put_new(self, name: str, content: Content, metadata: Mapping[str, str]) -> BlobFacts:
        """Store a blob under a name that is free, and return what the store has now.

        Raises:
            BlobExistsError: the name is taken.
            StoreError: see the class.
            OSError: the content cannot be read, or has changed.
        """
        self._check(name)
        part = os.path.join(self._directory, OWN_DIRECTORY, _PARTS, secrets.token_hex(16))
        try:
            await self._write_part(name, part, content)
            with self._translating(name):
                await in_thread(self._publish, name, part, content.md5, metadata)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(part)
        facts = await self.facts(name)
        if facts is None:
            raise TemporaryError(f"{self.url}: {name} was stored, and is not there any more")
        return facts

    async def facts(self, name: str) -> BlobFacts | None:
        """Return the size, the MD5 and the metadata of a blob; None where there is none.

        Raises:
            StoreError: see the class.
        """
        self._check(name)
        with self._translating(name):
            return await in_thread(self._look, name)

    def _check(self, name: str) -> None:
        if not self._is_open:
            raise StoreError(f"{self.url} is not open; await open() first")
        if check_blob_name(name).split("/")[0] == OWN_DIRECTORY:
            raise StoreError(f"{self.url}: {name} lies in the store's own folder; rename it")

    def _prepare(self) -> None:
        parts = os.path.join(self._directory, OWN_DIRECTORY, _PARTS)
        os.makedirs(parts, exist_ok=True)
        probe = os.path.join(parts, secrets.token_hex(16))
        os.close(os.open(probe, _NEW, 0o600))
        os.unlink(probe)
        for entry in os.scandir(parts):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - entry.stat(follow_symlinks=False).st_mtime > LEFT_AFTER_S:
                    os.unlink(entry.path)

    async def _write_part(self, name: str, part: str, content: Content) -> None:
        with self._translating(name):
            descriptor = os.open(part, _NEW, 0o666)
        try:
            # The content's own errors are not the store's, and pass.
            async for block in content.blocks():
                with self._translating(name):
                    await in_thread(_write_all, descriptor, block)
            with self._translating(name):
                await in_thread(os.fsync, descriptor)
        finally:
            os.close(descriptor)

    def _publish(self, name: str, part: str, md5: bytes, metadata: Mapping[str, str]) -> None:
        """Give what is written its name, with the metadata there before it."""
        if metadata:
            self._write_metadata(_metadata_name(name, md5), f"{part}.json", metadata)
        try:
            self._link(part, name)
        except FileExistsError as error:
            raise BlobExistsError(f"{self.url}: {name} is there already") from error

    def _write_metadata(self, name: str, part: str, metadata: Mapping[str, str]) -> None:
        """Write it, unless the same content has some under this name: that stands."""
        try:
            with open(os.open(part, _NEW, 0o666), "wb") as file:
                file.write(json.dumps(dict(metadata)).encode())
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                self._link(part, name)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(part)

    def _link(self, part: str, name: str) -> None:
        with self._folder_of(name, make=True) as folder:
            os.link(part, os.path.basename(name), dst_dir_fd=folder, follow_symlinks=False)
            os.fsync(folder)

    def _look(self, name: str) -> BlobFacts | None:
        try:
            with self._reading(name) as descriptor:
                digest, size = hashlib.md5(usedforsecurity=False), 0
                while block := os.read(descriptor, BLOCK):
                    digest.update(block)
                    size += len(block)
        except FileNotFoundError:
            return None
        return BlobFacts(size, digest.digest(), self._metadata_of(name, digest.digest()))

    def _metadata_of(self, name: str, md5: bytes) -> dict[str, str]:
        try:
            with (
                self._reading(_metadata_name(name, md5)) as descriptor,
                open(descriptor, "rb", closefd=False) as file,
            ):
                found = json.load(file)
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[int]:
        """Give a descriptor of the file of a name, which is no link and nothing else."""
        with self._folder_of(name) as folder:
            descriptor = os.open(os.path.basename(name), _READ, dir_fd=folder)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise StoreError(f"{self.url}: {name} is not a file")
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _folder_of(self, name: str, *, make: bool = False) -> Iterator[int]:
        """Give a descriptor of the folder of a name, come by without following any link."""
        folder = os.open(self._directory, _FOLDER)
        try:
            for part in name.split("/")[:-1]:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=folder)
                        os.fsync(folder)
                inner = os.open(part, _FOLDER | _NO_LINK, dir_fd=folder)
                os.close(folder)
                folder = inner
            yield folder
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _translating(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kind = TemporaryError if error.errno in _MAY_PASS else StoreError
            raise kind(f"{self.url}: {name}: {error.strerror or error}") from error


def _metadata_name(name: str, md5: bytes) -> str:
    return f"{OWN_DIRECTORY}/{_METADATA}/{name}/{md5.hex()}.json"


def _write_all(descriptor: int, block: bytearray) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
