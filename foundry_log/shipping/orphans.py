"""Live files whose writers are gone: they get their rotated name, and travel as rotated files."""

from __future__ import annotations

import dataclasses
import datetime
import os

from foundry_log.files import filenames, locks, owners
from foundry_log.files.app_filenames import format_name
from foundry_log.shipping.identity import Identity
from foundry_log.shipping.scanning import Kind, LogFile, renamed


def retire(file: LogFile) -> LogFile | None:
    """Rename a live file that nobody writes, so that a process that comes back begins a new one.

    None where somebody has it open after all, has rotated or removed it.

    Args:
        file: of kind LIVE; the caller has found its writers to be gone.

    Raises:
        OSError: it cannot be renamed.
    """
    assert file.kind is Kind.LIVE and file.named.app_name is not None
    # Writers hold a shared lock while they have it open, also while they rotate it, so none is at
    # it here; one that comes is not let in, and finds the path free a moment later.
    with locks.try_exclusive_file(file.path) as descriptor:
        if descriptor is None or not _is_still(file, descriptor):
            return None
        target = retired_name(file)
        owners.forget_owner(file.path)  # before: afterwards there may be a new file's
        os.rename(file.path, target)
    return renamed(file, target)


def retired_name(file: LogFile) -> str:
    """Return the path that a live file gets: the first that is free of the day of its last line."""
    assert file.named.app_name is not None
    day = datetime.datetime.fromtimestamp(file.modified).date()
    number = 0
    while True:
        name = dataclasses.replace(file.named.app_name, date=day, number=number)
        path = os.path.join(file.folder, format_name(name))
        if not (os.path.lexists(path) or os.path.lexists(filenames.compressed_name(path))):
            return path
        number += 1


def _is_still(file: LogFile, descriptor: int) -> bool:
    """Return whether path and descriptor are the file that was judged.

    Another one may be that of a writer who has just made it and is about to lock it.
    """
    try:
        found = Identity.of(os.lstat(file.path))
    except FileNotFoundError:
        return False
    return found == file.identity == Identity.of(os.fstat(descriptor))
