"""Checkpoints: a directory each, whole or not there; saved, found, kept, loaded and refused."""

from __future__ import annotations

import math
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry_log.adapters import StructuredLogger
from foundry_log.encoding import encode_document
from foundry_log.performance import PerformanceLogger
from foundry_log.training.checkpoint_files import (
    MANIFEST_FILE,
    MODEL_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    TENSOR_FILES,
    Checkpoint,
    CheckpointError,
    check_content,
    check_sizes,
    described,
    if_whole,
    is_sound,
    make_directory,
    manifest_of,
    new_manifest,
    read_tensors,
    sync_directory,
    synced_file,
    write_tensors,
)
from foundry_log.training.checkpoint_shapes import check_model, check_optimizer

# Between the two renames that replace a checkpoint, the old one is `.step_000500.replaced`; a
# process killed there has left it so, and it stands for its step until the next save.
_DIRECTORY = re.compile(r"(\.)?step_(\d{6,})(?(1)\.replaced)")
_LEFTOVER = re.compile(r"\.(step_\d{6,})\.(partial|replaced|removed)")


@dataclass(frozen=True)
class LoadedCheckpoint:
    """What a checkpoint holds, tensors on the CPU."""

    checkpoint: Checkpoint
    model: dict[str, Any]
    """For `model.load_state_dict`."""
    optimizer: dict[str, Any] | None
    """For `optimizer.load_state_dict`; None where it was not asked for."""
    state: dict[str, Any]
    """As it was given to `save`."""


