"""The loggers of the SDKs, kept from writing prompts, bodies and frames into the files of a run.

At DEBUG they log whole requests, and instructor logs replies as errors. Who wants to see that gives
the logger a level of its own.
"""

from __future__ import annotations

import logging
from collections import Counter

from foundry_log.files.locks import thread_lock

_changing = thread_lock()  # guards the two below; free in the child of a fork
_users: Counter[str] = Counter()
_quietened: dict[str, int] = {}


def keep_quiet(name: str, level: int = logging.WARNING) -> None:
    """Let a logger that has no level say nothing below `level`, until each user has let go.

    Thread-safe.
    """
    logger = logging.getLogger(name)
    with _changing:
        _users[name] += 1
        if logger.level == logging.NOTSET:
            logger.setLevel(level)
            _quietened[name] = level


def let_go(name: str) -> None:
    """Undo one `keep_quiet`; a level that was given meanwhile stays. Thread-safe."""
    logger = logging.getLogger(name)
    with _changing:
        _users[name] -= 1
        if _users[name] <= 0:
            del _users[name]
            if logger.level == _quietened.pop(name, None):
                logger.setLevel(logging.NOTSET)
