"""Tokens of a sequence that a student should learn from, by how sure student and teacher are of them."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional.sequences import opening, top_fraction
from limbeck.hyperparameters import Fraction, Positive
from limbeck.selection.base import Choice, PoolSignals, Selector, selector

_TSD_KD = {
    "title": "Explain in Your Own Words: Improving Reasoning via Token-Selective Dual Knowledge Distillation",
    "authors": "Minsang Kim and Seung Jun Baek",
    "paper": "2603.13260",
    "year": 2026,
}


class TokenSelector(Selector):
    """Base of selectors of tokens: what counts is a matter of each sequence by itself, and of its mask."""

    unit = "tokens"
    counted = False

    def scores(self, pool: PoolSignals) -> Tensor:
        """Returns ``[..., T]`` how unsure the student is of each token, nats."""
        return pool.given("entropy.student")


@selector("opening", **_TSD_KD)
class Opening(TokenSelector):
    """Takes the shortest beginning of each sequence that holds a part of its uncertainty (TSD-KD).

    Args:
        fraction: that part.
    """

    def __init__(self, *, fraction: Fraction = 0.1) -> None:
        self.fraction = fraction

    def choose(self, scores: Tensor, pool: PoolSignals, count: int | None = None) -> Choice:
        """Returns the tokens of the opening."""
        return Choice(scores, opening(scores, _mask(pool, scores), fraction=self.fraction))


@selector("uncertain_tokens", **_TSD_KD)
class UncertainTokens(TokenSelector):
    """Takes the tokens of each sequence that the student is least sure of (TSD-KD).

    Args:
        fraction: part of the sequence's tokens that is taken.
    """

    def __init__(self, *, fraction: Fraction = 0.1) -> None:
        self.fraction = fraction

    def choose(self, scores: Tensor, pool: PoolSignals, count: int | None = None) -> Choice:
        """Returns the tokens with the largest entropy."""
        return Choice(scores, top_fraction(scores, _mask(pool, scores), fraction=self.fraction))


@selector("surer_teacher", **_TSD_KD)
class SurerTeacher(TokenSelector):
    """Weights each token by how much surer the teacher is of it than the student (TSD-KD).

    Args:
        temperature: how soft the change from 0 to 1 is, nats.
    """

    roles = ("student", "teacher")

    def __init__(self, *, temperature: Positive = 1.0) -> None:
        self.temperature = temperature

    def scores(self, pool: PoolSignals) -> Tensor:
        """Returns the student's entropy minus the teacher's, nats."""
        return pool.given("entropy.student") - pool.given("entropy.teacher")

    def choose(self, scores: Tensor, pool: PoolSignals, count: int | None = None) -> Choice:
        """Returns a weight in (0, 1) for every token that counts."""
        return Choice(scores, torch.sigmoid(scores / self.temperature) * _mask(pool, scores))


def _mask(pool: PoolSignals, scores: Tensor) -> Tensor:
    return torch.ones_like(scores, dtype=torch.bool) if pool.mask is None else pool.mask.bool()
