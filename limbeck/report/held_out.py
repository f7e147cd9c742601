"""On which held-out data runs were judged: only what was judged on the same can be compared."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from limbeck.data.text.generated import GENERATED
from limbeck.report.runs import RunRecord
from limbeck.report.sections import Figures, Section, Text

_ONLY_OF_TRAINING = frozenset({"packed", "canaries"})
"""Options of text that change what is learnt and not what is judged."""
_ONLY_OF_WRITING = frozenset({"tokenizer", "teacher_tokenizer", "context", "too_long", "bos", "test"})
"""Options beside those of ``of`` that matter to held-out text where the training text is written by a model."""


def by_data(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Returns the runs that were judged on the same held-out samples together, by what tells the data apart.

    Two recipes mean the same samples when the data, its options and the split are the same; what only changes the
    training samples, such as ``limit: 100``, does not count. Texts of other numbers of tokens are not the same.
    """
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(json.dumps(_held_out(record), sort_keys=True, default=str), []).append(record)
    parted = [part for group in groups.values() for part in _by_tokens(group)]
    labels = [_label(group[0]) for group in parted]
    clashing = {label for label in labels if labels.count(label) > 1}
    named = [
        f"{label} ({', '.join(record.folder.name for record in group)})" if label in clashing else label
        for label, group in zip(labels, parted)
    ]
    return dict(zip(named, parted))


def told_apart(groups: Mapping[str, Sequence[RunRecord]]) -> Text:
    """Says that the runs of a page were judged on different data, and which on which."""
    where = [f"{', '.join(r.folder.name for r in group)} on {label}" for label, group in groups.items()]
    return Text(
        "",
        (
            f"These runs were judged on different data: {'; '.join(where)}. What one says of its data cannot be "
            "compared with what another says of its own, so each data set has its tables and drawings, and a best "
            "student is marked among those of the same data alone.",
        ),
        tone="note",
    )


def headed(sections: Sequence[Section], label: str, number: int) -> list[Section]:
    """Returns sections whose headings name the data, and whose drawings share no address with those of other data."""
    named: list[Section] = []
    for section in sections:
        if isinstance(section, Figures):
            drawn = (replace(figure, svg=_readdressed(figure.svg, number)) for figure in section.figures)
            section = replace(section, figures=tuple(drawn))
        # Without a heading of its own a section takes the data's, the first one at least.
        title = f"{section.title}: {label}" if section.title else label if not named else ""
        named.append(replace(section, title=title))
    return named


def _readdressed(svg: str, number: int) -> str:
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\1data{number}-", svg)


def _held_out(record: RunRecord) -> dict[str, Any]:
    """What says on which samples a run was judged."""
    given = record.stage.get("data", "")
    data = dict(given) if isinstance(given, Mapping) else {"name": given}
    options = dict(data.get("options") or {})
    if data.get("name") == GENERATED and options.get("of"):
        # Models write the training text; what is held out is the data's own.
        of = options["of"]
        own = {k: v for k, v in options.items() if k in _ONLY_OF_WRITING}
        options = {**(of if isinstance(of, Mapping) else {"name": of}), **own}
        data["name"] = options.pop("name", "")
    limit = data.get("limit")
    if isinstance(limit, Mapping):
        limit = limit.get("test")
    elif not data.get("validation"):
        limit = None
    return {
        "task": record.stage.get("task", ""),
        "name": data.get("name", ""),
        "path": data.get("path"),
        "options": {k: v for k, v in options.items() if k not in _ONLY_OF_TRAINING},
        "validation": data.get("validation") or 0,
        "limit": limit,
        "split": record.results.get("split", "test"),
        "tokenizer": record.card.get("tokenizer", ""),
    }


def _by_tokens(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Divides runs by the number of tokens that they were judged on; those that do not tell stay with the first."""
    parts: dict[int | None, list[RunRecord]] = {}
    known = [_tokens(record) for record in records]
    first = next((count for count in known if count is not None), None)
    for record, count in zip(records, known):
        parts.setdefault(first if count is None else count, []).append(record)
    return list(parts.values())


def _tokens(record: RunRecord) -> int | None:
    judged = record.results.get("token_loss")
    count = judged.get("tokens") if isinstance(judged, Mapping) else None
    return count if isinstance(count, int) else None


def _label(record: RunRecord) -> str:
    held = _held_out(record)
    return f"{held['name'] or 'unnamed data'}, {held['split']} data"
