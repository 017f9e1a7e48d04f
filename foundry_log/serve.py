"""`foundry-log budget-server`: the budget's server as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from foundry_log.config import LoggingConfig
from foundry_log.error_tracker import ErrorTracker
from foundry_log.metrics import MetricsLogger
from foundry_log.services.budget_server import serving
from foundry_log.services.token_budget import TokenBudget
from foundry_log.session import configure
from foundry_log.terminal import stop_request, told_on_stderr

DEFAULT_TPM = 128_000
DEFAULT_RPM = 250
MAX_QUOTA_DIGITS = 18
"""Digits of a quota of the environment at most."""
_LOOPBACK = ("127.", "::1", "localhost")
_log = logging.getLogger("foundry_log.services")
_own_log = logging.getLogger("foundry_log.services.budget_server")


class UsageError(Exception):
    """Nothing can be served; the message says what to change."""


@dataclass(frozen=True)
class ServeOptions:
    """What the command line asks for; see its help."""

    host: str = "127.0.0.1"
    port: int = 8001
    tpm: int | None = None
    rpm: int | None = None
    lock_ttl_s: float = 300.0
    token_file: Path | None = None
    log_dir: Path | None = None


def serve(options: ServeOptions) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code, 0.

    Raises:
        ImportError: aiohttp is missing.
        UsageError: an option or a variable of the environment cannot be used.
    """
    token = _bearer_token(options.token_file)
    budget = TokenBudget(
        options.tpm or _quota("APP_TPM_QUOTA", DEFAULT_TPM),
        options.rpm or _quota("APP_RPM_QUOTA", DEFAULT_RPM),
        lock_ttl_s=options.lock_ttl_s,
    )
    with _recorded(options.log_dir) as (metrics, errors):
        return asyncio.run(_serve(options, budget, token, metrics, errors))


async def _serve(
    options: ServeOptions,
    budget: TokenBudget,
    token: str | None,
    metrics: MetricsLogger | None,
    errors: ErrorTracker | None,
) -> int:
    async with contextlib.AsyncExitStack() as stack:
        server = serving(
            budget,
            options.host,
            options.port,
            bearer_token=token,
            metrics=metrics,
            errors=errors,
        )
        try:
            url = await stack.enter_async_context(server)
        except OSError as error:
            where = f"--host {options.host} --port {options.port}"
            raise UsageError(
                f"{where} cannot be listened at: {error.strerror or error}; "
                "choose others, port 0 for any that is free"
            ) from error
        except UnicodeError as error:  # of idna; a ValueError, too
            raise UsageError(f"--host {options.host} is no name of a host: {error}") from error
        except ValueError as error:
            raise UsageError(f"{error} (from --token-file or COUNTER_APP_TOKEN)") from error
        stop = stop_request(_own_log, "requests at hand are answered")
        _tell_start(options, budget, token, url)
        await stop.wait()
    return 0


def _tell_start(options: ServeOptions, budget: TokenBudget, token: str | None, url: str) -> None:
    quota = f"{budget.tpm_quota} tokens and {budget.rpm_quota} requests"
    _own_log.info("serving %s per %g s at %s", quota, budget.window_s, url)
    if token is None and not options.host.startswith(_LOOPBACK):
        _own_log.warning("without a bearer token, whoever reaches %s may use the budget", url)
    try:
        print(f"listening on {url}", flush=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        _own_log.warning("standard output cannot be written to, and is left alone: %s", reason)
        _close_stdout()


def _close_stdout() -> None:
    """Let what is left in its buffer go nowhere: the interpreter's end would fail of it."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _quota(variable: str, default: int) -> int:
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    is_number = text.isascii() and text.isdigit() and len(text) <= MAX_QUOTA_DIGITS
    number = int(text) if is_number else 0
    if number < 1:
        shown = text if len(text) <= 2 * MAX_QUOTA_DIGITS else f"{text[:MAX_QUOTA_DIGITS]}…"
        raise UsageError(
            f"{variable}={shown!r} is no whole number of 1 or more, with {MAX_QUOTA_DIGITS} digits "
            "at most; correct or unset it"
        )
    return number


def _bearer_token(file: Path | None) -> str | None:
    """Return the token of the file, or else of the environment, where an empty one counts as none.

    Raises:
        UsageError: the file cannot be read, or holds none.
    """
    if file is None:
        return os.environ.get("COUNTER_APP_TOKEN", "").strip() or None
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise UsageError(f"--token-file {file} cannot be read: {reason}") from error
    if not token:
        raise UsageError(f"--token-file {file} is empty; write the token into it")
    return token


@contextlib.contextmanager
def _recorded(directory: Path | None) -> Iterator[tuple[MetricsLogger | None, ErrorTracker | None]]:
    """Write records, metrics and errors into the directory, or records to standard error."""
    if directory is None:
        with told_on_stderr(_log):
            yield None, None
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--log-dir {directory} cannot be made: {error.strerror}") from error
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise UsageError(f"--log-dir {directory} cannot be written to: {error.strerror}") from error
    with (
        configure(LoggingConfig(console_level="WARNING"), directory),
        contextlib.closing(MetricsLogger("budget_server", directory)) as metrics,
        contextlib.closing(ErrorTracker(_own_log, directory)) as errors,
    ):
        yield metrics, errors
