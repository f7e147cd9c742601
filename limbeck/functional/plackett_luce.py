"""Plackett-Luce likelihoods of rankings: a loss over a whole order of classes instead of over one class."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional.divergences import tempered_log_softmax
from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, check_same_shape, neutralised, reduce


def label_first_order(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the classes of each row: the label first, then the others by decreasing teacher logit.

    Equal logits keep the order of the classes.

    Args:
        teacher_logits: ``[..., C]``, finite.
        labels: ``[...]`` integer classes.

    Returns:
        ``[..., C]`` int64, a permutation of the classes in each row.

    Raises:
        ValueError: labels are not integers, or the shapes do not fit.

    Example:
        >>> label_first_order(torch.tensor([[0.1, 0.7, 0.2]]), torch.tensor([0]))
        tensor([[0, 1, 2]])
    """
    if labels.is_floating_point():
        raise ValueError("a ranking that begins with the label needs class indices; soft labels name no first class")
    check_same_shape(teacher_logits[..., 0], labels, "logits without the class dimension and labels")
    first = teacher_logits.detach().scatter(-1, labels.unsqueeze(-1), torch.inf)
    return first.argsort(dim=-1, descending=True, stable=True)


@full_precision
def plackett_luce(
    scores: Tensor,
    order: Tensor,
    *,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Negative log-likelihood of a ranking that is drawn place by place, each by a softmax over what is left.

    .. math:: L = \sum_{k=1}^{C} w_k \Big( \log \sum_{l \ge k} e^{s_{\pi_l}} - s_{\pi_k} \Big)

    Convex in the scores and unchanged by a constant added to a row. Weights of 1 give ListMLE; a weight on the first
    place only gives the cross-entropy with :math:`\pi_1`; the last place adds nothing.

    Args:
        scores: ``[..., C]``.
        order: ``[..., C]`` int64, :math:`\pi`, the ranking of each row from first to last.
        weights: ``[..., C]`` weight of each place, constants: no gradient flows to them; 1 when None.
        mask: ``[...]`` true where a row counts.
        reduction: see :func:`limbeck.functional.reduction.reduce`.

    Returns:
        The loss in nats, float32 or better.

    Raises:
        ValueError: shapes differ.

    References:
        Xia et al., "Listwise approach to learning to rank: theory and algorithm", ICML 2008.

    Example:
        >>> plackett_luce(torch.tensor([[1.0, 0.0]]), torch.tensor([[0, 1]]))
        tensor(0.3133)
    """
    check_same_shape(scores, order, "scores and ranking")
    ranked = neutralised(scores, mask).gather(-1, order)
    remaining = ranked.flip(-1).logcumsumexp(-1).flip(-1)
    losses = remaining - ranked
    if weights is not None:
        check_same_shape(scores, weights, "scores and weights")
        losses = losses * neutralised(weights.detach(), mask)
    return reduce(losses.sum(-1), reduction, mask=mask)


@full_precision
def plackett_luce_distillation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    teacher_temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""The student's likelihood of the teacher's ranking with the label moved to its top.

    .. math:: L = \sum_{k=1}^{C} q_{\pi_k} \Big( \log \sum_{l \ge k} e^{s_{\pi_l}} - s_{\pi_k} \Big), \qquad
              q = \mathrm{softmax}(t / \tau), \quad \pi_1 = y

    The weights are the teacher's probabilities over all classes; they are not renormalised, and the student is not
    tempered. A teacher that is sure of the label gives the cross-entropy; a small temperature makes any teacher sure,
    a large one gives ListMLE divided by :math:`C`. For every finite student the loss is positive.

    Args:
        student_logits: ``[..., C]``.
        teacher_logits: ``[..., C]``, a constant: no gradient flows to it.
        labels: ``[...]`` integer classes.
        teacher_temperature: :math:`\tau > 0`.
        mask: ``[...]`` true where a row counts.
        reduction: see :func:`limbeck.functional.reduction.reduce`.

    Returns:
        The loss in nats, float32 or better.

    Raises:
        ValueError: shapes differ, labels are not integers, or the temperature is not positive.

    References:
        "PLD: A Choice-Theoretic List-Wise Knowledge Distillation", arXiv 2506.12542.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> plackett_luce_distillation(student, teacher, torch.tensor([0]))
        tensor(0.1566)
    """
    check_same_shape(student_logits, teacher_logits, "student and teacher logits")
    known = labels if mask is None else labels.masked_fill(~mask.bool(), 0)
    teacher = neutralised(teacher_logits.detach(), mask)
    order = label_first_order(teacher, known)
    weights = tempered_log_softmax(teacher, teacher_temperature).exp().gather(-1, order)
    return plackett_luce(student_logits, order, weights=weights, mask=mask, reduction=reduction)
