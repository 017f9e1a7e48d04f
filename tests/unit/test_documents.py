"""Small files written whole."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from foundry_log.files.documents import write_document

pytestmark = pytest.mark.unit


def test_a_document_replaces_the_old_one_in_a_directory_that_is_made(tmp_path: Path) -> None:
    """Nothing else is left beside it."""
    path = tmp_path / "a" / "b.json"
    write_document(path, b"old\n")
    write_document(path, b"new\n")
    assert path.read_bytes() == b"new\n"
    assert os.listdir(path.parent) == ["b.json"]


def test_its_permissions_are_those_asked_for(tmp_path: Path) -> None:
    """Not what the umask alone would leave."""
    write_document(tmp_path / "default", b"")
    write_document(tmp_path / "own", b"", 0o600)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("default", "own")]
    assert modes == [0o640, 0o600]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    """Here the name is a directory's."""
    target = tmp_path / "document"
    target.mkdir()
    (target / "kept").touch()
    with pytest.raises(OSError, match=r"."):
        write_document(target, b"x")
    assert [path.name for path in tmp_path.rglob("*")] == ["document", "kept"]


def test_a_reader_never_sees_half_of_it(tmp_path: Path) -> None:
    """Two threads write long documents; every look finds one of them, whole."""
    path, stop = tmp_path / "document", threading.Event()
    contents = [bytes([letter]) * 200_000 for letter in b"ab"]
    write_document(path, contents[0])

    def write(content: bytes) -> None:
        while not stop.is_set():
            write_document(path, content)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    try:
        for _ in range(200):
            assert path.read_bytes() in contents
    finally:
        stop.set()
        for thread in threads:
            thread.join()
