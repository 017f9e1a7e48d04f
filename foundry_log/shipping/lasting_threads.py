"""Threads for an event loop that has work left when the interpreter ends."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

from foundry_log.threads import start_thread

T = TypeVar("T")
_Task = tuple["Future[Any]", Callable[[], Any]]


class LastingThreads(ThreadPoolExecutor):
    """An executor that still takes work in `atexit` functions.

    The stdlib's takes none from the moment the main thread ends, and from Python 3.12 on no thread
    can be started then. These are started at once and are daemons: whoever needs their results
    waits for them. An event loop accepts no other class as its default executor, hence the base.

    Args:
        count: of threads.
        name: of the threads, before their numbers.
    """

    def __init__(self, count: int, name: str) -> None:
        super().__init__(max_workers=count, thread_name_prefix=name)
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._crew = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._crew:
            start_thread(thread)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Have a thread call `fn`; return what its result will be in."""
        future: Future[T] = Future()
        self._tasks.put((future, functools.partial(fn, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the threads end once they have done what was submitted, and wait for that."""
        crew, self._crew = self._crew, []
        for _ in crew:
            self._tasks.put(None)
        for thread in crew if wait else ():
            thread.join()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, call = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as error:  # the caller's to see, whatever it is
                future.set_exception(error)
            else:
                future.set_result(result)
