"""What wins where: the shipped comparisons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from limbeck.bench.columns import called
from limbeck.bench.orderings import FAILS, HOLDS, UNTOLD, judged
from limbeck.bench.page import findings
from limbeck.bench.suite import shipped_terms
from limbeck.bench.table import Row, Summary, apart, shipped_results, summarise
from limbeck.bench.terms import ALWAYS, Terms
from limbeck.report.explanation import Measured

from .markup import table
from .methods import measured_table

_BEST = 3
_OF_TEXT = ": language models"
_LARGE = 30
"""Arms of a comparison that stands beside others; smaller ones have students and data of their own."""
_PAPERS = {
    True: "The papers trained for 100 to 240 epochs on all of CIFAR-100 or ImageNet",
    False: "The papers distilled models of 0.1 to 13 billion parameters on instructions, summaries and translations, "
    "and judged mostly what students wrote; a held-out loss wants all that a text might say, which methods that seek "
    "modes, by reverse KL or on the student's own words, give up on purpose",
}
"""On what the published orderings rest: those of image classifiers, and those of language models."""


def comparisons() -> str:
    """Returns what all shipped comparisons say side by side, then a table of each, best arm first."""
    results = shipped_results()
    if not results:
        return "No comparison is shipped yet."
    parts = []
    for title, group in _groups(results).items():
        parts += [
            f"## What wins where{title}\n\n{_side_by_side(group if title else _large(group))}",
            f"## Published orderings{title}\n\n{_orderings(group)}",
        ]
    for suite, rows in results.items():
        summaries = summarise(rows, shipped_terms(suite))
        first = rows[0]
        whole = Measured(suite, first.data, first.teacher, first.student, first.epochs, first.split, tuple(summaries))
        machine = ", ".join(dict.fromkeys(row.processor for row in rows))
        said = "\n".join(f"- {finding}" for finding in findings(summaries))
        parts.append(
            f"## `{suite}`\n\n{said}\n\n{measured_table(whole)}\nMeasured on: {machine}. "
            f"`limbeck bench {suite}` runs it again, and one row of it by its name: "
            f"`limbeck bench {suite} --arm '{summaries[0].arm}'`."
        )
    return "\n\n".join(parts)


def _groups(results: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, Sequence[Row]]]:
    """Returns the comparisons of classifiers, and those of language models."""
    text = {suite: rows for suite, rows in results.items() if shipped_terms(suite).baselines != ALWAYS}
    classifiers = {suite: rows for suite, rows in results.items() if suite not in text}
    return {title: group for title, group in {"": classifiers, _OF_TEXT: text}.items() if group}


def _large(results: Mapping[str, Sequence[Row]]) -> dict[str, Sequence[Row]]:
    """Returns the large comparisons over the usual baselines."""
    return {
        suite: rows
        for suite, rows in results.items()
        if len({row.arm for row in rows}) >= _LARGE and shipped_terms(suite).baselines == ALWAYS
    }


def _by_suite(results: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, Summary]]:
    return {suite: {s.arm: s for s in summarise(rows, shipped_terms(suite))} for suite, rows in results.items()}


def _side_by_side(results: Mapping[str, Sequence[Row]]) -> str:
    """Returns the gain over a student alone of every arm in every comparison.

    Best mean gain first; where gains have several units, in the order of the first comparison.
    """
    by_suite = _by_suite(results)
    terms = {suite: shipped_terms(suite) for suite in results}
    alone = next(iter(terms.values())).first
    arms = dict.fromkeys(arm for summaries in by_suite.values() for arm in summaries)
    shown = [arm for arm in arms if arm != alone]

    def mean_gain(arm: str) -> float:
        gains = [s[arm].gain for s in by_suite.values() if arm in s]
        return sum(gains) / len(gains)

    rows = [
        [arm, *(_gain(s[arm], s[alone]) if arm in s else "" for s in by_suite.values())]
        for arm in (sorted(shown, key=mean_gain, reverse=True) if len({t.unit for t in terms.values()}) == 1 else shown)
    ]
    head = ["Arm", *(f"`{suite}`" for suite in by_suite)]
    note = (
        f"Gain over {called(alone)} of the same seed, in {_units(terms)}, mean over seeds. Bold: "
        f"better by more than two standard errors of the difference; in italics: worse by as much; the others cannot "
        f"be told from {'no distillation' if alone == 'none' else alone}."
    )
    return f"{note}\n\n{table(head, rows, right=range(1, len(head)))}"


def _units(terms: Mapping[str, Terms]) -> str:
    """Says what gains are told in: one unit for all comparisons, or that of each."""
    units = {suite: f"{t.criterion.title.lower()}, in {t.unit}" for suite, t in terms.items()}
    if len({t.unit for t in terms.values()}) == 1:
        return next(iter(terms.values())).unit
    return "; ".join(f"`{suite}`: {unit}" for suite, unit in units.items())


def _gain(arm: Summary, alone: Summary) -> str:
    mark = {1: "**", -1: "*", 0: ""}[apart(arm, alone)]
    return f"{mark}{arm.terms.signed(arm.gain)}{mark}"


def _orderings(results: Mapping[str, Sequence[Row]]) -> str:
    """Returns which orderings of the literature hold in each comparison, and how often that is."""
    terms = {suite: shipped_terms(suite) for suite in results}
    found = judged(results, terms)
    counts = Counter(verdict for _, verdicts in found for verdict, _ in verdicts.values())

    def where(verdicts: Mapping[str, tuple[str, float]], wanted: str) -> str:
        return ", ".join(
            f"`{suite}` {terms[suite].signed(difference)}"
            for suite, (verdict, difference) in verdicts.items()
            if verdict == wanted
        )

    rows = [
        [f"{o.better} > {o.worse}", o.source, *(where(verdicts, verdict) for verdict in (HOLDS, FAILS, UNTOLD))]
        for o, verdicts in found
    ]
    head = ["Claim", "Source", "Holds in", "Fails in", "Cannot be told in"]
    note = (
        f"Of {counts.total()} published claims that could be held against these short runs, {counts[HOLDS]} hold by "
        f"more than two standard errors, {counts[FAILS]} come out the other way by as much, and the seeds cannot tell "
        f"of the others. {_PAPERS[all(t.baselines == ALWAYS for t in terms.values())]}; what fails here "
        f"fails at this budget. Figures are differences in {_differences(terms)}."
    )
    return f"{note}\n\n{table(head, rows)}"


def _differences(terms: Mapping[str, Terms]) -> str:
    if len({t.criterion.key for t in terms.values()}) == 1:
        only = next(iter(terms.values()))
        return f"{only.criterion.title.lower()}, in {only.unit}"
    return _units(terms)


def accuracy_table() -> str:
    """Returns accuracies of the reference arms and the best others of each comparison, for the README."""
    by_suite = _by_suite(_large(shipped_results()))
    best = [arm for summaries in by_suite.values() for arm in list(summaries)[:_BEST]]
    arms = dict.fromkeys([*ALWAYS, *best])
    rows = []
    for arm in arms:
        cells = []
        for summaries in by_suite.values():
            found = summaries.get(arm)
            mark = "**" if found is not None and found is next(iter(summaries.values())) else ""
            cells.append(f"{mark}{100 * found.mean:.2f} ± {100 * found.spread:.2f} %{mark}" if found else "")
        rows.append([{"none": "no distillation", "label_smoothing": "label smoothing"}.get(arm, arm), *cells])
    return table(["", *(f"`{suite}`" for suite in by_suite)], rows, right=range(1, len(by_suite) + 1))
