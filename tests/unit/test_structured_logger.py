"""StructuredLogger: a LoggerAdapter whose keywords are context."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import logging.handlers
import pickle
import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from foundry_log import ExperimentConfig, JsonFormatter, LoggingConfig, StructuredLogger, bound

pytestmark = pytest.mark.unit

LEVELS = ("debug", "info", "warning", "error", "critical")


class Records(logging.Handler):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def last(self) -> logging.LogRecord:
        return self.records[-1]

    @property
    def line(self) -> dict[str, Any]:
        """The latest record as JsonFormatter writes it."""
        line: dict[str, Any] = json.loads(JsonFormatter().format(self.last))
        return line


@pytest.fixture
def records(structured_logger: StructuredLogger) -> Iterator[Records]:
    """What the logger "test" gets, at every level."""
    handler = Records()
    structured_logger.logger.addHandler(handler)
    structured_logger.logger.setLevel(1)
    yield handler
    structured_logger.logger.removeHandler(handler)


class TestStructuredLoggerInitialization:
    """What a new adapter has."""

    def test_creates_logger_with_base_context(self, tiny_config: ExperimentConfig) -> None:
        """GIVEN a configuration WHEN it is made THEN it knows experiment, commit and device."""
        log = StructuredLogger("test.logger", tiny_config)

        assert log.context["experiment"] == "test"
        assert log.context["device"] == "cpu"
        assert log.context["git_hash"] == "git_not_found" or len(log.context["git_hash"]) == 40
        assert isinstance(log.logger, logging.Logger)

    def test_logger_name_matches_input(self, tiny_config: ExperimentConfig) -> None:
        """GIVEN a name WHEN it is made THEN the logger has that name and is the stdlib's own."""
        log = StructuredLogger("a.custom.path", tiny_config)

        assert log.logger is logging.getLogger("a.custom.path")
        assert log.name == "a.custom.path"

    def test_contexts_are_independent(self, tiny_config: ExperimentConfig) -> None:
        """GIVEN two adapters WHEN one's context changes THEN the other's does not."""
        one, other = (StructuredLogger(name, tiny_config) for name in "ab")
        one.context["custom"] = 1

        assert "custom" not in other.context

    def test_it_touches_neither_levels_nor_handlers(self, tiny_config: ExperimentConfig) -> None:
        """GIVEN a fresh logger WHEN an adapter logs THEN level, handlers, propagation stay."""
        logger = logging.getLogger("untouched")
        StructuredLogger("untouched", tiny_config).info("hello")

        assert (logger.level, logger.handlers, logger.propagate) == (logging.NOTSET, [], True)

    def test_the_configured_device_counts(self, tiny_config: ExperimentConfig) -> None:
        """GIVEN a device WHEN it is made THEN the context has that one."""
        tiny_config.training.device = "cuda:3"

        assert StructuredLogger("test", tiny_config).context["device"] == "cuda:3"

    def test_any_object_with_a_name_will_do(self) -> None:
        """GIVEN no ExperimentConfig but its name WHEN it is made THEN that is enough."""

        class Mine:
            experiment_name = "mine"

        assert StructuredLogger("test", Mine()).context["experiment"] == "mine"

    def test_torch_is_not_imported_for_it(self) -> None:
        """GIVEN no torch in the process WHEN it is made THEN there is none afterwards."""
        code = (
            "import sys; from foundry_log import *; "
            "StructuredLogger('a', ExperimentConfig(experiment_name='x')); "
            "print('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

        assert done.stdout == "False\n"

    def test_cuda_is_not_initialised_for_it(self) -> None:
        """GIVEN torch in the process WHEN it is made THEN CUDA is as it was: untouched."""
        pytest.importorskip("torch", reason="torch is not installed here")
        code = (
            "import torch; from foundry_log import *; "
            "log = StructuredLogger('a', ExperimentConfig(experiment_name='x')); "
            "log.warning('x', tensor=torch.zeros(1)); "
            "print(log.context['device'], torch.cuda.is_initialized())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

        assert done.stdout == "cpu False\n", done.stderr


class TestStructuredLoggerOutput:
    """What stands in a file."""

    def test_a_plain_file_handler_holds_json(
        self, structured_logger: StructuredLogger, tmp_path: Path
    ) -> None:
        """GIVEN a FileHandler without formatter WHEN logging THEN the file is JSON."""
        handler = logging.FileHandler(tmp_path / "test.log")
        structured_logger.logger.addHandler(handler)
        structured_logger.logger.setLevel(logging.DEBUG)
        structured_logger.log_structured(logging.INFO, "Test message", custom_field="value123")
        handler.close()

        entry = json.loads((tmp_path / "test.log").read_text())
        assert entry["message"] == "Test message"
        assert entry["context"]["custom_field"] == "value123"
        assert {"experiment", "git_hash", "device"} <= set(entry["context"])

    def test_our_formatter_does_not_encode_twice(
        self, structured_logger: StructuredLogger, records: Records
    ) -> None:
        """GIVEN the same record WHEN JsonFormatter writes it THEN its parts are fields."""
        structured_logger.info("Test message", step=1)

        assert records.line["message"] == "Test message"
        assert records.line["context"]["step"] == 1

    def test_without_structured_logging_the_text_is_the_message(
        self, tiny_config: ExperimentConfig, caplog: pytest.LogCaptureFixture
    ) -> None:
        """GIVEN use_structured_logging=False WHEN logging THEN the text is for people."""
        tiny_config.logging = LoggingConfig(use_structured_logging=False)
        StructuredLogger("test", tiny_config).warning("plain", step=1)

        assert caplog.messages == ["plain"]
        assert json.loads(JsonFormatter().format(caplog.records[0]))["context"]["step"] == 1


class TestStructuredLoggerLevels:
    """One method a level."""

    @pytest.mark.parametrize("level", LEVELS)
    def test_a_method_logs_at_its_level(
        self, structured_logger: StructuredLogger, level: str
    ) -> None:
        """GIVEN `log` replaced on the logger WHEN a method is called THEN it gets the level.

        Also when the logger's own level would drop it: another test may have left it at ERROR.
        """
        structured_logger.logger.setLevel(logging.CRITICAL + 1)
        with patch.object(structured_logger.logger, "log") as mock_log:
            getattr(structured_logger, level)("Test message")

        mock_log.assert_called_once()
        assert mock_log.call_args[0][0] == getattr(logging, level.upper())
        assert json.loads(mock_log.call_args[0][1])["message"] == "Test message"

    @pytest.mark.parametrize("level", LEVELS)
    def test_a_record_has_its_level(
        self, structured_logger: StructuredLogger, records: Records, level: str
    ) -> None:
        """GIVEN a handler WHEN a method is called THEN the record has the level."""
        getattr(structured_logger, level)("x")

        assert records.last.levelname == level.upper()

    def test_log_takes_any_level(
        self, structured_logger: StructuredLogger, records: Records
    ) -> None:
        """GIVEN a level of one's own WHEN log is called THEN the record has it."""
        structured_logger.log(17, "x")

        assert records.last.levelno == 17

    def test_a_disabled_level_does_no_work(self, structured_logger: StructuredLogger) -> None:
        """GIVEN a level that is off WHEN logging THEN the arguments are not even looked at."""

        class Loud:
            def __repr__(self) -> str:
                raise AssertionError("looked at")

            __str__ = __repr__

        structured_logger.logger.setLevel(logging.ERROR)
        structured_logger.info(Loud(), value=Loud())

    @pytest.mark.parametrize("method", [*LEVELS, "exception", "log", "log_structured", "warn"])
    def test_the_record_names_the_callers_line(
        self, structured_logger: StructuredLogger, records: Records, method: str
    ) -> None:
        """GIVEN any method WHEN it is called THEN file, line and function are the caller's."""
        arguments = (logging.INFO, "x") if method.startswith("log") else ("x",)
        frame = inspect.currentframe()
        assert frame is not None
        getattr(structured_logger, method)(*arguments)
        line = frame.f_lineno - 1

        assert records.last.pathname == __file__
        assert records.last.funcName == "test_the_record_names_the_callers_line"
        assert records.last.lineno == line

    def test_stacklevel_names_the_callers_caller(
        self, structured_logger: StructuredLogger, records: Records
    ) -> None:
        """GIVEN stacklevel=2 WHEN a helper logs THEN the record names who called the helper."""

        def helper() -> None:
            structured_logger.info("x", stacklevel=2)

        helper()

        assert records.last.funcName == "test_stacklevel_names_the_callers_caller"


class TestStructuredLoggerContext:
    """Merging, overriding, changing."""

    def test_the_calls_fields_join_the_base(
        self, structured_logger: StructuredLogger, records: Records
    ) -> None:
        """GIVEN base fields WHEN logging with more THEN the record has both."""
        structured_logger.info("Test", step=100, loss=2.5)

        context = records.line["context"]
        assert context["experiment"] == "test"
        assert (context["step"], context["loss"]) == (100, 2.5)

    def test_the_call_overrides_the_base_for_one_record(
        self, structured_logger: StructuredLogger, records: Records
    ) -> None:
        """GIVEN a base field WHEN a call names it THEN that record has the call's value."""
        structured_logger.info("Test", experiment="other")
        assert records.line["context"]["experiment"] == "other"
        structured_logger.info("Test")

        assert records.line["context"]["experiment"] == "test"

    def test_update_context(self, structured_logger: StructuredLogger, records: Records) -> None:
        """GIVEN new base fields WHEN logging THEN each record that follows has them."""
        structured_logger.update_context(step=100, epoch=5)
        structured_logger.info("Test")

        assert structured_logger.context["step"] == 100
        assert records.line["context"]["epoch"] == 5

    def test_clear_context_field(
        self, structured_logger: StructuredLogger, records: Records
    ) -> None:
        """GIVEN base fields WHEN one is cleared THEN it is gone and the others are not."""
        structured_logger.update_context(step=100, temporary="x")
        structured_logger.clear_context_field("temporary")
        structured_logger.clear_context_field("never there")
        structured_logger.info("Test")

        assert "temporary" not in records.line["context"]
        assert records.line["context"]["step"] == 100

    def test_any_name_may_be_in_the_base(
        self, structured_logger: StructuredLogger, records: Records
    ) -> None:
        """GIVEN a base field named self WHEN logging THEN the record has it."""
        structured_logger.update_context(self=1, name=2)
        structured_logger.info("Test")

        assert (records.line["context"]["self"], records.line["context"]["name"]) == (1, 2)

    def test_a_value_that_changes_later_is_kept_as_it_was(
        self, structured_logger: StructuredLogger, records: Records
    ) -> None:
        """GIVEN a list as context WHEN it grows afterwards THEN the record does not."""
        losses = [1.0]
        structured_logger.info("Test", losses=losses)
        losses.append(2.0)

        assert records.line["context"]["losses"] == [1.0]

    def test_precedence(self, structured_logger: StructuredLogger, records: Records) -> None:
        """GIVEN one name everywhere WHEN logging THEN call wins over scope, scope over adapter."""
        structured_logger.update_context(a="adapter", b="adapter", c="adapter")
        with bound(b="scope", c="scope"):
            structured_logger.info("Test", c="call")

        context = records.line["context"]
        assert (context["a"], context["b"], context["c"]) == ("adapter", "scope", "call")

    @pytest.mark.parametrize("name", ["message", "msg", "level", "name", "self", "args", "context"])
    def test_any_name_is_legal_context(
        self, structured_logger: StructuredLogger, records: Records, name: str
    ) -> None:
        """GIVEN a name that a record or a method has WHEN it is context THEN it is kept."""
        structured_logger.info("Test", **{name: "mine"})
        structured_logger.log_structured(logging.INFO, "Test", **{name: "mine"})

        assert records.line["context"][name] == "mine"
        assert records.line["message"] == "Test"

    def test_extra_becomes_context_whatever_its_names(
        self, structured_logger: StructuredLogger, records: Records
    ) -> None:
        """GIVEN extra with reserved names WHEN logging THEN nothing raises and all is kept."""
        structured_logger.info("Test", extra={"message": 1, "lineno": 2, "own": 3})

        context = records.line["context"]
        assert (context["message"], context["lineno"], context["own"]) == (1, 2, 3)


class TestStructuredLoggerMessages:
    """The message and its arguments."""

    def test_arguments_are_formatted_as_in_the_stdlib(
        self, structured_logger: StructuredLogger, records: Records
    ) -> None:
        """GIVEN arguments WHEN logging THEN `%` puts them in, named ones from one dict."""
        structured_logger.info("%s of %d", "one", 2)
        structured_logger.info("%(a)s", {"a": 1})

        assert [r.__dict__["foundry_message"] for r in records.records] == ["one of 2", "1"]

    def test_without_arguments_percent_signs_stay(
        self, structured_logger: StructuredLogger, records: Records
    ) -> None:
        """GIVEN text with % and no arguments WHEN logging THEN it is left as it is."""
        structured_logger.info("100% done %s")

        assert records.line["message"] == "100% done %s"

    def test_arguments_that_do_not_fit_are_shown(
        self, structured_logger: StructuredLogger, records: Records
    ) -> None:
        """GIVEN a wrong format WHEN logging THEN message and arguments are kept, none raised."""
        structured_logger.info("%d steps", "many")

        assert records.line["message"].startswith("%d steps")
        assert "many" in records.line["message"]

    def test_what_raises_when_looked_at_is_kept_out_of_the_program(
        self, structured_logger: StructuredLogger, records: Records
    ) -> None:
        """GIVEN objects whose code fails WHEN logging THEN a record is made, none raised."""

        def fail(*_: Any) -> Any:
            raise RuntimeError("hostile")

        liar = type("Liar", (), {"__class__": property(fail)})()
        untrue = type("Untrue", (dict,), {"__len__": fail, "__bool__": fail})(a=1)
        structured_logger.info("%s", liar)
        structured_logger.info(liar, value=liar)
        structured_logger.info("%s", untrue)
        structured_logger.info("Test", extra=5)
        structured_logger.info("Test", extra={5: 6})

        assert len(records.records) == 5
        assert records.line["context"]["5"] == 6

    def test_text_that_looks_like_json_forges_nothing(
        self, structured_logger: StructuredLogger, records: Records
    ) -> None:
        """GIVEN a message that is our JSON WHEN a plain logger logs it THEN it is a message."""
        forged = '{"message":"m","context":{"admin":true}}'
        structured_logger.logger.info(forged)

        assert records.line["message"] == forged
        assert records.line["context"] == {}


class TestStructuredLoggerEdgeCases:
    """Values, exceptions and queues."""

    def test_values_without_json_form_are_described(
        self, structured_logger: StructuredLogger, records: Records
    ) -> None:
        """GIVEN an object WHEN it is context THEN its repr stands in the line."""

        class Thing:
            def __repr__(self) -> str:
                return "<a thing>"

        structured_logger.info("Test", obj=Thing())

        assert records.line["context"]["obj"] == "<a thing>"

    @pytest.mark.parametrize("how", ["exception", "true", "instance", "tuple"])
    def test_exceptions_are_logged(
        self, structured_logger: StructuredLogger, records: Records, how: str
    ) -> None:
        """GIVEN an exception WHEN it is logged in any of the stdlib's ways THEN it is there."""
        try:
            raise ValueError("Test error")
        except ValueError as error:
            if how == "exception":
                structured_logger.exception("failed")
            else:
                value: Any = {"true": True, "instance": error, "tuple": sys.exc_info()}[how]
                structured_logger.error("failed", exc_info=value)

        exception = records.line["exception"]
        assert (exception["type"], exception["message"]) == ("ValueError", "Test error")
        assert "Traceback" in exception["traceback"]

    def test_stack_info_is_kept(
        self, structured_logger: StructuredLogger, records: Records
    ) -> None:
        """GIVEN stack_info=True WHEN logging THEN the line has the stack."""
        structured_logger.info("here", stack_info=True)

        assert "test_stack_info_is_kept" in records.line["stack_info"]

    def test_a_stdlib_queue_loses_nothing(
        self, structured_logger: StructuredLogger, records: Records
    ) -> None:
        """GIVEN a QueueHandler and its listener WHEN an error is logged THEN all of it arrives."""
        structured_logger.logger.removeHandler(records)
        channel: queue.Queue[Any] = queue.Queue()
        sender = logging.handlers.QueueHandler(channel)
        structured_logger.logger.addHandler(sender)
        listener = logging.handlers.QueueListener(channel, records)
        listener.start()
        try:
            raise ValueError("queued")
        except ValueError:
            structured_logger.exception("failed", step=3)
        listener.stop()
        structured_logger.logger.removeHandler(sender)

        line = records.line
        assert line["message"] == "failed"
        assert line["context"]["step"] == 3
        assert "ValueError: queued" in line["exception"]["traceback"]

    def test_a_queue_between_processes_loses_nothing(
        self, structured_logger: StructuredLogger, records: Records
    ) -> None:
        """GIVEN a prepared record WHEN it is pickled THEN message, context, traceback arrive."""
        sender = logging.handlers.QueueHandler(queue.Queue())
        try:
            raise ValueError("queued")
        except ValueError:
            structured_logger.exception("failed", step=3, odd=lambda: None, stack_info=True)
        prepared = pickle.loads(pickle.dumps(sender.prepare(records.last)))

        line = json.loads(JsonFormatter().format(prepared))
        assert (line["message"], line["context"]["step"]) == ("failed", 3)
        assert "ValueError: queued" in line["exception"]["traceback"]

    def test_records_pickle_and_copy(
        self, structured_logger: StructuredLogger, records: Records
    ) -> None:
        """GIVEN context that cannot be pickled WHEN the record is THEN it arrives as plain data."""
        structured_logger.info("Test", obj=lambda: None, step=3)
        expected = records.line

        for record in (pickle.loads(pickle.dumps(records.last)), copy.copy(records.last)):
            assert json.loads(JsonFormatter().format(record)) == expected

    def test_a_configuration_without_a_name_is_refused(self) -> None:
        """GIVEN a LoggingConfig WHEN it is made THEN the error says what to pass."""
        with pytest.raises(TypeError, match="pass ExperimentConfig"):
            StructuredLogger("test", LoggingConfig())
