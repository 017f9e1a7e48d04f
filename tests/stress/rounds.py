"""One round of stress, and the sum of many."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.conservation import Conservation, Crew, Task, history_files, verify
from tests.stress.contenders import Make

FAULTS = ("lost", "doubled", "glued", "torn", "disordered", "misread")


@dataclass(frozen=True)
class Setting:
    """What is written in each round of a row, and when the round is over.

    Args:
        contender, names: for the table.
        make: makes the handler.
        size: characters of a record's payload.
        processes, threads: writing at a time, and of each process.
        kills: that end a round.
        round_bytes: of the log, that end it too, so that disks and patience suffice.
    """

    contender: str
    names: str
    make: Make
    size: int
    processes: int
    threads: int
    kills: int
    round_bytes: int


@dataclass
class Row:
    """The sums of a setting's rounds."""

    setting: Setting
    rounds: int = 0
    rotations: int = 0
    kills: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    kept: list[str] = field(default_factory=list)
    """Directories of logs that were not sound."""

    @property
    def is_sound(self) -> bool:
        """Whether no round had a fault, and there was something to lose."""
        return self.counts["acknowledged"] > 0 and not any(self.counts[kind] for kind in FAULTS)

    def add(self, result: Conservation, rotations: int, kills: int) -> None:
        """Count one round."""
        self.rounds += 1
        self.rotations += rotations
        self.kills += kills
        for name in ("acknowledged", "fragments"):
            self.counts[name] += getattr(result, name)
        for kind in FAULTS:
            self.counts[kind] += len(getattr(result, kind))


def run_row(
    setting: Setting, seconds: float, dice: random.Random, report: Callable[[str], None]
) -> Row:
    """Run rounds until the time is over, at least one.

    Args:
        setting: of each round.
        seconds: after which no round is begun.
        dice: decide who is killed when.
        report: told of each log that is not sound; its directory is kept.
    """
    row = Row(setting)
    end = time.monotonic() + seconds
    while row.rounds == 0 or time.monotonic() < end:
        folder = tempfile.mkdtemp(prefix="stress-")
        path = str(Path(folder, "run.jsonl"))
        kills = _let_write(path, setting, dice)
        result = verify(path)
        row.add(result, len(history_files(path)) - 1, kills)
        if result.faults and setting.contender == "foundry_log":
            row.kept.append(folder)
            report(f"{setting.names}, {setting.size}: kept {folder}\n{result}")
        else:
            shutil.rmtree(folder)
    return row


def _let_write(path: str, setting: Setting, dice: random.Random) -> int:
    """Let writers write, kill and replace some; return how many were killed on the way."""
    # Sizes vary a little, so that rotation meets every offset.
    sizes = [max(1, setting.size - dice.randrange(setting.size // 5 + 1)) for _ in range(7)]
    task = Task(path, setting.make, sizes, setting.threads)
    with Crew(task, methods=("fork", "fork", "fork", "spawn")) as crew:
        for _ in range(setting.processes):
            crew.start()
        while crew.kills < setting.kills:
            crew.kill_one(dice)
            if _bytes(path) > setting.round_bytes:
                break
            crew.start()
    return crew.kills


def _bytes(path: str) -> int:
    total = 0
    for file in history_files(path):
        try:
            total += os.path.getsize(file)
        except FileNotFoundError:
            continue  # renamed meanwhile
    return total
