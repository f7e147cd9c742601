"""Pearson correlations between predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional.divergences import tempered_log_softmax
from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, check_same_shape, neutralised, reduce


@full_precision
def pearson(x: Tensor, y: Tensor, *, dim: int = -1, eps: float = 0.0) -> Tensor:
    r"""Pearson correlation coefficient along a dimension.

    .. math:: \rho = \frac{\langle x - \bar x,\, y - \bar y\rangle}{\|x - \bar x\|\,\|y - \bar y\| + \varepsilon}

    A vector that is constant up to rounding has no correlation: with ``eps`` 0 the value and the gradient are then 0.

    Args:
        x: ``[...]``.
        y: like ``x``.
        dim: the dimension to correlate along, and to drop.
        eps: added to the product of norms. It pulls small-variance vectors towards 0; published code often has 1e-8.

    Returns:
        The coefficients, in [-1, 1] up to rounding, float32 or better.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> pearson(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([50.0, 30.0, 10.0]))
        tensor(-1.0000)
    """
    check_same_shape(x, y, "the tensors to correlate")
    if eps > 0:
        x, y = x - x.mean(dim, keepdim=True), y - y.mean(dim, keepdim=True)
        norms = torch.linalg.vector_norm(x, dim=dim) * torch.linalg.vector_norm(y, dim=dim)
        return (x * y).sum(dim) / (norms + eps)
    return (_direction(x, dim) * _direction(y, dim)).sum(dim)


def _direction(x: Tensor, dim: int) -> Tensor:
    """Returns the centred vectors at unit length, zeros (without gradient) for those constant up to rounding."""
    limits = torch.finfo(x.dtype)
    centred = x - x.mean(dim, keepdim=True)
    spread = centred.detach().abs().amax(dim, keepdim=True)
    size = x.detach().abs().amax(dim, keepdim=True)
    # Below the second bound, squares and gradients of 1 / spread leave the range of the type.
    varies = (spread > 4 * limits.eps * size) & (spread > limits.tiny**0.8)
    one = torch.ones_like(spread)
    centred = torch.where(varies, centred, torch.zeros_like(centred)) / torch.where(varies, spread, one)
    norm = torch.linalg.vector_norm(centred, dim=dim, keepdim=True)
    return centred / torch.where(varies, norm, one)


@full_precision
def inter_class_distance(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    scale_by_t2: bool = True,
    eps: float = 0.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""DIST's inter-class term: one minus the correlation over the classes of one sample's probabilities.

    .. math:: L = T^2 \big(1 - \tfrac1B \sum_b \rho(p^S_{b,:},\, p^T_{b,:})\big)

    Args:
        student_logits: ``[B, C]``.
        teacher_logits: ``[B, C]``, a constant: no gradient flows to it.
        temperature: divides both logits before the softmax.
        scale_by_t2: whether to multiply by :math:`T^2`.
        eps: see :func:`pearson`.
        mask: ``[B]`` true where a sample counts.
        reduction: over the ``B`` samples.

    Raises:
        ValueError: shapes differ or the temperature is not positive.

    References:
        Huang et al., "Knowledge Distillation from A Stronger Teacher", arXiv 2205.10536.

    Example:
        >>> inter_class_distance(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([[3.0, 1.0, 0.0]])).abs() < 1e-6
        tensor(True)
    """
    student, teacher = neutralised(student_logits, mask), neutralised(teacher_logits, mask)
    return reduce(_distances(-1, student, teacher, temperature, scale_by_t2, eps), reduction, mask=mask)


@full_precision
def intra_class_distance(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    scale_by_t2: bool = True,
    eps: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""DIST's intra-class term: one minus the correlation over the batch of one class's probabilities.

    .. math:: L = T^2 \big(1 - \tfrac1C \sum_c \rho(p^S_{:,c},\, p^T_{:,c})\big)

    A class whose probability is the same for all samples of the batch counts as uncorrelated.

    Args:
        student_logits: ``[B, C]``.
        teacher_logits: ``[B, C]``, a constant: no gradient flows to it.
        temperature: divides both logits before the softmax.
        scale_by_t2: whether to multiply by :math:`T^2`.
        eps: see :func:`pearson`.
        reduction: over the ``C`` classes (``batchmean`` is here the same as ``mean``).

    Raises:
        ValueError: shapes differ or the temperature is not positive.

    References:
        Huang et al., "Knowledge Distillation from A Stronger Teacher", arXiv 2205.10536.

    Example:
        >>> intra_class_distance(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        tensor(2.)
    """
    return reduce(_distances(0, student_logits, teacher_logits, temperature, scale_by_t2, eps), reduction)


def _distances(dim: int, student: Tensor, teacher: Tensor, temperature: float, scale_by_t2: bool, eps: float) -> Tensor:
    p_s, p_t = _probabilities(student, teacher, temperature)
    values = 1.0 - pearson(p_s, p_t, dim=dim, eps=eps)
    return values * temperature**2 if scale_by_t2 else values


def _probabilities(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    check_same_shape(student_logits, teacher_logits, "student and teacher logits")
    p_s = tempered_log_softmax(student_logits, temperature).exp()
    return p_s, tempered_log_softmax(teacher_logits.detach(), temperature).exp()


@full_precision
def batch_correlation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""MLKD's batch-level term: squared distance between the Gram matrices of predictions of the samples.

    .. math:: L = \tfrac1B \sum_{b \in M} \big\| p^S_b (P^S)^\top - p^T_b (P^T)^\top \big\|^2

    Args:
        student_logits: ``[B, C]``.
        teacher_logits: ``[B, C]``, a constant: no gradient flows to it.
        temperature: divides both logits before the softmax.
        mask: ``[B]`` true for the rows :math:`M` that count.
        reduction: over the rows, of which each is a sum; ``batchmean`` divides by ``B``, masked or not.

    Raises:
        ValueError: shapes differ or the temperature is not positive.

    References:
        Jin, Wang and Lin, "Multi-Level Logit Distillation", CVPR 2023.

    Example:
        >>> batch_correlation(torch.eye(2), torch.zeros(2, 2)).item() > 0
        True
    """
    p_s, p_t = _probabilities(student_logits, teacher_logits, temperature)
    return _gram_loss(p_s, p_t, mask, reduction)


@full_precision
def class_correlation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""MLKD's class-level term: squared distance between the Gram matrices of predictions of the classes.

    .. math:: L = \tfrac1C \sum_{c \in M} \big\| (P^S)_{:,c}^\top P^S - (P^T)_{:,c}^\top P^T \big\|^2

    Args:
        student_logits: ``[B, C]``.
        teacher_logits: ``[B, C]``, a constant: no gradient flows to it.
        temperature: divides both logits before the softmax.
        mask: ``[C]`` true for the classes :math:`M` that count.
        reduction: over the classes, of which each is a sum; ``batchmean`` divides by ``C``, masked or not.

    Raises:
        ValueError: shapes differ or the temperature is not positive.

    References:
        Jin, Wang and Lin, "Multi-Level Logit Distillation", CVPR 2023.

    Example:
        >>> class_correlation(torch.eye(2), torch.zeros(2, 2)).item() > 0
        True
    """
    p_s, p_t = _probabilities(student_logits, teacher_logits, temperature)
    return _gram_loss(p_s.T, p_t.T, mask, reduction)


def _gram_loss(student: Tensor, teacher: Tensor, mask: Tensor | None, reduction: Reduction) -> Tensor:
    """Squared differences between the products of all rows, summed for each row."""
    return reduce((student @ student.T - teacher @ teacher.T).square().sum(1), reduction, mask=mask)
