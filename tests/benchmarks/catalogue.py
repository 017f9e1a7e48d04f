"""Name to workload."""

from __future__ import annotations

from tests.benchmarks import (
    imports,
    memory,
    metrics,
    processes,
    records,
    rotation,
    selftest,
    timing,
)
from tests.benchmarks.harness import Workload

_STANDARD: tuple[Workload, ...] = (
    records.STRUCTURED,
    records.PLAIN,
    metrics.LOG_STEP,
    timing.TIME_BLOCK,
    records.DISABLED,
    records.EXCEPTION,
    rotation.ROTATION,
    processes.PROCESSES_WORKLOAD,
    imports.IMPORT,
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
