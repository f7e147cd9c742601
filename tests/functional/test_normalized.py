from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.functional import decoupled_kl, normalized_kd


def _case(rows: int = 6, classes: int = 5, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = (scale * torch.randn(rows, classes, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher, torch.randint(classes, (rows,))


def test_parts_are_cross_entropies_of_the_split_distributions() -> None:
    student, teacher, labels = _case()
    ours = normalized_kd(student, teacher, labels, temperature=2.5, reduction="none")
    s, t = student.detach().numpy(), teacher.numpy()
    for row, label in enumerate(labels.tolist()):
        target = -scipy.special.softmax(t[row])[label] * scipy.special.log_softmax(s[row])[label]
        rest = scipy.special.softmax(np.delete(t[row], label) / 2.5)
        nontarget = -(rest * scipy.special.log_softmax(np.delete(s[row], label) / 2.5)).sum()
        np.testing.assert_allclose(ours.target[row].item(), target, rtol=1e-12)
        np.testing.assert_allclose(ours.nontarget[row].item(), 2.5**2 * nontarget, rtol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 9), st.floats(0.5, 8.0))
def test_nontarget_part_is_that_of_dkd_up_to_the_teachers_entropy(seed: int, classes: int, temperature: float) -> None:
    torch.manual_seed(seed)
    student, teacher, labels = _case(classes=classes)
    ours = normalized_kd(student, teacher, labels, temperature=temperature, reduction="none").nontarget
    same = normalized_kd(teacher, teacher, labels, temperature=temperature, reduction="none").nontarget
    dkd = decoupled_kl(student, teacher, labels, temperature=temperature, reduction="none").nckd
    torch.testing.assert_close(ours - same, dkd, rtol=1e-9, atol=1e-9)


def test_two_classes_leave_nothing_to_rank() -> None:
    student, teacher, labels = _case(classes=2)
    assert normalized_kd(student, teacher, labels).nontarget == 0


def test_nontarget_gradient_spares_the_target_and_sums_to_zero() -> None:
    student, teacher, labels = _case()
    normalized_kd(student, teacher, labels).nontarget.backward()
    assert student.grad is not None
    assert (student.grad.gather(1, labels[:, None]) == 0).all()
    torch.testing.assert_close(student.grad.sum(1), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_constant_on_either_side_changes_nothing() -> None:
    student, teacher, labels = _case()
    moved = normalized_kd(student + 7.0, teacher - 3.0, labels)
    torch.testing.assert_close(tuple(moved), tuple(normalized_kd(student, teacher, labels)))


def test_soft_labels_name_their_largest_class() -> None:
    student, teacher, labels = _case()
    soft = 0.3 * torch.nn.functional.one_hot((labels + 1) % 5, 5) + 0.7 * torch.nn.functional.one_hot(labels, 5)
    assert normalized_kd(student, teacher, soft.double()) == normalized_kd(student, teacher, labels)


@pytest.mark.parametrize(
    ("student", "labels", "options", "message"),
    [
        (torch.zeros(2, 1), torch.zeros(2, dtype=torch.long), {}, "two classes"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), {}, "labels"),
        (torch.zeros(2, 3), torch.zeros(2, 4), {}, "label probabilities"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), {"temperature": 0.0}, "temperature"),
    ],
)
def test_what_does_not_fit_is_refused(student: Tensor, labels: Tensor, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normalized_kd(student, student, labels, **options)
