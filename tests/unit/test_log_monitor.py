"""LogMonitorService: each finished file reaches the store once, whatever dies on the way."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from foundry_log import RotatingJsonlHandler
from foundry_log.files import filenames, locks
from foundry_log.shipping.blob_storage import AsyncBlobStorageUploader
from foundry_log.shipping.content import Content
from foundry_log.shipping.delivery import FileInUseError, UploadJob
from foundry_log.shipping.failures import Failures
from foundry_log.shipping.identity import Identity
from foundry_log.shipping.local_store import LocalStore
from foundry_log.shipping.log_monitor import AFTER_ERROR_S, REGISTER_NAME, LogMonitorService
from foundry_log.shipping.own_log import log
from foundry_log.shipping.register import Register
from foundry_log.shipping.scanning import LogFile, Scope, log_files
from foundry_log.shipping.shipments import Shipments
from foundry_log.shipping.store import BlobFacts, StoreError

pytestmark = [pytest.mark.unit, pytest.mark.asyncio]

DAY_S = 86_400.0
DEAD = 4_194_305  # above the largest id that Linux gives
ROTATED = "app-worker-1__2026-11-20.log"
STAMPED = "run.20261121T062311123456Z.jsonl"
VARIABLES = (
    "AZURE_STORAGE_ACCOUNT_URL",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_LOGS_CONTAINER_NAME",
    "AZURE_LOGS_RETENTION_DAYS",
    "LOG_SCAN_INTERVAL",
    "PROCESS_NAME",
    "APP_NAME_FOR_LOGGER",
)
WRITER = """
import sys
from foundry_log import get_logger
get_logger("writer").info("a line")
print("ready", flush=True)
sys.stdin.read()
"""
MONITOR = """
import asyncio, sys
from foundry_log.shipping.local_store import LocalStore
from foundry_log.shipping.log_monitor import LogMonitorService
async def main():
    monitor = LogMonitorService(sys.argv[1], app_name="app", store=LocalStore(sys.argv[2]))
    await monitor.initialize(scans=False)
    print("ready", flush=True)
    sys.stdin.readline()
    report = await monitor.scan()
    await monitor.shutdown(scans=False)
    print(report.shipped, report.failed, flush=True)
asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own settings."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    directory = tmp_path / "logs"
    directory.mkdir()
    return directory


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    return tmp_path / "store"


class FaultyStore(LocalStore):
    """A directory that refuses what it is told to refuse."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.opened = 0
        self.refuses_to_open = False
        self.error: StoreError | None = None
        self.reached = asyncio.Event()
        self.goes_on: asyncio.Event | None = None

    async def open(self) -> None:
        self.opened += 1
        if self.refuses_to_open:
            raise StoreError("no permission")
        await super().open()

    async def put_new(self, name: str, content: Content, metadata: Mapping[str, str]) -> BlobFacts:
        self.reached.set()
        if self.goes_on is not None:
            await self.goes_on.wait()
        if self.error is not None:
            raise self.error
        return await super().put_new(name, content, metadata)


class Pauses:
    """A sleep that returns at once, a number of times, and then never."""

    def __init__(self, count: int) -> None:
        self.seconds: list[float] = []
        self.are_over = asyncio.Event()
        self._count = count

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        if len(self.seconds) >= self._count:
            self.are_over.set()
            await asyncio.Event().wait()


def write(
    path: Path, text: str = "2026-11-20 06:00:00.000 | INFO | x\n", age_s: float = 60
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def stored(blobs: Path) -> dict[str, str]:
    """The text of each blob by its name."""
    return {
        str(path.relative_to(blobs)): path.read_text()
        for path in blobs.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.parts)
    }


def monitor_of(logs: Path, blobs: Path, **options: Any) -> LogMonitorService:
    options.setdefault("app_name", "app")
    options.setdefault("store", LocalStore(blobs))
    return LogMonitorService(logs, **options)


def scanned(*monitors: LogMonitorService, times: int = 1, **options: Any) -> list[Any]:
    """Reports of the monitors' scans, each in turn."""

    async def scan() -> list[Any]:
        reports = []
        for monitor in monitors:
            assert await monitor.initialize(scans=False)
            reports += [await monitor.scan(**options) for _ in range(times)]
            await monitor.shutdown(scans=False)
        return reports

    return asyncio.run(scan())


