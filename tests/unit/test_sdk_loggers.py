"""Loggers of SDKs are quiet while somebody uses them, and as they were afterwards."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from foundry_log.services.sdk_loggers import keep_quiet, let_go

pytestmark = pytest.mark.unit

NAME = "an_sdk"


def level() -> int:
    """That of the SDK's logger."""
    return logging.getLogger(NAME).level


def test_a_logger_is_quiet_until_its_last_user_has_let_go() -> None:
    """Two services share one SDK."""
    keep_quiet(NAME)
    keep_quiet(NAME)
    assert level() == logging.WARNING
    let_go(NAME)
    assert level() == logging.WARNING
    let_go(NAME)
    assert level() == logging.NOTSET


def test_a_level_of_the_users_own_stays() -> None:
    """Who wants to see frames sees them."""
    logging.getLogger(NAME).setLevel(logging.DEBUG)
    keep_quiet(NAME, logging.CRITICAL)
    assert level() == logging.DEBUG
    let_go(NAME)
    assert level() == logging.DEBUG


def test_a_level_given_meanwhile_stays() -> None:
    """It is not undone with ours."""
    keep_quiet(NAME)
    logging.getLogger(NAME).setLevel(logging.INFO)
    let_go(NAME)
    assert level() == logging.INFO


def test_a_fork_leaves_the_child_free_to_go_on() -> None:
    """GIVEN threads that change levels all the time WHEN the process forks THEN none hangs."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "20 children\n"), done.stderr


FORKS = """
import os, signal, threading, time
from foundry_log.services.sdk_loggers import keep_quiet, let_go

going = True

def change():
    while going:
        keep_quiet("an_sdk")
        let_go("an_sdk")

threads = [threading.Thread(target=change) for _ in range(2)]
for thread in threads:
    thread.start()
ended = 0
for _ in range(20):
    time.sleep(0.01)
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # ends a child that hangs
        keep_quiet("another")
        os._exit(0)
    ended += os.waitpid(child, 0)[1] == 0
going = False
for thread in threads:
    thread.join()
print(ended, "children")
"""
