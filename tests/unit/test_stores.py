"""What every store guarantees, and what the one in a directory does besides."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from foundry_log.shipping.azure_store import AT_ONCE, IN_FLIGHT, AzureStore
from foundry_log.shipping.content import BLOCK, Content
from foundry_log.shipping.local_store import LEFT_AFTER_S, OWN_DIRECTORY, LocalStore
from foundry_log.shipping.store import (
    BlobExistsError,
    BlobFacts,
    BlobStore,
    StoreError,
    TemporaryError,
)

pytestmark = [pytest.mark.unit, pytest.mark.asyncio]

T = TypeVar("T")
MakeStore = Callable[[], BlobStore]
WITHIN_S = 60.0

# Puts one blob after the other, and says the name of each before it begins.
PUTTER = """
import asyncio, sys
from foundry_log.shipping.azure_store import AzureStore
from foundry_log.shipping.content import Content
from foundry_log.shipping.local_store import LocalStore

async def main(kind, *arguments):
    store = {"local": LocalStore, "azure": AzureStore}[kind](*arguments)
    await store.open()
    with open(sys.argv[1], "rb") as file:
        for number in range(1000):
            print(number, flush=True)
            await store.put_new(f"a/{number}.log", Content(file.fileno(), "x"), {"n": "1"})

