"""What a place for blobs has to do, and the words for what can go wrong there.

Four errors, each of which says what to do next:

    StoreError              the store refuses, for good: wrong address, no permission
    ├── TemporaryError      try again later: throttled, no connection, a server's fault
    ├── CorruptedError      what arrived is not what was sent: try again
    └── BlobExistsError     the name is taken; nothing was changed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from foundry_log.shipping.content import Content


class StoreError(Exception):
    """The store refuses; the text says what and why, and holds no secret."""


class TemporaryError(StoreError):
    """It may work later.

    `retry_after_s` is how many seconds the store asks to wait, None where it asks for nothing.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CorruptedError(StoreError):
    """What arrived is not what was sent."""


class BlobExistsError(StoreError):
    """The name is taken; nothing was changed."""


@dataclass(frozen=True)
class BlobFacts:
    """What the store says of a blob: its size in bytes, its MD5 if known, and its metadata."""

    size: int
    md5: bytes | None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def agree_with(self, content: Content) -> bool:
        """Return whether size and MD5 are those of a content that has been read to its end."""
        return self.size == content.size and self.md5 == content.md5


class BlobStore(Protocol):
    """A place for blobs: Azure's, or a directory. Used from one event loop.

    What every implementation guarantees, and `tests/unit/test_stores.py` holds it to:

    - A blob is there whole or not at all, also when the caller is killed or cancelled.
    - A name that is taken is never written to.
    - Memory is bounded, whatever the size of a blob.
    - Every failure is one of the four errors above, and its text holds no secret.
    """

    url: str
    """Where the blobs are, without any secret; also what tells this place from others."""

    async def open(self) -> None:
        """Make it ready, with the container or directory it needs. Idempotent.

        Raises:
            StoreError: it cannot be had; nothing is left open, and it can be tried again.
        """
        ...

    async def put_new(self, name: str, content: Content, metadata: Mapping[str, str]) -> BlobFacts:
        """Store a blob under a name that is free, and return what the store has now.

        Args:
            name: as `check_blob_name` allows it.
            content: read block by block, from its begin.
            metadata: names that are identifiers, to any text.

        Raises:
            BlobExistsError: the name is taken.
            StoreError: see there.
            OSError: the content cannot be read, or has changed.
        """
        ...

    async def facts(self, name: str) -> BlobFacts | None:
        """Return what the store says of a blob; None where there is none of that name.

        Raises:
            StoreError: see there.
        """
        ...

    async def close(self) -> None:
        """Let go of connections. Idempotent; `open` begins anew."""
        ...


def check_blob_name(name: str) -> str:
    """Return `name` if a blob may have it: a relative path that stays below its container.

    Raises:
        ValueError: it is empty or longer than 1024 characters, has an empty, `.` or `..` part, a
            part that ends in a dot or slash, a backslash, or a control character.
    """
    parts = name.split("/")
    if not name or len(name) > 1024:
        raise ValueError(f"a blob's name has 1 to 1024 characters, and {name[:40]!r} {len(name)}")
    if any(part in ("", ".", "..") or part.endswith(".") for part in parts):
        raise ValueError(
            f"{name!r} is no blob's name: none of its parts may be empty, '.' or '..', or end in a "
            "dot; use a relative path such as 'app/run.log'"
        )
    if any(letter == "\\" or not letter.isprintable() for letter in name):
        raise ValueError(f"{name!r} has a backslash or a control character; use '/' and letters")
    return name
