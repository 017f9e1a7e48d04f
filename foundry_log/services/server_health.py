"""Why the budget server has not done a thing, and whether it works: told once, until it does."""

from __future__ import annotations

import logging

from foundry_log.services.observing import Observer


class BudgetServerError(Exception):
    """Why the budget server has not done what it was asked for; callers get its text as a value.

    Args:
        text: without secrets.
        cause: what failures of the same kind have in common.
        may_pass: whether another attempt may succeed.
        may_be_done: whether the server may have done it all the same.
        is_of_request: whether it is this request that is wrong, rather than the server.
        asked_s: seconds that the server asks to wait.
    """

    def __init__(
        self,
        text: str,
        cause: str,
        *,
        may_pass: bool = False,
        may_be_done: bool = False,
        is_of_request: bool = False,
        asked_s: float | None = None,
    ) -> None:
        super().__init__(text)
        self.cause = cause
        self.may_pass = may_pass
        self.may_be_done = may_be_done
        self.is_of_request = is_of_request
        self.asked_s = asked_s


class ServerHealth:
    """Says once per cause that the budget server fails, and once that it answers again.

    It never raises. Safe from several threads: two that fail at the same moment may both tell.

    Args:
        observer: says it.
        is_tracked: whether failures go to the observer's tracker, in place of a WARNING.
    """

    def __init__(self, observer: Observer, *, is_tracked: bool) -> None:
        self._observer = observer
        self._is_tracked = is_tracked
        self._causes: set[str] = set()
        self._failed_calls = 0

    def is_failing_by(self, cause: str) -> bool:
        """Whether failures of this kind have been reported since the server worked."""
        return cause in self._causes

    def works(self) -> None:
        """Note that the server has answered."""
        if self._causes:
            told = "the budget server answers again"
            self._observer.say(logging.INFO, told, failed_calls=self._failed_calls)
            self._causes.clear()
            self._failed_calls = 0

    def fails(self, failure: BudgetServerError) -> None:
        """Note why a call has failed."""
        if failure.is_of_request:
            return
        self._failed_calls += 1
        if self.is_failing_by(failure.cause):
            return
        self._causes.add(failure.cause)
        told = "the budget server fails; calls that do so in the same way are counted"
        if self._is_tracked:
            self._observer.failed(told, failure)
        else:
            self._observer.say(logging.WARNING, told, reason=str(failure))
