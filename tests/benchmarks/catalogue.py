"""Name to workload."""

from __future__ import annotations

from tests.benchmarks import (
    background,
    fields,
    imports,
    memory,
    metrics,
    processes,
    questions,
    records,
    rotation,
    selftest,
    services,
    setups,
    shipping,
    threads,
    timing,
    trackers,
    training,
)
from tests.benchmarks.harness import Workload

_STANDARD: tuple[Workload, ...] = (
    records.STRUCTURED,
    records.PLAIN,
    setups.SETUP,
    fields.FIELDS20,
    records.DISABLED,
    records.EXCEPTION,
    background.BACKGROUND,
    background.BACKGROUND_PACED,
    threads.THREADS_WORKLOAD,
    rotation.ROTATION,
    processes.PROCESSES_WORKLOAD,
    metrics.LOG_STEP,
    questions.STATISTICS,
    questions.LAST_ERRORS,
    timing.TIME_BLOCK,
    training.TRAINING,
    training.TRAINING_PACED,
    trackers.TRACKERS,
    imports.IMPORT,
    shipping.SHIP_SCAN,
    shipping.SHIP_IDLE,
    shipping.SHIP_QUEUE,
    shipping.SHIP_SMALL,
    shipping.SHIP_LARGE,
    services.BUDGET,
    services.MODEL,
    services.BUS,
    services.BUS_MEMORY,
    memory.MEMORY,
)

STANDARD = tuple(workload.name for workload in _STANDARD)
"""Names of what runs unless names are given: all but the proof of the harness itself."""

ALL = (*STANDARD, selftest.SELFTEST.name)
"""Names of every workload."""


def find(name: str) -> Workload:
    """Return the workload of this name.

    Raises:
        KeyError: there is none.
    """
    return {each.name: each for each in (*_STANDARD, selftest.SELFTEST)}[name]
