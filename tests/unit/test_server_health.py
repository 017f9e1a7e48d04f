"""Whether the budget server works: told once per cause, and once when it is back."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from foundry_log import ErrorTracker, read_jsonl
from foundry_log.services.observing import Observer
from foundry_log.services.server_health import BudgetServerError, ServerHealth

pytestmark = pytest.mark.unit

REFUSED = BudgetServerError("nobody listens at port 1", "refused")
SLOW = BudgetServerError("no answer within 1 s", "slow")
WRONG = BudgetServerError("a count is negative", "HTTP 400", is_of_request=True)


@pytest.fixture
def log() -> logging.Logger:
    return logging.getLogger("tests.server_health")


def test_each_cause_is_told_once_until_the_server_works(
    log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of it says how many calls have failed; afterwards all begins anew."""
    caplog.set_level(logging.INFO, log.name)
    health = ServerHealth(Observer(log), is_tracked=False)
    health.works()
    for failure in (REFUSED, REFUSED, SLOW, WRONG):
        health.fails(failure)
    assert health.is_failing_by("slow") and not health.is_failing_by("HTTP 400")
    health.works()
    health.works()
    health.fails(SLOW)
    told = [vars(record) for record in caplog.records]
    assert [of["levelname"] for of in told] == ["WARNING", "WARNING", "INFO", "WARNING"]
    assert [of.get("reason") for of in told] == [str(REFUSED), str(SLOW), None, str(SLOW)]
    assert told[2]["failed_calls"] == 3


def test_a_tracker_gets_them_in_place_of_a_warning(log: logging.Logger, tmp_path: Path) -> None:
    """Once per cause as well."""
    errors = ErrorTracker(log, tmp_path)
    health = ServerHealth(Observer(log, errors=errors), is_tracked=True)
    health.fails(REFUSED)
    health.fails(REFUSED)
    errors.close()
    (line,) = read_jsonl(tmp_path / "errors.jsonl")
    assert line["error_message"] == str(REFUSED)
