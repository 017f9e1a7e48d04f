"""ErrorTracker: every case of the specification, and what an error log is promised to survive."""

from __future__ import annotations

import asyncio
import json
import logging
import logging.config
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from foundry_log import ErrorTracker, ExperimentConfig, StructuredLogger, bound, read_jsonl

pytestmark = pytest.mark.unit


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def raised(error: BaseException) -> BaseException:
    """Return `error` with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


class BrokenError(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class TestErrorTrackerBasics:
    def test_log_error_writes_to_file(self, error_tracker: ErrorTracker, tmp_path: Path) -> None:
        """
        GIVEN: An ErrorTracker
        WHEN: Logging an exception with context
        THEN: One line holds type, message, traceback, context and a time stamp with its zone.
        """
        try:
            raise ValueError("bad value")
        except ValueError as error:
            error_tracker.log_error(error, {"step": 100, "batch": [1, 2]})
        assert error_tracker.errors_file == tmp_path / "errors.jsonl"
        (entry,) = lines(error_tracker.errors_file)
        assert list(entry) == ["timestamp", "error_type", "error_message", "traceback", "context"]
        assert entry["timestamp"].endswith("+00:00")
        assert (entry["error_type"], entry["error_message"]) == ("ValueError", "bad value")
        assert entry["context"] == {"step": 100, "batch": [1, 2]}
        assert entry["traceback"].endswith("ValueError: bad value\n")

    def test_log_error_increments_counter(self, error_tracker: ErrorTracker) -> None:
        """
        GIVEN: An ErrorTracker
        WHEN: Logging errors of several types
        THEN: Each type has its count.
        """
        for error in (ValueError(), ValueError(), RuntimeError(), KeyError()):
            error_tracker.log_error(error)
        assert error_tracker.get_error_summary() == {
            "ValueError": 2,
            "RuntimeError": 1,
            "KeyError": 1,
        }

    def test_log_error_includes_traceback(self, error_tracker: ErrorTracker) -> None:
        """
        GIVEN: An exception from nested functions
        WHEN: Logging it outside of its except block
        THEN: The traceback shows each of them, and is not that of another exception in flight.
        """

        def inner() -> None:
            raise RuntimeError("deep")

        def outer() -> None:
            inner()

        kept: Exception | None = None
        try:
            outer()
        except RuntimeError as error:
            kept = error
        assert kept is not None
        try:
            raise KeyError("another")
        except KeyError:
            error_tracker.log_error(kept)
        text = lines(error_tracker.errors_file)[0]["traceback"]
        assert text.index("in outer") < text.index("in inner") < text.index("RuntimeError: deep")
        assert "another" not in text

    def test_log_error_logs_at_error_with_the_traceback(
        self, error_tracker: ErrorTracker, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        GIVEN: A logger
        WHEN: Logging an error with context
        THEN: One record at ERROR has the message, the exception, the context and the caller's line.
        """
        error = raised(ValueError("bad 100%s"))
        error_tracker.log_error(error, {"step": 1})
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("test", logging.ERROR)
        assert record.getMessage() == "ValueError: bad 100%s"
        assert record.exc_info is not None
        assert record.exc_info[1] is error
        assert record.error_context == {"step": 1}  # type: ignore[attr-defined]
        assert record.funcName == "test_log_error_logs_at_error_with_the_traceback"

    def test_an_error_without_traceback_is_logged_too(self, error_tracker: ErrorTracker) -> None:
        """
        GIVEN: An exception that was never raised
        WHEN: Logging it
        THEN: Its text stands for the traceback.
        """
        error_tracker.log_error(ValueError("never raised"))
        assert lines(error_tracker.errors_file)[0]["traceback"] == "ValueError: never raised\n"

    def test_causes_are_part_of_the_traceback(self, error_tracker: ErrorTracker) -> None:
        """
        GIVEN: An error that was raised from another
        WHEN: Logging it
        THEN: The traceback tells both.
        """
        try:
            try:
                raise KeyError("root")
            except KeyError as cause:
                raise RuntimeError("top") from cause
        except RuntimeError as error:
            error_tracker.log_error(error)
        text = lines(error_tracker.errors_file)[0]["traceback"]
        assert text.index("KeyError: 'root'") < text.index("direct cause")
        assert text.index("direct cause") < text.index("RuntimeError: top")

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="groups come with Python 3.11")
    def test_members_of_a_group_are_part_of_the_traceback(
        self, error_tracker: ErrorTracker
    ) -> None:
        """
        GIVEN: A group of errors
        WHEN: Logging it
        THEN: One entry of the group's type, whose traceback tells each member.
        """
        group = ExceptionGroup("several", [ValueError("one"), KeyError("two")])  # noqa: F821
        error_tracker.log_error(raised(group))
        (entry,) = lines(error_tracker.errors_file)
        assert entry["error_type"] == "ExceptionGroup"
        assert "ValueError: one" in entry["traceback"]
        assert "KeyError: 'two'" in entry["traceback"]


