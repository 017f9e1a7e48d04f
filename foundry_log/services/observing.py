"""What the services say of their work: records, lines of metrics, errors; and what they leave out.

Fields that a stretch of work shares (`request_id`, `application`, `model`, `message_id`) are bound
by `foundry_log.bound` round it, so that records, metrics and errors carry them, those of the user's
own code in between too.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from foundry_log.encoding import to_plain
from foundry_log.error_tracker import ErrorTracker
from foundry_log.metrics import MetricsLogger
from foundry_log.redaction import Redactor
from foundry_log.services.loggable import loggable, public_text

_redactor = Redactor()
_TOLD = "_foundry_told"


class Observer:
    """Says what one service does, without secrets, and without bodies unless they are asked for.

    It never raises. Thread-safe.

    Args:
        logger: for its records.
        metrics: gets a line for each call of `measure`; None for none.
        errors: gets what fails; None for ERROR records of `logger` alone.
        logs_bodies: whether `body` logs.
    """

    def __init__(
        self,
        logger: logging.Logger,
        metrics: MetricsLogger | None = None,
        errors: ErrorTracker | None = None,
        *,
        logs_bodies: bool = False,
    ) -> None:
        self._logger = logger
        self._metrics = metrics
        self._errors = errors
        self._logs_bodies = logs_bodies
        self._told: set[str] = set()  # causes of lost records

    def say(self, level: int, message: str, /, **fields: Any) -> None:
        """Log a message whose keywords are context, secrets blanked."""
        if self._logger.isEnabledFor(level):
            self._log(level, message, fields)

    def measure(self, **figures: float) -> None:
        """Write one line of metrics, numbered on; the fields of scopes stand beside them."""
        if self._metrics is not None:
            self._metrics.log_next(figures)

    def failed(self, message: str, error: BaseException, /, **fields: Any) -> None:
        """Log an error with its traceback, without secrets and without what a body held.

        The traceback is told once: what an error that passes through several services came to in
        each is a record of its own, with the error's text.
        """
        if _is_told(error):
            fields["reason"] = f"{type(error).__name__}: {public_text(error)}"
            self._log(logging.ERROR, message, fields)
        elif self._errors is None:
            self._log(logging.ERROR, message, fields, loggable(error))
        else:
            with self._survived():
                self._errors.log_error(loggable(error), {"during": message, **fields})

    def body(self, message: str, body: Any, /) -> None:
        """Log a prompt, a reply or a message at DEBUG where that was asked for, secrets blanked."""
        if self._logs_bodies and self._logger.isEnabledFor(logging.DEBUG):
            self._log(logging.DEBUG, message, {"body": _redactor.value(to_plain(body))})

    def _log(
        self,
        level: int,
        message: str,
        fields: Mapping[str, Any],
        error: BaseException | None = None,
    ) -> None:
        with self._survived():
            self._logger.log(
                level,
                "%s",
                _redactor.text(message),
                exc_info=error,
                extra=_context(fields),
                stacklevel=3,  # whoever called `say` and the like
            )

    @contextlib.contextmanager
    def _survived(self) -> Iterator[None]:
        """Tell once on standard error what a filter or handler raises, and go on.

        What a service has in hand, a lock or a message, is worth more than the record of it.
        """
        try:
            yield
        except Exception as error:
            cause = type(error).__name__
            if cause not in self._told and logging.raiseExceptions and sys.stderr:
                self._told.add(cause)
                with contextlib.suppress(OSError, ValueError):
                    print(f"{self._logger.name}: a record is lost, {cause}", file=sys.stderr)


def _is_told(error: BaseException) -> bool:
    """Whether an error has been logged; from now on it has."""
    if getattr(error, _TOLD, False):
        return True
    with contextlib.suppress(Exception):  # a class may take no attributes
        setattr(error, _TOLD, True)
    return False


def _context(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _clean(value) for name, value in fields.items() if value is not None}


def _clean(value: Any) -> Any:
    return _redactor.text(value) if type(value) is str else value
