"""Which errors of a processor pass by themselves: faults of a server, and not of the message."""

from __future__ import annotations

import asyncio

from foundry_log.encoding import exception_text
from foundry_log.services.bus_errors import RetryLater
from foundry_log.services.retry_helpers import is_denial

CLIENT_FAILED = "Client error: "
"""Begins what a TokenClient says where it had no answer of the budget server."""
PASSING_STATUS = frozenset({401, 403, 408, 409, 429})
"""Credentials that are being renewed, a server that is slow, busy or at its limit."""


def may_pass(error: BaseException) -> bool:
    """Whether the same message may well succeed later, though nobody changes it."""
    if isinstance(error, (RetryLater, ConnectionError, TimeoutError, asyncio.TimeoutError)):
        return True
    if isinstance(error, ValueError):
        return is_denial(error) or exception_text(error).startswith(CLIENT_FAILED)
    return _is_of_the_model(error)


def _is_of_the_model(error: BaseException) -> bool:
    # By name, since openai is an optional package. Its other errors, such as a reply that is too
    # long, are no APIError.
    if not any(_is_api_error(kind) for kind in type(error).__mro__):
        return False
    status = getattr(error, "status_code", None)
    return status is None or status in PASSING_STATUS or status >= 500


def _is_api_error(kind: type) -> bool:
    return kind.__name__ == "APIError" and kind.__module__.partition(".")[0] == "openai"
