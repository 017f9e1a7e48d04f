"""What commands that run until they are told to stop have in common."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys

import pytest

from foundry_log.terminal import told_on_stderr

pytestmark = pytest.mark.unit

WAITS = """
import asyncio, logging, sys
from foundry_log.terminal import stop_request, told_on_stderr

log = logging.getLogger("a command")

async def main():
    stop = stop_request(log, "what is at hand is finished")
    print("ready", flush=True)
    await stop.wait()
    print("stopping", flush=True)
    if "hangs" in sys.argv:
        await asyncio.Event().wait()

with told_on_stderr(log):
    asyncio.run(main())
"""


def command(*arguments: str) -> subprocess.Popen[str]:
    """A process that waits until it is told to stop."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_and_is_told(number: signal.Signals) -> None:
    """With what is still done."""
    process = command()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "stopping\n")
    assert f"stopping, {number.name}: what is at hand is finished" in err


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_whichever_came_first(second: signal.Signals) -> None:
    """Ctrl-C and then a supervisor's SIGTERM, for one."""
    process = command("hangs")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "stopping\n"
    process.send_signal(second)
    process.communicate(timeout=30)
    assert process.returncode == -second


def test_a_logger_is_as_it_was_afterwards() -> None:
    """What it had found out about its levels, too."""
    logger = logging.getLogger("test.terminal")
    with told_on_stderr(logger):
        assert logger.isEnabledFor(logging.INFO)
    assert (logger.level, logger.propagate, logger.handlers) == (logging.NOTSET, True, [])
    assert not logger.isEnabledFor(logging.INFO)
