"""Contenders by turns, each in a fresh process, and the statistics of what they took."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tests.benchmarks.goals import Goal, Verdict
from tests.benchmarks.table import comparison_table, factor, number

ROOT = Path(__file__).resolve().parents[2]
REMEDY = "pip install -e '.[bench]'"
_BATCHES = 10
_TIMEOUT_S = 1800.0


Run = Callable[[range], int | None]
"""Does an operation once for each step; see `Subject`."""

# --- what a workload is made of -------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A contender that is set up and ready.

    Args:
        run: does the operation once for each step of the range. It returns None, or the nanoseconds
            it took by its own clock where the harness's would count too much.
        check: raises `WrongOutput` unless the output of the steps 0 to n - 1 is there and right.
    """

    run: Run
    check: Callable[[int], None]


Start = Callable[[Path], Iterator[Subject]]


@dataclass(frozen=True)
class Contender:
    """One way to do a workload's task.

    Args:
        name: of its row in the table.
        start: sets it up in an empty directory, yields the `Subject` once, and takes it down. It
            imports its packages itself, so that no other contender's process has them.
        role: `limit`, `ours` or `peer`; ratios are to the first of each of the former two.
        needs: modules, or `module.name`, without which it is skipped.
        remedy: how to install them.
        buffered: its output is complete only when it is closed; otherwise the output is checked
            while it is still open, which proves that every line was visible at once.
        share: of the workload's operations that it does, for the slow ones.
        goal: of its time.
        only_long: takes part with `--long` alone.
    """

    name: str
    start: Start
    role: str = "peer"
    needs: tuple[str, ...] = ()
    remedy: str = REMEDY
    buffered: bool = False
    share: float = 1.0
    goal: Goal | None = None
    only_long: bool = False


@dataclass(frozen=True)
class Settings:
    """How much is run: `count` operations a process (None for the workload's own), by turns."""

    quick: bool = False
    repeats: int | None = None
    count: int | None = None
    long: bool = False


class Report(Protocol):
    """The result of a workload."""

    @property
    def ok(self) -> bool:
        """Whether every contender that ran did its task."""

    def text(self) -> str:
        """Return the result as lines for people."""

    def verdicts(self) -> list[Verdict]:
        """Return how near each goal is."""

    def data(self) -> dict[str, Any]:
        """Return the result as plain data."""


class Workload(Protocol):
    """Something to measure."""

    @property
    def name(self) -> str:
        """As on the command line."""

    def run(self, settings: Settings) -> Report:
        """Measure, in processes of its own."""

    def measure(self, contender: str, count: int, directory: Path) -> dict[str, Any]:
        """Return one process's figures as plain data; called in that process."""


# --- a process of its own -------------------------------------------------------------------------


class Failed(Exception):  # noqa: N818 - it is a result, as much as an error
    """A process did not do its task; the text says why."""


def in_own_process(workload: str, contender: str, count: int) -> dict[str, Any]:
    """Run `Workload.measure` in a fresh interpreter and return its figures.

    Raises:
        Failed: it raised, its output was wrong, or it died.
    """
    with tempfile.TemporaryDirectory(prefix="foundry-bench-") as folder:
        result = Path(folder, "result.json")
        output = Path(folder, "output")
        output.mkdir()
        command = [sys.executable, "-m", "tests.benchmarks.worker"]
        arguments = [workload, contender, str(count), str(output), str(result)]
        try:
            done = subprocess.run(
                [*command, *arguments],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"not done after {_TIMEOUT_S:.0f} s") from None
        if not result.exists():
            said = done.stderr.strip().splitlines()
            raise Failed(f"exit status {done.returncode}: {said[-1] if said else 'no message'}")
        figures: dict[str, Any] = json.loads(result.read_text())
    if "failed" in figures:
        raise Failed(figures["failed"])
    return figures


def missing(needs: tuple[str, ...]) -> list[str]:
    """Return those of the top-level modules, or names in them, that are not there.

    Of these it imports only what is asked for a name.
    """
    return [need for need in needs if not _is_there(*need.split("."))]


def _is_there(module: str, name: str = "") -> bool:
    if importlib.util.find_spec(module) is None:
        return False
    return not name or hasattr(importlib.import_module(module), name)


