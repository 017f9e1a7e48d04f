"""What services say: records with context, metrics numbered on, errors, and nothing secret."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from foundry_log import ErrorTracker, MetricsLogger, bound, read_jsonl
from foundry_log.handlers.rotating_jsonl import RotatingJsonlHandler
from foundry_log.services.observing import Observer

pytestmark = pytest.mark.unit

NAME = "foundry_log.services.test"
BODY = "what the patient said"


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """The file that the test's logger writes to."""
    logger = logging.getLogger(NAME)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    handler = RotatingJsonlHandler(tmp_path / "run.jsonl")
    logger.addHandler(handler)
    return tmp_path / "run.jsonl"


def test_a_record_carries_its_fields_and_those_of_scopes(lines: Path) -> None:
    """The scope names the request, the call what happened to it."""
    observer = Observer(logging.getLogger(NAME))
    with bound(request_id="r1"):
        observer.say(logging.INFO, "model call completed", tokens_used=30, reason=None)
    (line,) = read_jsonl(lines)
    assert line["message"] == "model call completed"
    assert line["context"] == {"request_id": "r1", "tokens_used": 30}


def test_secrets_are_blanked_in_messages_and_fields(lines: Path) -> None:
    """Also where nobody has configured redaction."""
    observer = Observer(logging.getLogger(NAME), logs_bodies=True)
    observer.say(logging.WARNING, "password=hunter2 refused", reason="token=abcdef1234567890")
    observer.body("prompt", {"api_key": "s3cr3t", "messages": ["password=hunter2"]})
    text = lines.read_text()
    assert "refused" in text
    assert not [secret for secret in ("hunter2", "abcdef1234567890", "s3cr3t") if secret in text]


def test_a_percent_sign_in_a_message_is_no_format(lines: Path) -> None:
    """Messages may quote a server."""
    Observer(logging.getLogger(NAME)).say(logging.INFO, "used 100% of %s")
    assert [line["message"] for line in read_jsonl(lines)] == ["used 100% of %s"]


def test_bodies_are_logged_on_request_alone(lines: Path) -> None:
    """A prompt is not for everybody's eyes."""
    Observer(logging.getLogger(NAME)).body("prompt", BODY)
    assert not list(read_jsonl(lines))
    Observer(logging.getLogger(NAME), logs_bodies=True).body("prompt", BODY)
    assert [line["context"] for line in read_jsonl(lines)] == [{"body": BODY}]


def test_metrics_are_numbered_on_by_all_who_share_them(tmp_path: Path) -> None:
    """Two services of a process write one stream, each line with its scope."""
    metrics = MetricsLogger("service", tmp_path)
    for name in ("bus", "model"):
        with bound(request_id=name):
            Observer(logging.getLogger(NAME), metrics).measure(latency_s=0.5)
    history = metrics.get_metrics_history()
    assert [entry["step"] for entry in history] == [1, 2]
    assert [entry["context"]["request_id"] for entry in history] == ["bus", "model"]
    metrics.close()


def test_without_metrics_nothing_is_measured() -> None:
    """They are the user's choice."""
    Observer(logging.getLogger(NAME)).measure(latency_s=0.5)


class Person(BaseModel):
    age: int


@pytest.mark.parametrize("has_tracker", [True, False])
def test_errors_are_logged_without_the_body_that_caused_them(
    has_tracker: bool, tmp_path: Path, lines: Path
) -> None:
    """A reply that does not fit a model is not in the log."""
    tracker = ErrorTracker(logging.getLogger(NAME), tmp_path) if has_tracker else None
    with pytest.raises(ValidationError) as caught:
        Person.model_validate({"age": BODY})

    with bound(request_id="r1"):
        Observer(logging.getLogger(NAME), None, tracker).failed(
            "model call failed", caught.value, attempts=3
        )

    texts = [path.read_text() for path in tmp_path.glob("*.jsonl")]
    assert len(texts) == 1 + has_tracker
    for text in texts:
        assert "1 fault in Person: age" in text
        assert BODY not in text
        assert '"request_id":"r1"' in text
        assert '"attempts":3' in text
    if tracker:
        assert tracker.get_error_summary() == {"ValidationError": 1}
        tracker.close()


def test_the_traceback_of_an_error_is_told_once(lines: Path, tmp_path: Path) -> None:
    """GIVEN an error that passes two services WHEN both log it THEN the second names it alone."""
    tracker = ErrorTracker(logging.getLogger(NAME), tmp_path)
    error = ValueError("no number")
    for message in ("model call failed", "a message could not be processed"):
        Observer(logging.getLogger(NAME), None, tracker).failed(message, error)

    first, second = read_jsonl(lines)
    assert "exception" in first
    assert (second["level"], second["message"]) == ("ERROR", "a message could not be processed")
    assert second["context"] == {"reason": "ValueError: no number"}
    assert "exception" not in second
    assert tracker.get_error_summary() == {"ValueError": 1}
    tracker.close()


def test_an_error_that_takes_no_attributes_is_told_each_time(lines: Path) -> None:
    """Nothing is raised, and nothing is left out."""

    class FixedError(Exception):
        def __setattr__(self, name: str, value: object) -> None:
            raise TypeError("fixed")

    error = FixedError("no")
    for _ in range(2):
        Observer(logging.getLogger(NAME)).failed("failed", error)
    assert ["exception" in line for line in read_jsonl(lines)] == [True, True]


@pytest.mark.parametrize("has_tracker", [True, False])
def test_a_filter_that_raises_costs_the_record_alone(
    has_tracker: bool, tmp_path: Path, lines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A service holds locks and messages while it logs; the cause is told once."""

    def refuse(record: logging.LogRecord) -> bool:
        raise LookupError("broken")

    logging.getLogger(NAME).addFilter(refuse)
    tracker = ErrorTracker(logging.getLogger(NAME), tmp_path) if has_tracker else None
    observer = Observer(logging.getLogger(NAME), None, tracker, logs_bodies=True)
    observer.say(logging.INFO, "tokens locked")
    observer.body("prompt", BODY)
    observer.failed("failed", ValueError("no"))
    assert capsys.readouterr().err == f"{NAME}: a record is lost, LookupError\n"
    if tracker:
        tracker.close()


def test_a_record_names_the_line_that_said_it(caplog: pytest.LogCaptureFixture) -> None:
    """Not the observer's own."""
    observer = Observer(logging.getLogger(NAME), logs_bodies=True)
    logging.getLogger(NAME).setLevel(logging.DEBUG)
    observer.say(logging.INFO, "a")
    observer.body("b", BODY)
    observer.failed("c", ValueError("no"))
    assert {record.filename for record in caplog.records} == {"test_observing.py"}
