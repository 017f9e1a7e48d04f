"""StructuredLogger: a logger's adapter whose keywords are context."""

from __future__ import annotations

import logging
import operator
import sys
from collections.abc import Mapping
from logging import DEBUG, INFO
from types import TracebackType
from typing import TYPE_CHECKING, Any

from foundry_log.context import bound_fields
from foundry_log.encoding import to_plain
from foundry_log.exception_data import ExcInfo, exc_info_of
from foundry_log.handlers.direct import ATTRIBUTES, hand_over, takers
from foundry_log.process import base_context
from foundry_log.records import TEXT, formatted, structured, unpacked

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter  # no subscript at run time before Python 3.11


class StructuredLogger(_Adapter):
    """Logs messages whose keyword arguments are context, over fields that every record carries.

        log = StructuredLogger("train", config)
        log.info("Step done", step=100, loss=2.5)

    A record's text is the JSON of `{"message", "context"}` (the bare message with
    `use_structured_logging=False`); `JsonFormatter` writes message and context as fields. Context
    of the call wins over that of scopes (`bound`), and that over `self.context`. Any name is legal,
    `message`, `level` and `self` too, but for the four that the stdlib's methods have: `exc_info`,
    `stack_info`, `stacklevel` and `extra`, whose fields become context as well.

    It touches neither levels nor handlers. Logging never raises: arguments that do not fit the
    message are shown behind it, values without a JSON form by their `repr`. Thread-safe, but for
    changes of the context while others log.

    Args:
        name: of the stdlib logger that it adapts, `self.logger`.
        config: an ExperimentConfig, or any object with `experiment_name`; its `training.device` and
            `logging.use_structured_logging` count where they are there.

    Raises:
        TypeError: `config` has no `experiment_name`.

    Attributes:
        context: this adapter's own dict, at first `experiment`, `git_hash` and `device` (and rank
            and host under a distributed launcher).
    """

    def __init__(self, name: str, config: Any) -> None:
        experiment = getattr(config, "experiment_name", None)
        if experiment is None:
            raise TypeError(
                f"a StructuredLogger needs a configuration with experiment_name, not "
                f"{type(config).__name__}; pass ExperimentConfig(experiment_name=…, logging=…)"
            )
        training = getattr(config, "training", None)
        settings = getattr(config, "logging", None)
        self.context = base_context(experiment, getattr(training, "device", None))
        super().__init__(logging.getLogger(name), self.context)
        self._as_json = getattr(settings, "use_structured_logging", True) is not False

    # The two levels that are often off look at what the logger knows before they call anything: a
    # call that is not logged is to cost no more than the standard library's.
    # mypy: the stdlib's methods take any keyword too, but reserve the name `msg`; ours do not.
    # Each level calls `_send` itself: with one depth for all of them, the record names the caller.

    def debug(self, message: object, /, *args: object, **context: Any) -> None:  # type: ignore[override]
        """Log at DEBUG; see `log`."""
        if self._levels.get(DEBUG) is not False or len(self._logger.__dict__) != self._size:
            self._send(DEBUG, message, args, context)

    def info(self, message: object, /, *args: object, **context: Any) -> None:  # type: ignore[override]
        """Log at INFO; see `log`."""
        if self._levels.get(INFO) is not False or len(self._logger.__dict__) != self._size:
            self._send(INFO, message, args, context)

    def warning(self, message: object, /, *args: object, **context: Any) -> None:  # type: ignore[override]
        """Log at WARNING; see `log`."""
        self._send(logging.WARNING, message, args, context)

    def error(self, message: object, /, *args: object, **context: Any) -> None:  # type: ignore[override]
        """Log at ERROR; see `log`."""
        self._send(logging.ERROR, message, args, context)

    def critical(self, message: object, /, *args: object, **context: Any) -> None:  # type: ignore[override]
        """Log at CRITICAL; see `log`."""
        self._send(logging.CRITICAL, message, args, context)

    fatal = critical
    warn = warning  # type: ignore[assignment]

    def exception(self, message: object, /, *args: object, **context: Any) -> None:  # type: ignore[override]
        """Log at ERROR with the exception being handled; see `log`."""
        context.setdefault("exc_info", True)
        self._send(logging.ERROR, message, args, context)

    def log(self, level: int, message: object, /, *args: object, **context: Any) -> None:  # type: ignore[override]
        """Log `message % args` at `level` with `context`.

        Args:
            level: such as `logging.INFO`.
            message: text, or anything that has one.
            args: for the `%` of the message, as in the stdlib; with none it is left as it is.
            context: fields of this record alone; `exc_info`, `stack_info`, `stacklevel` and `extra`
                as in the stdlib.
        """
        self._send(level, message, args, context)

    def log_structured(self, level: int, message: object, /, **context: Any) -> None:
        """Log `message` at `level` with `context`; the spec's name for `log` without arguments."""
        self._send(level, message, (), context)

    def update_context(self, /, **fields: Any) -> None:
        """Add fields to every record that follows."""
        self.context.update(fields)

    def clear_context_field(self, name: str) -> None:
        """Take a field away from the records that follow; one that is not there is no error."""
        self.context.pop(name, None)

    @property
    def logger(self) -> logging.Logger:
        """The stdlib logger that is adapted."""
        return self._logger

    @logger.setter
    def logger(self, logger: logging.Logger) -> None:
        self._logger = logger
        # What the logger has found out about its levels, True or False; nothing where anything but
        # the stdlib's methods decides. More attributes than usual may be methods on the logger.
        self._levels: dict[int, bool] = {}
        self._size = ATTRIBUTES.get(type(logger), 0)
        if self._size and type(logger).isEnabledFor is _is_enabled_for:
            self._levels = logger._cache  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make this a copy, which looks at the levels of the logger itself."""
        self.__dict__.update(state)
        self.logger = state["_logger"]

    def _wants_all(self) -> bool:
        """Whether somebody (a test, a tracer) has put a `log` on the logger: it gets every call."""
        return "log" in getattr(self._logger, "__dict__", ())

    def _send(
        self, level: int, message: object, args: tuple[object, ...], context: dict[str, Any]
    ) -> None:
        logger = self._logger
        if not (self._levels.get(level) or logger.isEnabledFor(level) or self._wants_all()):
            return
        if not args and type(message) is str and _OPTIONS.isdisjoint(context):
            reached = takers(logger, level)
            if reached:
                try:
                    fields = {**self.context, **bound_fields(), **context}
                except Exception:  # no mapping, or a key whose code raises when it is compared
                    fields = _merged(self.context, bound_fields(), context)
                if hand_over(reached, logger, level, message, fields):
                    return
        options: dict[str, Any] = {}
        extra: dict[Any, Any] = {}
        depth = 1
        if not _OPTIONS.isdisjoint(context):
            if "exc_info" in context:
                options["exc_info"] = _exc_info(context.pop("exc_info"))
            if "stack_info" in context:
                options["stack_info"] = _is_true(context.pop("stack_info"))
            extra = _fields(context.pop("extra", None))
            depth = _stacklevel(context.pop("stacklevel", 1))
        made = structured(
            formatted(message, unpacked(args)),
            _merged(self.context, bound_fields(), extra, context),
            self._as_json,
        )
        depth += 2  # this frame and that of the level's method
        logger.log(level, made[TEXT], extra=made, stacklevel=depth, **options)


_is_enabled_for = logging.Logger.isEnabledFor
_OPTIONS = frozenset({"exc_info", "stack_info", "stacklevel", "extra"})


def _merged(*layers: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the fields of all layers, the later above the earlier."""
    merged: dict[Any, Any] = {}
    for layer in layers:
        try:
            merged.update(layer)
        except Exception:  # no mapping, or a key whose code raises when it is compared
            plain = to_plain(layer)
            merged.update(plain if type(plain) is dict else {"context": plain})
    return merged


