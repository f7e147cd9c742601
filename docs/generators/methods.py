"""The pages of the methods, and their table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from limbeck.bench.columns import Fact, facts_of
from limbeck.bench.table import Summary
from limbeck.methods.base import methods
from limbeck.report.docstrings import documented, first_sentence, sentence_case
from limbeck.report.explanation import Explanation, Measured, bibtex, explain

from .markup import Links, code, equation, markdown, table

_FAMILIES = {
    "arm": "Arms without a teacher",
    "logit": "Logits",
    "feature": "Features",
    "relation": "Relations between samples",
    "self": "Self-distillation",
    "online": "Online and mutual",
}
_SIGNALS = {
    "logits": "class scores",
    "features.stem": "the map after the stem",
    "features.stages": "the maps at the end of each stage, after the activation",
    "features.preacts": "the maps at the end of each stage, before the activation",
    "features.pooled": "the vector that the classifier reads",
}


def families() -> dict[str, list[str]]:
    """Returns the names of the methods by family, families and methods in reading order."""
    found: dict[str, list[str]] = {}
    for entry in sorted(methods.entries(), key=lambda e: (e.about["year"], e.name)):
        found.setdefault(entry.about["family"], []).append(entry.name)
    known = [f for f in _FAMILIES if f in found]
    return {family: found[family] for family in [*known, *sorted(set(found) - set(known))]}


def family_title(family: str) -> str:
    """Returns what a family is called in headings."""
    return _FAMILIES.get(family, family.replace("_", " ").capitalize())


def method_table(*, links_to: str = "{name}.md", headings: str | None = "###") -> str:
    """Returns the methods by family, a table each, or one table of all where there are no headings.

    Args:
        links_to: address of a method's page, with ``{name}``; names are not linked where it is empty.
        headings: what stands before the title of a family; None for one table with the family in a column.
    """
    if headings is None:
        rows = [[family_title(f), *_row(name, links_to)] for f, names in families().items() for name in names]
        return table(["Family", "Method", "Paper", "What it does"], rows)
    parts = []
    for family, names in families().items():
        parts += [
            f"{headings} {family_title(family)}\n",
            table(["Method", "Paper", "What it does"], [_row(n, links_to) for n in names]),
        ]
    return "\n".join(parts)


def _row(name: str, links_to: str) -> list[str]:
    entry = methods[name]
    about = entry.about
    shown = f"[`{name}`]({links_to.format(name=name)})" if links_to else f"`{name}`"
    method = explain(name)
    paper = f"[{about['title']}]({method.link}), {about['year']}" if method.link else ""
    return [shown, paper, first_sentence(markdown(documented(entry.part).summary, {}))]


def method_page(name: str, links: Links) -> str:
    """Returns the page of a method."""
    method = explain(name)
    base = "../"
    parts = [_head(method), markdown(f"{method.doc.summary}\n\n{method.doc.description}".strip(), links, base=base)]
    if method.equation:
        parts.append(f"## Equation\n{equation(method.equation)}")
    parts += [_terms(method, links), _hyperparameters(method, links), _needs(method)]
    if "Deviations" in method.doc.sections:
        said = markdown(sentence_case(method.doc.sections["Deviations"]), links, base=base)
        parts.append(f"## Deviations from the paper or its code\n\n{said}")
    parts += [_use(method), _results(method), _citation(method)]
    parts.append(f"Source: `{method.module.replace('.', '/')}.py`")
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(method: Explanation) -> str:
    facts = [f"Family: {family_title(method.family)}"]
    if method.link:
        authors = f"{method.authors.replace(' and ', ', ')}. " if method.authors else ""
        facts.insert(0, f"{authors}[{method.title}]({method.link}), {method.year}")
    # Two spaces end a line within a paragraph.
    return f"# {method.name}\n\n" + "  \n".join(facts)


def _terms(method: Explanation, links: Links) -> str:
    rows = [[f"`{t.name}`", t.weight, markdown(t.meaning, links, base="../")] for t in method.terms]
    note = "The loss is the sum of these terms times their weights. `weights:` in a recipe changes them by name."
    return f"## Terms\n\n{note}\n\n{table(['Term', 'Default weight', 'Meaning'], rows)}"


def _hyperparameters(method: Explanation, links: Links) -> str:
    if not method.hyperparameters:
        return "## Hyperparameters\n\nNone."
    rows = [
        [
            f"`{o.name}`",
            "required" if o.default is None else f"`{o.default}`",
            o.values,
            markdown(o.meaning, links, base="../"),
        ]
        for o in method.hyperparameters
    ]
    return f"## Hyperparameters\n\n{table(['Name', 'Default', 'Values', 'Meaning'], rows)}"


def _needs(method: Explanation) -> str:
    rows = [
        [
            f"`{need.role}`",
            "trained" if need.trained else "frozen",
            "; ".join(_signal(s) for s in need.signals) or "nothing",
        ]
        for need in method.roles
    ]
    notes = []
    if method.batch:
        notes.append(f"of the batch: {', '.join(f'`{key}`' for key in method.batch)}")
    if method.views:
        notes.append(f"further views of each sample, set in `data.views`: {', '.join(f'`{v}`' for v in method.views)}")
    if method.batch_coupled:
        notes.append(
            "the loss couples the samples of a batch: it is gathered over processes, and micro-batches are refused"
        )
    notes += [f"the {role}'s batch normalisation uses the statistics of the batch" for role in method.batch_statistics]
    if method.takes_logit_transform:
        notes.append("takes `logit_transform`, for example `standardize`")
    listed = "\n".join(f"- {note}" for note in notes)
    return f"## Needs\n\n{table(['Role', 'Is', 'Gives'], rows)}\n{listed}"


def _signal(name: str) -> str:
    return f"`{name}` ({_SIGNALS[name]})" if name in _SIGNALS else f"`{name}`"


def _use(method: Explanation) -> str:
    parts = ["## Use", *(code(f"limbeck run {recipe}", "console") for recipe in method.recipes)]
    roles = {need.role for need in method.roles}
    if roles <= {"student", "teacher"} and not method.views:
        teacher = "teacher" if "teacher" in roles else "None"
        call = f'done = limbeck.distill({teacher}, student, train_set, method="{method.name}", evaluate_on=test_set)'
        parts.append(code(f"import limbeck\n\n{call}"))
    if method.recipes:
        parts.append(
            f"The [page of recipes](../recipes.md#{method.recipes[0].replace('_', '-')}) shows the whole text."
        )
    if len(parts) == 1:
        parts.append(
            "No recipe comes with limbeck, as no source makes the batches it needs; a loader of your own gives their "
            "entries, which are named above, to [`limbeck.adapters`](../guides/adapters.md)."
        )
    return "\n\n".join(parts)


def _results(method: Explanation) -> str:
    if not method.measured:
        return "## Measured\n\nNo measured result yet."
    return "## Measured\n\n" + "\n\n".join(measured_table(result, own=method.name) for result in method.measured)


def measured_table(result: Measured, *, own: str | None = None) -> str:
    """Returns how the arms of a comparison did; the rows of a method's own arms are bold."""
    facts = facts_of(result.summaries)
    baselines = result.summaries[0].terms.baselines
    timed = any(not math.isnan(arm.seconds) for arm in result.summaries)
    rows = [
        _bold(_arm(arm, facts, timed=timed), own in (arm.arm, *arm.method.split(" + ")) and arm.arm not in baselines)
        for arm in result.summaries
    ]
    pair = f"`{result.teacher}` to `{result.student}`" if result.teacher else f"`{result.student}`"
    words = (
        f"{pair} on {result.data}, {result.epochs} epochs; last epoch, {result.split} data, "
        f"mean and deviation over seeds (comparison `{result.suite}`)."
    )
    crossed = "Runs" if any(arm.folds for arm in result.summaries) else "Seeds"
    header = ["Arm", *(fact.title for fact in facts), crossed, *(["Seconds"] if timed else [])]
    return f"{words}\n\n{table(header, rows, right=range(1, len(header)))}"


def _arm(arm: Summary, facts: Sequence[Fact], *, timed: bool) -> list[str]:
    seconds = "–" if math.isnan(arm.seconds) else f"{arm.seconds:.0f}"
    return [f"`{arm.arm}`", *(fact.text(arm) for fact in facts), str(arm.seeds), *([seconds] if timed else [])]


def _bold(row: Sequence[str], bold: bool) -> list[str]:
    return [f"**{c}**" for c in row] if bold else list(row)


def _citation(method: Explanation) -> str:
    entry = bibtex(method.name, methods[method.name].about)
    return f"## Cite\n\n{code(entry, 'bibtex')}" if entry else ""
