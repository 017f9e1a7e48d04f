"""Any value to strict JSON and back: whatever it is, one line, no exception, nothing lost."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import json
import math
import subprocess
import sys
import threading
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_log.encoding import (
    FIRST_VALUES,
    MAX_DEPTH,
    MAX_INT_BITS,
    MAX_REPR,
    MAX_VALUES,
    decode_line,
    encode_document,
    encode_line,
    encode_plain,
    encode_value,
    exception_text,
    to_plain,
    type_name,
)

pytestmark = pytest.mark.unit

NAN, INF = math.nan, math.inf


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def strict(line: bytes) -> Any:
    """The value of a line, by the stdlib's parser without its extensions."""
    assert b"\n" not in line
    return json.loads(line, parse_constant=refuse)


def written(value: Any) -> Any:
    """What stands in a line for `value`, which must be written in every way there is."""
    strict(encode_line(value))
    strict(encode_value(value))
    return strict(encode_line({"v": value}))["v"]


def raises(*_: Any, **__: Any) -> Any:
    raise RuntimeError("hostile")


class TestValues:
    """What becomes of the kinds of values that programs log."""

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (datetime.datetime(2026, 1, 2, 3, 4, 5, 6), "2026-01-02T03:04:05.000006"),
            (datetime.date(2026, 1, 2), "2026-01-02"),
            (datetime.time(3, 4), "03:04:00"),
            (datetime.timedelta(minutes=1), 60.0),
            (decimal.Decimal("1.10"), "1.10"),
            (decimal.Decimal("NaN"), "NaN"),
            (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
            (PurePosixPath("/a/b"), "/a/b"),
            (b"text", "text"),
            (bytearray(b"text"), "text"),
            (memoryview(b"text"), "text"),
            (b"\xff\xfe", "base64://4="),
            ((1, 2), [1, 2]),
            ({1}, [1]),
            (frozenset({(1, 2)}), [[1, 2]]),
            (collections.deque([1, 2]), [1, 2]),
            (collections.OrderedDict(a=1), {"a": 1}),
            (collections.Counter("aab"), {"a": 2, "b": 1}),
            (collections.ChainMap({"a": 1}), {"a": 1}),
            (collections.namedtuple("P", "x y")(1, 2), [1, 2]),
            (int, "builtins.int"),
            (1j, "1j"),
            (range(10**18), "range(0, 1000000000000000000)"),
            (ValueError("bad"), {"type": "ValueError", "message": "bad"}),
            (2**64, 2**64),
            (-(2**64), -(2**64)),
            (10**600, 10**600),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_a_value_has_a_form(self, value: Any, expected: Any) -> None:
        """Each of these is written as the docstring of `to_plain` says."""
        assert written(value) == expected

    def test_enums_are_their_values(self) -> None:
        """Members are their value where that is a scalar, and their name where it is not."""
        text = enum.Enum("text", {"A": "a"}, type=str)
        number = enum.IntEnum("number", {"A": 7})
        flag = enum.Flag("flag", {"A": 1, "B": 2})
        other = enum.Enum("other", {"A": object(), "N": NAN})

        assert written([text.A, number.A, flag.A | flag.B, other.A]) == ["a", 7, 3, "A"]
        assert written({text.A: 1, number.A: 2, other.A: 3}) == {"a": 1, "7": 2, "A": 3}
        assert math.isnan(decode_line(encode_line({"v": other.N}))["v"])

    def test_objects_with_fields_become_objects(self) -> None:
        """Dataclasses, pydantic models, msgspec and attrs classes are written by their fields."""

        @dataclasses.dataclass
        class Data:
            a: int
            b: Any = None

        class Model(pydantic.BaseModel):
            a: int
            b: Any = None

        class Struct(msgspec.Struct):
            a: int
            b: Any = None

        class Attrs:  # what `attrs.define` leaves on a class
            __attrs_attrs__ = (SimpleNamespace(name="a"), SimpleNamespace(name="b"))

            def __init__(self, a: int, b: Any = None) -> None:
                self.a, self.b = a, b

        for kind in (Data, Model, Struct, Attrs):
            assert written(kind(a=1, b=kind(a=2))) == {"a": 1, "b": {"a": 2, "b": None}}, kind

    def test_a_field_that_cannot_be_read_says_so(self) -> None:
        """The other fields of the object stand."""

        @dataclasses.dataclass
        class Data:
            a: int
            b: int = dataclasses.field(default=0, init=False)

            def __getattribute__(self, name: str) -> Any:
                if name == "b":
                    raise OSError("gone")
                return object.__getattribute__(self, name)

        data = object.__new__(Data)
        data.a = 1

        assert written(data) == {"a": 1, "b": "<OSError on reading>"}

    def test_a_time_zone_that_raises_costs_the_format_only(self) -> None:
        """The date is still there, in its repr."""

        class Zone(datetime.tzinfo):
            utcoffset = dst = tzname = raises

        assert "2026, 1, 2" in written(datetime.datetime(2026, 1, 2, tzinfo=Zone()))

    def test_integers_of_any_size(self) -> None:
        """Beyond what Python writes in decimal the digits are hexadecimal, and complete."""
        assert int(written(10**5000), 16) == 10**5000
        assert int(written(-(10**5000)), 16) == -(10**5000)
        assert written({10**5000: 1}) == {hex(10**5000): 1}
        assert written({"a": 1 << MAX_INT_BITS, "b": {1}})["a"] == hex(1 << MAX_INT_BITS)

    def test_a_string_is_never_cut(self) -> None:
        """Ten million characters are written, and so are all their escapes."""
        assert written("x" * 10_000_000) == "x" * 10_000_000
        assert written('"\n\0' * 100_000) == '"\n\0' * 100_000

    def test_a_long_repr_is_cut(self) -> None:
        """What is only a description is bounded."""

        class Long:
            def __repr__(self) -> str:
                return "x" * (MAX_REPR + 1)

        assert written(Long()) == "x" * MAX_REPR + "…"

    def test_lone_surrogates_become_visible(self) -> None:
        """UTF-8 has no form for them, in values and in keys."""
        assert written({"\ud800": "a\udfff"}) == {"\\ud800": "a\\udfff"}

    def test_characters_that_end_lines_do_not_end_one(self) -> None:
        """Line separators of Unicode and of ASCII stay inside the string."""
        text = "a\r\n\x0b\x0c\x1c\x85\u2028\u2029b"

        assert written(text) == text

    def test_a_generator_is_not_consumed(self) -> None:
        """Logging an iterator must not eat what the program wants to iterate over."""
        items = (n for n in range(3))

        assert "generator" in written(items)
        assert list(items) == [0, 1, 2]

    def test_shared_values_are_written_each_time(self) -> None:
        """A value in two places is no cycle."""
        shared = {"a": {1}}

        assert written([shared, shared]) == [{"a": [1]}, {"a": [1]}]

    def test_a_mock_is_described(self) -> None:
        """A MagicMock answers every question, and its answers are mocks."""
        assert "MagicMock" in written(MagicMock())
        assert "MagicMock" in written(MagicMock(shape=(2,), dtype="f"))


class TestKeys:
    """JSON has string keys only."""

    def test_keys_are_spelled_as_json_dumps_spells_them(self) -> None:
        """Numbers, booleans and None have their JSON spelling, others their text or repr."""
        keys = {2: 0, None: 0, True: 0, 1.5: 0, NAN: 0, INF: 0, b"b": 0, (1, 2): 0, int: 0}

        assert list(written(keys)) == [
            "2", "null", "true", "1.5", "NaN", "Infinity", "b", "(1, 2)", "builtins.int",
        ]  # fmt: skip

    def test_keys_that_become_equal_are_all_kept(self) -> None:
        """1 and "1" are two keys in Python; the second gets an underscore."""
        assert written({1: "a", "1": "b", "1_": "c"}) == {"1": "a", "1_": "b", "1__": "c"}

    def test_many_equal_keys_stay_short(self) -> None:
        """Ten thousand objects of one `repr` are as many keys, numbered and not lengthened."""
        kind = type("Same", (), {"__repr__": lambda self: "same"})
        line = encode_line({"v": {kind(): n for n in range(10_000)}})

        assert list(strict(line)["v"])[:3] == ["same", "same_", "same_2"]
        assert len(line) < 10_000 * 30


class TestNonFinite:
    """NaN and infinities are null in the line, and come back."""

    def test_a_pointer_names_each(self) -> None:
        """RFC 6901: `~` and `/` in names are escaped, and list items are numbered."""
        line = strict(encode_line({"a/b": NAN, "m~n": [0, INF], "": {"x.y": -INF}, "n": None}))

        assert line.pop("non_finite") == {
            "/a~1b": "NaN",
            "/m~0n/1": "Infinity",
            "//x.y": "-Infinity",
        }
        assert line == {"a/b": None, "m~n": [0, None], "": {"x.y": None}, "n": None}

    def test_a_field_of_that_name_is_kept(self) -> None:
        """It gets an underscore in the line, and its own name back when read."""
        fields = {"non_finite": 1, "non_finite_": [NAN], "non_finite__": None, "x": INF}
        line = strict(encode_line(fields))

        assert (line["non_finite_"], line["non_finite___"]) == (1, None)
        assert line["non_finite"] == {"/non_finite__/0": "NaN", "/x": "Infinity"}
        assert repr(decode_line(encode_line(fields))) == repr(fields)

    def test_text_of_that_name_is_no_mark(self) -> None:
        """Words of a message, and names that only begin or end like it."""
        fields = {"m": 'null "non_finite', "on_finite": None, "x_non_finite": 1, "a": {"n": None}}

        assert strict(encode_line(fields)) == fields
        assert strict(encode_line({"a": {"non_finite": 1}})) == {"a": {"non_finite": 1}}

    @pytest.mark.parametrize(
        "marks",
        [5, [1], {"/a": "1.5"}, {"/a": 5}, {"/a": {}}, {"/b": "NaN"}, {"/a/x": "NaN"}, {"a": "NaN"},
         {"": "NaN"}, {"/l/9": "NaN"}, {"/l/x": "NaN"}, {"/l/" + "9" * 5000: "NaN"}, {"/s": "NaN"}],
        ids=str,
    )  # fmt: skip
    def test_marks_of_somebody_elses_making_change_nothing(self, marks: Any) -> None:
        """A line that was written by hand is read as it stands."""
        fields = {"a": None, "l": [None], "s": "text"}

        assert decode_line(json.dumps({**fields, "non_finite": marks})) == fields

    @pytest.mark.parametrize("value", [NAN, {"a": [NAN]}, (NAN,), {NAN}, [[{"x": -INF}]]], ids=str)
    def test_none_of_them_reaches_the_line(self, value: Any) -> None:
        """Wherever it stands, the line has null and one mark."""
        line = strict(encode_line({"v": value}))

        assert len(line["non_finite"]) == 1
        assert b"null" in encode_value(value)


class TestBounds:
    """Deep, endless and circular structures."""

    @pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: (x,), lambda x: {"a": x}])
    def test_depth_ends_in_a_marker(self, wrap: Callable[[Any], Any]) -> None:
        """What lies deeper than the limit is said to be there."""
        marker = f"<nested deeper than {MAX_DEPTH} levels>".encode()
        deep: Any = 1
        for levels in range(1, 10_001):
            deep = wrap(deep)
            if levels in (MAX_DEPTH - 1, MAX_DEPTH, 10_000):
                line = encode_line({"v": deep})
                strict(line)
                assert (marker in line) == (levels >= MAX_DEPTH)

    def test_a_cycle_ends_in_a_marker(self) -> None:
        """In lists, dicts and objects."""
        items: list[Any] = []
        items.append(items)
        fields: dict[str, Any] = {}
        fields["a"] = fields

        assert written(items) == ["<refers to itself>"]
        assert written(fields) == {"a": "<refers to itself>"}

    @pytest.mark.parametrize(
        "join", [lambda x: [x, x], lambda x: (x, x), lambda x: {"a": x, "b": x}]
    )
    def test_a_small_object_cannot_unfold_without_end(self, join: Callable[[Any], Any]) -> None:
        """Sixty lists that hold the next twice are 2^60 values; the line holds its limit."""
        bomb: Any = ["x"]
        for _ in range(60):
            bomb = join(bomb)
        line = encode_line({"v": bomb})

        assert b"<more values than a line holds>" in line
        assert line.count(b'"x"') < MAX_VALUES

    def test_what_is_cut_is_marked(self) -> None:
        """At the end of the list or dict in which the limit was reached, and once."""
        more = "<more values than a line holds>"

        assert to_plain([{1}, *range(MAX_VALUES)])[-2:] == [MAX_VALUES - 3, more]
        assert to_plain([*range(MAX_VALUES - 1), {1}])[-2:] == [MAX_VALUES - 2, more]
        assert to_plain(dict.fromkeys(range(MAX_VALUES + 1)))["<more>"] == more

    @pytest.mark.parametrize("kind", [list, dict, set])
    def test_an_endless_container_is_cut(self, kind: type) -> None:
        """A subclass that iterates without end does not hang the program."""

        def endless(self: Any) -> Iterator[Any]:
            while True:
                yield ("k", 1)

        name = "items" if kind is dict else "__iter__"
        line = encode_line({"v": type("Endless", (kind,), {name: endless})()})
        strict(line)

        assert len(line) > MAX_VALUES

    def test_objects_that_make_more_of_themselves_end(self) -> None:
        """A `model_dump` that returns another model each time ends at the depth limit."""

        class Model:
            def model_dump(self) -> dict[str, Any]:
                return {"next": Model()}

        assert "nested deeper" in json.dumps(written(Model()))

    @pytest.mark.parametrize("target", ["to_plain(deep)", "encode_line({'v': deep})", "decode()"])
    def test_a_small_stack_survives_depth(self, target: str) -> None:
        """In a thread with 256 KiB of stack msgspec alone kills the interpreter, both ways."""
        code = f"""
import threading
from foundry_log.encoding import *
deep = 1
for _ in range(10_000):
    deep = [({{"a": deep}},)]
def decode():
    for text in ('[' * 10_000, '[' * 10_000 + ']' * 10_000, '[[]' * 5_000 + ']' * 5_000):
        try:
            decode_line('{{"a":' + text + '}}')
        except ValueError:
            continue
        raise SystemExit('read')
threading.stack_size(262144)
thread = threading.Thread(target=lambda: print({target} is not 0))
thread.start()
thread.join()
"""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
        )

        assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


