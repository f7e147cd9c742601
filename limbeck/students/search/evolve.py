"""Regularised (ageing) evolution over a space of students."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from limbeck import streams
from limbeck.errors import RecipeError, suggest
from limbeck.students.search.space import Genes, Space

_ATTEMPTS = 1000
_CYCLES_PER_CANDIDATE = 50

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Budget:
    """What a student may cost at most; None for no limit.

    Attributes:
        parameters: number of parameters.
        macs: multiply-accumulate operations for one sample.
    """

    parameters: float | None = None
    macs: float | None = None

    def allows(self, cost: Scores) -> bool:
        """Whether a student of this cost is within the budget."""
        limits = {"parameters": self.parameters, "macs": self.macs}
        return all(limit is None or cost[name] <= limit for name, limit in limits.items())


@dataclass(frozen=True)
class Candidate:
    """A student that was scored.

    Attributes:
        genes: its place in the space.
        spec: the student as recipes write it.
        scores: its scores and costs.
        value: what the search maximises.
    """

    genes: Genes
    spec: dict[str, Any]
    scores: dict[str, float]
    value: float


@dataclass(frozen=True)
class Settings:
    """How to search.

    Attributes:
        candidates: different students to score, at most.
        population: students alive at a time, the first of them drawn at random.
        sample: students of the population among whom a parent is looked for.
        elite: how many best of the sample may become the parent, each with the same chance.
        order: ``best`` draws the parent from the best of the sample; ``released`` from the worst, as the authors' code
            does, which sorts in ascending order.
        terms: scores that are added up and maximised.
        standardize: divide each term by its standard deviation over the first population before adding.
        budget: what a student may cost.
        seed: seed of everything random.
    """

    candidates: int = 100
    population: int = 20
    sample: int = 10
    elite: int = 5
    order: Literal["best", "released"] = "best"
    terms: tuple[str, ...] = ("relation", "semantic")
    standardize: bool = False
    budget: Budget = field(default_factory=Budget)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("candidates", "population", "sample", "elite"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} = {getattr(self, name)}: give at least 1")
        if self.order not in ("best", "released"):
            raise RecipeError(f"unknown order '{self.order}'. {suggest(self.order, ('best', 'released'))}")
        if not self.terms:
            raise RecipeError("a search maximises at least one term, such as semantic")


class Evolution:
    """Scores students, breeds from good ones and forgets the oldest; every student is scored once.

    Everything follows from the seed, so a search that is started again with the scores it had (``known``) goes on
    where it was.

    Args:
        space: the students.
        score: scores and costs (``parameters``, ``macs``) of a student, given as recipes write a model.
        cost: its costs alone, asked before it is scored.
        settings: how to search.
        known: scores that are known already, by :meth:`limbeck.students.search.space.Space.text`.
        scored: called with every newly scored student's text and scores.

    Example:
        >>> space = Space("mlp", {"hidden.0": tuple(range(1, 9)), "hidden.1": tuple(range(1, 9))})
        >>> size = lambda spec: {"parameters": spec["hidden"][0], "macs": 0.0, "fit": -abs(spec["hidden"][0] - 6)}
        >>> settings = Settings(candidates=40, population=8, sample=4, terms=("fit",))
        >>> max(Evolution(space, size, size, settings).run(), key=lambda c: c.value).spec["hidden"][0]
        6
    """

    def __init__(
        self,
        space: Space,
        score: Callable[[dict[str, Any]], Scores],
        cost: Callable[[dict[str, Any]], Scores],
        settings: Settings,
        *,
        known: Mapping[str, Scores] | None = None,
        scored: Callable[[str, Scores], None] | None = None,
    ) -> None:
        self._space, self._score, self._cost, self._settings = space, score, cost, settings
        self._known = dict(known or {})
        self._scored = scored
        self._found: dict[Genes, Scores] = {}
        self._affordable: dict[Genes, bool] = {}
        self._scale: dict[str, float] = {}

    def run(self) -> list[Candidate]:
        """Searches and returns every scored student, in the order in which they were scored.

        Raises:
            RecipeError: no student of the space is within the budget, or a term is not among the scores.
        """
        settings, space = self._settings, self._space
        alive: deque[Genes] = deque()
        for number in range(min(settings.population, settings.candidates)):
            alive.append(self._within_budget(partial(space.draw, settings.seed), number))
            self._evaluate(alive[-1])
        self._scale = self._scales()
        for cycle in range(settings.candidates * _CYCLES_PER_CANDIDATE):
            if len(self._found) >= min(settings.candidates, space.size):
                break
            parent = self._parent(list(alive), cycle)
            alive.append(self._within_budget(partial(space.mutate, parent, settings.seed), cycle))
            self._evaluate(alive[-1])
            alive.popleft()
        return [
            Candidate(genes, self._space.spec(genes), dict(scores), self._value(scores))
            for genes, scores in self._found.items()
        ]

    def _within_budget(self, propose: Callable[[int], Genes], number: int) -> Genes:
        for attempt in range(_ATTEMPTS):
            genes = propose(number * _ATTEMPTS + attempt)
            if genes not in self._affordable:
                budget = self._settings.budget
                free = budget.parameters is None and budget.macs is None
                self._affordable[genes] = free or budget.allows(self._cost(self._space.spec(genes)))
            if self._affordable[genes]:
                return genes
        raise RecipeError(
            f"none of {_ATTEMPTS} students was within the budget of {self._settings.budget.parameters} parameters and "
            f"{self._settings.budget.macs} MACs; allow more, or make the space smaller"
        )

    def _evaluate(self, genes: Genes) -> None:
        if genes in self._found:
            return
        text = self._space.text(genes)
        scores = self._known.get(text)
        if scores is None:
            scores = self._score(self._space.spec(genes))
            if self._scored is not None:
                self._scored(text, scores)
        for term in self._settings.terms:
            if term not in scores:
                raise RecipeError(f"a student has no score '{term}'. {suggest(term, scores)}")
        self._found[genes] = scores

    def _parent(self, alive: Sequence[Genes], cycle: int) -> Genes:
        settings = self._settings
        size = min(settings.sample, len(alive))
        numbers = streams.uniform(settings.seed, "search/parent", 0, np.asarray([cycle]), len(alive) + 1)[0]
        members = [alive[i] for i in np.argsort(numbers[:-1], kind="stable")[:size]]
        members.sort(key=lambda genes: self._value(self._found[genes]), reverse=settings.order == "best")
        return members[int(numbers[-1] * min(settings.elite, size))]

    def _scales(self) -> dict[str, float]:
        """Returns what each term is divided by."""
        if not self._settings.standardize:
            return dict.fromkeys(self._settings.terms, 1.0)
        columns = {term: [scores[term] for scores in self._found.values()] for term in self._settings.terms}
        return {term: float(np.std(values)) or 1.0 for term, values in columns.items()}

    def _value(self, scores: Scores) -> float:
        total = math.fsum(scores[term] / self._scale[term] for term in self._settings.terms)
        return total if math.isfinite(total) else -math.inf
