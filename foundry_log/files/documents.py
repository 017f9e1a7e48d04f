"""Small files that are written whole: readers find the old one or the new one."""

from __future__ import annotations

import os
import threading
from pathlib import Path

PERMISSIONS = 0o640


def write_document(path: Path, content: bytes, permissions: int = PERMISSIONS) -> None:
    """Write the file, or replace it in one step; its directory is made.

    Args:
        path: of the file.
        content: all of it.
        permissions: of a new file, before the umask.

    Raises:
        OSError: it cannot be written; what was there stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
    try:
        with open(os.open(temporary, flags, permissions), "wb") as file:
            file.write(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
