"""Azure's SDK against a real server: faults on the way, credentials, secrets, and logs."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import http.server
import json
import logging
import os
import socket
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from foundry_log.shipping.addresses import parse_destination
from foundry_log.shipping.azure_errors import retry_after_s
from foundry_log.shipping.azure_store import AzureStore
from foundry_log.shipping.content import BLOCK, Content
from foundry_log.shipping.store import (
    BlobExistsError,
    BlobFacts,
    CorruptedError,
    StoreError,
    TemporaryError,
)
from tests.azurite import ACCOUNT, KEY, REMEDY, Azurite, running_azurite
from tests.fault_proxy import (
    Fault,
    FaultProxy,
    answer,
    corrupt,
    delay,
    drop,
    lose_answer,
    reset_in_body,
    stall,
)

blobs = pytest.importorskip("azure.storage.blob", reason=REMEDY)
pytest.importorskip("azure.identity", reason=REMEDY)

pytestmark = [pytest.mark.integration, pytest.mark.services, pytest.mark.asyncio]

T = TypeVar("T")
SMALL, LARGE = 1000, 2 * BLOCK
# A request whose connection is lost is sent once more by aiohttp itself, and cannot be told not to.
FOR_GOOD = 1000


def use(store: AzureStore, action: Callable[[AzureStore], Awaitable[T]]) -> T:
    """Do something with an open store."""

    async def main() -> T:
        await store.open()
        try:
            return await action(store)
        finally:
            await store.close()

    return asyncio.run(main())


async def nothing(store: AzureStore) -> None:
    """Do nothing with it."""


@contextlib.contextmanager
def content_of(path: Path, size: int) -> Iterator[Content]:
    """The content of a file of that size."""
    path.write_bytes(b"x" * size)
    with path.open("rb") as file:
        yield Content(file.fileno(), str(path))


@pytest.fixture
def proxy(azurite: Azurite) -> Iterator[FaultProxy]:
    """A proxy in front of the server."""
    with FaultProxy(azurite.account_url) as proxy:
        yield proxy


@pytest.fixture
def store(azurite: Azurite, proxy: FaultProxy) -> AzureStore:
    """A store behind the proxy."""
    return AzureStore(proxy.account_url, azurite.new_container(), azurite.key, timeout_s=10)


# --- faults on the way ---


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (drop(), TemporaryError),
        (reset_in_body(), TemporaryError),
        (answer(408), TemporaryError),
        (answer(429), TemporaryError),
        (answer(500, code="InternalError"), TemporaryError),
        (answer(502), TemporaryError),
        (answer(503, code="ServerBusy"), TemporaryError),
        (answer(504), TemporaryError),
        (corrupt(), CorruptedError),
        (answer(401, code="InvalidAuthenticationInfo"), StoreError),
        (answer(403, code="AuthorizationPermissionMismatch"), StoreError),
        (answer(404, code="ContainerNotFound"), StoreError),
        (answer(400, code="InvalidHeaderValue"), StoreError),
    ],
    ids=lambda value: getattr(value, "__qualname__", str(value)).split(".")[0],
)
def test_a_fault_is_one_error_and_the_next_attempt_succeeds(
    store: AzureStore,
    proxy: FaultProxy,
    tmp_path: Path,
    fault: Fault,
    error: type[StoreError],
    size: int,
) -> None:
    """The SDK does not try again by itself, nothing is stored, and the store works on."""

    async def twice(store: AzureStore) -> BlobFacts:
        proxy.fail(fault, method="PUT", path="run.log", times=FOR_GOOD)
        with content_of(tmp_path / "run.log", size) as content:
            with pytest.raises(StoreError, match=r"run\.log") as caught:
                await store.put_new("run.log", content, {})
            assert type(caught.value) is error or error is StoreError
            assert isinstance(caught.value, TemporaryError) is (error is TemporaryError)
            assert store.url in str(caught.value)
            assert await store.facts("run.log") is None
            proxy.heal()
            facts = await store.put_new("run.log", content, {})
            assert facts.agree_with(content)
            return facts

    assert use(store, twice).size == size


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_lost_answer_leaves_a_blob_that_agrees(
    store: AzureStore, proxy: FaultProxy, tmp_path: Path, size: int
) -> None:
    """Whoever tries again, we or aiohttp, finds the name taken by the same content."""

    async def twice(store: AzureStore) -> None:
        last = "comp=blocklist" if size == LARGE else ""
        proxy.fail(lose_answer(), method="PUT", path="run.log", query=last, times=FOR_GOOD)
        with content_of(tmp_path / "run.log", size) as content:
            with pytest.raises(TemporaryError):
                await store.put_new("run.log", content, {})
            proxy.heal()
            with pytest.raises(BlobExistsError):
                await store.put_new("run.log", content, {})
            facts = await store.facts("run.log")
            assert facts is not None
            assert facts.agree_with(content)

    use(store, twice)


@pytest.mark.parametrize(
    ("fault", "size"), [(delay(60), SMALL), (stall(), LARGE)], ids=["no answer", "not read"]
)
def test_a_server_that_does_nothing_is_given_up(
    azurite: Azurite, proxy: FaultProxy, tmp_path: Path, fault: Fault, size: int
) -> None:
    """After the time that was given for a request."""
    store = AzureStore(proxy.account_url, azurite.new_container(), azurite.key, timeout_s=0.5)

    async def put(store: AzureStore) -> None:
        proxy.fail(fault, method="PUT", path="run.log", times=FOR_GOOD)
        with content_of(tmp_path / "run.log", size) as content:
            await store.put_new("run.log", content, {})

    with pytest.raises(TemporaryError, match=r"run\.log"):
        use(store, put)


def test_a_block_that_fails_ends_the_others(
    store: AzureStore, proxy: FaultProxy, tmp_path: Path
) -> None:
    """Once the error is raised, nobody reads the file or sends any more of it."""

    async def put(store: AzureStore) -> None:
        proxy.fail(answer(500), query="comp=block")
        with content_of(tmp_path / "run.log", 12 * BLOCK) as content, pytest.raises(TemporaryError):
            await store.put_new("run.log", content, {})
        assert asyncio.all_tasks() == {asyncio.current_task()}

    use(store, put)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_every_body_has_its_md5(
    store: AzureStore, proxy: FaultProxy, tmp_path: Path, size: int
) -> None:
    """So that the server refuses what was damaged on the way."""

    async def put(store: AzureStore) -> None:
        with content_of(tmp_path / "run.log", size) as content:
            await store.put_new("run.log", content, {})

    use(store, put)
    puts = [request for request in proxy.requests if request.path.endswith("run.log")]
    assert all("content-md5" in request.headers for request in puts if request.method == "PUT")


def test_a_late_answer_is_waited_for(store: AzureStore, proxy: FaultProxy, tmp_path: Path) -> None:
    """Slow is not broken."""

    async def put(store: AzureStore) -> bool:
        proxy.fail(delay(0.2), method="PUT", path="run.log")
        with content_of(tmp_path / "run.log", SMALL) as content:
            return (await store.put_new("run.log", content, {})).agree_with(content)

    assert use(store, put)


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry_after": "7"}, 7.0),
        ({"x_ms_retry_after_ms": "1500"}, 1.5),
        ({"retry_after_ms": "20", "retry_after": "7"}, 0.02),
        ({}, None),
        ({"retry_after": "soon"}, None),
    ],
)
def test_what_the_server_asks_to_wait_is_told(
    store: AzureStore,
    proxy: FaultProxy,
    tmp_path: Path,
    headers: dict[str, str],
    wait_s: float | None,
) -> None:
    """In seconds, whichever header says it; and not waited for by the SDK."""

    async def put(store: AzureStore) -> None:
        proxy.fail(answer(503, code="ServerBusy", **headers), method="PUT", path="run.log")
        with content_of(tmp_path / "run.log", SMALL) as content:
            await store.put_new("run.log", content, {})

    with pytest.raises(TemporaryError) as caught:
        use(store, put)
    assert caught.value.retry_after_s == wait_s
    assert proxy.count(method="PUT", path="run.log") == 1


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        ("Sat, 21 Nov 2026 23:00:10 GMT", 10.0),
        ("Sat, 21 Nov 2026 22:00:00 GMT", 0.0),
        ("-1", None),
        ("nan", None),
        ("inf", None),
    ],
)
def test_a_wait_may_be_a_date(value: str, wait_s: float | None) -> None:
    """One that is over is none."""
    now = datetime.datetime(2026, 11, 21, 23, tzinfo=datetime.timezone.utc).timestamp()
    assert retry_after_s({"Retry-After": value}, now) == wait_s


def test_a_writer_whose_blocks_were_dropped_may_try_again(
    store: AzureStore, azurite: Azurite, proxy: FaultProxy, tmp_path: Path
) -> None:
    """Azure says so where another's commit came first; the name is taken when it does."""

    async def put(store: AzureStore) -> None:
        proxy.fail(answer(400, code="InvalidBlockList"), query="comp=blocklist")
        with content_of(tmp_path / "run.log", LARGE) as content:
            await store.put_new("run.log", content, {})

    with pytest.raises(TemporaryError, match="InvalidBlockList"):
        use(store, put)