asyncio.run(main(*sys.argv[2:]))
"""


@pytest.fixture(params=["local", pytest.param("azure", marks=pytest.mark.services)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """The kind of a store, and what it is made of."""
    if request.param == "local":
        return ["local", str(tmp_path / "store")]
    azurite = request.getfixturevalue("azurite")
    return ["azure", azurite.account_url, azurite.new_container(), azurite.key]


@pytest.fixture
def make_store(place: list[str]) -> MakeStore:
    """Make stores of one place, not opened yet."""
    kinds: dict[str, Callable[..., BlobStore]] = {"local": LocalStore, "azure": AzureStore}
    return lambda: kinds[place[0]](*place[1:])


def use(make_store: MakeStore, action: Callable[[BlobStore], Awaitable[T]]) -> T:
    """Do something with an open store."""

    async def main() -> T:
        store = make_store()
        await store.open()
        try:
            return await asyncio.wait_for(action(store), WITHIN_S)
        finally:
            await store.close()

    return asyncio.run(main())


@contextlib.contextmanager
def content_of(path: Path, data: bytes, kind: type[Content] = Content) -> Iterator[Content]:
    """The content of a file that has these bytes."""
    path.write_bytes(data)
    with path.open("rb") as file:
        yield kind(file.fileno(), str(path))


def put(make_store: MakeStore, name: str, content: Content, **metadata: str) -> BlobFacts:
    """Put one blob."""
    return use(make_store, lambda store: store.put_new(name, content, metadata))


def facts(make_store: MakeStore, name: str) -> BlobFacts | None:
    """Look at one blob."""
    return use(make_store, lambda store: store.facts(name))


def md5(whole: bytes) -> bytes:
    """The MD5 of these bytes."""
    return hashlib.md5(whole, usedforsecurity=False).digest()


def data(size: int, seed: int = 0) -> bytes:
    """Bytes that differ from place to place, and from seed to seed."""
    return hashlib.shake_128(bytes([seed])).digest(size)


# --- every store ---


@pytest.mark.parametrize("size", [0, 1, AT_ONCE, AT_ONCE + 1, BLOCK, 5 * BLOCK + 7])
def test_what_is_put_is_there(make_store: MakeStore, tmp_path: Path, size: int) -> None:
    """Whole, of whatever size, an empty file too."""
    with content_of(tmp_path / "run.log", data(size)) as content:
        stored = put(make_store, "app/run.log", content)
        assert stored.agree_with(content)
    assert facts(make_store, "app/run.log") == stored == BlobFacts(size, content.md5)


@pytest.mark.parametrize("size", [10, 2 * BLOCK])
def test_a_name_that_is_taken_is_never_written_to(
    make_store: MakeStore, tmp_path: Path, size: int
) -> None:
    """Neither by other content nor by the same."""
    with content_of(tmp_path / "first", data(10), Content) as first:
        stored = put(make_store, "run.log", first, by="first")
        with content_of(tmp_path / "second", data(size, seed=1)) as second:
            for content in (first, second):
                with pytest.raises(BlobExistsError, match=r"run\.log"):
                    put(make_store, "run.log", content, by="second")
    assert facts(make_store, "run.log") == stored


def test_a_name_that_is_free_has_no_facts(make_store: MakeStore) -> None:
    """Nor has one in a folder that is not there."""
    assert facts(make_store, "run.log") is None
    assert facts(make_store, "no/such/folder/run.log") is None


def test_metadata_is_any_text(make_store: MakeStore, tmp_path: Path) -> None:
    """It comes back as it went in."""
    metadata = {"app": "Über uns 100 %41", "host": "", "path": " a\\b/c\n", "emoji": "🦉", "x": "%"}
    with content_of(tmp_path / "run.log", b"x") as content:
        put(make_store, "run.log", content, **metadata)
    found = facts(make_store, "run.log")
    assert found is not None
    assert found.metadata == metadata


@pytest.mark.parametrize("name", ["a b.log", "ü/ö.log", "100%41.log", "a#b?c=d&e.log", "a+b~=.gz"])
def test_names_stand_as_they_are(make_store: MakeStore, tmp_path: Path, name: str) -> None:
    """No letter of a name has a meaning of its own to the store."""
    with content_of(tmp_path / "run.log", b"x") as content:
        put(make_store, name, content)
    assert facts(make_store, name) == BlobFacts(1, content.md5)


@pytest.mark.parametrize("name", ["", "../up", "a/../../up", "/etc/passwd", "a//b", "a\\b", "a\0"])
def test_names_do_not_climb(make_store: MakeStore, tmp_path: Path, name: str) -> None:
    """They are refused before anything is asked."""
    with (
        content_of(tmp_path / "run.log", b"x") as content,
        pytest.raises(ValueError, match=r"name|control"),
    ):
        put(make_store, name, content)


class StoppingContent(Content):
    """Yields one block and stops there until it is cancelled."""

    async def blocks(self, size: int = BLOCK) -> AsyncGenerator[bytearray, None]:
        async with contextlib.aclosing(super().blocks(size)) as blocks:
            yield await blocks.__anext__()
            self.has_stopped.set()
            await asyncio.Event().wait()

    has_stopped: asyncio.Event


def test_a_put_that_is_cancelled_leaves_nothing(make_store: MakeStore, tmp_path: Path) -> None:
    """The name is free, and the store works on."""

    async def cancel(store: BlobStore) -> BlobFacts | None:
        content.has_stopped = asyncio.Event()
        task = asyncio.ensure_future(store.put_new("run.log", content, {}))
        await content.has_stopped.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await store.facts("run.log")

    with content_of(tmp_path / "run.log", data(3 * BLOCK), StoppingContent) as content:
        assert use(make_store, cancel) is None
    with content_of(tmp_path / "run.log", data(3 * BLOCK)) as whole:
        assert put(make_store, "run.log", whole).agree_with(whole)


class GrowingContent(Content):
    """Is written to while it is read."""

    async def blocks(self, size: int = BLOCK) -> AsyncGenerator[bytearray, None]:
        async for block in super().blocks(size):
            yield block
            with open(self.path, "ab") as file:
                file.write(b"more")


@pytest.mark.parametrize("size", [10, 2 * BLOCK])
def test_content_that_changes_is_not_stored(
    make_store: MakeStore, tmp_path: Path, size: int
) -> None:
    """The error is the file's, not the store's."""
    with content_of(tmp_path / "run.log", data(size), GrowingContent) as content:
        os.utime(tmp_path / "run.log", ns=(0, 0))
        content = GrowingContent(content._descriptor, content.path)
        with pytest.raises(OSError, match="was written to"):
            put(make_store, "run.log", content)
    assert facts(make_store, "run.log") is None


@pytest.mark.parametrize("size", [10, 3 * BLOCK])
def test_of_two_writers_of_a_name_one_wins(
    make_store: MakeStore, tmp_path: Path, size: int
) -> None:
    """And the blob is all the winner's."""

    async def both(store: BlobStore) -> list[Any]:
        puts = [store.put_new("run.log", content, {}) for content in contents]
        return await asyncio.gather(*puts, return_exceptions=True)

    with (
        content_of(tmp_path / "a", data(size)) as a,
        content_of(tmp_path / "b", data(size, seed=1)) as b,
    ):
        contents = [a, b]
        results = use(make_store, both)
        winner = [isinstance(result, BlobFacts) for result in results].index(True)
        # A loser whose blocks the winner's commit has dropped is told to try again.
        assert isinstance(results[1 - winner], BlobExistsError | TemporaryError)
        found = facts(make_store, "run.log")
        assert found is not None
        assert found.agree_with(contents[winner])
        with pytest.raises(BlobExistsError):
            put(make_store, "run.log", contents[1 - winner])


