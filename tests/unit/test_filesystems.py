"""Which file system a directory is on, and whether processes may share a file there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from foundry_log.files.filesystems import shared_kind

pytestmark = pytest.mark.unit


@pytest.fixture
def mounts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lay a table of mounts, since a test cannot mount NFS."""

    def lay(*pairs: tuple[str, str]) -> None:
        table = [SimpleNamespace(mountpoint=point, fstype=kind) for point, kind in pairs]
        monkeypatch.setattr(psutil, "disk_partitions", lambda **_: table)

    return lay


def test_the_machines_own_table_is_read(tmp_path: Path) -> None:
    """The directory of the tests is on some file system, and it is a local one."""
    mine = psutil.disk_partitions(all=True)
    assert any(mount.mountpoint == "/" for mount in mine)
    assert shared_kind(str(tmp_path)) is None


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "lustre", "cifs", "smb3", "fuse.sshfs", "fuse", "osxfuse", "FUSE.s3fs"]
)
def test_kinds_without_atomic_appends_are_known(mounts: Any, kind: str) -> None:
    """By the names that Linux and macOS give them."""
    mounts(("/", "ext4"), ("/data", kind))
    assert shared_kind("/data/run") == kind


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "apfs", ""])
def test_local_kinds_are_left_alone(mounts: Any, kind: str) -> None:
    """A container's overlay is one of them."""
    mounts(("/", "nfs"), ("/data", kind))
    assert shared_kind("/data/run") is None


def test_the_nearest_mount_counts(mounts: Any) -> None:
    """Names that merely begin alike are others; of two on one place the later hides the first."""
    mounts(("/", "ext4"), ("/home", "nfs4"), ("/home/scratch", "xfs"), ("/ho", "lustre"))
    assert shared_kind("/home/me") == "nfs4"
    assert shared_kind("/home") == "nfs4"
    assert shared_kind("/home/scratch/run") is None
    assert shared_kind("/homes") is None
    mounts(("/", "ext4"), ("/mnt", "autofs"), ("/mnt", "nfs4"))
    assert shared_kind("/mnt/run") == "nfs4"


def test_a_link_counts_as_where_it_leads(mounts: Any, tmp_path: Path) -> None:
    """Logs are often behind one."""
    (tmp_path / "far").mkdir()
    (tmp_path / "logs").symlink_to(tmp_path / "far")
    mounts(("/", "ext4"), (str(tmp_path.resolve() / "far"), "nfs4"))
    assert shared_kind(str(tmp_path / "logs" / "not" / "there")) == "nfs4"


def test_what_cannot_be_learned_counts_as_local(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that may not be read stops nobody."""

    def refuse(**_: bool) -> None:
        raise PermissionError

    monkeypatch.setattr(psutil, "disk_partitions", refuse)
    assert shared_kind("/data") is None
