"""What could not be shipped: counted, told once per cause, tried again after growing pauses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container

from foundry_log.handlers.losses import cause_of
from foundry_log.shipping.addresses import scrubbed
from foundry_log.shipping.own_log import log
from foundry_log.shipping.store import CorruptedError, StoreError

LONGEST_PAUSE_S = 3600.0


class Failures:
    """What has failed, and when each file is to be tried again. Used from one thread at a time.

    Args:
        first_pause_s: seconds that a file waits after its first failure; after each further one
            twice as many, up to an hour.
    """

    def __init__(self, first_pause_s: float) -> None:
        self.by_cause: Counter[str] = Counter()
        self.refusals = 0
        """Times that the store has refused, one after the other, whatever the file."""
        self._first_pause_s = first_pause_s
        self._paused: dict[str, tuple[int, float]] = {}  # path: failures, not before

    def is_due(self, path: str, now: float) -> bool:
        """Return whether a file may be tried; `now` in seconds since the epoch."""
        _, not_before = self._paused.get(path, (0, now))
        # A longer pause than there is: the clock was ahead when it began.
        return not now < not_before <= now + LONGEST_PAUSE_S

    def put_off(
        self, path: str, error: Exception, doing: str, now: float, *, is_told: bool = False
    ) -> None:
        """Note that a file has failed: it has to wait. `is_told` where the log says so already."""
        count, _ = self._paused.get(path, (0, 0.0))
        pause_s = min(self._first_pause_s * 2.0 ** min(count, 30), LONGEST_PAUSE_S)
        self._paused[path] = (count + 1, now + pause_s)
        if isinstance(error, StoreError) and not isinstance(error, CorruptedError):
            self.refusals += 1
        self.tell(error, doing, path, is_told=is_told)

    def keep_only(self, paths: Container[str]) -> None:
        """Forget the pauses of all other files, which have been shipped or are gone."""
        self._paused = {path: kept for path, kept in self._paused.items() if path in paths}

    def tell(self, error: Exception, doing: str, path: str, *, is_told: bool = False) -> None:
        """Count what went wrong; log it if its cause is new, unless `is_told`."""
        cause = cause_of(error)
        self.by_cause[cause] += 1
        if self.by_cause[cause] == 1 and not is_told:
            log.error("%s %s failed: %s", doing, path, scrubbed(str(error)) or cause)
