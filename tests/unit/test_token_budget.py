"""The budget of tokens and requests: what fits, what is denied, what comes back."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from unittest.mock import ANY

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_log.services.token_budget import (
    MAX_APPLICATIONS,
    MAX_NAME,
    MAX_REMEMBERED,
    MAX_TOKENS,
    OTHERS,
    REMEMBERED_S,
    BudgetError,
    Denial,
    Grant,
    TokenBudget,
)
from tests.event_loops import Clock

pytestmark = pytest.mark.unit


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def budget(clock: Clock) -> TokenBudget:
    """1,000 tokens and 3 requests in 60 s; locks live for 300 s."""
    return TokenBudget(1000, 3, clock=clock)


def granted(budget: TokenBudget, tokens: int, app_id: str = "app") -> Grant:
    """Lock what has to fit."""
    answer = budget.lock(app_id, tokens)
    assert isinstance(answer, Grant), answer
    return answer


def denied(budget: TokenBudget, tokens: int, app_id: str = "app") -> str:
    """Why a lock does not fit."""
    answer = budget.lock(app_id, tokens)
    assert isinstance(answer, Denial), answer
    return answer.message


def figures(budget: TokenBudget, *names: str) -> tuple[Any, ...]:
    """Some of the status."""
    status = budget.status()
    return tuple(status[name] for name in names)


def tokens_of(budget: TokenBudget) -> tuple[Any, ...]:
    """Tokens that are free, used and locked."""
    return figures(budget, "available_tokens", "used_tokens", "locked_tokens")


def requests_of(budget: TokenBudget) -> tuple[Any, ...]:
    """Requests that are free, used and locked."""
    return figures(budget, "available_requests", "used_requests", "locked_requests")


def kept(value: Any) -> int:
    """Entries in all containers of an object, but for what is bounded in number alone."""
    if isinstance(value, Mapping | deque):
        return len(value)
    parts = getattr(value, "__dict__", {})
    return sum(
        kept(part)
        for name, part in parts.items()
        if name not in ("_applications", "_clock", "_settled")
    )


class TestLock:
    """What is granted and what is not."""

    def test_what_fits_is_granted_under_two_names(self, budget: TokenBudget) -> None:
        """Neither holds a colon, at which the client parts them."""
        grant = granted(budget, 400)
        assert grant.request_id != grant.rate_request_id
        assert ":" not in "".join(grant)
        assert tokens_of(budget) == (600, 0, 400)
        assert requests_of(budget) == (2, 0, 1)

    def test_the_last_token_is_granted_and_no_more(self, budget: TokenBudget) -> None:
        """GIVEN 1,000 tokens WHEN 1,000 are locked THEN one more is denied, with the figures."""
        granted(budget, 1000)
        assert denied(budget, 1) == (
            "Token limit would be exceeded: 1 tokens asked, 0 of 1000 in 60 s free, "
            "0 used, 1000 locked"
        )

    def test_requests_are_limited_as_well(self, budget: TokenBudget) -> None:
        """GIVEN 3 requests WHEN a fourth asks THEN it is denied, with the figures."""
        for _ in range(3):
            granted(budget, 1)
        assert denied(budget, 1) == (
            "API Rate limit would be exceeded: 0 of 3 requests in 60 s free, 0 used, 3 locked"
        )

    @pytest.mark.parametrize("tokens", [1001, 999_999_999, sys.maxsize])
    def test_what_never_fits_does_not_ask_to_wait(self, budget: TokenBudget, tokens: int) -> None:
        """Its text is not the one that helpers retry."""
        message = denied(budget, tokens)
        assert message.startswith(f"Token count {tokens} is above the quota of 1000 tokens in 60 s")
        assert "would be exceeded" not in message

    def test_no_tokens_are_a_request_all_the_same(self, budget: TokenBudget) -> None:
        """Zero fits, also where no token is left."""
        granted(budget, 1000)
        granted(budget, 0)
        assert requests_of(budget) == (1, 0, 2)

    @pytest.mark.parametrize("tokens", [-1, MAX_TOKENS + 1, True, 1.5, None])
    def test_what_is_no_count_is_an_error(self, budget: TokenBudget, tokens: Any) -> None:
        """It names the field and the range, and locks nothing."""
        with pytest.raises(BudgetError, match="token_count is no whole number from 0 to"):
            budget.lock("app", tokens)
        assert tokens_of(budget) == (1000, 0, 0)

    @pytest.mark.parametrize("app_id", ["", " ", "\t\n"])
    def test_a_blank_application_is_an_error(self, budget: TokenBudget, app_id: str) -> None:
        """Whose tokens they are has to be told."""
        with pytest.raises(BudgetError, match="is blank"):
            budget.lock(app_id, 1)

    def test_a_name_has_a_greatest_length(self, budget: TokenBudget) -> None:
        """200 characters are fine; a long one is not repeated in the error."""
        granted(budget, 1, "x" * MAX_NAME)
        with pytest.raises(BudgetError) as caught:
            budget.lock("x" * 1_000_000, 1)
        assert str(caught.value) == "app_id has 1000000 characters; use 200 at most"


class TestReport:
    """What was used."""

    def test_what_was_used_counts_for_a_window(self, budget: TokenBudget, clock: Clock) -> None:
        """From its report on; the rest of the lock is free at once."""
        grant = granted(budget, 400)
        clock.now += 10
        budget.report(grant.request_id, 100, 50, grant.rate_request_id)
        assert tokens_of(budget) == (850, 150, 0)
        clock.now += 59.5
        assert tokens_of(budget) == (850, 150, 0)
        assert requests_of(budget) == (2, 1, 0)
        clock.now += 0.5
        assert tokens_of(budget) == (1000, 0, 0)
        assert requests_of(budget) == (3, 0, 0)

    def test_more_than_was_locked_counts_in_full(self, budget: TokenBudget, clock: Clock) -> None:
        """GIVEN use above the quota WHEN others ask THEN nothing is granted until it fits."""
        budget.report(granted(budget, 10).request_id, 1000, 500)
        assert tokens_of(budget) == (0, 1500, 0)
        assert "0 of 1000 in 60 s free, 1500 used" in denied(budget, 1)
        clock.now += 60
        granted(budget, 1000)

    def test_it_tells_what_was_settled(self, budget: TokenBudget, clock: Clock) -> None:
        """The lock, and for how long it was held."""
        grant = granted(budget, 10, "mine")
        clock.now += 2.5
        settled = budget.report(grant.request_id, 1, 2)
        assert (settled.lock.app_id, settled.lock.tokens) == ("mine", 10)
        assert (settled.held_s, settled.was_expired) == (2.5, False)

    @pytest.mark.parametrize("counts", [(-1, 0), (0, -1), (MAX_TOKENS + 1, 0), (0.5, 0)])
    def test_what_is_no_count_is_an_error(self, budget: TokenBudget, counts: Any) -> None:
        """The lock stays."""
        grant = granted(budget, 10)
        with pytest.raises(BudgetError, match="_tokens is no whole number"):
            budget.report(grant.request_id, *counts)
        assert tokens_of(budget) == (990, 0, 10)

    def test_nothing_used_is_a_request(self, budget: TokenBudget) -> None:
        """Zero tokens can be reported."""
        budget.report(granted(budget, 10).request_id, 0, 0)
        assert tokens_of(budget) == (1000, 0, 0)
        assert requests_of(budget) == (2, 1, 0)


class TestRelease:
    """What comes back."""

    def test_tokens_and_request_come_back_at_once(self, budget: TokenBudget) -> None:
        """As if nothing had been asked."""
        grant = granted(budget, 400)
        budget.release(grant.request_id, grant.rate_request_id)
        assert tokens_of(budget) == (1000, 0, 0)
        assert requests_of(budget) == (3, 0, 0)


class TestNames:
    """A lock is settled once, by its own names."""

    @pytest.mark.parametrize("first", ["report", "release"])
    def test_a_lock_is_reported_once(self, budget: TokenBudget, first: str) -> None:
        """Neither twice, nor behind a release: the first stands."""
        request_id = granted(budget, 10).request_id
        getattr(budget, first)(request_id, *((1, 1) if first == "report" else ()))
        before = budget.status()
        with pytest.raises(BudgetError, match="request_id is of no lock"):
            budget.report(request_id, 1, 1)
        assert budget.status() == {**before, "reset_time_seconds": ANY}

    @pytest.mark.parametrize("first", ["report", "release"])
    def test_a_release_behind_another_settlement_changes_nothing(
        self, budget: TokenBudget, first: str
    ) -> None:
        """The spec's cycle is lock, report, release: what is left to give back is nothing."""
        request_id = granted(budget, 10).request_id
        getattr(budget, first)(request_id, *((1, 1) if first == "report" else ()))
        before = budget.status()
        assert budget.release(request_id) is None
        assert budget.status() == {**before, "reset_time_seconds": ANY}

    def test_settled_locks_are_remembered_in_a_bounded_number(self, clock: Clock) -> None:
        """Then a release is that of an unknown lock."""
        budget = TokenBudget(10, 1, clock=clock)
        first = granted(budget, 1).request_id
        budget.release(first)
        for _ in range(MAX_REMEMBERED):
            assert budget.release(first) is None
            budget.release(granted(budget, 1).request_id)
        with pytest.raises(BudgetError, match="request_id is of no lock"):
            budget.release(first)

    @pytest.mark.parametrize("request_id", ["", ":", "unknown", "a:b:c"])
    def test_an_unknown_name_is_an_error(self, budget: TokenBudget, request_id: str) -> None:
        """Whatever it looks like."""
        with pytest.raises(BudgetError, match="request_id is of no lock"):
            budget.report(request_id, 1, 1)
        with pytest.raises(BudgetError, match="request_id is of no lock"):
            budget.release(request_id)

    def test_the_rate_name_has_to_be_of_the_same_lock(self, budget: TokenBudget) -> None:
        """GIVEN another's rate name WHEN reported THEN an error, and both locks stay."""
        first, second = granted(budget, 10), granted(budget, 20)
        with pytest.raises(BudgetError, match="rate_request_id is of another lock"):
            budget.report(first.request_id, 1, 1, second.rate_request_id)
        with pytest.raises(BudgetError, match="rate_request_id is of another lock"):
            budget.release(first.request_id, "")
        assert tokens_of(budget) == (970, 0, 30)