def test_memory_is_bounded(make_store: MakeStore, tmp_path: Path) -> None:
    """Of several large blobs that are put at once, it holds some blocks."""

    async def several(store: BlobStore) -> int:
        tracemalloc.start()
        try:
            await asyncio.gather(*(store.put_new(f"{n}.log", content(), {}) for n in range(3)))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    path = tmp_path / "large.log"
    with path.open("w+b") as file:
        file.truncate(12 * BLOCK)
        content = lambda: Content(file.fileno(), str(path))  # noqa: E731 - one line is enough
        assert use(make_store, several) < (IN_FLIGHT + 4) * BLOCK


def test_opening_and_closing_are_idempotent(make_store: MakeStore, tmp_path: Path) -> None:
    """Five times at once, twice in a row, and after closing again."""

    async def main() -> None:
        store = make_store()
        with content_of(tmp_path / "run.log", b"x") as content:
            with pytest.raises(StoreError, match="not open"):
                await store.put_new("run.log", content, {})
            await asyncio.gather(*(store.open() for _ in range(5)))
            await store.open()
            await store.put_new("run.log", content, {})
        await store.close()
        await store.close()
        with pytest.raises(StoreError, match="not open"):
            await store.facts("run.log")
        await store.open()
        assert await store.facts("run.log")
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize("kills_at", [0, 2])
def test_a_killed_writer_leaves_whole_blobs_or_none(
    make_store: MakeStore, place: list[str], tmp_path: Path, kills_at: int
) -> None:
    """SIGKILL, in the middle of a put; the next writer of the name is not hindered."""
    whole = data(3 * BLOCK)
    with content_of(tmp_path / "large.log", whole) as content:
        last = _put_until_killed(tmp_path / "large.log", place, kills_at)
        found = facts(make_store, f"a/{last}.log")
        if found is None:
            found = put(make_store, f"a/{last}.log", content, n="1")
        assert found == BlobFacts(len(whole), md5(whole), {"n": "1"})


def _put_until_killed(large: Path, place: list[str], kills_at: int) -> int:
    command = [sys.executable, "-c", PUTTER, str(large), *place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= kills_at:
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    return int(line)


# --- the one in a directory ---


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The directory of a store that was opened before."""
    use(lambda: LocalStore(tmp_path / "store"), _nothing)
    return tmp_path / "store"


async def _nothing(store: BlobStore) -> None:
    pass


def local(directory: Path) -> MakeStore:
    """Make stores in a directory."""
    return lambda: LocalStore(directory)


def parts(directory: Path) -> list[Path]:
    """Blobs that are not finished."""
    return list((directory / OWN_DIRECTORY / "parts").iterdir())


def test_a_directory_has_a_url(tmp_path: Path) -> None:
    """That of a file, absolute."""
    assert LocalStore(tmp_path / "a b").url == (tmp_path / "a b").as_uri()
    assert repr(LocalStore(tmp_path)) == f"LocalStore({str(tmp_path)!r})"


def test_a_blob_is_a_plain_file(directory: Path, tmp_path: Path) -> None:
    """Of its name, with its bytes, and nothing unfinished beside it."""
    with content_of(tmp_path / "run.log", b"line\n") as content:
        put(local(directory), "app/run.log", content)
    assert (directory / "app" / "run.log").read_bytes() == b"line\n"
    assert sorted(path.name for path in directory.iterdir()) == [OWN_DIRECTORY, "app"]
    assert not parts(directory)


def test_what_a_dead_writer_left_goes_when_it_is_old(directory: Path) -> None:
    """What is young may be another writer's who lives."""
    old, young = (directory / OWN_DIRECTORY / "parts" / name for name in ("old", "young"))
    for path, age_s in ((old, LEFT_AFTER_S + 60), (young, 0)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age_s,) * 2)
    use(local(directory), _nothing)
    assert parts(directory) == [young]


