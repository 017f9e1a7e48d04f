"""What could not be written: counted by cause, reported once, summed up at close."""

from __future__ import annotations

import errno
import io
import logging
import sys
import threading
from typing import Any

import pytest

from foundry_log.handlers.losses import CountsLosses, cause_of

pytestmark = pytest.mark.unit


class Failing(CountsLosses):
    """Raises what each record carries."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            raise record.error  # type: ignore[attr-defined]
        except Exception:
            self.handleError(record)


def lose(handler: logging.Handler, *errors: Exception) -> None:
    for error in errors:
        handler.handle(logging.makeLogRecord({"msg": "x", "error": error}))


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ValueError("x"), "ValueError"),
        (OSError(errno.ENOSPC, "full"), "OSError ENOSPC"),
        (PermissionError(errno.EACCES, "no"), "PermissionError EACCES"),
        (OSError("no number"), "OSError"),
        (OSError(99_999, "odd"), "OSError 99999"),
        (OSError([], "odd"), "OSError"),
        (None, "NoneType"),
    ],
)
def test_a_cause_is_the_class_and_the_number_of_the_error(
    error: Exception | None, name: str
) -> None:
    """Short, and the same for each record that is lost to it."""
    assert cause_of(error) == name


def test_losses_are_counted_by_cause() -> None:
    """One entry for a full disk, one for a broken record."""
    handler = Failing()
    lose(handler, OSError(errno.ENOSPC, "a"), OSError(errno.ENOSPC, "b"), TypeError("c"))
    assert handler.losses == {"OSError ENOSPC": 2, "TypeError": 1}


def test_each_cause_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    """In the stdlib's form, and the rest in silence."""
    handler = Failing()
    lose(handler, *[TypeError("one")] * 5, *[ValueError("two")] * 5)
    report = capsys.readouterr().err
    assert report.count("--- Logging error ---") == 2
    assert "TypeError: one" in report
    assert "ValueError: two" in report


def test_close_says_how_many_records_were_lost_since_the_last(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And nothing where none was."""
    handler = Failing()
    handler.close()
    assert capsys.readouterr().err == ""
    lose(handler, *[TypeError("x")] * 3)
    capsys.readouterr()
    handler.close()
    assert "lost 3 records (TypeError: 3)" in capsys.readouterr().err
    handler.close()
    assert capsys.readouterr().err == ""


def test_nothing_is_said_where_logging_is_told_not_to_raise(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`logging.raiseExceptions = False` is the stdlib's switch; the counts stay."""
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handler = Failing()
    lose(handler, TypeError("x"))
    handler.close()
    assert capsys.readouterr().err == ""
    assert handler.losses == {"TypeError": 1}


def closed_stream() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.EPIPE, "gone")


@pytest.mark.parametrize("stream", [closed_stream(), Broken(), None])
def test_a_standard_error_that_is_closed_broken_or_missing_raises_nothing(
    monkeypatch: pytest.MonkeyPatch, stream: Any
) -> None:
    """There is nobody left to tell, and the program goes on."""
    monkeypatch.setattr(sys, "stderr", stream)
    handler = Failing()
    lose(handler, TypeError("x"))
    handler.close()
    assert handler.losses == {"TypeError": 1}


def test_losses_of_many_threads_are_all_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """And still reported once."""
    handler = Failing()
    crew = [threading.Thread(target=lose, args=(handler, *[TypeError()] * 500)) for _ in range(4)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert handler.losses == {"TypeError": 2000}
    assert capsys.readouterr().err.count("--- Logging error ---") == 1