# --- opening ---


@pytest.mark.parametrize(
    "fault",
    [drop(), answer(403, code="AuthorizationFailure"), answer(500)],
    ids=["drop", "403", "500"],
)
def test_opening_fails_and_can_be_tried_again(
    store: AzureStore, proxy: FaultProxy, fault: Fault
) -> None:
    """Nothing is left open by the one that failed."""
    proxy.fail(fault, query="restype=container", times=FOR_GOOD)
    with pytest.raises(StoreError, match="making the container"):
        asyncio.run(store.open())
    proxy.heal()
    assert use(store, lambda store: store.facts("run.log")) is None


def test_five_openings_at_once_are_one(store: AzureStore, proxy: FaultProxy) -> None:
    """The container is made once."""

    async def main() -> None:
        await asyncio.gather(*(store.open() for _ in range(5)))
        await store.close()

    asyncio.run(main())
    assert proxy.count(query="restype=container") == 1


def test_a_container_that_is_there_is_fine(store: AzureStore, proxy: FaultProxy) -> None:
    """It was there the second time."""
    use(store, nothing)
    use(store, nothing)
    assert proxy.count(query="restype=container") == 2


def test_a_permission_that_is_missing_is_told(store: AzureStore, proxy: FaultProxy) -> None:
    """With the account, the container, the status and the remedy."""
    proxy.fail(answer(403, code="AuthorizationFailure"), query="restype=container")
    with pytest.raises(StoreError, match=r"403 AuthorizationFailure; give a credential") as caught:
        use(store, nothing)
    assert store.url in str(caught.value)
    assert not isinstance(caught.value, TemporaryError)


