"""SinkHandler: what a tracker is given, and what a broken one costs."""

from __future__ import annotations

import asyncio
import inspect
import io
import logging
import logging.config
import os
import sqlite3
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from foundry_log import (
    LoggingConfig,
    MetricsLogger,
    RedactingFilter,
    SinkHandler,
    StructuredLogger,
    configure,
)
from foundry_log.records import entry_record
from foundry_log.sinks.base import flat_numbers

pytestmark = pytest.mark.unit

DEADLINE_S = 20
METRICS = "foundry_log.metrics.sinks"


class Tracker(SinkHandler):
    """A sink that keeps what it gets; `failures` are raised first, one a call."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"retry_delay_s": 0, **options})
        self.seen: list[tuple[Any, ...]] = []
        self.times: list[float] = []
        self.openings = self.tries = self.ends = 0
        self.open_failures: list[BaseException] = []
        self.failures: list[BaseException] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def take(self, *what: Any) -> None:
        self.entered.set()
        assert self.gate.wait(DEADLINE_S)
        self.tries += 1
        if self.failures:
            raise self.failures.pop(0)
        self.seen.append(what)
        self.times.append(self.created)

    def open(self) -> None:
        self.openings += 1
        if self.open_failures:
            raise self.open_failures.pop(0)

    def metrics(
        self, step: int, epoch: int, values: Mapping[str, float], entry: Mapping[str, Any]
    ) -> None:
        self.take("metrics", step, epoch, values, entry["metrics"])

    def summary(self, epoch: int, values: Mapping[str, float], entry: Mapping[str, Any]) -> None:
        self.take("summary", epoch, values)

    def config(self, values: Mapping[str, Any]) -> None:
        self.take("config", values)

    def checkpoint(self, facts: Mapping[str, Any]) -> None:
        self.take("checkpoint", facts)

    def system(self, values: Mapping[str, float]) -> None:
        self.take("system", values)

    def text(self, record: logging.LogRecord) -> None:
        self.take("text", self.format(record))

    def resumed(self, attempt: int, step: int) -> None:
        self.take("resumed", attempt, step)

    def end(self) -> None:
        self.ends += 1

    @property
    def steps(self) -> list[int]:
        return [what[1] for what in self.seen if what[0] == "metrics"]


Make = Callable[..., Tracker]


@pytest.fixture
def make() -> Iterator[Make]:
    """Make trackers that get the metrics of `sinks`; all closed at the end."""
    made: list[Tracker] = []

    def make_one(**options: Any) -> Tracker:
        made.append(Tracker(**options))
        logging.getLogger(METRICS).addHandler(made[-1])
        return made[-1]

    yield make_one
    for tracker in made:
        tracker.gate.set()
        logging.getLogger(METRICS).removeHandler(tracker)
        tracker.close()
        for thread in threading.enumerate():
            if thread.name == "foundry_log-background":
                thread.join(DEADLINE_S)


@pytest.fixture
def metrics(tmp_path: Path) -> Iterator[MetricsLogger]:
    """The metrics logger whose records the trackers get."""
    logger = MetricsLogger("sinks", tmp_path)
    yield logger
    logger.close()


def offer(handler: logging.Handler, **entry: Any) -> None:
    """Hand a sink an entry, as MetricsLogger does."""
    handler.handle(entry_record(METRICS, logging.INFO, "entry", entry))


def say(handler: logging.Handler, message: str, level: int = logging.WARNING) -> None:
    """Hand a sink a message."""
    handler.handle(logging.LogRecord("train", level, "", 0, message, None, None))


def step(handler: logging.Handler, number: int, **values: Any) -> None:
    """Hand a sink the metrics of a step."""
    offer(handler, step=number, epoch=0, metrics=values or {"loss": 1.0}, attempt=1)


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings of the sinks."""
    found = [each for each in caplog.records if each.name == "foundry_log.sinks"]
    return [each.getMessage() for each in found if each.levelno == logging.WARNING]


