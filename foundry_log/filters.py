"""Filters that add to a record, or take secrets out of it, and let all of them through."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from foundry_log.context import bound_fields
from foundry_log.encoding import encode_plain, to_plain
from foundry_log.noticing import Noticing
from foundry_log.records import (
    CONTEXT,
    ENTRY,
    EXCEPTION,
    MESSAGE,
    RESERVED,
    TEXT,
    exception_of,
    message_of,
)
from foundry_log.redaction import REPLACEMENT, Redactor


class ContextFilter(logging.Filter, metaclass=Noticing):
    """Gives records the fields of the configuration, below all others, and keeps their scopes.

    Put it on a handler (`to_dict_config` does) or on a logger. On a `QueueHandler` it is what
    carries the fields of `bound` to the thread that formats. The fields stay on the record for the
    handlers that come after.

    Args:
        fields: name to value; reduced to plain JSON values once, here.
        name: as in `logging.Filter`: only records of this logger and its children are touched.
    """

    def __init__(self, fields: Mapping[str, Any] | None = None, name: str = "") -> None:
        super().__init__(name)
        self.fields: dict[str, Any] = to_plain(dict(fields or {}))
        self.is_direct = type(self) is ContextFilter and not name

    is_direct: bool
    """Whether all that `filter` does is to put `fields` below the context."""

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name != "is_direct":
            object.__setattr__(self, "is_direct", False)

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; always True."""
        if self.nlen == 0 or super().filter(record):
            known = record.__dict__.get(CONTEXT)
            if known is None:
                known = to_plain(dict(bound_fields()))
            elif type(known) is not dict:
                return True  # an `extra` that took our name: it is context like any other
            elif known.keys() >= self.fields.keys():
                return True  # by the handler before, as a rule
            record.__dict__[CONTEXT] = {**self.fields, **known}
        return True


