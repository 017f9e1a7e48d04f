"""What commands that run until they are told to stop have in common."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Iterator

from foundry_log.handlers.console import ConsoleHandler
from foundry_log.text_formatters import ConsoleFormatter

_ENDS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def told_on_stderr(logger: logging.Logger) -> Iterator[None]:
    """Show what a logger says from INFO on, on standard error and nowhere else."""
    handler = ConsoleHandler()
    handler.setFormatter(ConsoleFormatter())
    before = (logger.level, logger.propagate)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def stop_request(logger: logging.Logger, promise: str) -> asyncio.Event:
    """Return what the first SIGTERM or SIGINT sets; a second one ends the process as usual.

    Args:
        logger: tells of the signal.
        promise: what is still done before the end.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        for each in _ENDS:  # first: a second signal may come while this one is told
            loop.remove_signal_handler(each)
        logger.info("stopping, %s: %s", signal.Signals(number).name, promise)
        stop.set()

    for each in _ENDS:
        loop.add_signal_handler(each, on_signal, each)
    return stop
