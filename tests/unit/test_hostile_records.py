"""Records of objects whose own code raises, lies, recurses or logs: one line each, nothing else."""

from __future__ import annotations

import builtins
import datetime
import decimal
import enum
import io
import logging
import logging.handlers
import os
import queue
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundry_log import (
    ConsoleFormatter,
    ConsoleHandler,
    ErrorTracker,
    JsonFormatter,
    MetricsLogger,
    PlainFormatter,
    RotatingJsonlHandler,
    StructuredLogger,
    bound,
    decode_line,
)
from foundry_log.formatters import EntryFormatter
from foundry_log.handlers import losses
from foundry_log.records import detached

pytestmark = pytest.mark.unit

TEXT = "the message"
COLORS = re.compile(r"\x1b\[(?:0|2|3[1-3]|1;37;41)m")
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def raises(*_: Any, **__: Any) -> Any:
    raise RuntimeError("hostile")


def hostile(*names: str, base: type = object, **members: Any) -> Any:
    """A class of which each of these names raises."""
    return type("Hostile", (base,), {**dict.fromkeys(names, raises), **members})


class BadZone(datetime.tzinfo):
    utcoffset = dst = tzname = raises


class LyingStr(str):
    __str__ = __repr__ = __len__ = __format__ = __eq__ = partition = encode = raises  # type: ignore[assignment]
    __hash__ = str.__hash__


class LyingTuple(tuple):  # type: ignore[type-arg]
    __iter__ = __len__ = __getitem__ = __bool__ = raises  # type: ignore[assignment]


class BadMeta(type):
    __getattribute__ = raises


def cyclic() -> Any:
    ring: dict[str, Any] = {"list": []}
    ring["list"].append(ring)
    return ring


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


SPECIALS = (
    "__repr__", "__str__", "__bool__", "__len__", "__iter__", "__eq__", "__format__", "__reduce__",
    "__getattr__", "__getattribute__", "__int__", "__index__", "__float__", "__fspath__",
)  # fmt: skip
VALUES: dict[str, Any] = {
    **{f"{name} raises": hostile(name, __hash__=object.__hash__)() for name in SPECIALS},
    "all raise": hostile(*SPECIALS, __hash__=object.__hash__)(),
    "class raises": hostile(__class__=property(raises))(),
    "dict raises": hostile(__dict__=property(raises))(),
    "lies to be a dict": hostile(__class__=dict)(),
    "lies to be an exception": hostile(__class__=ValueError)(),
    "lies to be text": hostile(__class__=str)(),
    "repr recurses": hostile(__repr__=repr)(),
    "repr is no text": hostile(__repr__=lambda self: 5, __str__=lambda self: None)(),
    "endless": hostile(__len__=lambda self: sys.maxsize, __getitem__=lambda self, i: i)(),
    "metaclass": BadMeta("Meta", (), {})(),
    "str": LyingStr("text\x1b[31m\nforged"),
    "int": hostile("__index__", "__str__", "__repr__", "__format__", base=int)(7),
    "float": hostile("__float__", "__repr__", "__round__", "__mul__", base=float)("nan"),
    "dict": hostile("items", "keys", "__iter__", "__len__", "__repr__", base=dict)(a=1),
    "list": hostile("__iter__", "__len__", "__repr__", base=list)([1]),
    "tuple": LyingTuple((1, 2, 3)),
    "cyclic": cyclic(),
    "deep": deep(5_000),
    "nan key": {float("nan"): float("nan"), None: 1, True: 2, (1, 2): 3, b"\xff": 4},
    "surrogates": "\ud800 and \udfff",
    "huge integer": 10**20_000,
    "bad zone": datetime.datetime(2026, 1, 1, tzinfo=BadZone()),
    "generator": (number for number in range(3)),
    "memoryview": memoryview(b"abc"),
    "mock": MagicMock(),
    "mock of an exception": MagicMock(spec=ValueError),
    "enum": enum.Enum("Odd", {"A": object()}).A,
    "decimal": decimal.Decimal("sNaN"),
    "module": os,
    "class": BadMeta("Class", (), {}),
    "bytes": b"\xff\x1b[31m\n",
    "none": None,
    "controls": "\x1b[31m\r\n2026 ERROR forged\x85\u2028\u202e\u200b",
}