@pytest.mark.parametrize(
    "url", ["", "not a url", "ftp://acct", "https://acct.dfs.core.windows.net"]
)
def test_a_wrong_url_is_told_when_it_is_opened(url: str) -> None:
    """Not before: whoever configures it may want to go on without."""
    with pytest.raises(StoreError, match="use https://"):
        use(AzureStore(url, "logs", KEY), nothing)


def test_a_host_that_is_not_there_is_an_error() -> None:
    """No such name, or nobody who listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        for url in (f"http://127.0.0.1:{port}/{ACCOUNT}", "https://acct.blob.core.invalid"):
            with pytest.raises(TemporaryError, match="making the container failed"):
                use(AzureStore(url, "logs", KEY, timeout_s=10), nothing)


# --- keys and signatures ---


def signature(container: str, permission: str, hours: float = 1) -> str:
    """A shared access signature for one container."""
    expiry = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=hours)
    return str(
        blobs.generate_container_sas(
            ACCOUNT, container, account_key=KEY, permission=permission, expiry=expiry
        )
    )


def test_a_containers_signature_is_enough(azurite: Azurite, tmp_path: Path) -> None:
    """It cannot make the container, and need not."""
    name = azurite.new_container()
    use(AzureStore(azurite.account_url, name, azurite.key), nothing)
    url = f"{azurite.account_url}/{name}?{signature(name, 'rcw')}"
    destination = parse_destination(url)
    sas = f"?{destination.credential}"
    for store in (
        AzureStore(destination.account_url, name, destination.credential),
        AzureStore(destination.account_url, name, sas),
        AzureStore(destination.account_url + sas, name),
    ):
        with content_of(tmp_path / "run.log", SMALL) as content:
            with contextlib.suppress(BlobExistsError):
                use(store, lambda store: store.put_new("run.log", content, {}))
            facts = use(store, lambda store: store.facts("run.log"))
            assert facts is not None
            assert facts.agree_with(content)
        assert "sig" not in store.url + repr(store)


@pytest.mark.parametrize(
    ("permission", "hours", "there", "wrong"),
    [
        ("r", 1, True, "permits 'r' only"),
        ("w", 1, True, "403"),
        ("rcw", -1, True, "403"),
        ("rcw", 1, False, "404 ContainerNotFound"),
    ],
    ids=["read-only", "write-only", "expired", "no-container"],
)
def test_a_signature_that_does_not_suffice_is_told(
    azurite: Azurite, permission: str, hours: float, there: bool, wrong: str
) -> None:
    """When it is opened, and without a word of it."""
    name = azurite.new_container()
    if there:
        use(AzureStore(azurite.account_url, name, azurite.key), nothing)
    sas = signature(name, permission, hours)
    with pytest.raises(StoreError, match=wrong) as caught:
        use(AzureStore(azurite.account_url, name, sas), nothing)
    _assert_silent_about(sas.split("sig=")[1], caught.value)


@pytest.mark.parametrize("key", [base64.b64encode(b"wrong" * 13).decode(), "no base 64 at all"])
def test_a_wrong_key_is_told(azurite: Azurite, key: str) -> None:
    """Also one that is none; and without a word of it."""
    store = AzureStore(azurite.account_url, azurite.new_container(), key)
    with pytest.raises(StoreError, match="making the container failed") as caught:
        use(store, nothing)
    assert not isinstance(caught.value, TemporaryError)
    _assert_silent_about(key, caught.value, repr(store), store.url)


def _assert_silent_about(secret: str, error: BaseException, *texts: str) -> None:
    shown = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    for text in (str(error), repr(error), shown, *texts):
        assert secret not in text


# --- tokens ---


@pytest.fixture(scope="module")
def azurite_tls() -> Iterator[Azurite]:
    """A server with TLS, which checks tokens."""
    pytest.importorskip("cryptography", reason=REMEDY)
    with running_azurite(https=True) as server:
        yield server


def token(*, audience: str = "https://storage.azure.com", hours: float = 1) -> str:
    """A token as Azure's directory makes them, but for the signature."""
    now = int(time.time())
    claims = {
        "aud": audience,
        "iss": "https://sts.windows.net/ab1f708d-50f6-404c-a006-d71b2ac7a606/",
        "iat": now - 7200,
        "nbf": now - 7200,
        "exp": int(now + hours * 3600),
    }
    parts = ({"alg": "none", "typ": "JWT"}, claims)
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts]
    return b".".join([*coded, b"c2lnbmF0dXJl"]).decode()


