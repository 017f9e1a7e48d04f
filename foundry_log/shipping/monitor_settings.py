"""What a log monitor is told: arguments, then the environment, then what is usual; all checked."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from foundry_log.files.app_filenames import worker_name
from foundry_log.shipping.store import check_blob_name

CONTAINER = "fla-logs"
RETENTION_DAYS = 7
SCAN_INTERVAL_S = 60

_ACCOUNT = re.compile(r"[a-z0-9]{3,24}", re.ASCII)
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class MonitorSettings:
    """Checked values of a monitor; `account_url` is empty where there is none.

    Raises:
        ValueError: a value is out of range.
    """

    account_url: str = field(repr=False)  # it may have a signature
    container_name: str
    process_name: str
    prefix: str
    retention_days: float | None
    scan_interval_s: float
    grace_s: float
    workers: int

    def __post_init__(self) -> None:
        _check_above_zero("scan_interval", self.scan_interval_s, "60 is usual")
        if self.retention_days is not None:
            _check_above_zero("retention_days", self.retention_days, "or None, which keeps files")
        if not self.grace_s >= 0:
            raise ValueError(f"grace_s={self.grace_s!r} must be 0 or more seconds; 3600 is usual")
        if self.workers < 1:
            raise ValueError(f"workers={self.workers!r} must be 1 or more; 4 are usual")
        if self.prefix:
            try:
                check_blob_name(self.prefix)
            except ValueError as error:
                raise ValueError(f"prefix={self.prefix!r}: {error}") from error


def account_url_of(
    account_url: str | None, account_name: str | None, environment: Mapping[str, str] = os.environ
) -> str:
    """Return the URL of the account, "" for none.

    The first of these that is given: the URL, the name, AZURE_STORAGE_ACCOUNT_URL,
    AZURE_STORAGE_ACCOUNT_NAME.

    Raises:
        ValueError: the name is none that an account can have.
    """
    if not account_url and not account_name:
        account_url = environment.get("AZURE_STORAGE_ACCOUNT_URL")
        account_name = environment.get("AZURE_STORAGE_ACCOUNT_NAME")
    if account_url:
        return account_url
    if not account_name:
        return ""
    if not _ACCOUNT.fullmatch(account_name):
        shown = repr(account_name) if account_name.isalnum() else "what was given"  # or a secret
        raise ValueError(
            f"account_name: {shown} is none; use 3 to 24 small letters and digits, such as "
            "'mylogs'; a whole URL goes into account_url, a key into credential"
        )
    return f"https://{account_name}.blob.core.windows.net"


def from_environment(
    given: _Value,
    usual: _Value,
    variable: str,
    read: Callable[[str], _Value],
    environment: Mapping[str, str] = os.environ,
) -> _Value:
    """Return `given`, or the variable's value where `given` is what is usual.

    Raises:
        ValueError: the variable's value cannot be read.
    """
    text = environment.get(variable, "")
    if given != usual or not text:
        return given
    try:
        return read(text)
    except ValueError as error:
        raise ValueError(f"{variable}={text!r} is no number; unset it or use {usual}") from error


def process_name_of(process_name: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """Return the argument, PROCESS_NAME, or `worker-<pid>`."""
    return process_name or environment.get("PROCESS_NAME") or worker_name(os.getpid())


def _check_above_zero(name: str, value: float, remedy: str) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name}={value!r} must be a number above 0; {remedy}")
