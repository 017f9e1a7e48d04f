"""Back-off: how long a wait is, and who waits."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundry_log.backoff import MAX_ASKED_S, MAX_WAIT_S, Pace, wait_s

pytestmark = pytest.mark.unit


def shortest() -> float:
    """Randomness that adds nothing."""
    return 0.0


class Clock:
    """Moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Let others run, and let the time pass once for all who sleep at once."""
        until = self.now + seconds
        await asyncio.sleep(0)
        self.now = max(self.now, until)


class TestWait:
    @pytest.mark.parametrize("attempt, base", [(0, 3), (1, 5), (2, 9), (3, 17), (4, 33), (5, 60)])
    def test_the_base_doubles_up_to_a_minute(self, attempt: int, base: float) -> None:
        """One second and the delay times a power of two; random from half of it to all."""
        assert wait_s(attempt, 2.0, random=shortest) == base / 2
        assert wait_s(attempt, 2.0, random=lambda: 1.0) == base

    def test_a_store_that_asks_for_time_gets_it_and_jitter_on_top(self) -> None:
        """Never sooner than it said."""
        assert wait_s(0, 2.0, 20, random=shortest) == 20
        assert wait_s(0, 2.0, 20, random=lambda: 1.0) == 21.5

    def test_what_is_asked_for_may_exceed_the_cap_but_not_five_minutes(self) -> None:
        """A wrong header does not stop shipping for a day."""
        assert wait_s(9, 2.0, 120, random=shortest) == 120
        assert wait_s(9, 2.0, 86400, random=shortest) == MAX_ASKED_S

    @pytest.mark.parametrize("nothing", [None, 0, -5, float("nan")])
    def test_what_is_no_time_is_not_asked_for(self, nothing: float | None) -> None:
        """The base counts alone."""
        assert wait_s(0, 2.0, nothing, random=shortest) == 1.5

    @given(
        st.integers(0, 10**9),
        st.floats(0, 1e300),
        st.none() | st.floats(),
        st.floats(0, 1, exclude_max=True),
    )
    def test_every_wait_is_within_its_bounds(
        self, attempt: int, delay_s: float, asked_s: float | None, luck: float
    ) -> None:
        """Nothing overflows, however often it failed."""
        found = wait_s(attempt, delay_s, asked_s, random=lambda: luck)
        assert 0.5 <= found <= MAX_ASKED_S + MAX_WAIT_S / 2


@pytest.mark.asyncio
class TestPace:
    def test_one_failure_holds_nobody_else_back(self) -> None:
        """One request may fail of itself."""

        async def main() -> None:
            clock = Clock()
            pace = Pace(2.0, clock=clock, sleep=clock.sleep, random=shortest)
            assert pace.failed(0) == 1001.5
            await pace.turn()
            assert clock.now == 1000

        asyncio.run(main())

    def test_a_store_that_names_a_time_holds_all_back(self) -> None:
        """Four workers do not hammer a server that said when to come again."""

        async def main() -> None:
            clock = Clock()
            pace = Pace(2.0, clock=clock, sleep=clock.sleep, random=shortest)
            pace.failed(0, 20)
            await asyncio.gather(*(pace.turn() for _ in range(4)))
            assert clock.now == 1020

        asyncio.run(main())

    def test_two_failures_without_a_success_between_hold_all_back(self) -> None:
        """Then it is the store and not a request."""

        async def main() -> None:
            clock = Clock()
            pace = Pace(2.0, clock=clock, sleep=clock.sleep, random=shortest)
            pace.failed(0)
            pace.succeeded()
            pace.failed(0)
            await pace.turn()
            assert clock.now == 1000
            pace.failed(1)
            await pace.turn()
            assert clock.now == 1002.5

        asyncio.run(main())

    def test_whoever_waits_waits_on_when_the_time_is_put_off(self) -> None:
        """A later answer of the store counts for those who wait already."""

        async def main() -> None:
            clock = Clock()
            pace = Pace(2.0, clock=clock, sleep=clock.sleep, random=shortest)
            waiting = asyncio.create_task(pace.turn(pace.failed(0, 10)))
            await asyncio.sleep(0)
            pace.failed(0, 30)
            await waiting
            assert clock.now == 1030

        asyncio.run(main())
