"""Every registered divergence, found by name: what all of them promise, and what each is by its textbook formula."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.functional.divergence_registry import divergence, divergence_names, register_divergence

V = 9
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in divergence_names() if name != "squared_difference"),
    *(("jsd", {"beta": b, "normalized": n}) for b in (0.0, 1e-4, 0.3, 0.9995, 1.0) for n in (False, True)),
    *(
        ("alpha_beta", {"alpha": a, "beta": b})
        for a, b in ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.0, 0.4), (0.5, 0.5), (0.7, -0.7), (2.0, 0.0))
    ),
    ("jeffreys", {"forward": 0.9}),
    ("skew_rkl", {"alpha": 0.4, "detach_mixture": True}),
    ("alpha", {"alpha": 0.3}),
    ("alpha", {"alpha": 0.0}),
    ("adaptive_kl", {"mu": 0.9}),
]
every_variant = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
CROSS = "cross_entropy"


def _pair(seed: int = 0, rows: int = 5, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, rows, V, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher


@every_variant
def test_slope_is_the_derivative(name: str, options: dict[str, Any]) -> None:
    chosen = divergence(name, **options)
    student, teacher = _pair()
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    (expected,) = torch.autograd.grad(chosen(log_p, log_q).sum(), student, retain_graph=True)
    assert chosen.slope is not None
    slope = chosen.slope(log_p, log_q)
    torch.testing.assert_close(slope - log_q.exp() * slope.sum(-1, keepdim=True), expected, rtol=1e-9, atol=1e-13)
    if not options.get("detach_mixture") and name != "adaptive_kl":  # which hold a part of it constant
        assert torch.autograd.gradcheck(lambda z: chosen(log_p, z.log_softmax(-1)), student)


@every_variant
def test_zero_with_zero_gradient_at_equality_and_never_negative(name: str, options: dict[str, Any]) -> None:
    chosen = divergence(name, **options)
    student, teacher = _pair()
    # Total variation has a kink at equality, which rounding of a shift would miss.
    same = (teacher + (0.0 if name == "total_variation" else 3.0)).requires_grad_()
    values = chosen(teacher.log_softmax(-1), same.log_softmax(-1))
    (gradient,) = torch.autograd.grad(values.sum(), same)
    if name == CROSS:
        p = teacher.softmax(-1)
        torch.testing.assert_close(values, -(p * p.log()).sum(-1))
    else:
        torch.testing.assert_close(values, torch.zeros_like(values), rtol=0, atol=1e-12)
        assert (chosen(teacher.log_softmax(-1), student.log_softmax(-1)) > 0).all()
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


@pytest.mark.parametrize("gap", [35.0, 200.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_variant
def test_finite_when_both_are_sure_of_different_classes(
    name: str, options: dict[str, Any], dtype: torch.dtype, gap: float
) -> None:
    if name == "pearson_chi2" or options.get("beta", 0) < 0:
        return  # grows exponentially with the gap by definition: checked below
    chosen = divergence(name, **options)
    student = torch.tensor([[gap, 0.0, -gap], [0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-gap, 0.0, gap], [gap, -gap, 0.0]], dtype=dtype)
    values = chosen(teacher.log_softmax(-1), student.log_softmax(-1))
    assert torch.isfinite(values).all()
    assert chosen.slope is not None
    assert torch.isfinite(chosen.slope(teacher.log_softmax(-1), student.log_softmax(-1).detach())).all()
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert torch.isfinite(gradient).all()


def test_exponential_divergences_overflow_to_infinity_and_not_to_nan() -> None:
    student, teacher = torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]])
    for chosen in (divergence("pearson_chi2"), divergence("alpha_beta", alpha=0.7, beta=-0.7)):
        assert not torch.isnan(chosen(teacher.log_softmax(-1), student.log_softmax(-1))).any()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.02, 0.98))
def test_bounds_of_the_textbooks(seed: int, weight: float) -> None:
    student, teacher = _pair(seed, scale=8.0)
    log_p, log_q = teacher.log_softmax(-1), student.detach().log_softmax(-1)
    slack = 1 + 1e-9
    for name in ("skew_kl", "skew_rkl"):
        assert (divergence(name, alpha=weight)(log_p, log_q) <= -math.log(weight) * slack).all()
    entropy = -weight * math.log(weight) - (1 - weight) * math.log1p(-weight)
    assert (divergence("jsd", beta=weight)(log_p, log_q) <= entropy * slack).all()
    total = divergence("total_variation")(log_p, log_q)
    assert (total <= slack).all()
    assert (total**2 <= divergence("forward_kl")(log_p, log_q) / 2 + 1e-12).all()  # Pinsker
    assert (divergence("hellinger2")(log_p, log_q) <= 2 * slack).all()


def test_relations_between_them() -> None:
    student, teacher = _pair()
    log_p, log_q = teacher.log_softmax(-1), student.detach().log_softmax(-1)
    value = {name: divergence(name)(log_p, log_q) for name in ("forward_kl", "reverse_kl", "hellinger2")}
    p, q = log_p.exp(), log_q.exp()
    np.testing.assert_allclose(value["forward_kl"], (p * (p / q).log()).sum(-1), rtol=1e-12)
    np.testing.assert_allclose(value["reverse_kl"], (q * (q / p).log()).sum(-1), rtol=1e-12)
    for a, b, other in ((1.0, 0.0, "forward_kl"), (0.0, 1.0, "reverse_kl")):
        torch.testing.assert_close(divergence("alpha_beta", alpha=a, beta=b)(log_p, log_q), value[other])
    squared = 0.5 * (p - q).square().sum(-1)
    torch.testing.assert_close(divergence("alpha_beta", alpha=1.0, beta=1.0)(log_p, log_q), squared)
    torch.testing.assert_close(divergence("alpha", alpha=0.5)(log_p, log_q), 2 * value["hellinger2"])
    for name, limit in (("skew_kl", "forward_kl"), ("skew_rkl", "reverse_kl")):
        torch.testing.assert_close(divergence(name, alpha=1e-9)(log_p, log_q), value[limit], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("beta", [1e-6, 1e-4, 9e-3, 0.9999])
def test_normalised_js_does_not_jump_at_its_ends_but_the_plain_one_does(beta: float, dtype: torch.dtype) -> None:
    """Peers' bug 4: beta 0 gives a KL, beta 0.001 a thousandth of it."""
    student, teacher = (x.detach().to(dtype) for x in _pair(rows=50, scale=1.0))
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    end = divergence("jsd", beta=round(beta), normalized=True)(log_p, log_q)
    near = divergence("jsd", beta=beta, normalized=True)(log_p, log_q)
    edge = min(beta, 1 - beta)
    torch.testing.assert_close(near, end, rtol=0.02 + 60 * edge, atol=1e-3)
    oracle = divergence("jsd", beta=beta, normalized=True)(log_p.double(), log_q.double())
    torch.testing.assert_close(near.double(), oracle, rtol=2e-5, atol=1e-7)
    plain = divergence("jsd", beta=beta)(log_p, log_q)
    assert (plain < 0.2 * end + 1e-3).all()


