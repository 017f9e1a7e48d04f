"""Times of a device that works on while the program goes on: marks in its queue of work."""

from __future__ import annotations

import contextvars
import math
import os
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from foundry_log.extras import import_extra
from foundry_log.files.locks import thread_lock

MAX_OUTSTANDING = 4096
"""Stretches whose end the device has not reached; one more waits for the oldest. CUDA itself lets
about a thousand launches be outstanding, so that what comes here had to wait anyway."""
LOOKS = 4
"""Stretches that the end of a block takes at most: more than it adds, so that they do not pile up,
and few, so that no block pays for many."""


class Mark(Protocol):
    """A place in a device's queue of work. Each method may raise what the device raises."""

    def is_done(self) -> bool:
        """Return whether the device has passed it, without waiting."""
        ...

    def wait(self) -> None:
        """Return once the device has passed it."""
        ...

    def seconds_since(self, earlier: Any) -> float:
        """Return the device's seconds from an earlier mark of its queue, once both are done."""
        ...


@runtime_checkable
class DeviceQueue(Protocol):
    """A device that does what it is given in order, later. Its `str` is the device's name."""

    def mark(self) -> Mark:
        """Return a mark behind all that the queue was given so far, without waiting."""
        ...


def queue_of(device: object) -> DeviceQueue | None:
    """Return the queue of a device; None for those that the clock of the host measures.

    Args:
        device: `cuda`, for the current GPU and stream at the time, `cuda:1` or a `torch.device`; a
            `DeviceQueue` is its own. Other devices of torch (`cpu`, `mps`) have none.

    Raises:
        ImportError: torch is missing.
        ValueError: it is no device, or there is no such GPU.
    """
    if isinstance(device, DeviceQueue):
        return device
    if str(device) == "cpu":
        return None
    torch = import_extra("torch", "torch", f"time_block(device={str(device)!r})")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r} is no device of torch; use 'cuda:0'") from error
    if found.type != "cuda":
        return None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (found.index or 0) >= count:
        raise ValueError(f"device={str(device)!r} is not there: this machine has {count} GPUs")
    return CudaQueue(found, torch)


class CudaQueue:
    """The current stream of a GPU, marked by CUDA events.

    Args:
        device: a `torch.device`; without an index it is the current GPU.
        torch: the module.
    """

    def __init__(self, device: Any, torch: Any) -> None:
        self._device = device
        self._torch = torch

    def __str__(self) -> str:
        return str(self._device)

    def mark(self) -> CudaMark:
        """Record an event on the stream that is current now; some µs."""
        event = self._torch.cuda.Event(enable_timing=True)
        event.record(self._torch.cuda.current_stream(self._device))
        return CudaMark(event)


class CudaMark:
    """A CUDA event."""

    __slots__ = ("_event",)

    def __init__(self, event: Any) -> None:
        self._event = event

    def is_done(self) -> bool:
        """Return whether the device has passed it."""
        return bool(self._event.query())

    def wait(self) -> None:
        """Return once the device has passed it."""
        self._event.synchronize()

    def seconds_since(self, earlier: CudaMark) -> float:
        """Return the device's seconds from an earlier mark."""
        return float(earlier._event.elapsed_time(self._event)) / 1000


class ManualQueue:
    """A device whose work the caller does: for tests, of yours too.

    Args:
        name: its `str`.
    """

    def __init__(self, name: str = "manual") -> None:
        self.name = name
        self.waits = 0
        """How often somebody has waited for a mark that was not done."""
        self._given = self._done = 0.0

    def __str__(self) -> str:
        return self.name

    def mark(self) -> ManualMark:
        """Return a mark behind the work that was submitted."""
        return ManualMark(self, self._given)

    def submit(self, seconds: float) -> None:
        """Give the device work for so many seconds, which it does not begin by itself."""
        self._given += seconds

    def work(self, seconds: float = float("inf")) -> None:
        """Let the device work for so many seconds, or until nothing is left."""
        self._done = min(self._done + seconds, self._given)


