"""Advisory locks between processes: thin names for `flock`.

A lock belongs to the open file description, so a process that forks must open its own. Where there
is no `fcntl` (Windows) every lock is granted: there one process to a file is supported.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]


def try_shared(descriptor: int) -> bool:
    """Take a shared lock without waiting; False where somebody holds it exclusively."""
    return _try(descriptor, exclusive=False)


def try_exclusive(descriptor: int) -> bool:
    """Take an exclusive lock without waiting; False where anybody holds it."""
    return _try(descriptor, exclusive=True)


@contextlib.contextmanager
def exclusive_file(path: str, permissions: int) -> Iterator[None]:
    """Hold the lock file `path`, waiting for it; the kernel releases it when its holder dies.

    The file is made if missing and stays: removing a lock file lets two holders in.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), permissions)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def in_use(path: str) -> bool:
    """Return whether any process holds a lock on the file; a file that is gone is not in use."""
    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        return False
    except OSError:
        return True  # unknown counts as in use
    try:
        return not try_exclusive(descriptor)
    finally:
        os.close(descriptor)


def _try(descriptor: int, exclusive: bool) -> bool:
    if fcntl is None:  # pragma: no cover - Windows
        return True
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