def chained(links: int) -> Exception:
    error = ValueError("first")
    for number in range(links):
        link = ValueError(number)
        link.__context__ = error
        error = link
    return error


def ring_of_causes() -> Exception:
    first, second = ValueError("first"), TypeError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def with_attribute(**attributes: Any) -> Exception:
    error = ValueError("has an odd attribute")
    error.__dict__.update(attributes)
    return error


def groups(levels: int) -> BaseException:
    error: BaseException = ValueError("innermost")
    group = getattr(builtins, "ExceptionGroup", None)  # Python 3.11
    for _ in range(levels if group else 0):
        error = group("group", [error])
    return error


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


PARTS = ("__str__", "__repr__", "__traceback__", "__cause__", "__context__", "__notes__", "args")
ERRORS: dict[str, Callable[[], BaseException]] = {
    "plain": lambda: raised(ValueError("x")),
    **{
        f"{name} raises": lambda name=name: hostile(  # type: ignore[misc]
            base=Exception,
            **{name: raises if name.endswith(("str__", "repr__")) else property(raises)},
        )("x")
        for name in PARTS
    },
    "getattribute raises": lambda: hostile("__getattribute__", base=Exception)("x"),
    "class raises": lambda: hostile(base=Exception, __class__=property(raises))("x"),
    "metaclass": lambda: BadMeta("Meta", (Exception,), {})("x"),
    "cycle": ring_of_causes,
    "1,200 contexts": lambda: chained(1_200),
    "notes are no list": lambda: with_attribute(__notes__=5),
    "notes raise": lambda: with_attribute(__notes__=[VALUES["all raise"]]),
    "groups": lambda: groups(300),
    "truth raises": lambda: hostile("__bool__", "__len__", base=Exception)("x"),
    "controls": lambda: ValueError("a\x1b[2J\r\nTraceback forged\x85\u2028b"),
}

FORMATTERS: dict[str, logging.Formatter] = {
    "json": JsonFormatter(caller=True),
    "fields": JsonFormatter("%(asctime)s %(levelname)s %(lineno)d %(message)s %(exc_info)s"),
    "flat": JsonFormatter(context_key=None, exc_info_as_array=True, stack_info_as_array=True),
    "console": ConsoleFormatter(colors=True),
    "percent": ConsoleFormatter("%(asctime)s.%(msecs)03d %(levelname)s %(lineno)d %(message)s"),
    "brace": ConsoleFormatter("{asctime} {levelname} {name} {message}", style="{"),
    "plain": PlainFormatter(),
}


def record(msg: Any = TEXT, args: Any = (), /, **attributes: Any) -> logging.LogRecord:
    made = logging.LogRecord("app", logging.INFO, "/src/f.py", 12, msg, args, None, "func")
    made.__dict__.update(attributes)
    return made


def well_formed(name: str, text: str) -> str:
    """The text of a formatter, which must be one strict line or lines that forge nothing."""
    assert type(text) is str
    if name in ("json", "fields", "flat", "entry"):
        assert "\n" not in text
        assert decode_line(text)
    else:
        first, *rest = COLORS.sub("", text).split("\n")
        assert first and not first.startswith(" ")
        assert all(line.startswith("    ") for line in rest), rest
        assert not UNSEEN.search(COLORS.sub("", text).replace("\n", ""))
    return text


def check(made: logging.LogRecord, message: str | None = TEXT) -> None:
    """Each formatter writes the record well, as it is and detached."""
    for form in (made, detached(made)):
        for name, formatter in FORMATTERS.items():
            text = well_formed(name, formatter.format(form))
            assert message is None or message in text, name


