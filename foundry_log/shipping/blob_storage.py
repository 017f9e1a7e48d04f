"""AsyncBlobStorageUploader: a queue of files, and workers that bring each to a store once."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import random as randomness
import stat
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from foundry_log.backoff import Pace
from foundry_log.handlers.losses import cause_of
from foundry_log.shipping.addresses import scrubbed
from foundry_log.shipping.azure_store import AzureStore
from foundry_log.shipping.content import ChangedError
from foundry_log.shipping.delivery import Delivery, FileInUseError, Receipt, UploadJob, told
from foundry_log.shipping.store import BlobStore, StoreError, check_blob_name

__all__ = ["AsyncBlobStorageUploader", "FileInUseError", "NotReadyError", "Receipt", "UploadJob"]

REMEMBERED = 100_000
"""Files that `upload_file` knows to be done. One that is forgotten and given again is compared with
what the store has, and not stored twice."""
_NAMED = 3  # files that are named where some are left

_log = logging.getLogger("foundry_log.shipping")


class NotReadyError(Exception):
    """The uploader has not been initialised, or has been shut down."""


class AsyncBlobStorageUploader:
    """Uploads files to Azure Blob Storage, or another store, in the background, each once.

    A file is done when the store has acknowledged it and its size and MD5 are those that were read.
    Nothing is overwritten: where the name is taken by the same content the file is done, and where
    it is taken by other content the file gets the first eight hex digits of its MD5 into its name,
    and a warning is logged. Memory is bounded by the blocks under way, whatever the files' sizes.

    What may pass (throttling, no connection, a server's fault) is tried again, after a wait that
    `backoff.py` gives; a store that asks for time gets it from all workers. What will not pass
    (no permission, a file that is gone or changes) is logged as one error, and the next file is
    taken. Everything is logged on `foundry_log.shipping`; nothing but wrong arguments is raised.

    Belongs to one event loop, and all but the counters to its thread. Not for the child of a fork.

    Args:
        account_url: such as `https://account.blob.core.windows.net`; any text, since `initialize`
            checks it.
        container_name: made if missing.
        max_retries: attempts for a file, 1 or more, the first counted.
        retry_delay: seconds that are doubled from attempt to attempt, 0 or more.
        store: used in place of Azure's, which needs neither the extra `azure` nor an address.
        credential: an account key, a SAS, or a credential object of azure-identity; None for
            DefaultAzureCredential, unless the address holds a SAS.
        workers: files that are uploaded at the same time, 1 or more.
        sleep: waits for seconds; for tests.
        clock: seconds that only grow; for tests.
        random: gives numbers from 0 up to 1; for tests.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        account_url: str = "",
        container_name: str = "",
        max_retries: int = 5,
        retry_delay: float = 2.0,
        *,
        store: BlobStore | None = None,
        credential: Any = None,
        workers: int = 4,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = randomness.random,
    ) -> None:
        _check(max_retries >= 1, f"max_retries={max_retries!r} must be 1 or more: 1 tries once")
        _check(retry_delay >= 0, f"retry_delay={retry_delay!r} must be 0 s or more; 2 is usual")
        _check(workers >= 1, f"workers={workers!r} must be 1 or more; 4 are usual")
        self.account_url = account_url
        self.container_name = container_name
        self.max_retries = max_retries
        self.retry_delay = retry_delay
        self.workers = workers
        self.uploaded = 0
        """Files that the store acknowledged."""
        self.already_there = 0
        """Files whose content the store had under that name."""
        self.failed: Counter[str] = Counter()
        """Files that were given up, by cause, such as `FileNotFoundError ENOENT`."""
        self.bytes_sent = 0
        """Bytes of the files that were uploaded."""
        self._given_store = store
        self._store: BlobStore | None = store
        self._credential = credential
        pace = Pace(retry_delay, clock=clock, sleep=sleep, random=random)
        self._delivery = Delivery(pace, max_retries)
        self._opening = asyncio.Lock()  # one initialisation or shutdown at a time
        self._is_ready = False
        self._queue: asyncio.Queue[asyncio.Future[Receipt]] = asyncio.Queue()
        self._jobs: dict[asyncio.Future[Receipt], UploadJob] = {}  # unfinished ones, oldest first
        self._tasks: list[asyncio.Task[None]] = []
        self._known: dict[tuple[object, ...], None] = {}  # given to `upload_file`, oldest first

    def __repr__(self) -> str:
        return f"<{type(self).__name__} to {self.url}: {self.pending} pending>"

    @property
    def url(self) -> str:
        """Where the blobs go, without any secret."""
        if self._store is not None:
            return self._store.url
        return scrubbed(f"{self.account_url.partition('?')[0].rstrip('/')}/{self.container_name}")

    @property
    def is_ready(self) -> bool:
        """Whether files are taken: initialised, and not shut down since."""
        return self._is_ready

    @property
    def pending(self) -> int:
        """Files that are queued or under way."""
        return len(self._jobs)

    @property
    def retries(self) -> int:
        """Attempts after the first ones, of all files."""
        return self._delivery.retries

    async def initialize(self) -> bool:
        """Open the store and start the workers; return whether files are taken now.

        Idempotent, and safe to call several times at once: one call opens. False where the store
        cannot be had; the log says why, nothing is left open, and it can be tried again. After
        `shutdown` it begins anew.
        """
        async with self._opening:
            if not self._is_ready and await self._open():
                self._queue = asyncio.Queue()
                self._tasks = [asyncio.create_task(self._work()) for _ in range(self.workers)]
                self._is_ready = True
                _log.debug("Uploads go to %s", self.url)
            return self._is_ready

    async def upload_file(
        self,
        path: str | os.PathLike[str],
        blob_name: str | None = None,
        app_name: str | None = None,
    ) -> None:
        """Queue a file; never raises, what is wrong with it is logged.

        A file that was given before, with the same inode, size and time of change, is not taken
        again unless its upload failed.

        Args:
            path: of a regular file, or a symbolic link to one.
            blob_name: None for the last part of `path`.
            app_name: comes before the name, with a slash, and into the metadata; None for neither.
        """
        path = os.fspath(path)
        name = os.path.basename(path) if blob_name is None else blob_name
        if app_name:
            name = f"{app_name}/{name}"
        try:
            key = (name, *_identity(path))
        except (OSError, ValueError) as error:  # ValueError: a null character
            self._give_up(path, error)
            return
        if key in self._known:
            _log.info("%s has been given already as %s", path, name)
            return
        future = self.submit(UploadJob(path, name, {"app": app_name} if app_name else {}))
        self._remember(key, future)

    def submit(self, job: UploadJob) -> asyncio.Future[Receipt]:
        """Queue a job; the future has its receipt, or the error that it was given up with.

        Never raises. A failure is logged whether the future is looked at or not. Cancelling the
        future takes the job from the queue, unless it is under way. Not thread-safe: call it in the
        event loop.

        The future's errors: NotReadyError; ValueError for a blob's name; FileInUseError, where the
        job asks for the lock and another has it; OSError, where the file cannot be read or changes
        meanwhile; StoreError; and cancelled, where `shutdown` could not wait for it.
        """
        future: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_look_at_error)
        try:
            if not self._is_ready:
                raise NotReadyError("the uploader takes no files: await initialize() first")
            check_blob_name(job.blob_name)
        except (NotReadyError, ValueError) as error:
            self._fail(future, job, error)
            return future
        self._jobs[future] = job
        self._queue.put_nowait(future)
        return future

    async def shutdown(self, timeout_s: float = 60.0) -> tuple[str, ...]:
        """Take no more files, upload those that are pending, and close; return the paths left over.

        Those are logged in one line, and their futures are cancelled; none of them is called done,
        though the store may have one whose answer had not come. A second call returns `()`. Waits
        between attempts are neither shortened nor skipped, so a file that waits longer than the
        deadline is among those left.

        Args:
            timeout_s: seconds to wait for pending files; with 0 or less those under way are
                stopped at once.
        """
        async with self._opening:
            if not self._is_ready:
                return ()
            self._is_ready = False
            try:
                await asyncio.wait_for(self._queue.join(), timeout_s)
            except asyncio.TimeoutError:
                pass
            finally:
                left = await self._stop()
            return left

    async def _open(self) -> bool:
        store = self._given_store
        try:
            if store is None:
                store = AzureStore(self.account_url, self.container_name, self._credential)
            await store.open()
        except Exception as error:  # whatever it is, the caller's program goes on without uploads
            _log.error("Nothing can be uploaded to %s: %s", self.url, told(error))
            await _close(store)
            return False
        except BaseException:
            await _close(store)
            raise
        self._store = store
        return True

    async def _stop(self) -> tuple[str, ...]:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        left = tuple(job.path for job in self._jobs.values())
        for future in self._jobs:
            future.cancel()
        self._jobs.clear()
        if left:
            names = ", ".join(left[:_NAMED]) + (", …" if len(left) > _NAMED else "")
            _log.error("%d files were not uploaded before the end: %s", len(left), names)
        await _close(self._store)
        return left

    async def _work(self) -> None:
        while True:
            future = await self._queue.get()
            try:
                # What a job can raise has been dealt with; this is a filter on our logger.
                with contextlib.suppress(Exception):
                    await self._carry_out(future)
            finally:
                self._queue.task_done()

    async def _carry_out(self, future: asyncio.Future[Receipt]) -> None:
        job = self._jobs[future]
        try:
            receipt = None if future.done() else await self._deliver(job)
        except (KeyboardInterrupt, SystemExit):
            raise  # the loop is about to end; the job stays among those that are left
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                if _is_cancelled():
                    raise
                error = StoreError("something that the store waited for was cancelled")
            del self._jobs[future]
            self._fail(future, job, error)
        else:
            del self._jobs[future]
            if receipt is not None:
                self._succeed(future, receipt)

    async def _deliver(self, job: UploadJob) -> Receipt:
        assert self._store is not None  # workers are started behind an open one
        return await self._delivery.deliver(job, self._store)

    def _succeed(self, future: asyncio.Future[Receipt], receipt: Receipt) -> None:
        if receipt.was_there:
            self.already_there += 1
        else:
            self.uploaded += 1
            self.bytes_sent += receipt.size
        if not future.done():
            future.set_result(receipt)
        done = "was there already" if receipt.was_there else "is uploaded"
        _log.debug("%s %s as %s, %d bytes", receipt.path, done, receipt.blob_name, receipt.size)

    def _fail(self, future: asyncio.Future[Receipt], job: UploadJob, error: BaseException) -> None:
        if not future.done():
            future.set_exception(error)
        # Of a file that was found a while ago it is usual to be gone, or to be written again.
        usual = (FileNotFoundError, ChangedError) if job.identity is not None else ()
        is_usual = isinstance(error, (FileInUseError, *usual))
        self._give_up(job.path, error, logging.INFO if is_usual else logging.ERROR)

    def _give_up(self, path: str, error: BaseException, level: int = logging.ERROR) -> None:
        cause = cause_of(error)
        self.failed[cause] += 1
        text, count = told(error), self.failed[cause]
        _log.log(level, "%s is not uploaded: %s (%s: %d so far)", path, text, cause, count)

    def _remember(self, key: tuple[object, ...], future: asyncio.Future[Receipt]) -> None:
        if future.done():
            return
        self._known[key] = None
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        future.add_done_callback(functools.partial(self._forget_unless_done, key))

    def _forget_unless_done(self, key: tuple[object, ...], future: asyncio.Future[Receipt]) -> None:
        if future.cancelled() or future.exception() is not None:
            self._known.pop(key, None)


def _is_cancelled() -> bool:
    """Return whether this task is, and it was not some library's that it has waited for.

    Python 3.10 cannot tell.
    """
    cancelling: Callable[[], int] | None = getattr(asyncio.current_task(), "cancelling", None)
    return cancelling is None or cancelling() > 0


def _check(is_right: bool, message: str) -> None:
    if not is_right:
        raise ValueError(message)


def _identity(path: str) -> tuple[int, int, int, int]:
    """Return what tells this file, as it is now, from others.

    Raises:
        OSError: there is none, or it is no regular file.
        ValueError: there is a null character in its path.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


async def _close(store: BlobStore | None) -> None:
    if store is None:
        return
    try:
        await store.close()
    except Exception as error:
        _log.warning("Closing %s failed: %s", store.url, told(error))


def _look_at_error(future: asyncio.Future[Receipt]) -> None:
    # It has been logged; asyncio would log it again where nobody waits for the future.
    if not future.cancelled():
        future.exception()
