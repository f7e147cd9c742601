"""How long a feature is, and how far it points towards its class."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional.feature_maps import unit_vectors
from limbeck.functional.precision import full_precision
from limbeck.functional.reduction import Reduction, check_same_shape, neutralised, reduce


@full_precision
def norm_and_direction(
    student_features: Tensor,
    teacher_features: Tensor,
    class_means: Tensor,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""ND loss: a feature should be as long as the teacher's and point where the teacher's class mean points.

    .. math:: L = 1 - \frac{\langle s, e_y \rangle}{\max(\|s\|, \|t\|)}, \qquad e_y = \frac{c_y}{\|c_y\|}

    While the student's feature is shorter than the teacher's, the loss falls with its projection on the class's
    direction: it turns and grows. Once it is longer, only the angle counts. In [0, 2]; zero if and only if the feature
    points along :math:`e_y` and is at least as long as the teacher's. A pair of zero features counts 1.

    Args:
        student_features: ``[..., D]``.
        teacher_features: ``[..., D']``, constants, of which only the lengths count.
        class_means: ``[C, D]`` mean of the teacher's features of each class, constants; their lengths do not matter.
        labels: ``[...]`` class indices.
        mask: ``[...]`` true where a sample counts.
        reduction: see :func:`limbeck.functional.reduction.reduce`.

    Returns:
        The loss, float32 or better.

    Raises:
        ValueError: shapes do not fit.

    References:
        Wang et al., "Improving Knowledge Distillation via Regularizing Feature Norm and Direction", arXiv 2305.17007.

    Example:
        >>> means = torch.tensor([[5.0, 0.0]])
        >>> norm_and_direction(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]), means, torch.tensor([0]))
        tensor(0.5000)
    """
    check_same_shape(student_features[..., 0], labels, "student features without the last dimension and labels")
    check_same_shape(teacher_features[..., 0], labels, "teacher features without the last dimension and labels")
    if student_features.shape[-1] != class_means.shape[-1]:
        sizes = f"{student_features.shape[-1]} and {class_means.shape[-1]}"
        raise ValueError(f"student features and class means should be equally wide, not {sizes}")
    student = neutralised(student_features, mask)
    teacher = neutralised(teacher_features.detach(), mask)
    chosen = labels if mask is None else labels.masked_fill(~mask.bool(), 0)
    direction = unit_vectors(class_means.detach())[chosen]
    longer = torch.maximum(torch.linalg.vector_norm(student, dim=-1), torch.linalg.vector_norm(teacher, dim=-1))
    along = (student * direction).sum(-1)
    return reduce(1 - along / torch.where(longer > 0, longer, torch.ones_like(longer)), reduction, mask=mask)
