"""What the real wandb has written offline, read back from its files."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as protocol


def records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: chunks in blocks of 32 KiB, behind a header of 7 bytes."""
    data, position, record = path.read_bytes(), 7, b""
    while position < len(data):
        left = 32_768 - position % 32_768
        if left < 7:
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + 7])
        record += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole one, or its last chunk
            yield protocol.Record.FromString(record)
            record = b""


class WandbRun:
    """What stands in the latest of the offline runs somewhere below a directory."""

    def __init__(self, directory: Path) -> None:
        self.paths = sorted(directory.glob("**/wandb/offline-run-*/*.wandb"))
        self.records = list(records(self.paths[-1]))

    def of(self, kind: str) -> list[Any]:
        """The records of a kind."""
        return [getattr(each, kind) for each in self.records if each.HasField(kind)]

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the history without W&B's own fields, but for the time."""
        return [_row(record) for record in self.of("history")]


def _row(record: Any) -> dict[str, Any]:
    """The fields of a row; those of an object W&B has taken apart are together again."""
    row: dict[str, Any] = {}
    for item in record.item:
        *outer, name = item.nested_key
        inner = row
        for each in outer:
            inner = inner.setdefault(each, {})
        inner[name] = json.loads(item.value_json)
    return {name: value for name, value in row.items() if name not in ("_step", "_runtime")}