class TestWhatATrackerGets:
    """Each kind of record reaches its method."""

    def test_the_metrics_of_a_run_arrive_in_order(self, make: Make, metrics: MetricsLogger) -> None:
        """What MetricsLogger writes to its file is what its sinks get."""
        tracker = make()
        for number in range(50):
            metrics.log_step(number, 2, {"loss": number / 4, "inner": {"lr": 1}, "tag": "a"})
        metrics.log_epoch_summary(2, {"loss": 3.5})
        tracker.close()

        assert tracker.steps == list(range(50))
        entry = {"loss": 0.25, "inner": {"lr": 1}, "tag": "a"}
        assert tracker.seen[1] == ("metrics", 1, 2, {"loss": 0.25, "inner/lr": 1}, entry)
        assert tracker.seen[-1] == ("summary", 2, {"loss": 3.5})
        assert not tracker.losses

    def test_each_kind_of_entry_reaches_its_method(self, make: Make) -> None:
        """Configuration, checkpoints, measurements and resumes are no metrics."""
        tracker = make()
        facts = {"path": "c/5", "step": 5, "epoch": 1, "size_bytes": 9, "eval_loss": None}
        offer(tracker, config={"a": {"b": [1]}}, attempt=1)
        offer(tracker, checkpoint=facts, attempt=1)
        offer(tracker, system={"cpu_percent": 12.0, "gpu.0.name": "H"}, attempt=1)
        offer(tracker, attempt=2, resumed_from_step=5)
        offer(tracker, something_new=1)
        tracker.close()

        assert tracker.seen == [
            ("config", {"a": {"b": [1]}}),
            ("checkpoint", facts),
            ("system", {"cpu_percent": 12.0}),
            ("resumed", 2, 5),
        ]

    def test_a_record_keeps_the_time_at_which_it_was_logged(self, make: Make) -> None:
        """However late it is sent."""
        tracker = make()
        record = entry_record(METRICS, logging.INFO, "entry", {"system": {"x": 1}})
        record.created = 1234.5
        tracker.handle(record)
        tracker.close()

        assert tracker.times == [1234.5]

    def test_messages_are_taken_from_the_text_level_on(self, make: Make) -> None:
        """Metrics are INFO records, and are taken whatever the level of texts."""
        tracker = make(text_level="error")
        say(tracker, "low")
        say(tracker, "high", logging.ERROR)
        step(tracker, 1)
        tracker.close()

        assert [what[0] for what in tracker.seen] == ["text", "metrics"]
        assert tracker.seen[0][1].endswith("high")

    def test_a_structured_message_is_a_line_for_people(self, make: Make) -> None:
        """The default line has message and context, and no JSON; a formatter changes it."""
        tracker = make()
        adapter = StructuredLogger("sinks-structured", SimpleNamespace(experiment_name="e"))
        adapter.logger.addHandler(tracker)
        adapter.warning("slow batch", batch=3)
        tracker.flush()
        tracker.setFormatter(logging.Formatter("<%(levelname)s>"))
        adapter.warning("again")
        tracker.close()

        assert "slow batch" in tracker.seen[0][1]
        assert "batch=3" in tracker.seen[0][1]
        assert "{" not in tracker.seen[0][1]
        assert tracker.seen[1] == ("text", "<WARNING>")

    def test_a_call_is_made_in_its_turn(self, make: Make) -> None:
        """On the thread, behind what was logged before, and not when the sink is closed."""
        tracker = make()
        step(tracker, 1)
        taken = tracker.call(lambda: tracker.take("call", threading.current_thread().name))
        step(tracker, 2)
        tracker.close()

        assert taken
        assert [what[0] for what in tracker.seen] == ["metrics", "call", "metrics"]
        assert tracker.seen[1] == ("call", "foundry_log-background")
        assert not tracker.call(lambda: None)

    @pytest.mark.parametrize(
        ("given", "flat"),
        [
            ({"a": 1, "b": True, "c": None, "d": "x", "e": [1]}, {"a": 1, "b": 1}),
            ({"a": {"b": {"c": 2.5}, "d": {}}}, {"a/b/c": 2.5}),
            ({"a": 10**400, "b": 10**300}, {"b": 10**300}),
            ("no dict", {}),
        ],
    )
    def test_numbers_are_found_below_dicts(self, given: Any, flat: dict[str, float]) -> None:
        """Names are joined by a slash; what is no number is left out."""
        found = flat_numbers(given)
        assert found == flat
        assert bool not in map(type, found.values())


