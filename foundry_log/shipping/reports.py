"""What a scan has done, and what one would do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ScanReport:
    """What one scan has found and done. Numbers of files, but for `bytes` and `seconds`.

    Args:
        found: log files of the kinds that are taken, those of earlier scans too.
        shipped: acknowledged by the store.
        already_there: known, by the register or the store, to be there with the same content.
        failed: given up for this time.
        in_use: written by somebody, or handled by another monitor.
        waiting: written too short a time ago, to be compressed first, or put off after a failure.
        deleted: removed here.
        bytes: that were sent.
        seconds: that the scan took.
    """

    found: int = 0
    shipped: int = 0
    already_there: int = 0
    failed: int = 0
    in_use: int = 0
    waiting: int = 0
    deleted: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        done = (
            ("shipped", self.shipped),
            ("there already", self.already_there),
            ("failed", self.failed),
            ("in use", self.in_use),
            ("waiting", self.waiting),
            ("deleted", self.deleted),
        )
        parts = [f"{self.found} found", *(f"{count} {word}" for word, count in done if count)]
        return f"{', '.join(parts)}; {self.bytes} bytes in {self.seconds:.2f} s"


@dataclass(frozen=True)
class Planned:
    """What a scan would do with a file: `ship`, `wait`, `in use` or `delete`.

    `blob_name` is where it would be, or is; `size` is in bytes.
    """

    path: str
    action: str
    blob_name: str
    size: int

    def __str__(self) -> str:
        target = f" -> {self.blob_name}" if self.action == "ship" else ""
        return f"{self.action}: {self.path} ({self.size} bytes){target}"