class TestExpiry:
    """Locks whose holder died."""

    def test_a_lock_expires_and_gives_its_tokens_back(
        self, budget: TokenBudget, clock: Clock
    ) -> None:
        """Not before its time."""
        granted(budget, 1000)
        clock.now += 299.5
        assert tokens_of(budget) == (0, 0, 1000)
        clock.now += 0.5
        assert tokens_of(budget) == (1000, 0, 0)
        assert requests_of(budget) == (3, 0, 0)

    def test_its_request_counts_from_its_grant(self, clock: Clock) -> None:
        """GIVEN locks that live shorter than a window WHEN one expires THEN its request stays."""
        budget = TokenBudget(1000, 3, lock_ttl_s=10, clock=clock)
        granted(budget, 1000)
        clock.now += 10
        assert tokens_of(budget) == (1000, 0, 0)
        assert requests_of(budget) == (2, 1, 0)
        clock.now += 50
        assert requests_of(budget) == (3, 0, 0)

    def test_a_late_report_counts(self, budget: TokenBudget, clock: Clock) -> None:
        """The tokens were used, whoever got the lock's room meanwhile; its request is long past."""
        grant = granted(budget, 1000)
        clock.now += 301
        granted(budget, 1000)
        settled = budget.report(grant.request_id, 500, 0)
        assert settled.was_expired
        assert tokens_of(budget) == (0, 500, 1000)
        assert requests_of(budget) == (2, 0, 1)
        with pytest.raises(BudgetError):
            budget.report(grant.request_id, 500, 0)

    def test_a_late_release_gives_nothing_back_again(
        self, budget: TokenBudget, clock: Clock
    ) -> None:
        """It is taken, since its caller did nothing wrong."""
        grant = granted(budget, 400)
        clock.now += 301
        settled = budget.release(grant.request_id)
        assert settled is not None and settled.was_expired
        assert tokens_of(budget) == (1000, 0, 0)

    def test_after_an_hour_it_is_forgotten(self, budget: TokenBudget, clock: Clock) -> None:
        """Then a report is an error."""
        grants = [granted(budget, 1) for _ in range(2)]
        clock.now += 300 + REMEMBERED_S - 1
        budget.report(grants[0].request_id, 1, 1)
        clock.now += 1
        with pytest.raises(BudgetError):
            budget.report(grants[1].request_id, 1, 1)

    def test_only_so_many_are_remembered(self, clock: Clock) -> None:
        """The latest; nothing grows without bound."""
        budget = TokenBudget(MAX_REMEMBERED * 2, MAX_REMEMBERED * 2, clock=clock)
        first = granted(budget, 1)
        last = [granted(budget, 1) for _ in range(MAX_REMEMBERED)][-1]
        clock.now += 301
        with pytest.raises(BudgetError):
            budget.report(first.request_id, 1, 1)
        budget.report(last.request_id, 1, 1)
        assert len(budget.take_expired()) == MAX_REMEMBERED
        assert kept(budget) < MAX_REMEMBERED + 10

    def test_each_is_told_once(self, budget: TokenBudget, clock: Clock) -> None:
        """Oldest first, whichever call found it."""
        granted(budget, 1, "first")
        clock.now += 1
        granted(budget, 2, "second")
        assert budget.take_expired() == []
        clock.now += 300
        budget.status()
        assert [(lock.app_id, lock.tokens) for lock in budget.take_expired()] == [
            ("first", 1),
            ("second", 2),
        ]
        assert budget.take_expired() == []