class TestErrorTrackerAggregation:
    def test_get_error_summary(self, error_tracker: ErrorTracker) -> None:
        """
        GIVEN: Errors of several types
        WHEN: Asking for the summary, and changing what it returned
        THEN: Type to count, a dict of the caller's own.
        """
        for _ in range(3):
            error_tracker.log_error(ValueError())
        summary = error_tracker.get_error_summary()
        assert type(summary) is dict
        assert summary == {"ValueError": 3}
        summary["ValueError"] = 99
        assert error_tracker.get_error_summary() == {"ValueError": 3}

    def test_log_error_with_no_context(
        self, error_tracker: ErrorTracker, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        GIVEN: No context, or an empty one
        WHEN: Logging an error
        THEN: The field is an empty object, and the record has none.
        """
        error_tracker.log_error(ValueError())
        error_tracker.log_error(ValueError(), {})
        assert [entry["context"] for entry in lines(error_tracker.errors_file)] == [{}, {}]
        assert not hasattr(caplog.records[0], "error_context")


class TestErrorTrackerManagement:
    def test_reset_error_counts(self, error_tracker: ErrorTracker) -> None:
        """
        GIVEN: Counts
        WHEN: Resetting them
        THEN: They are empty, the entries stay, and counting goes on from zero.
        """
        error_tracker.log_error(ValueError())
        error_tracker.reset_counters()
        assert error_tracker.get_error_summary() == {}
        assert len(error_tracker.get_recent_errors()) == 1
        error_tracker.log_error(ValueError())
        assert error_tracker.get_error_summary() == {"ValueError": 1}

    def test_max_errors_limit(self, mock_logger: logging.Logger, tmp_path: Path) -> None:
        """
        GIVEN: A limit of 5
        WHEN: Logging 20 errors
        THEN: Memory holds 5; counts, file and answers hold 20.
        """
        tracker = ErrorTracker(mock_logger, tmp_path, max_errors=5)
        for number in range(20):
            tracker.log_error(ValueError(number))
        assert len(tracker._recent) == 5
        assert tracker.get_error_summary() == {"ValueError": 20}
        assert len(lines(tracker.errors_file)) == 20
        assert len(tracker.get_recent_errors(20)) == 20
        tracker.close()

    @pytest.mark.parametrize("limit", [0, -1])
    def test_a_limit_below_one_is_refused(
        self, mock_logger: logging.Logger, tmp_path: Path, limit: int
    ) -> None:
        """
        GIVEN: No room for an error
        WHEN: Creating an ErrorTracker
        THEN: The rule is said.
        """
        with pytest.raises(ValueError, match=f"max_errors={limit} must be 1 or more"):
            ErrorTracker(mock_logger, tmp_path, max_errors=limit)

    def test_get_recent_errors(self, error_tracker: ErrorTracker) -> None:
        """
        GIVEN: Ten errors
        WHEN: Asking for the last three, for ten by default, for none
        THEN: Newest first, as many as were asked for.
        """
        for number in range(12):
            error_tracker.log_error(ValueError(f"error {number}"))
        recent = error_tracker.get_recent_errors(3)
        assert [e["error_message"] for e in recent] == ["error 11", "error 10", "error 9"]
        assert set(recent[0]) == {
            *("timestamp", "error_type", "error_message", "traceback", "context"),
        }
        assert len(error_tracker.get_recent_errors()) == 10
        assert error_tracker.get_recent_errors(0) == []
        assert error_tracker.get_recent_errors(-1) == []

    def test_recent_errors_of_nothing_are_none(self, error_tracker: ErrorTracker) -> None:
        """
        GIVEN: No error
        WHEN: Asking
        THEN: An empty list, and no file.
        """
        assert error_tracker.get_recent_errors() == []
        assert not error_tracker.errors_file.exists()

    def test_recent_errors_are_of_all_processes_of_the_run(
        self, error_tracker: ErrorTracker, tmp_path: Path
    ) -> None:
        """
        GIVEN: Own errors, and a later one of another process
        WHEN: Asking for fewer than are in memory
        THEN: The other process's is the newest.
        """
        for number in range(5):
            error_tracker.log_error(ValueError(number))
        script = (
            "import logging, sys\n"
            "from foundry_log import ErrorTracker\n"
            "logging.disable(logging.CRITICAL)\n"
            "ErrorTracker(logging.getLogger('x'), sys.argv[1]).log_error(KeyError('other'))\n"
        )
        subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=60)
        types = [entry["error_type"] for entry in error_tracker.get_recent_errors(2)]
        assert types == ["KeyError", "ValueError"]

    def test_recent_errors_go_through_rotation(self, error_tracker: ErrorTracker) -> None:
        """
        GIVEN: A file that rotates in between
        WHEN: Asking for errors from before and after
        THEN: The rotated files are read too.
        """
        for number in range(6):
            error_tracker.log_error(ValueError(number))
            if number % 2:
                error_tracker._handler.doRollover()
        error_tracker._recent.clear()
        messages = [entry["error_message"] for entry in error_tracker.get_recent_errors(5)]
        assert messages == ["5", "4", "3", "2", "1"]

    def test_recent_errors_survive_the_files_removal(self, error_tracker: ErrorTracker) -> None:
        """
        GIVEN: A file that somebody removed
        WHEN: Asking
        THEN: Memory answers.
        """
        error_tracker.log_error(ValueError("kept"))
        error_tracker.errors_file.unlink()
        assert error_tracker.get_recent_errors()[0]["error_message"] == "kept"
        error_tracker.errors_file.mkdir()
        assert error_tracker.get_recent_errors()[0]["error_message"] == "kept"
        error_tracker.errors_file.rmdir()

    def test_entries_are_not_changed_by_the_caller_afterwards(
        self, error_tracker: ErrorTracker
    ) -> None:
        """
        GIVEN: A context that the caller goes on using, and an answer that it changes
        WHEN: Memory has to answer
        THEN: The entry is as it was logged.
        """
        context: dict[str, Any] = {"steps": [1]}
        error_tracker.log_error(ValueError(), context)
        context["steps"].append(2)
        error_tracker.errors_file.unlink()
        error_tracker.get_recent_errors()[0]["context"]["steps"].append(3)
        assert error_tracker.get_recent_errors()[0]["context"] == {"steps": [1]}


class TestErrorTrackerCatch:
    def test_a_block(self, error_tracker: ErrorTracker) -> None:
        """
        GIVEN: A block inside catch()
        WHEN: It raises
        THEN: The error is logged with the context given, and the program goes on.
        """
        with error_tracker.catch(context={"phase": "export"}):
            raise ValueError("boom")
        (entry,) = lines(error_tracker.errors_file)
        assert (entry["error_message"], entry["context"]) == ("boom", {"phase": "export"})
        assert "in test_a_block" in entry["traceback"]

    def test_a_block_that_raises_nothing(self, error_tracker: ErrorTracker) -> None:
        """
        GIVEN: A block inside catch()
        WHEN: It ends well
        THEN: Nothing is logged.
        """
        with error_tracker.catch():
            pass
        assert error_tracker.get_error_summary() == {}

    def test_reraise(self, error_tracker: ErrorTracker) -> None:
        """
        GIVEN: catch(reraise=True)
        WHEN: The block raises
        THEN: The error is logged once and goes on.
        """
        with pytest.raises(ValueError, match="boom"), error_tracker.catch(reraise=True):
            raise ValueError("boom")
        assert error_tracker.get_error_summary() == {"ValueError": 1}

    def test_other_classes_pass_unseen(self, error_tracker: ErrorTracker) -> None:
        """
        GIVEN: catch() for OSError
        WHEN: The block raises a subclass, then something else
        THEN: Only the first is logged and stopped.
        """
        with error_tracker.catch((OSError, LookupError)):
            raise FileNotFoundError("x")
        with pytest.raises(ValueError, match="y"), error_tracker.catch(OSError):
            raise ValueError("y")
        assert error_tracker.get_error_summary() == {"FileNotFoundError": 1}

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
    def test_a_request_to_stop_is_no_error(
        self, error_tracker: ErrorTracker, kind: type[BaseException]
    ) -> None:
        """
        GIVEN: catch()
        WHEN: Ctrl-C is pressed or the program exits inside
        THEN: It passes.
        """
        with pytest.raises(kind), error_tracker.catch():
            raise kind
        assert error_tracker.get_error_summary() == {}

    def test_a_function(self, error_tracker: ErrorTracker) -> None:
        """
        GIVEN: A decorated function
        WHEN: It returns, raises, and is called from itself
        THEN: Its result, or None with the error logged; name and docstring are its own.
        """

        @error_tracker.catch()
        def divide(a: int, b: int) -> float:
            """Divide."""
            return a / b

        assert divide(4, b=2) == 2.0
        assert divide(1, 0) is None
        assert error_tracker.get_error_summary() == {"ZeroDivisionError": 1}
        assert (divide.__name__, divide.__doc__) == ("divide", "Divide.")

    def test_a_coroutine_function(self, error_tracker: ErrorTracker) -> None:
        """
        GIVEN: A decorated coroutine function that raises
        WHEN: Awaiting it
        THEN: The error is logged, with its traceback through the coroutine.
        """

        @error_tracker.catch()
        async def fetch() -> str:
            await asyncio.sleep(0)
            raise OSError("down")

        assert asyncio.run(fetch()) is None
        assert "in fetch" in lines(error_tracker.errors_file)[0]["traceback"]

    def test_a_cancelled_task_is_no_error(self, error_tracker: ErrorTracker) -> None:
        """
        GIVEN: A decorated coroutine
        WHEN: Its task is cancelled
        THEN: The cancellation goes on, and nothing is logged.
        """

        @error_tracker.catch()
        async def wait() -> None:
            await asyncio.sleep(60)

        async def main() -> bool:
            task = asyncio.ensure_future(wait())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return task.cancelled()

        assert asyncio.run(main())
        assert error_tracker.get_error_summary() == {}

    def test_generators(self, error_tracker: ErrorTracker) -> None:
        """
        GIVEN: Decorated generators, plain and async, that raise after an item
        WHEN: Consuming them
        THEN: They end there, with the error logged.
        """

        @error_tracker.catch()
        def items() -> Iterator[int]:
            yield 1
            raise ValueError("sync")

        @error_tracker.catch()
        async def more() -> AsyncIterator[int]:
            yield 2
            raise KeyError("async")

        async def main() -> list[int]:
            return [item async for item in more()]

        assert list(items()) == [1]
        assert asyncio.run(main()) == [2]
        assert error_tracker.get_error_summary() == {"ValueError": 1, "KeyError": 1}


class TestErrorTrackerDurability:
    @pytest.mark.parametrize("how", ["disable", "level", "disabled", "dictConfig"])
    def test_the_file_is_written_whatever_happens_to_loggers(
        self, error_tracker: ErrorTracker, mock_logger: logging.Logger, how: str
    ) -> None:
        """
        GIVEN: An ErrorTracker in use
        WHEN: Logging is disabled, levels are raised, or somebody's dictConfig closes all handlers
        THEN: Each error still stands in the file, once.
        """
        error_tracker.log_error(ValueError())
        if how == "disable":
            logging.disable(logging.CRITICAL)
        elif how == "level":
            mock_logger.setLevel(logging.CRITICAL + 1)
        elif how == "disabled":
            mock_logger.disabled = True
        else:
            logging.config.dictConfig({"version": 1, "disable_existing_loggers": True})
        error_tracker.log_error(KeyError())
        types = [entry["error_type"] for entry in lines(error_tracker.errors_file)]
        assert types == ["ValueError", "KeyError"]

    def test_a_directory_that_cannot_be_made_raises_nothing(
        self,
        mock_logger: logging.Logger,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """
        GIVEN: A file where the directory should be
        WHEN: Logging errors and asking for them
        THEN: No exception, one report, losses and errors counted, the console's line still comes.
        """
        (tmp_path / "file").touch()
        tracker = ErrorTracker(mock_logger, tmp_path / "file" / "below")
        for number in range(3):
            tracker.log_error(ValueError(number))
        assert sum(tracker.losses.values()) == 3
        assert tracker.get_error_summary() == {"ValueError": 3}
        assert [e["error_message"] for e in tracker.get_recent_errors(2)] == ["2", "1"]
        assert len(caplog.records) == 3
        assert capsys.readouterr().err.count("--- Logging error ---") == 1
        tracker.close()

    def test_an_error_without_text_is_logged(
        self, error_tracker: ErrorTracker, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        GIVEN: An exception whose __str__ raises
        WHEN: Logging it
        THEN: Its type and traceback are kept, and nothing is raised.
        """
        error_tracker.log_error(raised(BrokenError()))
        (entry,) = lines(error_tracker.errors_file)
        assert entry["error_type"] == "BrokenError"
        assert "in raised" in entry["traceback"]
        assert "Broken" in entry["error_message"]
        assert len(caplog.records) == 1

    @pytest.mark.parametrize("context", [[1, 2], "text", 7, {"x": BrokenError()}, {1: {2, 3}}])
    def test_context_of_any_kind_raises_nothing(
        self, error_tracker: ErrorTracker, context: Any
    ) -> None:
        """
        GIVEN: A context that is no mapping, or has values without a JSON form
        WHEN: Logging an error with it
        THEN: The field is an object all the same.
        """
        error_tracker.log_error(ValueError(), context)
        assert isinstance(lines(error_tracker.errors_file)[0]["context"], dict)
        assert not error_tracker.losses

    def test_a_structured_logger_gets_the_error_too(
        self, tiny_config: ExperimentConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """
        GIVEN: A StructuredLogger
        WHEN: Logging an error with context
        THEN: Its record has both contexts.
        """
        tracker = ErrorTracker(StructuredLogger("test", tiny_config), tmp_path)
        tracker.log_error(ValueError("x"), {"step": 1})
        context = json.loads(caplog.records[0].getMessage())["context"]
        assert context["experiment"] == tiny_config.experiment_name
        assert context["error_context"] == {"step": 1}
        assert caplog.records[0].funcName == "test_a_structured_logger_gets_the_error_too"
        tracker.close()

    def test_threads_lose_no_error(self, error_tracker: ErrorTracker) -> None:
        """
        GIVEN: Several threads
        WHEN: All log errors at once
        THEN: Every one is counted and stands in the file.
        """
        logging.disable(logging.CRITICAL)

        def work() -> None:
            for number in range(50):
                error_tracker.log_error(ValueError(number))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert error_tracker.get_error_summary() == {"ValueError": 200}
        assert len(lines(error_tracker.errors_file)) == 200

    def test_close_twice_and_log_again(self, error_tracker: ErrorTracker) -> None:
        """
        GIVEN: An ErrorTracker that was closed twice
        WHEN: Logging an error
        THEN: The file is opened again.
        """
        error_tracker.close()
        error_tracker.close()
        error_tracker.log_error(ValueError())
        assert len(lines(error_tracker.errors_file)) == 1


def test_a_logger_must_be_one(tmp_path: Path) -> None:
    """A name in its place is refused at once, with what to pass."""
    with pytest.raises(TypeError, match=r"pass logging\.getLogger\('train'\)"):
        ErrorTracker("train", tmp_path)  # type: ignore[arg-type]


def test_what_is_no_exception_is_logged_all_the_same(error_tracker: ErrorTracker) -> None:
    """Text in place of an error raises nothing into the caller, and is kept."""
    error_tracker.log_error("boom", {"step": 1})  # type: ignore[arg-type]

    [entry] = error_tracker.get_recent_errors(1)
    assert (entry["error_type"], entry["error_message"]) == ("str", "boom")


def test_scopes_are_below_the_errors_own_context(error_tracker: ErrorTracker) -> None:
    """A run id that is bound once is on every error."""
    with bound(run_id="r7", step=1):
        error_tracker.log_error(ValueError("v"), {"step": 2})

    assert error_tracker.get_recent_errors(1)[0]["context"] == {"run_id": "r7", "step": 2}


class TestRanks:
    """Under a launcher each rank has a file."""

    @pytest.fixture(autouse=True)
    def _launched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RANK", "3")
        monkeypatch.setenv("WORLD_SIZE", "4")

    @pytest.mark.parametrize("rank_files", ["each", "first"])
    def test_an_error_of_any_rank_is_written(self, tmp_path: Path, rank_files: Any) -> None:
        """
        GIVEN: Rank 3 of a run, also of one where rank 0 alone writes files
        WHEN: Logging an error
        THEN: Its own file has the line, with the rank behind the context.
        """
        tracker = ErrorTracker(logging.getLogger("test"), tmp_path, rank_files=rank_files)
        tracker.log_error(ValueError("v"), {"step": 2})
        tracker.close()

        assert tracker.errors_file == tmp_path / "errors@rank3.jsonl"
        (entry,) = lines(tracker.errors_file)
        assert list(entry)[-2:] == ["context", "rank"]
        assert (entry["context"], entry["rank"]) == ({"step": 2}, 3)

    @pytest.mark.parametrize(
        ("rank_files", "name"), [("each", "errors@rank0.jsonl"), ("first", "errors.jsonl")]
    )
    def test_the_first_rank_keeps_the_name_where_it_writes_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank_files: Any, name: str
    ) -> None:
        """
        GIVEN: Rank 0
        WHEN: Making a tracker
        THEN: The sets of files are alike, or its is the plain one.
        """
        monkeypatch.setenv("RANK", "0")
        tracker = ErrorTracker(logging.getLogger("test"), tmp_path, rank_files=rank_files)
        assert tracker.errors_file == tmp_path / name

    def test_the_latest_are_those_of_all_ranks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """
        GIVEN: Errors of two ranks
        WHEN: Either asks for the latest, or somebody reads errors.jsonl
        THEN: They get both, in order of time.
        """
        for rank in (3, 1):
            monkeypatch.setenv("RANK", str(rank))
            tracker = ErrorTracker(logging.getLogger("test"), tmp_path)
            tracker.log_error(ValueError("v"))
            tracker.close()

        assert [entry["rank"] for entry in tracker.get_recent_errors()] == [1, 3]
        assert [entry["rank"] for entry in read_jsonl(tmp_path / "errors.jsonl")] == [3, 1]

    def test_an_unknown_choice_is_refused(self, tmp_path: Path) -> None:
        """
        GIVEN: A wrong word
        WHEN: Making a tracker
        THEN: The right ones are named.
        """
        with pytest.raises(ValueError, match="use 'each' or 'first'"):
            ErrorTracker(logging.getLogger("test"), tmp_path, rank_files="all")  # type: ignore[arg-type]
