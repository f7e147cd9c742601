from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from limbeck.functional import binary_kl, binary_kl_norm


def _logits(scale: float = 3.0) -> tuple[Tensor, Tensor]:
    student, teacher = (scale * torch.randn(6, 5, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher


def _bernoulli_kl(p: float, q: float) -> float:
    return float(scipy.stats.entropy([p, 1 - p], [q, 1 - q]))


def test_values_are_sums_of_relative_entropies() -> None:
    student, teacher = _logits()
    s, t = student.detach().numpy(), teacher.numpy()
    between = np.vectorize(_bernoulli_kl)(scipy.special.expit(t / 1.5), scipy.special.expit(s / 1.5)).sum(1)
    halves = np.vectorize(_bernoulli_kl)(0.5, scipy.special.expit((s - t) / 1.5)).sum(1)
    for loss, expected in ((binary_kl, between), (binary_kl_norm, halves)):
        ours = loss(student, teacher, temperature=1.5, reduction="none").detach().numpy()
        np.testing.assert_allclose(ours, 1.5**2 * expected, rtol=1e-10)


def test_zero_for_equal_logits_only_and_an_offset_counts() -> None:
    _, teacher = _logits()
    assert binary_kl_norm(teacher, teacher) == 0
    assert binary_kl_norm(teacher + 1.0, teacher) > 0.1


def test_symmetric_convex_and_quadratic_near_zero() -> None:
    student, teacher = _logits()
    torch.testing.assert_close(binary_kl_norm(student, teacher), binary_kl_norm(teacher, student.detach()))
    middle = binary_kl_norm((student + teacher) / 2, teacher, reduction="none")
    assert (middle <= binary_kl_norm(student, teacher, reduction="none") / 2).all()
    small = 1e-3 * student.detach()
    near = binary_kl_norm(small, torch.zeros_like(small), temperature=1.0, reduction="none")
    torch.testing.assert_close(near, small.square().sum(1) / 8, rtol=1e-5, atol=0)


@pytest.mark.parametrize("loss", [binary_kl, binary_kl_norm])
def test_a_cut_sigmoid_bounds_the_value_and_stops_the_gradient(loss: object) -> None:
    student = torch.tensor([[200.0, 1.0]], requires_grad=True)
    teacher = torch.tensor([[-200.0, 0.0]])
    assert callable(loss)
    value = loss(student, teacher, temperature=1.0, eps=1e-8)
    assert value < 20
    (gradient,) = torch.autograd.grad(value, student)
    assert gradient[0, 0] == 0
    assert gradient[0, 1] > 0.1
    (uncut,) = torch.autograd.grad(loss(student, teacher, temperature=1.0), student)
    assert uncut[0, 0] > 0.4


def test_saturated_values() -> None:
    # -log(1e-8) / 2 - log(1 - 1e-8) / 2 - log(2), also where 1 - 1e-8 rounds to 1.
    value = binary_kl_norm(torch.tensor([[1e6]]), torch.zeros(1, 1), temperature=1.0, eps=1e-8)
    assert value.item() == pytest.approx(-0.5 * math.log(1e-8) - math.log(2), rel=1e-6)
    assert binary_kl_norm(torch.tensor([[1e6]]), torch.zeros(1, 1), temperature=1.0).item() == pytest.approx(
        5e5, abs=1.0
    )


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"eps": 0.5}, {"eps": -0.1}])
def test_hyperparameters_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        binary_kl_norm(torch.zeros(1, 2), torch.zeros(1, 2), **options)
