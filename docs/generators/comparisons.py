"""What wins where: the shipped comparisons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from limbeck.bench.orderings import FAILS, HOLDS, judged
from limbeck.bench.page import findings
from limbeck.bench.table import Row, Summary, apart, shipped_results, summarise
from limbeck.report.explanation import REFERENCE_ARMS, Measured

from .markup import table
from .methods import measured_table

_BEST = 3
_LARGE = 20
"""Arms of a comparison that stands beside others; smaller ones have students and data of their own."""


def comparisons() -> str:
    """Returns what all shipped comparisons say side by side, then a table of each, best arm first."""
    results = shipped_results()
    if not results:
        return "No comparison is shipped yet."
    parts = [
        f"## What wins where\n\n{_side_by_side(_large(results))}",
        f"## Published orderings\n\n{_orderings(_large(results))}",
    ]
    for suite, rows in results.items():
        summaries = summarise(rows)
        first = rows[0]
        whole = Measured(suite, first.data, first.teacher, first.student, first.epochs, first.split, tuple(summaries))
        machine = ", ".join(dict.fromkeys(row.processor for row in rows))
        said = "\n".join(f"- {finding}" for finding in findings(summaries))
        parts.append(
            f"## `{suite}`\n\n{said}\n\n{measured_table(whole)}\nMeasured on: {machine}. "
            f"`limbeck bench {suite}` runs it again; `limbeck explain METHOD` names the recipe of one row."
        )
    return "\n\n".join(parts)


def _large(results: Mapping[str, Sequence[Row]]) -> dict[str, Sequence[Row]]:
    return {suite: rows for suite, rows in results.items() if len({row.arm for row in rows}) >= _LARGE}


def _side_by_side(results: Mapping[str, Sequence[Row]]) -> str:
    """Returns the gain over no distillation of every arm in every comparison, best mean gain first."""
    by_suite = {suite: {s.arm: s for s in summarise(rows)} for suite, rows in results.items()}
    arms = dict.fromkeys(arm for summaries in by_suite.values() for arm in summaries)
    shown = [arm for arm in arms if arm != "none"]

    def mean_gain(arm: str) -> float:
        gains = [100 * s[arm].gain for s in by_suite.values() if arm in s]
        return sum(gains) / len(gains)

    rows = [
        [arm, *(_gain(s[arm], s["none"]) if arm in s else "" for s in by_suite.values())]
        for arm in sorted(shown, key=mean_gain, reverse=True)
    ]
    head = ["Arm", *(f"`{suite}`" for suite in by_suite)]
    note = (
        "Gain over the student without distillation of the same seed, in percentage points, mean over seeds. Bold: "
        "better by more than two standard errors of the difference; in italics: worse by as much; the others cannot be "
        "told from no distillation."
    )
    return f"{note}\n\n{table(head, rows, right=range(1, len(head)))}"


def _gain(arm: Summary, alone: Summary) -> str:
    mark = {1: "**", -1: "*", 0: ""}[apart(arm, alone)]
    return f"{mark}{100 * arm.gain:+.2f}{mark}"


def _orderings(results: Mapping[str, Sequence[Row]]) -> str:
    """Returns which orderings of the literature hold in each comparison, and how often that is."""
    found = judged(results)
    suites = [suite for suite in results if any(suite in verdicts for _, verdicts in found)]
    counts = Counter(verdict for _, verdicts in found for verdict, _ in verdicts.values())

    def cell(verdicts: Mapping[str, tuple[str, float]], suite: str) -> str:
        if suite not in verdicts:
            return ""
        verdict, difference = verdicts[suite]
        mark = {HOLDS: "**", FAILS: "*"}.get(verdict, "")
        return f"{mark}{100 * difference:+.2f}{mark}"

    rows = [
        [f"{o.better} > {o.worse}", o.source, *(cell(verdicts, suite) for suite in suites)] for o, verdicts in found
    ]
    head = ["Claim", "Source", *(f"`{suite}`" for suite in suites)]
    note = (
        f"Of {counts.total()} published claims that could be held against these short runs, {counts[HOLDS]} hold by "
        f"more than two standard errors, {counts[FAILS]} come out the other way by as much, and the seeds cannot tell "
        "of the others. The papers trained for 100 to 240 epochs on all of CIFAR-100 or ImageNet; what fails here "
        "fails at this budget. Figures are differences in accuracy, in percentage points: bold where the claim holds, "
        "in italics where it fails."
    )
    return f"{note}\n\n{table(head, rows, right=range(2, len(head)))}"


def accuracy_table() -> str:
    """Returns accuracies of the reference arms and the best others of each comparison, for the README."""
    by_suite = {suite: {s.arm: s for s in summarise(rows)} for suite, rows in _large(shipped_results()).items()}
    best = [arm for summaries in by_suite.values() for arm in list(summaries)[:_BEST]]
    arms = dict.fromkeys([*REFERENCE_ARMS, *best])
    rows = []
    for arm in arms:
        cells = []
        for summaries in by_suite.values():
            found = summaries.get(arm)
            mark = "**" if found is not None and found is next(iter(summaries.values())) else ""
            cells.append(f"{mark}{100 * found.mean:.2f} ± {100 * found.spread:.2f} %{mark}" if found else "")
        rows.append([{"none": "no distillation", "label_smoothing": "label smoothing"}.get(arm, arm), *cells])
    return table(["", *(f"`{suite}`" for suite in by_suite)], rows, right=range(1, len(by_suite) + 1))
