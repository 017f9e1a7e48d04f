"""Any Python value to strict JSON (RFC 8259), and back.

Two steps. `to_plain` reduces a value to the six JSON types in exact built-in classes; it runs the
user's code (`__repr__`, properties, `model_dump`) and survives whatever that does. `encode_line`
turns the plain tree into bytes with msgspec and never sees anything but exact built-ins of bounded
depth: handed a deep structure or an object with Python code behind it, every fast encoder has a way
to kill the interpreter (msgspec 0.22 on Python 3.13 overflows a 256 KiB thread stack).

NaN and the infinities have no JSON form. They are written as null, and the field `non_finite` at
the root of the line maps the JSON Pointer (RFC 6901) of each to "NaN", "Infinity" or "-Infinity",
so that numeric columns stay numeric and `decode_line` gives back what was written.

One thing is out of reach: `repr` of somebody's object is that object's code. On Python 3.13 the
interpreter's own `repr` of a list nested some thousand deep overflows the stack of a small thread,
and an object whose `repr` shows such a list does so here too; the list itself is safe.

All functions here are pure and safe from any thread.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import decimal
import enum
import json
import math
import numbers
import os
import re
import sys
import threading
import types
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from itertools import accumulate, islice
from typing import Any, NoReturn, TypeVar

import msgspec

NON_FINITE = "non_finite"
MAX_DEPTH = 64
"""Levels of nesting that are written; what lies deeper becomes a marker string."""
MAX_READ_DEPTH = 200
"""Levels of nesting that `decode_line` reads."""
MAX_VALUES = 100_000
"""Values written in one line; shared references can unfold a small object into an endless one."""
MAX_ARRAY_VALUES = 100
"""Arrays with more elements are written as shape, dtype and their first values."""
FIRST_VALUES = 10
MAX_REPR = 10_000
"""Characters kept of the `repr` of an object without a JSON form; strings are never cut."""
MAX_INT_BITS = 2_000
"""Longer integers become hexadecimal text: Python refuses to write them in decimal beyond a limit
that is at least 640 digits (`sys.set_int_max_str_digits`)."""

MAX_NESTING = 2
"""Values whose own code may be running inside each other's in one thread; see `bounded`."""

Default = Callable[[Any], Any]
_Result = TypeVar("_Result")

_SCALARS = frozenset({str, int, float, bool, type(None)})
_CONTAINERS = frozenset({dict, list, tuple})
_Numbers = dict[type, Callable[[Any], Any]]
_numbers: _Numbers = {}
"""How a number of an exact class becomes Python's; see `_learn_classes`."""
_arrays: set[type] = set()
"""Classes with `shape`, and `tolist` that gives Python's values or raises."""
_NUMPY_NUMBERS: dict[type, tuple[str, ...]] = {
    bool: ("bool_",),
    int: (
        "byte", "short", "intc", "int_", "longlong",
        "ubyte", "ushort", "uintc", "uint", "ulonglong",
    ),
    float: ("half", "single", "double"),  # not longdouble: as keys two may be one float
}  # fmt: skip
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_FAMILY = f'"{NON_FINITE}'.encode()
_to_be_marked = re.compile(b"n(?:ull|on_finite)").search
_NAMED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
_STEP = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}


# --- values ---------------------------------------------------------------------------------------


def to_plain(value: Any, default: Default | None = None, *, is_fresh: bool = False) -> Any:
    """Return `value` as a tree of dict (string keys), list, str, int, float, bool and None.

    The tree is a snapshot: it shares no container with `value`. Never raises for any input.

    Scalars and small arrays of numpy, torch and others that offer `shape`, `dtype` and `tolist`
    become numbers and lists; arrays above 100 elements become `{"shape", "dtype", "first"}`.
    Dates and times become ISO 8601 text, time spans seconds, enum members their value, paths, UUIDs
    and decimals text, bytes their UTF-8 text or `base64:…`, sets lists, exceptions
    `{"type", "message"}`; dataclasses and pydantic models become objects, anything else its `repr`.

    Args:
        value: anything.
        default: asked first, as that of `json.dumps`, for what is no dict, list, tuple, string,
            number or None; what it returns is reduced in turn. Where it raises, the built-in rules
            apply.
        is_fresh: the value is a dict that nobody else has: it may be the result itself.
    """
    try:
        if type(value) is dict:
            # A copy first: another thread may change the original at any time.
            fields = value if is_fresh else value.copy()
            # The usual context is flat. A loop is quicker here than `issuperset(map(type, ...))`,
            # up to some twenty fields, and quicker in place than behind a call.
            for name, item in fields.items():
                if type(item) not in _SCALARS or type(name) is not str:
                    break
            else:
                return fields
        return _copied(value, 0, [MAX_VALUES], _numbers if default is None else {})
    except Exception:  # not plain, or of a class that raises when it is merely looked at
        return bounded(_reduced, _sealed, value, default)