@contextlib.contextmanager
def writer(logs: Path, process_name: str = "", mode: str = "process") -> Iterator[Any]:
    """A process that has logged a line and has its file open; killed at the end."""
    variables = {
        "APP_LOGS_DIR": str(logs), "APP_NAME_FOR_LOGGER": "app", "APP_LOGS_MODE": mode,
        "PROCESS_NAME": process_name,
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER],
        env={**os.environ, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def live_file(logs: Path) -> Path:
    (path,) = logs.glob("*.current.log")
    os.utime(path, (time.time(),) * 2)
    return path


def monitor_process(logs: Path, blobs: Path) -> Any:
    process = subprocess.Popen(
        [sys.executable, "-c", MONITOR, str(logs), str(blobs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


class TestLogMonitorServiceInit:
    """What it is told, and by whom."""

    def test_the_url_is_made_of_the_accounts_name(self, logs: Path) -> None:
        """As Azure has it."""
        service = LogMonitorService(logs, account_name="mylogs", app_name="app")
        assert service.account_url == "https://mylogs.blob.core.windows.net"
        assert service.destination == "https://mylogs.blob.core.windows.net/fla-logs"

    def test_a_url_comes_before_a_name(self, logs: Path) -> None:
        """The more exact one."""
        url = "https://other.blob.core.windows.net"
        service = LogMonitorService(logs, account_name="mylogs", account_url=url, app_name="app")
        assert service.account_url == url

    def test_without_either_logs_stay_local(
        self, logs: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """With a warning that says what to give."""
        service = LogMonitorService(logs, app_name="app")
        assert service.uploader is None
        assert service.destination == ""
        assert "AZURE_STORAGE_ACCOUNT_URL" in caplog.text

    def test_usual_values(self, logs: Path) -> None:
        """As promised."""
        service = LogMonitorService(logs, account_name="mylogs", app_name="app")
        assert (service.container_name, service.retention_days, service.scan_interval) == (
            "fla-logs", 7, 60,
        )  # fmt: skip
        assert service.enable_orphan_cleanup
        assert service.process_name == f"worker-{os.getpid()}"

    def test_the_environment_fills_in(self, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each of its variables; an argument comes first."""
        for name, text in {
            "AZURE_STORAGE_ACCOUNT_NAME": "envlogs", "AZURE_LOGS_CONTAINER_NAME": "env",
            "AZURE_LOGS_RETENTION_DAYS": "3", "LOG_SCAN_INTERVAL": "5", "PROCESS_NAME": "api",
            "APP_NAME_FOR_LOGGER": "shop",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, text)
        service = LogMonitorService(logs)
        assert service.destination == "https://envlogs.blob.core.windows.net/env"
        assert (service.retention_days, service.scan_interval) == (3.0, 5.0)
        assert (service.process_name, service.app_name) == ("api", "shop")
        service = LogMonitorService(logs, retention_days=9, process_name="own", app_name="a")
        assert (service.retention_days, service.process_name, service.app_name) == (9, "own", "a")

    def test_wrong_values_are_refused(self, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """With the field, its value and a remedy."""
        for options, text in (
            ({"scan_interval": 0}, "scan_interval=0"),
            ({"retention_days": -1}, "retention_days=-1"),
            ({"grace_s": -1}, "grace_s=-1"),
            ({"workers": 0}, "workers=0"),
            ({"prefix": "../up"}, "prefix="),
            ({"account_name": "MyLogs"}, "account_name: 'MyLogs'"),
            ({"account_url": "ftp://x"}, "ftp"),
        ):
            with pytest.raises(ValueError, match=text):
                LogMonitorService(logs, app_name="app", **options)  # type: ignore[arg-type]
        monkeypatch.setenv("LOG_SCAN_INTERVAL", "soon")
        with pytest.raises(ValueError, match="LOG_SCAN_INTERVAL='soon'"):
            LogMonitorService(logs, app_name="app")

    @pytest.mark.parametrize("place", ["my store", ".", ".."])
    @pytest.mark.parametrize("whole_directory", [True, False])
    def test_a_store_and_the_directory_lie_apart(
        self, logs: Path, place: str, whole_directory: bool
    ) -> None:
        """Otherwise blobs are shipped again, or are the very files that may be deleted."""
        with pytest.raises(ValueError, match="lie in each other"):
            monitor_of(logs, logs / place, whole_directory=whole_directory)

    def test_the_environment_may_be_left_out(
        self, logs: Path, blobs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What a caller gives counts then, also where it is what is usual."""
        monkeypatch.setenv("AZURE_LOGS_RETENTION_DAYS", "0.5")
        monkeypatch.setenv("LOG_SCAN_INTERVAL", "5")
        service = monitor_of(logs, blobs, retention_days=7, scan_interval=60, environment={})
        assert (service.retention_days, service.scan_interval) == (7, 60)

    def test_no_secret_is_in_a_refusal(self, logs: Path) -> None:
        """Whoever takes one field for the other."""
        with pytest.raises(ValueError, match="account_name") as refusal:
            LogMonitorService(logs, "AccountName=a;AccountKey=SECRET==", app_name="app")
        assert "SECRET" not in str(refusal.value)


class TestWhatReviewersFound:
    """Files that were never shipped, or as something else."""

    def test_a_copy_is_a_file_of_its_own(self, logs: Path, blobs: Path) -> None:
        """GIVEN two runs with the same document WHEN shipped by turns THEN each has it."""
        for name in ("a", "b"):
            write(logs / name / "run_info.json", name, age_s=700)
            write(logs / name / "config.json", '{"lr": 1}', age_s=700)
            scanned(monitor_of(logs, blobs, whole_directory=True))
        assert {"logs/a/config.json", "logs/b/config.json"} <= set(stored(blobs))

    def test_another_prefix_is_another_destination(self, logs: Path, blobs: Path) -> None:
        """Its files are not those of the first one."""
        write(logs / STAMPED)
        for prefix in ("one", "two"):
            scanned(monitor_of(logs, blobs, whole_directory=True, prefix=prefix))
        assert set(stored(blobs)) == {f"one/{STAMPED}", f"two/{STAMPED}"}

    def test_what_a_dead_process_was_to_compress_travels_as_it_is(
        self, logs: Path, blobs: Path
    ) -> None:
        """GIVEN its marker, and nobody who has the live file, for ten minutes."""
        path = write(logs / STAMPED, age_s=700)
        write(Path(filenames.marker_name(str(path))), "", age_s=700)
        assert scanned(monitor_of(logs, blobs, whole_directory=True))[0].shipped == 1

    def test_a_name_that_is_no_text_is_shipped_once(self, logs: Path, blobs: Path) -> None:
        """And noted."""
        folder = os.fsencode(logs) + b"/run-\xff"
        os.mkdir(folder)
        with open(folder + b"/" + STAMPED.encode(), "wb") as file:
            file.write(b"{}\n")
        os.utime(file.name, (time.time() - 60,) * 2)
        first, second = scanned(monitor_of(logs, blobs, whole_directory=True), times=2)
        assert (first.shipped, second.shipped, second.failed) == (1, 0, 0)

    def test_a_time_of_another_age_stops_nothing(self, logs: Path, blobs: Path) -> None:
        """GIVEN files of the year 33658, one an orphan's WHEN shipped THEN all go."""
        write(logs / ROTATED)
        for name in ("app-worker-2__2026-11-20.log", f"app-worker-{DEAD}.current.log"):
            path = write(logs / name)
            os.utime(path, (1e12, 1e12))
        (report,) = scanned(monitor_of(logs, blobs), is_finished=True)
        assert f"app/{ROTATED}" in stored(blobs)
        assert report.shipped == 3

    def test_a_clock_that_was_ahead_puts_nothing_off(self, logs: Path, tmp_path: Path) -> None:
        """GIVEN a failure a year ahead WHEN the clock is right again THEN the file goes."""
        failures = Failures(60.0)
        now = time.time()
        failures.put_off("a.log", OSError("full"), "shipping", now + 365 * 86_400)
        assert failures.is_due("a.log", now)
        failures.put_off("b.log", OSError("full"), "shipping", now)
        assert not failures.is_due("b.log", now + 59)

    def test_a_file_that_shifts_between_scan_and_upload_keeps_its_name(
        self, logs: Path, blobs: Path
    ) -> None:
        """GIVEN a job for one file WHEN another has its path THEN the job is refused."""
        path = write(logs / "run.jsonl.1", "old")
        identity = Identity.of(os.stat(path))
        path.rename(logs / "run.jsonl.2")
        write(path, "new")

        async def upload() -> None:
            uploader = AsyncBlobStorageUploader(store=LocalStore(blobs))
            assert await uploader.initialize()
            job = UploadJob(str(path), "run.old.jsonl", {}, holds_lock=True, identity=identity)
            with pytest.raises(FileInUseError):
                await uploader.submit(job)
            await uploader.shutdown()

        asyncio.run(upload())
        assert not stored(blobs)


class TestLogMonitorServicePidHandling:
    """Who writes a file that is named after a process id."""

    def orphan(self, logs: Path, pid: int, age_s: float = 700) -> Path:
        return write(logs / f"app-worker-{pid}.current.log", age_s=age_s)

    def test_a_dead_process_leaves_its_file(self, logs: Path, blobs: Path) -> None:
        """The id in the name is nobody's."""
        self.orphan(logs, DEAD)
        assert scanned(monitor_of(logs, blobs))[0].shipped == 1

    def test_a_live_process_keeps_its_file(self, logs: Path, blobs: Path) -> None:
        """Also when it is silent for long."""
        self.orphan(logs, os.getpid(), age_s=0)
        later = time.time() + 5000
        report = scanned(monitor_of(logs, blobs, now=lambda: later))[0]
        assert (report.in_use, report.shipped) == (1, 0)

    def test_an_id_that_was_given_again_is_another_process(self, logs: Path, blobs: Path) -> None:
        """It began after the last line was written."""
        began = psutil.Process().create_time()
        path = self.orphan(logs, os.getpid())
        os.utime(path, (began - 1000,) * 2)
        assert scanned(monitor_of(logs, blobs))[0].shipped == 1

    def test_a_failing_psutil_counts_as_alive(
        self, logs: Path, blobs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What cannot be known is no death."""

        def fails(pid: int) -> None:
            raise psutil.AccessDenied(pid)

        monkeypatch.setattr(psutil, "Process", fails)
        self.orphan(logs, DEAD)
        assert scanned(monitor_of(logs, blobs))[0].in_use == 1

    def test_a_name_without_an_id_and_a_note_counts_as_alive(self, logs: Path, blobs: Path) -> None:
        """Ten idle minutes are no death."""
        write(logs / "app-api.current.log", age_s=5000)
        assert scanned(monitor_of(logs, blobs))[0].in_use == 1


class TestLogMonitorServiceInitialize:
    """How it begins."""

    def test_it_makes_its_directory_and_runs(self, tmp_path: Path, blobs: Path) -> None:
        """And is there already when asked again."""

        async def run() -> None:
            service = monitor_of(tmp_path / "new", blobs)
            assert await service.initialize()
            assert (tmp_path / "new").is_dir()
            uploader = service.uploader
            assert await service.initialize()
            assert service.uploader is uploader
            await service.shutdown()

        asyncio.run(run())

    def test_local_only_makes_nothing(self, tmp_path: Path) -> None:
        """No directory, no register, no uploader, no task; and a scan that finds nothing."""

        async def run() -> None:
            service = LogMonitorService(tmp_path / "new", app_name="app")
            assert await service.initialize()
            assert service.uploader is None
            assert not service.is_running
            assert (await service.scan()).found == 0
            await service.shutdown()

        asyncio.run(run())
        assert not (tmp_path / "new").exists()

    def test_a_store_that_refuses_can_be_tried_again(
        self, logs: Path, blobs: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """False, said on the console; then True."""

        async def run() -> None:
            store = FaultyStore(blobs)
            service = monitor_of(logs, blobs, store=store)
            store.refuses_to_open = True
            assert not await service.initialize()
            assert not service.is_running
            store.refuses_to_open = False
            assert await service.initialize()
            await service.shutdown()

        asyncio.run(run())

    def test_five_at_once_open_once(self, logs: Path, blobs: Path) -> None:
        """All of them are told that it runs."""

        async def run() -> None:
            store = FaultyStore(blobs)
            service = monitor_of(logs, blobs, store=store)
            assert await asyncio.gather(*(service.initialize() for _ in range(5))) == [True] * 5
            assert store.opened == 1
            await service.shutdown()

        asyncio.run(run())

    def test_a_register_that_cannot_be_made_is_told(
        self, logs: Path, blobs: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """At the start, with the name of the option."""
        (logs / "file").write_text("")
        service = monitor_of(logs, blobs, register=logs / "file" / "register.sqlite")
        assert asyncio.run(service.initialize()) is False
        assert "register=" in capsys.readouterr().err

    def test_a_scan_before_it_says_what_is_missing(self, logs: Path, blobs: Path) -> None:
        """The caller's mistake."""
        with pytest.raises(RuntimeError, match="initialize"):
            asyncio.run(monitor_of(logs, blobs).scan())


class TestLogMonitorServiceScanForRotatedLogs:
    """Rotated files to the store."""

    def test_a_rotated_file_is_shipped_under_its_application(self, logs: Path, blobs: Path) -> None:
        """With what is known of it as metadata; everything else is left alone."""
        write(logs / ROTATED, "2026-11-20 06:00:00.000 | INFO | x\n")
        write(logs / "notes.txt")
        write(logs / "other-worker-1__2026-11-20.log")
        report = scanned(monitor_of(logs, blobs))[0]
        assert (report.found, report.shipped, report.bytes) == (1, 1, 35)
        assert set(stored(blobs)) == {f"app/{ROTATED}"}
        facts = asyncio.run(opened_facts(blobs, f"app/{ROTATED}"))
        assert facts["app"] == "app"
        assert facts["process"] == "worker-1"
        assert facts["source"] == ROTATED
        assert {"host", "first", "last"} <= set(facts)

    def test_a_file_rests_for_30_seconds(self, logs: Path, blobs: Path) -> None:
        """Somebody may still write to it."""
        write(logs / ROTATED, age_s=0)
        clock = [time.time()]
        service = monitor_of(logs, blobs, now=lambda: clock[0])
        assert scanned(service)[0].waiting == 1
        clock[0] += 31
        assert scanned(service)[0].shipped == 1

    def test_a_file_is_shipped_once_across_restarts(self, logs: Path, blobs: Path) -> None:
        """The register outlives the monitor."""
        write(logs / ROTATED)
        first, second = scanned(monitor_of(logs, blobs), monitor_of(logs, blobs))
        assert (first.shipped, second.shipped, second.already_there) == (1, 0, 0)

    @pytest.mark.parametrize("how", ["rename", "touch"])
    def test_a_file_is_known_by_its_content(self, logs: Path, blobs: Path, how: str) -> None:
        """Renamed or touched, it is not sent again."""
        path = write(logs / ROTATED)
        scanned(monitor_of(logs, blobs))
        other = logs / "app-worker-2__2026-11-20.log"
        if how == "rename":
            path.rename(other)
        else:
            os.utime(path, (time.time() - 50,) * 2)
        reports = scanned(monitor_of(logs, blobs), times=2)
        assert sum(report.shipped for report in reports) == 0
        assert reports[1].already_there == 0
        assert set(stored(blobs)) == {f"app/{ROTATED}"}

    def test_an_empty_file_is_shipped(self, logs: Path, blobs: Path) -> None:
        """Two of them are two."""
        write(logs / ROTATED, "")
        write(logs / "app-worker-2__2026-11-20.log", "")
        assert scanned(monitor_of(logs, blobs), times=2)[0].shipped == 2
        assert len(stored(blobs)) == 2

    def test_a_missing_directory_holds_nothing(self, logs: Path, blobs: Path) -> None:
        """Also when it goes while the monitor runs."""

        async def run() -> int:
            service = monitor_of(logs, blobs, register=blobs.with_name("register.sqlite"))
            await service.initialize(scans=False)
            logs.rmdir()
            report = await service.scan()
            await service.shutdown()
            return int(report.found)

        assert asyncio.run(run()) == 0

    def test_a_file_that_somebody_holds_is_left_for_later(self, logs: Path, blobs: Path) -> None:
        """A slow writer, gzip or another monitor."""
        path = write(logs / ROTATED)
        service = monitor_of(logs, blobs)
        with locks.try_exclusive_file(str(path)) as descriptor:
            assert descriptor is not None
            assert scanned(service)[0].in_use == 1
        assert scanned(service)[0].shipped == 1

    def test_a_failure_is_not_done_and_waits_longer_each_time(
        self, logs: Path, blobs: Path
    ) -> None:
        """The store comes back: the file is shipped, once its pause is over."""
        write(logs / ROTATED)
        clock = [time.time()]

        async def run() -> list[str]:
            store = FaultyStore(blobs)
            store.error = StoreError("no permission")
            service = monitor_of(logs, blobs, store=store, now=lambda: clock[0])
            await service.initialize(scans=False)
            told = []
            for step_s in (0, 1, 60, 60, 61):
                clock[0] += step_s
                report = await service.scan()
                told.append("failed" if report.failed else "waiting" if report.waiting else "?")
            store.error = None
            clock[0] += 500
            told.append(f"shipped {(await service.scan()).shipped}")
            assert service.failures == {"StoreError": 3}
            await service.shutdown()
            return told

        assert asyncio.run(run()) == [
            "failed", "waiting", "failed", "waiting", "failed", "shipped 1",
        ]  # fmt: skip

    def test_a_store_that_is_out_ends_the_scan(self, logs: Path, blobs: Path) -> None:
        """Not each of a thousand files is tried in vain."""
        for number in range(40):
            write(logs / f"app-worker-{number}__2026-11-20.log", f"{number}\n")

        async def run() -> Any:
            store = FaultyStore(blobs)
            store.error = StoreError("out")
            service = monitor_of(logs, blobs, store=store, workers=1)
            await service.initialize(scans=False)
            report = await service.scan()
            await service.shutdown(scans=False)
            return report

        report = asyncio.run(run())
        assert report.failed + report.waiting == 40
        assert report.failed <= 4

    def test_the_same_name_with_other_content_keeps_both(self, logs: Path, blobs: Path) -> None:
        """Another host's, for example: nothing is written over."""
        write(blobs / "app" / ROTATED, "other\n")
        write(logs / ROTATED, "mine\n")
        assert scanned(monitor_of(logs, blobs))[0].shipped == 1
        assert sorted(stored(blobs).values()) == ["mine\n", "other\n"]


class TestLogMonitorServiceOrphanDetection:
    """Files of other processes of the application."""

    def test_the_file_of_a_killed_process_is_renamed_and_shipped(
        self, logs: Path, blobs: Path
    ) -> None:
        """After ten minutes; a process of that name then begins a new file."""
        clock = [time.time()]
        service = monitor_of(logs, blobs, now=lambda: clock[0])
        with writer(logs):
            path = live_file(logs)
        clock[0] = time.time() + 500
        assert scanned(service)[0].waiting == 1
        clock[0] += 200
        assert scanned(service)[0].shipped == 1
        assert not path.exists()
        assert not list(logs.glob(".*.owner"))
        day = time.strftime("%Y-%m-%d")
        assert set(stored(blobs)) == {f"app/{path.name.removesuffix('.current.log')}__{day}.log"}

    @pytest.mark.parametrize("name", ["", "api"])
    def test_a_silent_live_process_keeps_its_file(self, logs: Path, blobs: Path, name: str) -> None:
        """Also one with a name of its own."""
        with writer(logs, name):
            live_file(logs)
            later = time.time() + 5000
            assert scanned(monitor_of(logs, blobs, now=lambda: later))[0].in_use == 1

    def test_a_killed_process_with_a_name_of_its_own_is_an_orphan(
        self, logs: Path, blobs: Path
    ) -> None:
        """A note beside the file tells who wrote it."""
        with writer(logs, "api"):
            live_file(logs)
        later = time.time() + 700
        assert scanned(monitor_of(logs, blobs, now=lambda: later))[0].shipped == 1

    def test_the_leaders_file_waits_for_all_processes(self, logs: Path, blobs: Path) -> None:
        """Once nobody is alive it is shipped as well."""
        with writer(logs, mode="leader"):
            live_file(logs)
            later = time.time() + 5000
            service = monitor_of(logs, blobs, now=lambda: later)
            assert scanned(service)[0].in_use == 1
        assert scanned(service)[0].shipped == 1

    def test_rotated_orphans_do_not_wait_for_ten_minutes(self, logs: Path, blobs: Path) -> None:
        """Thirty seconds will do."""
        write(logs / f"app-worker-{DEAD}__2026-11-20.log", age_s=31)
        assert scanned(monitor_of(logs, blobs))[0].shipped == 1

    def test_a_second_file_of_a_day_gets_a_number(self, logs: Path, blobs: Path) -> None:
        """No rotated file is replaced."""
        live = write(logs / f"app-worker-{DEAD}.current.log", "live\n", age_s=700)
        day = time.strftime("%Y-%m-%d", time.localtime(live.stat().st_mtime))
        write(logs / f"app-worker-{DEAD}__{day}.log", "rotated\n")
        scanned(monitor_of(logs, blobs))
        assert stored(blobs) == {
            f"app/app-worker-{DEAD}__{day}.log": "rotated\n",
            f"app/app-worker-{DEAD}__{day}.1.log": "live\n",
        }

    def test_other_applications_are_left_alone(self, logs: Path, blobs: Path) -> None:
        """`app` is not `app-bar`."""
        write(logs / f"app-bar-worker-{DEAD}.current.log", age_s=700)
        write(logs / f"app-bar-worker-{DEAD}__2026-11-20.log")
        assert scanned(monitor_of(logs, blobs))[0].found == 0

    def test_without_orphan_cleanup_only_own_files_are_taken(self, logs: Path, blobs: Path) -> None:
        """Those of the process name that it was given."""
        write(logs / "app-own__2026-11-20.log", "own")
        write(logs / "app-other__2026-11-20.log", "other")
        service = monitor_of(logs, blobs, process_name="own", enable_orphan_cleanup=False)
        assert scanned(service)[0].shipped == 1
        assert set(stored(blobs)) == {"app/app-own__2026-11-20.log"}

    def test_two_monitors_ship_each_file_once(self, logs: Path, blobs: Path) -> None:
        """Two real processes at one directory at the same time."""
        for number in range(40):
            write(logs / f"app-worker-{number}__2026-11-20.log", f"{number}\n" * 50)
        write(logs / f"app-worker-{DEAD}.current.log", "orphan\n", age_s=700)
        processes = [monitor_process(logs, blobs) for _ in range(2)]
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        results = [process.communicate(timeout=60)[0].split() for process in processes]
        assert sum(int(shipped) for shipped, _ in results) == 41
        assert [failed for _, failed in results] == ["0", "0"]
        assert len(stored(blobs)) == 41

    def test_a_kill_at_any_moment_loses_nothing(self, logs: Path, blobs: Path) -> None:
        """A monitor that is killed in mid-upload is followed by one that goes on."""
        texts = {}
        for number in range(60):
            name = f"app-worker-{number}__2026-11-20.log"
            texts[f"app/{name}"] = f"{number}\n" * 2000
            write(logs / name, texts[f"app/{name}"])
        chance = random.Random(7)
        for _ in range(4):
            process = monitor_process(logs, blobs)
            process.stdin.write("go\n")
            process.stdin.flush()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)
            process.communicate()
        scanned(monitor_of(logs, blobs))
        assert stored(blobs) == texts
        assert scanned(monitor_of(logs, blobs))[0].shipped == 0


class TestLogMonitorServiceMonitorLoop:
    """The loop in the background."""

    def looped(
        self, logs: Path, blobs: Path, pauses: int, before: Callable[[Any], None] = lambda _: None
    ) -> list[float]:
        async def run() -> list[float]:
            sleep = Pauses(pauses)
            service = monitor_of(logs, blobs, sleep=sleep, scan_interval=17)
            before(service)
            await service.initialize()
            await asyncio.wait_for(sleep.are_over.wait(), 30)
            await service.shutdown()
            return sleep.seconds

        return asyncio.run(run())

    def test_it_sleeps_after_every_scan(self, logs: Path, blobs: Path) -> None:
        """For the interval."""
        write(logs / ROTATED)
        assert self.looped(logs, blobs, 3) == [17, 17, 17]
        assert set(stored(blobs)) == {f"app/{ROTATED}"}

    def test_a_failing_scan_waits_5_seconds_and_the_next_works(
        self, logs: Path, blobs: Path
    ) -> None:
        """Here the clock fails once."""
        write(logs / ROTATED)
        names: list[str] = []

        async def run() -> list[float]:
            sleep = Pauses(2)
            failing = [RuntimeError("for once")]

            def now() -> float:
                if failing:
                    raise failing.pop()
                return time.time()

            service = monitor_of(logs, blobs, sleep=sleep, scan_interval=17, now=now)
            await service.initialize()
            await asyncio.wait_for(sleep.are_over.wait(), 30)
            names.extend(service.failures)
            await service.shutdown()
            return sleep.seconds

        assert asyncio.run(run()) == [AFTER_ERROR_S, 17]
        assert names == ["RuntimeError"]
        assert set(stored(blobs)) == {f"app/{ROTATED}"}

    def test_a_cancelled_loop_ends_cleanly(self, logs: Path, blobs: Path) -> None:
        """Nothing is left running."""

        async def run() -> int:
            sleep = Pauses(1)
            service = monitor_of(logs, blobs, sleep=sleep)
            await service.initialize()
            await asyncio.wait_for(sleep.are_over.wait(), 30)
            await service.shutdown()
            return len(asyncio.all_tasks())

        assert asyncio.run(run()) == 1

    def test_what_it_says_reaches_no_file_of_the_application(
        self,
        logs: Path,
        blobs: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Warnings go to the console; two monitors share that, and put it back."""
        monkeypatch.setattr(logging.getLogger(), "level", logging.DEBUG)
        seen: list[logging.LogRecord] = []
        handler = logging.Handler()
        handler.emit = seen.append  # type: ignore[method-assign]
        logging.getLogger().addHandler(handler)
        sdk = logging.getLogger("azure")

        async def run() -> None:
            services = [monitor_of(logs, blobs, register=logs / f"{n}.sqlite") for n in range(2)]
            for service in services:
                await service.initialize()
            await services[0].shutdown()
            log.warning("careful")
            logging.getLogger("azure.identity").info("a request")
            logging.getLogger("azure.identity").warning("a refusal")
            assert not log.propagate
            await services[1].shutdown()

        try:
            asyncio.run(run())
        finally:
            logging.getLogger().removeHandler(handler)
        assert not [record for record in seen if record.name == log.name]
        assert [r.msg for r in seen if r.name.startswith("azure")] == ["a refusal"]
        assert sdk.level == logging.NOTSET
        assert capsys.readouterr().err.count("careful") == 1
        assert log.propagate
        assert not log.handlers

    def test_each_scan_says_a_line(
        self, logs: Path, blobs: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """That it is well."""
        write(logs / ROTATED)
        log.addHandler(caplog.handler)
        with caplog.at_level(logging.INFO, log.name):
            scanned(monitor_of(logs, blobs))
        log.removeHandler(caplog.handler)
        assert f"{logs}: 1 found, 1 shipped; 35 bytes in" in caplog.text


class TestLogMonitorServiceShutdown:
    """How it ends."""

    def test_it_scans_once_more(self, logs: Path, blobs: Path) -> None:
        """What was finished in the meantime is shipped."""

        async def run() -> None:
            sleep = Pauses(1)
            service = monitor_of(logs, blobs, sleep=sleep)
            await service.initialize()
            await asyncio.wait_for(sleep.are_over.wait(), 30)
            write(logs / ROTATED)
            await service.shutdown()

        asyncio.run(run())
        assert set(stored(blobs)) == {f"app/{ROTATED}"}

    def test_it_may_come_twice_or_before_the_begin(self, logs: Path, blobs: Path) -> None:
        """The second does nothing."""

        async def run() -> None:
            service = monitor_of(logs, blobs)
            await service.shutdown()
            await service.initialize()
            await asyncio.gather(service.shutdown(), service.shutdown())
            await service.shutdown()
            assert not service.is_running
            assert service.uploader is not None
            assert not service.uploader.is_ready

        asyncio.run(run())

    def test_it_may_begin_anew(self, logs: Path, blobs: Path) -> None:
        """With the same register."""
        write(logs / ROTATED)
        service = monitor_of(logs, blobs)
        assert [report.shipped for report in scanned(service, service)] == [1, 0]

    def test_an_upload_under_way_is_waited_for_and_noted(self, logs: Path, blobs: Path) -> None:
        """The loop's scan is cancelled; its upload is not sent twice."""
        write(logs / ROTATED)

        async def run() -> None:
            store = FaultyStore(blobs)
            store.goes_on = asyncio.Event()
            service = monitor_of(logs, blobs, store=store)
            await service.initialize()
            await asyncio.wait_for(store.reached.wait(), 30)
            ending = asyncio.create_task(service.shutdown())
            await asyncio.sleep(0)
            store.goes_on.set()
            await ending
            assert service.uploader is not None
            assert (service.uploader.uploaded, service.uploader.already_there) == (1, 0)

        asyncio.run(run())
        report = scanned(monitor_of(logs, blobs))[0]
        assert (report.shipped, report.already_there) == (0, 0)

    def test_a_store_that_hangs_is_given_up_in_time(self, logs: Path, blobs: Path) -> None:
        """The file stays, and the next monitor ships it."""
        write(logs / ROTATED)

        async def run() -> None:
            store = FaultyStore(blobs)
            store.goes_on = asyncio.Event()
            service = monitor_of(logs, blobs, store=store)
            await service.initialize()
            await asyncio.wait_for(store.reached.wait(), 30)
            await service.shutdown(timeout_s=0.05)
            assert len(asyncio.all_tasks()) == 1

        asyncio.run(run())
        assert scanned(monitor_of(logs, blobs))[0].shipped == 1

    def test_a_failing_last_scan_does_not_stop_it(self, logs: Path, blobs: Path) -> None:
        """Uploader and register are closed all the same."""

        async def run() -> None:
            def now() -> float:
                raise RuntimeError("no clock")

            service = monitor_of(logs, blobs, now=now)
            await service.initialize(scans=False)
            await service.shutdown()
            assert not service.is_running
            assert service.failures == {"RuntimeError": 1}

        asyncio.run(run())

    def test_at_the_end_of_a_run_nothing_rests(self, logs: Path, blobs: Path) -> None:
        """What nobody has open is shipped at once, what somebody writes is not."""
        write(logs / "run_info.json", "{}", age_s=0)
        write(logs / STAMPED, age_s=0)
        other = write(logs / "other" / "run_info.json", "{ }", age_s=0).parent
        handler = RotatingJsonlHandler(other / "run.jsonl")

        async def run() -> None:
            service = monitor_of(logs, blobs, whole_directory=True)
            await service.initialize()
            await service.shutdown(is_finished=True)

        asyncio.run(run())
        handler.close()
        names = {"run_info.json", STAMPED, "other/run_info.json"}
        assert set(stored(blobs)) == {f"logs/{name}" for name in names}


class TestWholeDirectory:
    """Everything below a directory, as `foundry-log ship` has it."""

    def test_names_are_paths_below_a_prefix(self, logs: Path, blobs: Path) -> None:
        """Of get_logger's files, of runs, and of numbered files."""
        run = logs / "exp" / "output"
        write(logs / ROTATED, "1")
        write(run / STAMPED, "2")
        write(run / "run_info.json", "3", age_s=700)
        write(run / "run@rank1.jsonl", "4", age_s=700)
        numbered = write(run / "run.jsonl.1", "5")
        os.utime(numbered, (1_795_242_191.5,) * 2)
        service = monitor_of(logs, blobs, whole_directory=True, prefix="a/b")
        assert scanned(service)[0].shipped == 5
        below = "a/b/exp/output"
        assert stored(blobs) == {
            f"a/b/{ROTATED}": "1",
            f"{below}/{STAMPED}": "2",
            f"{below}/run_info.json": "3",
            f"{below}/run@rank1.jsonl": "4",
            f"{below}/run.20261121T062311500000Z.jsonl": "5",
        }

    def test_a_numbered_file_that_moves_on_is_not_sent_again(self, logs: Path, blobs: Path) -> None:
        """Tomorrow it is `.2`, and `.1` is another one."""
        first = write(logs / "run.jsonl.1", "one\n", age_s=100)
        service = monitor_of(logs, blobs, whole_directory=True)
        scanned(service)
        first.rename(logs / "run.jsonl.2")
        write(logs / "run.jsonl.1", "two\n")
        assert scanned(service)[0].shipped == 1
        assert sorted(stored(blobs).values()) == ["one\n", "two\n"]

    def test_a_numbered_file_that_moves_on_before_its_upload_is_not_called_done(
        self, logs: Path, blobs: Path
    ) -> None:
        """What was uploaded was another file."""
        write(logs / "run.jsonl.1", "one\n", age_s=100)

        async def run() -> None:
            register = Register(str(logs / REGISTER_NAME), "file:///store")
            uploader = AsyncBlobStorageUploader(store=LocalStore(blobs))
            await uploader.initialize()

            def name_it(file: LogFile) -> str:
                (logs / "run.jsonl.1").rename(logs / "run.jsonl.2")  # as a rotation just now
                write(logs / "run.jsonl.1", "two\n")
                return "blob"

            (file,) = log_files(str(logs), Scope(), lambda *_: None)
            shipments = Shipments(uploader, register, name_it, Failures(60), time.time)
            await shipments.ship(file)
            assert not register.is_done(file.identity)
            await uploader.shutdown()
            register.close()

        asyncio.run(run())

    def test_ended_runs_are_shipped_by_one_monitor_at_a_time(self, logs: Path, blobs: Path) -> None:
        """Their own files are not locked: a run that comes back must not wait."""
        write(logs / "run_info.json", age_s=700)
        service = monitor_of(logs, blobs, whole_directory=True)
        lock = f"{service.register_path}.runs.lock"
        with locks.exclusive_file(lock, 0o640):
            assert scanned(service)[0].in_use == 1
        assert scanned(service)[0].shipped == 1

    def test_a_plan_does_nothing(self, logs: Path, blobs: Path) -> None:
        """And says what a scan would do."""
        write(logs / ROTATED, "12", age_s=100)
        write(logs / STAMPED, "345", age_s=0)
        service = monitor_of(logs, blobs, whole_directory=True)
        plan = asyncio.run(service.plan())
        assert [str(each) for each in plan] == [
            f"ship: {logs / ROTATED} (2 bytes) -> logs/{ROTATED}",
            f"wait: {logs / STAMPED} (3 bytes)",
        ]
        assert sorted(os.listdir(logs)) == sorted([ROTATED, STAMPED])
        assert not blobs.exists()
        scanned(service, is_finished=True)
        assert asyncio.run(service.plan()) == ()


@pytest.mark.services
class TestAgainstAServer:
    """The same with the real SDK and a server that speaks its protocol."""

    def test_files_are_shipped_once_confirmed_and_deleted(self, logs: Path, azurite: Any) -> None:
        """By name and key of an account, as the spec's services are set up."""
        path = write(logs / ROTATED)
        container, clock = azurite.new_container(), [time.time()]

        def service() -> LogMonitorService:
            return LogMonitorService(
                logs,
                account_url=azurite.account_url,
                container_name=container,
                app_name="app",
                credential=azurite.key,
                now=lambda: clock[0],
            )

        assert [report.shipped for report in scanned(service(), service())] == [1, 0]
        os.remove(logs / REGISTER_NAME)
        assert scanned(service())[0].already_there == 1
        clock[0] += 30 * DAY_S
        assert scanned(service())[0].deleted == 1
        assert not path.exists()


class TestDeletion:
    """A local file goes only when nothing speaks against it."""

    @pytest.fixture
    def clock(self) -> list[float]:
        return [time.time()]

    def service(self, logs: Path, blobs: Path, clock: list[float], **options: Any) -> Any:
        return monitor_of(logs, blobs, now=lambda: clock[0], **options)

    def test_it_goes_after_retention_and_grace(
        self, logs: Path, blobs: Path, clock: list[float]
    ) -> None:
        """Not before either; the blob stays, and the register knows."""
        path = write(logs / ROTATED, age_s=8 * DAY_S)
        service = self.service(logs, blobs, clock)
        assert scanned(service, times=2)[1].deleted == 0
        clock[0] += 3599
        assert scanned(service)[0].deleted == 0
        clock[0] += 2
        assert [str(each).split(":")[0] for each in asyncio.run(service.plan())] == ["delete"]
        assert scanned(service)[0].deleted == 1
        assert not path.exists()
        assert set(stored(blobs)) == {f"app/{ROTATED}"}

    def test_a_file_that_changed_lately_stays(
        self, logs: Path, blobs: Path, clock: list[float]
    ) -> None:
        """For as many days as it was told."""
        path = write(logs / ROTATED)
        service = self.service(logs, blobs, clock)
        scanned(service)
        clock[0] += 6.9 * DAY_S
        assert scanned(service)[0].deleted == 0
        clock[0] += 0.2 * DAY_S
        assert scanned(service)[0].deleted == 1
        assert not path.exists()

    @pytest.mark.parametrize("doubt", ["gone", "other", "never"])
    def test_any_doubt_keeps_it(
        self, logs: Path, blobs: Path, clock: list[float], doubt: str
    ) -> None:
        """The store has lost it, has something else, or it is not to be deleted at all."""
        path = write(logs / ROTATED)
        options = {"retention_days": None} if doubt == "never" else {}
        service = self.service(logs, blobs, clock, **options)
        scanned(service)
        blob = blobs / "app" / ROTATED
        if doubt == "gone":
            blob.unlink()
        elif doubt == "other":
            blob.chmod(0o600)
            blob.write_text("something else")
        clock[0] += 30 * DAY_S
        report = scanned(service)[0]
        assert (report.deleted, report.failed) == (0, 0 if doubt == "never" else 1)
        assert path.exists()

    def test_a_local_file_of_other_content_stays(
        self,
        logs: Path,
        blobs: Path,
        clock: list[float],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Written over in place, with the same size and time: only its bytes tell."""
        path = write(logs / ROTATED, "one\n")
        service = self.service(logs, blobs, clock)
        scanned(service)
        status = path.stat()
        path.write_text("two\n")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        clock[0] += 30 * DAY_S
        assert scanned(service)[0].failed == 1
        assert path.read_text() == "two\n"
        assert "not what was shipped" in capsys.readouterr().err

    @pytest.mark.parametrize("reason", ["held", "marked", "run"])
    def test_one_that_is_needed_stays(
        self, logs: Path, blobs: Path, clock: list[float], reason: str
    ) -> None:
        """Somebody holds it, is to be told of it, or its run goes on and may read its history."""
        path = write(logs / STAMPED)
        write(logs / "run_info.json", "{}", age_s=700)
        service = self.service(logs, blobs, clock, whole_directory=True)
        scanned(service)
        clock[0] += 30 * DAY_S
        with contextlib.ExitStack() as stack:
            if reason == "held":
                stack.enter_context(locks.try_exclusive_file(str(path)))
            elif reason == "marked":
                Path(filenames.marker_name(str(path))).write_text("")
            else:
                handler = RotatingJsonlHandler(logs / "run.jsonl")
                stack.callback(handler.close)
            report = scanned(service)[0]
        assert (report.deleted, report.failed) == (0, 0)
        assert path.exists()
        assert (logs / "run_info.json").exists()

    def test_live_names_and_numbered_ones_are_never_deleted(
        self, logs: Path, blobs: Path, clock: list[float]
    ) -> None:
        """Somebody may come back to the one; the other's name may be another file's."""
        for name in ("run_info.json", "run.jsonl", "run.jsonl.1"):
            write(logs / name, name, age_s=700)
        service = self.service(logs, blobs, clock, whole_directory=True)
        assert scanned(service)[0].shipped == 3
        clock[0] += 30 * DAY_S
        assert scanned(service)[0].deleted == 0

    def test_local_only_deletes_nothing(self, logs: Path, clock: list[float]) -> None:
        """What is nowhere else stays; its writers prune it."""
        path = write(logs / ROTATED, age_s=400 * DAY_S)
        service = LogMonitorService(logs, app_name="app", now=lambda: clock[0])
        assert scanned(service)[0].deleted == 0
        assert path.exists()


async def opened_facts(blobs: Path, name: str) -> Mapping[str, str]:
    store = LocalStore(blobs)
    await store.open()
    facts = await store.facts(name)
    await store.close()
    assert facts is not None
    assert facts.md5 == hashlib.md5((blobs / name).read_bytes()).digest()
    return facts.metadata
