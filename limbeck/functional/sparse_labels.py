"""Soft targets of which only the largest probabilities are known."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, neutralised, reduce


def spread_rest(indices: Tensor, probabilities: Tensor, classes: int) -> Tensor:
    r"""Returns the whole distribution, what is left of the mass spread evenly over the classes that are not listed.

    Args:
        indices: ``[..., K]`` different class indices.
        probabilities: ``[..., K]`` their probabilities, not renormalised. Rounded ones may add up to more than one; the
            rest is then slightly negative, and is left so.
        classes: number of classes ``C``.

    Returns:
        ``[..., C]``; with ``K = C`` the listed probabilities alone.

    Raises:
        ValueError: more probabilities than classes.

    Example:
        >>> spread_rest(torch.tensor([2]), torch.tensor([0.5]), 3)
        tensor([0.2500, 0.2500, 0.5000])
    """
    share = _share(probabilities, classes).unsqueeze(-1)
    return share.expand(*probabilities.shape[:-1], classes).scatter(-1, indices, probabilities)


def _share(probabilities: Tensor, classes: int) -> Tensor:
    """Returns the probability of each class that is not listed, ``[...]``."""
    kept = probabilities.shape[-1]
    if kept > classes:
        raise ValueError(f"{kept} probabilities are listed, but there are only {classes} classes")
    return (
        (1 - probabilities.sum(-1)) / (classes - kept)
        if kept < classes
        else probabilities.new_zeros(()).expand(probabilities.shape[:-1])
    )


@full_precision
def sparse_cross_entropy(
    student_logits: Tensor,
    indices: Tensor,
    probabilities: Tensor,
    *,
    clamp_rest: bool = True,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross-entropy with :func:`spread_rest`'s target, without forming it.

    .. math:: L = -\sum_k p_k \log q_{i_k} - \frac{1 - \sum_k p_k}{C - K} \sum_{c \notin i} \log q_c

    Args:
        student_logits: ``[..., C]``.
        indices: ``[..., K]`` different class indices.
        probabilities: ``[..., K]`` their probabilities, constants.
        clamp_rest: whether a rest below zero, which rounded probabilities can leave, counts as none.
        mask: ``[...]`` true where a position counts.
        reduction: see :func:`limbeck.functional.reduction.reduce`.

    Raises:
        ValueError: more probabilities than classes.

    References:
        Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision Transformers", arXiv 2207.10666.

    Example:
        >>> sparse_cross_entropy(torch.zeros(1, 4), torch.tensor([[1]]), torch.tensor([[0.7]]))
        tensor(1.3863)
    """
    log_q = torch.log_softmax(neutralised(student_logits, mask), dim=-1)
    mass = neutralised(probabilities.detach(), mask)
    share = _share(mass, log_q.shape[-1])
    if clamp_rest:
        share = share.clamp(min=0)
    kept = indices if mask is None else indices.masked_fill(~mask.bool().unsqueeze(-1), 0)
    listed = (mass * log_q.gather(-1, kept)).sum(-1)
    rest = share * log_q.scatter(-1, kept, 0.0).sum(-1)
    return reduce(-listed - rest, reduction, mask=mask)