class UnhashableClass(type):
    __hash__ = raises  # type: ignore[assignment]


def hostile(*names: str, base: type = object, **members: Any) -> Any:
    """A class of which each of these names raises."""
    return type("H", (base,), {**dict.fromkeys(names, raises), **members})


LIES = (
    dict, list, tuple, set, str, int, float, bytes, type, memoryview, BaseException,
    datetime.datetime, datetime.timedelta, enum.Enum, decimal.Decimal,
)  # fmt: skip
ARRAY = {"dtype": 1, "tolist": raises}
HOSTILE: dict[str, Any] = {
    "repr raises": hostile("__repr__")(),
    "repr is no text": hostile(__repr__=lambda self: 5)(),
    "repr recurses": hostile(__repr__=repr)(),
    "getattr raises": hostile("__getattr__")(),
    "getattribute raises": hostile("__getattribute__")(),
    "class raises": hostile(__class__=property(raises))(),
    "class unhashable": UnhashableClass("H", (), {})(),
    "len, iter, bool, eq raise": hostile("__len__", "__iter__", "__bool__", "__eq__")(),
    "dict raises": hostile("items", "__iter__", "__len__", "values", "__repr__", base=dict)(a=1),
    "dict without items": hostile(base=dict, items=lambda self: 5)(a=1),
    "dict of no pairs": hostile(base=dict, items=lambda self: [1, 2])(a=1),
    "list raises": hostile("__iter__", "__len__", "__repr__", base=list)([1]),
    "str raises": hostile("__str__", "encode", "__len__", "__repr__", base=str)("a\ud800"),
    "int raises": hostile("__index__", "__int__", "__repr__", "bit_length", base=int)(10**5000),
    "float raises": hostile("__float__", "__repr__", "__ne__", base=float)("nan"),
    "exception raises": hostile("__str__", base=Exception)(),
    "path is none": hostile(__fspath__=lambda self: 5)(),
    "shape is no shape": hostile(shape=5, **ARRAY)(),
    "shape is huge": hostile(shape=(10**9,), **ARRAY)(),
    "tolist gives itself": hostile(shape=(1,), dtype=1, tolist=lambda self: self)(),
    "model without fields": hostile(model_dump=lambda self: 5)(),
    **{f"lies to be {kind.__name__}": hostile(__class__=kind)() for kind in LIES},
}


