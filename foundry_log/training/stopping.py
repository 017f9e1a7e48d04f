"""Ending a run between two steps when a signal asks for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from foundry_log.signals import DEFAULT_SIGNALS, is_possible


class StopRequest:
    """Whether, and by what signal, a run has been asked to end.

    Its handler takes the place of a default action that would end the process at once. A second
    signal, by somebody who does not want to wait for the step and its checkpoint, acts as ever.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def name(self) -> str:
        """Such as `SIGTERM`; empty without a request."""
        return "" if self.signal is None else signal.Signals(self.signal).name

    def end_behind_this_step(self, number: int, frame: FrameType | None = None) -> None:
        """Ask the run to end behind the step at hand."""
        if self.signal is not None:
            act(number)
        self.signal = number


def act(number: int) -> None:
    """Let a signal's default action end this process; in the main thread."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


@contextmanager
def stop_request(is_wanted: bool = True) -> Iterator[StopRequest]:
    """Take note of SIGTERM, SIGHUP and SIGXCPU while the context lasts, in the main thread only.

    Signals that the program handles itself, or ignores, are left alone. At the end the default
    actions are back; whoever has seen the request through calls `act` with its signal then.

    Args:
        is_wanted: False takes note of nothing.
    """
    request = StopRequest()
    handler = request.end_behind_this_step  # one object, to be recognised by identity
    taken = []
    if is_wanted and is_possible():
        taken = [n for n in DEFAULT_SIGNALS if signal.getsignal(n) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, handler)
    try:
        yield request
    finally:
        for number in taken:
            if signal.getsignal(number) is handler:
                signal.signal(number, signal.SIG_DFL)
