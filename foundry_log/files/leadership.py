"""Which of an application's processes leads: the one that holds `logger_<app>.lock`.

The lock file lies in the temporary directory of the machine and tells who holds it. Its holder
alone writes it, nobody removes it (that lets two holders in), and the kernel lets go of it when its
holder dies, however that happens.
"""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from dataclasses import dataclass

from foundry_log.clock import timestamp
from foundry_log.files import locks
from foundry_log.files.app_filenames import encoded

_PERMISSIONS = 0o600  # who else could open it could hold it, and nobody would lead
_LARGEST_NOTE = 4096

_leaderships: weakref.WeakSet[Leadership] = weakref.WeakSet()


@dataclass(frozen=True)
class Leader:
    """What the lock file says.

    Args:
        pid: of the process that led last; it may have ended.
        timestamp: RFC 3339 text in UTC of when it began to lead.
        app_name: the application.
    """

    pid: int
    timestamp: str
    app_name: str


class Leadership:
    """A place among the processes of one application, of which one leads.

    Thread-safe. The child of a fork does not lead, and may try; its parent's lead is untouched.

    Args:
        app: name of the application.
        directory: of the lock file; None for the temporary directory. Processes that find each
            other have the same one.
    """

    def __init__(self, app: str, directory: str | None = None) -> None:
        self.app = app
        folder = tempfile.gettempdir() if directory is None else directory
        self.path = os.path.join(folder, f"logger_{encoded(app)}.lock")
        """The lock file."""
        self._descriptor = -1  # guarded by the lock below, like the file itself
        self._lock = locks.thread_lock()
        _leaderships.add(self)

    @property
    def is_leader(self) -> bool:
        """Whether this process has taken the lead, and not given it back."""
        return self._descriptor >= 0

    def try_to_lead(self) -> bool:
        """Take the lead if nobody has it, without waiting; return whether this process leads.

        A leader whose lock file somebody has removed or replaced stands in the queue again.

        Raises:
            OSError: the lock file cannot be made, opened or written, as one of another user.
        """
        with self._lock:
            if self.is_leader and not self._is_in_place():
                self.resign()
            if not self.is_leader:
                self._take()
            return self.is_leader

    def resign(self) -> None:
        """Give the lead back, if this process has it. Idempotent."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor >= 0:
                if locks.fcntl is not None:
                    # Closing is not enough: a process forked meanwhile has the lock too.
                    locks.fcntl.flock(descriptor, locks.fcntl.LOCK_UN)
                os.close(descriptor)

    def leader(self) -> Leader | None:
        """Return who leads, or who led last where nobody does; None if nobody ever has."""
        try:
            with open(self.path, "rb") as file:
                note = json.loads(file.read(_LARGEST_NOTE))
            return Leader(int(note["pid"]), str(note["timestamp"]), str(note["app_name"]))
        except (OSError, ValueError, TypeError, LookupError, RecursionError):
            return None

    def _take(self) -> None:
        with locks.opening:  # a fork waits, so that its child knows the descriptor
            descriptor = self._opened()
            if locks.try_exclusive(descriptor):
                self._descriptor = descriptor
            else:
                os.close(descriptor)
                return
        try:
            self._sign(descriptor)
        except BaseException:
            self.resign()
            raise
        if not self._is_in_place():  # it was removed between our opening and locking it
            self.resign()

    def _opened(self) -> int:
        # Never through a link: the directory is everybody's, and what it names would be written.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        return os.open(self.path, flags, _PERMISSIONS)

    def _sign(self, descriptor: int) -> None:
        note = {"pid": os.getpid(), "timestamp": timestamp(), "app_name": self.app}
        content = json.dumps(note).encode()
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, content)
        os.ftruncate(descriptor, len(content))  # afterwards: nobody reads it empty

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.lstat(self.path))
        except FileNotFoundError:
            return False

    def _abandon(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        if hasattr(self, "_lock"):
            self.resign()


def _abandon_after_fork() -> None:
    for leadership in list(_leaderships):
        leadership._abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_after_fork)