def _reduced(value: Any, default: Default | None) -> Any:
    if len(_arrays) < 2:
        with suppress(Exception):  # of a module that somebody has put in the place of another
            _learn_classes()
    return _Reducer(default).reduce(value, 0)


def _sealed(value: Any, _: Default | None) -> Any:
    return _SealedReducer(None).reduce(value, 0)


class _Nesting(threading.local):
    depth = 0


_nesting = _Nesting()


def bounded(
    run: Callable[..., _Result], instead: Callable[..., _Result], *arguments: Any
) -> _Result:
    """Return `run(*arguments)`, where `run` calls code of the user's objects.

    A `__repr__` that logs its own object comes back here before any handler has seen a record, and
    one that does so twice doubles at every level until the interpreter's recursion limit. Inside of
    `MAX_NESTING` such calls of the thread, `instead(*arguments)` is returned, which calls none.
    """
    depth = _nesting.depth
    if depth >= MAX_NESTING:
        return instead(*arguments)
    try:  # the assignment inside, so that an interrupt cannot leave the depth raised
        _nesting.depth = depth + 1
        return run(*arguments)
    finally:
        _nesting.depth = depth


class _NotPlainError(Exception):
    pass


def _copied(value: Any, depth: int, budget: list[int], numbers: _Numbers) -> Any:
    """Return a copy of a tree of exact built-ins and known classes; raise for anything else.

    All that is looked at is the class, and what is called is C: no object's own code runs.
    `numbers` is `_numbers`, or empty where a `default` wants to be asked about these.
    """
    kind = type(value)
    if kind not in _CONTAINERS:
        return _copied_leaf(value, depth, budget, numbers)
    budget[0] -= len(value)
    if depth >= MAX_DEPTH or budget[0] < 0:
        raise _NotPlainError
    if kind is dict:
        fields = value.copy()
        for name, item in fields.items():
            if type(name) is not str:
                raise _NotPlainError
            kind = type(item)
            if kind not in _SCALARS:
                if kind in numbers:
                    fields[name] = numbers[kind](item)
                else:
                    fields[name] = _copied(item, depth + 1, budget, numbers)
        return fields
    items = list(value)
    if not _SCALARS.issuperset(map(type, items)):
        for index, item in enumerate(items):
            kind = type(item)
            if kind in numbers:
                items[index] = numbers[kind](item)
            elif kind not in _SCALARS:
                items[index] = _copied(item, depth + 1, budget, numbers)
    return items


def _copied_leaf(value: Any, depth: int, budget: list[int], numbers: _Numbers) -> Any:
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind in numbers:
        return numbers[kind](value)
    if kind in _arrays and numbers is _numbers and math.prod(value.shape) <= MAX_ARRAY_VALUES:
        return _copied(value.tolist(), depth + 1, budget, numbers)
    raise _NotPlainError


def _learn_classes() -> None:
    """Keep the numbers and arrays of numpy and torch, once the program has loaded these.

    Only classes that convert in C: a stand-in for one of the packages may have code of its own.
    """
    for number, kinds in () if _numbers else _NUMPY_NUMBERS.items():
        for kind in filter(None, map(_names_in("numpy").get, kinds)):
            if isinstance(getattr(kind, f"__{number.__name__}__"), types.WrapperDescriptorType):
                _numbers[kind] = number
    for kind in (_names_in("numpy").get("ndarray"), _names_in("torch").get("Tensor")):
        if kind is not None and isinstance(kind.tolist, types.MethodDescriptorType):
            _arrays.add(kind)


def _names_in(module: str) -> dict[str, Any]:
    """Return what a loaded module holds, without a load that a lazy import may have put off."""
    loaded = sys.modules.get(module)
    return vars(loaded) if type(loaded) is types.ModuleType else {}


