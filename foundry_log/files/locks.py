"""Advisory locks between processes: thin names for `flock`.

A lock belongs to the open file description, so a process that forks must open its own. Where there
is no `fcntl` (Windows) every lock is granted: there one process to a file is supported. A file
system that refuses locks grants the shared ones, so that writing goes on, and no exclusive one.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import IO, Any

WITHIN_S = 1.0
"""Seconds for which a lock that another process holds is waited for: that one may be stopped."""

fcntl: Any = None
try:
    fcntl = importlib.import_module("fcntl")
except ImportError:  # pragma: no cover - Windows
    pass

logging_lock: Any = logging._lock  # type: ignore[attr-defined]
"""That of the module `logging`, which `dictConfig` holds while it makes and closes handlers and
imports their modules. Whoever needs it together with others takes it first."""

_thread_locks: weakref.WeakSet[Any] = weakref.WeakSet()
_held: set[int] = set()  # descriptors for the child of a fork to close
_FORK_WAITS_S = 1.0

opening = threading.RLock()
"""Held while descriptors are had that nobody has noted yet. A fork waits for it, so that its child
knows all that it has to close: a lock that a child inherits lasts as long as the child."""


def thread_lock() -> Any:
    """Return a lock between threads that is free in the child of a fork, whoever held it.

    Its holder may take it again: a signal handler that logs interrupts whoever is inside.
    """
    lock = threading.RLock()
    _thread_locks.add(lock)
    return lock


def try_shared(descriptor: int) -> bool:
    """Take a shared lock without waiting; False where somebody holds it exclusively."""
    return _try(descriptor, exclusive=False)


def try_exclusive(descriptor: int) -> bool:
    """Take an exclusive lock without waiting; False where anybody holds it."""
    return _try(descriptor, exclusive=True)


@contextlib.contextmanager
def exclusive_file(
    path: str,
    permissions: int,
    *,
    timeout_s: float = WITHIN_S,
    unless: Callable[[], bool] = lambda: False,
) -> Iterator[bool]:
    """Hold the lock file `path`, waiting for it; the kernel releases it when its holder dies.

    The file is made if missing and stays: removing a lock file lets two holders in.

    Args:
        path: of the lock file.
        permissions: of a new one, before the umask.
        timeout_s: seconds to wait at the most.
        unless: asked while the lock is waited for; once it is true, the lock is not needed any
            more, and False is given in place of True.

    Raises:
        TimeoutError: its holder is alive and has not let go of it in time.
        OSError: the file cannot be made or opened.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
    with opening:
        descriptor = os.open(path, flags, permissions)
        _held.add(descriptor)
    try:
        if fcntl is None:  # pragma: no cover - Windows
            yield True
            return
        if not _wait_for(descriptor, path, timeout_s, unless):
            yield False
            return
        try:
            yield True
        finally:
            # Closing is not enough: a process forked meanwhile by another thread has the lock too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        _release(descriptor)


@contextlib.contextmanager
def try_exclusive_file(path: str) -> Iterator[int | None]:
    """Hold an existing file locked without waiting for it; give its descriptor.

    None where it is gone, cannot be opened, or anybody holds it.
    """
    try:
        with opening:
            descriptor = _open_existing(path)
            _held.add(descriptor)
    except OSError:
        yield None
        return
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
        _release(descriptor)


@contextlib.contextmanager
def noted_file(path: str, mode: str) -> Iterator[IO[bytes]]:
    """Open a file that the child of a fork closes."""
    with opening:
        file = open(path, mode)  # noqa: SIM115 - its end is below
        _held.add(file.fileno())
    try:
        yield file
    finally:
        with opening:
            _held.discard(file.fileno())
            file.close()


def in_use(path: str) -> bool:
    """Return whether any process holds a lock on the file; a file that is gone is not in use.

    One that cannot be opened counts as in use.
    """
    with try_exclusive_file(path) as descriptor:
        return descriptor is None and os.path.lexists(path)


def _release(descriptor: int) -> None:
    with opening:
        _held.discard(descriptor)
        os.close(descriptor)


def _open_existing(path: str) -> int:
    closing = getattr(os, "O_CLOEXEC", 0)
    try:
        return os.open(path, os.O_RDWR | closing)  # NFS locks nothing that cannot be written
    except PermissionError:
        return os.open(path, os.O_RDONLY | closing)


def _wait_for(descriptor: int, path: str, timeout_s: float, unless: Callable[[], bool]) -> bool:
    limit, pause_s = time.monotonic() + timeout_s, 0.0002
    while not _granted(descriptor):
        if unless():
            return False
        if time.monotonic() > limit:
            raise TimeoutError(errno.ETIMEDOUT, f"another process holds it for {timeout_s} s", path)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.005)
    return True


def _granted(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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


class _Fork(threading.local):
    has_waited = False


_fork = _Fork()


def _before_fork() -> None:
    # Hooks run in reverse order, so that `logging`'s own would take it second.
    logging_lock.acquire()
    # With a limit: opening a pipe lasts until somebody reads it.
    _fork.has_waited = opening.acquire(timeout=_FORK_WAITS_S)


def _after_fork() -> None:
    if _fork.has_waited:
        opening.release()
    logging_lock.release()


def _abandon_after_fork() -> None:  # `logging` makes its own lock anew
    for lock in [opening, *_thread_locks]:
        lock._at_fork_reinit()  # what `logging` and `threading` do with theirs
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_abandon_after_fork
    )
