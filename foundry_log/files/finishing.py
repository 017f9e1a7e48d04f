"""What is done with a file once it is rotated: compression, and telling somebody's function.

It runs on a thread, beside the writers, and a kill at any moment leaves it to the next process: a
rotated file gets a *marker* before it gets its name, and loses it when everything is done. Who
finishes a file holds a lock on its marker, which the kernel releases when the holder dies. A file
that a slow writer still has open is left for later.

Compression writes a hidden file, renames it to `<name>.gz` when it is complete on the device, and
removes the original last; a reader that finds both takes one.
"""

from __future__ import annotations

import gzip
import os
import shutil
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress

from foundry_log.files import filenames, locks

_AGAIN_AFTER_S = 10.0
_AGAIN_AT_MOST_S = 300.0
_LEVEL = 6
_BLOCK = 1 << 20

Hook = Callable[[str], object]
Report = Callable[[str], None]

_finishers: weakref.WeakSet[Finisher] = weakref.WeakSet()


class Finisher:
    """Finishes the rotated files of live files. Thread-safe; process-safe on one host.

    Args:
        paths: returns the paths of the live files.
        compress: replace each rotated file by its gzip.
        hook: called with the path of each rotated file, compressed if it was to be. Called again,
            by this process or another, where it raised or was killed: at least once in all.
        report: called with what could not be done, in the `except` clause.
        permissions: of markers, before the umask.
    """

    def __init__(
        self,
        paths: Callable[[], list[str]],
        *,
        compress: bool,
        hook: Hook | None,
        report: Report,
        permissions: int = 0o640,
    ) -> None:
        self._paths = paths
        self._compress = compress
        self._hook = hook
        self._report = report
        self._permissions = permissions
        self._start_fresh()
        _finishers.add(self)

    def _start_fresh(self) -> None:
        """Begin without a thread: a new finisher, or that of a forked child."""
        self._changed = threading.Condition(threading.RLock())  # guards what follows
        self._thread: threading.Thread | None = None
        self._is_wanted = False  # there may be marked files that were not looked at
        self._is_closing = False

    def mark(self, rotated: str) -> None:
        """Note that the file which is about to be named `rotated` is to be finished.

        The caller holds the rotation's lock.

        Raises:
            OSError: the marker cannot be made.
        """
        flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        os.close(os.open(filenames.marker_name(rotated), flags, self._permissions))

    def start_if_marked(self) -> None:
        """Finish the marked files if there are some."""
        if self._marked() != []:
            self.start()

    def start(self) -> None:
        """Finish the marked files, on a thread; return at once."""
        with self._changed:
            self._is_wanted = True
            self._is_closing = False
            self._changed.notify_all()
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(
                    target=self._work, name="foundry_log-finishing", daemon=True
                )
                self._thread = thread
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is ending: the next process goes on
                    self._thread = None

    def close(self, timeout_s: float) -> None:
        """End the thread once it has looked at every marked file; wait `timeout_s` at the most."""
        with self._changed:
            thread = self._thread
            self._is_closing = True
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def is_unfinished(self, rotated: str) -> bool:
        """Return whether there is work left on the file."""
        name = rotated.removesuffix(filenames.compressed_name(""))
        return os.path.exists(filenames.marker_name(name))

    def _work(self) -> None:
        """Look at the marked files when asked to, and later again at those that are not done."""
        pause_s = _AGAIN_AFTER_S
        while True:
            with self._changed:
                self._is_wanted = False
            is_done = self._finish_all()
            with self._changed:
                if not (is_done or self._is_wanted or self._is_closing):
                    self._changed.wait(pause_s)
                    pause_s = min(2 * pause_s, _AGAIN_AT_MOST_S)
                    continue
                if not self._is_wanted:
                    self._thread = None
                    return
            pause_s = _AGAIN_AFTER_S

    def _marked(self) -> list[tuple[str, str]] | None:
        """Return live file and rotated file of each marker; None if they cannot be listed."""
        try:
            lives = self._paths()
            return [(live, rotated) for live in lives for rotated in filenames.marked_files(live)]
        except OSError:
            self._report("listing rotated files")
            return None

    def _finish_all(self) -> bool:
        """Return whether no marked file is left."""
        marked = self._marked()
        is_done = marked is not None
        for live, rotated in marked or ():
            try:
                is_done &= self._finish(live, rotated)
            except BaseException:  # of somebody's function too: an exit would end the thread alone
                self._report(f"finishing {rotated}")
                is_done = False
        return is_done

    def _finish(self, live: str, rotated: str) -> bool:
        """Return whether the file needs no further look by this process."""
        marker = filenames.marker_name(rotated)
        with locks.try_exclusive_file(marker) as descriptor:
            if descriptor is None:
                return not os.path.exists(marker)  # another process is at it, and may be killed
            if not _is_at(marker, descriptor):
                return True  # that one has just finished
            compressed = filenames.compressed_name(rotated)
            if os.path.exists(rotated) and not self._is_settled(rotated, compressed):
                return False
            present = [name for name in (rotated, compressed) if os.path.exists(name)]
            if not present:
                return self._forget(live, rotated, marker)
            if self._hook is not None:
                self._hook(present[0])
            os.remove(marker)
        return True

    def _is_settled(self, rotated: str, compressed: str) -> bool:
        """Return whether nobody writes the file any more; compress it if that is asked for."""
        if not self._compress:
            return not locks.in_use(rotated)
        with locks.try_exclusive_file(rotated) as descriptor:
            if descriptor is None:
                return not os.path.exists(rotated)
            compress(rotated, compressed)
        return True

    def _forget(self, live: str, rotated: str, marker: str) -> bool:
        """Remove the marker of a file that is gone; under the lock, it may be about to come."""
        with locks.exclusive_file(filenames.lock_name(live), self._permissions):
            if os.path.exists(rotated):
                return False
            os.remove(marker)
            with suppress(OSError):
                os.remove(_part(filenames.compressed_name(rotated)))
        return True


def compress(path: str, compressed: str) -> None:
    """Replace `path` by its gzip `compressed`, with the same permissions and time of change.

    Killed at any moment it leaves the original, the gzip or both, each whole.

    Raises:
        OSError: the gzip cannot be written; the original stands.
    """
    part = _part(compressed)
    try:
        with locks.noted_file(path, "rb") as source, locks.noted_file(part, "wb") as target:
            status = os.fstat(source.fileno())
            os.chmod(part, status.st_mode & 0o7777)
            with gzip.GzipFile(
                os.path.basename(path), "wb", _LEVEL, target, mtime=status.st_mtime
            ) as packed:
                shutil.copyfileobj(source, packed, _BLOCK)
            target.flush()
            os.fsync(target.fileno())
        os.utime(part, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.replace(part, compressed)
    except OSError:
        if os.path.exists(part):
            os.remove(part)
        raise
    os.remove(path)


def _part(compressed: str) -> str:
    folder, name = os.path.split(compressed)
    return os.path.join(folder, f".{name}.part")


def _is_at(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _start_fresh_after_fork() -> None:
    for finisher in list(_finishers):
        finisher._start_fresh()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_fresh_after_fork)