class _Reducer:
    """One pass over one value: the budget of values and the containers being walked."""

    def __init__(self, default: Default | None) -> None:
        self._default = default
        self._left = MAX_VALUES
        self._open: set[int] = set()

    def reduce(self, value: Any, depth: int) -> Any:
        """Return the plain form of `value`, whatever its class does when it is looked at."""
        try:
            return self._reduce(value, depth)
        except Exception:
            return _describe(value)

    def _reduce(self, value: Any, depth: int) -> Any:
        self._left -= 1
        kind = type(value)
        # What is a container for certain is not asked whether it is a scalar: that takes long.
        if (
            kind is not dict
            and kind is not list
            and (self._default is None or isinstance(value, _NATIVE))
        ):
            scalar = _scalar(value)
            if scalar is not _NOT_SCALAR:
                return scalar
        if self._left < 0:
            return _MORE
        if depth >= MAX_DEPTH:
            return f"<nested deeper than {MAX_DEPTH} levels>"
        if id(value) in self._open:
            return "<refers to itself>"
        self._open.add(id(value))
        try:
            return self._reduce_object(value, depth + 1)
        finally:
            self._open.discard(id(value))

    def _reduce_object(self, value: Any, depth: int) -> Any:
        if self._default is not None and not isinstance(value, _NATIVE):
            try:
                return self.reduce(self._default(value), depth)
            except Exception:  # the built-in rules are for what the caller's function refuses
                scalar = _scalar(value)
                if scalar is not _NOT_SCALAR:
                    return scalar
        kind = type(value)
        if kind is dict or (kind is not list and isinstance(value, Mapping)):
            return self._object(value.items(), depth)
        if isinstance(value, (list, tuple, Set, deque)):
            return self._array(value, depth)
        if isinstance(value, BaseException):
            return {"type": type_name(value), "message": _describe(value, str)}
        fields = _fields_of(value)
        if fields is not None:
            return self._object(fields, depth)
        if hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "tolist"):
            return self._tensor(value, depth)
        return _describe(value)

    def _object(self, items: Any, depth: int) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        repeats: dict[str, int] = {}
        # A copy, since a `__repr__` below may change the original; cut, since it may be endless.
        for key, item in list(islice(items, self._left + 2)):
            if self._left < 0:
                plain[_free_key("<more>", plain, repeats)] = _MORE
                break
            plain[_free_key(_key_text(key), plain, repeats)] = self.reduce(item, depth)
        return plain

    def _array(self, items: Any, depth: int) -> list[Any]:
        plain: list[Any] = []
        for item in list(islice(items, self._left + 2)):
            if self._left < 0:
                plain.append(_MORE)
                break
            plain.append(self.reduce(item, depth))
        return plain

    def _tensor(self, value: Any, depth: int) -> Any:
        shape = [int(size) for size in value.shape]
        if math.prod(shape) <= MAX_ARRAY_VALUES:
            content = value.tolist()
            if type(content) is type(value):  # numpy's longdouble has no smaller form
                return float(value) if isinstance(value, numbers.Real) else _describe(value)
            return self.reduce(content, depth)
        summary: dict[str, Any] = {"shape": shape, "dtype": _describe(value.dtype, str)}
        try:
            # Every axis cut first: `reshape` of a transposed array copies all of it.
            corner = value[(slice(FIRST_VALUES),) * len(shape)]
            first = corner.reshape(-1)[:FIRST_VALUES].tolist()
        except Exception:
            return summary  # sparse and other layouts without a flat view
        return {**summary, "first": self.reduce(first, depth)}


class _SealedReducer(_Reducer):
    """Keeps what is built in, and calls nothing of any other object."""

    def reduce(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in _SCALARS or kind in _CONTAINERS:
            return super().reduce(value, depth)
        return _NESTED

    def _object(self, items: Any, depth: int) -> dict[str, Any]:
        keyed = [(key if type(key) in _SCALARS else _NESTED, item) for key, item in items]
        return super()._object(keyed, depth)


def too_nested(*_: Any) -> NoReturn:
    """Raise what the interpreter would in the end; for `bounded`."""
    raise RecursionError(_NESTED)


_NATIVE = (dict, list, tuple, str, int, float, type(None))
_NOT_SCALAR = object()
_MORE = "<more values than a line holds>"
_NESTED = "<logged while a value was being described>"


def _scalar(value: Any) -> Any:
    """Return the plain form of a value without parts, or `_NOT_SCALAR`."""
    kind = type(value)
    if kind is float or kind is bool or value is None:
        return value
    if kind is str:
        return _text(value)
    if type(kind) is type and kind in _numbers:  # the hash of another metaclass may raise
        return _numbers[kind](value)
    if kind is not int and isinstance(value, enum.Enum):
        member = value.value
        return _NOT_SCALAR if isinstance(member, enum.Enum) else _enum_value(value, member)
    if isinstance(value, str):
        return _text(str.__str__(value))
    if isinstance(value, int):
        number = int.__index__(value)
        return number if number.bit_length() <= MAX_INT_BITS else hex(number)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _bytes_text(bytes(value))
    if isinstance(value, (datetime.date, datetime.time)):
        return _text(value.isoformat())
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, (decimal.Decimal, uuid.UUID)):
        return _text(str(value))
    if isinstance(value, os.PathLike):
        path = os.fspath(value)
        return _text(path) if isinstance(path, str) else _bytes_text(path)
    if isinstance(value, type):
        return _text(f"{value.__module__}.{value.__qualname__}")
    return _NOT_SCALAR


