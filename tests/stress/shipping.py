"""Writers and shippers of a directory, killed at random moments: `python -m tests.stress.shipping`.

The logs are of every kind that is shipped; monitors live in a time of their own, in which what was
written a moment ago has rested for long, and delete what they have shipped at once. At the end
`foundry-log ship --once --all` sends the rest, and `tests.shipped` looks at what is in the store.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import itertools
import logging
import multiprocessing
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from foundry_log import RotatingJsonlHandler
from foundry_log.handlers.daily_log import DailyLogHandler
from foundry_log.shipping.destinations import store_at
from foundry_log.shipping.log_monitor import REGISTER_NAME, LogMonitorService
from foundry_log.shipping.readiness import LIVE_RESTS_S
from tests.conservation import DEADLINE_S, Crew, Task
from tests.fault_proxy import FaultProxy, answer, drop, lose_answer, reset_in_body
from tests.shipped import Shipment, fetch, verify_shipped

AHEAD_S = LIVE_RESTS_S - 3.0
"""By so much the monitors' clock is ahead: what a dead writer has left need rest no longer than it
takes to replace one, and rotated files not at all."""
AT_ONCE_DAYS = 1e-4
"""Days after which they delete, less than `AHEAD_S`."""
DAY_LASTS_S = 0.4
"""Seconds of a day of the writers of daily files."""
PAUSE_S = 0.008
"""Between the records of a thread, so that a server can follow."""
SHIPPERS = 3
LIFE_FILES = 40
"""Files that are shipped and deleted from one kill of a shipper to the next, on average."""
FAULT_EVERY = 3
"""Steps with a fault of the connection among so many, on average."""
WRITERS_A_LOG = 1000
KEY = "AZURE_STORAGE_KEY"

# Locks must not be inherited, nor connections of the proxy, which would never seem closed.
METHOD = "forkserver"


# --- what is written ---


def _slowed(handler: logging.Handler, pause_s: float) -> logging.Handler:
    """Have a handler written to no faster than that."""
    handler.addFilter(lambda record: time.sleep(pause_s) or True)  # type: ignore[func-returns-value]
    return handler


def jsonl(path: str, pause_s: float = PAUSE_S, **options: Any) -> logging.Handler:
    """Make the handler of a run's file that rotates often."""
    options = {"maxBytes": 40_000, "stable_names": True, **options}
    return _slowed(RotatingJsonlHandler(path, **options), pause_s)


def daily(path: str, is_shared: bool = False) -> logging.Handler:
    """Make the handler behind `get_logger` of an application, whose days are short."""
    directory, app = os.path.split(path)
    handler = DailyLogHandler(
        directory, app, is_shared=is_shared, retention_days=None, clock=_hurrying_clock
    )
    return _slowed(handler, PAUSE_S)


def _hurrying_clock() -> float:
    """Return a time that is hurrying ahead, the same in all processes."""
    now = time.time()
    return now + 86_400 * int(now % 100_000 / DAY_LASTS_S)


def tasks(directory: Path) -> list[Task]:
    """Return what is written: rotated, compressed, of a run, large, of one process, of several."""
    small, large = (100, 900, 3000), (60_000, 100_000)
    packed = functools.partial(jsonl, compress=True)
    slowly = functools.partial(jsonl, pause_s=0.03, maxBytes=1_500_000)
    (directory / "first").mkdir(parents=True)
    (directory / "first" / "run_info.json").write_text("{}")
    return [
        Task(str(directory / "run.jsonl"), jsonl, small),
        Task(str(directory / "packed.jsonl"), packed, small),
        Task(str(directory / "first" / "run.jsonl"), jsonl, small, threads=1),
        Task(str(directory / "large.jsonl"), slowly, large, threads=1),
        Task(str(directory / "shop"), daily, small, threads=1),
        Task(str(directory / "board"), functools.partial(daily, is_shared=True), small, threads=1),
    ]


# --- who ships ---


@dataclass(frozen=True)
class Target:
    """Where to ship to; `key` of the account, if it is one."""

    to: str
    key: str | None = None


