"""AsyncBlobStorageUploader: the spec's classes and edge cases, against stores without a network.

What needs a server is in `test_blob_storage_azurite.py`.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import os
import subprocess
import sys
import tracemalloc
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from foundry_log import RotatingJsonlHandler
from foundry_log.shipping import blob_storage
from foundry_log.shipping.blob_storage import (
    AsyncBlobStorageUploader,
    FileInUseError,
    NotReadyError,
    UploadJob,
)
from foundry_log.shipping.content import BLOCK, Content
from foundry_log.shipping.delivery import suffixed, told
from foundry_log.shipping.local_store import LocalStore
from foundry_log.shipping.store import (
    BlobExistsError,
    BlobFacts,
    CorruptedError,
    StoreError,
    TemporaryError,
)
from tests.event_loops import in_loop

pytestmark = pytest.mark.unit


class Clock:
    """Moves when somebody sleeps, at once."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        await asyncio.sleep(0)
        self.now = max(self.now, until)


@dataclass(frozen=True)
class Fault:
    """What happens at one put: an error, before or after the blob is there; or a wrong byte."""

    error: BaseException | None = None
    is_stored: bool = False
    is_damaged: bool = False


@dataclass
class MemoryStore:
    """A store that keeps blobs in memory, and at each put does what its script says next."""

    script: deque[Fault] = field(default_factory=deque)
    faults_at_open: deque[Exception] = field(default_factory=deque)
    blobs: dict[str, tuple[bytes, Mapping[str, str]]] = field(default_factory=dict)
    url: str = "memory://blobs"
    opened: int = 0
    closed: int = 0
    puts: int = 0
    lets_through: Callable[[], Awaitable[object]] | None = None

    async def open(self) -> None:
        self.opened += 1
        await asyncio.sleep(0)
        if self.faults_at_open:
            raise self.faults_at_open.popleft()

    async def put_new(self, name: str, content: Content, metadata: Mapping[str, str]) -> BlobFacts:
        self.puts += 1
        fault = self.script.popleft() if self.script else Fault()
        if fault.error and not fault.is_stored:
            raise fault.error
        data = b"".join([block async for block in content.blocks()])
        if self.lets_through:
            await self.lets_through()
        if name in self.blobs:
            raise BlobExistsError(f"{name} is taken")
        self.blobs[name] = (b"!" + data[1:] if fault.is_damaged else data, metadata)
        if fault.error:
            raise fault.error
        return self._facts(name)

    async def facts(self, name: str) -> BlobFacts | None:
        return self._facts(name) if name in self.blobs else None

    async def close(self) -> None:
        self.closed += 1

    def _facts(self, name: str) -> BlobFacts:
        data, metadata = self.blobs[name]
        return BlobFacts(len(data), hashlib.md5(data).digest(), metadata)


def store_with(*script: Fault | BaseException) -> MemoryStore:
    """A store whose first puts fail so; an error alone means that nothing is stored."""
    return MemoryStore(deque(f if isinstance(f, Fault) else Fault(f) for f in script))


async def uploader_to(store: MemoryStore, **options: Any) -> AsyncBlobStorageUploader:
    """An uploader that is ready and never waits for real."""
    clock = Clock()
    uploader = AsyncBlobStorageUploader(
        store=store, clock=clock, sleep=clock.sleep, random=lambda: 0.0, **options
    )
    assert await uploader.initialize()
    return uploader


def file_of(tmp_path: Path, text: str = "one line\n", name: str = "run.log") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def many_files(tmp_path: Path, count: int) -> list[str]:
    return [file_of(tmp_path, f"line {n}\n", f"run-{n}.log") for n in range(count)]