# --- contenders compared --------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """A workload whose contenders are timed per operation.

    Args:
        name: as on the command line.
        title: what one operation is.
        contenders: the limit, ours and the peers.
        count: operations of one process, after a tenth as many to warm up.
        quick: the same with `--quick`.
        batches: parts of the count that are timed one by one; a process's figure is their median,
            so that a moment in which the machine was busy elsewhere does not count. One batch where
            the costs of some operations are the point.
        repeats: processes of each contender.
    """

    name: str
    title: str
    contenders: tuple[Contender, ...]
    count: int = 20_000
    quick: int = 200
    batches: int = _BATCHES
    repeats: int = 7

    def run(self, settings: Settings) -> ComparisonReport:
        """Run each contender once a repeat, the order rotated; one that fails is not run again."""
        count = settings.count or (self.quick if settings.quick else self.count)
        repeats = settings.repeats or (1 if settings.quick else self.repeats)
        report = ComparisonReport(self, count, repeats)
        ready = []
        for contender in self.contenders:
            if contender.only_long and not settings.long:
                continue
            absent = missing(contender.needs)
            if absent:
                report.skipped[contender.name] = f"needs {', '.join(absent)}; {contender.remedy}"
            else:
                ready.append(contender)
        for repeat in range(repeats):
            turn = repeat % len(ready) if ready else 0
            for contender in ready[turn:] + ready[:turn]:
                if contender.name not in report.failed:
                    report.add(contender, repeat)
        return report

    def measure(self, contender: str, count: int, directory: Path) -> dict[str, Any]:
        """Time one contender and check what it wrote."""
        chosen = next(each for each in self.contenders if each.name == contender)
        count = max(1, round(count * chosen.share))
        with contextlib.contextmanager(chosen.start)(directory) as subject:
            done = max(1, count // 10)
            subject.run(range(done))
            gc.collect()
            times = []
            for size in _batch_sizes(count, self.batches):
                steps = range(done, done + size)
                started = time.perf_counter_ns()
                own_ns = subject.run(steps)
                elapsed_ns = time.perf_counter_ns() - started
                times.append((elapsed_ns if own_ns is None else own_ns) / size / 1000)
                done += size
            if not chosen.buffered:
                subject.check(done)
        if chosen.buffered:
            subject.check(done)
        return {"us": statistics.median(times)}


def _batch_sizes(count: int, batches: int) -> list[int]:
    batches = min(batches, count)
    return [count // batches + (number < count % batches) for number in range(batches)]


@dataclass(frozen=True)
class Row:
    """One contender's figures.

    `median_us` and `spread` (half the interquartile range, as a part of the median) are over the
    repeats. `to_limit` and `to_ours` are medians of the ratios within each repeat, which leaves out
    what slowed the whole machine for a while; None where there is nothing to compare with.
    """

    name: str
    role: str
    median_us: float
    spread: float
    to_limit: float | None
    to_ours: float | None


@dataclass
class ComparisonReport:
    """Microseconds per operation by contender and repeat, and who did not take part."""

    workload: Comparison
    count: int
    repeats: int
    times_us: dict[str, dict[int, float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether no contender failed."""
        return not self.failed

    def add(self, contender: Contender, repeat: int) -> None:
        """Run a contender; one that fails loses the times it had."""
        try:
            figures = in_own_process(self.workload.name, contender.name, self.count)
        except Failed as failure:
            self.failed[contender.name] = str(failure)
            self.times_us.pop(contender.name, None)
        else:
            self.times_us.setdefault(contender.name, {})[repeat] = figures["us"]

    def rows(self) -> list[Row]:
        """Return the figures, fastest first."""
        limit, ours = self._times_of("limit"), self._times_of("ours")
        rows = []
        for contender in self.workload.contenders:
            times = self.times_us.get(contender.name)
            if times:
                middle, spread = middle_and_spread(list(times.values()))
                to_limit, to_ours = ratio(times, limit), ratio(times, ours)
                rows.append(Row(contender.name, contender.role, middle, spread, to_limit, to_ours))
        return sorted(rows, key=lambda row: row.median_us)

    def verdicts(self) -> list[Verdict]:
        """Return how near each contender that has a goal came to it."""
        rows = {row.name: row for row in self.rows()}
        known = {*self.skipped, *self.failed, *rows}
        return [
            self._verdict(contender.name, contender.goal, rows.get(contender.name))
            for contender in self.workload.contenders
            if contender.goal and contender.name in known
        ]

    def text(self) -> str:
        """Return the table."""
        return comparison_table(self)

    def data(self) -> dict[str, Any]:
        """Return the rows and the raw times."""
        return {
            "title": self.workload.title,
            "count": self.count,
            "repeats": self.repeats,
            "rows": [vars(row) for row in self.rows()],
            "times_us": {name: list(times.values()) for name, times in self.times_us.items()},
            "skipped": self.skipped,
            "failed": self.failed,
        }

    def _verdict(self, name: str, goal: Goal, row: Row | None) -> Verdict:
        peer = self._best_peer()
        if row is None:
            remark = "FAILED" if name in self.failed else "skipped"
            return Verdict(self.workload.name, name, None, None, goal, None, peer, remark)
        if goal.unit_us is not None:
            reached: float | None = row.median_us / goal.unit_us
        else:
            base = self.times_us.get(goal.than, {}) if goal.than else self._times_of("limit")
            reached = ratio(self.times_us[name], base)
        return Verdict(self.workload.name, name, row.median_us, row.to_limit, goal, reached, peer)

    def _best_peer(self) -> str:
        """Return the fastest of the others with its ratio to the limit."""
        for row in self.rows():
            if row.role == "peer":
                cost = (
                    f"{factor(row.to_limit)} ×" if row.to_limit else f"{number(row.median_us)} µs"
                )
                return f"{cost} {row.name}"
        return "–"

    def _times_of(self, role: str) -> dict[int, float]:
        for contender in self.workload.contenders:
            if contender.role == role:
                return self.times_us.get(contender.name, {})
        return {}


def middle_and_spread(values: list[float]) -> tuple[float, float]:
    """Return the median, and half the interquartile range as a part of it."""
    middle = statistics.median(values)
    if len(values) < 2:
        return middle, 0.0
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return middle, (third - first) / 2 / middle


def ratio(times: dict[int, float], base: dict[int, float]) -> float | None:
    """Return the median of the ratios within each repeat that has both, or None without any."""
    ratios = [time_us / base[repeat] for repeat, time_us in times.items() if repeat in base]
    return statistics.median(ratios) if ratios else None
