"""The text of an exception: always the stdlib's, and mostly without its work."""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import linecache
import os
import sys
import threading
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_log import tracebacks
from foundry_log.tracebacks import MAX_FRAMES, format_exception

pytestmark = pytest.mark.unit

# For Python 3.10 that of the package which pytest brings.
Group: Any = (
    getattr(builtins, "ExceptionGroup", None)
    or importlib.import_module("exceptiongroup").ExceptionGroup
)


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    """Each test meets its frames for the first time."""
    tracebacks._kept.clear()


def stdlib_text(error: BaseException) -> str:
    """What is to be shown."""
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def text_of(error: BaseException) -> str:
    """What we show."""
    return format_exception(error, error.__traceback__)


def raises(*_: Any) -> Any:
    raise RuntimeError("hostile")


def kind(name: str = "Odd", **attributes: Any) -> type[Exception]:
    """An exception class with these attributes."""
    return type(name, (Exception,), attributes)


def throw(error: BaseException) -> None:
    raise error


def raised(error: BaseException) -> BaseException:
    """The exception, after it was raised and caught."""
    try:
        throw(error)
    except BaseException as caught:
        return caught
    raise AssertionError


def noted(error: BaseException, notes: Any) -> BaseException:
    error.__notes__ = notes  # type: ignore[attr-defined]
    return error


def run(source: str, name: str = "<string>") -> None:
    exec(compile(source, name, "exec"), {"__name__": "made"})


def depth(levels: int) -> Any:
    return depth(levels - 1) if levels else throw(ValueError("deep"))


def even(levels: int) -> Any:
    if not levels:
        raise ValueError("even")
    return odd(levels - 1)


def odd(levels: int) -> Any:
    return even(levels - 1)


def endless() -> Any:
    return endless()


def two_columns(levels: int) -> Any:
    return (
        (two_columns(levels - 1), 0)
        if levels % 2
        else (0, levels and two_columns(levels - 1), 1 / 0)
    )


def alike_on_one_line() -> Any:
    # fmt: off
    a = lambda f: f(); b = lambda: a(c); c = lambda: a(d); d = lambda: 1 / 0  # noqa: E702, E731
    # fmt: on
    return a(b)


def many_lines() -> Any:
    numbers = {"a": 1}
    return (
        numbers["a"]
        + len(
            numbers["b"],
        )
        + 1
    )


def wide_characters() -> Any:
    größe = {"漢字": 0}
    return "漢字漢字" + str(größe["漢字漢字"]) + "ü"


def comprehension() -> Any:
    return [1 / number for number in (1, 0)]


def nested_comprehension() -> Any:
    return [[1 / x for x in (number, 0)] for number in range(1, 3)]


def cause() -> None:
    try:
        raise KeyError("inner")
    except KeyError as inner:
        raise ValueError("outer") from inner


def context() -> None:
    try:
        raise KeyError("inner")
    except KeyError:
        raise ValueError("outer")  # noqa: B904


def hidden_context() -> None:
    try:
        raise KeyError("inner")
    except KeyError:
        raise ValueError("outer") from None


def three_deep() -> None:
    try:
        context()
    except ValueError as middle:
        raise OSError(2, "no such", "file") from middle


def cycle() -> None:
    one, two, three = raised(ValueError(1)), raised(KeyError(2)), raised(OSError(3))
    one.__cause__, two.__context__, three.__cause__ = two, three, one
    raise one


def seen_cause_and_new_context() -> None:
    one, two = ValueError(1), ValueError(2)
    one.__cause__ = two
    two.__cause__, two.__context__, two.__suppress_context__ = one, KeyError(3), False
    raise one


def long_chain() -> None:
    error: BaseException = raised(ValueError(0))
    for number in range(1, 200):
        error, error.__cause__ = raised(ValueError(number)), error
    raise error


def long_chain_of_suggestions() -> None:
    error: BaseException = raised(AttributeError("a", name="appendd", obj=[]))
    for _ in range(20):
        link = AttributeError("a", name="appendd", obj=[])
        link.__context__, error = error, link
    raise error


