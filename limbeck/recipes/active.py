"""Active distillation: train, look at the pool, ask about some samples, and again, each round a stage of its own.

A folder of such a run holds, beside the rest, ``active.json``: which samples were asked about in which round, labels
and questions to the teacher in ledgers of their own. A round is a stage that starts from a fresh student; a run that
was stopped goes on within its round, and never asks twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.data.loader import Loader
from limbeck.data.partly_labelled import keep_labels
from limbeck.data.source import Source
from limbeck.data.subsets import subset
from limbeck.engine import distributed
from limbeck.engine.checkpoint import write_atomically
from limbeck.errors import DataError, RecipeError
from limbeck.evaluate.predictions import predict
from limbeck.functional.metrics import accuracy
from limbeck.recipes.build import BuiltStage
from limbeck.recipes.schema import ActiveSpec, Recipe, StageSpec
from limbeck.recipes.stage_data import build_data
from limbeck.selection import Ledger, PoolSignals, build_selector
from limbeck.signals import UNLABELLED

FILE = "active.json"


@dataclass
class Books:
    """What has been asked so far.

    Attributes:
        labels: labels that were bought.
        questions: samples that the teacher was asked about.
        accuracy: of the student of each finished round on the test data.
    """

    labels: Ledger = field(default_factory=Ledger)
    questions: Ledger = field(default_factory=Ledger)
    accuracy: list[float] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Returns plain data for a file and for the results."""
        return {
            "labels": self.labels.plain(),
            "teacher_queries": self.questions.plain(),
            "accuracy_by_round": list(self.accuracy),
        }

    def save(self, folder: Path) -> None:
        """Writes ``active.json`` so that a reader sees the old books or the new."""
        write_atomically(folder / FILE, json.dumps(self.plain(), sort_keys=True).encode() + b"\n")

    @classmethod
    def load(cls, folder: Path) -> Books | None:
        """Reads ``active.json``; None where there is none."""
        path = folder / FILE
        if not path.exists():
            return None
        try:
            data = json.loads(path.read_text())
            ledgers = Ledger.from_plain(data["labels"]), Ledger.from_plain(data["teacher_queries"])
            return cls(*ledgers, [float(a) for a in data["accuracy_by_round"]])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"'{path}' does not hold the books of an active run ({error})") from None