@pytest.mark.parametrize("name", VALUES)
class TestValues:
    """Any object in any place of a call of the stdlib's loggers."""

    def test_as_message(self, name: str) -> None:
        """Also of a dict that is logged in place of text."""
        check(record(VALUES[name]), None)
        check(record({"message": VALUES[name], "field": VALUES[name]}), None)

    def test_as_argument(self, name: str) -> None:
        """That fits the format, that does not, and in the place of all arguments."""
        # Put there later: the stdlib's own LogRecord looks at a lone argument, and so may raise.
        lone = (VALUES[name],)
        for rest, args in ((" %s", lone), (" %d %d", lone), ("", VALUES[name])):
            made = record(TEXT + rest)
            made.args = args
            check(made)

    def test_as_extra(self, name: str) -> None:
        """Value of a field, and its name."""
        check(record(field=VALUES[name]))
        made = record()
        try:
            made.__dict__[VALUES[name]] = 1
        except Exception:  # not hashable, so it never becomes a name
            return
        check(made)

    def test_as_scope(self, name: str) -> None:
        """Bound round the call."""
        with bound(field=VALUES[name]):
            check(record())


ATTRIBUTES = sorted({*record().__dict__, "taskName"} - {"msg", "args"})
ODD_NUMBERS = (float("nan"), float("inf"), 1e300, -1e12)
GARBAGE = (True, 5, "text", (1,), (1, "2", [3]), (None, 1), (ValueError, ValueError("x"), 5))
OURS = ["message", "context", "text", "entry", "exception", "no name of ours"]


@pytest.mark.parametrize("name", ATTRIBUTES)
class TestAttributes:
    """Any object in place of any attribute that the stdlib sets."""

    def test_it_is_broken(self, name: str) -> None:
        """The message is there, in one line."""
        for value in (*VALUES.values(), *ODD_NUMBERS, *GARBAGE):
            check(record(**{name: value}))

    def test_it_is_gone(self, name: str) -> None:
        """A filter took it away."""
        made = record()
        made.__dict__.pop(name, None)
        check(made)


@pytest.mark.parametrize("name", OURS)
def test_our_own_attributes_may_be_broken(name: str) -> None:
    """All of them, on a plain record and on a structured one."""
    fields = {"foundry_message": TEXT, "foundry_text": TEXT, "foundry_context": {"a": 1}}
    for value in VALUES.values():
        broken = {f"foundry_{name}": value}
        check(record(**broken))
        check(record(**{**fields, **broken}), None if name == "message" else TEXT)


@pytest.mark.parametrize("name", VALUES)
def test_an_entry_may_be_broken(name: str) -> None:
    """In its place or inside it; a record that has none keeps its message."""
    formatter = EntryFormatter()
    for entry in (VALUES[name], {"field": VALUES[name]}):
        made = record(foundry_entry=entry, created=VALUES[name])
        well_formed("entry", formatter.format(made))
    assert decode_line(formatter.format(record()))["message"] == TEXT


def test_a_record_without_message_or_arguments_is_written() -> None:
    """Both taken away by a filter."""
    for name in ("msg", "args"):
        made = record()
        del made.__dict__[name]
        check(made, None)


@pytest.mark.parametrize("name", ERRORS)
class TestErrors:
    """Exceptions whose parts raise, lie, or have no end."""

    def test_in_a_record(self, name: str) -> None:
        """Type and text are there where they can be had."""
        error = ERRORS[name]()
        check(record(exc_info=(type(error), error, None)))

    def test_in_a_call(self, name: str, everything: SimpleNamespace) -> None:
        """Given as itself, as what `sys.exc_info` returns, and while it is handled."""
        error = ERRORS[name]()
        everything.log.error(TEXT, exc_info=error)
        everything.log.error(TEXT, exc_info=(type(error), error, None))
        everything.log.error(TEXT, cause=error)
        try:
            raise error
        except BaseException:
            everything.log.exception(TEXT)
        everything.tracker.log_error(error)
        everything.check(at_least=5)


# --- calls, with all our handlers on the logger ---