def with_origin(error: BaseException, origin: BaseException) -> BaseException:
    error.__cause__ = raised(origin)
    return error


def attribute() -> None:
    [].appendd  # type: ignore[attr-defined]


def name_of_a_local() -> None:
    number = 1
    print(numbr)  # type: ignore[name-defined]  # noqa: F821
    print(number)


def name_of_a_module() -> None:
    colorsys.x  # type: ignore[name-defined]  # noqa: F821


def imported_name() -> None:
    from collections import OrderedDct  # type: ignore[attr-defined]  # noqa: F401


def with_frame_of(lasti: int, line: int) -> None:
    error = raised(ValueError("x"))
    assert error.__traceback__ is not None
    frame = error.__traceback__.tb_frame
    throw(error.with_traceback(types.TracebackType(None, frame, lasti, line)))


ORDINARY: dict[str, Callable[[], Any]] = {
    "message": lambda: throw(ValueError("bad")),
    "no message": lambda: throw(ValueError()),
    "empty message": lambda: throw(ValueError("")),
    "message of lines": lambda: throw(ValueError("a\n\nb\r\n")),
    "surrogate": lambda: throw(ValueError("\ud800")),
    "class of this file": lambda: throw(kind()("x")),
    "class of main": lambda: throw(kind(__module__="__main__")("x")),
    "key": lambda: throw(KeyError("k")),
    "system": lambda: os.stat("/no/such/file"),
    "decoding": lambda: b"\xff".decode(),
    "what stops a program": lambda: throw(KeyboardInterrupt()),
    "what ends it": lambda: throw(SystemExit(3)),
    "cause": cause,
    "context": context,
    "hidden context": hidden_context,
    "three deep": three_deep,
    "cycle": cycle,
    "a cause seen, a context not": seen_cause_and_new_context,
    "long chain": long_chain,
    "class that is false": lambda: throw(with_origin(kind(__bool__=lambda _: False)(), KeyError())),
    "class of length 0": lambda: throw(with_origin(kind(__len__=lambda _: 0)(), KeyError())),
    "two in turn": lambda: even(50),
    "many lines": many_lines,
    "wide characters": wide_characters,
    "comprehension": comprehension,
    "no such instruction": lambda: with_frame_of(-1, 7),
    "another line": lambda: with_frame_of(0, 3),
    "text of its own": lambda: throw(kind(__str__=lambda _: "mine")("x")),
}

UNUSUAL: dict[str, Callable[[], Any]] = {
    "syntax": lambda: run("x = (1 +\ny = 2"),
    "indentation": lambda: run("if 1:\npass"),
    "syntax without a place": lambda: throw(SyntaxError("x")),
    "attribute": attribute,
    "local name": name_of_a_local,
    "module's name": name_of_a_module,
    "imported name": imported_name,
    "no such module": lambda: importlib.import_module("no_such_module"),
    "suggestions in a chain": lambda: throw(with_origin(ValueError(), AttributeError("x"))),
    "a chain of suggestions": long_chain_of_suggestions,
    "notes": lambda: throw(noted(ValueError("x"), ["one", "two\nlines", 3])),
    "notes that are text": lambda: throw(noted(ValueError("x"), "text")),
    "notes that are a number": lambda: throw(noted(ValueError("x"), 5)),
    "notes that are none": lambda: throw(noted(ValueError("x"), [])),
    "notes in a chain": lambda: throw(with_origin(ValueError(), noted(KeyError(), ["n"]))),
    "text that raises": lambda: throw(kind(__str__=raises)("x")),
    "text that is none": lambda: throw(kind(__str__=lambda _: 5)("x")),
    "text of a class of its own": lambda: throw(
        kind(__str__=lambda _: type("S", (str,), {})("s"))()
    ),
    "module that is none": lambda: throw(kind(__module__=5)("x")),
    "attribute that raises": lambda: throw(kind(exceptions=property(raises))("x")),
    "group": lambda: throw(Group("g", [raised(ValueError(1)), Group("h", [KeyError(2)])])),
    "group as a cause": lambda: throw(with_origin(ValueError(1), Group("g", [ValueError(2)]))),
    "group with a cause": lambda: throw(with_origin(Group("g", [ValueError(1)]), KeyError(2))),
    "what looks like a group": lambda: throw(kind(exceptions=())("x")),
    **{f"recursion of {n}": lambda n=n: depth(n) for n in (1, 2, 3, 4, 5, 50)},  # type: ignore[misc]
    "recursion in two columns": lambda: two_columns(9),
    "recursion without end": endless,
    "nested comprehension": nested_comprehension,
    "functions alike on one line": alike_on_one_line,
    "no source": lambda: run("def f():\n    raise ValueError\nf()"),
}


