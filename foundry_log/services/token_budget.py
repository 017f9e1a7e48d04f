"""A budget of tokens and requests per window, shared by many callers: who may spend how much, when.

A caller locks what a call may cost, then reports what it came to, or releases the lock.

    used in the last `window_s` + locked + asked <= quota      for tokens and for requests alike

What is used counts from its report on, so that what was granted in any stretch of `window_s`
seconds never came to more than the quota, but by what callers report above their locks.
"""

from __future__ import annotations

import math
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

MAX_NAME = 200
"""Characters of an application's name at most."""
MAX_APPLICATIONS = 1_000
"""Names that are counted one by one; what comes from more is counted under OTHERS."""
OTHERS = "…"
MAX_TOKENS = 2**63 - 1
"""Tokens at most of one lock or report."""
REMEMBERED_S = 3600.0
"""Seconds for which a lock that expired may still be reported."""
MAX_REMEMBERED = 10_000
"""Expired locks at most that may still be reported, and settled ones that may be released again;
the oldest are forgotten first."""
_LEAST_WAIT_S = 1.0
_FIGURES = ("requests", "denials", "releases", "expiries", "prompt_tokens", "completion_tokens")


class BudgetError(Exception):
    """What was asked cannot be done, now or later; the text says why."""


class Grant(NamedTuple):
    """Tokens and a request are locked under these names."""

    request_id: str
    rate_request_id: str


class Denial(NamedTuple):
    """Nothing is locked; the message says why, and "would be exceeded" where waiting helps."""

    message: str


class Lock(NamedTuple):
    """What was granted to whom; times in seconds on the budget's clock."""

    request_id: str
    rate_request_id: str
    app_id: str
    tokens: int
    granted_at: float


class Settled(NamedTuple):
    """A lock that was reported or released, the seconds it was held, whether it had expired."""

    lock: Lock
    held_s: float
    was_expired: bool


