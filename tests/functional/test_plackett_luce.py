from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.functional import cross_entropy, label_first_order, plackett_luce, plackett_luce_distillation


def _case(rows: int = 6, classes: int = 5, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = (scale * torch.randn(rows, classes, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher, torch.randint(classes, (rows,))


def _by_hand(student: np.ndarray, teacher: np.ndarray, label: int, temperature: float) -> float:
    """Place by place, as the definition says."""
    weights = scipy.special.softmax(teacher / temperature)
    remaining = [label, *(c for c in np.argsort(-teacher, kind="stable") if c != label)]
    loss = 0.0
    while remaining:
        loss += weights[remaining[0]] * (scipy.special.logsumexp(student[remaining]) - student[remaining[0]])
        remaining = remaining[1:]
    return loss


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9), st.floats(0.2, 8.0))
def test_loss_is_the_weighted_likelihood_of_the_ranking(seed: int, classes: int, temperature: float) -> None:
    torch.manual_seed(seed)
    student, teacher, labels = _case(classes=classes)
    ours = plackett_luce_distillation(student, teacher, labels, teacher_temperature=temperature, reduction="none")
    pairs = zip(student.detach().numpy(), teacher.numpy(), labels.tolist())
    expected = [_by_hand(s, t, label, temperature) for s, t, label in pairs]
    np.testing.assert_allclose(ours.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_gradient_is_the_weighted_sum_of_softmax_residuals() -> None:
    student, teacher, labels = _case(rows=1)
    (gradient,) = torch.autograd.grad(plackett_luce_distillation(student, teacher, labels), student)
    order, weights = label_first_order(teacher, labels)[0], torch.softmax(teacher[0], 0)
    expected = torch.zeros(5, dtype=torch.float64)
    for place, chosen in enumerate(order):
        rest = order[place:]
        expected[rest] += weights[chosen] * torch.softmax(student.detach()[0, rest], 0)
        expected[chosen] -= weights[chosen]
    torch.testing.assert_close(gradient[0], expected)


def test_special_cases() -> None:
    student, teacher, labels = _case()
    sure = teacher.scatter(1, labels[:, None], 30.0)
    cold = plackett_luce_distillation(student, sure, labels, teacher_temperature=0.01)
    torch.testing.assert_close(cold, cross_entropy(student, labels))
    hot = plackett_luce_distillation(student, teacher, labels, teacher_temperature=1e9)
    torch.testing.assert_close(hot, plackett_luce(student, label_first_order(teacher, labels)) / 5)
    two, other = student[:, :2], labels % 2
    weight = torch.softmax(teacher[:, :2], 1).gather(1, other[:, None])[:, 0]
    torch.testing.assert_close(
        plackett_luce_distillation(two, teacher[:, :2], other, reduction="none"),
        weight * cross_entropy(two, other, reduction="none"),
    )


def test_unchanged_by_constants_and_convex_and_positive() -> None:
    student, teacher, labels = _case()
    loss = plackett_luce_distillation(student, teacher, labels)
    torch.testing.assert_close(plackett_luce_distillation(student - 4.0, teacher + 9.0, labels), loss)
    other = torch.randn_like(student)
    middle, ends = (
        plackett_luce_distillation((student + other) / 2, teacher, labels, reduction="none"),
        [plackett_luce_distillation(s, teacher, labels, reduction="none") for s in (student, other)],
    )
    assert (middle <= (ends[0] + ends[1]) / 2).all()
    ranked = torch.zeros_like(teacher).scatter(
        1, label_first_order(teacher, labels), torch.arange(5.0, 0, -1).double().expand(6, 5)
    )
    losses = [plackett_luce_distillation(k * ranked, teacher, labels).item() for k in (1, 3, 9)]
    assert losses[0] > losses[1] > losses[2] > 0


def test_a_teacher_sure_of_another_class_leaves_the_label_little_weight() -> None:
    teacher = torch.tensor([[0.0, 12.0, 0.0]], dtype=torch.float64)
    student = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(plackett_luce_distillation(student, teacher, torch.tensor([0])), student)
    assert gradient[0, 0].abs() < 1e-4
    assert gradient[0, 1] < -0.4


def test_equal_teacher_logits_keep_the_order_of_the_classes() -> None:
    order = label_first_order(torch.zeros(2, 6), torch.tensor([3, 0]))
    assert order.tolist() == [[3, 0, 1, 2, 4, 5], [0, 1, 2, 3, 4, 5]]


def test_soft_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="soft labels"):
        plackett_luce_distillation(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3))