def _fields(extra: Any) -> dict[Any, Any]:
    try:
        return dict(extra or {})
    except Exception:  # no mapping: kept all the same
        return {"extra": extra}


def _exc_info(value: Any) -> ExcInfo | tuple[None, None, None] | None:
    """Return what the caller's `exc_info` stands for, so that a queue cannot lose it."""
    kind = type(value)  # not by its `__class__`, which may raise
    if issubclass(kind, BaseException):
        return exc_info_of(value)
    if issubclass(kind, tuple):
        return _checked(value)
    return sys.exc_info() if _is_true(value) else None


def _checked(exc_info: tuple[Any, ...]) -> ExcInfo | None:
    """Return what `sys.exc_info()` may have been; of anything else, what is left of it or None."""
    if tuple.__len__(exc_info) != 3:
        return None
    _, error, frames = tuple.__iter__(exc_info)
    if not issubclass(type(error), BaseException):
        return None
    is_whole = frames is None or type(frames) is TracebackType
    return (type(error), error, frames) if is_whole else exc_info_of(error)


def _is_true(value: Any) -> bool:
    try:
        return bool(value)
    except Exception:  # something was given
        return True


def _stacklevel(value: Any) -> int:
    try:
        return int.__index__(operator.index(value))
    except Exception:  # no number: the caller's own line
        return 1