@pytest.fixture
def everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[SimpleNamespace]:
    """A logger with our handlers, the loggers over it, and a check of what they wrote."""
    console, plain = ConsoleHandler("stdout"), RotatingJsonlHandler(tmp_path / "plain.log")
    lines = RotatingJsonlHandler(tmp_path / "run.jsonl")
    console.setFormatter(ConsoleFormatter(colors=False))
    plain.setFormatter(PlainFormatter())
    logger = logging.Logger("hostile")  # of no tree: pytest's own handler lets its errors out
    logger.handlers[:] = [console, plain, lines]
    log = StructuredLogger("hostile", SimpleNamespace(experiment_name="e"))
    log.logger = logger
    tracker = ErrorTracker(logger, tmp_path)
    metrics = MetricsLogger("hostile", tmp_path)

    def written(name: str) -> list[dict[str, Any]]:
        path = tmp_path / name
        content = path.read_bytes() if path.exists() else b""
        return [decode_line(line) for line in content.splitlines()]

    def check(at_least: int = 1) -> None:
        out, err = capsys.readouterr()
        entries = written("run.jsonl")
        assert err == ""
        assert len(entries) >= at_least
        heads = [line for line in out.splitlines() if not line.startswith("    ")]
        assert len(heads) == len(entries)
        for handler in (console, plain, lines, metrics, tracker):
            assert not handler.losses

    yield SimpleNamespace(
        logger=logger,
        log=log,
        tracker=tracker,
        metrics=metrics,
        handlers=[console, plain, lines],
        written=written,
        check=check,
    )
    for owner in (tracker, metrics, plain, lines, console):
        owner.close()


@pytest.mark.parametrize("name", VALUES)
class TestCalls:
    """Any object in any place of a call of our loggers."""

    def test_structured(self, name: str, everything: SimpleNamespace) -> None:
        """Message, arguments, context, and all four options."""
        value, log = VALUES[name], everything.log
        log.info(value)
        log.info(f"{TEXT} %s", value)
        log.info(f"{TEXT} %d", value, value)
        log.info(TEXT, field=value)
        for option in ("exc_info", "stack_info", "stacklevel", "extra"):
            log.info(TEXT, **{option: value})
        with bound(field=value):
            log.info(TEXT)
        everything.logger.info(TEXT, extra={"field": value})

        lines = everything.written("run.jsonl")
        assert len(lines) == 10
        assert all(TEXT in line["message"] for line in lines[1:])

    def test_adapters_context(self, name: str, everything: SimpleNamespace) -> None:
        """A value in it, a name in it, and something else in its place."""
        everything.log.context["field"] = VALUES[name]
        everything.log.info(TEXT)
        everything.log.context = VALUES[name]
        everything.log.info(TEXT, step=3)

        assert [line["message"] for line in everything.written("run.jsonl")] == [TEXT] * 2
        assert everything.written("run.jsonl")[1]["context"]["step"] == 3
        everything.check(at_least=2)

    def test_metrics_and_errors(self, name: str, everything: SimpleNamespace) -> None:
        """A line each, whatever was measured or raised."""
        value, people = VALUES[name], logging.getLogger("foundry_log.metrics")
        people.setLevel(logging.INFO)
        people.propagate = False
        people.handlers[:] = everything.handlers
        everything.metrics.log_step(value, value, value)
        everything.metrics.log_step(1, 2, {"loss": value})
        everything.metrics.log_epoch_summary(value, value)
        everything.tracker.log_error(value, value)
        everything.tracker.log_error(ValueError(TEXT), {"field": value})

        told = [entry["level"] for entry in everything.written("run.jsonl")]
        assert len([level for level in told if level != "WARNING"]) == 5  # but for alarms
        assert len(everything.written("metrics.jsonl")) == 3
        assert len(everything.written("errors.jsonl")) == 2
        assert not everything.metrics.losses
        assert not everything.tracker.losses


@pytest.mark.parametrize("depth", [-5, 0, 10**30, "2", None, 1.5, float("nan"), True, object()])
def test_any_stacklevel_will_do(depth: Any, everything: SimpleNamespace) -> None:
    """It names some line or none."""
    everything.log.info(TEXT, stacklevel=depth)
    everything.check()