class TestStatus:
    """What callers and people are told."""

    def test_an_unused_budget_is_free(self, budget: TokenBudget) -> None:
        """Nothing needs waiting for."""
        assert budget.status() == {
            "available_tokens": 1000,
            "used_tokens": 0,
            "locked_tokens": 0,
            "available_requests": 3,
            "used_requests": 0,
            "locked_requests": 0,
            "tpm_quota": 1000,
            "rpm_quota": 3,
            "reset_time_seconds": 0.0,
            "applications": {},
        }

    def test_the_reset_is_when_all_that_counts_has_left(
        self, budget: TokenBudget, clock: Clock
    ) -> None:
        """After that wait the whole quota fits: what helpers that retry rely on."""
        for _ in range(2):
            budget.report(granted(budget, 400).request_id, 400, 0)
            clock.now += 20
        (reset_s,) = figures(budget, "reset_time_seconds")
        assert reset_s == 40.0
        clock.now += reset_s
        granted(budget, 1000)

    def test_a_lock_counts_from_its_grant_but_a_second_at_least(
        self, budget: TokenBudget, clock: Clock
    ) -> None:
        """When it will be settled nobody knows."""
        granted(budget, 400)
        clock.now += 20
        assert figures(budget, "reset_time_seconds") == (40.0,)
        clock.now += 100
        assert figures(budget, "reset_time_seconds") == (1.0,)

    def test_applications_are_counted_from_the_start(
        self, budget: TokenBudget, clock: Clock
    ) -> None:
        """Who had how much: what a bill is made of."""
        budget.report(granted(budget, 100, "a").request_id, 30, 20)
        budget.release(granted(budget, 100, "a").request_id)
        granted(budget, 100, "a")
        denied(budget, 2000, "b")
        clock.now += 400
        assert budget.status()["applications"] == {
            "a": {
                "requests": 3,
                "denials": 0,
                "releases": 1,
                "expiries": 1,
                "prompt_tokens": 30,
                "completion_tokens": 20,
            },
            "b": {
                "requests": 0,
                "denials": 1,
                "releases": 0,
                "expiries": 0,
                "prompt_tokens": 0,
                "completion_tokens": 0,
            },
        }

    def test_the_names_are_bounded(self, clock: Clock) -> None:
        """GIVEN thousands of names WHEN counted THEN a thousand have figures, others share some."""
        budget = TokenBudget(10_000, 10_000, clock=clock)
        for number in range(MAX_APPLICATIONS + 500):
            granted(budget, 1, f"app-{number}")
        applications = budget.status()["applications"]
        assert len(applications) == MAX_APPLICATIONS + 1
        assert applications[OTHERS]["requests"] == 500

    def test_changing_it_changes_nothing(self, budget: TokenBudget) -> None:
        """It is a copy."""
        granted(budget, 1)
        budget.status()["applications"]["app"]["requests"] = 99
        assert budget.status()["applications"]["app"]["requests"] == 1


