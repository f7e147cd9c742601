"""Entropic optimal transport between a batch of student distributions and the batch of the teacher's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.functional.divergences import tempered_log_softmax
from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, check_same_shape, neutralised, reduce


@full_precision
def sinkhorn_plan(cost: Tensor, *, epsilon: float = 0.1, iterations: int = 20) -> Tensor:
    r"""Transport plan between equal masses by Sinkhorn's alternating normalisation of :math:`e^{-D/\epsilon}`.

    Rows are scaled to the mass that a row should have, then columns to 1, and so on; columns come last, so their sums
    are exact and those of the rows approach theirs. In logarithms, so that no cost is too large. Gradients flow
    through all iterations.

    Args:
        cost: ``[N, M]``, finite.
        epsilon: strength of the entropic smoothing, in the units of the cost: towards 0 the plan becomes an optimal
            assignment, for large values it becomes uniform.
        iterations: how often rows and columns are normalised.

    Returns:
        ``[N, M]`` of mass ``M``: columns sum to 1 and rows to about ``M / N``; float32 or better.

    Raises:
        ValueError: the cost is no matrix, ``epsilon`` is not positive, or ``iterations`` is below 1.

    References:
        Cuturi, "Sinkhorn distances: lightspeed computation of optimal transport", arXiv 1306.0895.

    Example:
        >>> sinkhorn_plan(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), epsilon=0.01)
        tensor([[1.0000e+00, 3.7835e-44],
                [3.7835e-44, 1.0000e+00]])
    """
    if cost.dim() != 2:
        raise ValueError(f"the cost should be a matrix, not of shape {tuple(cost.shape)}")
    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon}, but should be positive")
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}, but should be at least 1")
    log_plan = -cost / epsilon
    row_mass = math.log(cost.shape[1] / cost.shape[0]) if cost.numel() else 0.0
    for _ in range(iterations):
        log_plan = log_plan - log_plan.logsumexp(1, keepdim=True) + row_mass
        log_plan = log_plan - log_plan.logsumexp(0, keepdim=True)
    return log_plan.exp()


@full_precision
def sinkhorn_distance(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 2.0,
    epsilon: float = 0.1,
    iterations: int = 20,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cost of carrying the batch of student distributions to the batch of the teacher's.

    .. math:: L = \sum_{ij} P_{ij} D_{ij}, \qquad D_{ij} = \lVert p^S_i - p^T_j \rVert_1 \in [0, 2]

    where :math:`P` is :func:`sinkhorn_plan` of :math:`D`. It compares the two batches as sets: a student that gives the
    teacher's distributions to the wrong samples costs little, so another loss must say which sample is which.
    For equal batches the smoothing leaves a small positive cost. With one sample it is the L1 distance.

    Args:
        student_logits: ``[B, C]``; flatten positions into the first dimension. Time and memory grow with ``B * B``.
        teacher_logits: ``[B, C]``, a constant: no gradient flows to it.
        temperature: divides both logits before the softmax.
        epsilon: see :func:`sinkhorn_plan`.
        iterations: see :func:`sinkhorn_plan`.
        mask: ``[B]`` true where a sample counts; others neither send nor receive mass.
        reduction: see :func:`limbeck.functional.reduction.reduce`; ``none`` gives what each student sample costs,
            ``sum`` the distance as published, ``mean`` a value that does not grow with the batch.

    Returns:
        The cost, float32 or better.

    Raises:
        ValueError: shapes do not fit, or a hyperparameter is out of range.

    References:
        Cui et al., "Sinkhorn Distance Minimization for Knowledge Distillation", arXiv 2402.17110.

    Example:
        >>> logits = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
        >>> sinkhorn_distance(logits, logits.flip(0), temperature=1.0).item() < 1e-3
        True
    """
    check_same_shape(student_logits, teacher_logits, "student and teacher logits")
    if student_logits.dim() != 2:
        raise ValueError(f"logits should be [B, C], not {tuple(student_logits.shape)}; flatten positions first")
    ours = tempered_log_softmax(neutralised(student_logits, mask), temperature).exp()
    theirs = tempered_log_softmax(neutralised(teacher_logits.detach(), mask), temperature).exp()
    kept = None if mask is None else mask.bool().nonzero()[:, 0]
    if kept is not None:
        ours, theirs = ours[kept], theirs[kept]
    cost = torch.cdist(ours, theirs, p=1.0)
    values = (sinkhorn_plan(cost, epsilon=epsilon, iterations=iterations) * cost).sum(1)
    if kept is not None:
        values = values.new_zeros(len(student_logits)).index_put((kept,), values)
    return reduce(values, reduction, mask=mask)
