"""Classes that notice when a method of theirs is replaced: what, and for how long."""

from __future__ import annotations

import abc
import logging
from typing import Any

import pytest

from foundry_log import ContextFilter, JsonFormatter, RotatingJsonlHandler
from foundry_log.noticing import replaced

pytestmark = pytest.mark.unit

CLASSES = [RotatingJsonlHandler, JsonFormatter, ContextFilter]


def mine(*_: Any, **__: Any) -> bool:
    return True


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("name", ["format", "filter", "handleError", "something_new"])
def test_a_method_counts_as_replaced_until_it_is_put_back(
    kind: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own, an inherited one, or one that was not there."""
    before = set(replaced)
    with monkeypatch.context() as patch:
        patch.setattr(kind, name, mine, raising=False)
        assert replaced == {*before, (kind, name)}
        patch.setattr(kind, name, lambda: None)
    assert replaced == before


def test_what_is_private_or_the_interpreters_does_not_count() -> None:
    """The package's public names have their home set so."""
    before = set(replaced)
    JsonFormatter.__module__ = str(JsonFormatter.__module__)

    assert replaced == before


def test_a_subclass_of_others_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its type says that it is none of the package's; and it may be abstract."""

    class Base(abc.ABC):
        @abc.abstractmethod
        def where(self) -> str:
            """Say where."""

    class Mine(JsonFormatter, Base):
        def where(self) -> str:
            return "here"

    before = set(replaced)
    monkeypatch.setattr(Mine, "format", lambda self, record: "mine")

    assert replaced == before
    assert Mine().format(logging.makeLogRecord({})) == "mine"
    assert not Mine().is_direct
