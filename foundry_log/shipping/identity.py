"""What tells one state of a file from others without reading it."""

from __future__ import annotations

import os
from typing import NamedTuple

_LATEST_NS = (1 << 63) - 1


class Identity(NamedTuple):
    """Device, inode, size in bytes and time of the last change in nanoseconds.

    A file that was renamed keeps it; one that took over an inode has another, and so has one that
    was written to.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """Return the identity that a status tells."""
        # Within what SQLite holds: somebody may have set a time of another millennium.
        mtime_ns = max(-_LATEST_NS, min(status.st_mtime_ns, _LATEST_NS))
        return cls(status.st_dev, status.st_ino, status.st_size, mtime_ns)
