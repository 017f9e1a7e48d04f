"""What Azure's errors mean for us: each becomes one of the four of `store.py`, here."""

from __future__ import annotations

import asyncio
import email.utils
import math
import ssl
import time
from collections.abc import Iterator, Mapping

from foundry_log.shipping.addresses import scrubbed
from foundry_log.shipping.store import (
    BlobExistsError,
    CorruptedError,
    StoreError,
    TemporaryError,
)

MAY_WRITE = (
    "the role 'Storage Blob Data Contributor', or a signature with the permissions r, c and w"
)

_EXISTS = {
    "BlobAlreadyExists",
    "ConditionNotMet",
    "ContainerAlreadyExists",
    "UnauthorizedBlobOverwrite",
}
_CORRUPTED = {"Md5Mismatch", "Crc64Mismatch"}
# InvalidBlockList: another writer of the same name was first, and its commit drops our blocks.
_TEMPORARY = {"ContainerBeingDeleted", "InvalidBlockList", "ServerBusy"}
_TEMPORARY_STATUS = {408, 429, 500, 502, 503, 504}


class RefusedError(StoreError):
    """The server refuses, with an HTTP status and Azure's code for the reason, "" without one."""

    def __init__(self, message: str, status: int, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def translated(error: Exception, url: str, doing: str) -> StoreError:
    """Return what to raise in place of an error of the SDK or of what is below it.

    Args:
        error: what was raised.
        url: of the container, without any secret.
        doing: what failed, such as "storing run.log".
    """
    status = getattr(error, "status_code", None)
    if status is not None:
        return _answered(error, f"{url}: {doing} failed", status)
    causes = list(_causes(error))
    said = f"{url}: {doing} failed: {_first_line(error)}"
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return StoreError(f"{said}; trust the server's certificate, or correct the address")
    if any(kind.__name__ == "ClientAuthenticationError" for kind in type(error).__mro__):
        return StoreError(f"{said}; give a credential with {MAY_WRITE}")
    # A lost connection is an OSError, and what the SDK makes of one has it as its cause.
    lost = (asyncio.TimeoutError, OSError, EOFError)
    if any(isinstance(cause, lost) for cause in causes) or _is_transport(error):
        return TemporaryError(said)
    return StoreError(said)


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Return how many seconds a server asks to wait, at least 0; None where it asks for nothing.

    Args:
        headers: of its answer.
        now: seconds since the epoch, against which a date is held.
    """
    small = {name.lower(): value for name, value in headers.items()}
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        wait = _number(small.get(name))
        if wait is not None:
            return wait / 1000
    wait = _number(small.get("retry-after"))
    return wait if wait is not None else _until(small.get("retry-after"), now)


def _answered(error: Exception, said: str, status: int) -> StoreError:
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    code = getattr(error, "error_code", None) or headers.get("x-ms-error-code") or ""
    code = str(getattr(code, "value", code))
    said = f"{said} with status {status} {code or _first_line(error)}".rstrip()
    if code in _EXISTS or (status == 412 and not code):
        return BlobExistsError(said)
    # Azurite has no code of its own for it, but says it.
    if code in _CORRUPTED or (status == 400 and "contentmd5" in str(error).lower()):
        return CorruptedError(said)
    if status in _TEMPORARY_STATUS or code in _TEMPORARY:
        return TemporaryError(said, retry_after_s(headers, time.time()))
    if status in (401, 403):
        said = f"{said}; give a credential with {MAY_WRITE}"
    if code == "ContainerNotFound":
        said = f"{said}; it was there when it was opened: open it again"
    return RefusedError(said, status, code)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _is_transport(error: Exception) -> bool:
    """Whether it says that a request did not get through, or its answer did not get back."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"ServiceRequestError", "ServiceResponseError", "IncompleteReadError"})


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return scrubbed(text.splitlines()[0])[:300]


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _until(date: str | None, now: float) -> float | None:
    try:
        return max(0.0, email.utils.parsedate_to_datetime(date or "").timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None
