from __future__ import annotations

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.functional import js, kl, tempered_log_softmax


def _pair(rows: int = 5, classes: int = 7, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    student = scale * torch.randn(rows, classes, dtype=torch.float64)
    return student.requires_grad_(), scale * torch.randn(rows, classes, dtype=torch.float64)


def _softmax(logits: Tensor, temperature: float) -> np.ndarray:
    return scipy.special.softmax(logits.detach().numpy() / temperature, axis=-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("reverse", [False, True])
def test_kl_is_scipys_relative_entropy(temperature: float, reverse: bool) -> None:
    student, teacher = _pair()
    p, q = _softmax(teacher, temperature), _softmax(student, temperature)
    expected = scipy.stats.entropy(*((q, p) if reverse else (p, q)), axis=-1)
    ours = kl(student, teacher, temperature=temperature, reverse=reverse, scale_by_t2=False, reduction="none")
    np.testing.assert_allclose(ours.detach(), expected, rtol=1e-12)
    scaled = kl(student, teacher, temperature=temperature, reverse=reverse)
    np.testing.assert_allclose(scaled.item(), temperature**2 * expected.mean(), rtol=1e-12)


def test_js_is_scipys_distance_squared() -> None:
    student, teacher = _pair()
    expected = scipy.spatial.distance.jensenshannon(_softmax(student, 2.0), _softmax(teacher, 2.0), axis=-1) ** 2
    ours = js(student, teacher, temperature=2.0, scale_by_t2=False, reduction="none")
    np.testing.assert_allclose(ours.detach(), expected, rtol=1e-10)


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_generalised_js_weighs_the_teacher_by_beta(beta: float) -> None:
    student, teacher = _pair()
    p, q = _softmax(teacher, 1.0), _softmax(student, 1.0)
    m = beta * p + (1 - beta) * q
    expected = beta * scipy.stats.entropy(p, m, axis=-1) + (1 - beta) * scipy.stats.entropy(q, m, axis=-1)
    np.testing.assert_allclose(js(student, teacher, beta=beta, reduction="none").detach(), expected, rtol=1e-10)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.5, 20.0), st.floats(-100.0, 100.0))
def test_kl_ignores_shifts_and_is_zero_only_at_equality(seed: int, temperature: float, shift: float) -> None:
    torch.manual_seed(seed)
    student, teacher = _pair()
    value = kl(student, teacher, temperature=temperature)
    torch.testing.assert_close(
        kl(student + shift, teacher - shift, temperature=temperature), value, rtol=1e-8, atol=1e-12
    )
    assert value > 0
    assert kl(teacher + shift, teacher, temperature=temperature).abs() < 1e-12


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kl_gradient_is_temperature_times_difference_of_probabilities(temperature: float) -> None:
    student, teacher = _pair()
    kl(student, teacher, temperature=temperature).backward()
    expected = temperature / len(student) * (_softmax(student, temperature) - _softmax(teacher, temperature))
    np.testing.assert_allclose(student.grad, expected, rtol=1e-10, atol=1e-14)


def test_kl_approaches_half_the_squared_distance_of_centred_logits() -> None:
    student, teacher = _pair()
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    limit = centred.square().sum(1).mean() / (2 * student.shape[1])
    torch.testing.assert_close(kl(student, teacher, temperature=1e4), limit, rtol=1e-3, atol=0.0)


def test_temperature_may_differ_by_row() -> None:
    student, teacher = _pair(rows=2)
    together = kl(student, teacher, temperature=torch.tensor([1.0, 3.0], dtype=torch.float64), reduction="none")
    apart = torch.cat(
        [kl(student[i : i + 1], teacher[i : i + 1], temperature=t, reduction="none") for i, t in ((0, 1.0), (1, 3.0))]
    )
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize("loss", [kl, js])
def test_excluded_classes_may_be_minus_infinity_on_both_sides(loss) -> None:
    student, teacher = _pair()
    excluded = torch.zeros_like(teacher, dtype=torch.bool)
    excluded[:, 2] = True
    for options in ({}, {"reverse": True}) if loss is kl else ({},):
        value = loss(student.masked_fill(excluded, -torch.inf), teacher.masked_fill(excluded, -torch.inf), **options)
        kept = [c for c in range(student.shape[1]) if c != 2]
        torch.testing.assert_close(value, loss(student[:, kept], teacher[:, kept], **options))
        (gradient,) = torch.autograd.grad(value, student)
        assert gradient.isfinite().all()
        assert (gradient[:, 2] == 0).all()


def test_no_mass_under_the_student_costs_infinitely_much() -> None:
    student = torch.tensor([[0.0, -torch.inf]])
    assert kl(student, torch.zeros(1, 2)) == torch.inf


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_is_checked(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        tempered_log_softmax(torch.zeros(1, 2), temperature)


@pytest.mark.parametrize("beta", [0.0, 1.0, -1.0])
def test_mixture_weight_is_checked(beta: float) -> None:
    with pytest.raises(ValueError, match="beta"):
        js(torch.zeros(1, 2), torch.zeros(1, 2), beta=beta)


def test_shapes_are_not_broadcast() -> None:
    with pytest.raises(ValueError, match="same shape"):
        kl(torch.zeros(4, 3), torch.zeros(1, 3))