class TestSettingUp:
    """What cannot be a budget is refused."""

    @pytest.mark.parametrize("quota", [0, -1, 1.5, True, "100", None])
    @pytest.mark.parametrize("name", ["tpm_quota", "rpm_quota"])
    def test_quotas_are_whole_and_above_zero(self, name: str, quota: Any) -> None:
        """Field, value and rule are told."""
        with pytest.raises(ValueError, match=f"{name}={quota!r} is no whole number of 1 or more"):
            TokenBudget(**{name: quota})

    @pytest.mark.parametrize("seconds", [0, -1.0, float("inf"), float("nan")])
    @pytest.mark.parametrize("name", ["window_s", "lock_ttl_s"])
    def test_times_are_above_zero(self, name: str, seconds: float) -> None:
        """Field, value and rule are told."""
        with pytest.raises(ValueError, match=f"{name}={seconds!r} is no number of seconds"):
            TokenBudget(**{name: seconds})

    def test_the_defaults_are_those_of_the_contract(self) -> None:
        """128,000 tokens and 250 requests in 60 s."""
        budget = TokenBudget()
        assert (budget.tpm_quota, budget.rpm_quota, budget.window_s) == (128_000, 250, 60.0)
        assert budget.lock_ttl_s == 300.0


def test_memory_is_bounded_by_what_a_window_holds(clock: Clock) -> None:
    """GIVEN 5,000 calls WHEN each is settled or expires THEN one window's is kept and no more."""
    budget = TokenBudget(1000, 50, window_s=10, lock_ttl_s=5, clock=clock)
    most = 0
    for number in range(5000):
        answer = budget.lock("app", 20)
        if isinstance(answer, Grant) and number % 3:
            settle = (budget.release, (lambda name: budget.report(name, 10, 5)))[number % 2]
            settle(answer.request_id)
        budget.take_expired()
        clock.now += 0.25
        most = max(most, kept(budget) - len(budget._expired))
    assert most <= 50 * 3
    assert len(budget._expired) <= MAX_REMEMBERED


