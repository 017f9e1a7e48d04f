"""One look at a directory and what follows from it: files are shipped, and some deleted."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from foundry_log.files import locks
from foundry_log.shipping.deletion import Retention, delete
from foundry_log.shipping.failures import Failures
from foundry_log.shipping.identity import Identity
from foundry_log.shipping.orphans import retire
from foundry_log.shipping.readiness import Judge, Readiness
from foundry_log.shipping.register import PERMISSIONS, Register
from foundry_log.shipping.reports import ScanReport
from foundry_log.shipping.scanning import Kind, LogFile, Scope, log_files
from foundry_log.shipping.shipments import Shipments, Tally
from foundry_log.shipping.store import BlobStore

FORGET_AFTER_DAYS = 30
"""Days after which the register forgets files that are gone; it is asked to once a day."""
_DAY_S = 86_400.0
_LOOK_AGAIN_S = 0.05


@dataclass(frozen=True)
class Logs:
    """Which files are looked after, and how long they are kept.

    Args:
        directory: that is scanned.
        scope: which of its files.
        retention: when those that were shipped may be deleted.
    """

    directory: str
    scope: Scope
    retention: Retention


@dataclass
class Sight:
    """What a look has found: how many, those to be shipped, and those that may have to go."""

    found: int = 0
    new: list[LogFile] = field(default_factory=list)
    expired: list[LogFile] = field(default_factory=list)


def look(
    logs: Logs,
    register: Register | None,
    failures: Failures,
    now: float,
    seen: set[Identity] | None = None,
) -> Sight:
    """Return what is in the directory, as far as its register knows it or not.

    Args:
        logs: where to look, and for what.
        register: None where nothing has been shipped yet.
        failures: are told of what cannot be read.
        now: seconds since the epoch.
        seen: gets the identities of the files that the register knows; None for no such set, which
            takes as long as the rest.
    """
    sight = Sight()

    def is_done(identity: Identity) -> bool:
        return register is not None and register.is_done(identity)

    def is_wanted(identity: Identity) -> bool:
        if not is_done(identity):
            return True
        sight.found += 1
        if seen is not None:
            seen.add(identity)
        return logs.retention.has_passed(identity, now)

    def unread(path: str, error: OSError) -> None:
        failures.tell(error, "reading", path)

    for file in log_files(logs.directory, logs.scope, unread, is_wanted):
        if not is_done(file.identity):
            sight.found += 1
            sight.new.append(file)
        elif logs.retention.covers(file, now):
            sight.expired.append(file)
    return sight


class Scans:
    """Scans of one directory, one after the other. Belongs to one event loop.

    Args:
        logs: what is scanned.
        store: open.
        register: of the store.
        shipments: bring a file to the store.
        failures: get what goes wrong.
        lanes: files that are shipped or deleted at the same time. Once the store has refused as
            many one after the other, the rest is left for the next scan.
        now: seconds since the epoch.
    """

    def __init__(
        self,
        logs: Logs,
        store: BlobStore,
        register: Register,
        shipments: Shipments,
        failures: Failures,
        lanes: int,
        now: Callable[[], float],
    ) -> None:
        self._logs = logs
        self._store = store
        self._register = register
        self._shipments = shipments
        self._failures = failures
        self._lanes = lanes
        self._now = now
        self._judge = Judge()
        self._pruned_at = float("-inf")

    async def scan(self, is_finished: bool) -> ScanReport:
        """Do what is to be done now; see `LogMonitorService.scan`."""
        started, now = time.monotonic(), self._now()
        tally = Tally()
        self._failures.refusals = 0
        seen = set[Identity]() if now - self._pruned_at >= _DAY_S else None
        await asyncio.to_thread(self._register.refresh)
        sight = await asyncio.to_thread(look, self._logs, self._register, self._failures, now, seen)
        self._failures.keep_only({file.path for file in (*sight.new, *sight.expired)})
        ready = await asyncio.to_thread(self._ready, sight.new, now, is_finished, tally)
        of_runs = [file for file in ready if file.kind is Kind.RUN]
        others = [file for file in ready if file.kind is not Kind.RUN]
        await self._in_lanes(self._shipments.ship, others, tally)
        await self._ship_of_runs(of_runs, is_finished, tally)
        await self._in_lanes(self._delete, sight.expired, tally)
        if seen is not None:
            self._pruned_at = now
            await asyncio.to_thread(self._register.prune, now - FORGET_AFTER_DAYS * _DAY_S, seen)
        return ScanReport(found=sight.found, seconds=time.monotonic() - started, **tally)

    def _ready(
        self, files: list[LogFile], now: float, is_finished: bool, tally: Tally
    ) -> list[LogFile]:
        """Return what is to be shipped, oldest first; orphans have got their rotated names."""
        ready = []
        for file, readiness in self._judge.judge(files, now, is_finished):
            if readiness is Readiness.IN_USE:
                tally["in_use"] += 1
                self._tell_unreadable(file)
            elif readiness is Readiness.WAITING or not self._failures.is_due(file.path, now):
                tally["waiting"] += 1
            elif file.kind is not Kind.LIVE:
                ready.append(file)
            elif (retired := self._retired(file, now, tally)) is not None:
                ready.append(retired)
        return ready

    def _tell_unreadable(self, file: LogFile) -> None:
        """Say that a file may be in use for ever, since nobody here can look at its lock."""
        try:
            os.close(os.open(file.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)))
        except PermissionError as error:
            self._failures.tell(error, "opening", file.path)
        except OSError:
            pass  # gone, or gone on, since it was found

    def _retired(self, file: LogFile, now: float, tally: Tally) -> LogFile | None:
        try:
            retired = retire(file)
        except (OSError, ValueError) as error:  # ValueError: a time of no year that there is
            self._failures.put_off(file.path, error, "renaming", now)
            tally["failed"] += 1
            return None
        tally["in_use"] += retired is None
        return retired

    async def _in_lanes(
        self,
        action: Callable[[LogFile], Awaitable[Tally]],
        files: Iterable[LogFile],
        tally: Tally,
    ) -> None:
        """Do something with each file, with some of them at the same time."""
        queue = iter(files)

        async def lane() -> None:
            for file in queue:
                if self._failures.refusals >= self._lanes:
                    tally["waiting"] += 1
                else:
                    tally.update(await action(file))

        await asyncio.gather(*(lane() for _ in range(self._lanes)))

    async def _ship_of_runs(self, files: list[LogFile], is_finished: bool, tally: Tally) -> None:
        """Ship what ended runs have left, by one monitor at a time.

        Their files are not locked, as rotated ones are: a run that comes back must not wait. Where
        another monitor is at it, the next scan goes on; the last one waits until it has ended.
        """
        lock = f"{self._register.path}.runs.lock"
        while files:
            try:
                with locks.exclusive_file(lock, PERMISSIONS, timeout_s=0):
                    await self._in_lanes(self._shipments.ship, files, tally)
                return
            except TimeoutError:
                if not is_finished:
                    tally["in_use"] += len(files)
                    return
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _delete(self, file: LogFile) -> Tally:
        now = self._now()
        shipped = self._register.row(file.identity)
        if shipped is None or not self._logs.retention.is_over(shipped, now):
            return Tally()
        if not self._failures.is_due(file.path, now):
            return Tally()
        try:
            if not await delete(file, shipped, self._store):
                return Tally()
            self._register.note_deleted(file.identity, now)
        except FileNotFoundError:
            return Tally()  # somebody else has removed it
        except Exception as error:
            self._failures.put_off(file.path, error, "deleting", now)
            return Tally(failed=1)
        return Tally(deleted=1)
