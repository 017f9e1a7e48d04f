"""A signal that ends the run: a record of it, everything on disk, and only then its own action.

The parts tell each other what happened through one pipe, which a thread, the watcher, reads:

    WOKEN  the system has delivered the signal; written in C (`signal.set_wakeup_fd`, where that is
           free), so it comes at once even when the main thread is stuck in C
    RAN    our Python handler ran in the main thread, and the action was not due yet
    DONE   our Python handler ran, and went on to the action

The watcher serves a signal at its first WOKEN or RAN: it drains, puts the number into `_due`, and
wants the handler to run in the main thread once more. What it may know of the delivery by then:

- RAN was read. The delivery is used up, so it is sent again to the main thread (`pthread_kill`,
  which also ends a blocking call there). One RAN allows one sending: n deliveries never become
  more than n actions.
- RAN comes later: the handler looked before the number was in `_due`. The same, when it is read.
- There is no RAN: the main thread has not got round to the handler. It will find the number in
  `_due` when it does; sending again could run the action twice.

Only the watcher adds to `_due` and only the main thread removes, so neither undoes the other's
step. A second sending has its own WOKEN; like all that the served delivery left in the pipe it
stands before DONE, which the handler writes after it, and DONE cancels what stands before it.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import Any

from foundry_log.clock import timestamp
from foundry_log.context import bound, bound_fields
from foundry_log.files import append_file
from foundry_log.records import KEPT

DEFAULT_SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGXCPU") if hasattr(signal, name)
)
"""What schedulers, terminals and CPU limits send. SIGINT unwinds as KeyboardInterrupt anyway."""

_NUMBERS = 64  # a byte on the pipe is a signal's number, 1 to 64, and a multiple of this
_WOKEN, _RAN, _DONE = 0, 1, 2
_END = 0
_TICK_S = 0.01
_MAIN_COMES_S = 0.05

_log = logging.getLogger(__name__)


class SignalWatch:
    """Makes records safe before a signal takes effect; watches from construction until `close`.

    At a signal a WARNING goes to the logger `foundry_log.signals` (its context: `signal`,
    `signal_number`, `received`, `pid`, `next` and `deadline_s`, and the scopes around the main
    thread), `flush` is called, and the files of this package are synced to their devices. Then the
    handler of before is called in the main thread, or the default action ends the process with the
    exit status of that signal. The main thread goes on meanwhile, and may log behind that record;
    more of the same signal until then change nothing.

    A signal that is ignored (`nohup`) or handled by other than Python code is left alone. The child
    of a fork is not watched: its signals act as before. A handler installed later takes our place;
    if it calls ours, it waits there for the drain.

    To be made and closed in the main thread. Not supported on Windows.

    Args:
        flush: writes what is held back; called in a thread of its own.
        finish: does so once more right before the action, in the main thread: whatever lock that
            has been interrupted with, it must come back soon.
        signals: to watch.
        deadline_s: seconds after which the action follows even if records are still held back, by
            a lock of the main thread for one.
        grace_s: seconds that a main thread stuck in C code has for running Python again; then the
            default action comes without it. A Python handler is waited for without limit.

    Raises:
        ValueError: outside the main thread, on a platform without `pthread_kill`, for seconds that
            are not above 0, or a signal that nobody can handle.
    """

    def __init__(
        self,
        *,
        flush: Callable[[], None],
        finish: Callable[[], None] = lambda: None,
        signals: Iterable[int] = DEFAULT_SIGNALS,
        deadline_s: float = 5.0,
        grace_s: float = 5.0,
    ) -> None:
        numbers = [int(number) for number in signals]
        _check(numbers, deadline_s, grace_s)
        self._flush = flush
        self._finish = finish
        self._deadline_s = deadline_s
        self._grace_s = grace_s
        self._previous = _watchable(numbers)
        self._handler = self._handle  # one object, to be recognised by identity
        self._due: set[int] = set()
        self._scopes: Mapping[str, Any] = {}  # around the main thread, at the latest signal
        self._is_passing = False  # the handler acts at once: when closing, closed, or forked
        self._is_closed = False
        # The watcher's own:
        self._arrivals: dict[int, float] = {}  # number to when; what is to be served
        self._ran: set[int] = set()
        self._done: set[int] = set()
        self._is_ending = False
        self._read_end, self._write_end = _pipe()
        self._poll = select.poll()
        self._poll.register(self._read_end, select.POLLIN)
        self._watcher = _started(self._watch)
        _live.add(self)
        for number in self._previous:
            signal.signal(number, self._handler)
        other = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        if other != -1:
            signal.set_wakeup_fd(other)

    def close(self) -> None:
        """Bring back the handlers of before, where ours are still installed. Idempotent.

        A signal that has arrived takes its course first, within both deadlines; one that arrives
        meanwhile acts at once.

        Raises:
            ValueError: outside the main thread.
        """
        if self._is_closed:
            return
        _check_main_thread("close() of a SignalWatch")
        self._is_passing = True
        self._send(_END)
        while self._watcher.is_alive():
            self._watcher.join(_TICK_S)  # in short waits, between which the handler can run
        self._detach()

    # --- in the main thread ---

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Tell the watcher, or act if the time has come; takes no lock, as any may be held here."""
        if not self._is_passing:
            self._scopes = bound_fields()
            is_due = number in self._due
            if self._is_installed(number):
                # Whatever an action raises inside a hook of a fork would be swallowed there.
                if not is_due or _is_forking(frame):
                    self._tell(_RAN, number)
                    return
            elif not is_due:  # called by the handler in our place, which must not run twice
                self._tell(_RAN, number)
                self._wait_until_due(number)
        self._due.discard(number)
        self._tell(_DONE, number)
        self._finish()  # what the main thread has logged since
        previous = self._previous[number]
        if callable(previous):
            previous(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _wait_until_due(self, number: int) -> None:
        limit = time.monotonic() + self._deadline_s + 1.0
        while number not in self._due and time.monotonic() < limit:
            time.sleep(_TICK_S)

    def _tell(self, kind: int, number: int) -> None:
        self._send(kind * _NUMBERS + number)

    def _send(self, byte: int) -> None:
        if self._write_end < 0:
            return
        try:
            os.write(self._write_end, bytes((byte,)))
        except BlockingIOError:
            pass  # full: the watcher has more than enough to read

    def _is_installed(self, number: int) -> bool:
        return signal.getsignal(number) is self._handler

    def _detach(self) -> None:
        """Take handlers, wake-up and pipe back."""
        self._is_passing = True
        _live.discard(self)
        for number, previous in self._previous.items():
            if self._is_installed(number):
                signal.signal(number, previous)
        other = signal.set_wakeup_fd(-1)
        if other not in (-1, self._write_end):
            signal.set_wakeup_fd(other)
        self._is_closed = True
        ends, self._read_end, self._write_end = (self._read_end, self._write_end), -1, -1
        for end in ends:
            os.close(end)

    # --- in the watcher ---

    def _watch(self) -> None:
        while self._arrivals or not self._is_ending:
            if not self._arrivals:
                self._read(None)
            for number in list(self._arrivals):
                if number in self._arrivals:
                    self._serve(number)

    def _read(self, timeout_s: float | None) -> None:
        """Wait for bytes and take them in."""
        if not self._poll.poll(None if timeout_s is None else timeout_s * 1000):
            return
        for byte in os.read(self._read_end, 65_536):
            if byte == _END:
                self._is_ending = True
                continue
            kind, number = (byte - 1) // _NUMBERS, (byte - 1) % _NUMBERS + 1
            if kind == _DONE:
                self._forget(number)
                self._done.add(number)
            elif kind == _RAN:
                self._ran.add(number)
                self._arrivals.setdefault(number, time.time())
            elif number in self._previous and self._is_installed(number):
                self._arrivals.setdefault(number, time.time())

    def _serve(self, number: int) -> None:
        """Drain, then have the action run in the main thread."""
        self._done.discard(number)
        arrived = self._arrivals.pop(number)
        if number not in self._ran:
            self._read(_MAIN_COMES_S)  # most of the time with the scopes of the main thread
        if number in self._done:
            return  # it was passed on: somebody closes
        try:
            self._drain(number, arrived)
        except RuntimeError:
            pass  # no thread is to be had: the action must come all the same
        if _is_asyncio(self._previous[number]):
            self._forget(number)
            return
        if number in self._done:
            return
        self._due.add(number)
        limit = time.monotonic() + self._grace_s
        while number not in self._done:
            if number in self._ran and self._is_installed(number):
                self._ran.discard(number)
                signal.pthread_kill(_main_thread(), number)
            rest = limit - time.monotonic()
            if rest <= 0:
                self._give_up(number)
                return
            self._read(rest)

    def _forget(self, number: int) -> None:
        self._arrivals.pop(number, None)
        self._ran.discard(number)

    def _give_up(self, number: int) -> None:
        """End a process whose main thread does not; a Python handler stays due until it can run."""
        self._forget(number)
        is_default = self._previous[number] is signal.SIG_DFL
        if is_default and number in self._due and self._is_installed(number):
            _restore_default(number)
            os.kill(os.getpid(), number)

    def _drain(self, number: int, arrived: float) -> None:
        """Make everything safe, in threads that may be left behind at the deadline."""

        def save() -> None:
            try:
                self._log_last(number, arrived)
            finally:
                try:
                    self._flush()
                finally:
                    append_file.sync_all()

        limit = time.monotonic() + self._deadline_s
        savers = [_started(save)]
        while any(saver.is_alive() for saver in savers) and time.monotonic() < limit:
            self._read(_TICK_S)
            # What waits for a lock must not keep the lines that are written from their device.
            if len(savers) == 1 and time.monotonic() > limit - self._deadline_s / 4:
                savers.append(_started(append_file.sync_all))

    def _log_last(self, number: int, arrived: float) -> None:
        name, action = _signal_name(number), _name_of(self._previous[number])
        context = {
            "signal": name,
            "signal_number": number,
            "received": timestamp(arrived),
            "pid": os.getpid(),
            "next": action,
            "deadline_s": self._deadline_s,
            KEPT: True,
        }
        with bound(**self._scopes):
            _log.warning("%s received: flushing, then %s", name, action, extra=context)


def is_possible() -> bool:
    """Return whether a SignalWatch can be made here."""
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and hasattr(signal, "pthread_kill")


def watched_signals() -> set[int]:
    """Return the numbers of the signals that are watched in this process."""
    return {number for watch in list(_live) for number in watch._previous}


def _check(numbers: list[int], deadline_s: float, grace_s: float) -> None:
    if not hasattr(signal, "pthread_kill"):
        raise ValueError("signals cannot be watched on this platform; leave handle_signals off")
    _check_main_thread("a SignalWatch")
    if not (deadline_s > 0 and grace_s > 0):
        raise ValueError(f"deadline_s={deadline_s} and grace_s={grace_s} must be above 0 seconds")
    possible = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    for number in numbers:
        if number not in possible:
            raise ValueError(f"signals: {number} cannot be handled; take some of {DEFAULT_SIGNALS}")


def _check_main_thread(what: str) -> None:
    if threading.current_thread() is not threading.main_thread():
        raise ValueError(
            f"{what} belongs into the main thread, as Python sets signal handlers nowhere else"
        )


def _watchable(numbers: list[int]) -> dict[int, Any]:
    """Return number to present handler, without what is ignored or not Python's."""
    handlers = {number: signal.getsignal(number) for number in numbers}
    return {
        number: handler
        for number, handler in handlers.items()
        if handler is not None and handler is not signal.SIG_IGN
    }


def _is_asyncio(handler: Any) -> bool:
    """Return whether it only marks a signal that the event loop gets by the wake-up descriptor.

    The loop has had the first delivery; a second would run its callback twice.
    """
    module, name = (getattr(handler, key, None) for key in ("__module__", "__name__"))
    return str(module).split(".")[0] == "asyncio" and name == "_sighandler_noop"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time signals
        return f"signal {number}"


def _name_of(handler: Any) -> str:
    if not callable(handler):
        return "the default action"
    if _is_asyncio(handler):
        return "the event loop's callback"
    name = getattr(handler, "__qualname__", type(handler).__qualname__)
    return f"{getattr(handler, '__module__', type(handler).__module__)}.{name}"


def _pipe() -> tuple[int, int]:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)  # `set_wakeup_fd` asks for it, and a handler must not wait
    return read_end, write_end


