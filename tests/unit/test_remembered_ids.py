"""Ids of messages whose work is done: bounded, the oldest forgotten first."""

from __future__ import annotations

import pytest

from foundry_log.services.remembered_ids import RememberedIds

pytestmark = pytest.mark.unit


def test_what_was_added_is_known_until_it_is_discarded() -> None:
    """A set, as far as that."""
    ids = RememberedIds(10)
    ids.add("a")
    assert "a" in ids
    assert "b" not in ids
    ids.discard("a")
    ids.discard("b")
    assert "a" not in ids


def test_the_oldest_is_forgotten_above_the_limit() -> None:
    """One that was added again counts as new."""
    ids = RememberedIds(2)
    for message_id in ("a", "b", "a", "c"):
        ids.add(message_id)
    assert [message_id for message_id in "abc" if message_id in ids] == ["a", "c"]


def test_any_number_of_ids_keeps_to_the_limit() -> None:
    """Memory does not grow with the messages."""
    ids = RememberedIds(100)
    for number in range(10_000):
        ids.add(str(number))
    assert len(ids) == 100


def test_no_id_is_nobodys() -> None:
    """Messages without an id are not taken for each other."""
    ids = RememberedIds(2)
    ids.add(None)
    ids.discard(None)
    assert None not in ids
    assert len(ids) == 0


def test_a_limit_of_none_remembers_nothing() -> None:
    """It can be turned off."""
    ids = RememberedIds(0)
    ids.add("a")
    assert "a" not in ids