@pytest.mark.parametrize("name", VALUES)
def test_what_a_stdlib_queue_prepares_is_one_line(name: str) -> None:
    """Where its own formatting does not raise, which is the stdlib's business."""
    handler = logging.handlers.QueueHandler(queue.SimpleQueue())
    made = record(f"{TEXT} %s", field=VALUES[name])
    made.args = (VALUES[name],)
    try:
        prepared = handler.prepare(made)
    except Exception:
        return
    check(prepared)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    message=st.sampled_from([TEXT, f"{TEXT} %s", *VALUES]),
    args=st.lists(st.sampled_from([*VALUES]), max_size=2),
    extra=st.dictionaries(st.text(max_size=3), st.sampled_from([*VALUES]), max_size=3),
    broken=st.dictionaries(st.sampled_from(ATTRIBUTES), st.sampled_from([*VALUES]), max_size=3),
    error=st.none() | st.sampled_from([*ERRORS]),
)
def test_all_at_once(
    message: str, args: list[str], extra: dict[str, str], broken: dict[str, str], error: str | None
) -> None:
    """Several of them in one record."""
    made = record(VALUES.get(message, message))
    made.args = tuple(VALUES[name] for name in args)
    made.__dict__.update({name: VALUES[value] for name, value in {**extra, **broken}.items()})
    if error is not None:
        made.exc_info = (ValueError, ERRORS[error](), None)  # type: ignore[assignment]
    check(made, TEXT if TEXT in message else None)


# --- objects, handlers and formatters that log ---


class Chatty:
    """Logs itself, or a fresh object of its kind, each time that it is looked at."""

    def __init__(self, say: Callable[[Any], None], times: int, is_fresh: bool) -> None:
        self.say, self.times, self.is_fresh, self.looks = say, times, is_fresh, [0]

    def __repr__(self) -> str:
        self.looks[0] += 1
        assert self.looks[0] < 2_000, "looked at without end"
        for _ in range(self.times):
            self.say(self._next())
        return "chatty"

    def _next(self) -> Chatty:
        if not self.is_fresh:
            return self
        fresh = Chatty(self.say, self.times, True)
        fresh.looks = self.looks
        return fresh


class ChattyError(Exception, Chatty):
    __init__ = Chatty.__init__
    __repr__ = __str__ = Chatty.__repr__

    def _next(self) -> Chatty:
        return self