class ManualMark:
    """A place in a `ManualQueue`; waiting for it makes the device work so far."""

    __slots__ = ("_at", "_queue")

    def __init__(self, queue: ManualQueue, at: float) -> None:
        self._queue = queue
        self._at = at

    def is_done(self) -> bool:
        """Return whether the device has passed it."""
        return self._queue._done >= self._at

    def wait(self) -> None:
        """Return once the device has passed it."""
        if not self.is_done():
            self._queue.waits += 1
            self._queue._done = self._at

    def seconds_since(self, earlier: ManualMark) -> float:
        """Return the device's seconds from an earlier mark."""
        return self._at - earlier._at


class Stretch(NamedTuple):
    """What lies between two marks, and the context in which it ended."""

    name: str
    level: int
    device: str
    began: Mark
    ended: Mark
    context: contextvars.Context


class Outstanding:
    """Stretches whose end the device has not passed yet, oldest first.

    Thread-safe; a signal handler may come in between. The child of a fork has none. A stretch that
    the device cannot time is counted in `losses`.

    Args:
        known: called with each stretch and its seconds, once they are known, and not under a lock.
        lost: called with the error that is the first of its cause.
    """

    def __init__(
        self, known: Callable[[Stretch, float], None], lost: Callable[[Exception], None]
    ) -> None:
        self.losses: Counter[str] = Counter()
        self._known = known
        self._lost = lost
        self._waiting: deque[Stretch] = deque()
        self._process = os.getpid()
        self._lock = thread_lock()  # held by the one who takes, so that durations stay in order

    def add(self, stretch: Stretch) -> None:
        """Take note of a stretch that has ended, and take those that the device has passed."""
        self._forget_those_of_a_parent()
        self._waiting.append(stretch)
        if self._lock.acquire(blocking=False):  # another thread may be waiting for the device
            self._release_and_tell(self._passed)

    def settle(self) -> None:
        """Wait until the device has passed all stretches that are there now, and take them."""
        if self._waiting:
            self._forget_those_of_a_parent()
            self._lock.acquire()
            self._release_and_tell(self._all)

    def lose(self, error: Exception) -> None:
        """Count a stretch that could not be measured."""
        cause = type(error).__name__
        self.losses[cause] += 1
        if self.losses[cause] == 1:
            self._lost(error)

    def _release_and_tell(self, take: Callable[[list[tuple[Stretch, float]]], None]) -> None:
        taken: list[tuple[Stretch, float]] = []
        try:
            take(taken)
        finally:
            self._lock.release()
            for stretch, seconds in taken:
                self._known(stretch, seconds)

    def _passed(self, taken: list[tuple[Stretch, float]]) -> None:
        for _ in range(LOOKS):
            if not self._take(taken, waits=len(self._waiting) > MAX_OUTSTANDING):
                return

    def _all(self, taken: list[tuple[Stretch, float]]) -> None:
        for _ in range(len(self._waiting)):
            self._take(taken, waits=True)

    def _take(self, taken: list[tuple[Stretch, float]], *, waits: bool) -> bool:
        """Take the oldest stretch if its end is passed; return whether it was."""
        try:
            stretch = self._waiting.popleft()  # off the list while it is looked at, by one only
        except IndexError:
            return False
        try:
            if waits:
                stretch.ended.wait()
            elif not stretch.ended.is_done():
                self._waiting.appendleft(stretch)
                return False
            seconds = stretch.ended.seconds_since(stretch.began)
            if not math.isfinite(seconds):
                raise ValueError(f"{stretch.device} gives {seconds} as the seconds of a block")
            taken.append((stretch, seconds))
        except Exception as error:
            self.lose(error)
        except BaseException:  # Ctrl-C while it waited
            self._waiting.appendleft(stretch)
            raise
        return True

    def _forget_those_of_a_parent(self) -> None:
        if self._process != os.getpid():
            self._waiting.clear()
            self._process = os.getpid()
