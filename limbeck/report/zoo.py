"""What there is to say of the models of the zoo."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from limbeck.errors import LimbeckError
from limbeck.report.docstrings import documented, one_line
from limbeck.report.explanation import paper_link
from limbeck.students.base import models
from limbeck.students.cost import Cost, cost_of
from limbeck.students.loading import build_model, shipped_weights, zoo_weights
from limbeck.students.weight_files import model_card

INPUT_SHAPE = (3, 32, 32)
NUM_CLASSES = 10


@dataclass(frozen=True)
class ModelFact:
    """A model of the zoo.

    Attributes:
        name: name in recipes.
        title: title of the publication.
        authors: its authors, where registered.
        year: year of publication.
        link: address of the publication; empty where there is none.
        what: the model in one sentence.
        cost: parameters and multiply-accumulate operations for :data:`INPUT_SHAPE` and :data:`NUM_CLASSES`; None where
            the model cannot be built, for example without an optional package.
        weights: data sets on which weights are shipped, with their model cards.
        module: where its source is, as a dotted name.
    """

    name: str
    title: str
    authors: str
    year: int
    link: str
    what: str
    cost: Cost | None
    weights: dict[str, dict[str, Any]]
    module: str


@cache
def model_facts() -> tuple[ModelFact, ...]:
    """Returns what there is to say of every model, from small to large."""
    shipped = shipped_weights()
    facts = [
        ModelFact(
            name=entry.name,
            title=entry.about["title"],
            authors=entry.about.get("authors", ""),
            year=entry.about["year"],
            link=paper_link(entry.about["paper"]),
            what=one_line(documented(entry.part).summary).removeprefix("Returns "),
            cost=_cost(entry.name, INPUT_SHAPE),
            weights=_weights(entry.name, shipped),
            module=entry.part.__module__,
        )
        for entry in models.entries()
    ]
    return tuple(sorted(facts, key=lambda fact: fact.cost.parameters if fact.cost else 0))


def _cost(name: str, input_shape: Sequence[int]) -> Cost | None:
    try:
        # Shapes are enough to count, so nothing is initialised; that shipped weights then go nowhere is no news.
        with torch.device("meta"), warnings.catch_warnings(action="ignore", category=UserWarning):
            return cost_of(build_model(name, num_classes=NUM_CLASSES, input_shape=input_shape), input_shape)
    except LimbeckError:
        return None


def _weights(name: str, shipped: Sequence[str]) -> dict[str, dict[str, Any]]:
    found = {}
    for full in shipped:
        # Names of models hold no hyphen, names of data sets may.
        model, _, data = full.partition("-")
        if model == name:
            found[data] = model_card(zoo_weights(model, data))
    return found
