"""The short way of a record: taken where nobody can tell, and nowhere else."""

from __future__ import annotations

import copy
import io
import json
import logging
import logging.handlers
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from foundry_log import (
    BackgroundHandler,
    ConsoleFormatter,
    ConsoleHandler,
    ContextFilter,
    JsonFormatter,
    LoggingConfig,
    PlainFormatter,
    RedactingFilter,
    RotatingJsonlHandler,
    StructuredLogger,
    bound,
    configure,
    fast_loggers,
    read_jsonl,
)
from foundry_log.formatters import EntryFormatter
from foundry_log.handlers.direct import takers
from foundry_log.records import RESERVED, Parts, entry_record, parts_of, whole

pytestmark = pytest.mark.unit

STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", None, None)))


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger that only a test's own handlers listen to."""
    made = logging.getLogger("direct.test")
    parent, made.parent = made.parent, None  # pytest listens to those that do not propagate
    made.setLevel(logging.INFO)
    yield made
    made.parent = parent
    for handler in list(made.handlers):
        made.removeHandler(handler)
        handler.close()
    made.filters.clear()
    made.setLevel(logging.NOTSET)


@pytest.fixture
def handler(tmp_path: Path, logger: logging.Logger) -> RotatingJsonlHandler:
    made = RotatingJsonlHandler(tmp_path / "run.jsonl")
    logger.addHandler(made)
    return made


def structured(logger: logging.Logger) -> StructuredLogger:
    log = StructuredLogger(logger.name, SimpleNamespace(experiment_name="short"))
    log.context.clear()
    log.update_context(experiment="short")
    return log


def is_short(logger: logging.Logger) -> bool:
    return bool(takers(logger, logging.INFO))


class Spy(logging.Handler):
    """Somebody else's handler: keeps what it gets to see."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines without what differs from one record to the next."""
    found = list(read_jsonl(path))
    for line in found:
        del line["timestamp"]
    return found


# --- who listens ----------------------------------------------------------------------------------


