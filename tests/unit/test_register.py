"""The register of what was shipped: shared, lasting, and safe to lose."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from foundry_log.shipping.identity import Identity
from foundry_log.shipping.own_log import log
from foundry_log.shipping.register import VERSION, Register, RegisterError, Shipped

pytestmark = pytest.mark.unit

PLACE = "https://account.blob.core.windows.net/logs"
CHILD = f"""
import sys
from foundry_log.shipping.register import Register, Shipped
from foundry_log.shipping.identity import Identity
path, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
register = Register(path, {PLACE!r})
for number in range(first, first + count):
    register.add(Identity(1, number, 5, 7), Shipped(b"5" * 16, "blob", "path", 1.0))
    print(number, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "register.sqlite")


@pytest.fixture
def register(path: str):
    register = Register(path, PLACE)
    yield register
    register.close()


def shipped(name: str = "app/a.log", md5: bytes = b"m" * 16, at: float = 1.0) -> Shipped:
    return Shipped(md5, name, f"/logs/{name}", at)


def child(path: str, first: int, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, path, str(first), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def warnings_of_shipping(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


def test_what_was_added_is_done_after_a_restart(path: str, register: Register) -> None:
    """A restart ships nothing again."""
    identity = Identity(1, 2, 3, 4)
    assert not register.is_done(identity)
    register.add(identity, shipped())
    register.close()
    again = Register(path, PLACE)
    assert again.is_done(identity)
    assert again.row(identity) == shipped()
    again.close()


def test_a_file_that_reuses_an_inode_is_another_file(tmp_path: Path, register: Register) -> None:
    """Device and inode alone say nothing: real files, the second in the place of the first."""
    file = tmp_path / "a.log"
    file.write_text("one")
    first = Identity.of(file.stat())
    register.add(first, shipped())
    file.write_text("other lines")
    second = Identity.of(file.stat())
    assert second.inode == first.inode
    assert not register.is_done(second)


def test_content_is_known_under_any_name(register: Register) -> None:
    """A copied, moved or touched file is found by size and MD5."""
    register.add(Identity(1, 2, 3, 4), shipped())
    assert register.may_know(3)
    assert register.with_content(3, b"m" * 16) == shipped()
    assert register.with_content(3, b"n" * 16) is None
    assert not register.may_know(5)


def test_empty_files_are_never_taken_for_each_other(register: Register) -> None:
    """All of them have the same content."""
    register.add(Identity(1, 2, 0, 4), shipped())
    assert not register.may_know(0)
    assert register.with_content(0, b"m" * 16) is None


def test_destinations_do_not_see_each_other(path: str, register: Register) -> None:
    """What has reached one store has not reached another."""
    register.add(Identity(1, 2, 3, 4), shipped())
    other = Register(path, "file:///elsewhere")
    assert not other.is_done(Identity(1, 2, 3, 4))
    assert other.with_content(3, b"m" * 16) is None
    other.close()


def test_inodes_of_64_bits_are_kept(path: str, register: Register) -> None:
    """SQLite's integers have a sign; some file systems' inodes need the last bit."""
    identity = Identity(2**64 - 1, 2**63 + 5, 3, 4)
    register.add(identity, shipped())
    assert register.row(identity) == shipped()
    again = Register(path, PLACE)
    assert again.is_done(identity)
    again.close()


def test_several_processes_share_it(path: str, register: Register) -> None:
    """What others add is there at the next refresh."""
    children = [child(path, 100 * number, 40) for number in range(3)]
    assert [process.communicate(timeout=60) and process.returncode for process in children] == [
        0, 0, 0,
    ]  # fmt: skip
    register.refresh()
    numbers = [100 * n + i for n in range(3) for i in range(40)]
    assert all(register.is_done(Identity(1, number, 5, 7)) for number in numbers)


def test_several_threads_share_it(register: Register) -> None:
    """One lock guards database and memory."""

    def add(first: int) -> None:
        for number in range(first, first + 50):
            register.add(Identity(1, number, 5, 7), shipped())

    threads = [threading.Thread(target=add, args=(100 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(register.is_done(Identity(1, 100 * n + 49, 5, 7)) for n in range(4))


def test_a_kill_at_any_moment_loses_nothing_acknowledged(path: str) -> None:
    """SIGKILL in the middle of adding; each number that was printed is there afterwards."""
    acknowledged: list[int] = []
    for turn in range(5):
        process = child(path, 10_000 * turn, 10_000)
        assert process.stdout is not None
        for _ in range(20 + 7 * turn):
            acknowledged.append(int(process.stdout.readline()))
        process.send_signal(signal.SIGKILL)
        rest = process.communicate(timeout=60)[0]
        acknowledged += [int(line) for line in rest.splitlines(keepends=True) if line[-1] == "\n"]
    register = Register(path, PLACE)
    missing = [number for number in acknowledged if not register.is_done(Identity(1, number, 5, 7))]
    register.close()
    assert not missing
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


def test_a_damaged_database_is_set_aside(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """With a warning; a new one is begun."""
    Path(path).write_bytes(b"this is no database" * 1000)
    with caplog.at_level(logging.WARNING, log.name):
        register = Register(path, PLACE)
    register.add(Identity(1, 2, 3, 4), shipped())
    register.close()
    kept = [name for name in os.listdir(os.path.dirname(path)) if ".damaged-" in name]
    assert len(kept) == 1
    assert kept[0] in warnings_of_shipping(caplog)


def test_a_database_that_is_damaged_in_its_middle_is_replaced(
    path: str, register: Register, caplog: pytest.LogCaptureFixture
) -> None:
    """Not only one that is no database at all."""
    for number in range(2000):
        register.add(Identity(1, number, 5, 7), shipped(f"{number}.log"))
    register.close()
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with caplog.at_level(logging.WARNING, log.name):
        again = Register(path, PLACE)
    again.add(Identity(1, 2, 3, 4), shipped())
    assert again.is_done(Identity(1, 2, 3, 4))
    again.close()
    assert "begun anew" in warnings_of_shipping(caplog)


def test_a_database_that_was_removed_is_noticed(path: str, register: Register) -> None:
    """What is done is what the database at the path says."""
    register.add(Identity(1, 2, 3, 4), shipped())
    os.remove(path)
    register.refresh()
    assert not register.is_done(Identity(1, 2, 3, 4))
    register.add(Identity(1, 2, 3, 4), shipped())
    assert register.row(Identity(1, 2, 3, 4)) == shipped()


def test_a_place_that_cannot_be_used_names_the_option(tmp_path: Path) -> None:
    """The remedy is in the text."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RegisterError, match=r"register=.*pass register="):
        Register(str(tmp_path / "file" / "register.sqlite"), PLACE)
    with pytest.raises(RegisterError, match="register="):
        Register(str(tmp_path), PLACE)


def test_a_newer_version_is_refused(path: str, register: Register) -> None:
    """And is left as it is."""
    register.close()
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version={VERSION + 1}")
    database.close()
    with pytest.raises(RegisterError, match=f"version {VERSION + 1}"):
        Register(path, PLACE)


def test_files_that_are_gone_for_long_are_forgotten(tmp_path: Path, register: Register) -> None:
    """Those that were seen, or stand under their path, or are recent, stay."""
    file = tmp_path / "here.log"
    file.write_text("here")
    here, seen, recent, gone = (
        Identity.of(file.stat()), Identity(1, 2, 3, 4), Identity(1, 3, 3, 4), Identity(1, 4, 3, 4),
    )  # fmt: skip
    register.add(here, Shipped(b"m" * 16, "blob", str(file), 10.0))
    register.add(seen, shipped(at=10.0))
    register.add(recent, shipped(at=100.0))
    register.add(gone, shipped(at=10.0))
    assert register.prune(50.0, {seen}) == 1
    assert [register.is_done(each) for each in (here, seen, recent, gone)] == [
        True, True, True, False,
    ]  # fmt: skip


def test_a_deletion_is_noted(register: Register) -> None:
    """The row says when the local file went."""
    register.add(Identity(1, 2, 3, 4), shipped())
    register.note_deleted(Identity(1, 2, 3, 4), 77.0)
    row = register.row(Identity(1, 2, 3, 4))
    assert row is not None
    assert row.deleted_at == 77.0
