"""The bytes of a file on their way: all of them, in order, those it had at the beginning."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from foundry_log.shipping.content import Content, in_thread

pytestmark = [pytest.mark.unit, pytest.mark.asyncio]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Content]:
    """The content of a file."""
    with path.open("rb") as file:
        yield Content(file.fileno(), str(path))


async def all_of(content: Content, size: int) -> list[bytes]:
    """Its blocks, as bytes."""
    return [bytes(block) async for block in content.blocks(size)]


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        (b"", []),
        (b"abc", [b"abc"]),
        (b"abcd", [b"abcd"]),
        (b"abcdefghij", [b"abcd", b"efgh", b"ij"]),
    ],
)
def test_blocks_are_the_file_in_order(tmp_path: Path, text: bytes, blocks: list[bytes]) -> None:
    """Each of the size that was asked for but the last, and the MD5 is known after it."""
    path = tmp_path / "run.log"
    path.write_bytes(text)
    with opened(path) as content:
        assert asyncio.run(all_of(content, 4)) == blocks
        assert content.size == len(text)
        assert content.md5 == hashlib.md5(text, usedforsecurity=False).digest()
        assert asyncio.run(all_of(content, 4)) == blocks


def test_the_md5_is_not_known_before_the_end(tmp_path: Path) -> None:
    """Nobody may take half a hash for the whole."""
    path = tmp_path / "run.log"
    path.write_bytes(b"abcdefgh")

    async def read_half(content: Content) -> None:
        async with contextlib.aclosing(content.blocks(4)) as blocks:
            await anext(blocks)

    with opened(path) as content:
        asyncio.run(read_half(content))
        with pytest.raises(ValueError, match=r"run\.log has not been read to its end yet"):
            _ = content.md5
        asyncio.run(content.read_through())
        assert content.md5 == hashlib.md5(b"abcdefgh", usedforsecurity=False).digest()


def test_a_file_that_is_renamed_is_read_on(tmp_path: Path) -> None:
    """What was opened counts, not what has the name now."""
    path = tmp_path / "run.log"
    path.write_bytes(b"old")
    with opened(path) as content:
        path.rename(tmp_path / "run.1.log")
        path.write_bytes(b"new!")
        assert asyncio.run(all_of(content, 4)) == [b"old"]


def test_a_file_that_grows_is_found_out(tmp_path: Path) -> None:
    """It is not finished, so its beginning is not what was to be uploaded."""
    path = tmp_path / "run.log"
    path.write_bytes(b"abcd")
    with opened(path) as content:
        with path.open("ab") as file:
            file.write(b"e")
        with pytest.raises(OSError, match="was written to while it was read"):
            asyncio.run(all_of(content, 4))
        with pytest.raises(ValueError, match="not been read"):
            _ = content.md5


def test_a_file_that_is_written_in_place_is_found_out(tmp_path: Path) -> None:
    """Its size stays, its time does not."""
    path = tmp_path / "run.log"
    path.write_bytes(b"abcd")
    os.utime(path, ns=(0, 0))
    with opened(path) as content:
        path.write_bytes(b"abce")
        with pytest.raises(OSError, match="was written to while it was read"):
            asyncio.run(all_of(content, 4))


def test_a_file_that_shrinks_is_found_out(tmp_path: Path) -> None:
    """There is nothing to make up for what is gone."""
    path = tmp_path / "run.log"
    path.write_bytes(b"abcdefgh")
    with opened(path) as content:
        os.truncate(path, 6)
        with pytest.raises(OSError, match="has become shorter"):
            asyncio.run(all_of(content, 4))


def test_a_call_on_a_thread_is_waited_for_when_cancelled() -> None:
    """Its descriptor may be closed only afterwards."""
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        may_end.wait(10)
        ended.set()

    async def main() -> None:
        task = asyncio.ensure_future(in_thread(call))
        while not begun.is_set():
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(main())
