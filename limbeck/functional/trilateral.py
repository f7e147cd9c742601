"""The geometry of what student, teacher and label say of a sample, as TGeo-KD reads it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import check_same_shape


@full_precision
def trilateral_features(
    student_logits: Tensor, teacher_logits: Tensor, class_probabilities: Tensor, labels: Tensor
) -> Tensor:
    r"""Describes each sample by its predictions and by the squared edges of two triangles between them.

    With the probabilities :math:`S` and :math:`T`, the one-hot label :math:`G` and the teacher's mean probabilities
    :math:`\bar T` over the sample's class:

    .. math:: \phi = \big[ S, T, G, \bar T, (\bar T - S)^2, (G - S)^2, (T - S)^2, (T - G)^2, (\bar T - G)^2 \big]

    Args:
        student_logits: ``[B, C]``.
        teacher_logits: ``[B, C]``.
        class_probabilities: ``[C, C]`` the teacher's mean probabilities over each class.
        labels: ``[B]`` class indices.

    Returns:
        ``[B, 9C]``, without gradient.

    Raises:
        ValueError: shapes differ.

    References:
        Hu et al., "Less or More From Teacher: Exploiting Trilateral Geometry For Knowledge Distillation", arXiv
        2312.15112.

    Example:
        >>> trilateral_features(torch.zeros(4, 3), torch.zeros(4, 3), torch.eye(3), torch.tensor([0, 1, 2, 0])).shape
        torch.Size([4, 27])
    """
    check_same_shape(student_logits, teacher_logits, "student and teacher logits")
    student, teacher = (torch.softmax(logits.detach(), -1) for logits in (student_logits, teacher_logits))
    anchor = class_probabilities.detach()[labels].to(student)
    label = one_hot(labels, student.shape[-1]).to(student)
    edges = ((anchor, student), (label, student), (teacher, student), (teacher, label), (anchor, label))
    return torch.cat([student, teacher, label, anchor, *((a - b).square() for a, b in edges)], dim=-1)