class Tokens:
    """A credential that has one token."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.is_closed = False

    async def get_token(self, *scopes: str, **_: Any) -> Any:
        """Return the token, for whatever."""
        core = pytest.importorskip("azure.core.credentials", reason=REMEDY)
        return core.AccessToken(self.text, int(time.time()) + 3600)

    async def close(self) -> None:
        """Note it."""
        self.is_closed = True

    async def __aenter__(self) -> Tokens:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def test_a_token_over_tls(azurite_tls: Azurite, tmp_path: Path) -> None:
    """Stores blobs, and stays open for its owner."""
    tokens = Tokens(token())
    store = AzureStore(
        azurite_tls.account_url,
        azurite_tls.new_container(),
        tokens,
        ca_file=azurite_tls.certificate,
    )
    with content_of(tmp_path / "run.log", LARGE) as content:
        facts = use(store, lambda store: store.put_new("run.log", content, {}))
        assert facts.agree_with(content)
    assert not tokens.is_closed


@pytest.mark.parametrize(
    "text",
    [token(audience="https://vault.azure.net"), token(hours=-1)],
    ids=["audience", "expired"],
)
def test_a_wrong_token_is_told(azurite_tls: Azurite, text: str) -> None:
    """Of another service, or too old; and without a word of it."""
    store = AzureStore(
        azurite_tls.account_url,
        azurite_tls.new_container(),
        Tokens(text),
        ca_file=azurite_tls.certificate,
    )
    with pytest.raises(StoreError, match=r"40[13].*give a credential") as caught:
        use(store, nothing)
    assert not isinstance(caught.value, TemporaryError)
    _assert_silent_about(text, caught.value)


class NeverTokens(Tokens):
    """A credential that has none, and does not say so."""

    async def get_token(self, *scopes: str, **_: Any) -> Any:
        """Wait."""
        await asyncio.Event().wait()


def test_a_token_that_does_not_come_is_given_up(azurite_tls: Azurite) -> None:
    """It counts to the time that was given for a request."""
    url, container = azurite_tls.account_url, azurite_tls.new_container()
    with pytest.raises(TemporaryError, match="making the container failed"):
        use(AzureStore(url, container, NeverTokens(""), timeout_s=0.2), nothing)


def test_a_certificate_that_is_not_trusted_is_told(azurite_tls: Azurite) -> None:
    """It is no fault that passes."""
    store = AzureStore(azurite_tls.account_url, azurite_tls.new_container(), Tokens(token()))
    with pytest.raises(StoreError, match="trust the server's certificate") as caught:
        use(store, nothing)
    assert not isinstance(caught.value, TemporaryError)


@contextlib.contextmanager
def identity_endpoint(reply: Callable[[], tuple[int, dict[str, Any]]]) -> Iterator[str]:
    """What gives tokens to the programs on a machine of Azure's, on loopback."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, answer = reply()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/token"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment in which a process is nobody yet."""
    for name in list(os.environ):
        if name.startswith(("AZURE_", "IDENTITY_", "MSI_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IDENTITY_HEADER", "header")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
    return monkeypatch


def test_who_the_process_runs_as_is_enough(
    azurite_tls: Azurite,
    bare_environment: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """Azure's own DefaultAzureCredential, without a credential of ours."""

    def reply() -> tuple[int, dict[str, Any]]:
        expiry = int(time.time()) + 3600
        resource = "https://storage.azure.com"
        return 200, {"access_token": token(), "expires_on": str(expiry), "resource": resource}

    caplog.set_level(logging.INFO)
    with identity_endpoint(reply) as url, content_of(tmp_path / "run.log", SMALL) as content:
        bare_environment.setenv("IDENTITY_ENDPOINT", url)
        store = AzureStore(
            azurite_tls.account_url,
            azurite_tls.new_container(),
            ca_file=azurite_tls.certificate,
        )
        facts = use(store, lambda store: store.put_new("run.log", content, {}))
        assert facts.agree_with(content)
    assert [record.getMessage() for record in caplog.records if _is_a_request(record)] == []


def test_a_process_that_is_nobody_is_told(
    azurite_tls: Azurite, bare_environment: pytest.MonkeyPatch
) -> None:
    """With what to give in place of it."""
    with identity_endpoint(lambda: (400, {"error": "no identity"})) as url:
        bare_environment.setenv("IDENTITY_ENDPOINT", url)
        store = AzureStore(
            azurite_tls.account_url,
            azurite_tls.new_container(),
            ca_file=azurite_tls.certificate,
        )
        with pytest.raises(StoreError, match="give a credential") as caught:
            use(store, nothing)
        assert not isinstance(caught.value, TemporaryError)


# --- what is sent and logged ---


def _is_a_request(record: logging.LogRecord) -> bool:
    return record.name.startswith("azure.core.pipeline")


def test_requests_are_not_logged(
    azurite: Azurite, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The SDK's ten lines for each would flood the application, and be shipped as well."""
    caplog.set_level(logging.INFO)
    store = AzureStore(azurite.account_url, azurite.new_container(), azurite.key)
    with content_of(tmp_path / "run.log", LARGE) as content:
        use(store, lambda store: store.put_new("run.log", content, {}))
    assert [record.name for record in caplog.records if record.name.startswith("azure")] == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("run.log", "text/plain; charset=utf-8"),
        ("run.jsonl", "application/x-ndjson"),
        ("run.jsonl.gz", "application/gzip"),
        ("run.bin", "application/octet-stream"),
    ],
)
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_blob_has_the_type_of_its_name(
    azurite: Azurite, tmp_path: Path, name: str, kind: str, size: int
) -> None:
    """So that a browser shows it; and the MD5 of the whole, also where it went in blocks."""
    container = azurite.new_container()
    store = AzureStore(azurite.account_url, container, azurite.key)
    with content_of(tmp_path / "x", size) as content:
        use(store, lambda store: store.put_new(name, content, {"app": "ü"}))
        with blobs.BlobServiceClient(azurite.account_url, KEY) as client:
            blob = client.get_blob_client(container, name)
            found = blob.get_blob_properties()
            assert found.content_settings.content_type == kind
            assert bytes(found.content_settings.content_md5) == content.md5
            assert found.metadata == {"app": "%C3%BC"}
            assert blob.download_blob().readall() == b"x" * size