def said(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """The lines of the uploader's logger, from a level up."""
    return [r.getMessage() for r in caplog.records if r.levelno >= level]


class TestAsyncBlobStorageUploaderInit:
    def test_it_starts_with_the_defaults_of_the_spec(self) -> None:
        """Nothing is opened, started or checked by constructing."""
        uploader = AsyncBlobStorageUploader("https://a.blob.core.windows.net", "logs")
        assert (uploader.account_url, uploader.container_name) == (
            "https://a.blob.core.windows.net",
            "logs",
        )
        assert (uploader.max_retries, uploader.retry_delay, uploader.workers) == (5, 2.0, 4)
        assert not uploader.is_ready
        assert uploader.url == "https://a.blob.core.windows.net/logs"

    def test_it_takes_parameters_by_the_names_of_the_spec(self) -> None:
        """Positional or by name."""
        uploader = AsyncBlobStorageUploader(
            account_url="u", container_name="c", max_retries=2, retry_delay=0.5
        )
        assert (uploader.max_retries, uploader.retry_delay) == (2, 0.5)

    @pytest.mark.parametrize("wrong", [{"max_retries": 0}, {"retry_delay": -1}, {"workers": 0}])
    def test_a_number_out_of_range_is_refused_by_its_name(self, wrong: dict[str, Any]) -> None:
        """Field, value, rule and remedy."""
        ((name, value),) = wrong.items()
        with pytest.raises(ValueError, match=f"{name}={value} must be .* or more.*[0-9]"):
            AsyncBlobStorageUploader("u", "c", **wrong)

    def test_it_shows_no_secret(self) -> None:
        """Neither in its text nor in its URL."""
        uploader = AsyncBlobStorageUploader(
            "https://a.blob.core.windows.net/?sv=1&sig=c2VjcmV0", "logs", credential="topsecret"
        )
        assert "c2VjcmV0" not in repr(uploader) + uploader.url
        assert "topsecret" not in repr(uploader) + str(vars(uploader)["_delivery"])


WITHOUT_AZURE = """
import asyncio, sys
from foundry_log.shipping.blob_storage import AsyncBlobStorageUploader
uploader = AsyncBlobStorageUploader("https://a.blob.core.windows.net", "logs")
assert not {"azure", "aiohttp"} & set(sys.modules)
sys.modules["azure"] = None
print(asyncio.run(uploader.initialize()))
"""


class TestAsyncBlobStorageUploaderInitialize:
    @in_loop
    async def test_a_store_that_opens_makes_it_ready(self) -> None:
        """True, and open."""
        store = MemoryStore()
        uploader = await uploader_to(store)
        assert uploader.is_ready and store.opened == 1
        await uploader.shutdown()

    @in_loop
    async def test_a_second_time_does_nothing(self) -> None:
        """Idempotent."""
        store = MemoryStore()
        uploader = await uploader_to(store)
        assert await uploader.initialize()
        assert store.opened == 1
        await uploader.shutdown()

    @in_loop
    async def test_a_store_that_refuses_is_told_closed_and_tried_again(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """False, one line that says why, and the next attempt may succeed."""
        store = MemoryStore(faults_at_open=deque([StoreError("403: no permission to look")]))
        uploader = AsyncBlobStorageUploader(store=store)
        assert not await uploader.initialize()
        assert said(caplog) == [
            "Nothing can be uploaded to memory://blobs: 403: no permission to look"
        ]
        assert (store.closed, uploader.is_ready) == (1, False)
        assert await uploader.initialize()
        await uploader.shutdown()

    def test_azure_is_imported_when_it_is_needed_and_missed_by_its_extra(self) -> None:
        """Not before `initialize`, which says what to install."""
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_AZURE], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
        assert "pip install 'foundry_log[azure]'" in done.stderr

    @in_loop
    async def test_after_a_shutdown_it_begins_anew(self, tmp_path: Path) -> None:
        """One object serves a program that pauses shipping."""
        store = MemoryStore()
        uploader = await uploader_to(store)
        await uploader.shutdown()
        assert await uploader.initialize()
        await uploader.upload_file(file_of(tmp_path))
        assert await uploader.shutdown() == ()
        assert list(store.blobs) == ["run.log"]

    @in_loop
    async def test_cancelled_while_opening_it_closes_what_it_had(self) -> None:
        """No connection outlives the caller who gave up."""
        store = MemoryStore()
        uploader = AsyncBlobStorageUploader(store=store)
        opening = asyncio.create_task(uploader.initialize())
        await asyncio.sleep(0)
        assert store.opened
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        assert (store.closed, uploader.is_ready) == (1, False)


class TestAsyncBlobStorageUploaderUploadFile:
    @in_loop
    async def test_the_blob_is_called_as_the_file(self, tmp_path: Path) -> None:
        """Its last part, with no application given."""
        store = MemoryStore()
        uploader = await uploader_to(store)
        await uploader.upload_file(tmp_path / file_of(tmp_path))
        assert uploader.pending == 1
        await uploader.shutdown()
        assert store.blobs == {"run.log": (b"one line\n", {})}
        assert (uploader.uploaded, uploader.bytes_sent, uploader.pending) == (1, 9, 0)

    @in_loop
    async def test_the_application_comes_before_the_name(self, tmp_path: Path) -> None:
        """And is said in the metadata."""
        store = MemoryStore()
        uploader = await uploader_to(store)
        await uploader.upload_file(file_of(tmp_path), app_name="trainer")
        await uploader.upload_file(file_of(tmp_path), "a/b.log", "trainer")
        await uploader.shutdown()
        assert {name: data[1] for name, data in store.blobs.items()} == {
            "trainer/run.log": {"app": "trainer"},
            "trainer/a/b.log": {"app": "trainer"},
        }

    @in_loop
    async def test_a_file_that_does_not_exist_is_logged(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Not raised; counted by its cause."""
        uploader = await uploader_to(MemoryStore())
        await uploader.upload_file(tmp_path / "gone.log")
        (line,) = said(caplog)
        assert "gone.log is not uploaded: " in line and "No such file" in line
        assert uploader.failed == Counter({"FileNotFoundError ENOENT": 1})
        await uploader.shutdown()

    @pytest.mark.parametrize("kind", ["directory", "fifo", "null"])
    @in_loop
    async def test_what_is_no_regular_file_is_logged(
        self, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A pipe would be read for ever."""
        path = str(tmp_path / kind)
        if kind == "directory":
            os.mkdir(path)
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path += "\0"
        uploader = await uploader_to(MemoryStore())
        await uploader.upload_file(path)
        assert "is not uploaded" in said(caplog)[0] and uploader.pending == 0
        await uploader.shutdown()

    @in_loop
    async def test_a_file_that_is_done_is_not_taken_again(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Neither while it is queued nor when it is done; when it has grown it is another one."""
        caplog.set_level(logging.INFO, "foundry_log.shipping")
        store = MemoryStore()
        uploader = await uploader_to(store)
        path = file_of(tmp_path)
        await uploader.upload_file(path)
        await uploader.upload_file(path)
        assert uploader.pending == 1
        assert said(caplog, logging.INFO) == [f"{path} has been given already as run.log"]
        file_of(tmp_path, "one line\nand another\n")
        await uploader.upload_file(path)
        assert uploader.pending == 2
        await uploader.shutdown()

    @in_loop
    async def test_a_file_that_failed_may_be_given_again(self, tmp_path: Path) -> None:
        """Only what is done is done."""
        store = store_with(StoreError("no"))
        uploader = await uploader_to(store)
        path = file_of(tmp_path)
        await uploader.upload_file(path)
        while uploader.pending:
            await asyncio.sleep(0.001)
        await uploader.upload_file(path)
        await uploader.shutdown()
        assert (uploader.uploaded, uploader.failed.total()) == (1, 1)

    @in_loop
    async def test_what_is_remembered_of_done_files_is_bounded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The oldest is forgotten; given again, it is found in the store."""
        monkeypatch.setattr(blob_storage, "REMEMBERED", 2)
        uploader = await uploader_to(MemoryStore())
        paths = many_files(tmp_path, 3)
        for path in [*paths, paths[0], paths[2]]:
            await uploader.upload_file(path)
        await uploader.shutdown()
        assert (uploader.uploaded, uploader.already_there) == (3, 1)

    @pytest.mark.parametrize("name", ["../up.log", "/etc/passwd", "a//b", "a\\b", "", "x" * 1025])
    @in_loop
    async def test_a_name_that_climbs_out_is_logged(
        self, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The container's prefix is not left."""
        store = MemoryStore()
        uploader = await uploader_to(store)
        await uploader.upload_file(file_of(tmp_path), name)
        assert "is not uploaded" in said(caplog)[0]
        await uploader.shutdown()
        assert store.blobs == {} and uploader.failed == Counter(ValueError=1)

    @in_loop
    async def test_before_it_is_ready_and_after_its_end_files_are_refused(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Logged, counted, not raised, and not kept for later."""
        uploader = AsyncBlobStorageUploader(store=MemoryStore())
        await uploader.upload_file(file_of(tmp_path))
        assert "await initialize() first" in said(caplog)[0]
        await uploader.initialize()
        await uploader.shutdown()
        refused = uploader.submit(UploadJob(file_of(tmp_path), "run.log"))
        with pytest.raises(NotReadyError):
            await refused
        assert uploader.failed == Counter(NotReadyError=2)


class TestAsyncBlobStorageUploaderUploadFileToBlob:
    @in_loop
    async def test_the_receipt_says_what_was_compared(self, tmp_path: Path) -> None:
        """Path, name, size and MD5 of what was read."""
        store = MemoryStore()
        uploader = await uploader_to(store)
        path = file_of(tmp_path)
        receipt = await uploader.submit(UploadJob(path, "a/run.log", {"host": "here"}))
        assert (receipt.path, receipt.blob_name, receipt.size) == (path, "a/run.log", 9)
        assert receipt.md5 == hashlib.md5(b"one line\n").digest() and not receipt.was_there
        assert store.blobs["a/run.log"][1] == {"host": "here"}
        await uploader.shutdown()

    @in_loop
    async def test_what_may_pass_is_tried_again_until_it_succeeds(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A server's fault and a damaged transfer; the attempts are told below WARNING."""
        caplog.set_level(logging.INFO, "foundry_log.shipping")
        uploader = await uploader_to(store_with(TemporaryError("busy"), CorruptedError("damaged")))
        await uploader.submit(UploadJob(file_of(tmp_path), "run.log"))
        assert (uploader.retries, uploader.uploaded) == (2, 1)
        lines = said(caplog, logging.INFO)
        assert [line.split(": ", 1)[1] for line in lines] == [
            "attempt 1 of 5: busy",
            "attempt 2 of 5: damaged",
        ]
        assert not said(caplog)
        await uploader.shutdown()

    @in_loop
    async def test_as_many_attempts_as_max_retries_are_made(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The first is counted; then one line with the cause and how often it was met."""
        store = store_with(*[TemporaryError("busy")] * 99)
        uploader = await uploader_to(store, max_retries=3)
        with pytest.raises(TemporaryError, match="busy"):
            await uploader.submit(UploadJob(file_of(tmp_path), "run.log"))
        assert (store.puts, uploader.retries) == (3, 2)
        assert said(caplog) == [
            f"{tmp_path}/run.log is not uploaded: busy (TemporaryError: 1 so far)"
        ]
        await uploader.shutdown()

    @in_loop
    async def test_what_will_not_pass_is_not_tried_again(self, tmp_path: Path) -> None:
        """No permission, for one."""
        store = store_with(StoreError("403: no permission to write"))
        uploader = await uploader_to(store)
        with pytest.raises(StoreError, match="no permission"):
            await uploader.submit(UploadJob(file_of(tmp_path), "run.log"))
        assert (store.puts, uploader.retries) == (1, 0)
        await uploader.shutdown()

    @pytest.mark.parametrize("size", [9, BLOCK + 1])
    @in_loop
    async def test_the_same_content_under_the_name_is_done_already(
        self, size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """And one that is larger than a block is not sent in vain."""
        store = MemoryStore()
        store.blobs["run.log"] = (b"x" * size, {})
        uploader = await uploader_to(store)
        receipt = await uploader.submit(UploadJob(file_of(tmp_path, "x" * size), "run.log"))
        assert receipt.was_there and receipt.md5 == hashlib.md5(b"x" * size).digest()
        assert (uploader.already_there, uploader.uploaded, uploader.bytes_sent) == (1, 0, 0)
        assert store.puts == (1 if size < BLOCK else 0)
        assert not said(caplog)
        await uploader.shutdown()

    @pytest.mark.parametrize("size", [9, BLOCK + 1])
    @in_loop
    async def test_other_content_under_the_name_stays(
        self, size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The file gets a suffix, and one warning says so."""
        store = MemoryStore()
        store.blobs["a/run.log"] = (b"other", {})
        uploader = await uploader_to(store)
        path = file_of(tmp_path, "x" * size)
        receipt = await uploader.submit(UploadJob(path, "a/run.log"))
        name = f"a/run-{receipt.md5.hex()[:8]}.log"
        assert receipt.blob_name == name and store.blobs[name][0] == b"x" * size
        assert store.blobs["a/run.log"][0] == b"other"
        assert said(caplog) == [
            f"{path}: the store has other content as a/run.log; it is stored as {name}"
        ]
        again = await uploader.submit(UploadJob(path, "a/run.log"))
        assert again.blob_name == name and again.was_there
        await uploader.shutdown()

    @in_loop
    async def test_what_arrived_damaged_is_never_called_done(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The store acknowledged other bytes: the file is sent again under the suffix name."""
        store = store_with(Fault(is_damaged=True))
        uploader = await uploader_to(store)
        receipt = await uploader.submit(UploadJob(file_of(tmp_path), "run.log"))
        assert store.blobs[receipt.blob_name][0] == b"one line\n"
        assert receipt.blob_name != "run.log" and not receipt.was_there
        assert "what the store took as run.log is not what was sent" in said(caplog)[0]
        await uploader.shutdown()

    @in_loop
    async def test_a_store_that_damages_everything_is_given_up(self, tmp_path: Path) -> None:
        """Nothing more is tried than the suffix."""
        store = store_with(*[Fault(is_damaged=True)] * 9)
        uploader = await uploader_to(store)
        with pytest.raises(StoreError, match="9, and other content as"):
            await uploader.submit(UploadJob(file_of(tmp_path), "run.log"))
        assert len(store.blobs) == 2
        await uploader.shutdown()

    @in_loop
    async def test_a_lost_answer_stores_nothing_twice(self, tmp_path: Path) -> None:
        """The second attempt finds what the first one stored."""
        store = store_with(Fault(TemporaryError("the connection was reset"), is_stored=True))
        uploader = await uploader_to(store)
        receipt = await uploader.submit(UploadJob(file_of(tmp_path), "run.log"))
        assert receipt.was_there and list(store.blobs) == ["run.log"]
        await uploader.shutdown()

    @in_loop
    async def test_a_blob_that_comes_and_goes_is_no_reason_to_give_up(self, tmp_path: Path) -> None:
        """Its name was taken, and when it is looked at nothing is there: once more."""
        store = store_with(BlobExistsError("run.log is taken"))
        uploader = await uploader_to(store)
        receipt = await uploader.submit(UploadJob(file_of(tmp_path), "run.log"))
        assert not receipt.was_there and uploader.retries == 1
        await uploader.shutdown()

    @in_loop
    async def test_a_file_that_is_written_to_meanwhile_is_left_for_later(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What would be stored is neither the old nor the new content."""
        path = file_of(tmp_path)

        class Appending(MemoryStore):
            async def put_new(self, name: str, content: Content, metadata: Any) -> BlobFacts:
                with open(path, "a") as file:
                    file.write("more\n")
                return await super().put_new(name, content, metadata)

        uploader = await uploader_to(Appending())
        with pytest.raises(OSError, match="was written to while it was read"):
            await uploader.submit(UploadJob(path, "run.log"))
        await uploader.shutdown()

    @in_loop
    async def test_a_pipe_in_the_files_place_stops_nothing(self, tmp_path: Path) -> None:
        """It is not waited for, as opening a pipe would."""
        os.mkfifo(tmp_path / "pipe")
        uploader = await uploader_to(MemoryStore())
        with pytest.raises(OSError, match="no regular file"):
            await uploader.submit(UploadJob(str(tmp_path / "pipe"), "pipe"))
        await uploader.shutdown()

    @in_loop
    async def test_a_locked_file_is_left_for_later(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A handler that has the file open holds it; told below WARNING, since it will pass."""
        handler = RotatingJsonlHandler(tmp_path / "run.jsonl")
        handler.emit(logging.makeLogRecord({"msg": "a line"}))
        store = MemoryStore()
        uploader = await uploader_to(store)
        job = UploadJob(str(tmp_path / "run.jsonl"), "run.jsonl", holds_lock=True)
        with pytest.raises(FileInUseError):
            await uploader.submit(job)
        assert not store.puts and not said(caplog)
        handler.close()
        await uploader.submit(job)
        assert store.blobs["run.jsonl"][0]
        await uploader.shutdown()

    @in_loop
    async def test_the_lock_is_held_for_the_whole_upload_and_no_longer(
        self, tmp_path: Path
    ) -> None:
        """Of two who ship one file, the second is told that it is in use."""
        started, may_go_on = asyncio.Event(), asyncio.Event()

        async def lets_through() -> None:
            started.set()
            await may_go_on.wait()

        uploader = await uploader_to(MemoryStore(lets_through=lets_through))
        job = UploadJob(file_of(tmp_path), "run.log", holds_lock=True)
        first = uploader.submit(job)
        await started.wait()
        with pytest.raises(FileInUseError):
            await uploader.submit(job)
        may_go_on.set()
        assert not (await first).was_there
        assert (await uploader.submit(job)).was_there
        await uploader.shutdown()

    def test_the_suffix_stands_before_the_extension(self) -> None:
        """A packed file keeps both of its extensions."""
        md5 = bytes.fromhex("0123abcd" * 4)
        assert suffixed("run.log", md5) == "run-0123abcd.log"
        assert suffixed("a.b/run.jsonl.gz", md5) == "a.b/run-0123abcd.jsonl.gz"
        assert suffixed("a.b/noextension", md5) == "a.b/noextension-0123abcd"

    def test_an_errors_text_is_told_without_secrets(self) -> None:
        """And one whose text cannot be had by its class."""

        class BrokenError(Exception):
            def __str__(self) -> str:
                raise RuntimeError

        assert "c2VjcmV0" not in told(OSError("https://a.net/c?sv=1&sig=c2VjcmV0"))
        assert told(BrokenError()) == "BrokenError"
        assert told(MemoryError()) == "MemoryError"


class TestAsyncBlobStorageUploaderUploadWorker:
    @in_loop
    async def test_workers_upload_at_the_same_time_and_no_more_than_they_are(
        self, tmp_path: Path
    ) -> None:
        """Three workers, ten files."""
        busy, most, all_busy = 0, 0, asyncio.Event()

        async def lets_through() -> None:
            nonlocal busy, most
            busy += 1
            most = max(most, busy)
            if busy == 3:
                all_busy.set()
            await all_busy.wait()
            busy -= 1

        store = MemoryStore(lets_through=lets_through)
        uploader = await uploader_to(store, workers=3)
        for path in many_files(tmp_path, 10):
            await uploader.upload_file(path)
        assert await uploader.shutdown() == ()
        assert most == 3 and len(store.blobs) == 10

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            RuntimeError("a fault of the store's"),
            type("Odd", (BaseException,), {})("not even an Exception"),
            pytest.param(
                asyncio.CancelledError("of a task of the store's"),
                marks=pytest.mark.skipif(
                    sys.version_info < (3, 11), reason="needs Task.cancelling of Python 3.11"
                ),
            ),
        ],
        ids=repr,
    )
    @in_loop
    async def test_a_worker_lives_on_whatever_is_raised(
        self, error: BaseException, tmp_path: Path
    ) -> None:
        """The file fails, and the next one is taken by the same worker."""
        store = store_with(error)
        uploader = await uploader_to(store, workers=1)
        first, second = many_files(tmp_path, 2)
        failed = uploader.submit(UploadJob(first, "first"))
        receipt = await uploader.submit(UploadJob(second, "second"))
        assert receipt.blob_name == "second"
        assert failed.exception() is not None
        is_cancelled = isinstance(error, asyncio.CancelledError)
        cause = "StoreError" if is_cancelled else type(error).__name__
        assert uploader.failed == Counter({cause: 1})
        await uploader.shutdown()

    @in_loop
    async def test_a_worker_lives_on_when_logging_itself_fails(self, tmp_path: Path) -> None:
        """A filter of the user's on our logger raises."""

        def broken(record: logging.LogRecord) -> bool:
            raise RuntimeError("a broken filter")

        log = logging.getLogger("foundry_log.shipping")
        uploader = await uploader_to(store_with(StoreError("no")), workers=1)
        first, second = many_files(tmp_path, 2)
        log.addFilter(broken)
        try:
            failed = uploader.submit(UploadJob(first, "first"))
            await uploader.submit(UploadJob(second, "second"))
        finally:
            log.removeFilter(broken)
        assert failed.exception() is not None and uploader.pending == 0
        await uploader.shutdown()

    @in_loop
    async def test_a_cancelled_job_is_taken_from_the_queue(self, tmp_path: Path) -> None:
        """Whoever submitted it has changed their mind."""
        store = MemoryStore()
        uploader = await uploader_to(store)
        uploader.submit(UploadJob(file_of(tmp_path), "run.log")).cancel()
        assert await uploader.shutdown() == ()
        assert not store.blobs and not uploader.failed and not uploader.pending

    @pytest.mark.parametrize("fault", [Fault(), Fault(StoreError("no"))], ids=["done", "failed"])
    @in_loop
    async def test_a_job_cancelled_under_way_is_finished_all_the_same(
        self, fault: Fault, tmp_path: Path
    ) -> None:
        """Counted as what it came to, though nobody waits any more."""
        cancelled: list[bool] = []

        class Cancelling(MemoryStore):
            async def put_new(self, name: str, content: Content, metadata: Any) -> BlobFacts:
                cancelled.append(future.cancel())
                return await super().put_new(name, content, metadata)

        uploader = await uploader_to(Cancelling(deque([fault])))
        future = uploader.submit(UploadJob(file_of(tmp_path), "run.log"))
        await uploader.shutdown()
        assert cancelled == [True]
        assert (uploader.uploaded, uploader.failed.total()) == ((0, 1) if fault.error else (1, 0))

    @in_loop
    async def test_a_failure_that_nobody_waits_for_is_told_once(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """By us; asyncio says nothing of an exception that was never retrieved."""
        uploader = await uploader_to(store_with(StoreError("no")))
        await uploader.upload_file(file_of(tmp_path))
        await uploader.shutdown()
        gc.collect()
        assert {record.name for record in caplog.records} == {"foundry_log.shipping"}


class TestAsyncBlobStorageUploaderShutdown:
    @in_loop
    async def test_pending_files_are_uploaded_first(self, tmp_path: Path) -> None:
        """Then the store is closed, and nothing is left."""
        store = MemoryStore()
        uploader = await uploader_to(store, workers=1)
        for path in many_files(tmp_path, 20):
            await uploader.upload_file(path)
        assert await uploader.shutdown() == ()
        assert len(store.blobs) == 20 and store.closed == 1
        assert not uploader.is_ready

    @pytest.mark.parametrize("timeout_s", [0.0, 0.05])
    @in_loop
    async def test_what_is_pending_at_the_deadline_is_returned_and_told(
        self, timeout_s: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """In order, those under way included; their futures are cancelled, the store closed."""
        store = MemoryStore(lets_through=asyncio.Event().wait)
        uploader = await uploader_to(store, workers=2)
        paths = many_files(tmp_path, 5)
        futures = [uploader.submit(UploadJob(p, os.path.basename(p))) for p in paths]
        assert await uploader.shutdown(timeout_s) == tuple(paths)
        assert all(future.cancelled() for future in futures)
        assert said(caplog) == [
            f"5 files were not uploaded before the end: {', '.join(paths[:3])}, …"
        ]
        assert (store.closed, store.blobs, uploader.pending) == (1, {}, 0)

    @in_loop
    async def test_a_second_one_and_one_without_a_begin_do_nothing(self) -> None:
        """Idempotent, also when both come at once."""
        store = MemoryStore()
        uploader = AsyncBlobStorageUploader(store=store)
        assert await uploader.shutdown() == ()
        await uploader.initialize()
        assert await asyncio.gather(uploader.shutdown(), uploader.shutdown()) == [(), ()]
        assert store.closed == 1

    @in_loop
    async def test_waits_between_attempts_are_not_shortened(self, tmp_path: Path) -> None:
        """A file that waits beyond the deadline is left, and said to be."""
        store = store_with(TemporaryError("busy", 120))
        uploader = AsyncBlobStorageUploader(store=store)
        await uploader.initialize()
        path = file_of(tmp_path)
        future = uploader.submit(UploadJob(path, "run.log"))
        while not uploader.retries:
            await asyncio.sleep(0.001)
        assert await uploader.shutdown(0.01) == (path,)
        assert future.cancelled() and store.puts == 1

    @in_loop
    async def test_cancelled_it_closes_all_the_same(self, tmp_path: Path) -> None:
        """Ctrl-C during the drain leaves no connection and no task."""
        store = MemoryStore(lets_through=asyncio.Event().wait)
        uploader = await uploader_to(store)
        await uploader.upload_file(file_of(tmp_path))
        ending = asyncio.create_task(uploader.shutdown())
        while not store.puts:
            await asyncio.sleep(0.001)
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        assert ending.cancelled() and store.closed == 1
        assert asyncio.all_tasks() <= {asyncio.current_task()} | others()

    @in_loop
    async def test_a_store_that_cannot_be_closed_is_told(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What it uploaded stays uploaded."""

        class Stuck(MemoryStore):
            async def close(self) -> None:
                raise OSError("stuck, sig=c2VjcmV0")

        uploader = await uploader_to(Stuck())
        assert await uploader.shutdown() == ()
        assert said(caplog) == ["Closing memory://blobs failed: stuck, sig=[redacted]"]


def others() -> set[Any]:
    """The task in which `in_loop` runs a test."""
    return {task for task in asyncio.all_tasks() if "within_deadline" in repr(task.get_coro())}


class TestAsyncBlobStorageUploaderIntegration:
    @in_loop
    async def test_a_whole_life(self, tmp_path: Path) -> None:
        """Initialised, given good and bad files, shut down: every file is accounted for."""
        store = store_with(TemporaryError("busy"), StoreError("403"))
        uploader = await uploader_to(store, workers=1)
        for path in [*many_files(tmp_path, 4), str(tmp_path / "missing")]:
            await uploader.upload_file(path, app_name="app")
        assert await uploader.shutdown() == ()
        assert (uploader.uploaded, uploader.failed.total(), uploader.retries) == (3, 2, 1)
        assert len(store.blobs) == 3

    @in_loop
    async def test_a_directory_takes_the_place_of_a_cloud(self, tmp_path: Path) -> None:
        """Files of a real disk arrive on a real disk, and a second uploader finds them there."""
        (tmp_path / "logs").mkdir()
        paths = many_files(tmp_path / "logs", 50)
        counts = []
        for _ in range(2):
            uploader = AsyncBlobStorageUploader(store=LocalStore(str(tmp_path / "store")))
            assert await uploader.initialize()
            for path in paths:
                await uploader.upload_file(path, app_name="app")
            assert await uploader.shutdown() == ()
            counts.append((uploader.uploaded, uploader.already_there))
        assert counts == [(50, 0), (0, 50)]
        assert (tmp_path / "store" / "app" / "run-7.log").read_text() == "line 7\n"

    @in_loop
    async def test_a_store_that_names_a_time_slows_all_workers_down(self, tmp_path: Path) -> None:
        """No put comes before the time that the first answer named."""
        clock, asked_at = Clock(), []

        class Timed(MemoryStore):
            async def put_new(self, name: str, content: Content, metadata: Any) -> BlobFacts:
                asked_at.append(clock.now)
                return await super().put_new(name, content, metadata)

        store = Timed(deque([Fault(TemporaryError("busy", 30))]))
        uploader = AsyncBlobStorageUploader(store=store, clock=clock, sleep=clock.sleep)
        await uploader.initialize()
        for path in many_files(tmp_path, 8):
            await uploader.upload_file(path)
        await uploader.shutdown()
        begun = asked_at.count(1000.0)
        assert begun <= uploader.workers and len(asked_at) == 9
        assert all(at >= 1030 for at in asked_at[begun:])


class TestAsyncBlobStorageUploaderEdgeCases:
    @in_loop
    async def test_concurrent_initialization_attempts(self) -> None:
        """Five at once: one opens, all are told that it is ready."""
        store = MemoryStore()
        uploader = AsyncBlobStorageUploader(store=store, workers=3)
        before = len(asyncio.all_tasks())
        assert await asyncio.gather(*(uploader.initialize() for _ in range(5))) == [True] * 5
        assert store.opened == 1
        assert len(asyncio.all_tasks()) == before + 3
        await uploader.shutdown()

    @pytest.mark.parametrize(
        "error",
        [ConnectionError("refused"), OSError("no route"), TimeoutError(), TemporaryError("DNS")],
        ids=repr,
    )
    @in_loop
    async def test_network_connectivity_issues_during_initialization(
        self, error: Exception, caplog: pytest.LogCaptureFixture
    ) -> None:
        """False, told, closed; also what a store should have mapped and has not."""
        store = MemoryStore(faults_at_open=deque([error]))
        uploader = AsyncBlobStorageUploader(store=store)
        assert not await uploader.initialize()
        assert len(said(caplog)) == 1 and store.closed == 1

    @in_loop
    async def test_upload_empty_file(self, tmp_path: Path) -> None:
        """Zero bytes are a file too."""
        store = MemoryStore()
        uploader = await uploader_to(store)
        receipt = await uploader.submit(UploadJob(file_of(tmp_path, ""), "empty.log"))
        assert (receipt.size, receipt.md5) == (0, hashlib.md5(b"").digest())
        assert store.blobs == {"empty.log": (b"", {})} and uploader.uploaded == 1
        await uploader.shutdown()

    @in_loop
    async def test_a_file_deleted_between_queue_and_upload(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Logged and counted; the files before and after it are uploaded."""
        store = MemoryStore()
        uploader = await uploader_to(store, workers=1)
        paths = many_files(tmp_path, 3)
        for path in paths:
            await uploader.upload_file(path)
        os.unlink(paths[1])
        await uploader.shutdown()
        assert sorted(store.blobs) == ["run-0.log", "run-2.log"]
        (line,) = said(caplog)
        assert "run-1.log is not uploaded" in line and "No such file" in line

    @in_loop
    async def test_a_locked_file_deleted_between_queue_and_upload(self, tmp_path: Path) -> None:
        """Gone is not the same as in use."""
        uploader = await uploader_to(MemoryStore())
        job = UploadJob(str(tmp_path / "gone.log"), "gone.log", holds_lock=True)
        with pytest.raises(FileNotFoundError):
            await uploader.submit(job)
        await uploader.shutdown()

    @in_loop
    async def test_a_file_deleted_during_the_upload(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is open, so all of it is stored; that it is gone is said."""
        path = file_of(tmp_path)

        async def lets_through() -> None:
            os.unlink(path)

        store = MemoryStore(lets_through=lets_through)
        uploader = await uploader_to(store)
        await uploader.submit(UploadJob(path, "run.log"))
        assert store.blobs["run.log"][0] == b"one line\n"
        assert said(caplog) == [
            f"{path} vanished while it was uploaded; all of it is stored as run.log"
        ]
        await uploader.shutdown()

    @in_loop
    async def test_a_file_emptied_during_the_upload(self, tmp_path: Path) -> None:
        """What cannot be read any more is not called done."""
        path = file_of(tmp_path)

        class Emptying(MemoryStore):
            async def put_new(self, name: str, content: Content, metadata: Any) -> BlobFacts:
                os.truncate(path, 0)
                return await super().put_new(name, content, metadata)

        store = Emptying()
        uploader = await uploader_to(store)
        with pytest.raises(OSError, match="shorter"):
            await uploader.submit(UploadJob(path, "run.log"))
        assert not store.blobs
        await uploader.shutdown()

    @pytest.mark.parametrize(
        "url", ["", "no url", "ftp://a.blob.core.windows.net", "https://", "http://example.com"]
    )
    @in_loop
    async def test_invalid_account_url_formats(
        self, url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The constructor takes them; the log says what is right, and it can be tried again."""
        uploader = AsyncBlobStorageUploader(url, "logs")
        assert not await uploader.initialize()
        assert not await uploader.initialize()
        assert "https://" in said(caplog)[0] and not uploader.is_ready

    @in_loop
    async def test_service_throttling_is_waited_out(self, tmp_path: Path) -> None:
        """As long as the store asks for, and for all of its files."""
        store = store_with(*[TemporaryError("429: slow down", 7)] * 4)
        uploader = await uploader_to(store)
        for path in many_files(tmp_path, 10):
            await uploader.upload_file(path)
        await uploader.shutdown()
        assert (uploader.uploaded, uploader.retries) == (10, 4)

    @in_loop
    async def test_persistent_throttling_ends(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Each file is given up with an error, and none is called done."""
        store = store_with(*[TemporaryError("503: server busy", 1)] * 99)
        uploader = await uploader_to(store, max_retries=2)
        for path in many_files(tmp_path, 5):
            await uploader.upload_file(path)
        await uploader.shutdown()
        assert uploader.failed == Counter(TemporaryError=5) and len(said(caplog)) == 5
        assert not store.blobs and store.puts == 10

    @in_loop
    async def test_large_files_and_memory_errors(self, tmp_path: Path) -> None:
        """One that memory fails for is given up; the next one is uploaded."""
        store = store_with(MemoryError())
        uploader = await uploader_to(store, workers=1)
        for path in many_files(tmp_path, 2):
            await uploader.upload_file(path)
        await uploader.shutdown()
        assert (uploader.uploaded, uploader.failed) == (1, Counter(MemoryError=1))

    @in_loop
    async def test_queue_overflow_thousands_pending_uploads(self, tmp_path: Path) -> None:
        """Each of a thousand files, given by ten tasks, every tenth bad, is accounted for."""
        store = store_with(*throttled(100))
        uploader = await uploader_to(store)
        paths = many_files(tmp_path, 900) + [str(tmp_path / f"gone-{n}") for n in range(100)]

        async def give(share: Iterable[str]) -> None:
            for path in share:
                await uploader.upload_file(path)
                await asyncio.sleep(0)

        await asyncio.gather(*(give(paths[n::10]) for n in range(10)))
        assert await uploader.shutdown() == ()
        assert len(store.blobs) == uploader.uploaded == 900
        assert uploader.failed == Counter({"FileNotFoundError ENOENT": 100})

    @in_loop
    async def test_a_queued_file_costs_little_memory(self, tmp_path: Path) -> None:
        """Less than 2 KB each, whatever the number: 15,000 are 30 MB at most."""
        uploader = await uploader_to(MemoryStore())
        paths = many_files(tmp_path, 1000)
        tracemalloc.start()
        for path in paths:
            await uploader.upload_file(path)
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert uploader.pending == 1000 and used < 2000 * 1000
        await uploader.shutdown()


def throttled(every: int) -> list[Fault]:
    """A script in which every so many puts the store is busy."""
    return [Fault(TemporaryError("busy")) if n % every == 0 else Fault() for n in range(900)]
