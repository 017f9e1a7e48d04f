"""Advisory locks between processes: thin names for `flock`.

A lock belongs to the open file description, so a process that forks must open its own. Where there
is no `fcntl` (Windows) every lock is granted: there one process to a file is supported. A file
system that refuses locks grants the shared ones, so that writing goes on, and no exclusive one.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any

fcntl: Any = None
try:
    fcntl = importlib.import_module("fcntl")
except ImportError:  # pragma: no cover - Windows
    pass

_thread_locks: weakref.WeakSet[Any] = weakref.WeakSet()
_held: set[int] = set()  # descriptors of `exclusive_file`, for the child of a fork to close


def thread_lock() -> threading.Lock:
    """Return a lock between threads that is free in the child of a fork, whoever held it."""
    lock = threading.Lock()
    _thread_locks.add(lock)
    return lock


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
    _held.add(descriptor)
    try:
        if fcntl is None:  # pragma: no cover - Windows
            yield
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Closing is not enough: a process forked meanwhile by another thread has the lock too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


@contextlib.contextmanager
def try_exclusive_file(path: str) -> Iterator[int | None]:
    """Hold an existing file locked without waiting for it; give its descriptor.

    None where it is gone, cannot be opened, or anybody holds it.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        yield None
        return
    _held.add(descriptor)
    try:
        if not try_exclusive(descriptor):
            yield None
            return
        try:
            yield descriptor
        finally:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a process forked meanwhile has it too
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def in_use(path: str) -> bool:
    """Return whether any process holds a lock on the file; a file that is gone is not in use.

    One that cannot be opened counts as in use.
    """
    with try_exclusive_file(path) as descriptor:
        return descriptor is None and os.path.lexists(path)


def _try(descriptor: int, exclusive: bool) -> bool:
    if fcntl is None:  # pragma: no cover - Windows
        return True
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return not exclusive
    return True


def _abandon_after_fork() -> None:
    for lock in list(_thread_locks):
        lock._at_fork_reinit()  # what `logging` and `threading` do with theirs
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_after_fork)
