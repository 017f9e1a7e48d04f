"""Statistics of every metric: those of the values, whoever adds, in bounded memory."""

from __future__ import annotations

import contextlib
import math
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_log.metric_statistics import MAX_STEPS, MAX_VALUES, MetricStatistics
from foundry_log.running_stats import RunningStats

pytestmark = pytest.mark.unit

VALUES = st.one_of(
    st.floats(-1e9, 1e9),
    st.integers(-(10**6), 10**6),
    st.sampled_from([math.nan, math.inf, -math.inf, 10**400, True, None, "1.0", [1.0]]),
)
WIDE = {f"metric_{number}": 1.0 for number in range(400)}
STEPS = st.lists(st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3), max_size=40)


def counts(value: Any) -> bool:
    """The rule, said another way."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def expected(values: list[Any]) -> Any:
    """Each value taken in by itself."""
    stats = RunningStats()
    for value in filter(counts, values):
        stats.add(value)
    return pytest.approx(stats.summary(), rel=1e-9, abs=1e-6)


@settings(deadline=None)
@given(STEPS, st.sampled_from([1, 7, MAX_STEPS]))
def test_they_are_those_of_the_values(steps: list[dict[str, Any]], times: int) -> None:
    """Whatever the names of a step and their order, before and after steps are taken in."""
    statistics = MetricStatistics()
    for step in steps * times:
        statistics.add(step)
    for name in "abcd":
        values = [step[name] for step in steps * times if name in step]
        assert statistics.summary(name) == expected(values)


def test_a_metric_without_finite_numbers_has_none() -> None:
    """As an unknown one."""
    statistics = MetricStatistics()
    for _ in range(2 * MAX_STEPS):
        statistics.add({"loss": math.nan, "note": "warm-up"})
    assert statistics.summary("loss") == statistics.summary("note") == statistics.summary("x") == {}


def test_integers_stay_what_they_are() -> None:
    """The extremes of a counter are not rounded to floats."""
    statistics = MetricStatistics()
    for step in range(2 * MAX_STEPS):
        statistics.add({"tokens": 2**60 + 1 + step})
    assert statistics.summary("tokens")["min"] == 2**60 + 1


def test_a_long_run_keeps_its_precision() -> None:
    """The spread of a metric that hardly moves, far from zero."""
    generator, statistics = random.Random(1), MetricStatistics()
    values = [1e9 + generator.random() for _ in range(20 * MAX_STEPS + 100)]
    for value in values:
        statistics.add({"loss": value})
    mean = math.fsum(values) / len(values)
    spread = math.dist(values, [mean] * len(values)) / math.sqrt(len(values) - 1)
    summary = statistics.summary("loss")
    assert summary["std"] == pytest.approx(spread, rel=1e-7)
    assert summary["mean"] == pytest.approx(mean, rel=1e-15)


@pytest.mark.parametrize("width", [0, 1, 8, 1000, MAX_VALUES // 2, MAX_VALUES + 1])
def test_few_steps_wait(width: int) -> None:
    """Memory is bounded by steps and by values; a step that has more by itself never waits."""
    statistics = MetricStatistics()
    step = {f"metric_{number}": float(number) for number in range(width)}
    for _ in range(min(MAX_STEPS, MAX_VALUES // (width or 1)) + 2):
        statistics.add(step)
        waiting = len(statistics._entries) - 1
        assert waiting < MAX_STEPS
        assert waiting * width <= MAX_VALUES


def test_threads_lose_no_value() -> None:
    """Several add, and one asks, at the same time."""
    statistics = MetricStatistics()
    each, stop = 20 * MAX_STEPS, threading.Event()
    seen: list[float] = []

    def add() -> None:
        for step in range(each):
            statistics.add({"loss": float(step), "rate": 1.0})

    def ask() -> None:
        while not stop.is_set():
            seen.append(statistics.summary("loss").get("count", 0))

    adding = [threading.Thread(target=add) for _ in range(4)]
    asking = threading.Thread(target=ask)
    for thread in [asking, *adding]:
        thread.start()
    for thread in adding:
        thread.join(60)
    stop.set()
    asking.join(60)
    assert statistics.summary("loss")["count"] == 4 * each
    assert statistics.summary("rate")["mean"] == 1.0
    assert seen == sorted(seen)


@contextlib.contextmanager
def interrupted(statistics: MetricStatistics, heard: list[float]) -> Iterator[None]:
    """Add a step and ask in the handler of a real signal, again and again."""
    going_on = True

    def on_alarm(*_: Any) -> None:
        statistics.add({**WIDE, "alarm": 1.0})
        heard.append(statistics.summary("alarm")["count"])
        if going_on:
            signal.setitimer(signal.ITIMER_REAL, 0.0003)

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.0003)
    try:
        yield
    finally:
        going_on = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_handler_may_add_and_ask_anywhere() -> None:
    """It hears of every step of its own, and none is lost or doubled."""
    statistics, heard, added = MetricStatistics(), [], 0
    limit = time.monotonic() + 20
    with interrupted(statistics, heard):
        while len(heard) < 400 and time.monotonic() < limit:
            statistics.add(WIDE)
            added += 1
    assert len(heard) >= 400
    assert heard == list(range(1, len(heard) + 1))
    assert {statistics.summary(name)["count"] for name in WIDE} == {added + len(heard)}


FORKS = """
import contextlib, os, signal, threading, warnings
from foundry_log.metric_statistics import MAX_STEPS, MetricStatistics
warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the point
statistics, stop = MetricStatistics(), threading.Event()
def add():
    while not stop.is_set():
        statistics.add({"loss": 1.0})
def status_of_child():
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    with contextlib.suppress(BaseException):
        signal.alarm(20)
        before = statistics.summary("loss").get("count", 0)
        for _ in range(3 * MAX_STEPS):
            statistics.add({"loss": 1.0})
        is_right = statistics.summary("loss")["count"] == before + 3 * MAX_STEPS
        os._exit(not (is_right and len(statistics._entries) <= MAX_STEPS))
    os._exit(2)
thread = threading.Thread(target=add)
thread.start()
print([status_of_child() for _ in range(20)])
stop.set()
thread.join()
"""


def test_the_child_of_a_fork_goes_on_alone() -> None:
    """Also where another thread was taking steps in while it forked.

    In an interpreter of its own: coverage has a lock that a fork may find taken.
    """
    done = subprocess.run(
        [sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == (f"{[0] * 20}\n", "")
