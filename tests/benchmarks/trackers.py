"""What a tracker adds to a step of 20 ms: it works on a thread of its own, and may be slow."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.benchmarks.checks import Check, expect, json_lines
from tests.benchmarks.goals import Goal
from tests.benchmarks.harness import Comparison, Contender, Start, Subject
from tests.benchmarks.metrics import METRICS
from tests.benchmarks.training import STEP_S

SLOW_S = 5.0
_CAPACITY = 16
_Sink = tuple[Any, Check]


def slow(directory: Path) -> _Sink:
    """A tracker that takes five seconds a call, with a queue that is full soon."""
    from foundry_log import SinkHandler

    class Slow(SinkHandler):
        sent = 0

        def metrics(self, step: int, epoch: int, values: Any, entry: Any) -> None:
            time.sleep(SLOW_S)
            self.sent += 1

    sink = Slow(capacity=_CAPACITY, flush_timeout_s=0.1)

    def check(count: int) -> None:
        sink.close()  # what waits still is counted as lost
        dropped, lost = sum(sink.dropped.values()), sum(sink.losses.values())
        told = f"{sink.sent} sent, {dropped} dropped, {lost} lost of {count}"
        expect(sink.sent + dropped + lost == count, told)
        expect(bool(dropped) or count <= _CAPACITY, f"it was not slow: {told}")

    return sink, check


def tensorboard(directory: Path) -> _Sink:
    """Event files, which are complete once they are flushed."""
    from foundry_log import TensorBoardHandler

    sink = TensorBoardHandler(directory / "tensorboard")

    def check(count: int) -> None:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

        sink.flush()
        (path,) = sink.directory.iterdir()
        events = EventFileLoader(str(path)).Load()
        scalars = sum(len(event.summary.value) for event in events)
        expect(scalars == count * len(METRICS), f"{scalars} scalars of {count} steps")
        lost = {**sink.dropped, **sink.losses}
        expect(not lost, f"lost: {lost}")

    return sink, check


def on_top_of_off(make: Callable[[Path], _Sink] | None) -> Start:
    """Return what starts steps that are logged in front of a tracker, by turns with steps without.

    The time is the median of the ones less the median of the others. The others are logged too, to
    a file alone; where there is no tracker to begin with, they are not.
    """

    def start(directory: Path) -> Iterator[Subject]:
        from foundry_log import MetricsLogger

        logging.getLogger("foundry_log").setLevel(logging.ERROR)
        on, off = (MetricsLogger(name, directory / name) for name in ("on", "off"))
        checks: list[Check] = []
        with ExitStack() as stack:
            for log in (on, off) if make else (on,):
                stack.callback(log.close)
                checks.append(json_lines(log.metrics_file, {"epoch": 1, "metrics": METRICS}))
            if make:
                sink, check_sink = make(directory)
                stack.callback(sink.close)
                logger = logging.getLogger("foundry_log.metrics.on")
                logger.addHandler(sink)
                stack.callback(logger.removeHandler, sink)
                checks.append(check_sink)
            turns: list[tuple[Any, list[int]]] = [
                (on.log_step, []),
                (off.log_step if make else _log_nothing, []),
            ]

            def run(steps: range) -> int:
                for step in steps:
                    for log_step, times in turns:
                        started = time.perf_counter_ns()
                        time.sleep(STEP_S)
                        log_step(step, 1, METRICS)
                        times.append(time.perf_counter_ns() - started)
                (_, logged_ns), (_, others_ns) = turns
                added_ns = statistics.median(logged_ns) - statistics.median(others_ns)
                logged_ns.clear()
                others_ns.clear()
                return round(added_ns * len(steps))

            def check(count: int) -> None:
                for each in checks:
                    each(count)

            yield Subject(run, check)

    return start


def _log_nothing(step: int, epoch: int, metrics: Any) -> None:
    pass


_GOAL = Goal(1.0, unit="% of a step of 20 ms")

TRACKERS = Comparison(
    "trackers",
    "what a tracker adds to a step that sleeps 20 ms and is logged; first what logging it does",
    (
        Contender("foundry_log, no tracker", on_top_of_off(None), role="ours", goal=_GOAL),
        Contender(
            f"foundry_log, a tracker that sleeps {SLOW_S:g} s a call",
            on_top_of_off(slow),
            role="ours",
            goal=_GOAL,
        ),
        Contender(
            "foundry_log, TensorBoard",
            on_top_of_off(tensorboard),
            role="ours",
            needs=("torch", "tensorboard"),
            remedy="pip install -e '.[torch,tensorboard]'",
            goal=_GOAL,
        ),
    ),
    count=200,
    quick=20,
    batches=4,
    repeats=3,
)
