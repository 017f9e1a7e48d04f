"""Results as lines of text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.benchmarks.harness import ComparisonReport


def aligned(
    heads: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[int] = (0,)
) -> list[str]:
    """Return the rows under their heads: the columns of `left` to the left, others to the right."""
    table = [list(heads), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(heads))]
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def comparison_table(report: ComparisonReport) -> str:
    """Return title, figures, and who was skipped or failed."""
    workload = report.workload
    title = f"{workload.name}: {workload.title}"
    amount = f"{report.count:,} operations × {report.repeats} repeats"
    rows = [
        (
            row.name,
            number(row.median_us),
            f"± {row.spread:.0%}",
            factor(row.to_limit),
            factor(row.to_ours),
        )
        for row in report.rows()
    ]
    lines = [title, amount, *aligned(("contender", "µs", "spread", "× limit", "× ours"), rows)]
    lines += [f"skipped  {name}: {why}" for name, why in report.skipped.items()]
    lines += [f"FAILED   {name}: {why}" for name, why in report.failed.items()]
    return "\n".join(lines)


def number(value: float) -> str:
    """Return three significant digits, and no more decimals than that takes."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def factor(value: float | None) -> str:
    """Return a ratio, or a dash where there was nothing to compare with."""
    return "–" if value is None else number(value)
