"""The retry of what the token budget denies: what is tried again, when, and what never is."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import logging
import math
import weakref
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from foundry_log.context import bound_fields
from foundry_log.services.retry_helpers import (
    TokenLimitRetry,
    with_token_limit_retry,
    with_token_limit_retry_decorator,
)
from tests.event_loops import Clock, in_loop

pytestmark = pytest.mark.unit

DENIAL = "Token limit would be exceeded: 500 tokens asked, 20 of 1000 in 60 s free"
RATE_DENIAL = "API Rate limit would be exceeded: 0 of 250 requests in 60 s free"
AT_ONCE = -1.0
"""A reset whose wait is none: the tests of the public functions take no time."""


class Budget:
    """Answers each call of `get_status` with the next of its statuses, the last for ever."""

    def __init__(self, *statuses: Any) -> None:
        self._statuses = list(statuses) or [{"reset_time_seconds": AT_ONCE}]
        self.asked = 0

    async def get_status(self) -> Any:
        self.asked += 1
        status = self._statuses[min(self.asked, len(self._statuses)) - 1]
        if isinstance(status, BaseException):
            raise status
        return status


class Model:
    """Raises its errors one after the other, then answers."""

    def __init__(self, *errors: BaseException) -> None:
        self._errors = list(errors)
        self.calls = 0
        self.given: list[Any] = []

    async def ask(self, *args: Any, **kwargs: Any) -> str:
        self.calls += 1
        self.given.append((args, kwargs))
        if self._errors:
            raise self._errors.pop(0)
        return "answer"


def denials(count: int, text: str = DENIAL) -> list[ValueError]:
    return [ValueError(text) for _ in range(count)]


async def waits_of(*statuses: Any, random: float = 0.0, **settings: Any) -> list[float]:
    """The seconds that are waited where a call is denied once for each status."""
    clock = Clock()
    retry = TokenLimitRetry(
        Budget(*statuses),
        len(statuses) + 1,
        sleep=clock.sleep,
        clock=clock,
        random=lambda: random,
        **settings,
    )
    assert await retry.call(Model(*denials(len(statuses))).ask) == "answer"
    return clock.waits


class TestFunction:
    @in_loop
    async def test_the_first_attempt_may_succeed(self) -> None:
        """What is not denied is called once, and nobody asks for the status."""
        model, budget = Model(), Budget()
        assert await with_token_limit_retry(model.ask, budget) == "answer"
        assert (model.calls, budget.asked) == (1, 0)

    @in_loop
    async def test_a_denied_call_is_made_again(self) -> None:
        """After a denial the status is asked for once, and the call made once more."""
        model, budget = Model(*denials(1)), Budget()
        assert await with_token_limit_retry(model.ask, budget) == "answer"
        assert (model.calls, budget.asked) == (2, 1)

    @in_loop
    async def test_arguments_are_handed_on_each_time(self) -> None:
        """Positions behind `max_retries` and keywords are the function's."""
        model = Model(*denials(1))
        await with_token_limit_retry(model.ask, Budget(), 3, "question", 7, sure=True)
        assert model.given == [(("question", 7), {"sure": True})] * 2

    @in_loop
    async def test_three_attempts_are_the_default(self) -> None:
        """Without `max_retries` the third denial is the caller's."""
        model = Model(*denials(5))
        with pytest.raises(ValueError, match="would be exceeded"):
            await with_token_limit_retry(model.ask, Budget())
        assert model.calls == 3

    @in_loop
    async def test_one_attempt_waits_for_nothing(self) -> None:
        """With `max_retries` 1 a denial is raised without a look at the status."""
        model, budget = Model(*denials(1)), Budget()
        with pytest.raises(ValueError, match="would be exceeded"):
            await with_token_limit_retry(model.ask, budget, 1)
        assert (model.calls, budget.asked) == (1, 0)

    @in_loop
    async def test_the_last_denial_is_raised_as_it_was(self) -> None:
        """It is the very object, without causes of ours."""
        errors = denials(2)
        with pytest.raises(ValueError) as caught:
            await with_token_limit_retry(Model(*errors).ask, Budget(), 2)
        assert caught.value is errors[1]
        assert (caught.value.__cause__, caught.value.__context__) == (None, None)

    @in_loop
    async def test_a_plain_function_is_called_too(self) -> None:
        """Its value is returned as it is."""
        errors = denials(1)

        def ask(question: str) -> list[str]:
            if errors:
                raise errors.pop()
            return [question]

        assert await with_token_limit_retry(ask, Budget(), 2, "question") == ["question"]

    @in_loop
    async def test_an_awaitable_of_a_plain_function_is_awaited(self) -> None:
        """A lambda round a coroutine function, or a partial, does as well."""
        model = Model(*denials(1))
        assert await with_token_limit_retry(lambda: model.ask(1), Budget()) == "answer"
        assert await with_token_limit_retry(functools.partial(model.ask, 1), Budget()) == "answer"

    @in_loop
    async def test_none_is_a_value(self) -> None:
        """A function that returns nothing has succeeded."""
        calls = []
        assert await with_token_limit_retry(calls.append, Budget(), 3, 1) is None
        assert calls == [1]


