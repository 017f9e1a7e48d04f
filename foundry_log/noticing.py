"""Classes that notice when somebody replaces a method of theirs, as tests and tracers do."""

from __future__ import annotations

from abc import ABCMeta
from typing import Any

replaced: set[tuple[type, str]] = set()
"""Class and name of what is not as this package has made it, at the moment."""

_ABSENT = object()


class Noticing(ABCMeta):
    """The metaclass of classes whose methods may be passed by, where nobody could tell.

    It is one of abstract classes, so that a subclass may be abstract as well. Subclasses of others
    are not watched: what they are is known from their type.
    """

    def __init__(
        cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any
    ) -> None:
        super().__init__(name, bases, namespace, **options)
        type.__setattr__(cls, "_made_of", dict(namespace))

    def __setattr__(cls, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        cls._note(name, value)

    def __delattr__(cls, name: str) -> None:
        super().__delattr__(name)
        cls._note(name, _ABSENT)

    def _note(cls, name: str, value: Any) -> None:
        if name.startswith("_") or not cls.__module__.startswith("foundry_log"):
            return
        made_of: dict[str, Any] = cls.__dict__["_made_of"]
        if made_of.get(name, _ABSENT) is value:
            replaced.discard((cls, name))
        else:
            replaced.add((cls, name))