class Checkpoints:
    """The checkpoints of a run: `<root>/step_000500/` with model, optimizer, state and manifest.

    The files are written to a hidden directory beside it, which is renamed when they are on the
    disk: a process killed at any moment leaves the checkpoints of before, and of its step the old
    one, the new one or none. One of the same step is replaced. What a killed process has left goes
    with the next save.

    One process and one thread may save or set aside at a time; asking and loading change nothing
    and may be done by any number meanwhile.

    Args:
        root: directory of the checkpoints; made with the first one.
        logger: gets a record of each beginning and end, of what is removed or set aside.
        performance: gets the blocks `save_model` and `save_optimizer`.
        keep_last: checkpoints, the saved one included, that stay after a save, at least 1: those
            of the highest steps. Never removed are those that are not whole, of later steps than
            the saved one, set aside, or of somebody else. None keeps all.
        keep_best: also keep the one of the lowest finite `eval_loss`.

    Raises:
        ValueError: `keep_last` is below 1.
    """

    def __init__(
        self,
        root: Path,
        logger: StructuredLogger,
        performance: PerformanceLogger,
        *,
        keep_last: int | None = None,
        keep_best: bool = False,
    ) -> None:
        if keep_last is not None and keep_last < 1:
            raise ValueError(
                f"keep_last={keep_last} would remove the checkpoint just saved; give at least 1, "
                "or None to keep all"
            )
        self.root = root
        self._logger = logger
        self._performance = performance
        self._keep_last = keep_last
        self._keep_best = keep_best

    def prepare(self) -> None:
        """Make the directory, and find out now rather than at the first save if none can be made.

        Raises:
            OSError: checkpoints cannot be written there.
        """
        make_directory(self.root)
        probe = self.root / ".probe"
        shutil.rmtree(probe, ignore_errors=True)
        probe.mkdir()
        probe.rmdir()

    def save(
        self,
        step: int,
        epoch: int,
        *,
        attempt: int,
        model: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        state: Mapping[str, Any],
        eval_loss: float | None = None,
    ) -> Checkpoint:
        """Write the checkpoint of a step, then remove those that need not be kept any more.

        Args:
            step: number of the step that was completed.
            epoch: number of its epoch.
            attempt: number of the attempt that does it.
            model: what `model.state_dict()` gives.
            optimizer: what `optimizer.state_dict()` gives.
            state: what else the run needs to go on: nested dicts and lists of tensors, numbers and
                text.
            eval_loss: of the latest evaluation, by which the best one is found; None for unknown.

        Raises:
            OSError: it cannot be written, as when the disk is full; nothing of it is left, and the
                checkpoints of before stay.
            CheckpointError: `state` has what cannot be loaded again without running code.
        """
        target = self.root / _name(step)
        self._logger.info("Saving checkpoint", step=step, epoch=epoch, checkpoint_dir=target)
        started = time.perf_counter()
        facts = {"step": step, "epoch": epoch, "attempt": attempt, "eval_loss": eval_loss}
        manifest = self._write(target, facts, model, optimizer, state)
        saved = described(target, manifest)
        self._logger.info(
            "Checkpoint saved successfully",
            step=step,
            checkpoint_size_gb=saved.size_bytes / 1e9,
            save_time_seconds=time.perf_counter() - started,
        )
        self._prune(saved)
        return saved

    def all(self) -> list[Checkpoint]:
        """Return those whose files are there in the sizes of their manifest, lowest step first.

        Those set aside are not among them. The content is looked at when one is loaded.
        """
        found = sorted(_directories(self.root).items())
        return [whole for _, directory in found if (whole := if_whole(directory))]

    def latest(self) -> Checkpoint | None:
        """Return the one of the highest step, whole or not; None where there is none.

        A damaged one is not passed over in silence: `load` refuses it and names the one before.
        Where its manifest cannot be read, all but path and step are 0 and None.
        """
        directories = _directories(self.root)
        if not directories:
            return None
        step = max(directories)
        try:
            return described(directories[step], manifest_of(directories[step]))
        except CheckpointError:
            return Checkpoint(directories[step], step, 0, 0, None, 0)

    def best(self) -> Checkpoint | None:
        """Return the whole one of the lowest finite `eval_loss`, the first of equals, or None."""
        rated = [whole for whole in self.all() if math.isfinite(_loss_of(whole))]
        return min(rated, key=_loss_of, default=None)

    def set_aside(self, after_step: int) -> list[Path]:
        """Rename the checkpoints of later steps, so that none is taken for the latest.

        `step_000600` becomes `step_000600.attempt1` by the attempt that saved it
        (`.attempt_unknown` where its manifest cannot be read), with `.2` and so on behind where
        that is taken. They can still be loaded by their new names; nothing here removes them.

        Args:
            after_step: the last step whose checkpoint stays; -1 sets all aside.

        Returns:
            The new directories, lowest step first.

        Raises:
            OSError: one cannot be renamed; those of lower steps have been.
        """
        self._clean()
        moved = []
        for step, directory in sorted(_directories(self.root).items()):
            if step > after_step:
                target = _free(self.root / f"{_name(step)}.{_attempt_text(directory)}")
                directory.rename(target)
                moved.append(target)
                self._logger.info(
                    "Checkpoint set aside", step=step, checkpoint_dir=directory, set_aside_as=target
                )
        if moved:
            sync_directory(self.root)
        return moved

    def load(
        self,
        path: str | os.PathLike[str],
        *,
        model: Mapping[str, Any],
        optimizer: Mapping[str, Any] | None,
    ) -> LoadedCheckpoint:
        """Read a checkpoint, all of which is checked before anything is given back.

        Nothing in it can run code (`weights_only=True`). Its content is held against the CRC-32
        that was taken when it was saved: torch itself loads a changed tensor without a word.

        Args:
            path: its directory, of this run or of another.
            model: what `model.state_dict()` gives of the model that is to get it: names and shapes
                must agree.
            optimizer: what `optimizer.state_dict()` gives: the numbers of its groups and
                parameters must agree, and the shapes of what it already has; None leaves the
                optimizer out.

        Raises:
            CheckpointError: it is not there, damaged, of another format, or of another shape. Of a
                damaged one the text names the whole one before it.
        """
        started = time.perf_counter()
        directory = _present(Path(os.path.abspath(path)))
        try:
            manifest = manifest_of(directory)
            checkpoint = described(directory, manifest)
            where = {"step": checkpoint.step, "epoch": checkpoint.epoch}
            self._logger.info("Loading checkpoint", **where, checkpoint_dir=directory)
            check_sizes(directory, manifest)
            check_content(directory, manifest)
            content = {
                name: read_tensors(directory / name)
                for name in TENSOR_FILES
                if name != OPTIMIZER_FILE or optimizer is not None
            }
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {_offer(directory)}") from error
        check_model(directory / MODEL_FILE, content[MODEL_FILE], model)
        if optimizer is not None:
            check_optimizer(directory / OPTIMIZER_FILE, content[OPTIMIZER_FILE], optimizer)
        self._logger.info(
            "Checkpoint loaded",
            **where,
            checkpoint_dir=directory,
            load_time_seconds=time.perf_counter() - started,
        )
        return LoadedCheckpoint(
            checkpoint, content[MODEL_FILE], content.get(OPTIMIZER_FILE), content[STATE_FILE]
        )

    def _write(
        self,
        target: Path,
        facts: Mapping[str, Any],
        model: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        state: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Write a checkpoint and return its manifest."""
        make_directory(self.root)
        self._clean()
        partial = _hidden(target, "partial")
        partial.mkdir()
        try:
            with self._performance.time_block("save_model"):
                written = {MODEL_FILE: write_tensors(model, partial / MODEL_FILE)}
            with self._performance.time_block("save_optimizer"):
                written[OPTIMIZER_FILE] = write_tensors(optimizer, partial / OPTIMIZER_FILE)
            written[STATE_FILE] = write_tensors(state, partial / STATE_FILE)
            read_tensors(partial / STATE_FILE)  # else found out when a run is to be resumed
            manifest = new_manifest(facts, written)
            with synced_file(partial / MANIFEST_FILE) as file:
                file.write(encode_document(manifest))
            sync_directory(partial)
            _replace(target, partial)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return manifest

    def _prune(self, saved: Checkpoint) -> None:
        if self._keep_last is None:
            return
        lineage = [whole for whole in self.all() if whole.step <= saved.step]
        kept = {whole.path for whole in lineage[-self._keep_last :]}
        if self._keep_best and (best := self.best()):
            kept.add(best.path)
        for whole in lineage:
            if whole.path not in kept:
                self._remove(whole)

    def _remove(self, checkpoint: Checkpoint) -> None:
        """Remove a checkpoint in one step, whatever happens while its files go."""
        removed = _hidden(checkpoint.path, "removed")
        try:
            checkpoint.path.rename(removed)
            shutil.rmtree(removed)
        except OSError as error:
            self._warn("Checkpoint could not be removed", checkpoint.path, error)
        else:
            self._logger.debug(
                "Checkpoint removed", step=checkpoint.step, checkpoint_dir=checkpoint.path
            )

    def _clean(self) -> None:
        """Remove what a killed process has left, and put back what it was replacing."""
        for path in _entries(self.root):
            if match := _LEFTOVER.fullmatch(path.name):
                target = self.root / match[1]
                try:
                    if match[2] == "replaced" and not target.exists():
                        path.rename(target)
                    else:
                        shutil.rmtree(path)
                except OSError as error:
                    self._warn("Leftover of a checkpoint could not be cleaned up", path, error)

    def _warn(self, message: str, path: Path, error: OSError) -> None:
        self._logger.warning(message, checkpoint_dir=path, reason=str(error))


def _loss_of(checkpoint: Checkpoint) -> float:
    return math.inf if checkpoint.eval_loss is None else checkpoint.eval_loss


def _name(step: int) -> str:
    return f"step_{step:06d}"


def _hidden(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}")


def _entries(root: Path) -> list[Path]:
    return sorted(root.iterdir()) if root.is_dir() else []


def _directories(root: Path) -> dict[int, Path]:
    """Step to directory, whole or not."""
    found: dict[int, Path] = {}
    for path in _entries(root):  # hidden ones first, so that the one that replaced it wins
        match = _DIRECTORY.fullmatch(path.name)
        if match and path.is_dir():
            found[int(match[2])] = path
    return found


def _present(path: Path) -> Path:
    replaced = _hidden(path, "replaced")
    return replaced if replaced.exists() and not path.exists() else path


def _free(path: Path) -> Path:
    """Return the path, with a number behind it where it is taken."""
    free, number = path, 1
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free


def _attempt_text(directory: Path) -> str:
    try:
        return f"attempt{manifest_of(directory)['attempt']}"
    except CheckpointError:
        return "attempt_unknown"


def _replace(target: Path, source: Path) -> None:
    """Rename `source` to `target`; a directory cannot be renamed over another that has files."""
    replaced = _hidden(target, "replaced")
    if target.exists():
        target.rename(replaced)
    source.rename(target)
    sync_directory(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _offer(refused: Path) -> str:
    """Return which checkpoint to take instead: the next before it, or else the latest."""
    root = refused if _directories(refused) else refused.parent
    match = re.match(r"\.?step_(\d+)", refused.name)
    step = int(match[1]) if match else math.inf
    others = _directories(root)
    for other in sorted(others, key=lambda number: (number < step, number), reverse=True):
        if others[other] != refused and is_sound(others[other]):
            return f"{_relation(other, step)}: resume from {others[other]}"
    return f"there is no whole checkpoint in {root}"


def _relation(other: int, step: float) -> str:
    if math.isinf(step):
        return "the latest whole one there"
    if other < step:
        return "the checkpoint before it is whole"
    return "no checkpoint before it is whole, but another one is"
