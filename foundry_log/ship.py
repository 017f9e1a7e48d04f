"""`foundry-log ship`: finished files of a directory to a store, at a terminal or in a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from foundry_log.shipping.destinations import store_at
from foundry_log.shipping.handler import RETRY_S, set_within
from foundry_log.shipping.log_monitor import LogMonitorService
from foundry_log.shipping.register import RegisterError
from foundry_log.terminal import stop_request, told_on_stderr

PROGRESS_EVERY_S = 0.2
_FAILED = 1
_log = logging.getLogger("foundry_log.shipping")


class UsageError(Exception):
    """Nothing can be shipped; the message says what to change."""


@dataclass(frozen=True)
class ShipOptions:
    """What the command line asks for; see its help."""

    directory: Path
    to: str
    once: bool = False
    dry_run: bool = False
    everything: bool = False
    prefix: str | None = None
    interval_s: float = 60.0
    delete_after_days: float | None = None
    register: Path | None = None
    workers: int = 4


def ship(options: ShipOptions) -> int:
    """Ship until SIGTERM or SIGINT, or once; return the exit code.

    Returns:
        0; 1 where the store cannot be had, or `once` has left files that failed.

    Raises:
        ImportError: the SDK of the store is missing.
        UsageError: an option cannot be used.
    """
    if not options.directory.is_dir():
        raise UsageError(f"{options.directory} is no directory; give the one with the log files")
    if options.everything and not (options.once or options.dry_run):
        raise UsageError("--all says that nothing more will come: it goes with --once or --dry-run")
    try:
        store, prefix = store_at(options.to)
        monitor = LogMonitorService(
            options.directory,
            store=store,
            prefix=options.prefix or prefix or options.directory.resolve().name,
            whole_directory=True,
            is_run=options.everything,
            scan_interval=options.interval_s,
            retention_days=options.delete_after_days,
            register=options.register,
            workers=options.workers,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    with told_on_stderr(_log):
        try:
            return asyncio.run(_ship(monitor, options))
        except RegisterError as error:
            raise UsageError(str(error)) from error


async def _ship(monitor: LogMonitorService, options: ShipOptions) -> int:
    if options.dry_run:
        return await _tell_plan(monitor, options)
    stop = stop_request(_log, "what is under way is finished")
    while not await monitor.initialize(scans=not options.once):
        if options.once or await set_within(stop, RETRY_S):
            return _FAILED
    try:
        async with _progress(monitor):
            if options.once:
                return await _scan_unless_stopped(monitor, options, stop)
            await stop.wait()
            return 0
    finally:
        await monitor.shutdown(scans=False)


async def _scan_unless_stopped(
    monitor: LogMonitorService, options: ShipOptions, stop: asyncio.Event
) -> int:
    scan = asyncio.ensure_future(monitor.scan(is_finished=options.everything))
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait((scan, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not scan.done():
        scan.cancel()
        return _FAILED
    return _FAILED if scan.result().failed else 0


async def _tell_plan(monitor: LogMonitorService, options: ShipOptions) -> int:
    plan = await monitor.plan(is_finished=options.everything)
    for line in plan:
        print(line)
    return 0


@contextlib.asynccontextmanager
async def _progress(monitor: LogMonitorService) -> AsyncIterator[None]:
    """Show on a terminal how far the uploads are."""
    if not sys.stderr.isatty():
        yield
        return
    task = asyncio.create_task(_show_progress(monitor))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        sys.stderr.write("\r\x1b[K")


async def _show_progress(monitor: LogMonitorService) -> None:
    uploader = monitor.uploader
    while uploader is not None:
        if uploader.pending:
            done = uploader.uploaded + uploader.already_there
            sys.stderr.write(
                f"\r\x1b[K{done} shipped, {uploader.pending} to go, "
                f"{uploader.bytes_sent / 1e6:.1f} MB sent, {uploader.failed.total()} failed"
            )
            sys.stderr.flush()
        await asyncio.sleep(PROGRESS_EVERY_S)
