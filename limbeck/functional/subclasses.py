"""Pseudo-subclasses: a teacher's embedding splits every class into directions that a student learns to tell apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.functional.divergences import kl_of_log_probabilities, tempered_log_softmax
from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, check_same_shape, neutralised, reduce


class SubclassProjections(NamedTuple):
    """How an embedding is read as subclasses.

    Attributes:
        means: ``[C, D]`` mean embedding of each class.
        directions: ``[C, S, D]`` orthonormal directions of each class; of lower rank where its samples show no more.
        scale: ``[C]`` root mean square of the projections of a class's own samples.
    """

    means: Tensor
    directions: Tensor
    scale: Tensor


@full_precision
def fit_subclasses(
    embeddings: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    subclasses: int,
    classifier: Tensor | None = None,
    rotation: Tensor | None = None,
) -> SubclassProjections:
    r"""Finds the directions in which the embeddings of each class vary most.

    The embeddings of a class are centred, what a linear classifier reads of them is projected out, and the first
    ``subclasses`` principal axes are taken, their signs such that the largest entry is positive. A rotation mixes the
    axes, so that each carries the same variance in expectation and none dominates a softmax over them. Where the
    samples of a class vary in fewer directions, zeros stand for the others: they tell nothing apart.

    Args:
        embeddings: ``[N, D]`` of the training data.
        labels: ``[N]`` class of each; negative ones are left out.
        num_classes: number of classes ``C``.
        subclasses: number of directions a class ``S``.
        classifier: ``[C, D]`` weights of the linear layer that reads the embeddings. Their differences between classes
            span what is projected out; nothing is when None.
        rotation: ``[S, S]`` orthonormal matrix; the identity when None.

    Returns:
        The projections, float32 or better.

    Raises:
        ValueError: shapes do not fit, or a class has no sample.

    References:
        Loo et al., "Linear Projections of Teacher Embeddings for Few-Class Distillation", arXiv 2409.20449.

    Example:
        >>> rows = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
        >>> found = fit_subclasses(rows, torch.tensor([0, 0]), num_classes=1, subclasses=1)
        >>> found.directions.tolist(), found.scale.tolist()
        ([[[0.0, 1.0]]], [1.0])
    """
    _check_fit(embeddings, labels, subclasses, classifier, rotation)
    read = None
    if classifier is not None:
        read = torch.linalg.pinv(differences := classifier - classifier.mean(0)) @ differences
    parts = [_fit_class(embeddings[labels == c], subclasses, read, rotation, f"class {c}") for c in range(num_classes)]
    means, directions, scales = (torch.stack(column) for column in zip(*parts))
    return SubclassProjections(means, directions, scales)


def _check_fit(
    embeddings: Tensor, labels: Tensor, subclasses: int, classifier: Tensor | None, rotation: Tensor | None
) -> None:
    if embeddings.dim() != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"embeddings should be [N, D] and labels [N], not {tuple(embeddings.shape)} and {tuple(labels.shape)}"
        )
    if subclasses < 1:
        raise ValueError(f"subclasses is {subclasses}, but should be at least 1")
    if classifier is not None and classifier.shape[-1] != embeddings.shape[1]:
        raise ValueError(
            f"the classifier reads {classifier.shape[-1]} features, but the embeddings have {embeddings.shape[1]}"
        )
    if rotation is not None and tuple(rotation.shape) != (subclasses, subclasses):
        raise ValueError(f"the rotation should be [{subclasses}, {subclasses}], not {tuple(rotation.shape)}")


def _fit_class(
    rows: Tensor, subclasses: int, read: Tensor | None, rotation: Tensor | None, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mean ``[D]``, directions ``[S, D]`` and scale of one class."""
    if len(rows) == 0:
        raise ValueError(f"{name} has no sample to fit subclasses to")
    mean = rows.mean(0)
    centred = rows - mean
    kept = centred if read is None else centred - centred @ read
    _, spread, axes = torch.linalg.svd(kept, full_matrices=False)
    bound = spread.max() * max(kept.shape) * torch.finfo(kept.dtype).eps
    axes = axes[spread > bound][:subclasses]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    axes = torch.cat([axes, axes.new_zeros(subclasses - len(axes), axes.shape[1])])
    directions = axes if rotation is None else rotation @ axes
    scale = (centred @ directions.T).square().mean().sqrt()
    return mean, directions, torch.where(scale > 0, scale, torch.ones_like(scale))


