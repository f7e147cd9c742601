"""The contract of a selector: what models say goes in, scores come of it, and a choice of the scores.

One contract serves whatever is chosen from: samples of a pool, documents of a corpus, domains of a mixture, tokens of
sequences. A selector is a pure function; what it needs to know of earlier choices is among its signals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from limbeck.errors import NeedsError, RecipeError
from limbeck.hyperparameters import validated
from limbeck.registry import Registry

Unit = Literal["samples", "documents", "domains", "tokens"]
"""What is chosen from."""


@dataclass(frozen=True)
class PoolSignals:
    """What is known when something is chosen. ``N`` candidates; for tokens, ``[..., N]`` are those of sequences.

    A selector reads what it needs through :meth:`given`; everything else may be absent.

    Attributes:
        index: ``[N]`` numbers of the candidates, increasing.
        logits: ``[N, C]`` what the student says of samples.
        teacher_logits: ``[N, C]`` what the teacher says of them.
        labelled: ``[M, C]`` what the student says of the samples whose labels are known.
        labels: ``[M]`` those labels.
        teacher_accuracy: how often the teacher is right on the samples whose labels are known; None where nobody asked
            it about them.
        loss: by role, ``[N]`` mean negative log-probability a token of documents or domains, nats.
        tokens: ``[N]`` number of tokens of each document.
        entropy: by role, ``[..., N]`` entropy of the prediction of each token, nats.
        mask: ``[..., N]`` true where a candidate counts; all do when None.
        share: ``[N]`` part that each domain has had since the last choice; None before the first.
        fraction: part of the training that is done.
        round: number of the round, from 1.
        seed: seed of the run.
    """

    index: Tensor | None = None
    logits: Tensor | None = None
    labelled: Tensor | None = None
    labels: Tensor | None = None
    teacher_accuracy: float | None = None
    teacher_logits: Tensor | None = None
    loss: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: Tensor | None = None
    entropy: Mapping[str, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None
    share: Tensor | None = None
    fraction: float = 0.0
    round: int = 1
    seed: int = 0

    def given(self, name: str) -> Tensor:
        """Returns a signal by its name, ``loss.teacher`` for that of a role.

        Raises:
            NeedsError: it is not there.

        Example:
            >>> PoolSignals(loss={"teacher": torch.tensor([0.5])}).given("loss.teacher")
            tensor([0.5000])
        """
        name, _, role = name.partition(".")
        held = getattr(self, name)
        found = held.get(role) if role else held
        if found is None:
            what = f"the {name} of the role '{role}'" if role else f"`{name}`"
            raise NeedsError(f"this selector chooses by {what}, which is not known here")
        return found


@dataclass(frozen=True)
class Choice:
    """What a selector chose.

    Attributes:
        scores: ``[..., N]`` how much each candidate is wanted, the larger the more.
        share: ``[..., N]`` what each gets: true or false where candidates are taken whole; a weight from 0 to 1 for
            tokens, a part of the mixture for domains.
        order: ``[count]`` positions of those taken, the most wanted first, where a number of them was asked for.
    """

    scores: Tensor
    share: Tensor
    order: Tensor | None = None

    @property
    def chosen(self) -> Tensor:
        """``[..., N]`` true where a candidate gets something."""
        return self.share > 0

    @classmethod
    def of(cls, scores: Tensor, order: Tensor) -> Choice:
        """Returns the choice that takes the candidates at positions ``order`` ``[count]``."""
        return cls(scores, torch.zeros_like(scores, dtype=torch.bool).index_fill(0, order, True), order)


class Selector:
    """Base of every selector: :meth:`scores` of signals, then :meth:`choose` from the scores.

    It is a pure function of the signals; its randomness comes from their seed and round.
    """

    unit: ClassVar[Unit] = "samples"
    """What it chooses from."""
    counted: ClassVar[bool] = True
    """Whether it must be told how many to take; otherwise it finds that itself."""
    roles: ClassVar[tuple[str, ...]] = ("student",)
    """Whose signals it reads."""

    def __init__(self) -> None:
        """Takes no options."""

    def scores(self, pool: PoolSignals) -> Tensor:
        """Returns ``[..., N]``: how much each candidate is wanted."""
        raise TypeError(f"{type(self).__name__} does not define scores(pool)")

    def choose(self, scores: Tensor, pool: PoolSignals, count: int | None = None) -> Choice:
        """Returns the ``count`` candidates with the largest scores; of equal ones the first."""
        return Choice.of(scores, scores.argsort(stable=True, descending=True)[: _number(self, count)])

    def __call__(self, pool: PoolSignals, count: int | None = None) -> Choice:
        """Returns what is chosen: of ``count`` candidates where the selector is ``counted``.

        Raises:
            NeedsError: a signal or the count is missing.
        """
        if self.counted:
            _number(self, count)
        return self.choose(self.scores(pool), pool, count)


def _number(selector: Selector, count: int | None) -> int:
    if count is None:
        raise NeedsError(f"{type(selector).__name__} must be told how many {selector.unit} to take")
    return count


selectors: Registry[type[Selector]] = Registry("selector", "limbeck.selection")

P = TypeVar("P", bound=type)


def selector(name: str, **about: Any) -> Callable[[P], P]:
    """Returns a decorator that registers a :class:`Selector` and checks its options at construction."""
    enter = selectors.register(name, **about)

    def decorate(cls: P) -> P:
        cls.__init__ = validated(f"selector '{name}'", cls.__init__)  # type: ignore[misc]
        enter(cls)
        return cls

    return decorate


def build_selector(entry: str | Mapping[str, Any], unit: Unit = "samples", *, counted: bool | None = None) -> Selector:
    """Returns the selector of a recipe entry: a name, or a mapping of ``name`` and options.

    Args:
        entry: what the recipe says.
        unit: what there is to choose from.
        counted: whether somebody says how many to take; None where either will do.

    Raises:
        UnknownNameError: no selector has that name; proposes near matches.
        RecipeError: an option is unknown or out of its range, or the selector is for something else.
    """
    options = {"name": entry} if isinstance(entry, str) else dict(entry)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise RecipeError(f"a selector is written {{name: {_fitting(unit, counted)[0]}}}, but this says {entry!r}")
    part = selectors[name].part
    if part.unit != unit or counted not in (None, part.counted):
        chooses = f"chooses {part.unit}" + ("" if part.unit != unit else f", {_how(part.counted)}")
        raise RecipeError(
            f"the selector '{name}' {chooses}; here {unit} are chosen, {_how(counted)}: "
            f"{', '.join(_fitting(unit, counted))}"
        )
    return part(**{str(k): v for k, v in options.items()})


def _how(counted: bool | None) -> str:
    if counted is None:
        return "any number of them"
    return "as many as it is told to" if counted else "as many as it finds"


def _fitting(unit: Unit, counted: bool | None) -> list[str]:
    return [e.name for e in selectors.entries() if e.part.unit == unit and counted in (None, e.part.counted)]