class TestHostileObjects:
    """Objects whose own code fails when they are looked at."""

    @pytest.mark.parametrize("name", HOSTILE)
    def test_it_is_written_somehow(self, name: str) -> None:
        """The line is there, and so is the field beside it."""
        line = strict(encode_line({"v": HOSTILE[name], "step": 3}))

        assert line["step"] == 3
        written([HOSTILE[name]])
        encode_line({"v": HOSTILE[name]}, default=raises)

    @pytest.mark.parametrize("name", HOSTILE)
    def test_it_can_be_a_key(self, name: str) -> None:
        """Of those that can be one at all, none costs the values of the dict."""
        try:
            fields = {"step": 3, HOSTILE[name]: 1}
        except (TypeError, RuntimeError):
            pytest.skip("not hashable, so it never becomes a key")

        assert sorted(written(fields).values()) == [1, 3]

    def test_text_of_an_object_is_exact_text(self) -> None:
        """Also where its method returns a `str` of a class that lies about what is in it."""
        text = hostile("encode", "__str__", base=str, isascii=lambda self: True)("a\ud800")
        date = hostile(base=datetime.date, isoformat=lambda self: text)(2026, 1, 2)
        plain = to_plain({"v": date, "w": hostile(__repr__=lambda self: text)()})

        assert {type(value) for value in plain.values()} == {str}
        written(plain)

    def test_a_repr_may_change_its_container(self) -> None:
        """What is written is what was there when the container was reached."""
        fields: dict[Any, Any] = {}
        items: list[Any] = []

        class Growing:
            def __repr__(self) -> str:
                fields[len(fields)] = 1
                items.append(self)
                return "growing"

        fields.update(a=Growing(), b=2)
        items.extend([Growing(), 2])

        assert to_plain(fields) == {"a": "growing", "b": 2}
        assert to_plain(items)[:2] == ["growing", 2]
        assert len(to_plain(items)) < 10

    def test_what_is_no_mapping_is_a_value(self) -> None:
        """`encode_line` given anything else still gives an object."""
        assert strict(encode_line([1, 2])) == {"value": [1, 2]}  # type: ignore[arg-type]

    @pytest.mark.parametrize("call", [to_plain, encode_value, type_name])
    def test_what_stops_a_program_passes(self, call: Callable[[Any], Any]) -> None:
        """Ctrl-C while a value is looked at is no broken value."""

        def stop(*_: Any) -> Any:
            raise KeyboardInterrupt

        meta = type("Meta", (type,), {"__module__": property(stop)})
        with pytest.raises(KeyboardInterrupt):
            call(meta("Stop", (), {"__repr__": stop})())

    def test_names_of_classes(self) -> None:
        """Built-ins go without their module; a class that will not say is an object."""
        silent = type("Meta", (type,), {"__module__": property(raises)})("C", (), {})()

        assert type_name(ValueError()) == "ValueError"
        assert type_name(decimal.Decimal()) == "decimal.Decimal"
        assert type_name(silent) == "object"

    def test_text_of_exceptions(self) -> None:
        """`str`, or what stands for it."""
        assert exception_text(ValueError("x")) == "x"
        assert exception_text(HOSTILE["exception raises"]).startswith("<unrepresentable")

    def test_another_thread_may_change_what_is_encoded(self) -> None:
        """Fields are added and removed meanwhile; each line is whole."""
        fields: dict[str, Any] = {"nested": {"nan": NAN}, "items": [NAN]}
        stop = threading.Event()

        def change() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                fields[f"k{number % 50}"] = NAN
                fields["nested"][f"k{number % 50}"] = {1}
                fields["items"].append(object())
                fields.pop(f"k{(number + 25) % 50}", None)
                fields["nested"].pop(f"k{(number + 25) % 50}", None)
                del fields["items"][5:]

        thread = threading.Thread(target=change)
        thread.start()
        try:
            for _ in range(500):
                strict(encode_line(fields))
        finally:
            stop.set()
            thread.join(30)