def _started(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, name=__name__, daemon=True)
    thread.start()
    return thread


def _main_thread() -> int:
    identity = threading.main_thread().ident
    assert identity is not None
    return identity


def _restore_default(number: int) -> None:
    """Set the default action from any thread; Python's own call is for the main thread."""
    import ctypes  # only a stuck process needs it

    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal(number, None)


# --- fork ---
# A child has the parent's pipe and handlers, and a signal to it would make the parent drain. So
# it gets none of ours until it has let go of both.


class _Fork(threading.local):
    """Of a thread that forks: that it does, and its signal mask of before."""

    is_running = False
    mask: set[signal.Signals] | set[int] | None = None


_fork = _Fork()
_live: weakref.WeakSet[SignalWatch] = weakref.WeakSet()


def _is_forking(frame: FrameType | None) -> bool:
    """Return whether this thread forks; the frames tell at the first step of the first hook."""
    while frame is not None:  # also below a handler that another signal interrupts
        if frame.f_code is _block_before_fork.__code__:
            return True
        frame = frame.f_back
    return _fork.is_running


def _block_before_fork() -> None:
    _fork.is_running = True
    watched = watched_signals()
    if watched:
        # Asked for first: the call that blocks may raise what another handler raises.
        _fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        signal.pthread_sigmask(signal.SIG_BLOCK, watched)


def _unblock_after_fork() -> None:
    try:
        if _fork.mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, _fork.mask)
    finally:
        _fork.mask = None
        _fork.is_running = False


def _detach_after_fork() -> None:
    for watch in list(_live):
        watch._detach()
    _unblock_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_block_before_fork,
        after_in_parent=_unblock_after_fork,
        after_in_child=_detach_after_fork,
    )
