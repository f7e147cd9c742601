"""What wins where: the shipped comparisons."""

from __future__ import annotations

from limbeck.bench.table import shipped_results, summarise
from limbeck.report.explanation import Measured

from .methods import measured_table


def comparisons() -> str:
    """Returns a table a shipped comparison, best arm first."""
    parts = []
    for suite, rows in shipped_results().items():
        first = rows[0]
        whole = Measured(
            suite, first.data, first.teacher, first.student, first.epochs, first.split, tuple(summarise(rows))
        )
        machine = ", ".join(dict.fromkeys(row.processor for row in rows))
        parts.append(
            f"## `{suite}`\n\n{measured_table(whole)}\nMeasured on: {machine}. `limbeck bench {suite}` runs it again."
        )
    return "\n\n".join(parts) or "No comparison is shipped yet."
