"""AsyncBlobStorageUploader against a real server, with a proxy that makes what goes wrong."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import os
import random
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from foundry_log.shipping.azure_store import AzureStore
from foundry_log.shipping.blob_storage import AsyncBlobStorageUploader, Receipt, UploadJob
from foundry_log.shipping.content import BLOCK
from foundry_log.shipping.local_store import LocalStore
from foundry_log.shipping.store import StoreError, TemporaryError
from tests.fault_proxy import Fault, FaultProxy, answer, drop, lose_answer, reset_in_body

for package in ("aiohttp", "azure.storage.blob", "cryptography"):
    pytest.importorskip(
        package, reason="needs test-services: pip install 'foundry_log[test-services]'"
    )

pytestmark = [pytest.mark.unit, pytest.mark.services]

DEADLINE_S = 60
ONCE_MORE = 2
"""How often a connection has to end: aiohttp sends a request again by itself, once."""


def in_loop(test: Callable[..., Awaitable[None]], deadline_s: float = DEADLINE_S) -> Any:
    """Run a test in an event loop of its own, with a deadline, and shut its uploader down."""

    @functools.wraps(test)
    def run(*args: Any, **fixtures: Any) -> None:
        async def within_deadline() -> None:
            try:
                await asyncio.wait_for(test(*args, **fixtures), deadline_s)
            finally:
                if "uploader" in fixtures:
                    await fixtures["uploader"].shutdown(0)

        asyncio.run(within_deadline())

    return pytest.mark.asyncio(run)


in_loop_for_long = functools.partial(in_loop, deadline_s=600)


class Clock:
    """Moves when somebody sleeps, at once: no test waits for a back-off."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waited: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.waited.append(seconds)
        until = self.now + seconds
        await asyncio.sleep(0)
        self.now = max(self.now, until)


@pytest.fixture
def proxy(azurite: Any) -> Iterator[FaultProxy]:
    with FaultProxy(azurite.account_url) as proxy:
        yield proxy


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def uploader(azurite: Any, proxy: FaultProxy, clock: Clock) -> AsyncBlobStorageUploader:
    """One that goes through the proxy to a container that is not there yet."""
    return AsyncBlobStorageUploader(
        proxy.account_url,
        azurite.new_container(),
        credential=azurite.key,
        clock=clock,
        sleep=clock.sleep,
        random=lambda: 0.0,
    )


