"""How closely a student repeats a teacher, beyond naming the same class.

All functions take raw logits ``[N, C]`` of both on the same samples, and compute in at least single precision.
Agreement rises with accuracy by itself, so it is told apart from what chance and shared right answers give.
Reference: Stanton et al., "Does knowledge distillation really work?", arXiv 2106.05945; "On the generalization vs
fidelity paradox in knowledge distillation", arXiv 2505.15442.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional.metrics import checked_logits, checked_pair


def top_k_agreement(student_logits: Tensor, teacher_logits: Tensor, *, k: int) -> Tensor:
    """Mean part of the ``k`` likeliest classes that student and teacher have in common, in any order.

    Of equal logits the one with the smaller class index counts as larger.

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``.
        k: how many classes, at most ``C``.

    Raises:
        ValueError: the shapes differ, or ``k`` is out of range.

    Example:
        >>> first, second = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[3.0, 1.0, 2.0]])
        >>> top_k_agreement(first, second, k=2).item()  # 0 and 1, 0 and 2
        0.5
    """
    student, teacher = checked_pair(student_logits, teacher_logits)
    if not 1 <= k <= student.shape[1]:
        raise ValueError(f"k should lie in 1..{student.shape[1]}, not {k}")
    chosen = [s.sort(dim=1, descending=True, stable=True).indices[:, :k] for s in (student, teacher)]
    marks = [torch.zeros_like(student, dtype=torch.bool).scatter(1, c, True) for c in chosen]
    return (marks[0] & marks[1]).sum(1).to(student.dtype).mean() / k


def agreement_on_errors(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Part of the teacher's errors on which the student names the same wrong class; NaN where the teacher has none.

    Where both are right they agree whatever the student has learnt from the teacher; here they need not.

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``.
        labels: ``[N]`` class indices.

    Raises:
        ValueError: shapes differ, or a label is out of range.
    """
    student, teacher = checked_pair(student_logits, teacher_logits)
    checked_logits(student, labels)
    wrong = teacher.argmax(1) != labels
    return (student.argmax(1) == teacher.argmax(1))[wrong].to(student.dtype).mean()


def total_variation(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Mean of half the L1 distance of the predicted distributions: in [0, 1], 0 only for equal ones.

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``.
        temperature: divides both.

    Raises:
        ValueError: the shapes differ.
    """
    student, teacher = checked_pair(student_logits, teacher_logits)
    gap = (student / temperature).softmax(1) - (teacher / temperature).softmax(1)
    return gap.abs().sum(1).mean() / 2


def expected_agreement(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Mean probability that classes drawn from both distributions, independently, are the same.

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``.
        temperature: divides both.

    Raises:
        ValueError: the shapes differ.
    """
    student, teacher = checked_pair(student_logits, teacher_logits)
    return ((student / temperature).softmax(1) * (teacher / temperature).softmax(1)).sum(1).mean()