@pytest.mark.parametrize("name", [*ORDINARY, *UNUSUAL])
def test_the_text_is_the_stdlibs(name: str) -> None:
    """Character by character; when it is made as when it is known."""
    with pytest.raises(BaseException) as caught:
        {**ORDINARY, **UNUSUAL}[name]()
    expected = stdlib_text(caught.value)

    assert text_of(caught.value) == expected
    assert text_of(caught.value) == expected


@pytest.mark.parametrize("name", ORDINARY)
def test_the_stdlib_is_not_asked_for_what_is_ordinary_and_known(name: str) -> None:
    """The second text of an exception runs nothing of `traceback` or `linecache`."""
    with pytest.raises(BaseException) as caught:
        ORDINARY[name]()
    error = caught.value
    text_of(error)
    files = set()
    before = sys.getprofile()
    sys.setprofile(lambda frame, *_: files.add(frame.f_code.co_filename))
    try:
        text_of(error)
    finally:
        sys.setprofile(before)

    assert tracebacks.__file__ in files
    assert not files & {traceback.__file__, linecache.__file__}


def test_one_that_was_never_raised_has_no_frames() -> None:
    """Nor a heading."""
    assert text_of(ValueError("x")) == "ValueError: x\n"


@pytest.mark.parametrize("limit", [-1, 0, 1, 1000])
def test_the_limit_of_the_interpreter_counts(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sys.tracebacklimit` may be set at any time."""
    with pytest.raises(ValueError) as caught:
        depth(2)
    text_of(caught.value)
    monkeypatch.setattr(sys, "tracebacklimit", limit, raising=False)

    assert text_of(caught.value) == stdlib_text(caught.value)


def test_the_frames_are_those_given() -> None:
    """Not those that the exception has by now."""
    error = raised(ValueError("x"))
    frames = error.__traceback__
    error.__traceback__ = None

    assert format_exception(error, frames).startswith("Traceback")
    assert format_exception(error, None) == "ValueError: x\n"


def test_a_line_that_was_given_to_a_frame_is_shown() -> None:
    """Templating engines and distributed runs make tracebacks with lines of their own."""
    error = raised(ValueError("x"))
    assert error.__traceback__ is not None
    frame = error.__traceback__.tb_frame
    for line in (3, 7):
        error.__traceback__ = types.TracebackType(None, frame, -1, line)
        assert f"line {line}" in text_of(error)
        assert text_of(error) == stdlib_text(error)


LINKS = st.lists(
    st.tuples(
        st.sampled_from([ValueError, AttributeError, kind("Empty", __len__=lambda _: 0)]),
        st.sampled_from(["", "text"]),
        st.booleans(),  # was raised
        st.integers(0, 5),  # its cause, none beyond the last
        st.integers(0, 5),  # its context
        st.booleans(),  # the context is suppressed
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=200, deadline=None)
@given(LINKS)
def test_any_web_of_causes_and_contexts_is_the_stdlibs(links: list[tuple[Any, ...]]) -> None:
    """Circles and dead ends included."""
    errors = [made(text) for made, text, *_ in links]
    for error, (_, _, was_raised, *_) in zip(errors, links, strict=True):
        if was_raised:
            raised(error)
    for error, (*_, origin, during, suppressed) in zip(errors, links, strict=True):
        error.__cause__ = errors[origin] if origin < len(errors) else None
        error.__context__ = errors[during] if during < len(errors) else None
        error.__suppress_context__ = suppressed

    assert text_of(errors[0]) == stdlib_text(errors[0])


def imported(path: Path, source: str) -> types.ModuleType:
    """The module of a new file."""
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def error_of(function: Callable[[], Any]) -> BaseException:
    try:  # not `pytest.raises`, whose result keeps the frames in a circle
        function()
    except ZeroDivisionError as error:
        return error
    raise AssertionError


def test_an_edited_file_shows_what_runs(tmp_path: Path) -> None:
    """The stdlib shows the line that stands there now, which nobody has run."""
    path = tmp_path / "edited.py"
    module = imported(path, "def fail():\n    return 1 / 0\n")
    before = text_of(error_of(module.fail))
    path.write_text("# a new line above\ndef fail():\n    return 1 / 1\n")
    error = error_of(module.fail)

    assert "return 1 / 0" in before
    assert text_of(error).endswith(before[before.index("edited.py") :])
    assert "def fail():" in stdlib_text(error)


def test_a_reloaded_module_shows_its_new_source(tmp_path: Path) -> None:
    """The new code is another, though it stands on the same line of the same file."""
    path = tmp_path / "again.py"
    assert "1 / 0" in text_of(error_of(imported(path, "def fail():\n    return 1 / 0\n").fail))
    error = error_of(imported(path, "def fail():\n    return 22 / 0\n").fail)

    assert "22 / 0" in text_of(error)
    assert text_of(error) == stdlib_text(error)


def test_functions_alike_show_their_own_file(tmp_path: Path) -> None:
    """Python holds their code for equal."""
    source = "def fail():\n    return 1 / 0\n"
    one, two = (imported(tmp_path / f"{name}.py", source).fail for name in ("one", "two"))

    assert one.__code__ == two.__code__
    assert "one.py" in text_of(error_of(one))
    assert "two.py" in text_of(error_of(two))


def test_code_that_is_gone_is_not_taken_for_new_code(tmp_path: Path) -> None:
    """An id is used again once its object is gone."""
    source = "def fail():\n    return 1 / 0\n"
    for number in range(50):
        path, names = tmp_path / f"number{number}.py", {}
        path.write_text(source)
        exec(compile(source, str(path), "exec"), names)
        assert path.name in text_of(error_of(names["fail"]))
        names.clear()


def test_source_that_comes_late_is_shown(tmp_path: Path) -> None:
    """A frame without its line is looked for again."""
    path = tmp_path / "late.py"
    source = "def fail():\n    return 1 / 0\n"
    names: dict[str, Any] = {}
    exec(compile(source, str(path), "exec"), names)
    assert "return 1 / 0" not in text_of(error_of(names["fail"]))
    path.write_text(source)

    assert "return 1 / 0" in text_of(error_of(names["fail"]))


def many(path: Path, count: int) -> list[Callable[[], Any]]:
    """Functions that fail, each on a line of its own."""
    source = "".join(f"def fail{number}(): return 1 / 0\n" for number in range(count))
    module = imported(path, source)
    return [getattr(module, f"fail{number}") for number in range(count)]


def test_the_frames_kept_are_bounded(tmp_path: Path) -> None:
    """A program that makes code without end does not grow here."""
    sizes = set()
    for function in many(tmp_path / "many.py", MAX_FRAMES + 100):
        text_of(error_of(function))
        sizes.add(len(tracebacks._kept))

    assert max(sizes) == MAX_FRAMES
    assert min(sizes) < MAX_FRAMES


def test_threads_show_their_own_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the others' frames push them out."""
    monkeypatch.setattr(tracebacks, "MAX_FRAMES", 3)
    errors = [error_of(function) for function in many(tmp_path / "shared.py", 8)]
    expected = [stdlib_text(error) for error in errors]
    start = threading.Barrier(4)
    wrong: list[str] = []

    def work() -> None:
        start.wait(10)
        for _ in range(20):
            for error, text in zip(errors, expected, strict=True):
                shown = text_of(error)
                if shown != text:
                    wrong.append(shown)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
