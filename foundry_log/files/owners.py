"""Who writes a live file, and whether they may still do so.

A held lock is the proof of life. Where there is none, a note beside the file tells who opened it
last, `.shop.current.log.owner`, and a process id counts with the time its process began, since ids
are given again. What cannot be known counts as alive.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from foundry_log.files import locks
from foundry_log.files.documents import write_document
from foundry_log.files.filesystems import shared_kind
from foundry_log.process import host_name

_LARGEST_NOTE = 4096
_CLOCKS_DIFFER_S = 2.0  # between two looks at when a process began, and between it and its files


@dataclass(frozen=True)
class Owner:
    """A process that opened a file.

    Args:
        pid: its id.
        created: when it began, in seconds since the epoch; 0.0 where the system did not tell.
        host: name of its machine, or of its container.
        boot: what the kernel calls the time since the machine was started; "" where it does not.
            Containers of one machine have it in common.
    """

    pid: int
    created: float
    host: str
    boot: str = ""


def owner_name(path: str) -> str:
    """Return the path of the note beside the live file `path`."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.owner")


def note_owner(path: str, permissions: int) -> None:
    """Note that this process has opened the live file `path`, in place of who did before.

    Args:
        path: of the live file.
        permissions: of the note, before the umask.

    Raises:
        OSError: the note cannot be written.
    """
    try:
        created = _began(os.getpid())
    except Exception:  # psutil fails in its own ways where the system hides what it asks for
        created = None
    owner = Owner(os.getpid(), created or 0.0, host_name(), boot_id())
    write_document(Path(owner_name(path)), json.dumps(asdict(owner)).encode(), permissions)


def read_owner(path: str) -> Owner | None:
    """Return who opened the live file `path` last; None where no note of ours can be read."""
    try:
        with open(owner_name(path), "rb") as file:
            note = json.loads(file.read(_LARGEST_NOTE))
        boot = str(note["boot"]) if "boot" in note else ""
        return Owner(int(note["pid"]), float(note["created"]), str(note["host"]), boot)
    except (OSError, ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return None


def forget_owner(path: str) -> None:
    """Remove the note beside a live file that is gone, if there is one and it can be removed."""
    with contextlib.suppress(OSError):
        os.remove(owner_name(path))


def may_be_written(path: str, pid_in_name: int | None = None) -> bool:
    """Return whether a live file may still have a writer: one is alive, or nobody knows.

    A file that this process noted, and does not hold, it has closed. Nothing is raised, and nobody
    is made to wait.

    Args:
        path: of the live file.
        pid_in_name: id of the process that the file is named after, for files without a note.
    """
    if locks.in_use(path):
        return True
    owner = read_owner(path)
    try:
        if owner is not None:
            return _may_live(owner, os.path.dirname(path))
        if pid_in_name is None:
            return True
        began = _began(pid_in_name)
        return began is not None and began <= os.stat(path).st_mtime + _CLOCKS_DIFFER_S
    except Exception:  # as above; a file that is gone meanwhile is the caller's to find out
        return True


def boot_id() -> str:
    """Return the kernel's name for the time since the machine was started; "" where it has none."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def _may_live(owner: Owner, folder: str) -> bool:
    """Return whether the owner, who holds no lock that can be seen here, may write again."""
    if owner.host == host_name():
        return owner.pid != os.getpid() and _lives(owner)
    boot = boot_id()
    if not owner.boot or not boot:
        return True
    # Another host's locks cannot be seen from here, but those of a container beside this one can.
    # On a local disk another boot is one before this, which nobody has outlived.
    return owner.boot != boot and shared_kind(folder) is not None


def _lives(owner: Owner) -> bool:
    began = _began(owner.pid)
    if began is None:
        return False
    return not owner.created or abs(began - owner.created) <= _CLOCKS_DIFFER_S


def _began(pid: int) -> float | None:
    """Return when a process began, in seconds since the epoch; None where there is none.

    One that has ended and is not waited for yet writes no more, and is none.
    """
    import psutil  # 10 ms to import, and only files of other processes need it

    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        return float(process.create_time())
    except (psutil.NoSuchProcess, OverflowError, ValueError):  # or a number that is no id
        return None
