"""The files of one checkpoint: written so that the device has them, described by a manifest, read
back only if they are what was written.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from foundry_log import __version__
from foundry_log.clock import timestamp
from foundry_log.encoding import decode_line

MANIFEST_FILE = "checkpoint.json"
MODEL_FILE = "model.pt"
OPTIMIZER_FILE = "optimizer.pt"
STATE_FILE = "state.pt"
TENSOR_FILES = (MODEL_FILE, OPTIMIZER_FILE, STATE_FILE)

_FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint cannot be loaded: what was found, what was expected, and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as its manifest describes it."""

    path: Path
    """Its directory."""
    step: int
    """Steps that were completed."""
    epoch: int
    """Number of the epoch of that step, from 1."""
    attempt: int
    """Number of the attempt that saved it, from 1."""
    eval_loss: float | None
    """Of the evaluation that the caller gave with it; may be NaN or infinite."""
    size_bytes: int
    """Of model, optimizer and state."""


# --- writing --------------------------------------------------------------------------------------


class Counted:
    """What torch writes to: knows size and CRC-32, and the error that torch hides."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.size = 0
        self.crc32 = 0
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        """Write to the file, and take note."""
        try:
            self._file.write(content)
        except OSError as error:
            self.error = error
            raise
        self.size += len(content)
        self.crc32 = zlib.crc32(content, self.crc32)
        return len(content)

    def flush(self) -> None:
        """Flush the file."""
        self._file.flush()


def write_tensors(state: Mapping[str, Any], path: Path) -> Counted:
    """Write a state to a new file, once the device has it; return its size and CRC-32.

    Raises:
        OSError: it cannot be written.
    """
    with synced_file(path) as file:
        counted = Counted(file)
        try:
            torch.save(dict(state), counted)  # type: ignore[arg-type]  # it only writes
        except RuntimeError:  # "unexpected pos", where the disk is full
            if counted.error is not None:
                raise counted.error from None
            raise
    return counted


@contextmanager
def synced_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file that the device has when the block ends well."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def make_directory(path: Path) -> None:
    """Make a directory, so that a crash of the machine does not take it back."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Have the device take note of the names in a directory."""
    if not hasattr(os, "O_DIRECTORY"):  # pragma: no cover - Windows cannot open directories
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def new_manifest(facts: Mapping[str, Any], written: Mapping[str, Counted]) -> dict[str, Any]:
    """Return the manifest of files that were written."""
    return {
        "format": _FORMAT,
        **facts,
        "saved": timestamp(),
        "files": {name: counted.size for name, counted in written.items()},
        "crc32": {name: counted.crc32 for name, counted in written.items()},
        "foundry_log": __version__,
    }


# --- reading --------------------------------------------------------------------------------------


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_loss(value: Any) -> bool:
    return value is None or type(value) in (int, float)


def _counts_each_file(value: Any) -> bool:
    counts = value if isinstance(value, dict) else {}
    return {*counts} == {*TENSOR_FILES} and all(map(_is_count, counts.values()))


_EACH_FILE = (_counts_each_file, f"a count for each of {', '.join(TENSOR_FILES)}")
_MANIFEST_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "step": (_is_count, "a count"),
    "epoch": (_is_count, "a count"),
    "attempt": (_is_count, "a count"),
    "eval_loss": (_is_loss, "a number or null"),
    "files": _EACH_FILE,
    "crc32": _EACH_FILE,
}


def manifest_of(directory: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest.

    Raises:
        CheckpointError: there is none that this version reads.
    """
    path = directory / MANIFEST_FILE
    try:
        manifest = decode_line(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(_why_there_is_no_manifest(directory)) from None
    except NotADirectoryError:
        raise CheckpointError(f"{directory} is a file, and a checkpoint is a directory") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if manifest.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path}: found format={manifest.get('format')!r} of foundry_log "
            f"{manifest.get('foundry_log')}, expected {_FORMAT}, which {__version__} reads"
        )
    for field, (fits, expected) in _MANIFEST_FIELDS.items():
        if not fits(manifest.get(field)):
            raise CheckpointError(
                f"{path}: found {field}={manifest.get(field)!r}, expected {expected}"
            )
    return manifest


def _why_there_is_no_manifest(directory: Path) -> str:
    if not directory.exists():
        return f"{directory} does not exist"
    if (directory / MODEL_FILE).exists() and not (directory / STATE_FILE).exists():
        return (
            f"{directory} has no {MANIFEST_FILE}: foundry_log 0.3 and before saved such "
            f"checkpoints, which lack what a run needs to go on; expected {MANIFEST_FILE}, "
            f"{', '.join(TENSOR_FILES)}"
        )
    if any(directory.glob("step_*")):
        return f"{directory} is not a checkpoint but a directory of them"
    return f"{directory} is not a checkpoint: it has no {MANIFEST_FILE}"


def described(directory: Path, manifest: Mapping[str, Any]) -> Checkpoint:
    """Return the checkpoint that a manifest describes."""
    loss = manifest["eval_loss"]
    return Checkpoint(
        path=directory,
        step=manifest["step"],
        epoch=manifest["epoch"],
        attempt=manifest["attempt"],
        eval_loss=None if loss is None else float(loss),
        size_bytes=sum(manifest["files"].values()),
    )


def if_whole(directory: Path) -> Checkpoint | None:
    """Return the checkpoint if its files have the sizes of its manifest, else None."""
    try:
        manifest = manifest_of(directory)
        check_sizes(directory, manifest)
    except CheckpointError:
        return None
    return described(directory, manifest)


def is_sound(directory: Path) -> bool:
    """Return whether all files have the content of their manifest."""
    try:
        manifest = manifest_of(directory)
        check_sizes(directory, manifest)
        check_content(directory, manifest)
    except CheckpointError:
        return False
    return True


def check_sizes(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse files that are missing, cut short or too long.

    Raises:
        CheckpointError: with the size found and the one expected.
    """
    for name, expected in manifest["files"].items():
        path = directory / name
        try:
            found = path.stat().st_size
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing, expected {expected:,} bytes") from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        if found != expected:
            how = "truncated" if found < expected else "too long"
            raise CheckpointError(f"{path} is {how}: found {found:,} bytes, expected {expected:,}")


def check_content(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse files with other content than was written.

    Raises:
        CheckpointError: with the CRC-32 found and the one expected.
    """
    for name, expected in manifest["crc32"].items():
        path = directory / name
        try:
            found = _crc32_of(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        if found != expected:
            raise CheckpointError(
                f"{path} is damaged: found CRC-32 {found:08x}, expected {expected:08x}"
            )


def _crc32_of(path: Path) -> int:
    crc32 = 0
    with path.open("rb") as file:
        while content := file.read(1 << 20):
            crc32 = zlib.crc32(content, crc32)
    return crc32


def read_tensors(path: Path) -> dict[str, Any]:
    """Return what is in a file, tensors on the CPU; nothing in it is run.

    Raises:
        CheckpointError: torch cannot load it, or it is no dict.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of any class: what is read decides
        raise CheckpointError(
            f"{path} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: found a {type(content).__name__}, expected a dict")
    return content
