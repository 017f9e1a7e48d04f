"""Who leads an application's processes: one at a time, and another when it dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from foundry_log.files.leadership import Leadership

pytestmark = pytest.mark.unit

LEADER = """
import sys
from foundry_log.files.leadership import Leadership
place = Leadership("shop", sys.argv[1])
print(place.try_to_lead(), flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def other_process(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that leads until it is killed."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", LEADER, folder], stdin=pipe, stdout=pipe
    ) as leader:
        assert leader.stdout is not None
        assert leader.stdout.readline() == b"True\n"
        yield leader
        leader.kill()


def test_the_lock_file_tells_who_leads(tmp_path: Path) -> None:
    """Process, time stamp and application, readable for its owner alone."""
    place = Leadership("shop", str(tmp_path))
    assert place.try_to_lead()
    note = json.loads((tmp_path / "logger_shop.lock").read_text())
    assert set(note) == {"pid", "timestamp", "app_name"}
    assert (note["pid"], note["app_name"]) == (os.getpid(), "shop")
    assert stat.S_IMODE(os.stat(place.path).st_mode) == 0o600
    leader = place.leader()
    assert leader is not None
    assert leader.timestamp == note["timestamp"]


def test_the_lock_file_lies_in_the_temporary_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless told otherwise, processes of one machine find each other there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert Leadership("a/b").path == str(tmp_path / "logger_a%2Fb.lock")


def test_one_leads_at_a_time(tmp_path: Path) -> None:
    """The next one leads when the first gives it back."""
    first, second = (Leadership("shop", str(tmp_path)) for _ in range(2))
    assert first.try_to_lead()
    assert first.try_to_lead()
    assert not second.try_to_lead()
    first.resign()
    first.resign()
    assert not first.is_leader
    assert second.try_to_lead()


def test_a_contender_leaves_the_leaders_note_alone(tmp_path: Path) -> None:
    """Only who holds the lock writes the file."""
    with other_process(tmp_path) as leader:
        place = Leadership("shop", str(tmp_path))
        assert not place.try_to_lead()
        note = place.leader()
        assert note is not None
        assert note.pid == leader.pid


def test_another_leads_at_once_when_the_leader_is_killed(tmp_path: Path) -> None:
    """The kernel lets go of the lock; the file stays, and gets the new leader's note."""
    place = Leadership("shop", str(tmp_path))
    with other_process(tmp_path) as leader:
        inode = os.stat(place.path).st_ino
        leader.kill()
        leader.wait()
        assert place.try_to_lead()
    note = place.leader()
    assert note is not None
    assert note.pid == os.getpid()
    assert os.stat(place.path).st_ino == inode


def test_resigning_leaves_the_lock_file(tmp_path: Path) -> None:
    """Its removal would let two lead, each with a file of its own."""
    place = Leadership("shop", str(tmp_path))
    place.try_to_lead()
    place.resign()
    assert os.path.exists(place.path)


def test_applications_do_not_contend_with_each_other(tmp_path: Path) -> None:
    """Each application has a leader."""
    places = [Leadership(app, str(tmp_path)) for app in ("foo", "foo-bar", "foo/bar")]
    assert all(place.try_to_lead() for place in places)


def test_a_forked_child_neither_leads_nor_keeps_the_lead(tmp_path: Path) -> None:
    """It holds no descriptor of its parent's lock, so that this ends with the parent's lead."""
    place = Leadership("shop", str(tmp_path))
    assert place.try_to_lead()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, bytes([place.is_leader, place.try_to_lead()]))
        os.close(write)
        signal.pause()
    try:
        assert os.read(read, 2) == b"\0\0"
        assert place.is_leader
        place.resign()
        assert Leadership("shop", str(tmp_path)).try_to_lead()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


def test_a_leader_whose_lock_file_was_removed_stands_in_the_queue_again(tmp_path: Path) -> None:
    """A cleaner of the temporary directory does not leave two leaders."""
    first, second = (Leadership("shop", str(tmp_path)) for _ in range(2))
    assert first.try_to_lead()
    os.remove(first.path)
    assert second.try_to_lead()
    assert not first.try_to_lead()


def test_nothing_is_written_through_a_symbolic_link(tmp_path: Path) -> None:
    """Everybody may put one into the temporary directory."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    place = Leadership("shop", str(tmp_path))
    os.symlink(victim, place.path)
    with pytest.raises(OSError, match="logger_shop"):
        place.try_to_lead()
    assert not place.is_leader
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_damaged_note_is_none(tmp_path: Path, content: str) -> None:
    """Who led last is then unknown; the next leader mends it."""
    place = Leadership("shop", str(tmp_path))
    Path(place.path).write_text(content)
    assert place.leader() is None
    assert place.try_to_lead()
    assert place.leader() is not None


def test_a_shorter_note_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    """It is one JSON value at any time."""
    place = Leadership("shop", str(tmp_path))
    Path(place.path).write_text("x" * 1000)
    place.try_to_lead()
    assert json.loads(Path(place.path).read_text())["app_name"] == "shop"