class TestLifetime:
    """Beginnings and ends."""

    def test_nothing_happens_before_the_first_record(self, make: Make) -> None:
        """No thread and no tracker, and so no end."""
        threads = threading.active_count()
        tracker = make()
        assert threading.active_count() == threads
        tracker.close()

        assert (tracker.openings, tracker.ends) == (0, 0)

    def test_it_ends_once(self, make: Make) -> None:
        """However often it is closed; what comes later is counted, not sent."""
        tracker = make()
        step(tracker, 1)
        tracker.close()
        tracker.close()
        step(tracker, 2)

        assert (tracker.openings, tracker.ends, tracker.steps) == (1, 1, [1])
        assert tracker.losses == {"closed": 1}

    def test_an_end_that_fails_is_a_warning(
        self, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        """And no error of who closes."""

        class Endless(Tracker):
            def end(self) -> None:
                raise OSError("gone")

        tracker = Endless()
        step(tracker, 1)
        tracker.close()

        assert warned(caplog) == ["Endless could not finish: OSError: gone"]

    def test_an_end_that_exits_ends_the_thread_in_order(self) -> None:
        """GIVEN a tracker that calls sys.exit THEN what comes later is counted as closed."""

        class Exiting(Tracker):
            def end(self) -> None:
                raise SystemExit(1)

        tracker = Exiting()
        step(tracker, 1)
        tracker.close()
        step(tracker, 2)

        assert tracker.steps == [1]
        assert tracker.losses == {"closed": 1}

    def test_the_end_of_the_program_ends_the_tracker(self, tmp_path: Path) -> None:
        """Before the exit functions of its package, which may take away what it needs."""
        script = f"""
import atexit, logging
from foundry_log import MetricsLogger, SinkHandler
class Sink(SinkHandler):
    def open(self): atexit.register(print, "exit function")
    def metrics(self, step, *rest): print("step", step)
    def end(self): print("end")
logging.getLogger("foundry_log.metrics.e").addHandler(Sink())
MetricsLogger("e", {str(tmp_path)!r}).log_step(1, 0, {{"loss": 1}})
"""
        assert run_python(script) == "step 1\nend\nexit function\n"

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
    def test_a_forked_child_sends_nothing(self, make: Make) -> None:
        """Connections do not survive a fork; the child counts, and ends."""
        tracker = make()
        step(tracker, 1)
        tracker.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: of forks beside threads
            child = os.fork()
        if child == 0:
            step(tracker, 2)
            tracker.call(lambda: os._exit(1))
            tracker.flush()
            os._exit(0 if tracker.losses == {"forked": 1} and tracker.steps == [1] else 2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        step(tracker, 3)
        tracker.close()

        assert tracker.steps == [1, 3]


def run_python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints, before a deadline."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("error", [SystemExit(1), asyncio.CancelledError("cut off")])
def test_an_exit_of_the_tracker_is_a_failure_like_others(
    make: Make, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """It is tried again, and then a warning and a count; opening waits its turn."""
    tracker = make(retries=1)
    tracker.open_failures = [error, error]
    for number in (1, 2):
        step(tracker, number)
    tracker.close()

    assert tracker.openings == 2
    assert tracker.losses == {type(error).__name__: 2}
    [warning] = warned(caplog)
    assert warning.startswith(f"Tracker could not send a record: {type(error).__name__}")


class TestSecrets:
    """Where a run's records are redacted, a tracker gets no secrets either."""

    @pytest.mark.parametrize("background", [False, True])
    def test_they_are_taken_out_of_messages(
        self, make: Make, tmp_path: Path, background: bool
    ) -> None:
        """Also where the files' handlers redact on a thread of their own."""
        tracker = make()
        root = logging.getLogger()
        config = LoggingConfig(redact_secrets=True, background_writing=background)
        with configure(config, tmp_path, console=False):
            root.addHandler(tracker)
            log = logging.getLogger("train")
            log.warning("connected with password=hunter2hunter2")
            log.warning("connected", extra={"password": "hunter2hunter2"})
            try:
                raise ValueError("password=hunter2hunter2")
            except ValueError:
                log.exception("failed")
            tracker.flush()
            root.removeHandler(tracker)

        assert len(tracker.seen) == 3
        assert "hunter2hunter2" not in repr(tracker.seen)
        assert repr(tracker.seen).count("redacted") >= 3

    def test_other_handlers_get_the_record_as_it_is(self, make: Make) -> None:
        """It is the sink's copy that is redacted."""
        tracker = make()
        log = logging.getLogger("a_redacted_logger")
        writer = logging.StreamHandler(io.StringIO())
        writer.addFilter(RedactingFilter())
        record = logging.LogRecord(log.name, 30, "", 0, "password=hunter2hunter2", None, None)
        log.addHandler(writer)
        tracker.handle(record)
        tracker.flush()
        log.removeHandler(writer)

        assert record.msg == "password=hunter2hunter2"
        assert "hunter2hunter2" not in repr(tracker.seen)


class TestATrackerThatIsMissing:
    """Its package is not installed."""

    def test_one_warning_says_what_to_install_and_all_is_counted(
        self, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is not looked for again."""
        tracker = make()
        tracker.open_failures = [ImportError("X needs x: pip install 'foundry_log[x]'")]
        for number in range(5):
            step(tracker, number)
        tracker.close()

        assert (tracker.openings, tracker.ends, tracker.seen) == (1, 0, [])
        assert tracker.losses == {"ImportError": 5}
        (warning,) = warned(caplog)
        assert "pip install 'foundry_log[x]'" in warning
        assert "files have everything" in warning


class TestATrackerThatFails:
    """It raises."""

    def test_a_record_that_fails_is_tried_again(self, make: Make) -> None:
        """Nothing is lost, and nobody is bothered."""
        tracker = make(retries=2)
        tracker.failures = [OSError(), ValueError()]
        step(tracker, 1)
        step(tracker, 2)
        tracker.close()

        assert tracker.steps == [1, 2]
        assert not tracker.losses

    def test_what_stays_broken_is_counted_and_said_once_per_cause(
        self, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The first record gets its retries, later ones a single try until one arrives."""
        caplog.set_level(logging.INFO)
        tracker = make(retries=2)
        tracker.failures = [ConnectionError("away")] * 3 + [ValueError("odd")] * 2
        for number in range(5):
            step(tracker, number)
        tracker.flush()
        tracker.failures = [ValueError("odd")]
        step(tracker, 5)
        tracker.close()

        assert tracker.steps == [3, 4, 5]
        assert tracker.losses == {"ConnectionError": 1, "ValueError": 2}
        assert tracker.tries == 3 + 2 + 2 + 2  # it works again: the last record is retried
        assert len(warned(caplog)) == 2
        assert "Tracker could not send a record: ConnectionError" in warned(caplog)[0]
        assert "Tracker works again; records that it lacks: 3" in caplog.text

    def test_what_it_does_not_take_is_no_sign_of_life(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """GIVEN a sink of metrics alone that fails WHEN a text comes THEN nothing works again."""

        class Broken(SinkHandler):
            def metrics(self, *_: Any) -> None:
                raise ConnectionError("away")

        caplog.set_level(logging.INFO)
        tracker = Broken(retries=0)
        for number in range(3):
            step(tracker, number)
            tracker.handle(logging.LogRecord("a", logging.ERROR, "", 0, "text", None, None))
        tracker.close()
        assert tracker.losses == {"ConnectionError": 3}
        assert "works again" not in caplog.text

    def test_a_tracker_that_does_not_open_is_tried_now_and_then(self, make: Make) -> None:
        """Not for each record."""
        tracker = make(retries=1, reopen_after_s=3600)
        tracker.open_failures = [TimeoutError()] * 2
        for number in range(9):
            step(tracker, number)
        tracker.close()

        assert tracker.openings == 2
        assert tracker.losses == {"TimeoutError": 9}
        assert tracker.ends == 0

    def test_a_tracker_that_opens_again_gets_the_rest(self, make: Make) -> None:
        """An outage ends."""
        tracker = make(retries=0, reopen_after_s=0)
        tracker.open_failures = [TimeoutError()] * 2
        for number in range(5):
            step(tracker, number)
        tracker.close()

        assert (tracker.openings, tracker.steps) == (3, [2, 3, 4])

    def test_a_broken_connection_is_opened_anew(self, make: Make) -> None:
        """Where records have failed for some time."""
        tracker = make(retries=0, reopen_after_s=0)
        tracker.failures = [OSError(), OSError()]
        for number in range(4):
            step(tracker, number)
        tracker.close()

        assert (tracker.openings, tracker.steps, tracker.ends) == (3, [2, 3], 1)

    def test_even_an_exit_does_not_end_the_thread(self, make: Make) -> None:
        """Some packages call `sys.exit`; the record is tried again, as after an error."""
        tracker = make()
        tracker.failures = [SystemExit()]
        step(tracker, 1)
        step(tracker, 2)
        tracker.close()

        assert tracker.steps == [1, 2]
        assert tracker.losses == {}

    def test_closing_waits_for_no_pause(self, make: Make) -> None:
        """The pauses between retries, here of an hour in all, end at once."""
        tracker = make(retries=2000, retry_delay_s=9)
        tracker.failures = [OSError()] * 2000
        step(tracker, 1)
        assert tracker.entered.wait(DEADLINE_S)
        tracker.close()

        assert tracker.steps == [1]


class TestATrackerThatLogs:
    """It is attached to the root, as its own logger is."""

    def test_what_its_thread_logs_does_not_come_back(self, make: Make) -> None:
        """Neither its package's messages nor the warnings about itself."""
        tracker = make(retries=0)
        root = logging.getLogger()
        root.addHandler(tracker)
        try:
            tracker.failures = [OSError("the first record")]
            say(tracker, "first")
            tracker.call(lambda: logging.getLogger("package").error("I fail"))
            tracker.flush()
        finally:
            root.removeHandler(tracker)
        tracker.close()

        assert tracker.seen == []
        assert sum(tracker.losses.values()) == 1


class TestATrackerThatIsSlow:
    """It does not return."""

    def test_the_caller_goes_on(self, make: Make, metrics: MetricsLogger) -> None:
        """All steps are logged while the tracker is still at the first."""
        tracker = make()
        tracker.gate.clear()
        for number in range(200):
            metrics.log_step(number, 0, {"loss": 1.0})

        assert tracker.seen == []
        assert len(metrics.get_metrics_history()) == 200
        tracker.gate.set()
        tracker.close()
        assert tracker.steps == list(range(200))

    def test_a_full_queue_drops_and_says_so(
        self, make: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The newest by default; the tracker and people are told."""
        tracker = make(capacity=3)
        tracker.gate.clear()
        step(tracker, 0)
        assert tracker.entered.wait(DEADLINE_S)
        for number in range(1, 10):
            step(tracker, number)
        tracker.gate.set()
        tracker.close()

        assert tracker.steps == [0, 1, 2]
        assert tracker.dropped == {"INFO": 7}
        (notice,) = (what for what in tracker.seen if what[0] == "text")
        assert "7 records were dropped" in notice[1]
        assert "7 records were dropped" in warned(caplog)[0]

    def test_closing_keeps_its_deadline(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is left is counted."""
        monkeypatch.setattr(logging, "raiseExceptions", False)
        tracker = make(flush_timeout_s=0.05)
        tracker.gate.clear()
        for number in range(4):
            step(tracker, number)
        tracker.close()

        assert tracker.losses == {"TimeoutError": 4}

    def test_a_tracker_that_sleeps_does_not_hold_up_the_end_of_the_program(
        self, tmp_path: Path
    ) -> None:
        """The deadline holds; what is left is said on standard error."""
        script = f"""
import logging, threading
from foundry_log import MetricsLogger, SinkHandler
class Sink(SinkHandler):
    def metrics(self, *rest): threading.Event().wait(600)
logging.getLogger("foundry_log.metrics.e").addHandler(Sink(flush_timeout_s=0.2))
metrics = MetricsLogger("e", {str(tmp_path)!r})
for step in range(3):
    metrics.log_step(step, 0, {{"loss": 1}})
print(len(metrics.get_metrics_history()))
"""
        assert run_python(script) == "3\n"


class TestSetUp:
    """Values, dictConfig and ini."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"retries": -1}, "retries=-1 must be 0 or more"),
            ({"retry_delay_s": -1}, "retry_delay_s=-1 must be 0 or more seconds"),
            ({"reopen_after_s": -1}, "reopen_after_s=-1 must be 0 or more seconds"),
            ({"text_level": "LOUD"}, "text_level='LOUD' is no level; use a name such as WARNING"),
            ({"capacity": 0}, "capacity=0 must be 1 or more records"),
            ({"overflow": "x"}, "overflow='x' is no rule"),
            ({"flush_timeout_s": 0}, "flush_timeout_s=0 must be above 0 seconds"),
        ],
    )
    def test_a_wrong_value_is_refused(self, options: dict[str, Any], message: str) -> None:
        """With field, value and rule."""
        with pytest.raises(ValueError, match=message):
            SinkHandler(**options)

    def test_a_sink_is_configured_by_dict_config(self, metrics: MetricsLogger) -> None:
        """By its dotted name, with plain arguments."""
        made = {"()": f"{__name__}.Tracker", "capacity": 5, "text_level": "ERROR"}
        logging.config.dictConfig(
            {
                "version": 1,
                "disable_existing_loggers": False,
                "handlers": {"tracker": made},
                "loggers": {METRICS: {"handlers": ["tracker"]}},
            }
        )
        (tracker,) = logging.getLogger(METRICS).handlers
        metrics.log_step(1, 0, {"loss": 1.0})
        tracker.close()

        assert isinstance(tracker, Tracker)
        assert tracker.steps == [1]


# The example of the README.
class SqliteHandler(SinkHandler):
    """Keeps the metrics of a run in a table."""

    def __init__(self, path: str, **options: Any) -> None:
        self.path = path
        super().__init__(**options)

    def open(self) -> None:
        self.table = sqlite3.connect(self.path)
        self.table.execute("CREATE TABLE IF NOT EXISTS metrics (step, epoch, name, value)")

    def metrics(
        self, step: int, epoch: int, values: Mapping[str, float], entry: Mapping[str, Any]
    ) -> None:
        rows = [(step, epoch, name, value) for name, value in values.items()]
        with self.table:
            self.table.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?)", rows)

    def end(self) -> None:
        self.table.close()


class TestAThirdSink:
    """Written by a user."""

    def test_it_takes_less_than_forty_lines(self) -> None:
        """As the README promises."""
        assert len(inspect.getsource(SqliteHandler).splitlines()) < 40

    def test_it_works_by_an_ini_file(self, tmp_path: Path) -> None:
        """With positional arguments, in a program of its own."""
        (tmp_path / "logging.ini").write_text(
            f"""
[loggers]
keys=root,metrics
[handlers]
keys=table
[formatters]
keys=
[logger_root]
handlers=
[logger_metrics]
qualname={METRICS}
handlers=table
propagate=0
[handler_table]
class={__name__.rpartition(".")[2]}.SqliteHandler
args=({str(tmp_path / "run.db")!r},)
kwargs={{"retries": 1}}
"""
        )
        script = f"""
import logging.config
from foundry_log import MetricsLogger
logging.config.fileConfig({str(tmp_path / "logging.ini")!r}, disable_existing_loggers=False)
metrics = MetricsLogger("sinks", {str(tmp_path)!r})
for step in range(3):
    metrics.log_step(step, 0, {{"loss": step / 2}})
"""
        run_python(script, PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *sys.path]))

        table = sqlite3.connect(tmp_path / "run.db")
        rows = table.execute("SELECT * FROM metrics ORDER BY step").fetchall()
        table.close()
        assert rows == [(0, 0, "loss", 0.0), (1, 0, "loss", 0.5), (2, 0, "loss", 1.0)]