def file_of(tmp_path: Path, data: bytes = b"one line\n", name: str = "run.log") -> str:
    path = tmp_path / name
    path.write_bytes(data)
    return str(path)


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def said(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """The lines of the uploader's logger, from a level up."""
    records = [r for r in caplog.records if r.name == "foundry_log.shipping"]
    return [r.getMessage() for r in records if r.levelno >= level]


def found_damaged() -> Fault:
    """What Azure says of a body whose MD5 is another; Azurite has a code of its own."""
    return answer(400, code="Md5Mismatch")


async def stored(azurite: Any, uploader: AsyncBlobStorageUploader) -> dict[str, bytes]:
    """What the server has in the uploader's container, read past the proxy by the SDK."""
    from azure.storage.blob.aio import ContainerClient

    async with ContainerClient(azurite.account_url, uploader.container_name, azurite.key) as client:
        names = [blob.name async for blob in client.list_blobs()]
        return {name: await (await client.download_blob(name)).readall() for name in names}


async def ship(uploader: AsyncBlobStorageUploader, path: str) -> Receipt:
    """Initialise, upload one file, and return its receipt."""
    assert await uploader.initialize()
    return await uploader.submit(UploadJob(path, os.path.basename(path)))


class TestAsyncBlobStorageUploaderInitialize:
    @in_loop
    async def test_concurrent_initialization_attempts(
        self, uploader: AsyncBlobStorageUploader, proxy: FaultProxy
    ) -> None:
        """Five at once make one container with one request."""
        assert await asyncio.gather(*(uploader.initialize() for _ in range(5))) == [True] * 5
        assert proxy.count(method="PUT", query="restype=container") == 1

    @in_loop
    async def test_a_container_that_is_there_is_fine(
        self, uploader: AsyncBlobStorageUploader, tmp_path: Path
    ) -> None:
        """Only that it exists already may be passed over."""
        assert await uploader.initialize()
        await uploader.shutdown()
        assert await uploader.initialize()

    @pytest.mark.parametrize("status, code", [(403, "AuthorizationPermissionMismatch"), (401, "")])
    @in_loop
    async def test_container_creation_permission_failures(
        self,
        status: int,
        code: str,
        uploader: AsyncBlobStorageUploader,
        proxy: FaultProxy,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Told with status and remedy, not swallowed; it can be tried again."""
        proxy.fail(answer(status, code=code), query="restype=container")
        assert not await uploader.initialize()
        (line,) = said(caplog)
        assert f"status {status} {code}".rstrip() in line and "give a credential" in line
        assert not uploader.is_ready
        assert await uploader.initialize()

    @pytest.mark.parametrize("key", ["bm90IHRoZSBrZXk=", "no base 64!"], ids=["wrong", "malformed"])
    @in_loop
    async def test_authentication_failures(
        self, key: str, azurite: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A key that is not the account's: False, told, and the key is in no line."""
        uploader = AsyncBlobStorageUploader(
            azurite.account_url, azurite.new_container(), credential=key
        )
        assert not await uploader.initialize()
        assert len(said(caplog)) == 1 and key not in caplog.text

    @in_loop
    async def test_authentication_failures_while_running(
        self,
        uploader: AsyncBlobStorageUploader,
        proxy: FaultProxy,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Permission that is taken away is told once per file, and not tried again."""
        proxy.fail(answer(403, code="AuthorizationFailure"), path="/run.log")
        with pytest.raises(StoreError, match="AuthorizationFailure"):
            await ship(uploader, file_of(tmp_path))
        assert uploader.retries == 0 and len(said(caplog)) == 1


class TestNetworkConnectivityIssuesDuringInitialization:
    @in_loop
    async def test_a_port_where_nobody_listens(self, caplog: pytest.LogCaptureFixture) -> None:
        """Refused: False and told."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        await self.fails_at(f"http://127.0.0.1:{port}/account", caplog)

    @in_loop
    async def test_a_server_that_speaks_no_tls(
        self, azurite: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Spoken to by https."""
        await self.fails_at(azurite.account_url.replace("http:", "https:"), caplog)

    @in_loop
    async def test_a_certificate_that_nobody_signed(self, caplog: pytest.LogCaptureFixture) -> None:
        """It is not trusted."""
        from tests.azurite import running_azurite

        with running_azurite(https=True) as server:
            await self.fails_at(server.account_url, caplog)
        assert "certificate" in caplog.text

    @in_loop
    async def test_an_account_that_does_not_exist(self, caplog: pytest.LogCaptureFixture) -> None:
        """Its name resolves to nothing; `.invalid` never does (RFC 2606)."""
        await self.fails_at("https://account.blob.core.invalid", caplog)

    @in_loop
    async def test_a_connection_that_is_dropped(
        self,
        uploader: AsyncBlobStorageUploader,
        proxy: FaultProxy,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """In place of an answer; the next attempt succeeds."""
        proxy.fail(drop(), times=ONCE_MORE)
        assert not await uploader.initialize()
        assert len(said(caplog)) == 1
        assert await uploader.initialize()

    async def fails_at(self, account_url: str, caplog: pytest.LogCaptureFixture) -> None:
        """One line, False, and nothing is left open: a ResourceWarning would be an error."""
        uploader = AsyncBlobStorageUploader(account_url, "logs", credential="bm8ga2V5")
        assert not await uploader.initialize()
        (line,) = said(caplog)
        assert line.startswith(f"Nothing can be uploaded to {account_url}/logs: ")
        assert not uploader.is_ready


class TestAsyncBlobStorageUploaderUploadFileToBlob:
    @pytest.mark.parametrize("size", [0, 9, BLOCK, 3 * BLOCK + 17])
    @in_loop
    async def test_what_is_stored_is_the_file(
        self, size: int, uploader: AsyncBlobStorageUploader, azurite: Any, tmp_path: Path
    ) -> None:
        """Empty, small, of one block, of several."""
        data = noise(size)
        receipt = await ship(uploader, file_of(tmp_path, data))
        assert (receipt.size, receipt.md5) == (size, hashlib.md5(data).digest())
        assert await stored(azurite, uploader) == {"run.log": data}
        again = await uploader.submit(UploadJob(receipt.path, "run.log"))
        assert again.was_there

    @pytest.mark.parametrize("size", [9, 2 * BLOCK])
    @in_loop
    async def test_other_content_gets_a_suffix(
        self, size: int, uploader: AsyncBlobStorageUploader, azurite: Any, tmp_path: Path
    ) -> None:
        """Both stay."""
        await ship(uploader, file_of(tmp_path, b"first"))
        receipt = await ship(uploader, file_of(tmp_path, noise(size)))
        blobs = await stored(azurite, uploader)
        assert blobs == {"run.log": b"first", receipt.blob_name: noise(size)}

    @pytest.mark.parametrize("size", [9, 2 * BLOCK])
    @in_loop
    async def test_closed_after_the_last_byte_it_is_done_once(
        self,
        size: int,
        uploader: AsyncBlobStorageUploader,
        azurite: Any,
        proxy: FaultProxy,
        tmp_path: Path,
    ) -> None:
        """The server has it and its answer is lost: found there, not stored twice."""
        last = "" if size < BLOCK else "comp=blocklist"
        proxy.fail(lose_answer(), method="PUT", path="/run.log", query=last, times=ONCE_MORE)
        receipt = await ship(uploader, file_of(tmp_path, noise(size)))
        assert receipt.blob_name == "run.log" and uploader.retries == 1
        assert await stored(azurite, uploader) == {"run.log": noise(size)}

    @pytest.mark.parametrize("fault, times", [(reset_in_body, 4), (drop, 4), (found_damaged, 1)])
    @in_loop
    async def test_a_block_that_does_not_get_through_is_sent_again(
        self,
        fault: Callable[[], Any],
        times: int,
        uploader: AsyncBlobStorageUploader,
        azurite: Any,
        proxy: FaultProxy,
        tmp_path: Path,
    ) -> None:
        """Reset in the middle, dropped, or damaged on the way."""
        proxy.fail(fault(), query="comp=block&", skip=1, times=times)
        data = noise(3 * BLOCK)
        await ship(uploader, file_of(tmp_path, data))
        assert uploader.retries
        assert await stored(azurite, uploader) == {"run.log": data}

    @in_loop
    async def test_a_file_deleted_during_the_upload(
        self,
        uploader: AsyncBlobStorageUploader,
        azurite: Any,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """It is open, so all of it is stored."""
        path = file_of(tmp_path, noise(2 * BLOCK))
        assert await uploader.initialize()
        upload = uploader.submit(UploadJob(path, "run.log"))
        await asyncio.sleep(0)  # the worker opens it
        os.unlink(path)
        await upload
        assert "vanished while it was uploaded" in said(caplog)[0]
        assert await stored(azurite, uploader) == {"run.log": noise(2 * BLOCK)}


class TestServiceThrottling:
    @pytest.mark.parametrize("status", [429, 503])
    @in_loop
    async def test_it_is_waited_out_as_long_as_the_server_asks(
        self,
        status: int,
        uploader: AsyncBlobStorageUploader,
        proxy: FaultProxy,
        clock: Clock,
        tmp_path: Path,
    ) -> None:
        """Retry-After is honoured, and the file is stored."""
        proxy.fail(answer(status, code="ServerBusy", retry_after="17"), path="/run.log", times=2)
        await ship(uploader, file_of(tmp_path))
        assert uploader.retries == 2 and clock.waited == [17, 17]

    @in_loop
    async def test_a_server_that_stays_busy_ends_the_attempts(
        self, uploader: AsyncBlobStorageUploader, proxy: FaultProxy, tmp_path: Path
    ) -> None:
        """Five, and the next file is taken when it is back."""
        proxy.fail(answer(503, code="ServerBusy"), path="/run.log", times=5)
        with pytest.raises(TemporaryError, match="ServerBusy"):
            await ship(uploader, file_of(tmp_path))
        assert proxy.count(path="/run.log") == 5
        assert (await ship(uploader, file_of(tmp_path, name="next.log"))).size == 9

    @in_loop
    async def test_mixed_success_and_failure(
        self,
        uploader: AsyncBlobStorageUploader,
        azurite: Any,
        proxy: FaultProxy,
        tmp_path: Path,
    ) -> None:
        """Faults of all kinds among a hundred files: each is stored once or told."""
        proxy.fail(answer(403), path="/bad-", times=10)
        busy = answer(503, code="ServerBusy", retry_after="5")
        faults = {"1": found_damaged(), "3": busy, "5": drop(), "7": lose_answer()}
        for digit, fault in faults.items():  # four at most for a file, which has five attempts
            proxy.fail(fault, method="PUT", path=f"/good-{digit}", times=4)
        assert await uploader.initialize()
        for n in range(100):
            kind = "bad" if n % 10 == 0 else "good"
            await uploader.upload_file(file_of(tmp_path, noise(n + 1), f"{kind}-{n}.log"))
        assert await uploader.shutdown() == ()
        blobs = await stored(azurite, uploader)
        assert blobs == {f"good-{n}.log": noise(n + 1) for n in range(100) if n % 10}
        assert uploader.uploaded + uploader.already_there == 90
        assert uploader.failed.total() == 10


CHILD = """
import asyncio, sys
from foundry_log.shipping.blob_storage import AsyncBlobStorageUploader, UploadJob

async def main(path, account_url, container, key):
    uploader = AsyncBlobStorageUploader(account_url, container, credential=key)
    assert await uploader.initialize()
    receipt = await uploader.submit(UploadJob(path, "large.log"))
    assert await uploader.shutdown() == ()
    print(receipt.size, receipt.md5.hex())

asyncio.run(main(*sys.argv[1:]))
print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.long
class TestLargeLoads:
    @pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks Linux for memory")
    def test_a_file_of_1_gb_takes_little_memory(self, azurite: Any, tmp_path: Path) -> None:
        """The peak of the whole process is below 120 MB."""
        path = tmp_path / "large.log"
        with path.open("wb") as file:
            for place in range(0, 1_000_000_000, 50_000_000):
                file.seek(place)
                file.write(noise(1000))
            file.truncate(1_000_000_000)
        command = [sys.executable, "-c", CHILD, str(path), azurite.account_url]
        done = subprocess.run(
            [*command, azurite.new_container(), azurite.key],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        size, md5, peak_kb = done.stdout.split()
        digest = hashlib.md5()
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
        assert md5 == digest.hexdigest()
        assert int(size) == 1_000_000_000
        assert int(peak_kb) * 1024 < 120_000_000

    @pytest.mark.parametrize("kind, count", [("directory", 15_000), ("server", 3_000)])
    @in_loop_for_long
    async def test_queue_overflow_thousands_pending_uploads(
        self, kind: str, count: int, azurite: Any, tmp_path: Path
    ) -> None:
        """They wait at once and arrive, each once; of the server, which slows down, fewer."""
        store: Any = LocalStore(str(tmp_path / "store"))
        if kind == "server":
            store = AzureStore(azurite.account_url, azurite.new_container(), azurite.key)
        uploader = AsyncBlobStorageUploader(store=store)
        assert await uploader.initialize()
        (tmp_path / "logs").mkdir()
        for n in range(count):
            await uploader.upload_file(file_of(tmp_path / "logs", b"%06d\n" % n, f"run-{n}.log"))
        assert uploader.pending == count
        assert await uploader.shutdown(500) == ()
        assert (uploader.uploaded, uploader.failed.total()) == (count, 0)
        await store.open()
        for n in range(0, count, 100):
            facts = await store.facts(f"run-{n}.log")
            assert facts is not None and facts.md5 == hashlib.md5(b"%06d\n" % n).digest()
        await store.close()
