"""Shipping as a part of the logging configuration: one more handler, that takes no record."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import threading
from pathlib import Path
from typing import Any

from foundry_log.files.append_file import open_files
from foundry_log.files.locks import logging_lock
from foundry_log.handlers.direct import TakesParts
from foundry_log.records import Parts
from foundry_log.shipping.destinations import store_at
from foundry_log.shipping.lasting_threads import LastingThreads
from foundry_log.shipping.log_monitor import LogMonitorService
from foundry_log.shipping.scanning import blob_part
from foundry_log.threads import start_thread

THREADS = 4
RETRY_S = 60.0
"""Seconds after which a store that cannot be had is asked again."""

_log = logging.getLogger("foundry_log.shipping")


class ShippingHandler(TakesParts, logging.Handler):
    """Ships the finished files of a directory while it exists, on threads of its own.

    It is a handler so that `dictConfig`, an ini file or `LoggingConfig(ship_to=...)` make it and
    closing the logging ends it; records pass it by. Rotated files travel as they come, and at the
    end all files that nobody has open any more. The run never waits for the store but at the end,
    `close_within_s` at the most; what is left then is said, and `foundry-log ship` sends it.

    It belongs to the process that made it: the child of a fork ships nothing. Several processes may
    ship one directory; each file is handled by one of them.

    Args:
        directory: with the files; its sub-directories are shipped too.
        to: `https://<account>.blob.core.windows.net/<container>[/<prefix>]`, or `file:///<path>`.
            Credentials are those of `store_at`.
        prefix: of the names in the store; "" for that of the address, and without one the last two
            parts of the directory's path, such as `runs/first`.
        scan_interval_s: seconds from one look at the directory to the next, above 0.
        delete_after_days: days after which a rotated file that was shipped is removed here; None
            for never.
        close_within_s: seconds for which closing waits, 0 or more.

    Raises:
        ValueError: an argument is out of range; no address.
        ImportError: Azure's SDK is missing.
    """

    closes_last = True
    """Whether a session closes it after all others."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        to: str,
        *,
        prefix: str = "",
        scan_interval_s: float = 60.0,
        delete_after_days: float | None = None,
        close_within_s: float = 30.0,
    ) -> None:
        # All that can fail comes before the base class notes the handler, to close it at the end.
        if not close_within_s >= 0:
            raise ValueError(f"close_within_s={close_within_s} must be 0 or more seconds")
        store, place = store_at(to)
        path = Path(directory).absolute()
        self.prefix = prefix or place or "/".join(map(blob_part, path.parts[-2:])).strip("/")
        self.monitor = LogMonitorService(
            path,
            store=store,
            prefix=self.prefix,
            whole_directory=True,
            is_run=True,
            scan_interval=scan_interval_s,
            retention_days=delete_after_days,
            environment={},
        )
        super().__init__(level=logging.CRITICAL + 1)  # so that records do not even come here
        self.is_direct = True
        self.directory = path
        self._url = store.url
        self._close_within_s = close_within_s
        self._process = os.getpid()
        self._is_closed = False
        # Closing waits with logging's own lock, which `dictConfig` holds then, and shipping needs.
        self._ended = threading.Condition(logging_lock)
        self._has_ended = False
        self._loop = asyncio.new_event_loop()
        self._is_closing = asyncio.Event()
        self._threads = LastingThreads(THREADS, "foundry_log-shipping")
        self._loop.set_default_executor(self._threads)
        self._thread = threading.Thread(target=self._run, name="foundry_log-shipping", daemon=True)
        start_thread(self._thread)
        _close_last(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Do nothing: what is shipped is files."""

    def emit_parts(self, parts: Parts) -> None:
        """Do nothing: what is shipped is files."""

    def close(self) -> None:
        """Ship what is finished, waiting `close_within_s` at the most, and end. Idempotent."""
        super().close()
        if self._is_closed or os.getpid() != self._process:
            return
        self._is_closed = True
        with self._ended:
            if not self._has_ended:
                self._loop.call_soon_threadsafe(self._is_closing.set)
            is_done = self._ended.wait_for(lambda: self._has_ended, self._close_within_s)
        if not is_done:
            self._tell_left(f"could not be shipped within {self._close_within_s:g} s")

    def _tell_left(self, fate: str) -> None:
        _log.warning(
            "%s %s; what is left is sent by: foundry-log ship %s --to %s --prefix %s --once --all",
            self.directory,
            fate,
            shlex.quote(str(self.directory)),
            self._url,
            shlex.quote(self.prefix),
        )

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._ship())
        except Exception:
            _log.exception("shipping %s has ended", self.directory)
        finally:
            with self._ended:
                self._has_ended = True
                self._ended.notify_all()
            self._loop.close()
            self._threads.shutdown()

    async def _ship(self) -> None:
        while not await self.monitor.initialize():
            if await set_within(self._is_closing, RETRY_S):
                self._tell_left("could not be shipped, since the store could not be had")
                return
        await self._is_closing.wait()
        report = await self.monitor.shutdown(is_finished=True)
        if report is None or report.failed or report.waiting:
            self._tell_left("could not be shipped completely")
        elif own := [path for path in open_files() if self.directory in Path(path).parents]:
            self._tell_left(f"could not be shipped completely: {own[0]} is open here; close it")


async def set_within(event: asyncio.Event, seconds: float) -> bool:
    """Return whether an event is set, waiting for it for some seconds."""
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


def _close_last(handler: logging.Handler) -> None:
    """Have `logging.shutdown` close the handler after all others: they finish what it ships.

    It goes through this list from its end.
    """
    handlers: list[Any] = logging._handlerList  # type: ignore[attr-defined]
    with logging_lock:
        reference = next(each for each in handlers if each() is handler)
        handlers.remove(reference)
        handlers.insert(0, reference)
