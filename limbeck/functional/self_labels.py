"""Soft labels that a student makes of its own predictions, for distillation without a teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, check_same_shape, neutralised, reduce


def target_values(labels: Tensor, num_classes: int) -> Tensor:
    """Returns how much each class of a row counts as its target: at most two classes do.

    Args:
        labels: ``[B]`` integer classes, or ``[B, C]`` class probabilities, as of two mixed samples.
        num_classes: number of classes ``C``.

    Returns:
        ``[B, C]`` in float32 or better: 1 at an integer label; of probabilities, the two largest where they are
        positive.

    Example:
        >>> target_values(torch.tensor([[0.7, 0.0, 0.3]]), 3)
        tensor([[0.7000, 0.0000, 0.3000]])
    """
    if not labels.is_floating_point():
        return torch.nn.functional.one_hot(labels, num_classes).to(torch.float32)
    values, classes = _two_largest(labels.detach())
    return torch.zeros_like(labels).scatter(-1, classes, values.clamp(min=0))


def left_out_classes(labels: Tensor, num_classes: int) -> Tensor:
    """Returns 1 at the classes that the authors' code leaves out of the ranking's distribution, 0 at others.

    Of class probabilities it always leaves out two, even where one of them has no mass: then the first of the classes
    without mass goes as well, which :func:`target_values` keeps.

    Args:
        labels: ``[B]`` integer classes, or ``[B, C]`` class probabilities.
        num_classes: number of classes ``C``.

    Returns:
        ``[B, C]`` in float32 or better.

    Example:
        >>> left_out_classes(torch.tensor([[0.0, 1.0, 0.0]]), 3)
        tensor([[1., 1., 0.]])
    """
    if not labels.is_floating_point():
        return target_values(labels, num_classes)
    return torch.zeros_like(labels).scatter(-1, _two_largest(labels.detach())[1], 1.0)


def _two_largest(values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the two largest of each row and their places; of equal ones the first places."""
    ordered = values.sort(dim=-1, descending=True, stable=True)
    return ordered.values[..., :2], ordered.indices[..., :2]