WAYS: dict[str, Callable[[SimpleNamespace, Any], Any]] = {
    "argument": lambda to, value: to.logger.info(f"{TEXT} %s", value),
    "argument that does not fit": lambda to, value: to.logger.info(f"{TEXT} %d %s", value, value),
    "extra": lambda to, value: to.logger.info(TEXT, extra={"field": value}),
    "message": lambda to, value: to.logger.info(value),
    "structured argument": lambda to, value: to.log.info(f"{TEXT} %s", value),
    "structured misfit": lambda to, value: to.log.info(f"{TEXT} %d %s", value, value),
    "structured context": lambda to, value: to.log.info(TEXT, field=value),
    "structured list": lambda to, value: to.log.info(TEXT, fields=[value] * 5),
    "structured message": lambda to, value: to.log.info(value),
    "metrics": lambda to, value: to.metrics.log_step(1, 1, {"loss": value}),
    "error context": lambda to, value: to.tracker.log_error(ValueError(TEXT), {"field": value}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("is_fresh", [False, True])
def test_an_object_that_logs_itself_is_heard_and_ends(
    everything: SimpleNamespace, way: str, times: int, is_fresh: bool
) -> None:
    """Its own line is there, the number of the others is bounded, and nothing is raised."""
    WAYS[way](everything, Chatty(lambda value: WAYS[way](everything, value), times, is_fresh))

    name = "metrics.jsonl" if way == "metrics" else "run.jsonl"
    lines = everything.written(name)
    assert 2 <= len(lines) <= 500
    if "message" in lines[-1] and not way.endswith("message"):
        assert TEXT in lines[-1]["message"]
    for handler in everything.handlers:
        assert set(handler.losses) <= {"RecursionError"}
        handler.losses.clear()


@pytest.mark.parametrize("times", [1, 2])
def test_an_error_that_logs_itself_is_heard_and_ends(
    everything: SimpleNamespace, times: int
) -> None:
    """Through an ErrorTracker, and as `exc_info` of both loggers."""
    for say in (
        everything.tracker.log_error,
        lambda error: everything.log.error(TEXT, exc_info=error),
        lambda error: everything.logger.error(TEXT, exc_info=(type(error), error, None)),
    ):
        say(ChattyError(say, times, False))

    assert 4 <= len(everything.written("run.jsonl")) <= 1_000
    for handler in everything.handlers:
        assert set(handler.losses) <= {"RecursionError"}
        handler.losses.clear()


def test_what_logs_while_a_value_is_described_keeps_plain_context(
    everything: SimpleNamespace,
) -> None:
    """However deep: text and numbers need no code of anybody's."""
    say = everything.log.info
    say(TEXT, field=Chatty(lambda value: say(TEXT, field=value, step=3, list=[1, value]), 1, False))

    innermost = everything.written("run.jsonl")[0]
    assert innermost["context"]["step"] == 3
    assert innermost["context"]["field"] == "<logged while a value was being described>"
    assert innermost["context"]["list"] == [1, innermost["context"]["field"]]


@pytest.mark.parametrize("part", ["filter", "format", "emit"])
def test_a_part_of_a_handler_that_logs_is_heard_and_ends(
    everything: SimpleNamespace, part: str
) -> None:
    """Filter, formatter or handler: the record they log is written once more, not for ever."""

    def say(*_: Any) -> Any:
        everything.logger.info(TEXT)
        return True

    class Loud(JsonFormatter):
        def format(self, made: logging.LogRecord) -> str:
            say()
            return super().format(made)

    for handler in everything.handlers:
        if part == "filter":
            handler.addFilter(say)
        elif part == "format":
            handler.setFormatter(Loud())
        else:
            handler.emit = lambda made, emit=handler.emit: (say(), emit(made))
    everything.logger.info(TEXT)

    lines = everything.written("run.jsonl")
    assert 2 <= len(lines) <= 20
    assert {line["message"] for line in lines} == {TEXT}
    for handler in everything.handlers:
        assert set(handler.losses) == {"RecursionError"}
        handler.losses.clear()


def test_a_filter_that_raises_costs_a_count(everything: SimpleNamespace) -> None:
    """Not the program that logs; the other handlers write."""
    everything.handlers[0].addFilter(raises)
    everything.logger.info(TEXT)

    assert everything.handlers[0].losses == {"RuntimeError": 1}
    assert len(everything.written("run.jsonl")) == 1
    everything.handlers[0].losses.clear()


def test_the_guard_is_open_again_after_an_interrupt(everything: SimpleNamespace) -> None:
    """What stops a program passes, and leaves nothing behind."""
    for _ in range(losses.MAX_NESTING + 1):
        for error in (KeyboardInterrupt, SystemExit):
            stop = hostile(__repr__=lambda self, error=error: (_ for _ in ()).throw(error))()
            for way in ("argument", "structured argument", "structured context"):
                with pytest.raises(error):
                    WAYS[way](everything, stop)
    everything.log.info(TEXT, field=object)

    assert everything.written("run.jsonl")[-1]["context"]["field"] == "builtins.object"
    assert not any(handler.losses for handler in everything.handlers)


# --- deep stacks ---

DEEP = """
import logging, sys, threading
from types import SimpleNamespace
from foundry_log import ConsoleFormatter, ConsoleHandler, RotatingJsonlHandler, StructuredLogger
lines, console = RotatingJsonlHandler(sys.argv[1]), ConsoleHandler("stdout")
console.setFormatter(ConsoleFormatter())
logger = logging.getLogger()
logger.handlers[:] = [lines, console]
logger.setLevel("INFO")
log = StructuredLogger("deep", SimpleNamespace(experiment_name="e"))
class Odd:
    def __repr__(self):
        return "odd"
def descend(depth):
    try:
        (log if depth % 2 else logger).info("at depth %d %s", depth, Odd())
    except RecursionError:
        pass  # there was no room for the stdlib's own frames
    descend(depth + 1)
# Not the thread's own: Python 3.13 cannot take it apart again on a small stack.
nested = []
for _ in range(50_000):
    nested = [nested]
def run():
    log.info("nested", value=nested)
    logger.info("nested", extra={"value": nested})
    try:
        descend(0)
    except RecursionError:
        pass
    logger.info("afterwards")
logging.raiseExceptions = False
sys.setrecursionlimit(400)
threading.stack_size(int(sys.argv[2]))
thread = threading.Thread(target=run)
thread.start()
thread.join()
assert set(lines.losses) | set(console.losses) <= {"RecursionError"}, (lines.losses, console.losses)
"""


@pytest.mark.parametrize("stack_kib", [256, 8_192])
def test_logging_near_the_recursion_limit_kills_no_process(tmp_path: Path, stack_kib: int) -> None:
    """At every depth of the caller up to its own RecursionError: written, or counted."""
    path = tmp_path / "run.jsonl"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DEEP, path, str(stack_kib * 1024)],
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stderr) == (0, "")
    messages = [decode_line(line)["message"] for line in path.read_bytes().splitlines()]
    assert messages[:2] == ["nested"] * 2
    assert messages[-1] == "afterwards"
    assert len(messages) > 200


