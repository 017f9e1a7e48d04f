"""Which file systems several processes cannot append to."""

from __future__ import annotations

import os

# On these the kernel of each host, or a process, keeps the end of the file to itself, so that an
# append may land on another one's line; `flock` may be known to one host alone.
_SHARED = frozenset({
    "nfs", "nfs3", "nfs4", "lustre", "cifs", "smb", "smb2", "smb3", "smbfs", "fuse", "fuseblk",
    "osxfuse", "macfuse", "macfuse_fs", "afs", "afpfs", "beegfs", "ceph", "glusterfs", "gpfs",
    "orangefs", "panfs", "pvfs2", "wekafs", "webdav",
})  # fmt: skip


def shared_kind(folder: str) -> str | None:
    """Return the type of a file system where appends are not atomic, such as `nfs4`; else None.

    Args:
        folder: a directory; where it does not exist yet, its nearest parent that does counts. One
            about which nothing can be learned counts as local.
    """
    kind = _kind(os.path.realpath(folder))
    return kind if kind is not None and kind.lower().split(".")[0] in _SHARED else None


def _kind(folder: str) -> str | None:
    """Return the type of what is mounted nearest above `folder`, the latest where it is several."""
    try:
        import psutil  # only now: it costs more than the rest of a handler's import

        mounts = psutil.disk_partitions(all=True)
    except (ImportError, AttributeError, OSError, NotImplementedError):
        return None  # also where this process may not read its packages, or is just reading psutil
    found: str | None = None
    longest = -1
    for mount in mounts:
        length = len(mount.mountpoint)
        if length >= longest and _is_below(folder, mount.mountpoint):
            found, longest = mount.fstype, length
    return found


def _is_below(folder: str, mountpoint: str) -> bool:
    return folder == mountpoint or folder.startswith(mountpoint.rstrip(os.sep) + os.sep)
