"""Writers and shippers killed at random moments: what was acknowledged is in the store."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foundry_log.files import owners
from foundry_log.shipping.orphans import retire
from foundry_log.shipping.scanning import Scope, log_files
from tests.conservation import record_line
from tests.shipped import verify_shipped
from tests.stress.shipping import Round, Target, azurite_round, run_round

pytestmark = pytest.mark.integration

A, B, C = "0-0-0-50", "0-0-1-50", "0-0-2-50"
FIRST = "run.20261121T062311000000Z.jsonl"
SECOND = "run.20261121T062311000001Z.jsonl"


def assert_all_is_there(done: Round) -> None:
    """Fail unless the store has all of it, and there was something to lose."""
    assert not done.shipment.faults, str(done)
    assert done.shipment.acknowledged > 0
    assert min(done.writers_killed, done.shippers_killed, done.shipped, done.deleted) > 0, str(done)
    unexpected = [line for line in done.told if not line_is_no_surprise(line)]
    assert not unexpected, unexpected


def line_is_no_surprise(line: str) -> bool:
    """Whether an error is one of those that are put right by another monitor or the next scan."""
    usual = "was written to while it was read", "No such file", "Nothing can be uploaded to"
    return any(text in line for text in usual)


# --- all are killed ---


def test_a_directory_gets_all_that_was_acknowledged(tmp_path: Path) -> None:
    """
    GIVEN: writers of six logs of all kinds, and three shippers that delete at once
    WHEN: ten of them are killed and replaced, and the command ships the rest
    THEN: each record is in the store, each file once, and nothing is missing there.
    """
    target = Target((tmp_path / "store").as_uri())
    assert_all_is_there(run_round(tmp_path, target, 10, random.Random(1)))


@pytest.mark.long
def test_a_directory_gets_all_that_was_acknowledged_for_long(tmp_path: Path) -> None:
    """The same with many times as many kills."""
    target = Target((tmp_path / "store").as_uri())
    assert_all_is_there(run_round(tmp_path, target, 25, random.Random(2)))


@pytest.mark.long
@pytest.mark.services
def test_azure_gets_all_that_was_acknowledged(azurite: Any, tmp_path: Path) -> None:
    """
    GIVEN: the same writers and shippers, and a server behind a connection with faults
    WHEN: requests are refused, cut off, or lose their answers, and thirty processes are killed
    THEN: each record is in the store, each file once, and nothing is missing there.
    """
    assert_all_is_there(azurite_round(azurite, tmp_path, 30, random.Random(3)))


# --- what the kills have found ---


def test_a_live_file_that_was_replaced_since_it_was_judged_stays(tmp_path: Path) -> None:
    """
    GIVEN: a live file whose writers are dead, as a scan has seen it
    WHEN: it has got its rotated name, and a process begins a new one that it has not locked yet
    THEN: the new one keeps its name, and the note of who writes it.
    """
    live = tmp_path / "board.current.log"
    live.write_text("a line\n")
    (seen,) = log_files(str(tmp_path), Scope("board"), unread=lambda path, error: None)
    live.rename(tmp_path / "board_2026-11-21.log")
    live.touch()
    owners.note_owner(str(live), 0o640)
    assert retire(seen) is None
    assert owners.read_owner(str(live)) is not None
    assert live.exists()


# --- the check itself ---


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A directory with two rotated files, of which all three records are acknowledged."""
    directory = tmp_path / "logs"
    directory.mkdir()
    (directory / "run.jsonl.acknowledged-0-0").write_text(f"{A}\n{B}\n{C}\n")
    (directory / FIRST).write_bytes(text(A, B))
    (directory / SECOND).write_bytes(text(C))
    return directory


@pytest.fixture
def store(tmp_path: Path, logs: Path) -> Path:
    """Blobs of them, one of them with a suffix and one compressed."""
    blobs = tmp_path / "store" / "fleet"
    blobs.mkdir(parents=True)
    (blobs / FIRST.replace(".jsonl", "-0123abcd.jsonl")).write_bytes(text(A, B))
    (blobs / SECOND).write_bytes(text(C))
    return blobs.parent


def text(*names: str) -> bytes:
    """The lines of records."""
    return "".join(f"{record_line(name)}\n" for name in names).encode()


def faults(store: Path, logs: Path) -> dict[str, tuple[str, ...]]:
    """The kinds of fault that the check finds."""
    return verify_shipped(store, logs, [logs / "run.jsonl"]).faults


def test_a_store_with_all_of_it_is_sound(store: Path, logs: Path) -> None:
    """Also where a local file is gone, and where a live one was shipped in two states."""
    (logs / FIRST).unlink()
    (store / "run.jsonl").write_bytes(text(A))
    assert faults(store, logs) == {}


def _drop(store: Path, logs: Path) -> None:
    (store / "fleet" / SECOND).unlink()


def _drop_both(store: Path, logs: Path) -> None:
    _drop(store, logs)
    (logs / SECOND).unlink()


def _tear(store: Path, logs: Path) -> None:
    (store / "fleet" / SECOND).write_bytes(text(C)[:-10])


def _double(store: Path, logs: Path) -> None:
    (store / "again.jsonl").write_bytes(text(C))


def _pack(store: Path, logs: Path) -> None:
    (store / "fleet" / f"{SECOND}.gz").write_bytes(gzip.compress(text(C)))


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (_drop, {"lost": (C,), "unshipped": (SECOND,)}),
        (_drop_both, {"lost": (C,)}),
        (_tear, {"lost": (C,), "unshipped": (SECOND,)}),
        (_double, {"repeated": (C,), "doubled": (f"fleet/{SECOND}",)}),
        (_pack, {"repeated": (C,)}),
    ],
)
def test_each_fault_is_found(
    store: Path,
    logs: Path,
    harm: Callable[[Path, Path], None],
    expected: dict[str, tuple[str, ...]],
) -> None:
    """A blob that is missing, torn, there twice, or there as its gzip as well."""
    harm(store, logs)
    assert faults(store, logs) == expected