class RedactingFilter(logging.Filter):
    """Takes secrets out of records: message, arguments, context, exception and stack.

    Put it on each handler, behind a `ContextFilter`; a logger's filters do not see the records of
    its children. It changes the record itself, so handlers that come after get it without secrets
    too, with or without this filter. A record is looked at once, unless something changed it since.

    Exceptions whose text or traceback holds a secret become data and text, and `exc_info` None.
    Names of loggers, files, threads and fields stay as they are. Filtering never raises; a record
    that cannot be checked is emptied but for a note. Safe from any thread.

    Args:
        keys, patterns, replacement: as in `foundry_log.redaction.Redactor`; in a configuration one
            text stands for a list of one.

    Raises:
        TypeError, ValueError: as `Redactor` does.
    """

    is_used = False
    """Whether this process has made one."""

    def __init__(
        self,
        keys: Iterable[str] = (),
        patterns: Iterable[str] = (),
        *,
        replacement: str = REPLACEMENT,
    ) -> None:
        super().__init__()
        self.redactor = Redactor(keys, patterns, replacement=replacement)
        RedactingFilter.is_used = True

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the record in place; always True."""
        try:
            if not self._is_done(record):
                self._redact(record)
        except Exception as error:
            _empty(record, f"{self.redactor.replacement} ({type(error).__name__} on redacting)")
        return True

    def _redact(self, record: logging.LogRecord) -> None:
        fields = record.__dict__
        fields.pop(_MARK, None)
        if not self._is_clean(record):
            is_context_new = self._redact_context(fields)
            self._redact_attributes(fields)
            self._redact_exception(record)
            self._redact_message(record, is_context_new)
        fields[_MARK] = (self.redactor.rules, *_state(fields))

    def _is_done(self, record: logging.LogRecord) -> bool:
        """Whether these rules have seen the record and nothing has replaced a part of it since."""
        mark = record.__dict__.get(_MARK)
        if type(mark) is not tuple or not mark or mark[0] != self.redactor.rules:
            return False
        return all(known is now for known, now in zip(mark[1:], _state(record.__dict__)))  # noqa: B905

    def _is_clean(self, record: logging.LogRecord) -> bool:
        """Whether a glance shows an ordinary record without a secret, as most are."""
        fields = record.__dict__
        if any(map(fields.get, _BESIDES)):
            return False
        context = fields.get(CONTEXT)
        context = bound_fields() if context is None else context
        if type(context) is not dict or type(record.msg) is not str:
            return False
        if not RESERVED.issuperset(fields):
            extra = {name: value for name, value in fields.items() if name not in RESERVED}
            if not self.redactor.is_clean(extra, ()):
                return False
        if (TEXT in fields or MESSAGE in fields) and not _is_structured(fields):
            return False
        args = () if record.args is None else record.args
        if type(args) is not tuple or not _SCALARS.issuperset(map(type, args)):
            return False
        texts = [arg for arg in args if type(arg) is str]
        return self.redactor.is_clean(context, [*texts, *message_of(record)])

    def _redact_context(self, fields: dict[str, Any]) -> bool:
        """Redact the context, scopes included; whether there was something to redact."""
        known = fields.get(CONTEXT)
        if known is None:
            plain = to_plain(dict(bound_fields()))
        elif type(known) is dict:
            plain = to_plain(known)
        else:  # an `extra` that took our name
            plain = to_plain({**bound_fields(), CONTEXT: known})
        clean = self.redactor.value(plain)
        if clean is plain:
            return False
        fields[CONTEXT] = clean
        return True

    def _redact_attributes(self, fields: dict[str, Any]) -> None:
        """Redact what `extra` or another filter has put on the record."""
        if not RESERVED.issuperset(fields):
            for name, value in fields.items():
                if name not in RESERVED:
                    plain = value if type(value) in _SCALARS else to_plain(value)
                    if self.redactor.is_secret(name, plain):
                        fields[name] = self.redactor.replacement
                    else:
                        fields[name] = self._unless_same(value, plain)
        if ENTRY in fields:
            fields[ENTRY] = self._clean(fields[ENTRY])

    def _redact_exception(self, record: logging.LogRecord) -> None:
        fields = record.__dict__
        if EXCEPTION in fields:
            fields[EXCEPTION] = self._clean(fields[EXCEPTION])
        elif record.exc_info:
            data = exception_of(record)
            clean = self.redactor.value(data)
            if clean is not data:
                fields[EXCEPTION] = clean
                fields["exc_text"] = record.exc_text or clean["traceback"]
                fields["exc_info"] = None
        for name in ("exc_text", "stack_info"):
            if fields.get(name):
                fields[name] = self._clean(fields[name])

    def _redact_message(self, record: logging.LogRecord, is_context_new: bool) -> None:
        fields = record.__dict__
        if issubclass(type(record.msg), dict):
            record.msg = self._clean(record.msg)
        message, behind = message_of(record)
        args = self._clean_args(record.args)
        if args is not record.args:
            shown = copy.copy(record)  # its class may format otherwise than the stdlib's
            shown.args = args
            message, behind = message_of(shown)
        clean, clean_behind = self.redactor.text(message), self.redactor.text(behind)
        is_new = args is not record.args or clean is not message or clean_behind is not behind
        if _is_structured(fields):
            if is_new or is_context_new:
                _set_structured(fields, clean, clean_behind)
        elif is_new:
            record.msg, record.args = clean, None
        if not _is_structured(fields):  # theirs is not shown; it travels with the record
            for name in (MESSAGE, TEXT):
                if name in fields:
                    fields[name] = self._clean(fields[name])
        if is_new and "message" in fields:  # a formatter's that came before
            fields["message"] = clean

    def _clean_args(self, args: Any) -> Any:
        if type(args) is not tuple:
            return self._clean_arg(args)
        clean = tuple(map(self._clean_arg, args))
        return args if all(new is old for new, old in zip(clean, args)) else clean  # noqa: B905

    def _clean_arg(self, value: Any) -> Any:
        """Return an argument without secrets; objects that are no containers show as text later."""
        kind = type(value)
        if kind is str or issubclass(kind, _CONTAINERS):
            return self._clean(value)
        return value

    def _clean(self, value: Any) -> Any:
        return self._unless_same(value, value if type(value) in _SCALARS else to_plain(value))

    def _unless_same(self, value: Any, plain: Any) -> Any:
        """Return the plain form without its secrets, or the value itself if it holds none."""
        clean = self.redactor.value(plain)
        return value if clean is plain else clean


_MARK = "_foundry_redacted"
_BESIDES = ("exc_info", "exc_text", "stack_info", EXCEPTION, ENTRY)
_SCALARS = frozenset({str, int, float, bool, type(None)})
_STANDARD = RESERVED - {MESSAGE, TEXT, EXCEPTION, "message"}
_CONTAINERS = (Mapping, list, tuple, set, frozenset)


def _state(fields: dict[str, Any]) -> tuple[Any, ...]:
    """Return the parts of a record that filters and formatters replace, and how many it has."""
    count = len(fields) - ("message" in fields) - ("asctime" in fields) - (_MARK in fields)
    return fields.get("msg"), fields.get(CONTEXT), fields.get("exc_text"), count


def _is_structured(fields: dict[str, Any]) -> bool:
    """Whether the two attributes of the message count; see `message_of`."""
    text, message = fields.get(TEXT), fields.get(MESSAGE)
    shown = fields.get("msg")
    if type(text) is not str or type(message) is not str or not isinstance(shown, str):
        return False
    return shown == text or shown.startswith(text + "\n")


def _set_structured(fields: dict[str, Any], message: str, behind: str) -> None:
    """Give the record a new message, and a text that has the context as it is now."""
    text = message
    if fields[TEXT] != fields[MESSAGE]:
        context = fields.get(CONTEXT)
        text = encode_plain({"message": message, "context": context}).decode()
    fields.update({MESSAGE: message, TEXT: text, "args": None})
    fields["msg"] = f"{text}\n{behind}" if behind else text


def _empty(record: logging.LogRecord, note: str) -> None:
    """Leave nothing on the record but its stdlib attributes and a note."""
    fields = record.__dict__
    for name in [name for name in fields if name not in _STANDARD]:
        del fields[name]
    fields.update(msg=note, args=None, exc_info=None, exc_text=None, stack_info=None)
    fields[CONTEXT] = {}  # not the scopes either
    fields[ENTRY] = {"message": note}
