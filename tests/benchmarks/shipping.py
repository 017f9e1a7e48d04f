"""What it costs to find files, to queue them, and to bring them to a store: Azurite, on loopback.

Azurite is fetched by npm where it is missing; see `tests/azurite.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.checks import expect
from tests.benchmarks.goals import Goal
from tests.benchmarks.harness import Comparison, Contender, Start, Subject

NEEDS = ("azure", "aiohttp")
REMEDY = "pip install 'foundry_log[test-services]'"
SMALL = 20_000
MEBIBYTE = 1 << 20
AT_A_TIME = 4
_RESTED_S = 3600.0


def files_of(directory: Path, steps: range, size: int = SMALL) -> list[str]:
    """Make a rotated file for each step, and return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    line = b'{"timestamp":"2026-11-21T06:23:11.123456+00:00","message":"Step done"}\n'
    more, rested = line * (size // len(line)), time.time() - _RESTED_S
    paths = []
    for step in steps:
        path = directory / f"run.20261121T{step:012d}Z.jsonl"
        # No two of the same content, and hardly two of the same size, as in life.
        path.write_bytes(line[:-2] + b',"step":%d%s}\n' % (step, b" " * (step % 997)) + more)
        os.utime(path, (rested, rested))
        paths.append(str(path))
    return paths


# --- a scan ---------------------------------------------------------------------------------------


def bare_walk(directory: Path) -> Iterator[Subject]:
    """List a directory and look at each file."""
    seen = 0

    def run(steps: range) -> int:
        nonlocal seen
        folder = directory / str(steps.start)
        files_of(folder, steps, size=16)
        started = time.perf_counter_ns()
        with os.scandir(folder) as entries:
            seen += len([entry.stat(follow_symlinks=False).st_size for entry in entries])
        return time.perf_counter_ns() - started

    yield Subject(run, lambda count: expect(seen == count, f"{seen} files of {count}"))


def scans(clock: Callable[[], int], count: int = 0) -> Start:
    """Return what scans a directory of files that were shipped before, as nearly all are.

    Args:
        clock: of nanoseconds.
        count: files in the directory; 0 for one a step, and one scan for all steps.
    """

    def start(directory: Path) -> Iterator[Subject]:
        from foundry_log import LogMonitorService
        from foundry_log.shipping.identity import Identity
        from foundry_log.shipping.local_store import LocalStore
        from foundry_log.shipping.register import Register, Shipped

        loop = asyncio.new_event_loop()
        found = 0

        def opened(folder: Path, steps: range) -> LogMonitorService:
            monitor = LogMonitorService(
                folder / "logs",
                store=LocalStore(str(directory / "store")),
                whole_directory=True,
                register=folder / "register.sqlite",
                retention_days=None,
            )
            register = Register(monitor.register_path, monitor.destination)
            for path in files_of(folder / "logs", steps, size=16):
                shipped = Shipped(b"0" * 16, os.path.basename(path), path, time.time())
                register.add(Identity.of(os.lstat(path)), shipped)
            register.close()
            expect(loop.run_until_complete(monitor.initialize(scans=False)), "no monitor")
            return monitor

        def scan(monitor: LogMonitorService) -> int:
            nonlocal found
            started = clock()
            report = loop.run_until_complete(monitor.scan())
            elapsed = clock() - started
            found += report.found
            expect(report.shipped == 0, f"shipped once more: {report}")
            return elapsed

        def run_one(steps: range) -> int:
            monitor = opened(directory / str(steps.start), steps)
            try:
                return scan(monitor)
            finally:
                loop.run_until_complete(monitor.shutdown(scans=False))

        with contextlib.closing(loop):
            if not count:
                check = lambda number: expect(found == number, f"{found} of {number}")  # noqa: E731
                yield Subject(run_one, check)
                return
            monitor = opened(directory / "idle", range(count))
            yield Subject(
                lambda steps: sum(scan(monitor) for _ in steps),
                lambda number: expect(found == number * count, f"{found} of {number * count}"),
            )
            loop.run_until_complete(monitor.shutdown(scans=False))

    return start


# --- the queue ------------------------------------------------------------------------------------


def bare_queue(directory: Path) -> Iterator[Subject]:
    """Look at each file and put its path into a queue of asyncio."""
    queue: asyncio.Queue[Any] = asyncio.Queue()

    def run(steps: range) -> int:
        paths = files_of(directory, steps)
        started = time.perf_counter_ns()
        for path in paths:
            queue.put_nowait((path, os.stat(path).st_size))
        return time.perf_counter_ns() - started

    yield Subject(run, lambda count: expect(queue.qsize() == count, f"{queue.qsize()} of {count}"))


def our_queue(directory: Path) -> Iterator[Subject]:
    """Give each file to the uploader."""
    from foundry_log import AsyncBlobStorageUploader
    from foundry_log.shipping.local_store import LocalStore

    uploader = AsyncBlobStorageUploader(store=LocalStore(str(directory / "store")))
    loop = asyncio.new_event_loop()

    async def queue(paths: list[str]) -> int:
        started = time.perf_counter_ns()
        for path in paths:
            await uploader.upload_file(path, app_name="bench")
        return time.perf_counter_ns() - started

    with contextlib.closing(loop):
        expect(loop.run_until_complete(uploader.initialize()), "no uploader")

        def check(count: int) -> None:
            taken = uploader.pending + uploader.uploaded
            expect(taken == count and not uploader.failed, f"{taken} of {count}")

        yield Subject(
            lambda steps: loop.run_until_complete(queue(files_of(directory / "logs", steps))), check
        )
        loop.run_until_complete(uploader.shutdown(0))


# --- uploads --------------------------------------------------------------------------------------

Upload = Callable[[Sequence[str]], Awaitable[None]]


def uploads(
    connect: Callable[[Any, str], Any], prepare: Callable[[Path, range], list[str]]
) -> Start:
    """Return what uploads the files of the steps to a server of its own.

    Args:
        connect: an asynchronous context manager of server and container that gives an `Upload`.
        prepare: makes files, which are not timed.
    """

    def start(directory: Path) -> Iterator[Subject]:
        from tests.azurite import running_azurite

        loop = asyncio.new_event_loop()
        sizes: list[int] = []
        with contextlib.closing(loop), running_azurite() as server:
            container = server.new_container()
            connection = connect(server, container)
            upload: Upload = loop.run_until_complete(connection.__aenter__())

            def run(steps: range) -> int:
                paths = prepare(directory / str(steps.start), steps)
                sizes.extend(os.path.getsize(path) for path in paths)
                started = time.perf_counter_ns()
                loop.run_until_complete(_awaited(upload(paths)))
                elapsed = time.perf_counter_ns() - started
                for path in paths:
                    os.remove(path)
                return elapsed

            def check(count: int) -> None:
                there = loop.run_until_complete(_sizes_in(server, container))
                expect(
                    there == sorted(sizes), f"{len(there)} blobs of {len(sizes)}, or other sizes"
                )

            yield Subject(run, check)
            loop.run_until_complete(connection.__aexit__(None, None, None))

    return start


async def _awaited(work: Awaitable[None]) -> None:
    await work


async def _sizes_in(server: Any, container: str) -> list[int]:
    async with _client(server) as client:
        listed = client.get_container_client(container).list_blobs()
        return sorted([blob.size async for blob in listed])


def _client(server: Any) -> Any:
    from azure.storage.blob.aio import BlobServiceClient

    return BlobServiceClient(server.account_url, credential=server.key, max_block_size=4 * MEBIBYTE)


@contextlib.asynccontextmanager
async def bare_sdk(server: Any, container: str, validates: bool = False) -> Any:
    """Microsoft's SDK by itself, as many files at a time as ours."""
    async with _client(server) as client:
        blobs = client.get_container_client(container)
        await blobs.create_container()

        async def upload(paths: Sequence[str]) -> None:
            left = iter(paths)

            async def lane() -> None:
                for path in left:
                    with open(path, "rb") as file:
                        name = "/".join(path.rsplit("/", 2)[1:])
                        await blobs.upload_blob(
                            name, file, max_concurrency=AT_A_TIME, validate_content=validates
                        )

            await asyncio.gather(*(lane() for _ in range(AT_A_TIME)))

        yield upload


def validating_sdk(server: Any, container: str) -> Any:
    """The same, with an MD5 of each block for the server to compare, as ours."""
    return bare_sdk(server, container, validates=True)


@contextlib.asynccontextmanager
async def our_uploader(server: Any, container: str) -> Any:
    """Ours, which compares size and MD5 of each file with the store's."""
    from foundry_log import AsyncBlobStorageUploader
    from foundry_log.shipping.blob_storage import UploadJob

    uploader = AsyncBlobStorageUploader(
        server.account_url, container, credential=server.key, workers=AT_A_TIME
    )
    expect(await uploader.initialize(), "no uploader")

    async def upload(paths: Sequence[str]) -> None:
        jobs = (UploadJob(path, "/".join(path.rsplit("/", 2)[1:])) for path in paths)
        await asyncio.gather(*[uploader.submit(job) for job in jobs])

    yield upload
    expect(await uploader.shutdown() == (), "files are left")


@contextlib.asynccontextmanager
async def our_monitor(server: Any, container: str) -> Any:
    """The monitor: scan, metadata, upload, register."""
    from foundry_log import LogMonitorService

    uploaders: list[LogMonitorService] = []

    async def upload(paths: Sequence[str]) -> None:
        monitor = LogMonitorService(
            os.path.dirname(paths[0]),
            account_url=server.account_url,
            container_name=container,
            credential=server.key,
            whole_directory=True,
            workers=AT_A_TIME,
        )
        expect(await monitor.initialize(scans=False), "no monitor")
        report = await monitor.scan()
        expect(report.shipped == len(paths), f"{report}")
        await monitor.shutdown(scans=False)
        uploaders.append(monitor)

    async with bare_sdk(server, container):  # which makes the container
        yield upload


def one_large(directory: Path, steps: range) -> list[str]:
    """Make one file of as many MiB as there are steps."""
    directory.mkdir(parents=True)
    path = directory / "run.20261121T062311123456Z.jsonl"
    with path.open("wb") as file:
        for _ in steps:
            file.write(os.urandom(MEBIBYTE))
    os.utime(path, (time.time() - _RESTED_S,) * 2)
    return [str(path)]


_WITHIN = Goal(1.25)  # 0.8 of the SDK's throughput

SHIP_SCAN = Comparison(
    "ship_scan",
    "a file of a directory of files that were shipped, looked at in one scan",
    (
        Contender("limit: os.scandir and lstat", bare_walk, role="limit"),
        Contender(
            "LogMonitorService.scan",
            scans(time.perf_counter_ns),
            role="ours",
            goal=Goal(0.010, unit="ms"),
        ),
    ),
    count=100_000,
    quick=20,
    batches=1,
    repeats=3,
)
SHIP_IDLE = Comparison(
    "ship_idle",
    "CPU time of a scan of 1,000 files in which there is nothing to do; each minute one",
    (
        Contender(
            "LogMonitorService.scan",
            scans(time.process_time_ns, count=1_000),
            role="ours",
            goal=Goal(60.0, unit="ms"),  # 0.1 % of a core
        ),
    ),
    count=50,
    quick=2,
    repeats=3,
)
SHIP_QUEUE = Comparison(
    "ship_queue",
    "a file given to the uploader",
    (
        Contender("limit: os.stat and asyncio.Queue", bare_queue, role="limit"),
        Contender("upload_file", our_queue, role="ours", goal=Goal(0.333, unit="ms")),
    ),
    count=15_000,
    quick=20,
    repeats=3,
)
SHIP_SMALL = Comparison(
    "ship_small",
    "a file of 20 kB to Azurite, four at a time",
    (
        Contender(
            "limit: azure-storage-blob",
            uploads(bare_sdk, files_of),
            role="limit",
            needs=NEEDS,
            remedy=REMEDY,
        ),
        Contender(
            "AsyncBlobStorageUploader",
            uploads(our_uploader, files_of),
            role="ours",
            needs=NEEDS,
            remedy=REMEDY,
            goal=_WITHIN,
        ),
        Contender(
            "LogMonitorService",
            uploads(our_monitor, files_of),
            needs=NEEDS,
            remedy=REMEDY,
        ),
    ),
    count=1_000,
    quick=10,
    batches=1,
    repeats=3,
)
SHIP_LARGE = Comparison(
    "ship_large",
    "a MiB of one large file to Azurite",
    (
        Contender(
            "limit: azure-storage-blob",
            uploads(bare_sdk, one_large),
            role="limit",
            needs=NEEDS,
            remedy=REMEDY,
        ),
        Contender(
            "the same with validate_content",
            uploads(validating_sdk, one_large),
            needs=NEEDS,
            remedy=REMEDY,
        ),
        Contender(
            "AsyncBlobStorageUploader",
            uploads(our_uploader, one_large),
            role="ours",
            needs=NEEDS,
            remedy=REMEDY,
            goal=_WITHIN,
        ),
    ),
    count=512,
    quick=10,
    batches=1,
    repeats=3,
)
