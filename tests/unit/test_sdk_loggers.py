"""Loggers of SDKs are quiet while somebody uses them, and as they were afterwards."""

from __future__ import annotations

import logging

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