def pickle_copy(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


class Subclass(RotatingJsonlHandler):
    """Somebody's own: any of its methods may want a record."""


class Formatter(JsonFormatter):
    """Somebody's own."""


class Fields(ContextFilter):
    """Somebody's own."""


def hook(*_: Any, **__: Any) -> bool:
    return True


LISTENERS: dict[str, Callable[[logging.Logger, RotatingJsonlHandler], object]] = {
    "a foreign handler": lambda logger, handler: logger.addHandler(Spy()),
    "a foreign handler of a parent": lambda logger, handler: _propagate(logger),
    "a subclass of our handler": lambda logger, handler: _replace(
        logger, handler, Subclass(handler.baseFilename)
    ),
    "a filter on the logger": lambda logger, handler: logger.addFilter(hook),
    "a filter on the handler": lambda logger, handler: handler.addFilter(logging.Filter()),
    "a function as filter": lambda logger, handler: handler.addFilter(hook),
    "a redacting filter": lambda logger, handler: handler.addFilter(RedactingFilter()),
    "a subclass of our filter": lambda logger, handler: handler.addFilter(Fields({"a": 1})),
    "a context filter for some loggers": lambda logger, handler: handler.addFilter(
        ContextFilter({"a": 1}, name="direct")
    ),
    "a foreign formatter": lambda logger, handler: handler.setFormatter(
        logging.Formatter("%(filename)s")
    ),
    "a subclass of our formatter": lambda logger, handler: handler.setFormatter(Formatter()),
    "a format": lambda logger, handler: handler.setFormatter(JsonFormatter("%(lineno)d")),
    "the caller": lambda logger, handler: handler.setFormatter(JsonFormatter(caller=True)),
    "flat context": lambda logger, handler: handler.setFormatter(JsonFormatter(context_key=None)),
    "a default for odd objects": lambda logger, handler: handler.setFormatter(
        JsonFormatter(json_default=str)
    ),
    "a human format": lambda logger, handler: handler.setFormatter(PlainFormatter("%(lineno)d")),
    "a method put on the formatter": lambda logger, handler: _put(
        JsonFormatter(), "formatTime", hook, handler.setFormatter
    ),
    "an option set later": lambda logger, handler: _put(
        JsonFormatter(), "static_fields", {"a": 1}, handler.setFormatter
    ),
    "emit put on the handler": lambda logger, handler: setattr(handler, "emit", hook),
    "handle put on the handler": lambda logger, handler: setattr(handler, "handle", hook),
    "handleError put on the handler": lambda logger, handler: setattr(handler, "handleError", hook),
    "filter put on the handler": lambda logger, handler: setattr(handler, "filter", hook),
    "another terminator": lambda logger, handler: setattr(handler, "terminator", ""),
    "another encoding": lambda logger, handler: _replace(
        logger, handler, RotatingJsonlHandler(handler.baseFilename, encoding="latin-1")
    ),
    "handle put on the logger": lambda logger, handler: setattr(logger, "handle", hook),
    "makeRecord put on the logger": lambda logger, handler: setattr(logger, "makeRecord", hook),
    "a queue before a foreign handler": lambda logger, handler: logger.addHandler(
        BackgroundHandler([Spy()])
    ),
    "a filter on a queue": lambda logger, handler: _filtered_queue(logger),
}


def _propagate(logger: logging.Logger) -> None:
    logger.parent = logging.getLogger()
    assert logger.parent.handlers  # pytest's


def _replace(logger: logging.Logger, old: logging.Handler, new: logging.Handler) -> None:
    logger.removeHandler(old)
    old.close()
    logger.addHandler(new)


def _put(target: Any, name: str, value: Any, use: Callable[[Any], object]) -> None:
    setattr(target, name, value)
    use(target)


def _filtered_queue(logger: logging.Logger) -> None:
    queue = BackgroundHandler(logger.handlers)
    queue.addFilter(hook)
    logger.handlers[:] = [queue]


class TestWhoListens:
    """Everybody who may need a record gets one."""

    def test_only_our_own_handlers(
        self, logger: logging.Logger, handler: RotatingJsonlHandler
    ) -> None:
        """As `configure` and a plain handler set them up: the short way."""
        assert is_short(logger)
        handler.setFormatter(JsonFormatter())
        handler.addFilter(ContextFilter({"host": "h"}))
        logger.addHandler(BackgroundHandler([handler]))
        assert is_short(logger)

    @pytest.mark.parametrize("listener", LISTENERS)
    def test_anybody_else(
        self,
        logger: logging.Logger,
        handler: RotatingJsonlHandler,
        listener: str,
        request: pytest.FixtureRequest,
    ) -> None:
        """A handler, filter, formatter, option or method that is not the package's own."""
        request.addfinalizer(lambda: _forget_hooks(logger))
        assert is_short(logger)
        LISTENERS[listener](logger, handler)

        assert not is_short(logger)

    def test_nobody_at_all(self, logger: logging.Logger) -> None:
        """So that the standard library's handler of last resort is heard."""
        assert not is_short(logger)

    def test_a_handler_of_a_higher_level_does_not_listen(
        self, logger: logging.Logger, handler: RotatingJsonlHandler
    ) -> None:
        """To what is below it, that is."""
        errors = Spy()
        errors.setLevel(logging.ERROR)
        logger.addHandler(errors)

        assert takers(logger, logging.INFO) == [handler]
        assert takers(logger, logging.ERROR) == []

    @pytest.mark.parametrize("method", ["_log", "makeRecord", "handle", "callHandlers"])
    def test_a_tracer_that_replaces_a_method_of_all_loggers(
        self,
        logger: logging.Logger,
        handler: RotatingJsonlHandler,
        monkeypatch: pytest.MonkeyPatch,
        method: str,
    ) -> None:
        """As several products do; it is heard, and the line is written."""
        stock: Any = getattr(logging.Logger, method)
        heard: list[str] = []

        def traced(self: logging.Logger, *args: Any, **kwargs: Any) -> Any:
            heard.append(method)
            return stock(self, *args, **kwargs)

        monkeypatch.setattr(logging.Logger, method, traced)
        assert not is_short(logger)
        structured(logger).info("traced", step=1)

        assert heard == [method]
        assert [line["message"] for line in lines(Path(handler.baseFilename))] == ["traced"]

    def test_a_record_factory(self, logger: logging.Logger, handler: RotatingJsonlHandler) -> None:
        """It makes every record, and what it puts there is written."""
        stock = logging.getLogRecordFactory()

        def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
            record = stock(*args, **kwargs)
            record.trace_id = "7f"
            return record

        logging.setLogRecordFactory(factory)
        try:
            assert not is_short(logger)
            structured(logger).info("traced")
        finally:
            logging.setLogRecordFactory(stock)

        (line,) = lines(Path(handler.baseFilename))
        assert line["context"]["trace_id"] == "7f"

    def test_a_logger_of_somebodys_class(self, handler: RotatingJsonlHandler) -> None:
        """Whose methods may do anything."""

        class Mine(logging.Logger):
            pass

        mine = Mine("mine", logging.INFO)
        mine.addHandler(handler)

        assert not is_short(mine)

    @pytest.mark.parametrize(
        ("owner", "method"),
        [
            (logging.Logger, "isEnabledFor"),
            (logging.Logger, "log"),
            (RotatingJsonlHandler, "emit"),
            (RotatingJsonlHandler, "format"),
            (JsonFormatter, "format"),
            (JsonFormatter, "add_fields"),
            (JsonFormatter, "process_log_record"),
            (ContextFilter, "filter"),
        ],
        ids=lambda each: getattr(each, "__name__", each),
    )
    def test_a_method_that_is_replaced_on_a_class(
        self,
        logger: logging.Logger,
        handler: RotatingJsonlHandler,
        monkeypatch: pytest.MonkeyPatch,
        owner: Any,
        method: str,
    ) -> None:
        """It is called, as ever, and the line is written."""
        stock, heard = getattr(owner, method), []

        def traced(self: Any, *args: Any, **kwargs: Any) -> Any:
            heard.append(method)
            return stock(self, *args, **kwargs)

        handler.addFilter(ContextFilter({"host": "h"}))
        assert is_short(logger)
        monkeypatch.setattr(owner, method, traced)
        structured(logger).info("heard", step=1)

        assert set(heard) == {method}
        assert [line["message"] for line in lines(Path(handler.baseFilename))] == ["heard"]

    @pytest.mark.parametrize("how", ["subclass", "on the formatter", "on the handler"])
    def test_a_format_of_somebodys_own_makes_the_line(
        self, handler: RotatingJsonlHandler, how: str
    ) -> None:
        """Of records with an exception, and without."""

        class Encrypting(JsonFormatter):
            def format(self, record: logging.LogRecord) -> str:
                return "encrypted"

        formatter: Any = Encrypting() if how == "subclass" else JsonFormatter()
        if how == "on the formatter":
            formatter.format = lambda record: "encrypted"
        handler.setFormatter(formatter)
        if how == "on the handler":
            handler.format = lambda record: "encrypted"  # type: ignore[method-assign]
        for exc_info in (None, (ValueError, ValueError("no"), None)):
            record = logging.makeLogRecord({"msg": "secret", "exc_info": exc_info})
            handler.handle(record)

        assert Path(handler.baseFilename).read_text() == "encrypted\n" * 2

    @pytest.mark.parametrize("where", ["class", "record"])
    def test_a_message_that_is_made_otherwise(
        self, handler: RotatingJsonlHandler, monkeypatch: pytest.MonkeyPatch, where: str
    ) -> None:
        """By a `getMessage` that was replaced, on the class or on a record."""
        record = logging.LogRecord("direct", logging.INFO, "", 0, "my secret", None, None)
        if where == "class":
            monkeypatch.setattr(logging.LogRecord, "getMessage", lambda self: "redacted")
        else:
            record.getMessage = lambda: "redacted"  # type: ignore[method-assign]
        handler.handle(record)

        (line,) = lines(Path(handler.baseFilename))
        assert line["message"] == "redacted"

    @pytest.mark.parametrize("args", ["none at all", "without truth"])
    def test_a_record_of_odd_arguments_raises_nothing(
        self, handler: RotatingJsonlHandler, args: str
    ) -> None:
        """As a handler may be given; it is written the long way."""

        class Odd:
            def __bool__(self) -> bool:
                raise RuntimeError("neither")

        record = logging.makeLogRecord({"msg": "hello"})
        if args == "none at all":
            del record.args
        else:
            record.args = Odd()  # type: ignore[assignment]
        handler.handle(record)

        (line,) = lines(Path(handler.baseFilename))
        assert line["message"].startswith("hello")

    def test_who_begins_to_listen_while_values_are_described(
        self, logger: logging.Logger, handler: RotatingJsonlHandler
    ) -> None:
        """The code of a value may change the set-up; this record already obeys."""
        spy = Spy()

        class Joins:
            def __repr__(self) -> str:
                if spy not in logger.handlers:
                    logger.addHandler(spy)
                return "joined"

        structured(logger).info("hello", value=Joins())

        assert [record.levelname for record in spy.records] == ["INFO"]
        assert len(lines(Path(handler.baseFilename))) == 1

    @pytest.mark.parametrize("kind", ["adapter", "mock", "anything"])
    def test_what_is_no_logger_of_the_stdlibs(
        self, logger: logging.Logger, handler: RotatingJsonlHandler, kind: str
    ) -> None:
        """An adapter in an adapter, a mock, an object with the methods: as ever."""
        log = structured(logger)
        stand_in: Any = {
            "adapter": logging.LoggerAdapter(logger, {"x": 1}),
            "mock": MagicMock(spec=logging.Logger),
            "anything": SimpleNamespace(isEnabledFor=hook, log=logger.log),
        }[kind]
        log.logger = stand_in
        log.debug("hidden" if kind != "anything" else "hello", step=1)
        log.info("hello", step=1)

        if kind == "mock":
            assert stand_in.log.called
        else:
            assert "hello" in lines(Path(handler.baseFilename))[-1]["message"]

    def test_a_foreign_handler_sees_a_complete_record(
        self, logger: logging.Logger, handler: RotatingJsonlHandler
    ) -> None:
        """All of the standard library's attributes, the caller's line, and JSON for its text."""
        spy = Spy()
        logger.addHandler(spy)
        structured(logger).info("step", loss=2.5)
        line = sys._getframe().f_lineno - 1

        (record,) = spy.records
        assert set(record.__dict__) >= STANDARD
        assert (record.filename, record.lineno) == (Path(__file__).name, line)
        assert json.loads(record.getMessage())["context"]["loss"] == 2.5


def _forget_hooks(logger: logging.Logger) -> None:
    for name in ("handle", "makeRecord"):
        logger.__dict__.pop(name, None)


# --- what is written ------------------------------------------------------------------------------

CONTEXTS: dict[str, dict[str, Any]] = {
    "none": {},
    "scalars": {"step": 3, "loss": 2.5, "ok": True, "name": "a\nb", "none": None},
    "non-finite": {"loss": float("nan"), "inner": {"a/b": [1.0, float("inf")]}},
    "nested": {"config": {"layers": [1, 2, {"x": (3, 4)}]}},
    "objects": {"path": Path("/x"), "error": ValueError("no"), "set": {1}},
    "taken names": {"level": "mine", "logger": "mine", "timestamp": 0, "context": {"a": 1}},
    "surrogate": {"text": "\ud800", "\udfff": 1},
    "huge": {"number": 10**5000},
    "unrepresentable": {"value": type("Odd", (), {"__repr__": lambda self: 1 / 0})()},
}
MESSAGES = {"text": "done", "percent": "100 %", "lines": "a\nb", "surrogate": "\udc80", "empty": ""}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
@pytest.mark.parametrize("way", ["structured", "plain"])
def test_the_lines_are_the_same_both_ways(
    tmp_path: Path, logger: logging.Logger, message: str, context: dict[str, Any], way: str
) -> None:
    """Of a StructuredLogger, and of a plain logger with the switch on; scopes included."""
    if way == "plain":
        context = {name: value for name, value in context.items() if name not in RESERVED}
    found = []
    for kind in (RotatingJsonlHandler, Subclass):
        path = tmp_path / f"{kind.__name__}.jsonl"
        made = kind(path)
        made.addFilter(ContextFilter({"host": "h", "step": 0}))
        logger.handlers[:] = [made]
        assert is_short(logger) is (kind is RotatingJsonlHandler)
        with fast_loggers(), bound(epoch=1, step=1):
            if way == "structured":
                structured(logger).info(message, **context)
            else:
                logger.info(message, extra=context)
        made.close()
        found.append(path.read_text().split('"level"')[1])

    assert found[0] == found[1]


def test_fields_that_are_filled_in_later_are_written(
    logger: logging.Logger, handler: RotatingJsonlHandler
) -> None:
    """The dicts of a formatter's options are its user's to change."""
    formatter = JsonFormatter()
    handler.setFormatter(formatter)
    formatter.static_fields["host"] = "h"
    formatter.rename_fields["level"] = "severity"
    structured(logger).info("hello")

    (line,) = lines(Path(handler.baseFilename))
    assert (line["host"], line["severity"]) == ("h", "INFO")


@pytest.mark.parametrize("way", ["structured", "plain", "queue"])
def test_fields_of_a_filter_stay_for_the_handlers_that_come_after(
    tmp_path: Path, logger: logging.Logger, way: str
) -> None:
    """On the short way too, and the first to give a name wins."""
    first, second = (RotatingJsonlHandler(tmp_path / f"{n}.jsonl") for n in (1, 2))
    first.addFilter(ContextFilter({"run": 7}))
    second.addFilter(ContextFilter({"run": 8, "more": 1}))
    handlers: list[logging.Handler] = [first, second]
    if way == "queue":
        handlers = [BackgroundHandler(handlers)]
    for each in handlers:
        logger.addHandler(each)
    assert is_short(logger)
    if way == "plain":
        logger.info("hello")
    else:
        structured(logger).info("hello")
    for each in handlers:
        each.flush()

    one, two = (lines(tmp_path / f"{n}.jsonl")[0]["context"] for n in (1, 2))
    assert (one["run"], two["run"], two["more"]) == (7, 7, 1)
    first.close()
    second.close()


def test_an_entry_is_an_entry_and_a_record_a_record(handler: RotatingJsonlHandler) -> None:
    """Under the formatter of `metrics.jsonl`, whose lines are not those of records."""
    handler.setFormatter(EntryFormatter())
    handler.handle(entry_record("x", logging.INFO, "m", {"n": 1}))
    handler.handle(logging.makeLogRecord({"msg": "text", "n": 2}))

    assert lines(Path(handler.baseFilename)) == [{"n": 1}, {"message": "text", "entry": None}]


@pytest.mark.parametrize("how", [pickle_copy, copy.deepcopy, copy.copy], ids=lambda f: f.__name__)
def test_a_copy_of_a_logger_obeys_the_levels_of_the_original(
    logger: logging.Logger, handler: RotatingJsonlHandler, how: Callable[[Any], Any]
) -> None:
    """What it knows about levels is the logger's, as they are set later too."""
    log = structured(logger)
    log.info("known")
    copied = how(log)
    logger.setLevel(logging.ERROR)
    copied.info("hidden")
    logger.setLevel(logging.DEBUG)
    copied.debug("shown")

    assert [line["message"] for line in lines(Path(handler.baseFilename))] == ["known", "shown"]


def test_each_kind_of_handler_takes_the_short_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Console, file for people and JSON: what `configure` sets up, before a queue and without."""
    for number, background in enumerate((False, True)):
        terminal = io.StringIO()
        monkeypatch.setattr(sys, "stderr", terminal)
        config = LoggingConfig(background_writing=background)
        with configure(config, tmp_path / str(number), context={"run": 7}) as session:
            root = logging.getLogger()
            others = [each for each in root.handlers if each not in session.handlers]
            for each in others:  # pytest's
                root.removeHandler(each)
            try:
                assert len(takers(logging.getLogger("app"), logging.INFO)) in (1, 3)
                log = StructuredLogger("app", SimpleNamespace(experiment_name="short"))
                log.info("hello", step=3)
                session.flush()
            finally:
                for each in others:
                    root.addHandler(each)
            (line,) = read_jsonl(session.directory.jsonl)
            assert (line["message"], line["context"]["step"]) == ("hello", 3)
            assert line["context"]["run"] == 7
            text = session.directory.log.read_text()
            assert text.rstrip("\n").endswith("INFO     app: hello  run=7 step=3")
            assert terminal.getvalue().rstrip("\n").endswith("INFO     app: hello  run=7 step=3")


@pytest.mark.parametrize("formatter", [PlainFormatter(), ConsoleFormatter(colors=True)])
def test_lines_for_people_are_the_same_both_ways(
    tmp_path: Path, logger: logging.Logger, formatter: logging.Formatter
) -> None:
    """Message, quoting, and what is hidden."""
    record = logging.LogRecord("app", logging.WARNING, "f.py", 1, "two\nlines", None, None)
    record.__dict__.update(step=3, loss=2.123456, text="a b", rank=0)
    parts = parts_of(record)

    assert parts is not None
    assert formatter.line(*parts) == formatter.format(record)  # type: ignore[attr-defined]


def test_a_console_follows_the_stream(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on the short way."""
    console = ConsoleHandler()
    console.setFormatter(ConsoleFormatter())
    logger.addHandler(console)
    assert is_short(logger)
    for _ in range(2):
        terminal = io.StringIO()
        monkeypatch.setattr(sys, "stderr", terminal)
        structured(logger).info("hello")
        assert terminal.getvalue().endswith("direct.test: hello\n")


def test_a_json_line_on_the_console(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As containers want it."""
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    console = ConsoleHandler()
    console.setFormatter(JsonFormatter())
    logger.addHandler(console)
    structured(logger).info("hello", step=1)

    assert json.loads(terminal.getvalue())["context"] == {"experiment": "short", "step": 1}


def test_what_cannot_be_written_is_counted(
    tmp_path: Path, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """And reported, with a record made for the report."""
    blocked = tmp_path / "file"
    blocked.touch()
    handler = RotatingJsonlHandler(blocked / "run.jsonl", delay=True)
    logger.addHandler(handler)
    assert is_short(logger)
    structured(logger).info("gone", step=1)

    assert handler.losses == {"NotADirectoryError ENOTDIR": 1}
    assert "Message: 'gone'" in capsys.readouterr().err


def test_a_record_made_of_parts_is_complete() -> None:
    """And gives the same parts again."""
    parts: Parts = (1_795_242_191.25, logging.INFO, "INFO", "app", "hello", {"step": 1})
    record = whole(parts)

    assert set(record.__dict__) >= STANDARD
    assert parts_of(record) == parts
    assert (record.msecs, record.getMessage()) == (250.0, "hello")
    assert whole(record) is record


# --- the switch for plain loggers -----------------------------------------------------------------


class TestFastLoggers:
    """Nothing changes unless it is asked for, and everything comes back."""

    def test_the_method_of_all_loggers_comes_back(self) -> None:
        """When the last of several is closed."""
        stock = logging.Logger._log  # type: ignore[attr-defined]
        first = fast_loggers()
        with fast_loggers():
            first.close()
            first.close()
            assert logging.Logger._log is not stock  # type: ignore[attr-defined]
        assert logging.Logger._log is stock  # type: ignore[attr-defined]

    def test_a_method_that_somebody_put_there_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before or after."""

        def mine(*_: Any, **__: Any) -> None:
            """Log nothing."""

        monkeypatch.setattr(logging.Logger, "_log", mine)
        fast_loggers().close()
        assert logging.Logger._log is mine  # type: ignore[attr-defined]

    @pytest.mark.parametrize("stacklevel", [1, 2])
    def test_the_caller_is_named_where_a_record_is_made(
        self, logger: logging.Logger, stacklevel: int
    ) -> None:
        """With the frames that the standard library would count."""
        spy = Spy()
        logger.addHandler(spy)

        def call() -> None:
            logger.info("hello", stacklevel=stacklevel)

        call()
        with fast_loggers():
            call()

        before, after = spy.records
        assert before.funcName == after.funcName
        assert (after.funcName == "call") is (stacklevel == 1)

    @pytest.mark.parametrize("name", ["message", "asctime", "lineno", "name"])
    def test_a_name_that_is_taken_is_refused_as_ever(
        self, logger: logging.Logger, handler: RotatingJsonlHandler, name: str
    ) -> None:
        """By the standard library."""
        with fast_loggers(), pytest.raises(KeyError, match=name):
            logger.info("hello", extra={name: 1})

    def test_arguments_exceptions_and_stacks(
        self, logger: logging.Logger, handler: RotatingJsonlHandler
    ) -> None:
        """Messages are formatted; what has an exception or a stack is a record."""
        with fast_loggers():
            logger.info("%s of %d", "one", 2)
            logger.info("%(a)s", {"a": 1})
            logger.info("100 %", extra={"_private": 1, "shown": 2})
            logger.info("%d", "no number")
            logger.info({"message": "a dict", "step": 1})
            logger.info("stack", stack_info=True)
            try:
                raise ValueError("no")
            except ValueError:
                logger.exception("failed")

        found = lines(Path(handler.baseFilename))
        assert [line["message"] for line in found] == [
            "one of 2",
            "1",
            "100 %",
            '%d ["no number"]',
            "a dict",
            "stack",
            "failed",
        ]
        assert found[2]["context"] == {"shown": 2}
        assert "test_direct.py" in found[5]["stack_info"]
        assert found[6]["exception"]["type"] == "ValueError"

    def test_configure_switches_it_on_and_off(self, tmp_path: Path) -> None:
        """For as long as its session is open."""
        stock = logging.Logger._log  # type: ignore[attr-defined]
        with configure(directory=tmp_path, console=False, fast_loggers=True):
            assert logging.Logger._log is not stock  # type: ignore[attr-defined]
        assert logging.Logger._log is stock  # type: ignore[attr-defined]

    def test_a_queue_of_the_stdlib_still_gets_records(self, logger: logging.Logger) -> None:
        """It is somebody else's handler like any other."""
        spy = Spy()
        queue: Any = logging.handlers.QueueHandler(SimpleNamespace(put_nowait=spy.emit))  # type: ignore[arg-type]
        logger.addHandler(queue)
        with fast_loggers():
            logger.info("hello", extra={"step": 1})

        assert spy.records[0].__dict__["step"] == 1
