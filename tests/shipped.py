"""Whether a store keeps what writers acknowledged: the check of `conservation`, over its blobs.

What is in the store is looked at as files in a directory, that of a `LocalStore` or what `fetch`
has brought from Azure. Names tell nothing here but `.gz`: a blob may have got a suffix.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conservation import DEADLINE_S, acknowledged, records_in

_SHOWN = 5


@dataclass(frozen=True)
class Shipment:
    """What became of the records and files of a directory that was shipped.

    acknowledged   records that their writers noted
    blobs          in the store
    lost           acknowledged, and intact in no blob
    repeated       in several blobs or several times in one, but for earlier states of a live file
    doubled        blobs whose content another one has as well; empty ones are no doubles
    unshipped      files that are here, and whose content is in no blob
    """

    acknowledged: int
    blobs: int
    lost: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()
    unshipped: tuple[str, ...] = ()

    @property
    def faults(self) -> dict[str, tuple[str, ...]]:
        """The kinds of fault that occurred, with the names."""
        kinds = ("lost", "repeated", "doubled", "unshipped")
        return {kind: names for kind in kinds if (names := getattr(self, kind))}

    def __str__(self) -> str:
        told = [f"{self.acknowledged} acknowledged, {self.blobs} blobs"]
        for kind, names in self.faults.items():
            more = ", …" if len(names) > _SHOWN else ""
            told.append(f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{more}")
        return "\n".join(told)


def verify_shipped(
    store: Path, directory: Path, logs: Iterable[str | os.PathLike[str]]
) -> Shipment:
    """Return what became of the logs of a directory; nobody may be writing or shipping them.

    Args:
        store: a directory with the blobs.
        directory: that was shipped.
        logs: their paths, as the writers' tasks have them. No two logs may share a writer's number.
    """
    blobs = blob_files(store)
    told = [name for log in logs for name in acknowledged(log)]
    assert len(set(told)) == len(told), "two logs had a writer of the same number"
    states = {str(blob.relative_to(store)): records_in(blob) for blob in blobs}
    found = Counter(name for names in states.values() for name in names)
    latest = Counter(name for names in _latest(states.values()) for name in names)
    by_content = defaultdict(list)
    for blob in blobs:
        by_content[_md5(blob)].append(str(blob.relative_to(store)))
    empty = hashlib.md5(usedforsecurity=False).hexdigest()
    return Shipment(
        acknowledged=len(told),
        blobs=len(blobs),
        lost=tuple(name for name in told if name not in found),
        repeated=tuple(name for name, count in latest.items() if count > 1),
        doubled=tuple(
            name for md5, names in by_content.items() if md5 != empty for name in names[1:]
        ),
        unshipped=tuple(
            str(file.relative_to(directory))
            for file in log_files(directory)
            if _md5(file) not in by_content
        ),
    )


def blob_files(store: Path) -> list[Path]:
    """Return the blobs in a directory; what a `LocalStore` keeps beside them is hidden."""
    found = (path for path in store.rglob("*") if path.is_file())
    return sorted(path for path in found if not path.relative_to(store).parts[0].startswith("."))


def blob_names(store: Path) -> set[str]:
    """Return the names of the blobs in a directory."""
    return {path.relative_to(store).as_posix() for path in blob_files(store)}


def wait_for_blobs(store: Path, count: int) -> set[str]:
    """Wait until a directory has so many blobs; return their names, fewer after a deadline."""
    limit = time.monotonic() + DEADLINE_S
    while len(blob_files(store)) < count and time.monotonic() < limit:
        time.sleep(0.01)
    return blob_names(store)


def log_files(directory: Path) -> Iterator[Path]:
    """Yield what may be a log: hidden files and the writers' notes are none."""
    for path in directory.rglob("*"):
        is_log = path.name.endswith((".log", ".jsonl", ".gz")) and not path.name.startswith(".")
        if is_log and path.is_file():
            yield path


def fetch(account_url: str, container: str, key: str, store: Path) -> dict[str, dict[str, str]]:
    """Bring all blobs of a container to a directory; return their metadata by name.

    A container that is not there yet has none.
    """
    import azure.storage.blob as sdk

    metadata: dict[str, dict[str, str]] = {}
    client: Any
    with sdk.ContainerClient(account_url, container, credential=key) as client:
        if not client.exists():
            return metadata
        for blob in client.list_blobs(include=["metadata"]):
            path = store / blob.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(client.download_blob(blob.name).readall())
            metadata[blob.name] = dict(blob.metadata or {})
    return metadata


def _latest(states: Iterable[Sequence[str]]) -> Iterator[Sequence[str]]:
    """Leave out what was shipped of a file before its process came back and wrote more."""
    by_begin = defaultdict(list)
    for names in states:
        if names:
            by_begin[names[0]].append(names)
    for group in by_begin.values():
        group.sort(key=len)
        for earlier, later in itertools.pairwise(group):
            if len(later) == len(earlier) or later[: len(earlier)] != earlier:
                yield earlier
        yield group[-1]


def _md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