@dataclass
class Entry:
    """One grant of the model, and what became of it."""

    request_id: str
    tokens: int
    at: float
    ends: float
    settled_at: float | None = None
    used: int | None = None  # None where it was released

    def is_locked(self, now: float) -> bool:
        """Whether nobody settled it, and its time is not over."""
        return self.settled_at is None and now < self.ends

    def has_expired(self) -> bool:
        """Whether its time was over before anybody settled it."""
        return self.settled_at is None or self.settled_at >= self.ends


class Recount:
    """The budget once more, without a running total: it counts all grants anew for each answer."""

    def __init__(self, tokens: int, requests: int, window_s: float, ttl_s: float) -> None:
        self.quotas = (tokens, requests)
        self.window_s = window_s
        self.ttl_s = ttl_s
        self.entries: list[Entry] = []

    def counts(self, since: float, now: float) -> bool:
        return now - since < self.window_s

    def used(self, now: float) -> tuple[int, int]:
        """Tokens and requests used in the window that ends now."""
        tokens = sum(
            entry.used
            for entry in self.entries
            if entry.used is not None
            and entry.settled_at is not None
            and self.counts(entry.settled_at, now)
        )
        return tokens, sum(self.is_used_request(entry, now) for entry in self.entries)

    def is_used_request(self, entry: Entry, now: float) -> bool:
        if entry.is_locked(now):
            return False
        if entry.has_expired():
            return self.counts(entry.at, now)
        assert entry.settled_at is not None
        return entry.used is not None and self.counts(entry.settled_at, now)

    def locked(self, now: float) -> tuple[int, int]:
        """Tokens and requests that are locked now."""
        locks = [entry.tokens for entry in self.entries if entry.is_locked(now)]
        return sum(locks), len(locks)

    def fits(self, tokens: int, now: float) -> bool:
        asked = (tokens, 1)
        sums = zip(self.used(now), self.locked(now), asked, self.quotas, strict=True)
        return all(used + locked + more <= quota for used, locked, more, quota in sums)

    def granted_between(self, after: float, until: float) -> tuple[int, int]:
        """What the grants of a stretch of time came to, so far, at most their locks."""
        inside = [entry for entry in self.entries if after < entry.at <= until]
        return sum(map(self.came_to, inside)), sum(
            not (entry.settled_at is not None and entry.used is None) for entry in inside
        )

    def came_to(self, entry: Entry) -> int:
        if entry.is_locked(self.now):
            return entry.tokens
        if entry.has_expired():
            return 0
        return min(entry.used or 0, entry.tokens)

    now = 0.0