@full_precision
def subclass_log_targets(
    teacher_logits: Tensor,
    embeddings: Tensor,
    projections: SubclassProjections,
    *,
    temperature: float = 1.0,
    sharpness: float = 1.0,
) -> Tensor:
    r"""Log-probabilities of all subclasses: the teacher's of the class, times a softmax over its projections.

    .. math:: P_{c,s} = \mathrm{softmax}(t / \tau)_c \; \mathrm{softmax}_s(z_c / \beta), \qquad
              z_{c,s} = \langle v_{c,s}, h - \mu_c \rangle / r_c

    Summed over the subclasses they are the teacher's tempered probabilities.

    Args:
        teacher_logits: ``[B, C]``.
        embeddings: ``[B, D]``, of the same view of the samples that the student sees.
        projections: what :func:`fit_subclasses` found.
        temperature: :math:`\tau > 0`, for the classes.
        sharpness: :math:`\beta > 0`, the temperature of the subclasses; large values split a class evenly.

    Returns:
        ``[B, C * S]`` without gradient, the subclasses of a class side by side; float32 or better.

    Raises:
        ValueError: a temperature is not positive.

    References:
        Loo et al., "Linear Projections of Teacher Embeddings for Few-Class Distillation", arXiv 2409.20449.
    """
    means, directions, scale = (t.detach() for t in projections)
    offset = (directions @ means.unsqueeze(-1)).squeeze(-1)
    projected = torch.einsum("csd,bd->bcs", directions, embeddings.detach().to(directions.dtype)) - offset
    within = tempered_log_softmax(projected / scale[:, None], sharpness)
    return (tempered_log_softmax(teacher_logits.detach(), temperature).unsqueeze(-1) + within).flatten(1)


@full_precision
def subclass_kl(
    student_logits: Tensor,
    log_targets: Tensor,
    *,
    temperature: float = 1.0,
    scale_by_t2: bool = True,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""KL divergence of the student's distribution over subclasses from a target that is tempered already.

    .. math:: L = \tau^2\,\mathrm{KL}\big(P \,\|\, \mathrm{softmax}(u / \tau)\big)

    Args:
        student_logits: ``[..., C * S]``.
        log_targets: ``[..., C * S]``, :math:`\log P`, a constant.
        temperature: :math:`\tau > 0`, of the student.
        scale_by_t2: whether to multiply by :math:`\tau^2`.
        mask: ``[...]`` true where a row counts.
        reduction: see :func:`limbeck.functional.reduction.reduce`.

    Returns:
        The loss in nats, float32 or better.

    Raises:
        ValueError: shapes differ or the temperature is not positive.

    Example:
        >>> subclass_kl(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.5, 0.5]]).log())
        tensor(0.)
    """
    check_same_shape(student_logits, log_targets, "student logits and targets")
    ours = tempered_log_softmax(neutralised(student_logits, mask), temperature)
    values = kl_of_log_probabilities(neutralised(log_targets.detach(), mask), ours)
    return reduce(values * temperature**2 if scale_by_t2 else values, reduction, mask=mask)


@full_precision
def class_log_probabilities(student_logits: Tensor, num_classes: int) -> Tensor:
    """Returns the log-probabilities of classes, each the sum of those of its subclasses.

    Args:
        student_logits: ``[..., C * S]``, the subclasses of a class side by side.
        num_classes: number of classes ``C``.

    Returns:
        ``[..., C]``, float32 or better.

    Raises:
        ValueError: the scores cannot be divided among the classes.

    Example:
        >>> class_log_probabilities(torch.zeros(1, 6), 2).exp()
        tensor([[0.5000, 0.5000]])
    """
    if student_logits.shape[-1] % num_classes:
        raise ValueError(f"{student_logits.shape[-1]} scores cannot be divided among {num_classes} classes")
    return torch.log_softmax(student_logits, -1).unflatten(-1, (num_classes, -1)).logsumexp(-1)