def _enum_value(member: enum.Enum, value: Any) -> Any:
    plain = _scalar(value)
    return _text(member.name) if plain is _NOT_SCALAR else plain


def _text(text: str) -> str:
    """Return text that UTF-8 can carry; lone surrogates become their visible escape."""
    try:
        if type(text) is str and text.isascii():
            return text
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text if type(text) is str else str.__str__(text)


def _bytes_text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(content).decode()


def _key_text(key: Any) -> str:
    try:
        if type(key) is str:
            return _text(key)
        if isinstance(key, str) and not isinstance(key, enum.Enum):
            return _text(str.__str__(key))
        plain = _scalar(key)
        if plain is _NOT_SCALAR and hasattr(key, "dtype"):
            plain = _scalar(key.item())  # of numpy or torch
    except Exception:
        return _describe(key)
    if isinstance(plain, str):
        return plain
    if plain is _NOT_SCALAR:
        return _describe(key)
    return json.dumps(plain)  # null, true, 1, 2.5, NaN


def _free_key(key: str, taken: dict[str, Any], repeats: dict[str, int]) -> str:
    """Return `key`, or `key_`, `key_2`, … : 1 and "1" are two keys in Python and one in JSON."""
    free = key
    while free in taken:
        count = repeats[key] = repeats.get(key, 0) + 1
        free = f"{key}_" if count == 1 else f"{key}_{count}"
    return free


def _fields_of(value: Any) -> list[tuple[str, Any]] | None:
    """Return the named fields of a dataclass, pydantic model, msgspec or attrs object, or None."""
    kind = type(value)
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
    elif callable(getattr(kind, "model_dump", None)):
        return list(value.model_dump().items())
    elif isinstance(getattr(kind, "__struct_fields__", None), tuple):
        names = list(kind.__struct_fields__)
    elif isinstance(getattr(kind, "__attrs_attrs__", None), tuple):
        names = [field.name for field in kind.__attrs_attrs__]
    else:
        return None
    return [(name, _attribute(value, name)) for name in names]


def _attribute(value: Any, name: str) -> Any:
    try:
        return getattr(value, name)
    except Exception as error:
        return f"<{type(error).__name__} on reading>"


def _describe(value: Any, how: Callable[[Any], str] = repr) -> str:
    """Return the `repr` of anything, cut to `MAX_REPR` characters; never raises."""
    try:
        text = _text(how(value))
    except Exception:
        return f"<unrepresentable {type_name(value)}>"
    return text if len(text) <= MAX_REPR else text[:MAX_REPR] + "…"


def type_name(value: Any) -> str:
    """Return the qualified name of the value's class, without its module for built-ins."""
    try:
        kind = type(value)
        module = kind.__module__
        name = kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
        return _text(name)
    except Exception:
        return "object"


def exception_text(error: BaseException) -> str:
    """Return `str(error)`, or what stands for it where that raises or logs itself."""
    return bounded(_describe, lambda *_: _NESTED, error, str)


# --- lines ----------------------------------------------------------------------------------------


def encode_line(fields: Mapping[str, Any], default: Default | None = None) -> bytes:
    """Return `fields` as one strict JSON object without a newline. Never raises.

    Args:
        fields: the members of the object. One that is named `non_finite` (with any number of
            underscores behind it) gets one underscore more, since that name is taken.
        default: as in `to_plain`.
    """
    plain = to_plain(fields, default)
    if type(plain) is not dict:  # not a mapping after all, or one whose methods raise
        plain = {"value": plain}
    return encode_plain(plain)


def encode_plain(plain: dict[str, Any]) -> bytes:
    """Return what `encode_line` does, of fields that `to_plain` has reduced: they are not looked at
    again, and anything else in them may raise.
    """
    try:
        line = _encode(plain)
    except (UnicodeEncodeError, ValueError):
        plain = _mended(plain)
        line = _encode(plain)
    if _to_be_marked(line) is None:
        return line
    return _marked(plain, line)


