"""Rotated images, joint labels of class and rotation, and losses over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.functional.classification import cross_entropy
from limbeck.functional.divergences import kl
from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import check_same_shape


def rotations(images: Tensor, *, count: int = 4) -> Tensor:
    """Returns every image in ``count`` orientations, a quarter turn counter-clockwise apart.

    Args:
        images: ``[B, C, H, W]``, square where ``count`` is above 1 and a quarter turn should keep the shape.
        count: orientations of each image, from 1 to 4.

    Returns:
        ``[B * count, C, H, W]``: row ``b * count + k`` is image ``b`` turned ``k`` times.

    Raises:
        ValueError: the images are not square, or ``count`` is outside 1 to 4.

    Example:
        >>> rotations(torch.tensor([[[[1, 2], [3, 4]]]]), count=2)[1, 0].tolist()
        [[2, 4], [1, 3]]
    """
    if not 1 <= count <= 4:
        raise ValueError(f"there are 1 to 4 quarter turns, not {count}")
    if images.dim() != 4 or (images.shape[2] != images.shape[3] and count > 1):
        raise ValueError(f"rotated images should be square [batch, channels, side, side], not {tuple(images.shape)}")
    return torch.stack([torch.rot90(images, k, (2, 3)) for k in range(count)], dim=1).flatten(0, 1)


def joint_labels(labels: Tensor, *, count: int = 4) -> Tensor:
    """Returns the class of every rotated image among all pairs of class and rotation, ``[B * count]``.

    Example:
        >>> joint_labels(torch.tensor([2, 0]), count=3)
        tensor([6, 7, 8, 0, 1, 2])
    """
    return (labels.unsqueeze(1) * count + torch.arange(count, device=labels.device)).flatten()


def class_scores(joint_logits: Tensor, *, count: int = 4) -> Tensor:
    """Sums joint scores over the rotations.

    Args:
        joint_logits: ``[..., C * count]``.
        count: rotations of each class.

    Returns:
        ``[..., C]``.
    """
    return joint_logits.unflatten(-1, (-1, count)).sum(-1)


@full_precision
def softened_labels(
    labels: Tensor, earlier_logits: Tensor, *, share: float | Tensor, temperature: float = 1.0
) -> Tensor:
    r"""Mixes labels with a network's own earlier predictions, as progressive self-knowledge distillation does.

    .. math:: q = (1 - a)\,y + a\,\mathrm{softmax}(z / \tau)

    Args:
        labels: ``[...]`` class indices.
        earlier_logits: ``[..., C]``, a constant.
        share: :math:`a` in [0, 1], a number or one for each row ``[...]``.
        temperature: :math:`\tau` of the predictions.

    Returns:
        ``[..., C]`` probabilities without gradient.

    References:
        Kim et al., "Self-Knowledge Distillation with Progressive Refinement of Targets", arXiv 2006.12000.

    Example:
        >>> softened_labels(torch.tensor([0]), torch.zeros(1, 2), share=0.5)
        tensor([[0.7500, 0.2500]])
    """
    hard = torch.nn.functional.one_hot(labels, earlier_logits.shape[-1]).to(earlier_logits.dtype)
    soft = torch.softmax(earlier_logits.detach() / temperature, dim=-1)
    part = share.unsqueeze(-1).to(soft) if isinstance(share, Tensor) and share.dim() else share
    return (1 - part) * hard + part * soft


@full_precision
def hierarchical_self_supervised(
    logits: Tensor,
    auxiliary_logits: Sequence[Tensor],
    teacher_logits: Tensor,
    teacher_auxiliary_logits: Sequence[Tensor],
    labels: Tensor,
    *,
    temperature: float = 3.0,
    count: int = 4,
) -> Tensor:
    r"""HSAKD's loss of a student whose stages and final head learn those of a teacher with the same heads.

    .. math:: L = L_{CE} + \sum_l T^2\,\mathrm{KL}(q^T_l \| q^S_l) + T^2\,\mathrm{KL}(p^T \| p^S)

    The cross-entropy is that of the unrotated images, the divergences are means over all rotations.

    Args:
        logits: ``[B * count, C]`` of the final head.
        auxiliary_logits: ``[B * count, C * count]`` of the head behind each stage.
        teacher_logits: the teacher's, a constant.
        teacher_auxiliary_logits: likewise.
        labels: ``[B]`` class indices.
        temperature: :math:`T` of the divergences.
        count: rotations of each image.

    Returns:
        A scalar, in nats.

    Raises:
        ValueError: student and teacher have different numbers of heads, or shapes differ.

    References:
        Yang et al., "Hierarchical Self-supervised Augmented Knowledge Distillation", arXiv 2107.13715.
    """
    if len(auxiliary_logits) != len(teacher_auxiliary_logits):
        raise ValueError(f"the student has {len(auxiliary_logits)} heads, the teacher {len(teacher_auxiliary_logits)}")
    check_same_shape(logits, teacher_logits, "student and teacher logits")
    pairs = zip([*auxiliary_logits, logits], [*teacher_auxiliary_logits, teacher_logits])
    distilled = torch.stack([kl(ours, theirs, temperature=temperature) for ours, theirs in pairs])
    return cross_entropy(logits[::count], labels) + distilled.sum()
