"""The rows of a stress run as a Markdown table."""

from __future__ import annotations

from collections.abc import Iterable

from tests.stress.rounds import FAULTS, Row

_HEADS = (
    "handler",
    "rotated names",
    "record, bytes",
    "processes × threads",
    "rotations",
    "kills",
    "acknowledged",
    *FAULTS,
    "fragments left",
)


def markdown(rows: Iterable[Row]) -> str:
    """Return the table: a row a setting, numbers to the right."""
    rule = ["---", "---", *("---:" for _ in _HEADS[2:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (_HEADS, rule, *map(_cells, rows)))


def _cells(row: Row) -> list[str]:
    setting = row.setting
    numbers = [row.rotations, row.kills]
    numbers += [row.counts[name] for name in ("acknowledged", *FAULTS, "fragments")]
    return [
        setting.contender,
        setting.names,
        f"{setting.size:,}",
        f"{setting.processes} × {setting.threads}",
        *(f"{number:,}" for number in numbers),
    ]
