from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.functional import decoupled_kl, kl


def _case(rows: int = 6, classes: int = 5, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = (scale * torch.randn(rows, classes, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher, torch.randint(classes, (rows,))


def test_parts_are_relative_entropies_of_the_split_distributions() -> None:
    student, teacher, labels = _case()
    ours = decoupled_kl(student, teacher, labels, temperature=2.5, reduction="none")
    p_s, p_t = (scipy.special.softmax(z.detach().numpy() / 2.5, axis=1) for z in (student, teacher))
    for row, label in enumerate(labels.tolist()):
        binary = [np.array([p[row, label], 1 - p[row, label]]) for p in (p_t, p_s)]
        rest = [np.delete(p[row], label) for p in (p_t, p_s)]
        np.testing.assert_allclose(ours.tckd[row].item(), 2.5**2 * scipy.stats.entropy(*binary), rtol=1e-9)
        np.testing.assert_allclose(ours.nckd[row].item(), 2.5**2 * scipy.stats.entropy(*rest), rtol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 9), st.floats(0.5, 8.0))
def test_parts_add_up_to_kl(seed: int, classes: int, temperature: float) -> None:
    torch.manual_seed(seed)
    student, teacher, labels = _case(classes=classes)
    parts = decoupled_kl(student, teacher, labels, temperature=temperature, reduction="none")
    rest = 1 - torch.softmax(teacher / temperature, 1).gather(1, labels[:, None])[:, 0]
    whole = kl(student, teacher, temperature=temperature, reduction="none")
    torch.testing.assert_close(parts.tckd + rest * parts.nckd, whole, rtol=1e-9, atol=1e-12)


def test_two_classes_have_no_other_classes_to_rank() -> None:
    student, teacher, labels = _case(classes=2)
    parts = decoupled_kl(student, teacher, labels)
    assert parts.nckd == 0
    parts.nckd.backward()
    assert (student.grad == 0).all()
    torch.testing.assert_close(parts.tckd, kl(student, teacher), rtol=1e-9, atol=1e-12)


def test_nontarget_part_does_not_see_the_target_logit() -> None:
    student, teacher, labels = _case()
    decoupled_kl(student, teacher, labels).nckd.backward()
    assert student.grad is not None
    assert (student.grad.gather(1, labels[:, None]) == 0).all()
    moved = student.detach().scatter_add(1, labels[:, None], torch.full((6, 1), 5.0, dtype=torch.float64))
    torch.testing.assert_close(decoupled_kl(moved, teacher, labels).nckd, decoupled_kl(student, teacher, labels).nckd)


def test_target_part_sees_only_the_target_probability() -> None:
    student, teacher, labels = _case(classes=4)
    shuffled = student.detach().clone()
    for row, label in enumerate(labels.tolist()):
        others = [c for c in range(4) if c != label]
        shuffled[row, others] = shuffled[row, others[::-1]]
    torch.testing.assert_close(
        decoupled_kl(shuffled, teacher, labels).tckd, decoupled_kl(student, teacher, labels).tckd
    )


def test_logits_beyond_the_reach_of_a_masking_constant() -> None:
    # Adding -1000 to the target's logit, as published code does, would leave it the largest here.
    student = torch.tensor([[5000.0, 1.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[5000.0, 0.0, 1.0]], dtype=torch.float64)
    rest = kl(student[:, 1:], teacher[:, 1:])
    torch.testing.assert_close(decoupled_kl(student, teacher, torch.tensor([0])).nckd, rest)


@pytest.mark.parametrize(
    ("student", "labels", "message"),
    [
        (torch.zeros(2, 1), torch.zeros(2, dtype=torch.long), "two classes"),
        (torch.zeros(2, 3), torch.zeros(2, 3), "class indices"),
    ],
)
def test_what_has_no_parts_is_refused(student: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoupled_kl(student, student, labels)
