"""The handlers behind a handler, as configurations name them."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Sequence
from typing import Any


class Targets:
    """Handlers, found by name where a configuration gave names.

    `dictConfig` makes handlers in the order of their names, so those that are meant may not exist
    yet. What it passes is a list that knows its configurator, and that has each handler in the end.

    Raises:
        TypeError: something is neither handler nor name.
        ValueError: there is none, or a name is no handler's.
    """

    def __init__(
        self, given: Sequence[logging.Handler | str] | logging.Handler, owner: logging.Handler
    ) -> None:
        if not isinstance(given, (logging.Handler, str, Iterable)):
            raise TypeError(f"handlers={given!r} is no list; pass handlers or their names")
        listed = [given] if isinstance(given, (logging.Handler, str)) else list(given)
        if not listed:
            raise ValueError("handlers is empty; name the handlers that are to write")
        self._found: tuple[logging.Handler, ...] | None = None
        self._listed = listed
        self._owner = weakref.ref(owner)
        configurator: Any = getattr(given, "configurator", None)
        self._known: Any = configurator.config["handlers"] if configurator else None
        for each in listed:
            self._check(each)
        if self._known is None:
            self.resolved()

    def resolved(self) -> tuple[logging.Handler, ...]:
        """Return the handlers, looking for the names once.

        Raises:
            ValueError: the configuration has ended and a name is still no handler's.
        """
        if self._found is None:
            known = self._known  # once: another thread may be here too
            self._found = tuple(self._of_name(each, known) for each in self._listed)
            if known is not None:
                self._known = None
                # `logging.shutdown` closes the youngest first: the owner before what it writes to.
                logging._addHandlerRef(self._owner())  # type: ignore[attr-defined]
        return self._found

    def _check(self, each: Any) -> None:
        if isinstance(each, logging.Handler):
            return
        if not isinstance(each, str):
            raise TypeError(f"{each!r} is no handler; pass a logging.Handler or a handler's name")
        if (each if self._known is None else self._known.get(each)) is None:
            raise ValueError(
                f"there is no handler {each!r}; this configuration has {', '.join(self._known)}"
            )

    def _of_name(self, each: logging.Handler | str, known: Any) -> logging.Handler:
        if isinstance(each, logging.Handler):
            return each
        found = _registered(each) if known is None else known[each]
        if not isinstance(found, logging.Handler):
            raise ValueError(  # noqa: TRY004 - the name is of the right type
                f"there is no handler {each!r} yet; make it, and give it that name, before the "
                "BackgroundHandler: in an ini file list it before"
            )
        return found


def _registered(name: str) -> Any:
    by_name: Any = getattr(logging, "getHandlerByName", None)  # Python 3.12
    return by_name(name) if by_name else logging._handlers.get(name)  # type: ignore[attr-defined]
