"""What the shipping of files says, on a logger of its own: never into the files that it ships."""

from __future__ import annotations

import logging
import threading

from foundry_log.handlers.console import ConsoleHandler

log = logging.getLogger("foundry_log.shipping")

_changing = threading.Lock()


_SDK = logging.getLogger("azure")


class _Console(ConsoleHandler):
    """Stands in for the root logger's handlers while monitors run in this process."""

    users = 0
    has_quietened = False


def keep_to_console() -> None:
    """Show warnings of `log` on the console and nowhere else, until each user has let go.

    Handlers of the logger itself get its records as before. Where it does not propagate already,
    somebody looks after it, and nothing is changed. The loggers of Azure's SDK, which write many
    lines for each request, are quiet up to warnings, unless they have been given a level.
    Thread-safe.
    """
    with _changing:
        console = _console()
        if console is None and not log.propagate:
            return
        if console is None:
            console = _Console()
            console.setLevel(logging.WARNING)
            console.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
            log.addHandler(console)
            log.propagate = False
            console.has_quietened = _SDK.level == logging.NOTSET
            if console.has_quietened:
                _SDK.setLevel(logging.WARNING)
        console.users += 1


def let_go() -> None:
    """Undo one `keep_to_console`. Thread-safe."""
    with _changing:
        console = _console()
        if console is None:
            return
        console.users -= 1
        if console.users == 0:
            log.removeHandler(console)
            log.propagate = True
            if console.has_quietened and _SDK.level == logging.WARNING:
                _SDK.setLevel(logging.NOTSET)
            console.close()


def _console() -> _Console | None:
    return next((handler for handler in log.handlers if isinstance(handler, _Console)), None)
