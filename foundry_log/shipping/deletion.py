"""A local file that was shipped is deleted: only when nothing at all speaks against it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from foundry_log.files import locks
from foundry_log.shipping.content import Content
from foundry_log.shipping.identity import Identity
from foundry_log.shipping.own_log import log
from foundry_log.shipping.readiness import has_work_left, run_is_going
from foundry_log.shipping.register import Shipped
from foundry_log.shipping.scanning import Kind, LogFile
from foundry_log.shipping.store import BlobStore

_DAY_S = 86_400.0


class DoubtError(Exception):
    """A file that was shipped is not deleted; the text says why."""


@dataclass(frozen=True)
class Retention:
    """When a file that was shipped may be deleted.

    Args:
        days: without a change; None for never.
        grace_s: seconds since the store's acknowledgement.
    """

    days: float | None
    grace_s: float

    def covers(self, file: LogFile, now: float) -> bool:
        """Return whether the file is one that is ever deleted, and has not changed for so long.

        Live files are not: somebody may come back to them. Nor are numbered ones: their names
        shift, and the handler's own `backupCount` removes them.
        """
        return file.kind is Kind.ROTATED and self.has_passed(file.identity, now)

    def has_passed(self, identity: Identity, now: float) -> bool:
        """Return whether a file that is as this identity says has not changed for so long."""
        return self.days is not None and identity.mtime_ns <= (now - self.days * _DAY_S) * 1e9

    def is_over(self, shipped: Shipped, now: float) -> bool:
        """Return whether the acknowledgement is long enough ago."""
        return shipped.shipped_at <= now - self.grace_s


async def delete(file: LogFile, shipped: Shipped, store: BlobStore) -> bool:
    """Delete a local file if the store still has all of it; return whether it was deleted.

    The file is locked, read once more, and compared with the register and with what the store says
    now. One that somebody holds, that is to be compressed or told to a hook, or whose run goes on
    and may read its history, stays for now.

    Raises:
        DoubtError: file, register and store do not agree: it stays.
        OSError: it cannot be read or removed.
        StoreError: the store cannot be asked.
    """
    if has_work_left(file) or (file.in_run and run_is_going(file.folder)):
        return False
    with locks.try_exclusive_file(file.path) as descriptor:
        if descriptor is None or Identity.of(os.fstat(descriptor)) != file.identity:
            return False
        content = Content(descriptor, file.path)
        await content.read_through()
        if content.md5 != shipped.md5:
            raise DoubtError("its content is not what was shipped")
        facts = await store.facts(shipped.blob)
        if facts is None:
            raise DoubtError(f"the store has no {shipped.blob} any more")
        if not facts.agree_with(content):
            raise DoubtError(f"the store has other content as {shipped.blob}")
        if Identity.of(os.lstat(file.path)) != file.identity:
            return False
        os.unlink(file.path)
    log.debug("%s is deleted: %s has had it for long enough", file.path, shipped.blob)
    return True
