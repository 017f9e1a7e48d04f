"""Delivery: one file is brought to a store, whatever passes on the way, and compared."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from foundry_log.backoff import Pace
from foundry_log.files import locks
from foundry_log.shipping.addresses import scrubbed
from foundry_log.shipping.content import BLOCK, Content
from foundry_log.shipping.identity import Identity
from foundry_log.shipping.store import (
    BlobExistsError,
    BlobFacts,
    BlobStore,
    CorruptedError,
    StoreError,
    TemporaryError,
)

_log = logging.getLogger("foundry_log.shipping")


class FileInUseError(Exception):
    """Somebody writes to the file, compresses, prunes or ships it: it is left for later."""


@dataclass(frozen=True)
class UploadJob:
    """A file that is to be stored.

    Args:
        path: of a regular file, or a symbolic link to one.
        blob_name: as `check_blob_name` allows it.
        metadata: names that are identifiers, to any text.
        holds_lock: whether the file is locked exclusively for the whole upload, so that others
            leave it alone. For files that nobody appends to any more.
        follows_links: whether a symbolic link is followed; without, it is an error.
        identity: of the file that is meant; another one at its path is in use. None for any.
    """

    path: str
    blob_name: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    holds_lock: bool = False
    follows_links: bool = True
    identity: Identity | None = None


@dataclass(frozen=True)
class Receipt:
    """What the store has acknowledged, and what was compared with the file.

    Args:
        path: of the file.
        blob_name: the one it has, which is not the one asked for where that held other content.
        size: in bytes.
        md5: of its content, 16 bytes long.
        was_there: whether the same content was there already; also where an attempt before
            stored it and its answer was lost.
    """

    path: str
    blob_name: str
    size: int
    md5: bytes
    was_there: bool


class Delivery:
    """Brings files to a store, each as often as it takes. Used from one event loop, by many tasks.

    Args:
        pace: when the store may be asked.
        attempts: for each name that is tried, 1 or more, the first counted.
    """

    def __init__(self, pace: Pace, attempts: int) -> None:
        self.retries = 0
        """Attempts after the first ones."""
        self._pace = pace
        self._attempts = attempts

    async def deliver(self, job: UploadJob, store: BlobStore) -> Receipt:
        """Store a file, and compare size and MD5 of what is there with what was read.

        Where the name is taken by other content, or what arrived is other content, the file is
        stored as `suffixed` has it, and a line says so.

        Raises:
            FileInUseError: the job asks for the lock, and another has it.
            OSError: the file cannot be opened or read, is no regular file, or changes meanwhile.
            StoreError: the store refuses for good, or as often as there are attempts.
        """
        with _opened(job) as descriptor:
            content = Content(descriptor, job.path)
            receipt = await self._deliver(job, content, store)
            if not os.fstat(descriptor).st_nlink:
                _log.warning(
                    "%s vanished while it was uploaded; all of it is stored as %s",
                    job.path,
                    receipt.blob_name,
                )
            return receipt

    async def _deliver(self, job: UploadJob, content: Content, store: BlobStore) -> Receipt:
        name = job.blob_name
        facts, was_there = await self._persistently(_Put(store, name, content, job.metadata))
        if not facts.agree_with(content):
            name = suffixed(name, content.md5)
            _tell_of_other_content(job, name, was_there)
            facts, was_there = await self._persistently(_Put(store, name, content, job.metadata))
        if not facts.agree_with(content):
            raise StoreError(
                f"the store has {facts.size} bytes as {name} that are not the file's "
                f"{content.size}, and other content as {job.blob_name}"
            )
        return Receipt(job.path, name, content.size, content.md5, was_there)

    async def _persistently(self, put: _Put) -> tuple[BlobFacts, bool]:
        """Put until it succeeds or the attempts are used up."""
        attempt = 0
        await self._pace.turn()
        while True:
            try:
                result = await put()
            except (TemporaryError, CorruptedError) as error:
                not_before = self._pace.failed(attempt, getattr(error, "retry_after_s", None))
                attempt += 1
                if attempt >= self._attempts:
                    raise
                _log.info(
                    "%s: attempt %d of %d: %s",
                    put.content.path,
                    attempt,
                    self._attempts,
                    told(error),
                )
                self.retries += 1
                await self._pace.turn(not_before)
            else:
                self._pace.succeeded()
                return result


@dataclass(frozen=True)
class _Put:
    """One attempt to have a content under a name, as often as it is called."""

    store: BlobStore
    name: str
    content: Content
    metadata: Mapping[str, str]

    async def __call__(self) -> tuple[BlobFacts, bool]:
        """Return what is there under the name now, and whether it was there before."""
        facts = None
        if self.content.size > BLOCK:  # asked first: sending it in vain would take long
            facts = await self.store.facts(self.name)
        if facts is None:
            try:
                return await self.store.put_new(self.name, self.content, self.metadata), False
            except BlobExistsError:
                facts = await self.store.facts(self.name)
        if facts is None:
            raise TemporaryError(f"{self.name} was there, and when it was looked at it was gone")
        await self.content.read_through()
        return facts, True


def suffixed(name: str, md5: bytes) -> str:
    """Return a name with the first eight hex digits of an MD5 before its extension.

    `app/run.jsonl.gz` gets `app/run-0123abcd.jsonl.gz`.
    """
    directory, slash, base = name.rpartition("/")
    stem, extension = os.path.splitext(base.removesuffix(".gz"))
    packed = ".gz" if base.endswith(".gz") else ""
    return f"{directory}{slash}{stem}-{md5.hex()[:8]}{extension}{packed}"


def told(error: BaseException) -> str:
    """Return what an error says, without secrets; its class where it says nothing."""
    try:
        text = scrubbed(str(error))
    except Exception:  # somebody's class, whose text cannot be had
        text = ""
    return text or type(error).__name__


@contextlib.contextmanager
def _opened(job: UploadJob) -> Iterator[int]:
    """Open the file of a job for reading, and lock it if the job says so; give the descriptor."""
    # Without O_NONBLOCK a FIFO put in the file's place would stop the whole event loop.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    if not job.follows_links:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(job.path, flags | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", job.path)
        if job.identity is not None and Identity.of(os.fstat(descriptor)) != job.identity:
            raise FileInUseError("it has been replaced or written to since it was found")
        if not job.holds_lock:
            yield descriptor
            return
        with locks.try_exclusive_file(job.path) as locked:
            # The same file: the path may have been given to another one, or to a link, meanwhile.
            if locked is None or not os.path.samestat(os.fstat(locked), os.fstat(descriptor)):
                raise FileInUseError("another process or handler holds it")
            yield locked
    finally:
        os.close(descriptor)


def _tell_of_other_content(job: UploadJob, name: str, was_there: bool) -> None:
    level, fault = (
        (logging.WARNING, "the store has other content as %s")
        if was_there
        else (logging.ERROR, "what the store took as %s is not what was sent")
    )
    _log.log(level, f"%s: {fault}; it is stored as %s", job.path, job.blob_name, name)