class TestDecorator:
    def test_it_keeps_name_and_docstring(self) -> None:
        """What is decorated looks as before, and is a coroutine function."""

        @with_token_limit_retry_decorator(Budget())
        async def ask(question: str) -> str:
            """Ask the model."""
            return question

        assert (ask.__name__, ask.__doc__) == ("ask", "Ask the model.")
        assert inspect.iscoroutinefunction(ask)
        assert list(inspect.signature(ask).parameters) == ["question"]

    @in_loop
    async def test_a_decorated_function_is_tried_again(self) -> None:
        """Each call has attempts of its own, with the call's arguments."""
        model = Model(*denials(2))
        ask = with_token_limit_retry_decorator(Budget(), max_retries=3)(model.ask)
        assert await ask("question", n=1) == "answer"
        assert model.given == [(("question",), {"n": 1})] * 3
        assert await ask("another") == "answer"
        assert model.calls == 4

    @in_loop
    async def test_a_method_is_decorated_too(self) -> None:
        """`self` is handed on."""

        class Service:
            def __init__(self) -> None:
                self.errors = denials(1)

            @with_token_limit_retry_decorator(Budget())
            async def ask(self, question: str) -> str:
                if self.errors:
                    raise self.errors.pop()
                return question

        assert await Service().ask("question") == "question"

    @in_loop
    async def test_a_plain_function_becomes_a_coroutine_function(self) -> None:
        """It has to be awaited like all that are decorated."""

        @with_token_limit_retry_decorator(Budget())
        def double(n: int) -> int:
            return 2 * n

        assert await double(4) == 8

    @in_loop
    async def test_attempts_of_a_decorated_function_run_out(self) -> None:
        """`max_retries` counts attempts there, too."""
        model = Model(*denials(9))
        with pytest.raises(ValueError, match="would be exceeded"):
            await with_token_limit_retry_decorator(Budget(), 2)(model.ask)()
        assert model.calls == 2

    @in_loop
    async def test_calls_at_once_do_not_share_attempts(self) -> None:
        """Ten calls of one function, each denied once, all get their answer."""
        models = [Model(*denials(1)) for _ in range(10)]

        @with_token_limit_retry_decorator(Budget(), 2)
        async def ask(model: Model) -> str:
            return await model.ask()

        assert await asyncio.gather(*map(ask, models)) == ["answer"] * 10

    @in_loop
    async def test_it_takes_jitter_and_a_deadline(self) -> None:
        """The options of the function are the decorator's too."""
        ask = with_token_limit_retry_decorator(
            Budget({"reset_time_seconds": 60}), retry_jitter_s=0.5, retry_deadline_s=10
        )(Model(*denials(1)).ask)
        with pytest.raises(ValueError, match="would be exceeded"):
            await ask()


