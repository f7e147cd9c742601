r"""Distillation from generation to generation as an operator on distributions, and how fast it contracts.

A generation is anchored to the mixture :math:`P` of its base teachers with weight :math:`\lambda`:

- linear: :math:`M_{k+1} = \lambda P + (1 - \lambda) S(M_k)`;
- geometric: :math:`M_{k+1} \propto P^\lambda\, S(M_k)^{1-\lambda}`;

where :math:`S` is what a student makes of its target. For a perfect student either contracts towards :math:`P`:
:math:`\mathrm{KL}(P \| M_{k+1}) \le (1 - \lambda)\, \mathrm{KL}(P \| M_k)`. All distributions are natural
log-probabilities over the last dimension; classes must be the same, in the same order, everywhere.

Reference:
    Flouro and Chadwick, "Recursive Meta-Distillation: An Axiomatic Framework for Iterative Knowledge Refinement",
    2026, arXiv 2601.13100.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from limbeck.functional.divergences import kl_of_log_probabilities

Kind = Literal["linear", "geometric"]


def _check(kind: str, *tensors: Tensor) -> None:
    if kind not in ("linear", "geometric"):
        raise ValueError(f"kind should be linear or geometric, not '{kind}'")
    if kind == "geometric" and any(bool(torch.isneginf(t).any()) for t in tensors):
        raise ValueError(
            "a geometric mixture of distributions of which one is exactly zero somewhere loses that class, and the "
            "others' support with it; mix linearly, or give the zeros a small probability (`floored`)"
        )


def floored(log_probabilities: Tensor, *, floor: float) -> Tensor:
    """Returns log-probabilities none of which is below ``log(floor)`` by more than the normalisation that follows.

    Args:
        log_probabilities: ``[..., C]``.
        floor: smallest probability, in (0, 1 / C).

    Raises:
        ValueError: ``floor`` is out of its range.
    """
    if not 0 < floor < 1 / log_probabilities.shape[-1]:
        raise ValueError(f"floor is {floor}, but should lie between 0 and 1 / {log_probabilities.shape[-1]} classes")
    return torch.log_softmax(log_probabilities.clamp(min=math.log(floor)), dim=-1)


def mix_log_probabilities(log_probabilities: Tensor, weights: Tensor, *, kind: Kind = "linear") -> Tensor:
    r"""Returns the weighted arithmetic mean of distributions, or their normalised geometric mean.

    Args:
        log_probabilities: ``[n, ..., C]``, one distribution a teacher.
        weights: ``[n]`` non-negative weights that sum to one.
        kind: ``linear`` for :math:`\sum_i w_i p_i`, ``geometric`` for what is proportional to
            :math:`\prod_i p_i^{w_i}`.

    Returns:
        ``[..., C]`` log-probabilities.

    Raises:
        ValueError: the weights are no distribution over the teachers, or a geometric mixture has exact zeros.

    Example:
        >>> pair = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
        >>> mix_log_probabilities(pair, torch.tensor([0.5, 0.5])).exp()
        tensor([0.7000, 0.3000])
    """
    if weights.shape != log_probabilities.shape[:1] or bool((weights < 0).any()):
        raise ValueError(f"there should be {len(log_probabilities)} non-negative weights, not {weights.tolist()}")
    if abs(float(weights.double().sum()) - 1) > 1e-5:
        raise ValueError(f"the weights should sum to 1, not {float(weights.sum()):.6g}")
    used = weights > 0
    kept, share = log_probabilities[used], weights[used].to(log_probabilities)
    _check(kind, kept)
    share = share.view(-1, *[1] * (kept.dim() - 1))
    if kind == "geometric":
        return torch.log_softmax((share * kept).sum(0), dim=-1)
    return torch.logsumexp(kept + share.log(), dim=0)


def anchored_step(log_current: Tensor, log_base: Tensor, *, anchor: float, kind: Kind = "linear") -> Tensor:
    r"""Returns the next generation's target: the base mixture with weight ``anchor``, the current one with the rest.

    Args:
        log_current: ``[..., C]`` what the student made of the current generation, :math:`\log S(M_k)`.
        log_base: ``[..., C]`` mixture of the base teachers, :math:`\log P`.
        anchor: :math:`\lambda` in [0, 1].
        kind: see :func:`mix_log_probabilities`.

    Returns:
        ``[..., C]`` log-probabilities.

    Raises:
        ValueError: ``anchor`` lies outside [0, 1], or a geometric mixture has exact zeros.

    Example:
        >>> anchored_step(torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log(), anchor=0.5).exp()
        tensor([0.7000, 0.3000])
    """
    if not 0 <= anchor <= 1:
        raise ValueError(f"anchor is {anchor}, but should lie in [0, 1]")
    weights = torch.tensor([anchor, 1 - anchor], dtype=torch.float64)
    return mix_log_probabilities(torch.stack([log_base, log_current]), weights, kind=kind)


class Chain(NamedTuple):
    r"""Generations and how far they are from the base mixture.

    Attributes:
        log_probabilities: ``[K + 1, ..., C]``, the first one included.
        divergence: ``[K + 1, ...]`` :math:`\mathrm{KL}(P \| M_k)`.
        reverse: ``[K + 1, ...]`` :math:`\mathrm{KL}(M_k \| P)`, for which no rate is guaranteed.
    """

    log_probabilities: Tensor
    divergence: Tensor
    reverse: Tensor


def meta_distillation_chain(
    log_initial: Tensor,
    log_base: Tensor,
    *,
    anchor: float,
    generations: int,
    kind: Kind = "linear",
    student: Callable[[Tensor], Tensor] | None = None,
) -> Chain:
    """Applies the operator generation after generation.

    Args:
        log_initial: ``[..., C]`` the first meta-teacher.
        log_base: ``[..., C]`` mixture of the base teachers.
        anchor: weight of the base mixture; 0 leaves the chain without an anchor.
        generations: number of steps.
        kind: see :func:`mix_log_probabilities`.
        student: what a student makes of log-probabilities it is taught; the identity for a perfect one when None.

    Raises:
        ValueError: see :func:`anchored_step`.

    Example:
        >>> base, start = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
        >>> chain = meta_distillation_chain(start, base, anchor=0.5, generations=3)
        >>> bool((contraction(chain.divergence) <= 0.5).all())
        True
    """
    chain = [log_initial]
    for _ in range(generations):
        learnt = chain[-1] if student is None else student(chain[-1])
        chain.append(anchored_step(learnt, log_base, anchor=anchor, kind=kind))
    log_chain = torch.stack(chain)
    base = log_base.expand_as(log_chain)
    return Chain(log_chain, kl_of_log_probabilities(base, log_chain), kl_of_log_probabilities(log_chain, base))


def contraction(divergence: Tensor) -> Tensor:
    """Returns the measured factor of each step, ``[K, ...]``: a divergence over the one before; 0 where that was 0.

    Example:
        >>> contraction(torch.tensor([4.0, 2.0, 0.5])).tolist()
        [0.5, 0.25]
    """
    before = divergence[:-1]
    return divergence[1:] / torch.where(before > 0, before, torch.ones_like(before))


def closed_form(
    log_initial: Tensor, log_base: Tensor, *, anchor: float, generation: int, kind: Kind = "linear"
) -> Tensor:
    r"""Returns a generation of a perfect student directly.

    Linear: :math:`M_k = P + (1 - \lambda)^k (M_0 - P)`; geometric: the same with logarithms, up to normalisation.

    Args:
        log_initial: ``[..., C]``.
        log_base: ``[..., C]``.
        anchor: :math:`\lambda` in [0, 1].
        generation: :math:`k`.
        kind: see :func:`mix_log_probabilities`.
    """
    return anchored_step(log_initial, log_base, anchor=1 - (1 - anchor) ** generation, kind=kind)