def encode_named(plain: dict[str, Any]) -> bytes:
    """Return what `encode_plain` does, of an object whose own names are none of `non_finite`'s."""
    try:
        line = _encode(plain)
    except (UnicodeEncodeError, ValueError):
        return encode_plain(plain)
    return line if line.find(b"null") < 0 else _marked(plain, line)


def encode_value(value: Any) -> bytes:
    """Return any value as strict JSON, NaN and infinities as null. Never raises."""
    plain = to_plain(value)
    try:
        return _encode(plain)
    except (UnicodeEncodeError, ValueError):
        return _encode(_mended(plain))


def _mended(plain: Any) -> Any:
    """Return what the encoder has refused in a form that it takes.

    A lone surrogate, or an integer of thousands of digits: found by the encoder for nothing, by us
    only at the price of looking at every string and number of every record.
    """
    return _Reducer(None).reduce(plain, 0)


def _marked(plain: dict[str, Any], line: bytes) -> bytes:
    """Return the line with its own `non_finite`, and with fields of such a name moved aside."""
    if line.find(_FAMILY) >= 0:  # `in` takes twice as long
        plain = {_shifted(key): item for key, item in plain.items()}
        line = _encode(plain)
    if _nones_near_the_root(plain) == line.count(b"null"):
        return line
    found = _non_finite(plain)
    return _encode({**plain, NON_FINITE: found}) if found else line


def decode_line(line: bytes | str) -> dict[str, Any]:
    """Return the fields that `encode_line` was given, NaN and infinities included.

    Raises:
        ValueError: the line is not a strict JSON object.
    """
    content = line.encode() if isinstance(line, str) else line
    if _is_too_deep(content):
        raise ValueError(f"nested deeper than {MAX_READ_DEPTH} levels, as no line of this package")
    try:
        fields = _decode(content)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"not a line of strict JSON: {error}") from error
    if type(fields) is not dict:
        raise ValueError(f"not a JSON object but {type(fields).__name__}")
    markers = fields.pop(NON_FINITE, None)
    if markers is not None:
        _restore(fields, markers)
    if any(key.startswith(NON_FINITE) for key in fields):
        fields = {_unshifted(key): item for key, item in fields.items()}
    return fields


def _is_too_deep(line: bytes) -> bool:
    """Whether the decoder could run out of stack: it overflows that of a small thread (256 KiB)."""
    if line.count(b"[") + line.count(b"{") <= MAX_READ_DEPTH:
        return False
    brackets = _BRACKET.findall(_STRING.sub(b"", line))
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > MAX_READ_DEPTH


def encode_document(fields: Mapping[str, Any]) -> bytes:
    """Return `fields` as indented strict JSON with a final newline, for files that people read."""
    return msgspec.json.format(encode_line(fields), indent=2) + b"\n"


def _shifted(key: str) -> str:
    return key + "_" if key.rstrip("_") == NON_FINITE else key


def _unshifted(key: str) -> str:
    return key[:-1] if key.endswith("_") and key.rstrip("_") == NON_FINITE else key


def _nones_near_the_root(plain: dict[str, Any]) -> int:
    """Count None in an object and in those right below it, where it usually is."""
    count = 0
    for item in plain.values():
        if item is None:
            count += 1
        elif type(item) is dict:
            count += list(item.values()).count(None)
    return count


def _non_finite(container: Any) -> dict[str, str]:
    """Return the pointers of NaN and infinities below a container, with their names."""
    found: dict[str, str] = {}
    for key, item in container.items() if type(container) is dict else enumerate(container):
        kind = type(item)
        if kind is float:
            if item - item != 0.0:
                name = "NaN" if item != item else "Infinity" if item > 0 else "-Infinity"
                found[f"/{_escaped(key)}"] = name
        elif kind in _CONTAINERS and (inner := _non_finite(item)):
            found.update((f"/{_escaped(key)}{pointer}", name) for pointer, name in inner.items())
    return found


def _escaped(key: str | int) -> str:
    return str(key).replace("~", "~0").replace("/", "~1")


def _restore(fields: dict[str, Any], found: Any) -> None:
    for pointer, name in found.items() if isinstance(found, dict) else ():
        *parents, last = [
            part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]
        ] or [""]
        try:
            place: Any = fields
            for part in parents:
                place = place[int(part) if isinstance(place, list) else part]
            key: Any = int(last) if isinstance(place, list) else last
            if place[key] is None:
                place[key] = _NAMED[name]
        except (KeyError, IndexError, TypeError, ValueError):
            continue  # a pointer of somebody else's making: the null stays