class TestSnapshots:
    """What `to_plain` returns."""

    def test_it_does_not_change_with_its_origin(self) -> None:
        """A record that is formatted later, in another thread, shows what was logged."""
        fields: dict[str, Any] = {"a": 1, "list": [1], "dict": {"b": {"c": [2]}}}
        plain = to_plain(fields)
        fields["dict"]["b"]["c"].append(3)
        fields["list"].clear()
        fields["a"] = 2

        assert plain == {"a": 1, "list": [1], "dict": {"b": {"c": [2]}}}

    def test_a_flat_dict_is_one_too(self) -> None:
        """The usual context takes a shorter way, to the same end."""
        fields = {"a": 1}
        plain = to_plain(fields)
        fields["a"] = 2

        assert plain == {"a": 1}

    def test_a_flat_dict_costs_no_call_a_field(self) -> None:
        """Python calls its tracer once a call and once a line: two lines a field, no call."""

        def events(count: int) -> collections.Counter[str]:
            fields = {f"k{n}": [1, 1.5, "x", True, 2][n % 5] for n in range(count)}
            seen: collections.Counter[str] = collections.Counter()

            def trace(_: Any, event: str, __: Any) -> Any:
                seen[event] += 1
                return trace

            before = sys.gettrace()
            sys.settrace(trace)
            try:
                encode_line({**fields, "x": "y"})
            finally:
                sys.settrace(before)
            return seen

        few, many = events(5), events(50)
        assert few["call"] == many["call"]
        assert many["line"] - few["line"] <= 2 * 45


