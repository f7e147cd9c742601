"""How the samples of a batch relate to each other, and losses that compare these relations.

All of them depend on which samples share a batch. Student and teacher vectors may have different sizes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss
from torch.utils.checkpoint import checkpoint

from limbeck.functional.feature_maps import unit_vectors
from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, check_same_shape, reduce

_CHUNK_ELEMENTS = 1 << 22
"""Angles kept at once: with more, blocks of vertices are recomputed in the backward pass and memory stays bounded."""


def _check_batches(student: Tensor, teacher: Tensor) -> None:
    if student.shape[0] != teacher.shape[0]:
        sizes = f"{student.shape[0]} and {teacher.shape[0]}"
        raise ValueError(f"student and teacher features should be of the same samples, but there are {sizes}")


@full_precision
def similarity_preserving(
    student_features: Tensor, teacher_features: Tensor, *, reduction: Reduction = "mean"
) -> Tensor:
    r"""Squared difference of row-normalised similarity matrices.

    .. math:: L = \tfrac{1}{B^2} \big\| \tilde G^S - \tilde G^T \big\|_F^2, \qquad
              \tilde G = \mathrm{rownorm}_2(F F^\top)

    Invariant to rotations and to the scale of the features of either side.

    Args:
        student_features: ``[B, ...]``, flattened to :math:`F`.
        teacher_features: ``[B, ...]``, a constant: no gradient flows to it. Its other dimensions may differ.
        reduction: over the ``B * B`` entries; ``mean`` is the published loss.

    Raises:
        ValueError: the batch sizes differ.

    References:
        Tung and Mori, "Similarity-Preserving Knowledge Distillation", arXiv 1907.09682.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> similarity_preserving(features, 3 * features)
        tensor(0.)
    """
    _check_batches(student_features, teacher_features)
    difference = _similarity(student_features) - _similarity(teacher_features.detach())
    return reduce(difference.square(), reduction)


def _similarity(features: Tensor) -> Tensor:
    flat = features.flatten(1)
    # Rows of the Gram matrix are normalised anyway; scaling first keeps the products of large maps in range.
    flat = flat / flat.detach().abs().amax().clamp(min=torch.finfo(flat.dtype).tiny)
    return unit_vectors(flat @ flat.T)


@full_precision
def pairwise_distances(rows: Tensor, *, squared: bool = False, eps: float = 0.0) -> Tensor:
    """Euclidean distances between all rows, computed from differences so that near rows lose no digits.

    Args:
        rows: ``[B, D]``.
        squared: whether to return squared distances.
        eps: smallest squared distance between two different samples; nearer pairs count as that far, without gradient.

    Returns:
        ``[B, B]``, zero on the diagonal. Equal rows have distance 0 and a zero gradient.

    Example:
        >>> pairwise_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        tensor([[0., 5.],
                [5., 0.]])
    """
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    if eps > 0:
        self_pairs = torch.eye(rows.shape[0], dtype=torch.bool, device=rows.device)
        distances = distances.clamp(min=eps**0.5).masked_fill(self_pairs, 0.0)
    return distances.square() if squared else distances


@full_precision
def relational_distance(
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    squared: bool = False,
    eps: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""RKD's distance term: Huber loss between pairwise distances, each divided by their mean over pairs.

    .. math:: L = \tfrac1{B^2} \sum_{i,j} \ell\big(\psi^S_{ij}, \psi^T_{ij}\big), \qquad
              \psi_{ij} = \|g_i - g_j\| \Big/ \tfrac{1}{B(B-1)} \sum_{k \ne l} \|g_k - g_l\|

    Invariant to translation, rotation and scale of either side. A batch whose rows are all equal has :math:`\psi = 0`.

    Args:
        student_features: ``[B, D_s]``.
        teacher_features: ``[B, D_t]``, a constant: no gradient flows to it.
        squared: whether distances are squared.
        eps: see :func:`pairwise_distances`.
        reduction: over the ``B * B`` entries, the zeros of the diagonal included.

    Raises:
        ValueError: the batch sizes differ.

    References:
        Park et al., "Relational Knowledge Distillation", arXiv 1904.05068.

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [5.0]])
        >>> relational_distance(features, 10 * features)
        tensor(0.)
    """
    _check_batches(student_features, teacher_features)
    student = _relative(pairwise_distances(student_features, squared=squared, eps=eps))
    teacher = _relative(pairwise_distances(teacher_features.detach(), squared=squared, eps=eps))
    return reduce(smooth_l1_loss(student, teacher, reduction="none"), reduction)