class TokenBudget:
    """Grants locks as long as they fit, in memory. Used from one thread; nothing in it waits.

    Each call takes constant time on average, and what is kept is bounded by the requests that one
    window may hold, MAX_REMEMBERED expired and settled locks and MAX_APPLICATIONS names.

    Args:
        tpm_quota: tokens per window, 1 or more.
        rpm_quota: requests per window, 1 or more.
        window_s: seconds, above 0.
        lock_ttl_s: seconds after which a lock that nobody settled gives its tokens back, above 0;
            its request counts from when it was granted.
        clock: seconds that only grow.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        tpm_quota: int = 128_000,
        rpm_quota: int = 250,
        *,
        window_s: float = 60.0,
        lock_ttl_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        _check_quota("tpm_quota", tpm_quota)
        _check_quota("rpm_quota", rpm_quota)
        _check_seconds("window_s", window_s)
        _check_seconds("lock_ttl_s", lock_ttl_s)
        self.tpm_quota = tpm_quota
        self.rpm_quota = rpm_quota
        self.window_s = window_s
        self.lock_ttl_s = lock_ttl_s
        self._clock = clock
        self._locks: dict[str, Lock] = {}  # by request id, oldest first
        self._locked_tokens = 0
        self._used_tokens = _Window(window_s)
        self._used_requests = _Window(window_s)
        self._lapsed_requests = _Window(window_s)  # of locks that expired, by their grant
        self._expired: OrderedDict[str, Lock] = OrderedDict()
        self._settled: OrderedDict[str, None] = OrderedDict()
        self._untold: deque[Lock] = deque(maxlen=MAX_REMEMBERED)
        self._applications: dict[str, dict[str, int]] = {}

    def lock(self, app_id: str, token_count: int) -> Grant | Denial:
        """Lock tokens and one request, if they fit.

        Args:
            app_id: who asks, 1 to MAX_NAME characters that are not all blank.
            token_count: 0 or more.

        Raises:
            BudgetError: an argument is out of its range.
        """
        if not app_id.strip():
            raise BudgetError(f"app_id {app_id!r} is blank; give the application's name")
        if len(app_id) > MAX_NAME:
            raise BudgetError(f"app_id has {len(app_id)} characters; use {MAX_NAME} at most")
        _check_count("token_count", token_count)
        now = self._moved_on()
        application = self._application(app_id)
        if reason := self._reason_against(token_count):
            application["denials"] += 1
            return Denial(reason)
        application["requests"] += 1
        lock = Lock(uuid.uuid4().hex, uuid.uuid4().hex, app_id, token_count, now)
        self._locks[lock.request_id] = lock
        self._locked_tokens += token_count
        return Grant(lock.request_id, lock.rate_request_id)

    def report(
        self,
        request_id: str,
        prompt_tokens: int,
        completion_tokens: int,
        rate_request_id: str | None = None,
    ) -> Settled:
        """Turn a lock into what its call came to, as used now; more than was locked counts too.

        A lock that has expired may be reported for REMEMBERED_S: its tokens were used.

        Args:
            request_id: of the grant.
            prompt_tokens: 0 or more.
            completion_tokens: 0 or more.
            rate_request_id: of the same grant, or None.

        Raises:
            BudgetError: there is no such lock, it was settled before, or a count is out of range.
        """
        _check_count("prompt_tokens", prompt_tokens)
        _check_count("completion_tokens", completion_tokens)
        now = self._moved_on()
        settled = self._settle(request_id, rate_request_id, now)
        self._used_tokens.add(now, prompt_tokens + completion_tokens)
        if not settled.was_expired:
            self._used_requests.add(now, 1)
        application = self._application(settled.lock.app_id)
        application["prompt_tokens"] += prompt_tokens
        application["completion_tokens"] += completion_tokens
        return settled

    def release(self, request_id: str, rate_request_id: str | None = None) -> Settled | None:
        """Give back what was locked, the request too; nothing is left of it.

        Whoever releases behind a report, or twice, to be sure, changes nothing and gets None.

        Args:
            request_id: of the grant.
            rate_request_id: of the same grant, or None.

        Raises:
            BudgetError: there is no such lock.
        """
        if request_id in self._settled:
            return None
        settled = self._settle(request_id, rate_request_id, self._moved_on())
        self._application(settled.lock.app_id)["releases"] += 1
        return settled

    def take_expired(self) -> list[Lock]:
        """Return the locks that expired since the last call, each once, the latest 10,000."""
        self._moved_on()
        expired = list(self._untold)
        self._untold.clear()
        return expired

    def status(self) -> dict[str, Any]:
        """Return what is free, used and locked now, and what each application had since the start.

        `reset_time_seconds` is the time until all that counts now has left the window, each lock
        taken as used at its grant: 0.0 where nothing counts, otherwise 1.0 at least.
        """
        now = self._moved_on()
        return {
            "available_tokens": max(0, self._free_tokens),
            "used_tokens": self._used_tokens.total,
            "locked_tokens": self._locked_tokens,
            "available_requests": self._free_requests,
            "used_requests": self._requests_used,
            "locked_requests": len(self._locks),
            "tpm_quota": self.tpm_quota,
            "rpm_quota": self.rpm_quota,
            "reset_time_seconds": self._reset_s(now),
            "applications": {name: dict(of) for name, of in self._applications.items()},
        }

    @property
    def _free_tokens(self) -> int:
        return self.tpm_quota - self._used_tokens.total - self._locked_tokens

    @property
    def _requests_used(self) -> int:
        return self._used_requests.total + self._lapsed_requests.total

    @property
    def _free_requests(self) -> int:
        return self.rpm_quota - self._requests_used - len(self._locks)

    def _reason_against(self, tokens: int) -> str | None:
        window = f"{self.window_s:g} s"
        if tokens > self.tpm_quota:
            return (
                f"Token count {tokens} is above the quota of {self.tpm_quota} tokens in {window}: "
                "ask for less, in several calls, or give the server a higher quota"
            )
        if tokens > self._free_tokens:
            return (
                f"Token limit would be exceeded: {tokens} tokens asked, "
                f"{max(0, self._free_tokens)} of {self.tpm_quota} in {window} free, "
                f"{self._used_tokens.total} used, {self._locked_tokens} locked"
            )
        if not self._free_requests:
            return (
                f"API Rate limit would be exceeded: 0 of {self.rpm_quota} requests in {window} "
                f"free, {self._requests_used} used, {len(self._locks)} locked"
            )
        return None

    def _settle(self, request_id: str, rate_request_id: str | None, now: float) -> Settled:
        """Take a lock away and return it."""
        was_expired = request_id in self._expired
        lock = self._expired.get(request_id) or self._locks.get(request_id)
        if lock is None:
            raise BudgetError(
                "request_id is of no lock: it was never granted, was settled before, "
                "or expired too long ago"
            )
        if rate_request_id is not None and rate_request_id != lock.rate_request_id:
            raise BudgetError("rate_request_id is of another lock than request_id")
        if was_expired:
            del self._expired[request_id]
        else:
            self._unlock(lock)
        self._settled[request_id] = None
        if len(self._settled) > MAX_REMEMBERED:
            self._settled.popitem(last=False)
        return Settled(lock, now - lock.granted_at, was_expired)

    def _unlock(self, lock: Lock) -> None:
        del self._locks[lock.request_id]
        self._locked_tokens -= lock.tokens

    def _moved_on(self) -> float:
        """Return the time, with all gone that is over by then."""
        now = self._clock()
        while self._locks:
            lock = next(iter(self._locks.values()))
            if lock.granted_at + self.lock_ttl_s > now:
                break
            self._expire(lock)
        while self._expired and self._is_forgotten(next(iter(self._expired.values())), now):
            self._expired.popitem(last=False)
        for window in (self._used_tokens, self._used_requests, self._lapsed_requests):
            window.move_on(now)
        return now

    def _expire(self, lock: Lock) -> None:
        self._unlock(lock)
        self._lapsed_requests.add(lock.granted_at, 1)
        self._expired[lock.request_id] = lock
        self._untold.append(lock)
        self._application(lock.app_id)["expiries"] += 1

    def _is_forgotten(self, lock: Lock, now: float) -> bool:
        is_old = lock.granted_at + self.lock_ttl_s + REMEMBERED_S <= now
        return is_old or len(self._expired) > MAX_REMEMBERED

    def _reset_s(self, now: float) -> float:
        windows = (self._used_tokens, self._used_requests, self._lapsed_requests)
        newest = [at for window in windows if (at := window.newest) is not None]
        if self._locks:
            newest.append(next(reversed(self._locks.values())).granted_at)
        if not newest:
            return 0.0
        return max(_LEAST_WAIT_S, max(newest) + self.window_s - now)

    def _application(self, app_id: str) -> dict[str, int]:
        """Return the figures of an application, or of those that have none of their own."""
        found = self._applications.get(app_id)
        if found is None:
            name = app_id if len(self._applications) < MAX_APPLICATIONS else OTHERS
            found = self._applications.setdefault(name, dict.fromkeys(_FIGURES, 0))
        return found


class _Window:
    """A sum over the last seconds; what is added is added in the order of its time."""

    def __init__(self, seconds: float) -> None:
        self.total = 0
        self._seconds = seconds
        self._entries: deque[tuple[float, int]] = deque()

    @property
    def newest(self) -> float | None:
        """When the latest that counts was added."""
        return self._entries[-1][0] if self._entries else None

    def add(self, at: float, amount: int) -> None:
        if amount:
            self._entries.append((at, amount))
            self.total += amount

    def move_on(self, now: float) -> None:
        """Let go what is `seconds` old."""
        while self._entries and self._entries[0][0] + self._seconds <= now:
            self.total -= self._entries.popleft()[1]


def _check_quota(name: str, quota: int) -> None:
    if not _is_whole(quota) or quota < 1:
        raise ValueError(f"{name}={quota!r} is no whole number of 1 or more")


def _check_seconds(name: str, seconds: float) -> None:
    if not 0 < seconds < math.inf:
        raise ValueError(f"{name}={seconds!r} is no number of seconds above 0")


def _check_count(name: str, count: int) -> None:
    if not _is_whole(count) or not 0 <= count <= MAX_TOKENS:
        raise BudgetError(f"{name} is no whole number from 0 to {MAX_TOKENS}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
