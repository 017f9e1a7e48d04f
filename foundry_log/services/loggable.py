"""Exceptions as they may be logged: without secrets, and without what a prompt or a reply held.

pydantic's texts quote the values they refuse, instructor's whole replies, and openai's what a
server answered: of those what is wrong is told, and not with what.
"""

from __future__ import annotations

from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import core_schema

from foundry_log.encoding import exception_text
from foundry_log.redaction import Redactor

MAX_SHOWN = 10
"""Faults of one validation that are named."""
MAX_CHAIN = 16
"""Exceptions of one chain that are looked at."""

_redactor = Redactor()
_QUOTING = {
    "value_error",
    "assertion_error",
    "union_tag_invalid",
    "get_attribute_error",
    "mapping_type",
    "iteration_error",
}
_OWN_TEXTS = frozenset(get_args(core_schema.ErrorType)) - _QUOTING
"""Kinds of faults whose texts are pydantic's, and quote no value."""


def loggable(error: BaseException) -> BaseException:
    """Return the exception, or where its chain's texts hold what is not to be logged a stand-in.

    A stand-in has the name and the traceback of what it stands for, and stand-ins as its causes;
    members of a group stand in its text.
    """
    chain = _chain(error)
    if len(chain) < MAX_CHAIN and all(map(_is_public, chain)):
        return error
    told = {id(link): _stand_in(link) for link in chain}
    for link in chain:
        stand_in = told[id(link)]
        stand_in.__cause__ = told.get(id(link.__cause__))
        stand_in.__context__ = told.get(id(link.__context__))
        stand_in.__suppress_context__ = link.__suppress_context__
    return told[id(error)]


def public_text(error: BaseException) -> str:
    """Return an exception's text without secrets and bodies."""
    if isinstance(error, ValidationError):
        return _faults(error)
    if maker := _sdk_of(error):
        return _facts(error, maker)
    return _redactor.text(exception_text(error))


def _faults(error: ValidationError) -> str:
    faults = error.errors(include_input=False, include_url=False, include_context=False)
    shown = [
        f"{_place(fault['loc'], fault['type'])}: "
        + (fault["msg"] if fault["type"] in _OWN_TEXTS else fault["type"])
        for fault in faults[:MAX_SHOWN]
    ]
    if len(faults) > MAX_SHOWN:
        shown.append(f"and {len(faults) - MAX_SHOWN} more")
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return f"{count} in {error.title}: {'; '.join(shown)}"


def _place(path: tuple[str | int, ...], kind: str) -> str:
    """Return where a fault is: the field, and numbers behind it.

    Other names behind it may be keys that a reply made up, and so may any name of a field that is
    one too many.
    """
    shown = [part if isinstance(part, int) else "…" for part in path]
    if path and kind != "extra_forbidden" and str(path[0]).isidentifier():
        shown[0] = path[0]
    return ".".join(map(str, shown)) or "value"


def _sdk_of(error: BaseException) -> str | None:
    """Return the name of the SDK that an exception, or one of its classes, is of."""
    makers = (kind.__module__.partition(".")[0] for kind in type(error).__mro__)
    return next((maker for maker in makers if maker in ("openai", "instructor")), None)


def _facts(error: BaseException, maker: str) -> str:
    """Return what an SDK's exception has besides its text."""
    names = ("status_code", "code", "request_id", "n_attempts")
    facts = {name: getattr(error, name, None) for name in names}
    listed = [f"{name} {value}" for name, value in facts.items() if value is not None]
    return ", ".join([f"said by {maker}", *listed])


def _chain(error: BaseException) -> list[BaseException]:
    """Return the exception with its causes, contexts and members of groups, each once."""
    found: list[BaseException] = []
    ahead: list[Any] = [error]
    while ahead and len(found) < MAX_CHAIN:
        link = ahead.pop(0)
        if isinstance(link, BaseException) and not any(link is other for other in found):
            found.append(link)
            ahead += [link.__cause__, link.__context__, *_members(link)]
    return found


def _members(error: BaseException) -> tuple[BaseException, ...]:
    members = getattr(error, "exceptions", ())
    return members if isinstance(members, tuple) else ()


def _is_public(error: BaseException) -> bool:
    return not getattr(error, "__notes__", None) and public_text(error) == exception_text(error)


def _stand_in(error: BaseException) -> BaseException:
    kind = type(error)
    attributes = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    members = [f"{type(member).__name__}: {public_text(member)}" for member in _members(error)]
    text = "; ".join([public_text(error), *members])
    told: BaseException = type(kind.__name__, (Exception,), attributes)(text)
    return told.with_traceback(error.__traceback__)
