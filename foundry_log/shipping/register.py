"""Which files have been shipped: a small database that outlives processes and is shared by them.

A row says that a file of this identity is in the store, acknowledged, with this content and under
this name. Whatever is missing here costs a second look at the store and nothing else: blobs are
never written over.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Container
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from foundry_log.files import locks
from foundry_log.files.filesystems import shared_kind
from foundry_log.shipping.identity import Identity
from foundry_log.shipping.own_log import log

VERSION = 1
"""Of the table's form, in the database's `user_version`."""
PERMISSIONS = 0o640
_BUSY_S = 30.0
_UNSIGNED = 1 << 64

_TABLE = """
CREATE TABLE IF NOT EXISTS shipped (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- never used again, so what is new has a higher one
    destination TEXT NOT NULL,
    device INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    md5 BLOB NOT NULL,
    blob TEXT NOT NULL,
    path TEXT NOT NULL,
    shipped_at REAL NOT NULL,
    deleted_at REAL,
    UNIQUE (destination, device, inode, size, mtime_ns)
)
"""
_INDEX = "CREATE INDEX IF NOT EXISTS by_content ON shipped (destination, size, md5)"
_SAME = "destination = ? AND device = ? AND inode = ? AND size = ? AND mtime_ns = ?"
_COLUMNS = "md5, blob, path, shipped_at, deleted_at"

_Result = TypeVar("_Result")
_pack = struct.Struct("=QQqq").pack


class RegisterError(Exception):
    """The register cannot be used; the text says where it is, why, and what to do."""


@dataclass(frozen=True)
class Shipped:
    """What the register holds of a file: MD5, blob name, path, times in seconds since the epoch."""

    md5: bytes
    blob: str
    path: str
    shipped_at: float
    deleted_at: float | None = None


class Register:
    """The files that have reached one destination. Thread-safe; shared by any number of processes.

    What `add` has returned from survives the process; a loss of power may take the last rows. A
    damaged database is set aside as `….damaged-<time>`, with a warning, and begun anew. Asking
    whether a file is done is a look into a set in memory, some 100 bytes a row. It belongs to the
    process that made it, not to its forked children.

    Args:
        path: of the database, which is made if missing; on a local file system. Where others
            refuse or break SQLite's WAL mode, it works without.
        destination: the store's URL, without secrets. Rows of other destinations are not seen.

    Raises:
        RegisterError: it cannot be made, read or written there, or is of a newer version.
    """

    def __init__(self, path: str, destination: str) -> None:
        self.path = path
        self.destination = destination
        self._lock = threading.RLock()  # guards what follows
        self._done: set[bytes] = set()
        self._sizes: set[int] = set()
        self._last_id = 0
        self._seen_version: tuple[int] | None = None
        self._place: tuple[int, int] | None = None
        self._database = self._opened()
        self.refresh()

    def is_done(self, identity: Identity) -> bool:
        """Return whether a file of this identity was shipped, as of the last `refresh`."""
        return _pack(*identity) in self._done

    def may_know(self, size: int) -> bool:
        """Return whether a content of this size was shipped, so that hashing a file may tell more.

        Empty files are all the same, and never taken for each other.
        """
        return size > 0 and size in self._sizes

    def row(self, identity: Identity) -> Shipped | None:
        """Return what is known of the file, None where it was not shipped."""
        return self._row(_SAME, *_signed(identity))

    def with_content(self, size: int, md5: bytes) -> Shipped | None:
        """Return what is known of a file with this content that was moved, or written to since.

        None where there is none: one that is there still has a copy, which is a file of its own.
        """
        if size == 0:
            return None
        rows = self._run(
            lambda database: database.execute(
                f"SELECT device, inode, size, mtime_ns, {_COLUMNS} FROM shipped "
                "WHERE destination = ? AND size = ? AND md5 = ? ORDER BY id DESC",
                (self.destination, size, md5),
            ).fetchall()
        )
        for *identity, digest, blob, path, shipped_at, deleted_at in rows:
            if _identity_at(path) != _unsigned(identity):
                return Shipped(digest, blob, path, shipped_at, deleted_at)
        return None

    def add(self, identity: Identity, shipped: Shipped) -> None:
        """Note that the store has acknowledged a file. A row that is there stays as it is."""
        path = os.fsencode(shipped.path).decode("utf-8", "backslashreplace")
        values = (self.destination, *_signed(identity), shipped.md5, shipped.blob, path)
        self._run(
            lambda database: database.execute(
                "INSERT OR IGNORE INTO shipped (destination, device, inode, size, mtime_ns, md5, "
                "blob, path, shipped_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, shipped.shipped_at),
            )
        )
        with self._lock:
            self._remember(identity)

    def note_deleted(self, identity: Identity, seconds: float) -> None:
        """Note when the local file was deleted, in seconds since the epoch."""
        self._run(
            lambda database: database.execute(
                f"UPDATE shipped SET deleted_at = ? WHERE {_SAME}",
                (seconds, self.destination, *_signed(identity)),
            )
        )

    def refresh(self) -> None:
        """Learn of what other monitors have added since; of a database that was replaced, all."""
        with self._lock:
            if _place(self.path) != self._place:
                self._reopen()
            version = self._run(lambda database: database.execute("PRAGMA data_version").fetchone())
            if version == self._seen_version:  # nobody else has changed it
                return
            self._seen_version = version
            rows = self._run(
                lambda database: database.execute(
                    "SELECT id, device, inode, size, mtime_ns FROM shipped "
                    # The sign keeps SQLite from the other index, by which it would read all rows.
                    "WHERE +destination = ? AND id > ? ORDER BY id",
                    (self.destination, self._last_id),
                ).fetchall()
            )
            for number, *identity in rows:
                self._remember(_unsigned(identity))
                self._last_id = number

    def prune(self, older_than: float, seen: Container[Identity]) -> int:
        """Forget files that are gone; return how many.

        A row goes when it was added before `older_than`, the last scan has not seen its file, and
        that does not stand under its path either.

        Args:
            older_than: seconds since the epoch.
            seen: identities of the files that are known to be there.
        """
        rows = self._run(
            lambda database: database.execute(
                "SELECT id, path, device, inode, size, mtime_ns FROM shipped "
                "WHERE destination = ? AND shipped_at < ?",
                (self.destination, older_than),
            ).fetchall()
        )
        gone = [
            (number,)
            for number, path, *identity in rows
            if (known := _unsigned(identity)) not in seen and _identity_at(path) != known
        ]
        if gone:
            self._run(lambda db: db.executemany("DELETE FROM shipped WHERE id = ?", gone))
            with self._lock:
                self._forget_all()
                self.refresh()
        return len(gone)

    def close(self) -> None:
        """Let go of the database. Idempotent."""
        with self._lock:
            self._database.close()

    def _remember(self, identity: Identity) -> None:
        self._done.add(_pack(*identity))
        self._sizes.add(identity.size)

    def _forget_all(self) -> None:
        self._done.clear()
        self._sizes.clear()
        self._last_id = 0
        self._seen_version = None

    def _row(self, where: str, *values: object) -> Shipped | None:
        row = self._run(
            lambda database: database.execute(
                f"SELECT {_COLUMNS} FROM shipped WHERE {where}", (self.destination, *values)
            ).fetchone()
        )
        return None if row is None else Shipped(*row)

    def _run(self, action: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Do something in a transaction of its own; a damaged database is replaced first."""
        with self._lock:
            try:
                with self._database:
                    return action(self._database)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise RegisterError(f"the register {self.path} fails: {error}") from error
            self._reopen()
            with self._database:
                return action(self._database)

    def _reopen(self) -> None:
        self._database.close()
        self._forget_all()
        self._database = self._opened()

    def _opened(self) -> sqlite3.Connection:
        """Open the database, one process at a time: setting one aside must not meet another."""
        try:
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
            with locks.exclusive_file(f"{self.path}.lock", PERMISSIONS, timeout_s=_BUSY_S):
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, PERMISSIONS))
                try:
                    database = _connect(self.path)
                except sqlite3.DatabaseError as error:
                    if not _is_damage(error):
                        raise
                    _set_aside(self.path, error)
                    os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, PERMISSIONS))
                    database = _connect(self.path)
                self._place = _place(self.path)
                return database
        except (OSError, sqlite3.Error) as error:
            raise RegisterError(
                f"register={self.path!r} cannot be used ({error}); it must be a file that can be "
                "made and written, on a local disk: pass register='…/shipping.sqlite'"
            ) from error