@full_precision
def self_target_loss(
    student_logits: Tensor,
    targets: Tensor,
    *,
    released_code: bool = False,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross-entropy of the target classes, weighted by the student's squared confidence against that of the batch.

    .. math:: L = -\sum_{c} P_c \log p_c, \qquad P_c = v_c + p_c^2 - \overline{p_c^2} \quad \text{where } v_c > 0

    The first targets of all rows share one mean of squared confidences, the second ones of the rows that have one
    another, so that the weights of a batch of integer labels average to 1. No gradient flows through the weights.

    Args:
        student_logits: ``[B, C]``.
        targets: ``[B, C]`` values :math:`v` of the target classes, as :func:`target_values` gives them.
        released_code: whether the second mean is over all rows, as in the authors' code: a row with one target then
            adds the first of its other classes to it.
        mask: ``[B]`` true where a sample counts.
        reduction: see :func:`limbeck.functional.reduction.reduce`.

    Returns:
        The loss in nats, float32 or better. It couples the samples of a batch.

    Raises:
        ValueError: the shapes differ.

    References:
        Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
        Loss and Customized Soft Labels", arXiv 2303.13005.

    Example:
        >>> self_target_loss(torch.zeros(2, 2), target_values(torch.tensor([0, 1]), 2))
        tensor(0.6931)
    """
    check_same_shape(student_logits, targets, "student logits and target values")
    log_p = torch.log_softmax(neutralised(student_logits, mask), -1)
    values, classes = _two_largest(neutralised(targets, mask))
    log_p = log_p.gather(-1, classes)
    chosen, squares = values > 0, log_p.detach().exp().square()
    zero = squares.new_zeros(())
    counted = chosen
    if released_code:
        counted = torch.ones_like(chosen) if mask is None else mask.bool().unsqueeze(-1).expand_as(chosen)
    mean = torch.where(counted, squares, zero).sum(0) / counted.sum(0).clamp(min=1)
    weights = torch.where(chosen, values + squares - mean, zero)
    return reduce(-(weights * torch.where(chosen, log_p, zero)).sum(-1), reduction, mask=mask)


@full_precision
def zipf_labels(
    student_logits: Tensor, weak_logits: Tensor, targets: Tensor, *, eps: float = 0.0, released_code: bool = False
) -> Tensor:
    r"""Distribution over the non-target classes by Zipf's law on a ranking that student and weak classifier make.

    .. math:: R_c = \frac{w_c}{1 - w_y + \epsilon} + \frac{p_c}{1 - p_y + \epsilon}, \qquad
              z_c \propto 1 / \mathrm{rank}_c(R) \quad (c \ne y)

    where :math:`w` and :math:`p` are the probabilities of the weak classifier and of the student, and :math:`w_y,
    p_y` those of all target classes together. All classes take part in the ranking; the targets are then left out and
    the others renormalised. Classes that score alike are ranked in their own order.

    Args:
        student_logits: ``[B, C]``.
        weak_logits: ``[B, C]``.
        targets: ``[B, C]``, positive at the target classes.
        eps: added to the denominators; without it the ratios are those of logits and exact for confident rows.
        released_code: whether the student's part is a ratio of log-probabilities, as in the authors' code.

    Returns:
        ``[B, C]`` without gradient, float32 or better: 0 at the targets, each row sums to 1 (to 0 where every class is
        a target).

    Raises:
        ValueError: the shapes differ.

    References:
        Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
        Loss and Customized Soft Labels", arXiv 2303.13005.

    Example:
        >>> logits = torch.tensor([[3.0, 2.0, 1.0]])
        >>> zipf_labels(logits, logits, torch.tensor([[1.0, 0.0, 0.0]]))
        tensor([[0.0000, 0.6000, 0.4000]])
    """
    check_same_shape(student_logits, weak_logits, "student and weak logits")
    check_same_shape(student_logits, targets, "student logits and target values")
    chosen = targets > 0
    own = _ratio(student_logits.detach(), chosen, eps)
    if released_code:
        log_p = torch.log_softmax(student_logits.detach(), -1)
        own = log_p / (1 - torch.where(chosen, log_p, log_p.new_zeros(())).sum(-1, keepdim=True) + eps)
    score = own + _ratio(weak_logits.detach(), chosen, eps)
    rank = score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1) + 1
    share = torch.where(chosen, score.new_zeros(()), 1 / rank.to(score.dtype))
    return share / share.sum(-1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)


def _ratio(logits: Tensor, chosen: Tensor, eps: float) -> Tensor:
    """Returns ``p_c / (1 - p_y + eps)``; without ``eps`` from logits, since 1 - p_y may round to 0."""
    if eps > 0:
        p = torch.softmax(logits, -1)
        return p / (1 - torch.where(chosen, p, p.new_zeros(())).sum(-1, keepdim=True) + eps)
    others = logits.masked_fill(chosen, -torch.inf).logsumexp(-1, keepdim=True)
    return (logits - torch.where(chosen.all(-1, keepdim=True), 0.0, others)).exp()


@full_precision
def nontarget_cross_entropy(
    student_logits: Tensor,
    distribution: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross-entropy of a distribution over the non-target classes with the student's, renormalised over them.

    .. math:: L = -\sum_{c \ne y} z_c \log \frac{p_c}{1 - p_y}

    Args:
        student_logits: ``[..., C]``.
        distribution: ``[..., C]``, :math:`z`, a constant; what it holds at the targets does not matter.
        targets: ``[..., C]``, positive at the target classes.
        mask: ``[...]`` true where a row counts.
        reduction: see :func:`limbeck.functional.reduction.reduce`.

    Returns:
        The loss in nats, float32 or better; 0 for a row of targets only.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> z, y = torch.tensor([[0.0, 0.5, 0.5]]), torch.tensor([[1.0, 0.0, 0.0]])
        >>> nontarget_cross_entropy(torch.tensor([[9.0, 1.0, 1.0]]), z, y)
        tensor(0.6931)
    """
    check_same_shape(student_logits, distribution, "student logits and distribution")
    check_same_shape(student_logits, targets, "student logits and target values")
    chosen = neutralised(targets, mask) > 0
    # A row without any other class keeps its logits, so that no logarithm of an empty sum appears.
    hidden = chosen & ~chosen.all(-1, keepdim=True)
    log_p = torch.log_softmax(neutralised(student_logits, mask).masked_fill(hidden, -torch.inf), -1)
    mass = torch.where(chosen, 0.0, neutralised(distribution.detach(), mask))
    return reduce(-(mass * torch.where(chosen, 0.0, log_p)).sum(-1), reduction, mask=mask)