class TestDefault:
    """The caller's own rule for objects."""

    def test_it_is_asked_where_json_dumps_would_ask(self) -> None:
        """For dates, sets and objects; not for what JSON has a form for."""
        asked: list[Any] = []

        def default(value: Any) -> Any:
            asked.append(type(value))
            return f"<{type(value).__name__}>"

        fields = {"a": {1}, "b": datetime.date.min, "c": [1, (2.0, None, "x")], "d": object()}

        assert to_plain(fields, default) == {
            "a": "<set>",
            "b": "<date>",
            "c": [1, [2.0, None, "x"]],
            "d": "<object>",
        }
        assert asked == [set, datetime.date, object]

    def test_its_answer_is_reduced_in_turn(self) -> None:
        """It may return anything, also something that it must be asked about again."""
        line = encode_line({"v": 1j}, lambda value: {NAN: {value}} if value == 1j else "other")

        assert strict(line)["v"] == {"NaN": "other"}

    def test_what_it_refuses_goes_by_the_rules(self) -> None:
        """As with `json.dumps`, a TypeError says that it does not know."""
        assert to_plain([datetime.date(2026, 1, 2), {1}], raises) == ["2026-01-02", [1]]

    def test_a_surrogate_does_not_lose_its_answer(self) -> None:
        """The line is made twice then; the second time the answers stand."""
        line = encode_line({"v": object(), "t": "\ud800"}, lambda value: "mine")

        assert strict(line) == {"v": "mine", "t": "\\ud800"}