def _relative(distances: Tensor) -> Tensor:
    """Divides by the mean over pairs of different samples."""
    size = distances.shape[0]
    mean = distances.sum() / max(size * (size - 1), 1)
    return distances / torch.where(mean > 0, mean, torch.ones_like(mean))


@full_precision
def relational_angle(student_features: Tensor, teacher_features: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""RKD's angle term: Huber loss between the cosines of all angles that triplets form.

    .. math:: L = \tfrac1{B^3} \sum_{i,j,k} \ell\big(\psi^S_{ijk}, \psi^T_{ijk}\big), \qquad
              \psi_{ijk} = \cos\angle(g_i - g_j,\; g_k - g_j)

    Invariant to translation, rotation and scale of either side. Angles at equal rows count as cosine 0 and get a finite
    gradient. Large batches are processed in blocks of vertices :math:`j` whose angles are recomputed for the backward
    pass.

    Args:
        student_features: ``[B, D_s]``.
        teacher_features: ``[B, D_t]``, a constant: no gradient flows to it.
        reduction: over the ``B**3`` entries, zeros included; ``none`` returns ``[B, B, B]`` with the vertex first.

    Raises:
        ValueError: the batch sizes differ.

    References:
        Park et al., "Relational Knowledge Distillation", arXiv 1904.05068.

    Example:
        >>> corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> relational_angle(corner, 2 * corner + 1).abs() < 1e-6
        tensor(True)
    """
    _check_batches(student_features, teacher_features)
    teacher_features = teacher_features.detach()
    size = student_features.shape[0]
    block = max(_CHUNK_ELEMENTS // max(size * size, 1), 1)
    if reduction == "none" or block >= size:
        return reduce(_angle_losses(student_features, teacher_features, 0, size), reduction)
    starts = range(0, size, block)
    totals = [_angle_total(student_features, teacher_features, start, min(start + block, size)) for start in starts]
    return torch.stack(totals).sum() / {"sum": 1, "batchmean": size, "mean": size**3}[reduction]


def _angle_total(student: Tensor, teacher: Tensor, start: int, stop: int) -> Tensor:
    def block(rows: Tensor) -> Tensor:
        return _angle_losses(rows, teacher, start, stop).sum()

    total: Tensor = checkpoint(block, student, use_reentrant=False)
    return total


def _angle_losses(student: Tensor, teacher: Tensor, start: int, stop: int) -> Tensor:
    return smooth_l1_loss(_cosines(student, start, stop), _cosines(teacher, start, stop), reduction="none")


def _cosines(rows: Tensor, start: int, stop: int) -> Tensor:
    """Cosines of the angles at the vertices ``start <= j < stop``, ``[stop - start, B, B]``."""
    arms = unit_vectors(rows.unsqueeze(0) - rows[start:stop].unsqueeze(1))
    return arms @ arms.transpose(1, 2)


@full_precision
def probabilistic_transfer(
    student_features: Tensor, teacher_features: Tensor, *, eps: float = 1e-7, reduction: Reduction = "mean"
) -> Tensor:
    r"""PKT's loss: divergence between the neighbourhood distributions of teacher and student.

    .. math:: L = \tfrac1{B^2} \sum_{i,j} p^T_{ij} \log \frac{p^T_{ij} + \varepsilon}{p^S_{ij} + \varepsilon}, \qquad
              p_{ij} \propto \tfrac12\big(\cos(g_i, g_j) + 1\big), \quad \sum_j p_{ij} = 1

    Unlike elsewhere in this package, ``eps`` belongs to the published loss: the kernel is 0 for opposite vectors, where
    the logarithm has no bound. It is also added to the norms of the vectors, as the authors do.

    Args:
        student_features: ``[B, D_s]``.
        teacher_features: ``[B, D_t]``, a constant: no gradient flows to it. A row of zeros has cosine 0 to all others.
        eps: see above; 0 gives the exact divergence, infinite where the student's kernel is 0 and the teacher's is not.
        reduction: over the ``B * B`` entries; ``mean`` is the published loss.

    Raises:
        ValueError: the batch sizes differ.

    References:
        Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", arXiv 1803.10837.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> probabilistic_transfer(features, features)
        tensor(0.)
    """
    _check_batches(student_features, teacher_features)
    p_s, p_t = _neighbourhood(student_features, eps), _neighbourhood(teacher_features.detach(), eps)
    # Where the teacher has no mass the product is 0, whatever the logarithms.
    log_t, log_s = (torch.log(p.masked_fill(p_t == 0, 1.0) + eps) for p in (p_t, p_s))
    return reduce(p_t * (log_t - log_s), reduction)


def _neighbourhood(features: Tensor, eps: float) -> Tensor:
    norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    unit = features / torch.where(norm > 0, norm + eps, torch.ones_like(norm))
    kernel = (unit @ unit.T + 1.0) / 2.0
    kernel = kernel.clamp(min=0.0)
    return kernel / kernel.sum(1, keepdim=True)


@full_precision
def correlation_congruence(
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    kernel: Literal["rbf", "bilinear"] = "rbf",
    gamma: float = 0.4,
    order: int = 2,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""CC's loss: squared difference of the kernel matrices over the samples of a batch.

    .. math:: L = \tfrac{1}{B^2} \big\| K^S - K^T \big\|_F^2, \qquad
              k(x, y) = x^\top y \quad\text{or}\quad
              k(x, y) = e^{-2\gamma} \sum_{p=0}^{P} \frac{(2\gamma)^p}{p!} (x^\top y)^p

    on features of unit length; the second kernel is the Taylor expansion of a Gaussian one.

    Args:
        student_features: ``[B, ...]``, flattened.
        teacher_features: ``[B, ...]``, a constant: no gradient flows to it. Its size may differ.
        kernel: ``rbf`` or ``bilinear``.
        gamma: width of the Gaussian.
        order: highest power :math:`P` of the expansion.
        reduction: over the ``B * B`` entries; ``mean`` is the published loss.

    Raises:
        ValueError: the batch sizes differ.

    References:
        Peng et al., "Correlation Congruence for Knowledge Distillation", arXiv 1904.01802.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> correlation_congruence(features, 2 * features)
        tensor(0.)
    """
    _check_batches(student_features, teacher_features)
    student = _kernel(student_features, kernel, gamma, order)
    teacher = _kernel(teacher_features.detach(), kernel, gamma, order)
    return reduce((student - teacher).square(), reduction)


def _kernel(features: Tensor, kernel: str, gamma: float, order: int) -> Tensor:
    rows = unit_vectors(features.flatten(1))
    similarity = rows @ rows.T
    if kernel == "bilinear":
        return similarity
    power = torch.ones_like(similarity)
    total = torch.ones_like(similarity)
    for p in range(1, order + 1):
        power = power * similarity * (2 * gamma / p)
        total = total + power
    return total * torch.exp(similarity.new_tensor(-2 * gamma))


@full_precision
def consecutive_correlation(
    student_embedding: Tensor, teacher_embedding: Tensor, *, reduction: Reduction = "mean"
) -> Tensor:
    r"""The form of CC in RepDistiller's benchmark: products of absolute differences of neighbours in the batch.

    .. math:: L = \tfrac{1}{B-1} \sum_{i<B} \sum_d |e_{id}|\,|e_{i+1,d}|, \qquad e = s - t

    It depends on the order of the batch, and is 0 whenever every second sample matches.

    Args:
        student_embedding: ``[B, D]``.
        teacher_embedding: ``[B, D]``; the gradient flows to both, because both embeddings are trained.
        reduction: over the ``B - 1`` neighbours.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> consecutive_correlation(torch.ones(3, 2), torch.zeros(3, 2))
        tensor(2.)
    """
    check_same_shape(student_embedding, teacher_embedding, "student and teacher embeddings")
    distance = (student_embedding - teacher_embedding).abs()
    return reduce((distance[:-1] * distance[1:]).sum(1), reduction)
