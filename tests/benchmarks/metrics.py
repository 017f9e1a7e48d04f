"""`log_step` of eight metrics."""

from __future__ import annotations

import contextlib
import csv
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.checks import Check, counted, expect, json_lines
from tests.benchmarks.goals import Goal
from tests.benchmarks.harness import Comparison, Contender, Subject
from tests.benchmarks.loggers import STAMP, limit, our_formatter, our_handler

METRICS = {
    "loss": 2.5312,
    "accuracy": 0.4127,
    "learning_rate": 0.0003,
    "grad_norm": 1.0273,
    "tokens_per_second": 51234.5,
    "perplexity": 12.57,
    "batch_time_s": 0.0213,
    "epoch_progress": 0.37,
}


def _ours(directory: Path, *, with_info: bool) -> Iterator[Subject]:
    from foundry_log import MetricsLogger

    with contextlib.ExitStack() as stack:
        logger = logging.getLogger("foundry_log")
        logger.propagate = False
        logger.setLevel(logging.WARNING)
        check_info: Check | None = None
        if with_info:
            path = directory / "run.jsonl"
            handler = our_handler(path)
            handler.setFormatter(our_formatter({}))
            logger.setLevel(logging.INFO)
            logger.addHandler(handler)
            stack.callback(handler.close)
            stack.callback(logger.removeHandler, handler)
            check_info = json_lines(path, {"level": "INFO"}, texts=("loss=2.5312",), numbered=False)
        log = MetricsLogger("bench", directory)
        stack.callback(log.close)
        check_entries = json_lines(log.metrics_file, {"epoch": 1, "metrics": METRICS})

        def run(steps: range) -> None:
            for step in steps:
                log.log_step(step, 1, METRICS)

        def check(count: int) -> None:
            check_entries(count)
            if check_info is not None:
                check_info(count)

        yield Subject(run, check)


def ours(directory: Path) -> Iterator[Subject]:
    return _ours(directory, with_info=False)


def ours_with_info(directory: Path) -> Iterator[Subject]:
    return _ours(directory, with_info=True)


def csv_writer(directory: Path) -> Iterator[Subject]:
    path = directory / "metrics.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "epoch", *METRICS])
        writer.writeheader()

        def run(steps: range) -> None:
            for step in steps:
                writer.writerow({"step": step, "epoch": 1, **METRICS})
                file.flush()

        def check(count: int) -> None:
            with path.open(newline="") as written:
                rows = list(csv.DictReader(written))
            expect([int(row["step"]) for row in rows] == list(range(count)), f"{len(rows)} rows")
            expect(all(float(row["loss"]) == METRICS["loss"] for row in rows), "another loss")

        yield Subject(run, check)


def tensorboard(directory: Path) -> Iterator[Subject]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(directory)

    def run(steps: range) -> None:
        for step in steps:
            for name, value in METRICS.items():
                writer.add_scalar(name, value, step)

    def events() -> int:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

        (path,) = directory.iterdir()
        loader = EventFileLoader(str(path))
        found = sum(len(event.summary.value) for event in loader.Load())
        expect(found % len(METRICS) == 0, f"{found} scalars")
        return found // len(METRICS)

    yield Subject(run, counted(events))
    writer.close()


def trackio_local(directory: Path) -> Iterator[Subject]:
    os.environ["TRACKIO_DIR"] = str(directory)
    import trackio

    trackio.init(project="bench", name="run", embed=False, auto_log_gpu=False)

    def run(steps: range) -> None:
        for step in steps:
            trackio.log({"epoch": 1, **METRICS}, step=step)

    def rows() -> int:
        with contextlib.closing(sqlite3.connect(directory / "bench.db")) as database:
            (found,) = database.execute("SELECT count(*) FROM metrics").fetchone()
        return int(found)

    yield Subject(run, counted(rows))
    trackio.finish()


def wandb_offline(directory: Path) -> Iterator[Subject]:
    import wandb

    run_object = wandb.init(project="bench", mode="offline", dir=str(directory))

    def run(steps: range) -> None:
        for step in steps:
            run_object.log({"epoch": 1, **METRICS}, step=step)

    def check(count: int) -> None:
        files = list(directory.rglob("*.wandb"))
        expect(bool(files) and files[0].stat().st_size > count * 20, "no offline file of that size")

    yield Subject(run, check)
    run_object.finish()


LOG_STEP = Comparison(
    "log_step",
    "eight metrics of a step, visible at once",
    (
        limit(
            {"timestamp": STAMP, "step": 100, "epoch": 1, "metrics": METRICS},
            fields={"epoch": 1, "metrics": METRICS},
        ),
        Contender("foundry_log MetricsLogger", ours, role="ours", goal=Goal(2.5)),
        Contender("foundry_log, and an INFO line in a file", ours_with_info, role="ours"),
        Contender("csv + flush", csv_writer),
        Contender(
            "TensorBoard SummaryWriter (buffered)",
            tensorboard,
            needs=("torch", "tensorboard"),
            buffered=True,
            share=0.1,
        ),
        Contender(
            "Trackio (buffered)",
            trackio_local,
            needs=("trackio",),
            buffered=True,
            share=0.1,
        ),
        Contender(
            "W&B offline (buffered)",
            wandb_offline,
            needs=("wandb",),
            buffered=True,
            share=0.1,
        ),
    ),
)
