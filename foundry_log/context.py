"""Fields bound to a stretch of code: every record logged inside carries them.

    with bound(step=3):
        logging.getLogger("data").info("batch loaded")     # context: {"step": 3}

Where a name is given more than once, the nearest to the call wins:

    call  >  scope (`bound`)  >  adapter (`StructuredLogger.context`)  >  configuration
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from foundry_log.decorating import Function, run_inside

_EMPTY: Mapping[str, Any] = {}


class _Scope:
    """One link of the chain of scopes, with the fields of all links up to it merged."""

    __slots__ = ("fields", "merged", "owner", "parent")

    def __init__(self, fields: Mapping[str, Any], parent: _Scope | None, owner: bound) -> None:
        self.fields = fields
        self.parent = parent
        self.owner = owner
        self.merged: dict[str, Any] = {**parent.merged, **fields} if parent else dict(fields)


_innermost: ContextVar[_Scope | None] = ContextVar("foundry_log_scope", default=None)


class bound:  # noqa: N801 - read as a verb phrase: `with bound(step=3):`
    """Bind `fields` to the enclosed code: a context manager, and a decorator of any function.

    Scopes nest; the inner one wins. They follow contextvars: each thread and each asyncio task has
    its own, and a task starts with those of the code that created it. A thread starts with none
    (run it through `contextvars.copy_context().run` to hand them on).

    A scope may be left in any order, as generators that are advanced by turns do, or in another
    context, as a generator does that is closed by the garbage collector or by the event loop: it
    takes its own fields away and no others. While a generator is suspended inside a scope, the code
    that advances it is inside too; contextvars know no difference.

    One object may be entered any number of times, also by several threads and tasks at once.
    """

    def __init__(self, /, **fields: Any) -> None:
        self._fields = fields

    def __enter__(self) -> bound:
        _innermost.set(_Scope(self._fields, _innermost.get(), self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _innermost.set(_without(_innermost.get(), self))

    def __call__(self, function: Function) -> Function:
        """Return the function so that each call runs inside the fields."""
        return run_inside(lambda: bound(**self._fields), function)


def bound_fields() -> Mapping[str, Any]:
    """Return the fields of all scopes around the caller; not to be changed."""
    scope = _innermost.get()
    return _EMPTY if scope is None else scope.merged


def _without(innermost: _Scope | None, owner: bound) -> _Scope | None:
    """Return the chain without the innermost scope of `owner`; unchanged where it has none."""
    inside: list[_Scope] = []
    scope = innermost
    while scope is not None and scope.owner is not owner:
        inside.append(scope)
        scope = scope.parent
    if scope is None:
        return innermost
    chain = scope.parent
    for link in reversed(inside):
        chain = _Scope(link.fields, chain, link.owner)
    return chain