# --- lines that would pass for others ---

FORGERIES = [*map(chr, (*range(32), *range(127, 160))), "\r\n", "\u2028", "\u2029", "\x1b[2J"]
UNSEEN_TEXT = [chr(code) for code in (0xAD, 0x61C, *range(0x202A, 0x202F), *range(0x2066, 0x206A))]
UNSEEN_TEXT += [chr(code) for code in (0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF, 0xE0041)]
PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    **{
        name: lambda text, name=name: {name: text}  # type: ignore[misc]
        for name in ("name", "levelname", "threadName", "exc_text", "stack_info", "pathname")
    },
    "context": lambda text: {"field": text},
    "context's name": lambda text: {text + "x": 1},
    "object": lambda text: {"field": hostile(__str__=lambda self: text)()},
    "object's level": lambda text: {"levelname": hostile(__str__=lambda self: text)()},
}
LAYOUTS = {
    "own": ConsoleFormatter(colors=True),
    "plain": PlainFormatter(),
    "date": PlainFormatter(datefmt="%H\n2026 \x1b[31m"),
    "percent": PlainFormatter("%(asctime)s %(levelname)s %(name)s %(threadName)s %(message)s"),
    "date in a format": PlainFormatter("%(asctime)s %(message)s", "%H\n2026 \x1b[31m"),
    "field": PlainFormatter("%(levelname)s %(field)s %(message)s"),
    "brace": PlainFormatter("{levelname} {name} {field} {message}", style="{"),
    "dollar": PlainFormatter("$levelname $name $field $message", style="$"),
    "lines": PlainFormatter("%(message)s\n%(name)s\n%(message)s"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", PLACES)
def test_no_text_forges_a_line_of_the_console(layout: str, place: str) -> None:
    """Only a record's first line starts at the margin, and nothing unseen is in any."""
    for bad in (*FORGERIES, *UNSEEN_TEXT):
        text = f"{bad}2026 ERROR forged{bad}"
        made = record(f"{TEXT}{text}", **{"field": 1, **PLACES[place](text)})
        error = ValueError(text)
        made.exc_info = (ValueError, error, raised_in(f"/src/{text}.py").__traceback__)
        shown = well_formed("console", LAYOUTS[layout].format(made))
        assert TEXT in shown


def raised_in(path: str) -> BaseException:
    """An exception whose traceback names a file of that name."""
    try:
        exec(compile("raise KeyError", path.replace("\0", ""), "exec"), {})
    except KeyError as error:
        return error
    raise AssertionError


def test_colours_and_lines_of_a_format_are_its_own() -> None:
    """What the program's author wrote is kept; further lines are indented."""
    formatter = PlainFormatter("\x1b[1m{levelname}\x1b[0m {message}\n{user.name}", style="{")
    user = SimpleNamespace(name="eve\x07\nforged")

    shown = formatter.format(record(user=user)).split("  user=")[0]
    assert shown == f"\x1b[1mINFO\x1b[0m {TEXT}\n    eve\\x07\n    forged"


def test_a_name_of_a_field_cannot_pass_for_two() -> None:
    """It is in quotes, as values are."""
    assert PlainFormatter().format(record(**{"a=1 admin": 1})).endswith('  "a=1 admin"=1')


def test_letters_that_a_terminal_lacks_are_escapes() -> None:
    """A stream that is strict about its few letters loses no record."""
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding="ascii", errors="strict")
    handler = ConsoleHandler("stdout")
    before, sys.stdout = sys.stdout, stream
    try:
        handler.handle(record("für \U0001f600"))
    finally:
        sys.stdout = before
    assert content.getvalue() == b"f\\xfcr \\U0001f600\n"
    assert not handler.losses
