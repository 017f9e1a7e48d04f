"""`foundry-log ship`: the command, as a process of its own."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from foundry_log.cli import main
from tests.shipped import blob_names, wait_for_blobs

pytestmark = pytest.mark.unit
DEADLINE_S = 30.0
COMMAND = [sys.executable, "-m", "foundry_log.cli", "ship"]
ROTATED = "run.20261121T062311{:06d}Z.jsonl"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A directory with three rotated files that have rested."""
    folder = tmp_path / "logs"
    folder.mkdir()
    for number in range(3):
        rest(folder / ROTATED.format(number), f'{{"number":{number}}}\n')
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where they go."""
    return tmp_path / "store"


def rest(path: Path, text: str, seconds: float = 3600) -> None:
    """Write a file that has not been touched for a while."""
    path.write_text(text)
    os.utime(path, (time.time() - seconds,) * 2)


def ship(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)


@contextmanager
def shipping(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run the command in the background; it is killed at the end."""
    command = [*COMMAND, *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_once_sends_what_is_finished_and_ends(logs: Path, store: Path) -> None:
    """Its one line says how many; a second call finds them there already."""
    first = ship(logs, "--to", store.as_uri(), "--once")
    second = ship(logs, "--to", store.as_uri(), "--once")

    assert (first.returncode, first.stdout) == (0, "")
    assert first.stderr.count("\n") == 1
    assert "3 found, 3 shipped" in first.stderr
    assert "3 found" in second.stderr and "shipped" not in second.stderr.split("found")[1]
    assert blob_names(store) == {f"logs/{ROTATED.format(number)}" for number in range(3)}
    assert sorted(path.name for path in logs.glob("run*")) == [ROTATED.format(n) for n in range(3)]


def test_a_fresh_file_waits_unless_all_are_asked_for(logs: Path, store: Path) -> None:
    """GIVEN a file of this moment WHEN shipped once THEN it waits; with --all it goes."""
    rest(logs / ROTATED.format(9), "{}\n", seconds=0)
    assert "1 waiting" in ship(logs, "--to", store.as_uri(), "--once").stderr
    assert len(blob_names(store)) == 3

    assert "1 shipped" in ship(logs, "--to", store.as_uri(), "--once", "--all").stderr
    assert len(blob_names(store)) == 4


def test_a_dry_run_tells_and_does_nothing(logs: Path, store: Path) -> None:
    """Neither store nor register is made."""
    done = ship(logs, "--to", store.as_uri(), "--dry-run", "--prefix", "host7/logs")

    assert done.returncode == 0
    assert done.stdout.count("ship: ") == 3
    assert f"-> host7/logs/{ROTATED.format(0)}\n" in done.stdout
    assert not store.exists()
    assert len(list(logs.iterdir())) == 3


def test_it_goes_on_until_sigterm(logs: Path, store: Path) -> None:
    """A file that comes later goes as well; the end is clean, and says why."""
    with shipping(logs, "--to", store.as_uri(), "--interval", 0.05) as process:
        assert len(wait_for_blobs(store, 3)) == 3
        rest(logs / ROTATED.format(7), "{}\n")
        assert len(wait_for_blobs(store, 4)) == 4
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 0
    assert "stopping, SIGTERM" in told


@pytest.mark.parametrize("once", [["--once"], []])
def test_sigterm_leaves_the_backlog(logs: Path, store: Path, once: list[str]) -> None:
    """GIVEN many files WHEN SIGTERM comes THEN those under way are finished, and no others."""
    for number in range(100, 3000):
        rest(logs / ROTATED.format(number), f'{{"number":{number}}}\n')
    with shipping(logs, "--to", store.as_uri(), *once) as process:
        wait_for_blobs(store, 1)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=DEADLINE_S)
    there = len(blob_names(store))

    assert process.returncode == (1 if once else 0)
    assert there < 2900
    assert ship(logs, "--to", store.as_uri(), "--dry-run").stdout.count("ship: ") == 2903 - there


def test_it_deletes_only_when_asked_to(logs: Path, store: Path) -> None:
    """GIVEN --delete-after WHEN the grace period is not over THEN nothing is deleted yet."""
    assert ship(logs, "--to", store.as_uri(), "--once", "--delete-after", 0.001).returncode == 0
    assert ship(logs, "--to", store.as_uri(), "--once", "--delete-after", 0.001).returncode == 0
    assert len(list(logs.glob("run*"))) == 3


def test_the_register_may_lie_elsewhere(logs: Path, store: Path, tmp_path: Path) -> None:
    """For directories that cannot be written."""
    register = tmp_path / "elsewhere.sqlite"
    assert ship(logs, "--to", store.as_uri(), "--once", "--register", register).returncode == 0
    assert register.exists()
    assert len(list(logs.iterdir())) == 3


def test_a_terminal_sees_progress(logs: Path, store: Path) -> None:
    """And the line of the scan; nothing stays of the progress."""
    leader, follower = pty.openpty()
    big = logs / ROTATED.format(500)
    rest(big, "x" * 200_000_000)
    command = [*COMMAND, str(logs), "--to", store.as_uri(), "--once"]
    process = subprocess.Popen(command, stderr=follower)
    os.close(follower)
    told = b""
    try:
        while select.select([leader], [], [], DEADLINE_S)[0]:
            try:
                told += os.read(leader, 65_536)
            except OSError:  # the other end is closed
                break
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(leader)

    assert b"to go" in told
    assert b"4 shipped" in told


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["nowhere", "--to", "file:///tmp/s"], "nowhere is no directory"),
        ([".", "--to", "somewhere"], "https://ACCOUNT.blob.core.windows.net"),
        ([".", "--to", "https://a.dfs.core.windows.net/logs"], "blob"),
        ([".", "--to", "http://example.invalid/logs"], "https://example.invalid"),
        ([".", "--to", "file:///tmp/s", "--interval", "0"], "'0' is no number above 0"),
        ([".", "--to", "file:///tmp/s", "--delete-after", "soon"], "'soon' is no number"),
        ([".", "--to", "file:///tmp/s", "--prefix", "../up"], "prefix='../up'"),
        ([".", "--to", "file:///tmp/s", "--all"], "--once"),
        (["."], "--to"),
    ],
)
def test_wrong_usage_is_said(
    arguments: list[str],
    remedy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With exit code 2, and what to do."""
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["ship", *arguments])
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    assert code == 2
    assert remedy in capsys.readouterr().err


def test_a_store_that_cannot_be_had_is_asked_again(logs: Path, tmp_path: Path) -> None:
    """GIVEN no --once WHEN the store cannot be had THEN it goes on, and SIGTERM ends it."""
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    with shipping(logs, "--to", blocked.as_uri()) as process:
        assert process.stderr is not None
        assert "blocked" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1


def test_a_store_that_cannot_be_had_is_exit_code_1(logs: Path, tmp_path: Path) -> None:
    """And one line that says which, and why."""
    blocked = tmp_path / "blocked"
    blocked.write_text("a file")
    done = ship(logs, "--to", blocked.as_uri(), "--once")
    assert done.returncode == 1
    assert "blocked" in done.stderr
    assert "Traceback" not in done.stderr
