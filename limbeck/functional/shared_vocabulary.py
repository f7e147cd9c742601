"""Distributions over two vocabularies that have some of their tokens in common."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.functional.divergence_registry import Divergence
from limbeck.functional.precision import full_precision
from limbeck.functional.sorted_probabilities import sorted_distance


class SharedTokens(NamedTuple):
    """Which tokens of two vocabularies stand for the same bytes.

    Attributes:
        student: ``[M]`` the student's tokens that the teacher has too.
        teacher: ``[M]`` the teacher's tokens, in the same order.
        student_only: ``[V - M]`` the student's others.
        teacher_only: ``[V' - M]`` the teacher's others.
    """

    student: Tensor
    teacher: Tensor
    student_only: Tensor
    teacher_only: Tensor

    @property
    def fraction(self) -> float:
        """Part of the teacher's vocabulary that the student has too."""
        return len(self.teacher) / max(len(self.teacher) + len(self.teacher_only), 1)

    def to(self, device: torch.device) -> SharedTokens:
        """Returns the record on a device."""
        return SharedTokens(*(side.to(device) for side in self))


def shared_tokens(token_map: Tensor, student_vocabulary: int) -> SharedTokens:
    """Returns the common part of two vocabularies and what is left of each.

    Args:
        token_map: ``[V']`` for each token of the teacher the student's with the same bytes, -1 where there is none.
        student_vocabulary: number of the student's tokens.

    Raises:
        ValueError: two tokens have the same partner, or a partner is outside the vocabulary.

    Example:
        >>> shared_tokens(torch.tensor([2, -1, 0]), 3).student.tolist()
        [2, 0]
    """
    there = token_map >= 0
    partners = token_map[there]
    if len(partners) and int(partners.max()) >= student_vocabulary:
        raise ValueError(f"the token {int(partners.max())} is outside a vocabulary of {student_vocabulary}")
    if len(partners.unique()) < len(partners):
        raise ValueError("a token of the student is the partner of two tokens of the teacher")
    rest = torch.ones(student_vocabulary, dtype=torch.bool, device=token_map.device)
    rest[partners] = False
    return SharedTokens(
        partners, there.nonzero().squeeze(-1), rest.nonzero().squeeze(-1), (~there).nonzero().squeeze(-1)
    )


class HybridLosses(NamedTuple):
    """What two distributions cost by parts, ``[...]`` each.

    Attributes:
        shared: divergence over the tokens that both have.
        rest: sorted distance over the tokens that one of them has.
    """

    shared: Tensor
    rest: Tensor


@full_precision
def hybrid_losses(log_p: Tensor, log_q: Tensor, tokens: SharedTokens, divergence: Divergence) -> HybridLosses:
    """Compares tokens that both vocabularies have one by one, and all others by their sorted probabilities.

    The shared parts are not renormalised: a divergence of them is that of what each model gives to the shared tokens.

    Args:
        log_p: ``[..., V']`` log-probabilities of the teacher, of single tokens or of spans that end with them.
        log_q: ``[..., V]`` those of the student.
        tokens: which tokens are shared.
        divergence: for the shared tokens.

    References:
        Patiño et al., "Unlocking On-Policy Distillation for Any Model Family", Hugging Face, 2025.
    """
    shared = divergence(log_p[..., tokens.teacher], log_q[..., tokens.student])
    rest = sorted_distance(
        log_q[..., tokens.student_only].exp(), log_p[..., tokens.teacher_only].exp(), reduction="none"
    )
    return HybridLosses(shared, rest)
