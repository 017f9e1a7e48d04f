"""Alarms of metrics: what is said, when it is over, and what is no alarm."""

from __future__ import annotations

import math
import random
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterable
from types import FrameType
from typing import Any

import pytest

from foundry_log import metric_alarms
from foundry_log.metric_alarms import (
    EVERY,
    LEAST,
    MAX_NAMES,
    MAX_NOT_FINITE,
    MAX_VALUES,
    STAYS,
    WINDOW,
    Alarm,
    MetricAlarms,
)

pytestmark = pytest.mark.unit


def noisy(count: int, level: float = 2.0, seed: int = 1) -> list[float]:
    generator = random.Random(seed)
    return [generator.gauss(level, 0.1) for _ in range(count)]


def alarms_of(
    values: Iterable[Any], name: str = "loss", spike_z: float | None = 8.0
) -> list[Alarm]:
    alarms = MetricAlarms(spike_z)
    return [
        alarm for step, value in enumerate(values) for alarm in alarms.check(step, {name: value})
    ]


def kinds(found: list[Alarm]) -> list[tuple[str, bool]]:
    return [(alarm.kind, alarm.is_over) for alarm in found]


class TestNonFinite:
    """NaN and infinities, of any metric."""

    @pytest.mark.parametrize(
        ("value", "kind"), [(math.nan, "nan"), (math.inf, "infinity"), (-math.inf, "infinity")]
    )
    def test_it_is_said_once_until_it_is_over(self, value: float, kind: str) -> None:
        """GIVEN three steps of it WHEN it is finite again THEN a begin, and an end with both."""
        begun, over = alarms_of([1.0, value, value, value, 2.0, 3.0], "accuracy")
        assert (begun.metric, begun.kind, begun.is_over) == ("accuracy", kind, False)
        assert (over.kind, over.since_step, over.steps, over.value) == (kind, 1, 3, 2.0)

    def test_infinity_after_nan_is_the_same_alarm(self) -> None:
        """A metric that goes back and forth is not spoken of at each step."""
        assert kinds(alarms_of([math.nan, math.inf, math.nan, 1])) == [
            ("nan", False),
            ("nan", True),
        ]

    def test_text_and_large_numbers_are_no_alarm(self) -> None:
        """Nor do they hide one beside them."""
        values = {"a": "text", "b": None, "c": 10**400, "d": True, "e": [math.nan]}
        alarms = MetricAlarms(8.0)
        assert alarms.check(0, values) == []
        assert kinds(alarms.check(1, {**values, "f": math.nan})) == [("nan", False)]
        assert alarms.check(2, values) == []
        assert kinds(alarms.check(3, {"f": 10**400})) == [("nan", True)]

    def test_a_sum_beyond_the_floats_is_no_infinity(self) -> None:
        """Two finite values."""
        assert MetricAlarms(8.0).check(0, {"a": 1.7e308, "b": 1.7e308}) == []

    def test_a_metric_that_vanishes_does_not_leak(self) -> None:
        """GIVEN ever new names that are NaN THEN a bounded number of them is remembered."""
        alarms = MetricAlarms(8.0)
        for step in range(3):
            names = [f"metric_{step}_{number}" for number in range(MAX_NOT_FINITE // 2)]
            assert len(alarms.check(step, dict.fromkeys(names, math.nan))) == len(names)
        assert len(alarms._not_finite) == MAX_NOT_FINITE // 2 * 2
        assert kinds(alarms.check(0, {names[-1]: 1.0})) == [("nan", True)]

    def test_the_norms_of_a_large_model_are_said_once(self) -> None:
        """GIVEN more names than are watched for spikes, NaN on and on THEN each is said once."""
        alarms = MetricAlarms(8.0)
        norms = {f"grad_norm/{number}": math.nan for number in range(3 * MAX_NAMES)}
        assert len(alarms.check(0, norms)) == len(norms)
        assert [alarms.check(step, norms) for step in range(1, 5)] == [[]] * 4


class TestSpikes:
    """Losses and gradient norms that leap up."""

    @pytest.mark.parametrize("name", ["loss", "eval_loss", "train/loss", "grad_norm"])
    @pytest.mark.parametrize("before", [LEAST, WINDOW, 1000])
    def test_it_is_said_once_until_it_is_over(self, name: str, before: int) -> None:
        """GIVEN noise and three high values THEN a begin with score and median, and an end."""
        usual = noisy(before)
        begun, over = alarms_of([*usual, 9.0, 8.0, 9.0, 2.0, 2.1], name)
        window = usual[-WINDOW:]
        logs = [math.log(value) for value in window]
        mad = statistics.median(abs(each - statistics.median(logs)) for each in logs)
        assert (begun.kind, begun.value) == ("spike", 9.0)
        assert begun.median == statistics.median(window)
        score = 0.6745 * (math.log(9.0) - statistics.median(logs)) / mad
        assert begun.z_score == pytest.approx(score)
        assert (over.kind, over.since_step, over.steps) == ("spike", before, 3)

    def test_what_is_no_spike(self) -> None:
        """Other names, falls, too few values before, and where nobody wants to know."""
        high = [*noisy(200), 9.0]
        assert alarms_of(high, "lr") == alarms_of(high, "grad_norm_max") == []
        assert alarms_of(high, spike_z=None) == []
        assert alarms_of([*noisy(200), -9.0]) == []
        assert alarms_of([*noisy(LEAST - 1), 9.0]) == []

    @pytest.mark.parametrize("level", [2.0, 0.0])
    def test_spike_z_is_the_score(self, level: float) -> None:
        """Just below it nothing is said, just above it is; of logarithms where there are such."""
        usual = noisy(LEAST, level)
        places = [math.log(value) for value in usual] if level else usual
        median = statistics.median(places)
        mad = statistics.median(abs(place - median) for place in places)
        for score, count in ((19.9, 0), (20.1, 1)):
            place = median + score * mad / 0.6745
            high = math.exp(place) if level else place
            assert len(alarms_of([*usual, high], spike_z=20.0)) == count

    def test_the_values_of_a_spike_do_not_become_usual(self) -> None:
        """GIVEN a spike that comes again and again THEN each is said."""
        again = [value for _ in range(10) for value in [*[9.0] * 20, *noisy(20)]]
        assert len(alarms_of([*noisy(WINDOW), *again])) == 20

    def test_a_level_that_stays_is_the_usual_one(self) -> None:
        """It ends the spike, and what is above it is a spike again."""
        high = noisy(STAYS + 3 * EVERY, 9.0)
        begun, over, second = alarms_of([*noisy(WINDOW), *high, 30.0])
        assert not begun.is_over
        assert (over.steps, over.since_step) == (STAYS, WINDOW)
        assert (second.is_over, second.value) == (False, 30.0)

    def test_nan_neither_ends_a_spike_nor_becomes_usual(self) -> None:
        """It has an alarm of its own."""
        found = alarms_of([*noisy(WINDOW), 9.0, math.nan, 9.0, 2.0])
        assert kinds(found) == [("spike", False), ("nan", False), ("nan", True), ("spike", True)]
        assert found[-1].steps == 2

    @pytest.mark.parametrize("level", [2.0, 1e-9, 1e9, 0.0])
    def test_a_constant_metric_does_not_alarm_on_rounding(self, level: float) -> None:
        """Nor one that is 0 all the time; ten per cent are no spike, fifty are."""
        usual = [level * (1 + 1e-7 * (step % 2)) for step in range(WINDOW)]
        assert alarms_of([*usual, level * 1.000001, level * 1.1, level]) == []
        assert len(alarms_of([*usual, level * 1.5])) == bool(level)

    def test_a_metric_that_is_mostly_zero(self) -> None:
        """What it is now and then is nothing unusual, nor what is a little above; fives are."""
        usual = [0.0, 0.0, 0.0, 1.0] * 100
        assert alarms_of([*usual, 1.1]) == []
        assert len(alarms_of([*usual, 5.0])) == 1

    def test_a_loss_that_falls_is_compared_with_what_is_usual_now(self) -> None:
        """GIVEN values from 10 down to 1 WHEN 5 comes long afterwards THEN it is a spike."""
        falling = [10 - 9 * step / 100 for step in range(100)]
        assert alarms_of([*falling, *noisy(3 * WINDOW, 1.0)]) == []
        assert len(alarms_of([*falling, *noisy(3 * WINDOW, 1.0), 5.0])) == 1

    def test_integers_count_and_truth_values_do_not(self) -> None:
        """A loss of whole numbers."""
        assert len(alarms_of([2, 3, 4] * 40 + [200])) == 1
        assert alarms_of([False] * WINDOW + [True], "has_loss") == []

    def test_metrics_that_are_logged_in_turns(self) -> None:
        """GIVEN an evaluation's metrics between those of steps THEN both are watched."""
        alarms, found = MetricAlarms(8.0), []
        for step, value in enumerate([*noisy(100), 9.0]):
            found += alarms.check(step, {"loss": value})
            found += alarms.check(step, {"eval_loss": value})
        assert [alarm.metric for alarm in found] == ["loss", "eval_loss"]

    def test_memory_is_bounded(self) -> None:
        """Of each name the window, of waiting steps a few, of names the first ones."""
        alarms = MetricAlarms(8.0)
        for step in range(3 * MAX_NAMES):
            alarms.check(step, {"loss": 1.0 + step % 3, f"{step}_loss": 1.0})
        assert len(alarms._watches) == MAX_NAMES
        assert len(alarms._watches["loss"]._values) <= WINDOW
        assert len(alarms._waiting) < EVERY

    def test_steps_with_many_metrics_do_not_pile_up(self) -> None:
        """Fewer of them wait; none of those that nobody watches."""
        norms = {f"norm/{number}": 1.0 for number in range(MAX_VALUES // 10)}
        alarms = MetricAlarms(8.0)
        for step in range(EVERY):
            alarms.check(step, {"loss": 1.0, **norms})
            assert len(alarms._waiting) <= 10
        alarms = MetricAlarms(8.0)
        alarms.check(0, norms)
        assert alarms._waiting == []

    def test_noise_raises_no_false_alarm(self) -> None:
        """A hundred thousand normal values; and of gradient norms, which scatter by factors."""
        assert alarms_of(noisy(100_000)) == []
        generator = random.Random(1)
        assert alarms_of([generator.lognormvariate(0, 1) for _ in range(20_000)]) == []

    def test_values_at_the_end_of_the_floats(self) -> None:
        """Nothing is raised, and where no larger float could be a spike none is."""
        assert alarms_of([1e300, 1e-300] * WINDOW + [1.7e308]) == []
        assert len(alarms_of([-1e308] * WINDOW + [1e308])) == 1


def test_threads_raise_nothing_and_are_told_once() -> None:
    """GIVEN several threads that log NaN at once THEN one of them is told, and one of the end."""
    alarms, found = MetricAlarms(8.0), []
    start = threading.Barrier(4)

    def work(value: float) -> None:
        start.wait(20)
        for step in range(2000):
            found.extend(alarms.check(step, {"accuracy": value, "loss": float(step % 7)}))

    for value in (math.nan, 1.0):
        threads = [threading.Thread(target=work, args=(value,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert kinds(found) == [("nan", False), ("nan", True)]


@pytest.mark.parametrize("nested", [2.0, 3.5, 900.0, math.nan])
@pytest.mark.parametrize("outer", [[2.0], [800.0], [800.0] * STAYS, [800.0, 2.0]])
def test_a_check_may_come_in_between_any_two_lines(outer: list[float], nested: float) -> None:
    """As a signal handler or another thread does it: nothing is raised, and alarms go on."""
    *before, last = outer
    moment, came_in = 0, True
    while came_in:
        alarms, came_in, lines = MetricAlarms(8.0), False, 0
        for step in range(64):
            alarms.check(step, {"loss": 2.0 + step % 3})
        for value in before:
            alarms.check(64, {"loss": value})

        def come_in(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal came_in, lines
            if frame.f_code.co_filename == metric_alarms.__file__ and event == "line":
                lines += 1
                if lines == moment + 1:  # noqa: B023 - called in this turn of the loop only
                    came_in = True
                    alarms.check(65, {"loss": nested})  # noqa: B023
            return come_in

        traced = sys.gettrace()
        sys.settrace(come_in)
        try:
            alarms.check(66, {"loss": last})
        finally:
            sys.settrace(traced)
        for step in range(67, 200):
            alarms.check(step, {"loss": 2.0 + step % 3})
        assert kinds(alarms.check(200, {"loss": 1e9})) == [("spike", False)]
        moment += 1
    assert moment > 10


def test_a_signal_handler_may_log_anywhere() -> None:
    """It is not blocked, and nothing is raised."""
    alarms, heard = MetricAlarms(8.0), 0

    def on_alarm(*_: Any) -> None:
        nonlocal heard
        alarms.check(heard, {"loss": 2.0 + heard % 3, "nan": math.nan if heard % 2 else 1.0})
        heard += 1

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    limit = time.monotonic() + 20
    try:
        while heard < 300 and time.monotonic() < limit:
            alarms.check(heard, {"loss": 2.0 + heard % 3, "nan": math.nan if heard % 2 else 1.0})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert heard >= 300
