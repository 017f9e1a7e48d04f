"""Whether a live file may still be written: locks, notes, process ids, and what nobody knows."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from foundry_log.files import owners
from foundry_log.files.append_file import AppendFile
from foundry_log.files.owners import Owner

pytestmark = pytest.mark.unit

CHILD = """
import sys
from foundry_log.files import owners
owners.note_owner(sys.argv[1], 0o600)
print("noted", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def live(tmp_path: Path) -> Path:
    """A live file that nobody holds."""
    path = tmp_path / "app-worker-1.current.log"
    path.write_text("line\n")
    return path


@pytest.fixture
def child(live: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has noted itself as the owner and holds no lock."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", CHILD, live], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"noted\n"
        yield process
        process.kill()


def write_note(path: Path, owner: Owner) -> None:
    Path(owners.owner_name(str(path))).write_text(json.dumps(dataclasses.asdict(owner)))


def test_the_note_tells_process_time_and_host(live: Path) -> None:
    """What it takes to find the process again, or to know that it is gone."""
    owners.note_owner(str(live), 0o640)
    owner = owners.read_owner(str(live))
    assert owner is not None
    assert owner.pid == os.getpid()
    assert owner.created == pytest.approx(psutil.Process().create_time(), abs=2)
    assert owner.host == os.uname().nodename


def test_the_note_is_hidden_and_has_the_permissions_asked_for(live: Path) -> None:
    """It lies beside the file, where listings do not show it."""
    owners.note_owner(str(live), 0o600)
    note = live.parent / f".{live.name}.owner"
    assert stat.S_IMODE(note.stat().st_mode) == 0o600


def test_a_held_file_may_be_written_whatever_the_note_says(live: Path) -> None:
    """A lock is the proof of life, also of a process that the note does not name."""
    write_note(live, Owner(2**22 + 1, 1.0, os.uname().nodename))
    file = AppendFile(str(live))
    file.open()
    try:
        assert owners.may_be_written(str(live))
    finally:
        file.close()
    assert not owners.may_be_written(str(live))


def test_the_file_of_a_living_process_may_be_written(
    live: Path, child: subprocess.Popen[bytes]
) -> None:
    """Without a lock its note is enough, however long it has been idle."""
    os.utime(live, (1, 1))
    assert owners.may_be_written(str(live))


def test_nobody_writes_the_file_of_a_killed_process(
    live: Path, child: subprocess.Popen[bytes]
) -> None:
    """Neither when it is gone, nor before its parent has waited for it."""
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is a zombie
    assert not owners.may_be_written(str(live), child.pid)
    child.wait()
    assert not owners.may_be_written(str(live), child.pid)


def test_a_process_with_a_reused_id_is_not_the_owner(live: Path) -> None:
    """The same number with another birthday is another process."""
    owners.note_owner(str(live), 0o640)
    owner = owners.read_owner(str(live))
    assert owner is not None
    write_note(live, dataclasses.replace(owner, created=owner.created - 1000))
    assert not owners.may_be_written(str(live), os.getpid())


def test_an_owner_whose_birthday_is_unknown_is_known_by_its_id(live: Path) -> None:
    """Where the system did not tell it, a process of that id counts as the owner."""
    write_note(live, Owner(os.getppid(), 0.0, os.uname().nodename))
    assert owners.may_be_written(str(live))


def test_a_file_that_this_process_has_closed_is_not_written(live: Path) -> None:
    """GIVEN its own note WHEN it does not hold the file THEN it will begin another one."""
    owners.note_owner(str(live), 0o640)
    assert not owners.may_be_written(str(live))


def test_a_file_of_another_host_may_be_written(live: Path) -> None:
    """Its processes cannot be asked for from here."""
    write_note(live, Owner(2**22 + 1, 1.0, "elsewhere"))
    assert owners.may_be_written(str(live))


def test_a_file_of_a_container_beside_this_one_is_known_by_its_lock(live: Path) -> None:
    """GIVEN another host's name and this machine's boot WHEN nobody holds it THEN nobody writes."""
    gone = Owner(1, 1.0, "container-7", owners.boot_id())
    write_note(live, gone)
    assert owners.may_be_written(str(live)) is not bool(owners.boot_id())


@pytest.mark.skipif(not owners.boot_id(), reason="this kernel does not name its boots")
def test_nobody_writes_the_file_of_another_host_from_before_a_reboot(
    live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that gets another name is there again; on a network it may be another machine."""
    write_note(live, Owner(os.getpid(), 1.0, "container-7", "another-boot"))
    assert not owners.may_be_written(str(live))
    monkeypatch.setattr(owners, "shared_kind", lambda folder: "nfs4")
    assert owners.may_be_written(str(live))


def test_without_a_note_the_id_in_the_name_is_asked_for(live: Path) -> None:
    """A process that lives and was there at the last write is the one that wrote."""
    assert owners.may_be_written(str(live), os.getpid())


def test_without_a_note_a_process_younger_than_the_file_is_another(live: Path) -> None:
    """Its id has been given again since."""
    os.utime(live, (time.time() - 10 * 86_400,) * 2)
    born = psutil.Process().create_time()
    os.utime(live, (born - 60,) * 2)
    assert not owners.may_be_written(str(live), os.getpid())


@pytest.mark.parametrize("pid", [2**22 + 1, 2**31, 10**30])
def test_without_a_note_an_id_that_nobody_has_writes_no_more(live: Path, pid: int) -> None:
    """Also one that no process can have."""
    assert not owners.may_be_written(str(live), pid)


def test_what_cannot_be_known_counts_as_alive(live: Path) -> None:
    """Neither lock nor note nor id: it is left alone."""
    assert owners.may_be_written(str(live))


@pytest.mark.parametrize(
    "error", [psutil.AccessDenied(), RuntimeError("no /proc"), OSError("no /proc")]
)
def test_a_failing_psutil_counts_as_alive(
    live: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """To be unable to look is not to have seen a dead process; a note is written all the same."""

    def fail(pid: int) -> None:
        raise error

    monkeypatch.setattr(psutil, "Process", fail)
    assert owners.may_be_written(str(live), 2**22 + 1)
    owners.note_owner(str(live), 0o640)
    expected = Owner(os.getpid(), 0.0, os.uname().nodename, owners.boot_id())
    assert owners.read_owner(str(live)) == expected
    write_note(live, dataclasses.replace(expected, pid=os.getppid()))
    assert owners.may_be_written(str(live))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"pid": 1}', '{"pid": "x"}', "\0"])
def test_a_damaged_note_is_none(live: Path, content: str) -> None:
    """Whatever has become of it, nothing is raised and the next thing known decides."""
    Path(owners.owner_name(str(live))).write_text(content)
    assert owners.read_owner(str(live)) is None
    assert not owners.may_be_written(str(live), 2**22 + 1)


def test_a_forgotten_owner_leaves_no_note(live: Path) -> None:
    """Forgetting twice is no mistake."""
    owners.note_owner(str(live), 0o640)
    owners.forget_owner(str(live))
    owners.forget_owner(str(live))
    assert [path.name for path in live.parent.iterdir()] == [live.name]


def test_a_file_that_is_gone_is_nobodys_to_judge(tmp_path: Path) -> None:
    """Nothing is raised; whoever wants to take it sees that it is not there."""
    assert owners.may_be_written(str(tmp_path / "gone"), os.getpid())
