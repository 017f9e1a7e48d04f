"""Questions to a run's files while it goes on: statistics of a metric, and the last errors."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.checks import expect
from tests.benchmarks.goals import Goal
from tests.benchmarks.harness import Comparison, Contender, Start, Subject
from tests.benchmarks.metrics import METRICS

# --- statistics -----------------------------------------------------------------------------------

STEPS_BETWEEN = 100


def statistics_after(history: int) -> Start:
    """Return what asks a MetricsLogger that has `history` steps, 100 more before each question."""

    def start(directory: Path) -> Iterator[Subject]:
        from foundry_log import MetricsLogger

        logging.getLogger("foundry_log").setLevel(logging.WARNING)
        log = MetricsLogger("bench", directory)
        log.log_step(0, 1, METRICS)
        _lengthen(log.metrics_file, b'"step":0', history)
        known = history
        answer = log.compute_statistics("loss")

        def run(steps: range) -> int:
            nonlocal known, answer
            total_ns = 0
            for _ in steps:
                for step in range(known, known + STEPS_BETWEEN):
                    log.log_step(step, 1, METRICS)
                known += STEPS_BETWEEN
                started = time.perf_counter_ns()
                answer = log.compute_statistics("loss")
                total_ns += time.perf_counter_ns() - started
            return total_ns

        def check(count: int) -> None:
            loss = METRICS["loss"]
            right = {"count": history + count * STEPS_BETWEEN, "min": loss, "max": loss}
            expect(right.items() <= answer.items(), f"{answer} where {right} was logged")
            expect(abs(answer["mean"] - loss) < 1e-9 > answer["std"], f"{answer}")

        yield Subject(run, check)
        log.close()

    return start


def _lengthen(path: Path, number: bytes, lines: int) -> None:
    """Let a file of one line have that many, the number counted up: an earlier process's."""
    line = path.read_bytes()
    expect(number in line and line.endswith(b"\n"), f"no {number!r} in {line[:200]!r}")
    name = number[:-1]
    with path.open("ab") as file:
        file.writelines(line.replace(number, b"%s%d" % (name, step)) for step in range(1, lines))


STATISTICS = Comparison(
    "statistics",
    f"compute_statistics while the run writes, {STEPS_BETWEEN} steps after the question before",
    (
        Contender(
            "foundry_log, 10,000 steps", statistics_after(10_000), "ours", goal=Goal(1.0, unit="ms")
        ),
        Contender(
            "foundry_log, 200,000 steps",
            statistics_after(200_000),
            "ours",
            goal=Goal(1.0, unit="ms"),
        ),
        Contender(
            "foundry_log, 1,000,000 steps",
            statistics_after(1_000_000),
            "ours",
            goal=Goal(1.0, unit="ms"),
            only_long=True,
        ),
    ),
    count=20,
    quick=2,
    batches=20,
    repeats=5,
)


# --- the last errors ------------------------------------------------------------------------------

ASKED = 10
OWN_ERRORS = 100


def tail_read(directory: Path) -> Iterator[Subject]:
    """The least that a question for the last lines can cost: the end of the file, decoded."""
    path = directory / "errors.jsonl"
    _write_errors(directory, 10_000)
    answer: list[Any] = []

    def run(steps: range) -> None:
        nonlocal answer
        for _ in steps:
            with path.open("rb") as file:
                file.seek(-16_384, os.SEEK_END)
                lines = file.read().splitlines()[-ASKED:]
            answer = [json.loads(line) for line in reversed(lines)]

    yield Subject(run, lambda count: _check_errors(answer))


def last_errors_of(lines: int) -> Start:
    """Return what asks an ErrorTracker whose file has that many lines."""

    def start(directory: Path) -> Iterator[Subject]:
        tracker = _write_errors(directory, lines)
        answer: list[Any] = []

        def run(steps: range) -> None:
            nonlocal answer
            for _ in steps:
                answer = tracker.get_recent_errors(ASKED)

        yield Subject(run, lambda count: _check_errors(answer))
        tracker.close()

    return start


def _write_errors(directory: Path, lines: int) -> Any:
    """Return the tracker of a file of that many lines; the last hundred are its own."""
    from foundry_log import ErrorTracker

    logger = logging.getLogger("bench")
    logger.setLevel(logging.CRITICAL)
    tracker = ErrorTracker(logger, directory)
    tracker.log_error(ValueError("0"))
    _lengthen(tracker.errors_file, b'"error_message":"0', lines - OWN_ERRORS)
    for number in range(OWN_ERRORS):
        try:
            raise ValueError(f"own {number}")
        except ValueError as error:
            tracker.log_error(error, {"step": number})
    return tracker


def _check_errors(answer: list[Any]) -> None:
    messages = [entry["error_message"] for entry in answer]
    right = [f"own {number}" for number in reversed(range(OWN_ERRORS))][:ASKED]
    expect(messages == right, f"{messages} where {right} were the last")
    expect(all("Traceback" in entry["traceback"] for entry in answer), f"{answer[:1]}")


LAST_ERRORS = Comparison(
    "last_errors",
    f"get_recent_errors({ASKED})",
    (
        Contender("limit: the file's last 16 KiB decoded", tail_read, role="limit"),
        Contender(
            "foundry_log, 200,000 lines",
            last_errors_of(200_000),
            role="ours",
            goal=Goal(0.5, unit="ms"),
        ),
        Contender(
            "foundry_log, 1,000,000 lines",
            last_errors_of(1_000_000),
            role="ours",
            goal=Goal(0.5, unit="ms"),
            only_long=True,
        ),
    ),
    count=500,
    quick=20,
    repeats=5,
)
