"""Tables of what recipes can name besides methods: models, data sets, augmentations, transforms, evaluations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from limbeck.data.augment import augmentations
from limbeck.data.augment.base import policies
from limbeck.data.source import datasets
from limbeck.data.text import load_text, load_tokenizer
from limbeck.data.text.source import texts
from limbeck.evaluate import evaluations
from limbeck.evaluate.measure import Measure
from limbeck.functional.logit_transforms import LOGIT_TRANSFORMS
from limbeck.report.docstrings import documented, first_sentence, sentence_case
from limbeck.report.explanation import Option, options_of
from limbeck.report.wording import describe_default, describe_type
from limbeck.report.zoo import INPUT_SHAPE, NUM_CLASSES, ModelFact, model_facts
from limbeck.tasks import tasks
from limbeck.transforms import transforms

from .markup import Links, markdown, table

_COUNT = Measure("count", "count", "count")
_NOT_OF_OPTIONS = ("spec", "tokenizer", "split", "validation", "holdout", "limit")
_ACCURACY = Measure("accuracy", "accuracy", "fraction")


def model_table() -> str:
    """Returns the models of the zoo, from small to large."""
    rows = []
    for fact in model_facts():
        sizes = [f"{fact.cost.parameters:,}", _COUNT.text(fact.cost.macs)] if fact.cost else ["–", "–"]
        paper = f" [Paper, {fact.year}]({fact.link})." if fact.link else ""
        what = f"{sentence_case(markdown(fact.what, {}))}{paper}{_weights(fact)}"
        rows.append([f"`{fact.name}`", *sizes, what])
    shape = " x ".join(str(n) for n in INPUT_SHAPE)
    header = table(["Model", "Parameters", "MACs", "What it is"], rows, right=(1, 2))
    return f"Sizes are for {NUM_CLASSES} classes and inputs {shape}.\n\n{header}"


def _weights(fact: ModelFact) -> str:
    said = []
    for data, card in fact.weights.items():
        accuracy = card.get("accuracy")
        number = f" ({_ACCURACY.text(float(accuracy))})" if isinstance(accuracy, (int, float)) else ""
        said.append(f"`{data}`{number}")
    return f" Weights: {', '.join(said)}." if said else ""


def data_table() -> str:
    """Returns the named data sets with their licences, then the options of each."""
    rows, details = [], []
    for entry in datasets.entries():
        doc = documented(entry.part)
        title = entry.about.get("title") or first_sentence(markdown(doc.summary, {}))
        rows.append([f"`{entry.name}`", sentence_case(title), markdown(entry.about.get("licence", ""), {})])
        options = options_of(entry.part, doc, leave_out=("self", "split"))
        if options:
            details.append(f"### `{entry.name}`\n\n{_options(options)}")
    return "\n".join([table(["Name", "What it is", "Licence and origin"], rows), "## Options of data sets\n", *details])


def text_table() -> str:
    """Returns the text data sets with their licences, the options of each, and those that all have."""
    rows, details = [], []
    for entry in texts.entries():
        doc = documented(entry.part)
        rows.append(
            [f"`{entry.name}`", sentence_case(entry.about["title"]), markdown(entry.about.get("licence", ""), {})]
        )
        options = options_of(entry.part, doc, leave_out=("self", "split", "path"))
        if options:
            details.append(f"### `{entry.name}`\n\n{_options(options)}")
    shared = options_of(load_text, documented(load_text), leave_out=_NOT_OF_OPTIONS)
    return "\n".join(
        [
            table(["Name", "What it is", "Licence and origin"], rows),
            "## Options of all text\n\nBeside them `tokenizer` and `teacher_tokenizer` name tokenizers: "
            f"{markdown(documented(load_tokenizer).items('Args')['name'], {})}\n\n{_options(shared)}",
            "## Options of text data sets\n",
            *details,
        ]
    )


def augmentation_list() -> str:
    """Returns the augmentations with their options, and the policies."""
    parts = [_named(entry.name, entry.part, _fields(entry.part), {}) for entry in augmentations.entries()]
    if policies:
        listed = [f"- `{name}`: {describe_default(list(steps))}" for name, steps in sorted(policies.items())]
        parts += ["### Policies\n\nA policy stands for several augmentations.\n", "\n".join(listed)]
    return "\n\n".join(parts)


def transform_list() -> str:
    """Returns the transforms of batches with their options."""
    parts = [
        _named(
            e.name,
            e.part,
            options_of(_constructor(e.part), documented(e.part), leave_out=("self", "seed", "num_classes")),
            {},
        )
        for e in transforms.entries()
    ]
    return "\n\n".join(parts)


def logit_transform_table() -> str:
    """Returns the transforms that ``logit_transform`` knows."""
    rows = [[f"`{name}`", markdown(documented(f).summary, {})] for name, f in sorted(LOGIT_TRANSFORMS.items())]
    return table(["Name", "What it does"], rows)


def task_table() -> str:
    """Returns the tasks."""
    return table(
        ["Name", "What it is"], [[f"`{e.name}`", markdown(documented(e.part).summary, {})] for e in tasks.entries()]
    )


def evaluation_table() -> str:
    """Returns the evaluations and the numbers they give."""
    parts = []
    for entry in evaluations.entries():
        rows = [
            [f"`{m.key}`", m.title, {"higher": "higher", "lower": "lower"}.get(m.better, ""), m.explanation]
            for m in entry.about.get("measures", ())
        ]
        numbers = table(["Where in `results.json`", "Column", "Better", "What it says"], rows) if rows else ""
        doc = documented(entry.part)
        options = options_of(entry.part, doc, leave_out=("subject",))
        said = f"{entry.about['title']}.\n\n{markdown(doc.description, {})}\n\n{numbers}"
        parts.append(f"### `{entry.name}`\n\n{said}\n\n{_options(options) if options else ''}")
    return "\n\n".join(parts)


def _named(name: str, part: Any, options: tuple[Option, ...], links: Links) -> str:
    doc = documented(part)
    said = markdown("\n\n".join(t for t in (doc.summary, doc.description) if t), links)
    return f"### `{name}`\n\n{said}\n\n{_options(options)}"


def _options(options: tuple[Option, ...]) -> str:
    if not options:
        return "It has no options.\n"
    rows = [
        [f"`{o.name}`", "required" if o.default is None else f"`{o.default}`", o.values, markdown(o.meaning, {})]
        for o in options
    ]
    return table(["Option", "Default", "Values", "Meaning"], rows)


def _constructor(part: Any) -> Callable[..., Any]:
    return part.__init__ if isinstance(part, type) else part


def _fields(model: Any) -> tuple[Option, ...]:
    """Returns the options of an augmentation, which is a pydantic model."""
    meanings = documented(model).items("Args") | documented(model).items("Attributes")
    return tuple(
        Option(
            name,
            describe_type(field.annotation, field.metadata),
            None if field.is_required() else describe_default(field.get_default(call_default_factory=True)),
            field.description or meanings.get(name, ""),
        )
        for name, field in model.model_fields.items()
    )
