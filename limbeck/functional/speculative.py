"""Sequences that two models write together: one proposes, the other keeps or replaces."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Kept(NamedTuple):
    """One token of each sequence, ``[B]`` each.

    Attributes:
        tokens: what the sequences go on with.
        proposals: what the student proposed.
        accepted: where that was kept.
    """

    tokens: Tensor
    proposals: Tensor
    accepted: Tensor


def inverse_cdf(logits: Tensor, uniform: Tensor) -> Tensor:
    """Returns the first class whose cumulative probability exceeds ``uniform``, ``[...]`` from ``[..., V]`` logits.

    Sums are kept in float64, so that rare classes of a large vocabulary keep their chance.

    Args:
        logits: ``[..., V]``; a class at ``-inf`` is never drawn.
        uniform: ``[...]`` in [0, 1).

    Example:
        >>> inverse_cdf(torch.tensor([0.0, 0.0]), torch.tensor(0.7))
        tensor(1)
    """
    cumulative = torch.softmax(logits, dim=-1).cumsum(-1, dtype=torch.float64)
    # Rounding may leave the last sum off one; a draw beyond it belongs to the last class that has any mass.
    total = cumulative[..., -1]
    draws = torch.minimum(uniform.to(cumulative) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, draws.unsqueeze(-1), right=True).squeeze(-1)


def interleave(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_uniform: Tensor,
    teacher_uniform: Tensor,
    *,
    top_k: int,
    ranking: Tensor | None = None,
) -> Kept:
    """Draws the next token of sequences by speculative distillation's rule.

    Args:
        student_logits: ``[B, V]`` of the next token, tempered and filtered as the student samples.
        teacher_logits: ``[B, V]``, tempered and filtered as the teacher samples.
        student_uniform: ``[B]`` random numbers for the proposals.
        teacher_uniform: ``[B]`` random numbers for the replacements.
        top_k: a proposal is kept if fewer than ``top_k`` tokens are likelier under the teacher.
        ranking: ``[B, V]`` logits that say what is likelier, where ``teacher_logits`` leave tokens out.

    Raises:
        ValueError: ``top_k`` is not positive.

    References:
        Xu et al., "Speculative Knowledge Distillation", arXiv 2410.11325.

    Example:
        >>> logits = torch.tensor([[0.0, 5.0]])
        >>> interleave(-logits, logits, torch.tensor([0.5]), torch.tensor([0.5]), top_k=1).tokens
        tensor([1])
    """
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}, but should be at least 1")
    proposals = inverse_cdf(student_logits, student_uniform)
    ranks = teacher_logits if ranking is None else ranking
    accepted = (ranks > ranks.gather(-1, proposals.unsqueeze(-1))).sum(-1) < top_k
    return Kept(torch.where(accepted, proposals, inverse_cdf(teacher_logits, teacher_uniform)), proposals, accepted)