def test_classes_without_mass_on_both_sides_do_not_count() -> None:
    student, teacher = _pair()
    gone = torch.zeros(V, dtype=torch.bool)
    gone[3] = True
    kept = [c for c in range(V) if c != 3]
    # Negative powers of no mass are not zero, but these classes are the same on both sides.
    negative = [("alpha_beta", {"alpha": -0.3, "beta": 0.8}), ("alpha", {"alpha": -0.5}), ("alpha", {"alpha": 1.7})]
    for name, options in [*VARIANTS, *negative]:
        chosen = divergence(name, **options)
        log_p, log_q = (x.masked_fill(gone, -torch.inf).log_softmax(-1) for x in (teacher, student))
        whole = chosen(log_p, log_q)
        part = chosen(teacher[:, kept].log_softmax(-1), student[:, kept].log_softmax(-1))
        torch.testing.assert_close(whole, part, msg=lambda text, n=name: f"{n}: {text}")
        (gradient,) = torch.autograd.grad(whole.sum(), student, retain_graph=True)
        assert torch.isfinite(gradient).all(), name
        assert chosen.slope is not None
        slope = chosen.slope(log_p, log_q)
        slope = slope - log_q.exp() * slope.sum(-1, keepdim=True)
        torch.testing.assert_close(slope, gradient, rtol=1e-9, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}")


def test_skew_of_nothing_is_reverse_kl_where_students_are_sure_of_what_teachers_rule_out() -> None:
    teacher, student = (torch.tensor([[0.0, x, -x]], dtype=torch.float64).log_softmax(-1) for x in (900.0, -900.0))
    slopes = [divergence(n, **o).slope for n, o in (("skew_rkl", {"alpha": 0.0}), ("reverse_kl", {}))]
    torch.testing.assert_close(*(slope(teacher, student) for slope in slopes if slope is not None))


def test_adaptive_kl_is_forward_kl_where_all_is_head() -> None:
    student, teacher = _pair(rows=200)
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    whole, forward = divergence("adaptive_kl", mu=1.0), divergence("forward_kl")
    torch.testing.assert_close(whole(log_p, log_q), forward(log_p, log_q))


def test_adaptive_kl_halves_where_nothing_differs() -> None:
    teacher = torch.tensor([[2.0, 1.0, 0.0]])
    same = teacher.clone().requires_grad_()
    value = divergence("adaptive_kl")(teacher.log_softmax(-1), same.log_softmax(-1))
    assert torch.isfinite(torch.autograd.grad(value.sum(), same)[0]).all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("forwardkl", {}, "did you mean 'forward_kl'"),
        ("forward_kl", {"alpha": 1}, "has no parameter 'alpha'"),
        ("jsd", {"beta": 1.5}, r"in \[0, 1\]"),
        ("skew_kl", {"alpha": -0.1}, r"in \[0, 1\]"),
    ],
)
def test_wrong_choices_are_refused_by_name(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        divergence(name, **options)


def test_a_divergence_of_ones_own_takes_a_few_lines() -> None:
    @register_divergence("test_quartic")
    def quartic(log_p: Tensor, log_q: Tensor, *, scale: float = 1.0) -> Tensor:
        return scale * (log_p.exp() - log_q.exp()) ** 4

    student, teacher = _pair()
    chosen = divergence("test_quartic", scale=2.0)
    expected = 2 * (teacher.softmax(-1) - student.softmax(-1)).pow(4).sum(-1)
    torch.testing.assert_close(chosen(teacher.log_softmax(-1), student.log_softmax(-1)), expected)
    with pytest.raises(ValueError, match="taken"):
        register_divergence("test_quartic")(lambda log_p, log_q: log_p - log_q)
    with pytest.raises(ValueError, match="default"):

        @register_divergence("test_bare")
        def bare(log_p: Tensor, log_q: Tensor, *, scale: float) -> Tensor:
            return scale * log_p
