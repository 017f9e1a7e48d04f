"""Ids of messages whose work is done, though the queue does not know it."""

from __future__ import annotations

from collections.abc import Hashable


class RememberedIds:
    """A set of ids that forgets the oldest where it grows above `limit`. Used from one event loop.

    Args:
        limit: ids at most, 0 or more.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ids: dict[Hashable, None] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, message_id: Hashable | None) -> bool:
        return message_id in self._ids

    def add(self, message_id: Hashable | None) -> None:
        """Remember an id as the latest; None is nobody's."""
        if message_id is None:
            return
        self._ids.pop(message_id, None)
        self._ids[message_id] = None
        if len(self._ids) > self._limit:
            del self._ids[next(iter(self._ids))]

    def discard(self, message_id: Hashable | None) -> None:
        """Forget an id, where it is known."""
        if message_id is not None:
            self._ids.pop(message_id, None)
