"""One file to the store: unless its content is there, and noted once the store has it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping

from foundry_log.files import locks
from foundry_log.shipping.blob_storage import AsyncBlobStorageUploader
from foundry_log.shipping.content import BLOCK, ChangedError
from foundry_log.shipping.delivery import FileInUseError, Receipt, UploadJob
from foundry_log.shipping.failures import Failures
from foundry_log.shipping.identity import Identity
from foundry_log.shipping.metadata import metadata_of
from foundry_log.shipping.register import Register, Shipped
from foundry_log.shipping.scanning import Kind, LogFile

Tally = Counter[str]
"""How many files had which fate, by the names of the fields of `ScanReport`."""


class Shipments:
    """Files on their way. Belongs to one event loop.

    Args:
        uploader: initialised.
        register: in which each file is noted that the store has acknowledged.
        blob_name: says under which name a file is stored.
        failures: gets those that fail.
        now: seconds since the epoch.
    """

    def __init__(
        self,
        uploader: AsyncBlobStorageUploader,
        register: Register,
        blob_name: Callable[[LogFile], str],
        failures: Failures,
        now: Callable[[], float],
    ) -> None:
        self._uploader = uploader
        self._register = register
        self._blob_name = blob_name
        self._failures = failures
        self._now = now
        self._under_way: dict[str, asyncio.Task[Tally]] = {}

    async def ship(self, file: LogFile) -> Tally:
        """Ship a file, or wait for the shipment of it that is under way; return its fate.

        A caller that is cancelled leaves it under way: it is noted when it is acknowledged.
        """
        task = self._under_way.get(file.path)
        if task is None:
            task = self._under_way[file.path] = asyncio.create_task(self._ship(file))
            task.add_done_callback(lambda _: self._under_way.pop(file.path, None))
        return await asyncio.shield(task)

    async def end(self) -> None:
        """Wait for what is under way; the uploader has been shut down."""
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    async def _ship(self, file: LogFile) -> Tally:
        is_told = False
        try:
            metadata = await asyncio.to_thread(self._metadata_unless_known, file)
            if metadata is None:
                return Tally(already_there=1)
            job = UploadJob(
                file.path,
                self._blob_name(file),
                metadata,
                holds_lock=file.kind is not Kind.RUN,
                follows_links=False,
                identity=file.identity,
            )
            is_told = True  # the uploader logs what it fails with
            receipt = await self._uploader.submit(job)
            is_told = False
            await asyncio.to_thread(self._note, file, receipt)
        except (FileInUseError, ChangedError):
            return Tally(in_use=1)
        except FileNotFoundError:
            return Tally()  # removed or compressed since the scan
        except Exception as error:
            now = self._now()
            self._failures.put_off(file.path, error, "shipping", now, is_told=is_told)
            return Tally(failed=1)
        self._failures.refusals = 0
        if receipt.was_there:
            return Tally(already_there=1)
        return Tally(shipped=1, bytes=receipt.size)

    def _metadata_unless_known(self, file: LogFile) -> Mapping[str, str] | None:
        """Return what to tell of a file; None if it, or one of the same content, was shipped."""
        self._register.refresh()  # another monitor may just have shipped it
        if self._register.is_done(file.identity) or self._has_known_content(file):
            return None
        return metadata_of(file)

    def _has_known_content(self, file: LogFile) -> bool:
        """Return whether the content was shipped under another name or identity; note this one."""
        if not self._register.may_know(file.identity.size):
            return False
        md5 = _md5_of(file)
        known = self._register.with_content(file.identity.size, md5) if md5 else None
        if known is None:
            return False
        shipped = Shipped(known.md5, known.blob, file.path, known.shipped_at)
        self._register.add(file.identity, shipped)
        return True

    def _note(self, file: LogFile, receipt: Receipt) -> None:
        """Note that a file is done, if it is the one that was uploaded: names may have shifted."""
        if receipt.size == file.identity.size and _is_still(file):
            shipped = Shipped(receipt.md5, receipt.blob_name, file.path, self._now())
            self._register.add(file.identity, shipped)


def _md5_of(file: LogFile) -> bytes | None:
    """Return the MD5 of the file, None if it is not as it was found."""
    digest = hashlib.md5(usedforsecurity=False)
    with locks.noted_file(file.path, "rb") as opened:
        while block := opened.read(BLOCK):
            digest.update(block)
        is_same = Identity.of(os.fstat(opened.fileno())) == file.identity
    return digest.digest() if is_same else None


def _is_still(file: LogFile) -> bool:
    """Return whether the path holds what it held; one that is gone under a name of its own did."""
    try:
        return Identity.of(os.lstat(file.path)) == file.identity
    except FileNotFoundError:
        return file.kind is not Kind.NUMBERED