def _connect(path: str) -> sqlite3.Connection:
    """Return a connection to the database, sound and with its table.

    Raises:
        sqlite3.Error: it is damaged, or cannot be used.
        RegisterError: it is of a newer version.
    """
    database = sqlite3.connect(path, timeout=_BUSY_S, check_same_thread=False)
    try:
        found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise _Damaged(found)
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise RegisterError(
                f"register={path!r} is of version {version}, and this foundry_log reads up to "
                f"{VERSION}; update it, or pass another register"
            )
        wal = "DELETE" if shared_kind(os.path.dirname(path)) else "WAL"
        with suppress(sqlite3.OperationalError):  # where it is refused, the journal serves as well
            database.execute(f"PRAGMA journal_mode={wal}")
        database.execute("PRAGMA synchronous=NORMAL")
        with database:
            database.execute(_TABLE)
            database.execute(_INDEX)
            database.execute(f"PRAGMA user_version={VERSION}")
    except BaseException:
        database.close()
        raise
    return database


class _Damaged(sqlite3.DatabaseError):
    """The check of the database has found something."""


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Return whether the file is at fault: SQLite has the base class for it, and no other."""
    return type(error) in (sqlite3.DatabaseError, _Damaged)


def _set_aside(path: str, error: sqlite3.DatabaseError) -> None:
    """Rename a damaged database; its log first, which the next one would take for its own."""
    kept = f"{path}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    for suffix in ("-wal", "-shm", "-journal", ""):
        with suppress(FileNotFoundError):
            os.replace(path + suffix, kept + suffix)
    log.warning(
        "the register %s is damaged (%s); it is kept as %s and begun anew: files that were shipped "
        "are compared with the store once more",
        path,
        error,
        os.path.basename(kept),
    )


def _place(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _identity_at(path: str) -> Identity | None:
    try:
        return Identity.of(os.lstat(path))
    except OSError:
        return None


def _signed(identity: Identity) -> list[int]:
    """Return the numbers as SQLite can hold them: some file systems' inodes have 64 bits."""
    return [number - _UNSIGNED if number >= _UNSIGNED >> 1 else number for number in identity]


def _unsigned(numbers: list[int]) -> Identity:
    device, inode, size, mtime_ns = numbers
    return Identity(device % _UNSIGNED, inode % _UNSIGNED, size, mtime_ns)
