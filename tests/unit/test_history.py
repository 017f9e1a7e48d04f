"""The files of a history stand in their order, whatever rotates while they are looked at."""

from __future__ import annotations

import itertools
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from foundry_log.files import history

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("rotations", [1, 2, 3])
@pytest.mark.parametrize("every", range(2, 40))
def test_rotations_between_the_lines_of_a_look_change_no_order(
    tmp_path: Path, every: int, rotations: int
) -> None:
    """GIVEN rotations after each so many lines WHEN a history is read THEN it is in order."""
    path = tmp_path / "run.jsonl"
    written = itertools.count()

    def rotate() -> None:
        names = sorted(tmp_path.glob("run.jsonl.*"), key=lambda name: -int(name.suffix[1:]))
        for name in names:
            name.rename(path.with_name(f"run.jsonl.{int(name.suffix[1:]) + 1}"))
        if path.exists():
            path.rename(path.with_name("run.jsonl.1"))
        path.write_bytes(b'{"n":%d}\n' % next(written))

    for _ in range(4):
        rotate()
    seen_lines, left = itertools.count(1), 12

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != history.__file__:
            return None
        if event == "line" and left and next(seen_lines) % every == 0:
            left -= 1
            for _ in range(rotations):
                rotate()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with ExitStack() as files:
            parts = history.histories(str(path), True, files)[str(path)]
            found = [json.loads(part.file.read())["n"] for part in parts if part.file]
    finally:
        sys.settrace(before)
    assert found == list(range(len(found)))
    assert len(found) >= 4
