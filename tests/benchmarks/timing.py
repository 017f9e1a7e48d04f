"""A timed block of code that does nothing, logging off."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from tests.benchmarks.checks import counted
from tests.benchmarks.goals import Goal
from tests.benchmarks.harness import Comparison, Contender, Subject


class _Block:
    """The least that a timing block can be."""

    __slots__ = ("_durations", "_started")

    def __init__(self, durations: list[int]) -> None:
        self._durations = durations

    def __enter__(self) -> None:
        self._started = time.perf_counter_ns()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._durations.append(time.perf_counter_ns() - self._started)


def limit(directory: Path) -> Iterator[Subject]:
    durations: list[int] = []

    def run(steps: range) -> None:
        for _ in steps:
            with _Block(durations):
                pass

    yield Subject(run, counted(lambda: len(durations)))


def ours(directory: Path) -> Iterator[Subject]:
    from foundry_log import PerformanceLogger

    logger = logging.getLogger("bench")
    logger.setLevel(logging.WARNING)
    perf = PerformanceLogger(logger)

    def run(steps: range) -> None:
        for _ in steps:
            with perf.time_block("forward"):
                pass

    yield Subject(run, counted(lambda: int(perf.get_timing_statistics("forward")["count"])))


def codetiming(directory: Path) -> Iterator[Subject]:
    from codetiming import Timer

    def run(steps: range) -> None:
        for _ in steps:
            with Timer("forward", logger=None):
                pass

    yield Subject(run, counted(lambda: int(Timer.timers.count("forward"))))


def torchtnt(directory: Path) -> Iterator[Subject]:
    from torchtnt.utils.timer import Timer

    timer = Timer()

    def run(steps: range) -> None:
        for _ in steps:
            with timer.time("forward"):
                pass

    yield Subject(run, counted(lambda: len(timer.recorded_durations["forward"])))


def dict_of_lists(directory: Path) -> Iterator[Subject]:
    timers: dict[str, list[float]] = {}

    @contextlib.contextmanager
    def time_block(name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            timers.setdefault(name, []).append(time.perf_counter() - started)

    def run(steps: range) -> None:
        for _ in steps:
            with time_block("forward"):
                pass

    yield Subject(run, counted(lambda: len(timers["forward"])))


TIME_BLOCK = Comparison(
    "time_block",
    "a timed block, logging off",
    (
        Contender("limit: two clock reads + append", limit, role="limit"),
        Contender("foundry_log time_block", ours, role="ours", goal=Goal(1.6)),
        Contender("codetiming", codetiming, needs=("codetiming",)),
        Contender("torchtnt", torchtnt, needs=("torchtnt", "torch")),
        Contender("contextmanager, dict of lists", dict_of_lists),
    ),
    count=200_000,
    quick=2_000,
)
