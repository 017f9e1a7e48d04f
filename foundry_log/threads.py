"""Threads that are started where `logging`'s lock is held: by handlers that `dictConfig` makes."""

from __future__ import annotations

import gc
import threading


def start_thread(thread: threading.Thread) -> None:
    """Start a thread, and wait until it has begun, as its `start` does.

    The garbage collector pauses for it: the thread might collect somebody's dropped handler, which
    takes `logging`'s lock, and whoever starts the thread may hold that while it waits.

    Raises:
        RuntimeError: it was started before, or the interpreter is ending.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        thread.start()
    finally:
        if was_enabled:
            gc.enable()