class TestNumpy:
    """Scalars and arrays of numpy."""

    def test_scalars_are_numbers(self) -> None:
        """Of every width, as values and as keys."""
        np = pytest.importorskip("numpy", reason="numpy is not installed here")
        values = [np.int8(3), np.float16(1.5), np.bool_(True), np.str_("x"), np.longdouble(2)]

        assert written(values) == [3, 1.5, True, "x", 2.0]
        assert written({np.int64(3): 1, np.float32(1.5): 2}) == {"3": 1, "1.5": 2}
        third = np.longdouble(1) / 3
        assert written({third: 1, float(third): 2}) == {repr(third): 1, repr(float(third)): 2}
        assert written(np.datetime64("2026-01-02")) == "2026-01-02"
        assert written(np.clongdouble(2j)).endswith("2j)") or "2j" in written(np.clongdouble(2j))
        assert math.isinf(decode_line(encode_line({"v": np.float32("inf")}))["v"])

    def test_scalars_stay_what_they_are_among_others(self) -> None:
        """Before and after its class is known, beside any object: the value of `item`, exactly."""
        np = pytest.importorskip("numpy", reason="numpy is not installed here")
        integers = [
            np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64,
            np.intc, np.longlong, np.ulonglong, np.bool_,
        ]  # fmt: skip
        floats = [np.float16, np.float32, np.float64]
        numbers = [kind(1) for kind in integers] + [kind(1.1) for kind in floats]

        for number in [*numbers, np.float32("-inf"), np.uint64(2**64 - 1), np.int64(-(2**63))]:
            expected = number.item()
            for beside in ("x", object(), {1}, "x"):
                plain = to_plain({"a": number, "b": [number, {"c": (number, beside)}]})
                found = [plain["a"], plain["b"][0], plain["b"][1]["c"][0], to_plain(number)]
                assert found == [expected] * 4
                assert {type(value) for value in found} == {type(expected)}

    def test_a_class_of_ones_own_keeps_its_say(self) -> None:
        """A subclass may convert as it likes; it is no number of numpy's."""
        np = pytest.importorskip("numpy", reason="numpy is not installed here")
        kind = type("Kind", (np.float32,), {"tolist": lambda self: "mine", "__float__": raises})
        array = np.arange(3).view(type("Array", (np.ndarray,), {"tolist": lambda self: "mine"}))

        assert to_plain({"a": np.float32(1), "b": kind(2)}) == {"a": 1.0, "b": "mine"}
        assert to_plain({"a": np.arange(3), "b": array}) == {"a": [0, 1, 2], "b": "mine"}

    def test_a_default_is_asked_about_them(self) -> None:
        """Also once their classes are known; of those that are a float already it is not."""
        np = pytest.importorskip("numpy", reason="numpy is not installed here")
        fields = {"a": np.float32(1), "b": [np.arange(2)], "c": np.float64(2)}
        known = {"a": 1.0, "b": [[0, 1]], "c": 2.0}

        assert (to_plain(fields), to_plain(fields)) == (known, known)
        assert to_plain(fields, lambda value: "mine") == {"a": "mine", "b": ["mine"], "c": 2.0}
        assert to_plain(fields, raises) == known

    def test_arrays_count_as_what_is_in_them(self) -> None:
        """For the limit of depth and for that of values."""
        np = pytest.importorskip("numpy", reason="numpy is not installed here")

        def nested(levels: int) -> Any:
            value: Any = np.zeros((1, 1))
            for _ in range(levels):
                value = [value]
            return json.dumps(to_plain(value))

        assert "0.0" in nested(MAX_DEPTH - 3)
        assert "nested deeper" in nested(MAX_DEPTH - 2)
        many = to_plain([np.zeros(100)] * 2 * (MAX_VALUES // 100))
        assert sum(len(values) for values in many if type(values) is list) < MAX_VALUES + 100
        assert many[-1] == "<more values than a line holds>"

    def test_a_surrogate_beside_them_becomes_visible(self) -> None:
        """The encoder finds it there too."""
        np = pytest.importorskip("numpy", reason="numpy is not installed here")

        assert written({"a": np.float32(1), "\ud800": "\udfff"}) == {
            "a": 1.0,
            "\\ud800": "\\udfff",
        }

    @pytest.mark.parametrize(
        "stand_in",
        [
            "class numpy: pass",
            "class numpy:\n    def __getattr__(self, name): raise OSError",
            "numpy = types.ModuleType('numpy'); numpy.single = numpy.ndarray = 5",
            "numpy = types.ModuleType('numpy'); numpy.single = numpy.ndarray = Own",
            "numpy = lazy('numpy')",
        ],
    )
    def test_a_stand_in_for_numpy_is_not_trusted(self, stand_in: str) -> None:
        """Nor is a lazy import loaded: classes are known by their C code, and nothing is run."""
        pytest.importorskip("numpy", reason="numpy is not installed here")
        code = f"""
import importlib.util, sys, types
from foundry_log.encoding import to_plain
class Own:
    shape = ()
    dtype = 'own'
    def __float__(self):
        raise SystemExit('called')
    calls = 0
    def tolist(self):
        Own.calls += 1
        return to_plain([self]) and 5
def lazy(name):
    spec = importlib.util.find_spec(name)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
to_plain(object())
assert 'numpy' not in sys.modules and 'torch' not in sys.modules
{stand_in}
sys.modules['numpy'] = numpy
for _ in range(2):
    assert to_plain([Own(), {{1}}]) == [5, [1]]
assert Own.calls < 10
assert 'numpy._core' not in sys.modules and 'numpy.core' not in sys.modules
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

        assert done.returncode == 0, done.stderr

    def test_small_arrays_are_lists(self) -> None:
        """With NaN inside, of objects, of no dimension and of no elements."""
        np = pytest.importorskip("numpy", reason="numpy is not installed here")
        cyclic = np.empty(2, dtype=object)
        cyclic[0] = cyclic

        assert written(np.array([[1, 2], [3, 4]])) == [[1, 2], [3, 4]]
        assert written(np.array(5)) == 5
        assert written(np.zeros((0, 5))) == []
        assert written(np.array([{1}, None], dtype=object)) == [[1], None]
        assert written(cyclic) == ["<refers to itself>", None]
        assert repr(decode_line(encode_line({"v": np.array([NAN, 1])}))["v"]) == "[nan, 1.0]"

    def test_large_arrays_are_summarised(self) -> None:
        """Shape, dtype and the first values in the array's own order."""
        np = pytest.importorskip("numpy", reason="numpy is not installed here")

        for shape in ((101,), (50, 3), (3, 50), (7, 5, 4), (2, 2, 2, 2, 2, 2, 2)):
            array = np.arange(math.prod(shape)).reshape(shape)
            summary = written(array)
            assert summary["shape"] == list(shape)
            assert summary["dtype"] == str(array.dtype)
            assert summary["first"] == list(range(FIRST_VALUES))
        assert written(np.full(200, NAN))["first"] == [None] * FIRST_VALUES

    def test_a_summary_does_not_copy_the_array(self) -> None:
        """A transposed array of 8 MB: flattening it would take as much again."""
        np = pytest.importorskip("numpy", reason="numpy is not installed here")
        array = np.zeros((1000, 1000)).T
        to_plain(array)
        tracemalloc.start()
        try:
            to_plain(array)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

        assert peak < 1_000_000


class TestTorch:
    """Tensors of every layout."""

    def test_small_tensors_are_numbers_and_lists(self) -> None:
        """Also those with a gradient and of types that numpy does not have."""
        torch = pytest.importorskip("torch", reason="torch is not installed here")

        assert written(torch.tensor(1.5)) == 1.5
        assert written(torch.zeros(2, requires_grad=True)) == [0.0, 0.0]
        assert written(torch.ones(2, dtype=torch.bfloat16)) == [1.0, 1.0]
        assert written(torch.empty(0)) == []
        assert written({torch.tensor(3): 1}) == {"3": 1}
        assert math.isnan(decode_line(encode_line({"v": torch.tensor(NAN)}))["v"])

    def test_a_tensor_among_others_is_what_it_is_alone(self) -> None:
        """In the first record with one and in those after it, of every class and layout."""
        torch = pytest.importorskip("torch", reason="torch is not installed here")
        kinds = [
            torch.tensor(1.5), torch.tensor(True), torch.ones(2, 2, dtype=torch.bfloat16),
            torch.nn.Parameter(torch.zeros(2)), torch.ones(1, dtype=torch.complex64),
            torch.zeros(2, 2).to_sparse(), torch.empty(2, device="meta"), torch.arange(300),
        ]  # fmt: skip
        alone = [to_plain({"v": tensor, "set": {1}})["v"] for tensor in kinds]

        assert alone[:4] == [1.5, True, [[1.0, 1.0], [1.0, 1.0]], [0.0, 0.0]]
        for tensor, expected in zip(kinds, alone, strict=True):
            assert to_plain({"a": 1, "v": [tensor]})["v"] == [expected]
            assert to_plain({"v": tensor}, lambda value: "mine") == {"v": "mine"}

    def test_large_tensors_are_summarised(self) -> None:
        """Shape, dtype and first values; without the values where there is no flat view."""
        torch = pytest.importorskip("torch", reason="torch is not installed here")
        tensor = torch.arange(300, dtype=torch.bfloat16).requires_grad_()

        assert written(tensor) == {
            "shape": [300],
            "dtype": "torch.bfloat16",
            "first": [float(n) for n in range(FIRST_VALUES)],
        }
        assert written(torch.zeros(200, 2).to_sparse())["shape"] == [200, 2]
        assert written(torch.empty(200, device="meta"))["dtype"] == "torch.float32"

    def test_tensors_without_values_are_described(self) -> None:
        """Sparse and meta tensors, modules, types and devices."""
        torch = pytest.importorskip("torch", reason="torch is not installed here")

        assert "size=(2, 2)" in written(torch.zeros(2, 2).to_sparse())
        assert "meta" in written(torch.empty(2, device="meta"))
        assert written(torch.float32) == "torch.float32"
        assert written(torch.nn.Linear(1, 1)).startswith("Linear(")


class TestReading:
    """`decode_line` of lines that are not ours."""

    @pytest.mark.parametrize(
        "line",
        [b"", b"{", b"[1]", b"5", b"null", b'{"a": NaN}', b'{"a": 01}', b'{"a": 1} x', b"{'a': 1}",
         b'{"a": "\xff"}', '{"a": "\ud800"}', b'{"a": 1e999}', b'\x00{"a": 1}', b'{"a":"\n"}',
         b'{"a":' + b"[" * 201 + b"]" * 201 + b"}", b"[" * 300],
        ids=lambda line: repr(line[:20]),
    )  # fmt: skip
    def test_what_is_no_object_is_refused(self, line: bytes | str) -> None:
        """A ValueError, whatever is wrong."""
        with pytest.raises(ValueError):
            decode_line(line)

    def test_brackets_in_strings_are_no_depth(self) -> None:
        """Nor are many beside each other; white space in front is what a blanked fragment is."""
        fields = {"text": '\\"[' * 1000, "wide": [[] for _ in range(1000)]}

        assert decode_line(b"   " + encode_line(fields)) == fields

    def test_text_is_read_as_bytes_are(self) -> None:
        """A `str` is as good as its UTF-8."""
        assert decode_line('{"ä": 1}') == decode_line('{"ä": 1}'.encode())

    def test_a_document_is_the_same_in_more_lines(self) -> None:
        """`encode_document` is for people: indented, with a final newline."""
        document = encode_document({"a": {"b": NAN}})

        assert document.endswith(b"}\n")
        assert b'\n  "a": {\n' in document
        assert math.isnan(decode_line(document)["a"]["b"])


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(st.characters(exclude_categories=("Cs",)))
)
KEYS = st.sampled_from(
    ["non_finite", "non_finite_", "non_finite__", "a/b", "~0", "~1", "", "/", "0"]
) | st.text(st.characters(exclude_categories=("Cs",)), max_size=5)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)


