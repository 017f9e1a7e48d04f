"""Whether a contender wrote what it was timed for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

Check = Callable[[int], None]
_STEP = re.compile(r"\bstep=(\d+)\b")


class WrongOutput(Exception):  # noqa: N818 - says what is wrong, where
    """A contender's output is not what its task asked for."""


def expect(is_right: bool, complaint: str) -> None:
    """Raise `WrongOutput` with the complaint unless all is right."""
    if not is_right:
        raise WrongOutput(complaint)


def strict_object(line: bytes | str) -> dict[str, Any]:
    """Return the object of a line of strict JSON.

    Raises:
        WrongOutput: it is not one; NaN and Infinity, which `json.loads` takes, count as wrong.
    """
    try:
        value = json.loads(line, parse_constant=_refuse)
    except ValueError as error:
        raise WrongOutput(f"no strict JSON ({error}): {line[:100]!r}") from None
    if type(value) is not dict:
        raise WrongOutput(f"no JSON object: {line[:100]!r}")
    return value


def json_lines(
    path: Path,
    fields: Mapping[str, Any],
    *,
    at: tuple[str, ...] = (),
    texts: tuple[str, ...] = (),
    numbered: bool = True,
    in_any_order: bool = False,
) -> Check:
    """Return a check of a file of JSON Lines.

    Args:
        path: the file.
        fields: name to value that each line must have.
        at: names of the nested objects that lead to the one with the fields.
        texts: must all stand in each line.
        numbered: the field `step` must count the lines from 0.
        in_any_order: each step must stand there once, wherever.
    """

    def check(count: int) -> None:
        lines = path.read_bytes().splitlines()
        expect(len(lines) == count, f"{len(lines)} lines where {count} were logged")
        steps = []
        for line in lines:
            found = check_line(line, fields, at)
            steps.append(found.get("step"))
            for text in texts:
                expect(text.encode() in line, f"no {text!r} in {line[:200]!r}")
        if numbered:
            check_steps(steps, in_any_order=in_any_order)

    return check


def check_steps(steps: list[Any], *, in_any_order: bool = False) -> None:
    """Raise `WrongOutput` unless the steps are 0 to n - 1, each once."""
    if in_any_order:
        expect(all(type(step) is int for step in steps), "a line without its step")
        steps = sorted(steps)
    for wanted, step in enumerate(steps):
        expect(step == wanted, f"step={step!r} where {wanted} was logged")


def check_line(line: bytes, fields: Mapping[str, Any], at: Iterable[str]) -> Any:
    """Return the object at that place of the line.

    Raises:
        WrongOutput: it is not there, or has not these fields.
    """
    found: Any = strict_object(line)
    for name in at:
        expect(type(found) is dict and name in found, f"no {name!r} in {line[:200]!r}")
        found = found[name]
    for name, value in fields.items():
        expect(name in found, f"no field {name!r} in {line[:200]!r}")
        expect(found[name] == value, f"{name}={found[name]!r} where {value!r} was logged")
    return found


def text_lines(path: Path, *markers: str, numbered: bool = False) -> Check:
    """Return a check that each of the markers stands in one line of the file for each operation.

    Args:
        path: the file.
        markers: texts.
        numbered: there are no other lines, and `step=0`, `step=1` and so on stand in one each.
    """

    def check(count: int) -> None:
        lines = path.read_text().splitlines()
        for marker in markers:
            found = sum(marker in line for line in lines)
            expect(found == count, f"{found} lines with {marker!r} where {count} were logged")
        if numbered:
            steps = [int(step) for line in lines for step in _STEP.findall(line)]
            expect(len(steps) == len(lines) == count, f"{len(lines)} lines, {len(steps)} steps")
            check_steps(steps, in_any_order=True)

    return check


def counted(number: Callable[[], int]) -> Check:
    """Return a check that `number()` is the number of operations."""

    def check(count: int) -> None:
        found = number()
        expect(found == count, f"{found} results of {count} operations")

    return check


def nothing_but(path: Path, last: Callable[[], object], marker: str) -> Check:
    """Return a check that the operations wrote nothing, and that `last()` then writes one line."""

    def check(count: int) -> None:
        before = path.read_bytes() if path.exists() else b""
        expect(not before, f"{count} disabled calls wrote {before[:100]!r}")
        last()
        lines = path.read_text().splitlines()
        expect(len(lines) == 1 and marker in lines[0], f"an enabled call wrote {lines[:2]!r}")

    return check


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
