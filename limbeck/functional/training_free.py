"""Scores of an untrained student against an untrained teacher: how alike they see samples and classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from limbeck.functional.feature_maps import unit_vectors
from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, check_same_shape, reduce
from limbeck.functional.relations import similarity_preserving


@full_precision
def classifier_gradient(pooled: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""Gradient of the mean cross-entropy with respect to the weight of a linear classifier, in closed form.

    .. math:: G = \tfrac1B \sum_b (p_b - y_b)\, h_b^\top

    Nothing before the classifier is differentiated, so one forward pass is all that a score needs.

    Args:
        pooled: ``[B, D]``, what the classifier reads.
        labels: ``[B]`` integer classes.
        weight: ``[K, D]``.
        bias: ``[K]``, or None.

    Returns:
        ``[K, D]``, float32 or better.

    Example:
        >>> classifier_gradient(torch.eye(2), torch.tensor([0, 1]), torch.zeros(2, 2))
        tensor([[-0.2500,  0.2500],
                [ 0.2500, -0.2500]])
    """
    error = torch.softmax(linear(pooled, weight, bias), dim=-1)
    error = error.scatter_add(-1, labels.unsqueeze(-1), -torch.ones_like(error[:, :1]))
    return error.T @ pooled / max(len(pooled), 1)


@full_precision
def class_correlation_distance(
    student_gradient: Tensor, teacher_gradient: Tensor, *, eps: float = 0.0, reduction: Reduction = "mean"
) -> Tensor:
    r"""Squared difference of the row-normalised outer products of each class's classifier gradient.

    .. math:: L = \tfrac{1}{KD} \sum_k \big\| \mathrm{rownorm}_2(g^S_k g_k^{S\top})
              - \mathrm{rownorm}_2(g^T_k g_k^{T\top}) \big\|_F^2

    Row ``i`` of a normalised outer product is :math:`\mathrm{sign}(g_i)\, g / \|g\|`, so the value depends on the
    directions and the signs of the gradients only, and the ``D x D`` matrices are never formed.

    Args:
        student_gradient: ``[K, D]`` gradient of the loss with respect to the classifier's weight.
        teacher_gradient: ``[K, D]``, a constant: no gradient flows to it.
        eps: rows of outer products that are shorter than this are divided by it, 1e-12 in the authors' code; with 0 the
            scale of the gradients does not matter, however small they are.
        reduction: over the ``K * D`` rows of all matrices, of which each is a sum; ``none`` returns ``[K, D]``.

    Raises:
        ValueError: the shapes differ (both networks need the same classes and the same width before the classifier), or
            ``eps`` is negative.

    References:
        Dong, Li and Wei, "DisWOT: Student Architecture Search for Distillation WithOut Training", arXiv 2303.15678.

    Example:
        >>> gradient = torch.tensor([[1.0, -2.0]])
        >>> class_correlation_distance(3 * gradient, gradient)
        tensor(0.)
        >>> class_correlation_distance(gradient.abs(), gradient)
        tensor(2.0000)
    """
    check_same_shape(student_gradient, teacher_gradient, "the classifier gradients of student and teacher")
    if not eps >= 0:
        raise ValueError(f"eps is {eps}, but should be 0 or more")
    theirs = teacher_gradient.detach()
    agree = student_gradient.detach().sign() * theirs.sign()
    student, teacher = unit_vectors(student_gradient), unit_vectors(theirs)
    near = (student - teacher).square().sum(-1, keepdim=True)
    far = (student + teacher).square().sum(-1, keepdim=True)
    # An entry that is zero on one side only leaves the other side's row alone.
    ours, other = _row_lengths(student_gradient, eps), _row_lengths(theirs, eps)
    values = (ours - other).square() + ours * other * torch.where(agree > 0, near, far)
    return reduce(values, reduction)


def _row_lengths(gradient: Tensor, eps: float) -> Tensor:
    """Returns the lengths ``[K, D]`` of the rows of the normalised outer products."""
    if eps == 0:
        return (gradient.detach() != 0).to(gradient)
    return (gradient.abs() * torch.linalg.vector_norm(gradient, dim=-1, keepdim=True) / eps).clamp(max=1)


def relation_score(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    r"""DisWOT's relation score: how alike two networks relate the samples of a batch; 0 is the best, all else negative.

    .. math:: M_r = -\tfrac1{B^2} \big\| \tilde A^S - \tilde A^T \big\|_F^2, \qquad
              \tilde A = \mathrm{rownorm}_2(F F^\top)

    Args:
        student_features: ``[B, ...]`` last feature maps before pooling.
        teacher_features: ``[B, ...]``; channels and sizes may differ.

    Returns:
        A scalar.

    Raises:
        ValueError: the batch sizes differ.

    References:
        Dong, Li and Wei, "DisWOT: Student Architecture Search for Distillation WithOut Training", arXiv 2303.15678.

    Example:
        >>> relation_score(torch.eye(2), torch.eye(2)).item() == 0
        True
    """
    return -similarity_preserving(student_features, teacher_features)


def semantic_score(student_gradient: Tensor, teacher_gradient: Tensor, *, eps: float = 0.0) -> Tensor:
    r"""DisWOT's semantic score: how alike two networks use their channels for the classes; 0 is the best.

    :math:`M_s` is :func:`class_correlation_distance`, negated.

    Args:
        student_gradient: ``[K, D]``, see :func:`classifier_gradient`.
        teacher_gradient: ``[K, D]``.
        eps: see :func:`class_correlation_distance`.

    Returns:
        A scalar.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> semantic_score(torch.tensor([[1.0, 1.0]]), torch.tensor([[-1.0, -1.0]])).item() == 0
        True
    """
    return -class_correlation_distance(student_gradient, teacher_gradient, eps=eps)


@full_precision
def activation_pattern_score(agreement: Tensor) -> Tensor:
    r"""NASWOT's score: how well an untrained network tells the samples of a batch apart; higher is better.

    .. math:: s = \log \big|\det K\big|, \qquad K_{ij} = N - d_H(c_i, c_j)

    with the binary codes :math:`c` of which of its :math:`N` rectified units are on.

    Args:
        agreement: ``[B, B]``, the kernel :math:`K`: the number of units in which two samples agree.

    Returns:
        A scalar; ``-inf`` where two samples have the same code.

    References:
        Mellor, Turner, Storkey and Crowley, "Neural Architecture Search without Training", arXiv 2006.04647.

    Example:
        >>> activation_pattern_score(torch.tensor([[4.0, 0.0], [0.0, 4.0]]))
        tensor(2.7726, dtype=torch.float64)
    """
    return torch.linalg.slogdet(agreement.double()).logabsdet