@dataclasses.dataclass
class Box:
    """Stands for a hostile object, which Hypothesis itself could not hold."""

    name: str


def unboxed(tree: Any) -> Any:
    """The tree with the hostile objects in it."""
    if type(tree) is Box:
        return HOSTILE[tree.name]
    if type(tree) is dict:
        return {key: unboxed(item) for key, item in tree.items()}
    if type(tree) in (list, tuple, collections.deque):
        return type(tree)(map(unboxed, tree))
    return tree


ANYTHING = st.recursive(
    SCALARS
    | st.text()
    | st.integers()
    | st.binary()
    | st.datetimes()
    | st.timedeltas()
    | st.complex_numbers()
    | st.decimals()
    | st.fractions()
    | st.uuids()
    | st.sampled_from([ValueError("x"), object(), Path("x"), ...])
    | st.builds(Box, st.sampled_from(sorted(HOSTILE))),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.floats() | st.none(), inner, max_size=5)
        | st.builds(collections.deque, st.lists(inner, max_size=3))
    ),
    max_leaves=20,
)


class TestProperties:
    """What holds for every value."""

    @settings(max_examples=300, deadline=None)
    @given(st.dictionaries(KEYS, TREES, max_size=5))
    def test_a_line_read_is_what_was_written(self, fields: dict[str, Any]) -> None:
        """Trees of JSON's types, with NaN and infinities, under any names."""
        line = encode_line(fields)
        strict(line)

        assert repr(decode_line(line)) == repr(fields)
        assert encode_plain(to_plain(fields)) == line

    @settings(max_examples=300, deadline=None)
    @given(ANYTHING)
    def test_anything_is_one_line_of_strict_json(self, value: Any) -> None:
        """And the second reading of it is the first."""
        line = encode_line({"v": unboxed(value)})
        strict(line)
        again = decode_line(encode_line(decode_line(line)))

        assert repr(again) == repr(decode_line(line))

    @settings(max_examples=200, deadline=None)
    @given(ANYTHING)
    def test_what_is_plain_stays_as_it_is(self, value: Any) -> None:
        """`to_plain` of its own result changes nothing."""
        plain = to_plain(unboxed(value))

        assert repr(to_plain(plain)) == repr(plain)