@dataclass(frozen=True)
class Pool:
    """The whole training data of an active run, with the labels that an oracle knows.

    Attributes:
        source: all samples.
        start: those whose labels are known from the start.
        spec: the stage of every round.
        active: how to ask.
        seed: seed of the run.
    """

    source: Source
    start: list[int]
    spec: StageSpec
    active: ActiveSpec
    seed: int

    @classmethod
    def of(cls, recipe: Recipe) -> Pool:
        """Returns the pool of a recipe.

        Raises:
            RecipeError: it has too few samples, no labels to begin with, or the recipe has more than one stage.
            DataError: the data has no labels to buy.
        """
        assert recipe.active is not None
        if len(recipe.stages) != 1:
            raise RecipeError("an active recipe has one stage, which every round repeats; remove the others")
        spec, active = recipe.stages[0], recipe.active
        if spec.data.labelled is None:
            raise RecipeError("an active recipe says how many labels it begins with, `data: {labelled: 10}`")
        whole = spec.data.model_copy(update={"labelled": None, "labelled_per_batch": None})
        source = build_data(whole, spec, recipe.seed).train
        if source.labels() is None:
            raise DataError(f"'{source.info.name}' has no labels that could be bought")
        start = keep_labels(source, spec.data.labelled).labels()
        assert start is not None
        pool = cls(source, (start != UNLABELLED).nonzero().squeeze(1).tolist(), spec, active, recipe.seed)
        wanted = len(pool.start) + active.rounds * active.queries
        if wanted > len(source):
            raise RecipeError(
                f"data.labelled + active.rounds x queries is {wanted}, but the pool has {len(source)} samples; ask for "
                "fewer"
            )
        return pool

    def first_books(self) -> Books:
        """Returns the books of round 0: the labels of the start."""
        books = Books()
        books.labels.enter(self.start)
        # Whoever buys labels has a teacher that answers for the whole pool; otherwise each answer is a question.
        books.questions.enter(range(len(self.source)) if self.active.ask == "labels" else self.start)
        return books

    def round_spec(self, number: int, books: Books) -> StageSpec:
        """Returns the stage of a round: what it trains on is what was asked about before it."""
        bought = books.labels.up_to(number)
        shown = None if self.active.ask == "labels" else books.questions.up_to(number)
        known: dict[str, Any] = {"labelled": None, "label_ids": tuple(bought), "use_ids": shown}
        data = self.spec.data.model_copy(update=known)
        return self.spec.model_copy(update={"name": round_name(number), "data": data})

    def ask(self, number: int, books: Books, built: BuiltStage) -> None:
        """Chooses samples by what the round's student says of the pool, and enters them in the right book."""
        asked = books.labels if self.active.ask == "labels" else books.questions
        left = np.setdiff1d(np.arange(len(self.source)), np.asarray(asked.samples))
        known = np.asarray(books.labels.samples)
        signals = PoolSignals(
            index=torch.from_numpy(left),
            logits=self._logits(built.stage.student(), left, built),
            labelled=self._logits(built.stage.student(), known, built),
            labels=self._oracle(known),
            teacher_accuracy=self._teacher_accuracy(known, built),
            round=number,
            seed=self.seed,
        )
        chosen = build_selector(self.active.selector, counted=True)(signals, self.active.queries)
        assert chosen.order is not None
        picked = left[chosen.order.numpy()].tolist()
        asked.enter(picked)
        (books.questions if asked is books.labels else books.labels).enter(())

    def _oracle(self, samples: np.ndarray) -> Tensor:
        labels = self.source.labels()
        assert labels is not None
        return labels[torch.from_numpy(samples)]

    def _logits(self, model: nn.Module, samples: np.ndarray, built: BuiltStage) -> Tensor:
        """What a model says of samples as they are, without augmentation."""
        loader = Loader(
            subset(self.source, samples), (), batch_size=256, shuffle=False, normalize=self.spec.data.normalize
        )
        return predict({"model": model}, loader, built.task).logits["model"]

    def _teacher_accuracy(self, samples: np.ndarray, built: BuiltStage) -> float | None:
        role = built.roles.get("teacher")
        if role is None or role.model is None:
            return None
        return accuracy(self._logits(role.model, samples, built), self._oracle(samples)).item()


def round_name(number: int) -> str:
    """Returns the name of a round's stage."""
    return f"round{number:02d}"


def run_rounds(
    recipe: Recipe,
    path: Path,
    build: Callable[[StageSpec], BuiltStage],
    train: Callable[[BuiltStage, str], None],
    judge: Callable[[BuiltStage], float],
) -> BuiltStage:
    """Trains every round that is not done yet, asking after each but the last, and returns the last one.

    Args:
        recipe: a recipe with ``active``.
        path: the run folder.
        build: makes a stage.
        train: runs a stage of that name, or takes back what it left when it is done.
        judge: accuracy of a stage's student on the test data.

    Raises:
        LimbeckError: something does not fit, or a round went wrong.
    """
    assert recipe.active is not None
    pool = Pool.of(recipe)
    build_selector(recipe.active.selector, counted=True)
    books = distributed.on_first(lambda: Books.load(path)) or pool.first_books()
    for number in range(recipe.active.rounds + 1):
        last = number == recipe.active.rounds
        if not last and len(books.accuracy) > number:
            continue
        built = build(pool.round_spec(number, books))
        train(built, round_name(number))
        if len(books.accuracy) == number:
            books.accuracy.append(judge(built))
            if not last:
                pool.ask(number + 1, books, built)
            distributed.on_first(lambda: books.save(path))
    return built


def asked(path: Path) -> dict[str, Any]:
    """Returns what a run asked, for its results; empty for runs that ask nothing."""
    books = Books.load(path)
    return {} if books is None else {"active": books.plain()}
