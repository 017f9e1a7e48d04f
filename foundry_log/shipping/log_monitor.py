"""LogMonitorService: finished log files of a directory go to a store, each once, and stay safe."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import urllib.parse
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from foundry_log.logger import get_app_name
from foundry_log.shipping import own_log
from foundry_log.shipping.addresses import check_account_url
from foundry_log.shipping.azure_store import AzureStore
from foundry_log.shipping.blob_storage import AsyncBlobStorageUploader
from foundry_log.shipping.deletion import Retention
from foundry_log.shipping.failures import Failures
from foundry_log.shipping.monitor_settings import (
    CONTAINER,
    RETENTION_DAYS,
    SCAN_INTERVAL_S,
    MonitorSettings,
    account_url_of,
    from_environment,
    process_name_of,
)
from foundry_log.shipping.orphans import retired_name
from foundry_log.shipping.own_log import log
from foundry_log.shipping.readiness import Judge, Readiness
from foundry_log.shipping.register import Register, RegisterError
from foundry_log.shipping.reports import Planned, ScanReport
from foundry_log.shipping.scanning import Kind, LogFile, Scope, blob_part, renamed
from foundry_log.shipping.scans import Logs, Scans, look
from foundry_log.shipping.shipments import Shipments
from foundry_log.shipping.store import BlobStore

REGISTER_NAME = ".foundry_log_shipping.sqlite"
AFTER_ERROR_S = 5.0
"""Seconds after which a scan that has failed is repeated."""


@dataclass(frozen=True)
class _Opened:
    """What there is between `initialize` and `shutdown`."""

    register: Register
    shipments: Shipments
    scans: Scans


class LogMonitorService:
    """Ships the finished log files of a directory, again and again, and deletes them if asked to.

    By itself it takes the files of `get_logger` of one application: rotated ones that have rested
    for 30 seconds, oldest first, and live ones of processes that are dead and have been silent for
    ten minutes; those are given their rotated name first, so that a process that comes back begins
    a new file. With `whole_directory` it takes all logs below the directory, those of runs too:
    their rotated files likewise, and what a run leaves once nobody has any of its files open.

    A file is done when the store has acknowledged its size and content, and is noted in a register
    that outlives the process. A file that was moved, renamed or copied is not sent again. Any
    number of monitors may look after one directory; each file is handled by one of them. Killed at
    any moment, it loses nothing, and the next one goes on.

    It logs on `foundry_log.shipping`, which while it runs goes to the console, from warnings on,
    and to no file that might be shipped: one line a scan, as INFO. Failures are counted, told, and
    tried again after longer and longer pauses. Belongs to one event loop, and not to the child of
    a fork.

    Args:
        logs_dir: with the files; made by `initialize` if a store is configured.
        account_name: of the storage account, for `https://<name>.blob.core.windows.net`.
        account_url: in place of the name. Without both the environment is asked for
            AZURE_STORAGE_ACCOUNT_URL and AZURE_STORAGE_ACCOUNT_NAME, and without those nothing is
            shipped: local-only mode, with a warning.
        container_name: made if missing. Where it is as usual, AZURE_LOGS_CONTAINER_NAME counts.
        app_name: whose files are taken; None for `get_app_name()`.
        process_name: this process's, as in its files' names; None for PROCESS_NAME, or
            `worker-<pid>`.
        retention_days: days without a change after which a rotated file that was shipped is
            deleted, above 0; None for never. Where it is as usual, AZURE_LOGS_RETENTION_DAYS
            counts. Nothing is deleted that the store does not confirm once more, byte for byte.
        scan_interval: seconds from one scan to the next, above 0. Where it is as usual,
            LOG_SCAN_INTERVAL counts.
        enable_orphan_cleanup: take files of other processes of the application as well.
        store: where to ship to, in place of an account.
        credential: what azure-storage-blob takes; None for azure-identity's default.
        whole_directory: take all logs of the directory and its sub-directories.
        is_run: with it, take live files of `logs_dir` like those of directories with a
            `run_info.json`.
        prefix: comes first in each blob's name. The rest is `<app>/<name>`, or, for a
            `whole_directory`, the path below it; there it is the directory's name if left empty.
        grace_s: seconds from the store's acknowledgement to the earliest deletion, 0 or more.
        register: path of the register; None for `.foundry_log_shipping.sqlite` in `logs_dir`.
        workers: files that are uploaded at the same time, 1 or more.
        environment: variables that count; empty where the arguments alone are to.
        now: seconds since the epoch; for tests.
        sleep: waits for seconds between scans; for tests.

    Raises:
        ValueError: a value, or one of the environment, is out of range.
    """

    def __init__(
        self,
        logs_dir: str | os.PathLike[str],
        account_name: str | None = None,
        account_url: str | None = None,
        container_name: str = CONTAINER,
        app_name: str | None = None,
        process_name: str | None = None,
        retention_days: float | None = RETENTION_DAYS,
        scan_interval: float = SCAN_INTERVAL_S,
        enable_orphan_cleanup: bool = True,
        *,
        store: BlobStore | None = None,
        credential: Any = None,
        whole_directory: bool = False,
        is_run: bool = False,
        prefix: str = "",
        grace_s: float = 3600.0,
        register: str | os.PathLike[str] | None = None,
        workers: int = 4,
        environment: Mapping[str, str] = os.environ,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.logs_dir = os.path.abspath(logs_dir)
        if whole_directory and not prefix:
            prefix = blob_part(os.path.basename(self.logs_dir))
        self._settings = settings = MonitorSettings(
            account_url="" if store else account_url_of(account_url, account_name, environment),
            container_name=from_environment(
                container_name, CONTAINER, "AZURE_LOGS_CONTAINER_NAME", str, environment
            ),
            process_name=process_name_of(process_name, environment),
            prefix=prefix.strip("/"),
            retention_days=from_environment(
                retention_days, RETENTION_DAYS, "AZURE_LOGS_RETENTION_DAYS", float, environment
            ),
            scan_interval_s=from_environment(
                scan_interval, SCAN_INTERVAL_S, "LOG_SCAN_INTERVAL", float, environment
            ),
            grace_s=grace_s,
            workers=workers,
        )
        self.app_name = app_name or ("" if whole_directory else get_app_name())
        self.enable_orphan_cleanup = enable_orphan_cleanup
        self.register_path = os.path.abspath(register or os.path.join(self.logs_dir, REGISTER_NAME))
        self.uploader: AsyncBlobStorageUploader | None = None
        """What brings the files to the store, from `initialize` on; None in local-only mode."""
        self._store = store
        if store is None and settings.account_url:
            check_account_url(settings.account_url)
            self._store = AzureStore(settings.account_url, settings.container_name, credential)
        _check_apart(self.logs_dir, self._store)
        process = None if enable_orphan_cleanup else settings.process_name
        self._logs = Logs(
            self.logs_dir,
            Scope(is_run=is_run) if whole_directory else Scope(self.app_name, process),
            Retention(settings.retention_days, grace_s),
        )
        self._failures = Failures(settings.scan_interval_s)
        self._now = now
        self._sleep = sleep
        self._changing = asyncio.Lock()  # one initialisation or shutdown at a time
        self._scanning = asyncio.Lock()
        self._opened: _Opened | None = None
        self._task: asyncio.Task[None] | None = None
        if self._store is None:
            log.warning(
                "logs of %s stay local: give account_name, account_url or store, or set "
                "AZURE_STORAGE_ACCOUNT_URL or AZURE_STORAGE_ACCOUNT_NAME, to ship them",
                self.logs_dir,
            )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.logs_dir} to {self.destination or 'nowhere'}>"

    @property
    def destination(self) -> str:
        """Where the blobs go, without any secret; "" in local-only mode."""
        if self._store is None:
            return ""
        return "/".join(part for part in (self._store.url.rstrip("/"), self.prefix) if part)

    @property
    def failures(self) -> Counter[str]:
        """Files and scans that have failed so far, by cause, such as `OSError EIO`."""
        return self._failures.by_cause

    @property
    def account_url(self) -> str:
        """The account's URL without a signature, "" where there is none."""
        url = self._settings.account_url
        return check_account_url(url) if url else ""

    @property
    def container_name(self) -> str:
        """The container's name."""
        return self._settings.container_name

    @property
    def process_name(self) -> str:
        """The name of this process, as in its files' names."""
        return self._settings.process_name

    @property
    def prefix(self) -> str:
        """What comes first in each blob's name."""
        return self._settings.prefix

    @property
    def retention_days(self) -> float | None:
        """Days after which files that were shipped are deleted; None for never."""
        return self._settings.retention_days

    @property
    def scan_interval(self) -> float:
        """Seconds from one scan to the next."""
        return self._settings.scan_interval_s

    @property
    def is_running(self) -> bool:
        """Whether it has been initialised, with a store, and not shut down since."""
        return self._opened is not None

    # --- its life ---

    async def initialize(self, *, scans: bool = True) -> bool:
        """Open store and register, and begin to scan; return whether that is so.

        True as well when it runs already, and in local-only mode, where there is nothing to do.
        False where store or register cannot be had: the log says why, and it can be tried again.
        Safe to call several times at once.

        Args:
            scans: begin to scan, again and again; without, `scan` is the caller's to call.
        """
        async with self._changing:
            if self._opened is not None or self._store is None:
                return True
            own_log.keep_to_console()
            try:
                self._opened = await self._open(self._store)
            finally:
                if self._opened is None:
                    own_log.let_go()
            if self._opened is not None and scans:
                self._task = asyncio.create_task(self._scan_for_ever())
            return self._opened is not None

    async def shutdown(
        self, timeout_s: float = 60.0, *, is_finished: bool = False, scans: bool = True
    ) -> ScanReport | None:
        """Scan once more, let uploads end, close; return the report. Idempotent; raises nothing.

        What cannot be shipped in time stays, and is shipped by the next monitor. Without a scan, or
        where it was not over in time or has failed, there is no report.

        Args:
            timeout_s: seconds that this takes at the most, but for the closing itself.
            is_finished: see `scan`.
            scans: do scan once more.
        """
        async with self._changing:
            opened, report = self._opened, None
            if opened is None:
                return None
            limit = time.monotonic() + timeout_s
            await self._stop_task()
            if scans:
                report = await self._scan_last(timeout_s, is_finished)
            self._opened = None
            if self.uploader is not None:
                await self.uploader.shutdown(max(0.0, limit - time.monotonic()))
            await opened.shipments.end()
            opened.register.close()
            own_log.let_go()
            return report

    async def _open(self, store: BlobStore) -> _Opened | None:
        try:
            os.makedirs(self.logs_dir, exist_ok=True)
            register = await asyncio.to_thread(Register, self.register_path, self.destination)
        except (OSError, RegisterError) as error:
            log.error("logs of %s cannot be shipped: %s", self.logs_dir, error)
            return None
        workers = self._settings.workers
        uploader = AsyncBlobStorageUploader(store=store, workers=workers)
        is_open = False
        try:
            is_open = await uploader.initialize()
        finally:
            if not is_open:
                register.close()
        if not is_open:
            return None
        self.uploader = uploader
        failures, now = self._failures, self._now
        shipments = Shipments(uploader, register, self._blob_name, failures, now)
        # One file is prepared for each that is on its way.
        scans = Scans(self._logs, store, register, shipments, failures, 2 * workers, now)
        return _Opened(register, shipments, scans)

    async def _stop_task(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _scan_last(self, timeout_s: float, is_finished: bool) -> ScanReport | None:
        try:
            return await asyncio.wait_for(self.scan(is_finished=is_finished), timeout_s)
        except asyncio.TimeoutError:
            log.warning("the last scan of %s is not over after %g s", self.logs_dir, timeout_s)
        except Exception as error:
            self._failures.tell(error, "the last scan of", self.logs_dir)
        return None

    async def _scan_for_ever(self) -> None:
        while True:
            wait_s = self.scan_interval
            try:
                await self.scan()
            except Exception as error:  # whatever it is: the next scan may work
                self._failures.tell(error, "a scan of", self.logs_dir)
                wait_s = AFTER_ERROR_S
            await self._sleep(wait_s)

    # --- a scan ---

    async def scan(self, *, is_finished: bool = False) -> ScanReport:
        """Look at the directory, ship what is ready, delete what may go; return what was done.

        Scans follow each other: one that is asked for during another begins after it.

        Args:
            is_finished: nothing more will come, so do not wait for files to rest. Those that
                somebody writes are left alone all the same.

        Raises:
            RuntimeError: it has a store, and has not been initialised.
            RegisterError: the register fails.
        """
        if self._store is None:
            return ScanReport()
        async with self._scanning:
            if self._opened is None:
                raise RuntimeError("the monitor is not open: await initialize() before scan()")
            report = await self._opened.scans.scan(is_finished)
        log.info("%s: %s", self.logs_dir, report)
        return report

    async def plan(self, *, is_finished: bool = False) -> tuple[Planned, ...]:
        """Return what a scan would do now, oldest files first; nothing is changed.

        Files whose content is known under another name are among those to be shipped: that is
        found out when they are read. Needs no `initialize`.

        Args:
            is_finished: see `scan`.
        """
        return await asyncio.to_thread(self._plan, is_finished)

    def _plan(self, is_finished: bool) -> tuple[Planned, ...]:
        with self._register_to_read() as register:
            now = self._now()
            sight = look(self._logs, register, self._failures, now)
            judged = Judge().judge(sight.new, now, is_finished)
            plan = [self._planned(file, readiness) for file, readiness in judged]
            for file in sight.expired:
                shipped = register.row(file.identity) if register else None
                if shipped is not None and self._logs.retention.is_over(shipped, now):
                    plan.append(_planned(file, "delete", shipped.blob))
            return tuple(plan)

    def _planned(self, file: LogFile, readiness: Readiness) -> Planned:
        stored = file
        if file.kind is Kind.LIVE and readiness is Readiness.READY:
            stored = renamed(file, retired_name(file))
        return _planned(file, readiness.value, self._blob_name(stored))

    @contextlib.contextmanager
    def _register_to_read(self) -> Iterator[Register | None]:
        if self._opened is not None:
            yield self._opened.register
        elif self._store is not None and os.path.exists(self.register_path):
            with contextlib.closing(Register(self.register_path, self.destination)) as register:
                yield register
        else:
            yield None

    def _blob_name(self, file: LogFile) -> str:
        if self._logs.scope.app is None:
            name = "/".join(map(blob_part, file.stable_relative.split("/")))
        else:
            name = f"{blob_part(self.app_name)}/{blob_part(os.path.basename(file.path))}"
        return f"{self.prefix}/{name}" if self.prefix else name


def _check_apart(logs_dir: str, store: BlobStore | None) -> None:
    """Refuse a store whose blobs would be found and shipped, or would be the files themselves."""
    url = store.url if store is not None else ""
    if not url.startswith("file://"):
        return
    place = os.path.realpath(urllib.parse.unquote(url.removeprefix("file://")))
    root = os.path.realpath(logs_dir)
    if os.path.commonpath((root, place)) in (root, place):
        raise ValueError(
            f"store={url!r} and logs_dir={logs_dir!r} lie in each other, so that a file and its "
            "copy might be one; use a directory elsewhere, such as one beside it"
        )


def _planned(file: LogFile, action: str, blob_name: str) -> Planned:
    return Planned(file.path, action, blob_name, file.identity.size)
