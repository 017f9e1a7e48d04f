"""Watchdog: says where every thread stands when the steps of a run stop coming."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType, TracebackType

from foundry_log.error_tracker import ErrorTracker
from foundry_log.timer_thread import TimerThread

MAX_FRAMES = 100
"""Frames of a stack that are kept, the innermost."""


class HangError(RuntimeError):
    """No step was done for as long as a `Watchdog` allows. Never raised, only logged."""


class Watchdog:
    """Logs a `HangError` with the stacks of all threads when no step is done for `timeout_s`.

    The entry in `errors.jsonl` has `step` (the last one, None before the first), `seconds` and
    `stacks` as context: name of the thread to its frames as text, outermost first, the main thread
    before the others. Once per hang; when steps go on, a WARNING record says how long it took. It
    ends nothing.

    A thread of its own waits from `start` on, and wakes once per `timeout_s`. The child of a fork
    is not watched. A thread that holds the interpreter's lock, stuck in C code that never releases
    it, stops this one too: for that there is `faulthandler.dump_traceback_later` of the standard
    library, of which a process has one, so it is left to the program.

    Args:
        timeout_s: seconds without a step, above 0. Longer than the longest evaluation or
            checkpoint, or call `beat()` in those.
        errors: gets the error; its logger says that steps go on.
        clock: seconds that only grow.

    Raises:
        ValueError: `timeout_s` is not above 0.
    """

    def __init__(
        self,
        timeout_s: float,
        errors: ErrorTracker,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < timeout_s <= threading.TIMEOUT_MAX:
            raise ValueError(f"timeout_s={timeout_s!r} must be above 0; 600 is usual")
        self.timeout_s = timeout_s
        self._errors = errors
        self._clock = clock
        # Tuples of step and time, each replaced by one assignment: beats take no lock.
        self._last: tuple[int | None, float] = (None, clock())
        self._hang: tuple[int | None, float] | None = None
        self._timer = TimerThread("foundry_log watchdog", self.look)

    def start(self) -> None:
        """Begin to watch, as if a step had been done now; a second call does nothing."""
        if not self._timer.is_started:
            self._last = (self._last[0], self._clock())
            self._timer.start()

    def beat(self, step: int | None = None) -> None:
        """Say that a step is done, or with None that a long phase between steps goes on.

        Reads the clock and sets an attribute.
        """
        self._last = (self._last[0] if step is None else step, self._clock())
        if self._hang is not None:
            self._say_that_it_goes_on()

    def look(self) -> float:
        """Log the hang if there is a new one; return the seconds until one would be due.

        What the thread calls; for programs that have a timer of their own.
        """
        last = self._last
        seconds = self._clock() - last[1]
        if seconds < self.timeout_s:
            return self.timeout_s - seconds
        if self._hang is None:
            self._hang = last
            self._log_hang(last[0], seconds)
        return self.timeout_s

    def close(self) -> None:
        """Stop watching, after at most five seconds; idempotent."""
        self._timer.close()

    def __enter__(self) -> Watchdog:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _log_hang(self, step: int | None, seconds: float) -> None:
        last = "no step was done before" if step is None else f"last step {step}"
        self._errors.log_error(
            HangError(f"no step for {seconds:.4g} s; {last}"),
            {"step": step, "seconds": seconds, "stacks": stacks()},
        )

    def _say_that_it_goes_on(self) -> None:
        hang, self._hang = self._hang, None
        if hang is None:  # another thread's beat came first
            return
        step, seconds = self._last[0], self._last[1] - hang[1]
        self._errors.logger.warning(
            "Steps go on after %.4g s",
            seconds,
            extra={"step": step, "last_step": hang[0], "seconds": seconds},
            stacklevel=3,
        )


def stacks() -> dict[str, list[str]]:
    """Return where each thread of the process but this one stands: its name to its frames.

    A frame is `file:line in function: code`; outermost first, the innermost 100 of a stack. The
    main thread comes first. Of threads with the same name the later ones have their number behind
    it. Never raises.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    found: dict[str, list[str]] = {}
    for ident, frame in sorted(sys._current_frames().items(), key=lambda item: item[0] != main):
        name = names.get(ident, f"thread {ident}")
        if ident != threading.get_ident():
            found[f"{name} ({ident})" if name in found else name] = _lines(frame)
    return found


def _lines(frame: FrameType) -> list[str]:
    try:
        frames = traceback.extract_stack(frame, limit=MAX_FRAMES)
        return [f"{at.filename}:{at.lineno} in {at.name}: {at.line or ''}" for at in frames]
    except Exception as error:  # the thread ran on, or a source file is no text
        return [f"cannot be shown: {type(error).__name__}"]
