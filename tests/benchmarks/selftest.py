"""The proof of the harness: contenders that go wrong in every way that it must notice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.checks import json_lines
from tests.benchmarks.goals import Goal
from tests.benchmarks.harness import Comparison, Contender, Start, Subject

_FIELDS = {"loss": 2.5}
_MISSING = "a_module_that_nobody_has"


def writes(line: Callable[[int], bytes], **layout: Any) -> Start:
    """Return what starts a contender that writes `line(step)`; layout as of `json_lines`."""

    def start(directory: Path) -> Iterator[Subject]:
        path = directory / "lines.jsonl"
        with path.open("ab", buffering=0) as file:

            def run(steps: range) -> None:
                for step in steps:
                    file.write(line(step))

            yield Subject(run, json_lines(path, _FIELDS, **layout))

    return start


def right(step: int) -> bytes:
    return b'{"step":%d,"loss":2.5}\n' % step


def loses_one(step: int) -> bytes:
    return b"" if step == 7 else right(step)


def repeats_a_step(step: int) -> bytes:
    return right(step - (step == 7))


def writes_nan(step: int) -> bytes:
    return b'{"step":%d,"loss":NaN}\n' % step


def forgets_a_field(step: int) -> bytes:
    return b'{"step":%d}\n' % step


def raises(step: int) -> bytes:
    raise RuntimeError(f"no step {step}")


def dies(step: int) -> bytes:
    os._exit(3)


def late(directory: Path) -> Iterator[Subject]:
    """Write in time for the end, but not for the return of the call."""
    path = directory / "late.jsonl"
    with path.open("ab", buffering=1_000_000) as file:

        def run(steps: range) -> None:
            for step in steps:
                file.write(right(step))

        yield Subject(run, json_lines(path, _FIELDS))


SELFTEST = Comparison(
    "selftest",
    "a line in a file: the harness must refuse most of these",
    (
        Contender("limit", writes(right), role="limit"),
        Contender("right", writes(right), role="ours", goal=Goal(1e9)),
        Contender("too slow for its goal", writes(right), goal=Goal(1e-9, than="right")),
        Contender("late but buffered", late, buffered=True),
        Contender("late", late),
        Contender("loses one", writes(loses_one)),
        Contender("repeats a step", writes(repeats_a_step)),
        Contender("repeats one of any order", writes(repeats_a_step, in_any_order=True)),
        Contender("writes NaN", writes(writes_nan)),
        Contender("forgets a field", writes(forgets_a_field)),
        Contender("raises", writes(raises)),
        Contender("dies", writes(dies), goal=Goal(1.0)),
        Contender("missing", writes(right), needs=(_MISSING,), goal=Goal(1.0, unit="ms")),
        Contender("missing name", writes(right), needs=(f"json.{_MISSING}",)),
        Contender("long", writes(right), only_long=True, goal=Goal(1.0)),
    ),
    count=200,
    quick=20,
    repeats=3,
)
