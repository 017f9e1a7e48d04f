"""Blobs in Azure Blob Storage, through Microsoft's own SDK."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
)
from typing import Any, TypeVar
from urllib.parse import parse_qs, quote, unquote

from foundry_log.extras import import_extra
from foundry_log.shipping.addresses import (
    check_account_url,
    check_container_name,
    scrubbed,
    signature_of,
)
from foundry_log.shipping.azure_errors import MAY_WRITE, RefusedError, translated
from foundry_log.shipping.content import Content, in_thread
from foundry_log.shipping.store import (
    BlobExistsError,
    BlobFacts,
    StoreError,
    TemporaryError,
    check_blob_name,
)

AT_ONCE = 1024 * 1024
"""Bytes that go in one request; aiohttp warns of more of them in one piece."""
SLICE = 256 * 1024
IN_FLIGHT = 8
"""Blocks that a store holds in memory at once, those of all its blobs together."""
IN_FLIGHT_EACH = 4
"""Blocks of one blob that are under way at once."""
TIMEOUT_S = 60.0
"""Seconds that one request may take, a block of 4 MiB included."""
CONNECTS_WITHIN_S = 20.0

_CONTENT_TYPES = {
    ".log": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".gz": "application/gzip",
}
_PLAIN = "!\"#$&'()*+,-./:;<=>?@[]^_`{|}~"
"""What a header carries as it is, beside letters and digits."""

# Registered nowhere, so that nobody hears it: the SDK logs ten lines for each request.
_UNHEARD = logging.Logger("foundry_log.shipping.requests", logging.CRITICAL)

_T = TypeVar("_T")


class AzureStore:
    """A container of an Azure storage account, as a `BlobStore`. Used from one event loop.

    Args:
        account_url: such as `https://ACCOUNT.blob.core.windows.net`, with a shared access signature
            behind `?` or without. It is checked by `open`.
        container_name: made by `open` if it is missing.
        credential: an account key or a shared access signature as text, or a credential object of
            the asynchronous kind, which stays the caller's to close. None: the signature in
            `account_url`, and without one whoever this process runs as (DefaultAzureCredential).
        ca_file: path of the certificates to trust in place of the system's.
        timeout_s: seconds that one request may take; of a block eight times as many.
    """

    def __init__(
        self,
        account_url: str,
        container_name: str,
        credential: Any = None,
        *,
        ca_file: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.url = scrubbed(f"{account_url.partition('?')[0].rstrip('/')}/{container_name}")
        self._account_url = account_url
        self._container_name = container_name
        self._credential = credential or signature_of(account_url)
        self._ca_file = ca_file
        self._timeout_s = timeout_s
        self._opening = asyncio.Lock()
        self._container: Any = None
        self._closers = contextlib.AsyncExitStack()
        self._slots = asyncio.Semaphore(IN_FLIGHT)

    def __repr__(self) -> str:
        return f"AzureStore({self.url!r})"

    async def open(self) -> None:
        """Connect, and make the container if it is missing. Idempotent, also when called at once.

        Raises:
            StoreError: the address is none, the server cannot be reached or does not accept the
                credential; nothing is left open, and it can be tried again.
            ImportError: the SDK is not installed; the text says how to.
        """
        async with self._opening, contextlib.AsyncExitStack() as stack:
            if self._container is None:
                container = await self._connect(stack)
                await self._ensure(container)
                self._slots = asyncio.Semaphore(IN_FLIGHT)
                self._closers = stack.pop_all()
                self._container = container

    async def close(self) -> None:
        """Let go of connections. Idempotent; `open` begins anew."""
        async with self._opening:
            self._container = None
            await self._closers.aclose()

    async def put_new(self, name: str, content: Content, metadata: Mapping[str, str]) -> BlobFacts:
        """Store a blob under a name that is free, and return what the store has now.

        Up to 1 MiB goes in one request. More goes in blocks of 4 MiB, of which memory holds eight
        at the most, and one last request makes them a blob. The server checks the MD5 of each.

        Raises:
            BlobExistsError: the name is taken.
            StoreError: see `BlobStore`.
            OSError: the content cannot be read, or has changed.
        """
        blob = self._blob(name)
        if content.size <= AT_ONCE:
            return await self._put_at_once(blob, content, metadata)
        await self._put_in_blocks(blob, content, metadata)
        facts = await self.facts(name)
        if facts is None:
            raise TemporaryError(f"{self.url}: {name} was stored, and is not there any more")
        return facts

    async def facts(self, name: str) -> BlobFacts | None:
        """Return what the store says of a blob; None where there is none of that name.

        Raises:
            StoreError: see `BlobStore`.
        """
        try:
            found = await self._request(f"looking at {name}", self._blob(name).get_blob_properties)
        except RefusedError as error:
            if error.code == "BlobNotFound":
                return None
            raise
        md5 = found.content_settings.content_md5
        metadata = {key: unquote(value) for key, value in found.metadata.items()}
        return BlobFacts(found.size, bytes(md5) if md5 else None, metadata)

    async def _connect(self, stack: contextlib.AsyncExitStack) -> Any:
        """Return a client of the container, which `stack` closes."""
        try:
            account_url = check_account_url(self._account_url)
            check_container_name(self._container_name)
        except ValueError as error:
            raise StoreError(str(error)) from None
        import_extra("aiohttp", "azure", "AzureStore")
        sdk = import_extra("azure.storage.blob.aio", "azure", "AzureStore")
        options = {} if self._ca_file is None else {"connection_verify": self._ca_file}
        with self._translating("connecting"):
            service = sdk.BlobServiceClient(
                account_url,
                self._credential or await _own_credential(stack),
                max_single_put_size=AT_ONCE,
                retry_total=0,  # how often and when is the uploader's to decide
                connection_timeout=min(CONNECTS_WITHIN_S, self._timeout_s),
                read_timeout=self._timeout_s,
                logger=_UNHEARD,
                **options,
            )
        stack.push_async_callback(service.close)
        return service.get_container_client(self._container_name)

    async def _ensure(self, container: Any) -> None:
        """Make the container, unless it is there."""
        try:
            await self._request("making the container", container.create_container)
        except BlobExistsError:
            pass
        except RefusedError as error:
            signature = _signature(self._credential)
            if error.status != 403 or signature is None:
                raise
            await self._probe(container, signature)

    async def _probe(self, container: Any, signature: str) -> None:
        """Look for a blob that is not there.

        A signature for one container allows to make none, and its refusal does not tell whether
        there is one to write to. This does.
        """
        granted = parse_qs(signature).get("sp", [""])[0]
        if not set(granted) & set("cw"):
            raise StoreError(f"{self.url}: the signature permits {granted!r} only; use {MAY_WRITE}")
        probe = container.get_blob_client(f".foundry_log-{secrets.token_hex(8)}")
        try:
            await self._request("looking for the container", probe.get_blob_properties)
        except RefusedError as error:
            if error.code != "BlobNotFound":
                raise

    def _blob(self, name: str) -> Any:
        if self._container is None:
            raise StoreError(f"{self.url} is not open; await open() first")
        return self._container.get_blob_client(check_blob_name(name))

    async def _put_at_once(
        self, blob: Any, content: Content, metadata: Mapping[str, str]
    ) -> BlobFacts:
        async with self._slots:
            body = b"".join([block async for block in content.blocks()])
            answer = await self._request(
                f"storing {blob.blob_name}",
                lambda: blob.upload_blob(
                    body,
                    length=len(body),
                    overwrite=False,
                    validate_content=True,
                    content_settings=_settings(blob.blob_name, content.md5),
                    metadata=_encoded(metadata),
                ),
            )
        # The answer has the MD5 of what the server took, so there is nothing left to ask for.
        md5 = answer.get("content_md5") or content.md5
        return BlobFacts(len(body), bytes(md5), dict(metadata))

    async def _put_in_blocks(
        self, blob: Any, content: Content, metadata: Mapping[str, str]
    ) -> None:
        block_ids = await self._stage(blob, content)
        core = import_extra("azure.core", "azure", "AzureStore")
        await self._request(
            f"committing {blob.blob_name}",
            lambda: blob.commit_block_list(
                block_ids,
                match_condition=core.MatchConditions.IfMissing,
                validate_content=True,
                content_settings=_settings(blob.blob_name, content.md5),
                metadata=_encoded(metadata),
            ),
        )

    async def _stage(self, blob: Any, content: Content) -> list[str]:
        """Send the blocks, and return their ids in order.

        The server wants ids of one length. Those of another writer of the same name differ.
        """
        upload = secrets.token_hex(8)
        reading = asyncio.Lock()
        block_ids: list[str] = []

        async def send_next(blocks: AsyncIterator[bytearray]) -> bool:
            async with self._slots:  # first, since a block that was read is in memory
                async with reading:
                    block = await anext(blocks, None)
                    if block is None:
                        return False
                    block_id = f"{upload}{len(block_ids):08d}"
                    block_ids.append(block_id)
                await self._stage_one(blob, block_id, block)
                return True

        async def send(blocks: AsyncIterator[bytearray]) -> None:
            while await send_next(blocks):
                pass  # no block may be kept by a name while the next one's slot is waited for

        async with contextlib.aclosing(content.blocks()) as blocks:
            await _together(send(blocks) for _ in range(IN_FLIGHT_EACH))
        return block_ids

    async def _stage_one(self, blob: Any, block_id: str, block: bytearray) -> None:
        # The SDK's `validate_content` would hash it on the event loop, 4 KiB at a time.
        md5 = await in_thread(_md5, block)
        await self._request(
            f"sending a block of {blob.blob_name}",
            lambda: blob.stage_block(
                block_id, _slices(block), len(block), transactional_content_md5=md5
            ),
            patience=IN_FLIGHT,  # so many may share a slow line
        )

    async def _request(
        self, doing: str, call: Callable[[], Awaitable[_T]], patience: float = 1.0
    ) -> _T:
        limit_s = patience * self._timeout_s
        with self._translating(doing):
            try:
                return await asyncio.wait_for(call(), limit_s)
            except asyncio.TimeoutError:
                raise asyncio.TimeoutError(f"no answer within {limit_s:g} s") from None

    @contextlib.contextmanager
    def _translating(self, doing: str) -> Iterator[None]:
        try:
            yield
        except ImportError:
            raise  # it says what to install
        except Exception as error:
            # Not `from error`: the SDK's errors carry the request, with its signature and key.
            raise translated(error, self.url, doing) from None


async def _own_credential(stack: contextlib.AsyncExitStack) -> Any:
    """Return what this process may identify itself with, closed by `stack`."""
    identity = import_extra("azure.identity.aio", "azure", "AzureStore without a credential")
    credential = identity.DefaultAzureCredential(logger=_UNHEARD)
    stack.push_async_callback(credential.close)
    return credential


def _signature(credential: Any) -> str | None:
    """Return a credential that is a shared access signature; None for any other."""
    is_one = isinstance(credential, str) and "sig=" in credential
    return credential.lstrip("?") if is_one else None


async def _together(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run them at once to their ends; the first error ends all, before it is raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _slices(block: bytearray) -> AsyncIterator[memoryview]:
    """Yield a block in pieces, without a copy: aiohttp warns of more, and copies from a file."""
    whole = memoryview(block)
    for start in range(0, len(whole), SLICE):
        yield whole[start : start + SLICE]


def _md5(block: bytearray) -> bytearray:
    return bytearray(hashlib.md5(block, usedforsecurity=False).digest())


def _settings(name: str, md5: bytes) -> Any:
    blob = import_extra("azure.storage.blob", "azure", "AzureStore")
    kind = _CONTENT_TYPES.get(os.path.splitext(name)[1].lower(), "application/octet-stream")
    return blob.ContentSettings(content_type=kind, content_md5=bytearray(md5))


def _encoded(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return it as headers can carry it: in ASCII, without white space."""
    return {key: quote(value, _PLAIN, errors="replace") for key, value in metadata.items()}