class TestWaitTime:
    @in_loop
    async def test_the_reset_and_a_second_are_waited(self) -> None:
        """`reset_time_seconds` of 12.5 makes 13.5 s."""
        assert await waits_of({"reset_time_seconds": 12.5}) == [13.5]

    @in_loop
    async def test_a_reset_of_zero_waits_a_second(self) -> None:
        """The margin alone."""
        assert await waits_of({"reset_time_seconds": 0}) == [1.0]

    @in_loop
    async def test_a_reset_that_has_been_waits_no_negative_time(self) -> None:
        """A server whose clock is ahead is asked at once."""
        assert await waits_of({"reset_time_seconds": -30}) == [0.0]

    @in_loop
    async def test_each_denial_asks_anew(self) -> None:
        """The status of the moment counts, and not the first one."""
        resets = [{"reset_time_seconds": seconds} for seconds in (10, 3, 0.5)]
        assert await waits_of(*resets) == [11.0, 4.0, 1.5]

    @in_loop
    async def test_jitter_is_added(self) -> None:
        """Up to `retry_jitter_s` on top, never less than the reset."""
        assert await waits_of({"reset_time_seconds": 10}, random=0.5, jitter_s=4) == [13.0]

    @in_loop
    async def test_jitter_spreads_those_that_wait_together(self) -> None:
        """With the real randomness waits differ, and stay in their range."""
        clock = Clock()
        budget = Budget({"reset_time_seconds": 10})
        for _ in range(20):
            retry = TokenLimitRetry(budget, 2, 5.0, sleep=clock.sleep, clock=clock)
            await retry.call(Model(*denials(1)).ask)
        assert len(set(clock.waits)) > 1
        assert all(11 <= seconds <= 16 for seconds in clock.waits)

    @in_loop
    async def test_a_wait_that_would_pass_the_deadline_is_not_begun(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The denial is raised at once, and the log says why."""
        clock, model = Clock(), Model(*denials(2))
        budget = Budget({"reset_time_seconds": 60})
        retry = TokenLimitRetry(budget, 3, 0.0, 30.0, sleep=clock.sleep, clock=clock)
        with pytest.raises(ValueError, match="would be exceeded"):
            await retry.call(model.ask)
        assert (clock.waits, model.calls) == ([], 1)
        (record,) = caplog.records
        assert "after the 30 s allowed" in record.getMessage()
        assert record.levelno == logging.WARNING

    @in_loop
    async def test_the_deadline_counts_from_the_first_call(self) -> None:
        """All attempts and waits together, and not each wait for itself."""
        clock, model = Clock(), Model(*denials(9))
        budget = Budget({"reset_time_seconds": 9})
        retry = TokenLimitRetry(budget, 9, 0.0, 25.0, sleep=clock.sleep, clock=clock)
        with pytest.raises(ValueError, match="would be exceeded"):
            await retry.call(model.ask)
        assert (clock.waits, model.calls) == ([10.0, 10.0], 3)

    @in_loop
    async def test_a_wait_that_ends_with_the_deadline_is_begun(self) -> None:
        """The deadline itself is still in time."""
        assert await waits_of({"reset_time_seconds": 9}, deadline_s=10) == [10.0]


class TestErrors:
    @pytest.mark.parametrize(
        "error",
        [
            ValueError("Token count 200000 is above the quota of 128000 tokens in 60 s"),
            ValueError("Missing template variable: 'x'"),
            ValueError(),
            RuntimeError("would be exceeded"),
            TimeoutError("would be exceeded"),
            KeyError("would be exceeded"),
        ],
        ids=repr,
    )
    @in_loop
    async def test_other_errors_pass_at_once(self, error: Exception) -> None:
        """Other texts of a ValueError, and other classes whatever their text is."""
        model, budget = Model(error), Budget()
        with pytest.raises(type(error)) as caught:
            await with_token_limit_retry(model.ask, budget)
        assert caught.value is error
        assert (model.calls, budget.asked) == (1, 0)

    @in_loop
    async def test_another_error_after_a_denial_passes(self) -> None:
        """The second attempt's error is the caller's."""
        model = Model(*denials(1), RuntimeError("the model is down"))
        with pytest.raises(RuntimeError, match="the model is down"):
            await with_token_limit_retry(model.ask, Budget())
        assert model.calls == 2

    @pytest.mark.parametrize(
        "status",
        [
            None,
            {},
            {"reset_time_seconds": None},
            {"reset_time_seconds": "5"},
            {"reset_time_seconds": True},
            {"reset_time_seconds": math.nan},
            {"reset_time_seconds": math.inf},
            {"reset_time_seconds": 10**400},
            "status",
        ],
        ids=lambda status: repr(status)[:40],
    )
    @in_loop
    async def test_without_a_finite_reset_the_denial_passes(
        self, status: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where nobody can tell how long to wait nobody waits, and the log says so."""
        errors = denials(1)
        model = Model(*errors)
        with pytest.raises(ValueError) as caught:
            await with_token_limit_retry(model.ask, Budget(status))
        assert caught.value is errors[0]
        assert model.calls == 1
        assert "is not known" in caplog.text

    @in_loop
    async def test_a_status_that_raises_lets_the_denial_pass(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The caller gets the denial, and the log the other error."""
        errors = denials(1)
        with pytest.raises(ValueError) as caught:
            await with_token_limit_retry(
                Model(*errors).ask, Budget(RuntimeError("password=hunter2 is wrong"))
            )
        assert caught.value is errors[0]
        assert "the status of the budget could not be had" in caplog.text
        assert "hunter2" not in caplog.text

    @in_loop
    async def test_a_text_that_cannot_be_had_is_no_denial(self) -> None:
        """A ValueError with a broken `__str__` passes as it is."""

        class BrokenError(ValueError):
            def __str__(self) -> str:
                raise RuntimeError

        with pytest.raises(BrokenError):
            await with_token_limit_retry(Model(BrokenError()).ask, Budget())

    @in_loop
    async def test_an_invalid_value_that_quotes_a_denial_is_none(self) -> None:
        """pydantic's error is a ValueError, and quotes what was wrong."""
        with pytest.raises(ValidationError, match="would be exceeded") as invalid:
            TypeAdapter(int).validate_python("would be exceeded")
        model, budget = Model(invalid.value), Budget()
        with pytest.raises(ValidationError):
            await with_token_limit_retry(model.ask, budget)
        assert (model.calls, budget.asked) == (1, 0)

    @pytest.mark.parametrize("attempts", [0, -1, 1.5, True, None, "3"])
    @in_loop
    async def test_a_wrong_number_of_attempts_is_refused(self, attempts: Any) -> None:
        """At once, before any call; by the decorator before there is a function."""
        model = Model()
        with pytest.raises(ValueError, match=r"max_retries=.* must be .* 1 or more"):
            await with_token_limit_retry(model.ask, Budget(), attempts)
        with pytest.raises(ValueError, match=r"max_retries=.* must be .* 1 or more"):
            with_token_limit_retry_decorator(Budget(), attempts)
        assert model.calls == 0

    @pytest.mark.parametrize("name", ["retry_jitter_s", "retry_deadline_s"])
    @pytest.mark.parametrize("seconds", [-0.1, math.nan, math.inf])
    @in_loop
    async def test_wrong_seconds_are_refused(self, name: str, seconds: float) -> None:
        """With the field, the value and the rule."""
        with pytest.raises(ValueError, match=f"{name}={seconds!r} must be"):
            with_token_limit_retry_decorator(Budget(), **{name: seconds})


class TestCancelling:
    @in_loop
    async def test_a_wait_is_left_at_once(self) -> None:
        """Cancelling does not wait for the reset, makes no further call and leaves no task."""
        asked = asyncio.Event()
        model = Model(*denials(1))

        class Slow:
            async def get_status(self) -> dict[str, float]:
                asked.set()
                return {"reset_time_seconds": 3600.0}

        tasks = asyncio.all_tasks()
        task = asyncio.create_task(with_token_limit_retry(model.ask, Slow()))
        await asked.wait()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert model.calls == 1
        assert asyncio.all_tasks() == tasks

    @in_loop
    async def test_an_attempt_is_cancelled_too(self) -> None:
        """CancelledError is none of the errors that are tried again."""
        began = asyncio.Event()

        async def ask() -> None:
            began.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(with_token_limit_retry(ask, Budget()))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    @in_loop
    async def test_asking_for_the_status_is_cancelled_too(self) -> None:
        """It is not taken for a failing status."""
        with pytest.raises(asyncio.CancelledError):
            await with_token_limit_retry(Model(*denials(1)).ask, Budget(asyncio.CancelledError()))

    @in_loop
    async def test_a_failed_attempt_is_let_go_during_the_wait(self) -> None:
        """What it held in memory, a prompt for instance, is not kept until the next one."""

        class Prompt:
            pass

        prompts: list[weakref.ref[Prompt]] = []

        async def ask() -> str:
            prompt = Prompt()
            prompts.append(weakref.ref(prompt))
            if len(prompts) == 1:
                raise ValueError(DENIAL)
            return "answer"

        async def looks(_: float) -> None:
            gc.collect()
            assert prompts[0]() is None

        retry = TokenLimitRetry(Budget(), sleep=looks)
        assert await retry.call(ask) == "answer"
        assert len(prompts) == 2


class TestRateLimits:
    @in_loop
    async def test_requests_a_minute_are_waited_for_as_well(self) -> None:
        """The denial of the other quota is tried again too."""
        model = Model(*denials(1, RATE_DENIAL))
        assert await with_token_limit_retry(model.ask, Budget()) == "answer"

    @in_loop
    async def test_tokens_and_requests_take_turns(self) -> None:
        """One call may be denied for either reason, one after the other."""
        model = Model(*denials(1, RATE_DENIAL), *denials(1))
        assert await with_token_limit_retry(model.ask, Budget(), 3) == "answer"
        assert model.calls == 3

    @in_loop
    async def test_each_wait_is_one_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        """With the attempt that was denied, the seconds and the server's reason."""
        caplog.set_level(logging.DEBUG, "foundry_log")
        clock = Clock()
        retry = TokenLimitRetry(Budget({"reset_time_seconds": 4}), sleep=clock.sleep, clock=clock)
        await retry.call(Model(*denials(1), *denials(1, RATE_DENIAL)).ask)
        told = [(r.levelname, r.attempt, r.wait_s, r.reason) for r in caplog.records]
        assert told == [("WARNING", 1, 5.0, DENIAL), ("WARNING", 2, 5.0, RATE_DENIAL)]
        assert {record.getMessage() for record in caplog.records} == {"waiting for budget"}

    @in_loop
    async def test_records_of_an_attempt_carry_its_number(self) -> None:
        """What the function logs itself is told apart by `attempt`; outside there is none."""
        seen, errors = [], denials(2)

        async def ask() -> None:
            seen.append(bound_fields().get("attempt"))
            if errors:
                raise errors.pop()

        await with_token_limit_retry(ask, Budget())
        assert seen == [1, 2, 3]
        assert "attempt" not in bound_fields()

    @pytest.mark.services
    @in_loop
    async def test_a_real_budget_is_waited_for(self) -> None:
        """Through client and server: denied while a lock is held, granted once it is released."""
        pytest.importorskip(
            "aiohttp", reason="needs test-services: pip install 'foundry_log[test-services]'"
        )
        from foundry_log.services.budget_server import serving
        from foundry_log.services.token_budget import TokenBudget
        from foundry_log.services.token_client import TokenClient

        async with (
            serving(TokenBudget(1000, 10)) as url,
            TokenClient("app", url, bearer_token="") as client,
        ):
            _, held, _ = await client.lock_tokens(900)
            waits = []

            async def sleep(seconds: float) -> None:
                waits.append(seconds)
                assert await client.release_tokens(held)

            async def ask() -> str:
                allowed, request_id, why = await client.lock_tokens(500)
                if not allowed:
                    raise ValueError(why)
                return request_id

            request_id = await TokenLimitRetry(client, sleep=sleep).call(ask)
            assert await client.report_usage(request_id, 100, 20)
        assert len(waits) == 1
        assert 2 <= waits[0] <= 61