def ship_for_ever(directory: str, target: Target, told: str) -> None:
    """Ship and delete what stands in a directory, in a time ahead; say on `told` what is said."""
    parent = os.getppid()
    with open(told, "a") as file:
        os.dup2(file.fileno(), 2)
    store, prefix = store_at(target.to, target.key)
    monitor = LogMonitorService(
        directory,
        store=store,
        prefix=prefix,
        whole_directory=True,
        retention_days=AT_ONCE_DAYS,
        scan_interval=0.1,
        grace_s=0.0,
        now=lambda: time.time() + AHEAD_S,
    )

    async def ship() -> None:
        while not await monitor.initialize():
            await asyncio.sleep(0.1)
        while os.getppid() == parent:  # otherwise nobody is left to end this
            await asyncio.sleep(0.2)

    asyncio.run(ship())


class Shippers:
    """Monitors of one directory, each in a process of its own; those left at the end are killed."""

    def __init__(self, directory: Path, target: Target) -> None:
        self.kills = 0
        self.told = directory.with_name("told.txt")
        """What they say on standard error."""
        self._directory = directory
        self._target = target
        self._processes: list[BaseProcess] = []

    def __enter__(self) -> Shippers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            _kill(process)

    def start(self) -> None:
        """Start one more."""
        arguments = (str(self._directory), self._target, str(self.told))
        context: Any = multiprocessing.get_context(METHOD)
        process = context.Process(target=ship_for_ever, args=arguments)
        process.start()
        self._processes.append(process)

    def kill_one(self, dice: random.Random) -> None:
        """Send SIGKILL to one at a random moment, while something is shipped and deleted."""
        process = dice.choice(self._processes)
        goal = sum(self.progress) + dice.expovariate(1 / LIFE_FILES)
        self.wait_until(lambda: sum(self.progress) >= goal)
        time.sleep(dice.uniform(0, 0.05))  # else it were always the moment after a row
        _kill(process)
        self._processes.remove(process)
        self.kills += 1

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Wait for what they do."""
        deadline = time.monotonic() + DEADLINE_S
        while not is_so():
            ended = [each.exitcode for each in self._processes if not each.is_alive()]
            assert not ended, f"a monitor ended by itself: {ended}"
            assert time.monotonic() < deadline, f"nothing is shipped any more: {self.progress}"
            time.sleep(0.002)

    @property
    def progress(self) -> tuple[int, int]:
        """How many files the register has as shipped, and as deleted."""
        uri = f"{(self._directory / REGISTER_NAME).as_uri()}?mode=ro"
        try:
            with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
                row = database.execute("SELECT count(*), count(deleted_at) FROM shipped").fetchone()
        except sqlite3.OperationalError:  # there is none yet, or one that was just begun
            return 0, 0
        return row[0], row[1]


def _kill(process: BaseProcess) -> None:
    process.kill()
    process.join(DEADLINE_S)


# --- a round ---


@dataclass(frozen=True)
class Round:
    """What came of one round; `told` are the errors that monitors have logged."""

    shipment: Shipment
    writers_killed: int
    shippers_killed: int
    shipped: int
    deleted: int
    told: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.writers_killed} writers and {self.shippers_killed} shippers killed, "
            f"{self.shipped} files shipped and {self.deleted} deleted meanwhile; {self.shipment}"
        )


def run_round(
    folder: Path,
    target: Target,
    kills: int,
    dice: random.Random,
    disturb: Callable[[], object] = lambda: None,
    calm: Callable[[], object] = lambda: None,
    look: Callable[[], Path] | None = None,
) -> Round:
    """Write, ship, kill and replace; then ship the rest, and check.

    Args:
        folder: empty; the logs are in `logs` below it.
        target: the store.
        kills: in which writers and shippers have their share by chance.
        dice: decide who is killed when.
        disturb: called between kills.
        calm: called when they are over.
        look: brings the blobs to a directory; None where the store is `folder / "store"`.
    """
    directory = folder / "logs"
    work = tasks(directory)
    numbers = itertools.count(0, WRITERS_A_LOG)
    crews = [Crew(task, (METHOD,), first) for task, first in zip(work, numbers, strict=False)]
    with contextlib.ExitStack() as stack:
        shippers = stack.enter_context(Shippers(directory, target))
        for group in (*crews, shippers):
            stack.enter_context(group)
            for _ in range(SHIPPERS if group is shippers else 1):
                group.start()
        crews[0].start()  # two write one file
        crews[-1].start()
        for _ in range(kills):
            victim = dice.choice([*crews, *[shippers] * (len(crews) // 2)])
            victim.kill_one(dice)
            victim.start()
            disturb()
        shippers.wait_until(lambda: min(shippers.progress) > 0)
        shipped, deleted = shippers.progress
    work[1].make(work[1].path).close()  # compresses what killed ones have left
    calm()
    ship_rest(directory, target)
    blobs = look() if look else folder / "store"
    told = shippers.told.read_text().splitlines()
    return Round(
        verify_shipped(blobs, directory, [task.path for task in work]),
        sum(crew.kills for crew in crews),
        shippers.kills,
        shipped,
        deleted,
        tuple(line for line in told if line.startswith(("ERROR", "Traceback", "CRITICAL"))),
    )


def ship_rest(directory: Path, target: Target) -> str:
    """Ship what is left by the command; return what it says."""
    command = [sys.executable, "-m", "foundry_log.cli", "ship", str(directory), "--to", target.to]
    done = subprocess.run(
        [*command, "--once", "--all"],
        env={**os.environ, **({KEY: target.key} if target.key else {})},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "waiting" not in done.stderr and "in use" not in done.stderr, done.stderr
    return done.stderr


def azurite_round(azurite: Any, folder: Path, kills: int, dice: random.Random) -> Round:
    """Run a round to a container of its own, with a connection on which things go wrong."""
    container = azurite.new_container()
    with FaultProxy(azurite.account_url) as proxy:

        def disturb() -> None:
            if dice.randrange(FAULT_EVERY) == 0:
                faults = drop(), lose_answer(), reset_in_body(), answer(503, retry_after="0")
                proxy.fail(dice.choice(faults), method="PUT", skip=dice.randrange(3))

        def look() -> Path:
            fetch(azurite.account_url, container, azurite.key, folder / "store")
            return folder / "store"

        target = Target(f"{proxy.account_url}/{container}/fleet/node7", azurite.key)
        return run_round(folder, target, kills, dice, disturb, proxy.heal, look)


# --- the command ---


def main(arguments: list[str] | None = None) -> int:
    """Run rounds until there were enough kills; return 1 where one was not sound."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.stress.shipping",
        description="Whether acknowledged records reach the store when all are killed.",
    )
    parser.add_argument("--kills", type=int, default=300, help="of all rounds together")
    parser.add_argument("--a-round", type=int, default=60, help="kills of a round")
    parser.add_argument("--azurite", action="store_true", help="and not to a directory")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the kills")
    options = parser.parse_args(arguments)
    dice = random.Random(options.seed)
    print(f"python -m tests.stress.shipping --seed {options.seed}", flush=True)
    is_sound = True
    left = options.kills
    with _azurite() if options.azurite else contextlib.nullcontext() as server:
        while left > 0:
            kills = min(left, options.a_round)
            folder = Path(tempfile.mkdtemp(prefix="stress-"))
            print(f"{folder}, kept unless it is sound: ", end="", flush=True)
            if server:
                done = azurite_round(server, folder, kills, dice)
            else:
                done = run_round(folder, Target((folder / "store").as_uri()), kills, dice)
            print(done, *done.told, sep="\n", flush=True)
            if done.shipment.faults:
                is_sound = False
            else:
                shutil.rmtree(folder)
            left -= kills
    return 0 if is_sound else 1


@contextlib.contextmanager
def _azurite() -> Iterator[Any]:
    from tests.azurite import running_azurite

    with running_azurite() as server:
        yield server


if __name__ == "__main__":
    sys.exit(main())