def test_the_md5_is_that_of_the_bytes_that_are_there(directory: Path, tmp_path: Path) -> None:
    """A blob that was damaged on the disk does not agree with its file any more."""
    with content_of(tmp_path / "run.log", b"line\n") as content:
        assert put(local(directory), "run.log", content, app="a").agree_with(content)
        (directory / "run.log").write_bytes(b"lime\n")
        found = facts(local(directory), "run.log")
        assert found == BlobFacts(5, md5(b"lime\n"), {})
        assert not found.agree_with(content)


def test_metadata_that_cannot_be_read_is_none(directory: Path, tmp_path: Path) -> None:
    """The blob is what counts."""
    with content_of(tmp_path / "run.log", b"x") as content:
        put(local(directory), "run.log", content, app="a")
    (sidecar,) = (directory / OWN_DIRECTORY / "metadata" / "run.log").iterdir()
    for text in ("{torn", "[1]", '"text"'):
        sidecar.write_text(text)
        assert facts(local(directory), "run.log") == BlobFacts(1, md5(b"x"), {})


@pytest.mark.parametrize("name", ["link/run.log", "link/deeper/run.log", "app/link/run.log"])
def test_links_do_not_lead_out(directory: Path, tmp_path: Path, name: str) -> None:
    """A folder that is a symbolic link is refused, for writing and for looking."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "run.log").write_text("secret")
    (directory / "app").mkdir()
    for link in (directory / "link", directory / "app" / "link"):
        link.symlink_to(outside)
    with content_of(tmp_path / "run.log", b"x") as content, pytest.raises(StoreError, match=name):
        put(local(directory), name, content)
    with pytest.raises(StoreError, match=name):
        facts(local(directory), name)
    assert [path.name for path in outside.iterdir()] == ["run.log"]


def test_a_link_is_no_blob(directory: Path, tmp_path: Path) -> None:
    """Its name is taken, and what it points to is neither read nor written to."""
    (tmp_path / "outside").write_text("secret")
    (directory / "run.log").symlink_to(tmp_path / "outside")
    with content_of(tmp_path / "x", b"x") as content, pytest.raises(BlobExistsError):
        put(local(directory), "run.log", content)
    with pytest.raises(StoreError, match=r"run\.log"):
        facts(local(directory), "run.log")
    assert (tmp_path / "outside").read_text() == "secret"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_no_blob(directory: Path, make: Callable[[Path], None]) -> None:
    """A folder or a pipe of the name; nobody waits for its other end."""
    make(directory / "run.log")
    with pytest.raises(StoreError, match=r"run\.log is not a file"):
        facts(local(directory), "run.log")


def test_a_folder_cannot_be_a_blob(directory: Path, tmp_path: Path) -> None:
    """On a disk a name is one or the other."""
    with content_of(tmp_path / "x", b"x") as content:
        put(local(directory), "app", content)
        with pytest.raises(StoreError, match=r"app/run\.log: Not a directory"):
            put(local(directory), "app/run.log", content)
    assert not parts(directory)


def test_its_own_folder_is_not_for_blobs(directory: Path, tmp_path: Path) -> None:
    """Where the unfinished ones are."""
    with content_of(tmp_path / "x", b"x") as content, pytest.raises(StoreError, match="own folder"):
        put(local(directory), f"{OWN_DIRECTORY}/parts/x", content)


def test_a_file_in_place_of_the_directory_is_an_error(tmp_path: Path) -> None:
    """At once, with its name."""
    (tmp_path / "store").write_text("x")
    with pytest.raises(StoreError, match=r"store: (File exists|Not a directory)"):
        use(local(tmp_path / "store"), _nothing)


def test_what_cannot_be_written_leaves_nothing(directory: Path, tmp_path: Path) -> None:
    """The error says what the system said; no part of the blob stays."""
    resource = pytest.importorskip("resource", reason="no limits on this system")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with content_of(tmp_path / "x", data(BLOCK)) as content:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            with pytest.raises(StoreError, match=r"run\.log: File too large"):
                put(local(directory), "run.log", content)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
    assert not parts(directory)
    assert facts(local(directory), "run.log") is None