LATEST = st.integers(1, 4)  # counted from the last grant, so that most actions hit one
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("lock"), st.integers(0, 12)),
        st.tuples(st.just("wait"), st.integers(1, 30)),
        st.tuples(st.just("report"), LATEST, st.integers(0, 9), st.integers(0, 9)),
        st.tuples(st.just("release"), LATEST),
    ),
    min_size=10,
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(10, 30),
    st.integers(1, 6),
    st.sampled_from([2.0, 5.0, 8.0]),
    st.sampled_from([1.0, 5.0, 12.0]),
    ACTIONS,
)
def test_no_window_is_granted_more_than_the_quota_and_nothing_leaks(
    tokens: int, requests: int, window_s: float, ttl_s: float, actions: list[tuple[Any, ...]]
) -> None:
    """GIVEN any order of calls and times THEN each answer is as recounted, and all comes back."""
    clock = Clock()
    budget = TokenBudget(tokens, requests, window_s=window_s, lock_ttl_s=ttl_s, clock=clock)
    model = Recount(tokens, requests, window_s, ttl_s)
    for name, *arguments in actions:
        if name == "wait":
            clock.now += arguments[0] / 4
        elif name == "lock":
            check_lock(budget, model, clock.now, arguments[0])
        else:
            check_settling(budget, model, clock.now, name, *arguments)
        check_status(budget, model, clock.now)
        check_each_window(model, clock.now)
    check_all_comes_back(budget, clock)


def check_lock(budget: TokenBudget, model: Recount, now: float, tokens: int) -> None:
    """A lock is granted exactly where the recount says that it fits."""
    fits = model.fits(tokens, now)
    answer = budget.lock("app", tokens)
    assert isinstance(answer, Grant) is fits
    if isinstance(answer, Grant):
        model.entries.append(Entry(answer.request_id, tokens, now, now + model.ttl_s))


def check_settling(
    budget: TokenBudget, model: Recount, now: float, name: str, index: int, *counts: int
) -> None:
    """A lock is settled once, and an unknown one never."""
    entry = model.entries[-index] if index <= len(model.entries) else None
    settle = getattr(budget, name)
    if entry is not None and entry.settled_at is not None and name == "release":
        assert settle(entry.request_id) is None
        return
    if entry is None or entry.settled_at is not None:
        with pytest.raises(BudgetError):
            settle(entry.request_id if entry else "unknown", *counts)
        return
    assert settle(entry.request_id, *counts).was_expired is (now >= entry.ends)
    entry.settled_at = now
    entry.used = sum(counts) if name == "report" else None


def check_status(budget: TokenBudget, model: Recount, now: float) -> None:
    """All figures are those of the recount."""
    used, locked = model.used(now), model.locked(now)
    free = [q - u - n for q, u, n in zip(model.quotas, used, locked, strict=True)]
    assert tokens_of(budget) == (max(0, free[0]), used[0], locked[0])
    assert requests_of(budget) == (free[1], used[1], locked[1])
    counting = any((*used, *locked))
    assert (figures(budget, "reset_time_seconds")[0] > 0) is counting


def check_each_window(model: Recount, now: float) -> None:
    """What was granted in any stretch of a window's length is within the quota."""
    model.now = now
    for until in {entry.at for entry in model.entries}:
        granted_tokens, granted_requests = model.granted_between(until - model.window_s, until)
        assert granted_tokens <= model.quotas[0]
        assert granted_requests <= model.quotas[1]


def check_all_comes_back(budget: TokenBudget, clock: Clock) -> None:
    """Once all locks are over and a window has passed, all is free and nothing is kept."""
    clock.now += budget.lock_ttl_s + budget.window_s
    assert tokens_of(budget) == (budget.tpm_quota, 0, 0)
    assert requests_of(budget) == (budget.rpm_quota, 0, 0)
    assert kept(budget) == len(budget._expired) + len(budget.take_expired())
    clock.now += REMEMBERED_S
    budget.status()
    assert kept(budget) == 0
