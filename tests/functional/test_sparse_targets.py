"""Truncated and sampled targets: exact where they can be, honest where they cannot."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck.functional.divergence_registry import divergence, divergence_names
from limbeck.functional.log_divergences import forward_kl
from limbeck.functional.sampled_targets import Draws, SampledRule, draw_classes, importance_weights
from limbeck.functional.sparse_targets import TopKRule, divergence_bounds, top_k, top_k_loss
from limbeck.functional.token_losses import Rule, Scores

V = 12
CONVEX = [n for n in divergence_names() if divergence(n).convex]


def _pair(rows: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    student, teacher = 2 * torch.randn(2, rows, V, generator=generator, dtype=torch.float64)
    return student, teacher


def _value(rule: Rule, student: Tensor, *targets: Tensor) -> Tensor:
    return rule.values(Scores(student), *targets)


@pytest.mark.parametrize("k", [1, 3, V])
@pytest.mark.parametrize("name", CONVEX)
def test_bounds_hold_the_truth(name: str, k: int) -> None:
    student, teacher = _pair()
    truth = divergence(name)(teacher.log_softmax(-1), student.log_softmax(-1))
    kept = top_k(teacher, k)
    bounds = divergence_bounds(divergence(name), student, kept.logprobs, kept.indices, kept.tail)
    assert (bounds.lower <= truth + 1e-9).all()
    assert (truth <= bounds.upper + 1e-9).all()
    assert (bounds.lower >= -1e-12).all()
    if k == V:
        torch.testing.assert_close(bounds.lower, truth)
        torch.testing.assert_close(bounds.upper, truth)


def test_bounds_are_refused_where_they_would_not_hold() -> None:
    student, teacher = _pair()
    kept = top_k(teacher, 3)
    with pytest.raises(ValueError, match="convex"):
        divergence_bounds(divergence("adaptive_kl"), student, kept.logprobs, kept.indices, kept.tail)


@pytest.mark.parametrize("name", divergence_names())
def test_closed_form_of_the_tail_reading_is_the_derivative(name: str) -> None:
    student, teacher = _pair()
    for k in (1, 4, V):
        kept = top_k(teacher, k)
        rule = TopKRule(divergence(name), temperature=1.7)
        ours = rule.gradient(Scores(student), kept.logprobs, kept.indices, kept.tail)
        theirs = Rule.gradient(rule, Scores(student), kept.logprobs, kept.indices, kept.tail)
        for mine, other in zip(ours, theirs):
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("reading", ["tail", "both_renormalized"])
def test_zero_loss_and_gradient_at_equality(reading: str) -> None:
    """Peers' bugs 20 and 21: a loss and a gradient left where student and teacher agree."""
    _, teacher = _pair()
    kept = top_k(teacher, 3)
    for name in ("forward_kl", "reverse_kl", "jsd"):
        rule = top_k_loss(divergence(name), kept.logprobs, kept.indices, kept.tail, reading=reading).rule
        values, gradient = rule.gradient(Scores(teacher + 4.0), kept.logprobs, kept.indices, kept.tail)
        torch.testing.assert_close(values, torch.zeros_like(values), rtol=0, atol=1e-12)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_the_tail_sees_mass_that_leaves_and_renormalising_does_not(name: str) -> None:
    """Peers' bugs 14 and 16: mass moved outside the kept classes costs nothing, or is even rewarded."""
    _, teacher = _pair()
    kept = top_k(teacher, 3)
    leaving = (teacher + 8.0).scatter(-1, kept.indices, teacher.gather(-1, kept.indices))
    targets = (kept.logprobs, kept.indices, kept.tail)
    tail, blind = (TopKRule(divergence(name), reading) for reading in ("tail", "both_renormalized"))
    assert (_value(tail, leaving, *targets) > 0.1).all()
    torch.testing.assert_close(_value(blind, leaving, *targets), torch.zeros(40, dtype=torch.float64))


def test_the_tail_reading_is_never_negative_but_the_raw_one_is() -> None:
    """Peers' bug 15: a truncated divergence below zero, then clamped."""
    student, teacher = _pair(400)
    kept = top_k(teacher, 2)
    targets = (kept.logprobs, kept.indices, kept.tail)
    assert (_value(TopKRule(divergence("forward_kl")), student, *targets) >= 0).all()
    assert (_value(TopKRule(divergence("forward_kl"), "raw"), student, *targets) < 0).any()


def test_a_student_without_a_tail_and_a_teacher_without_one_stay_finite() -> None:
    teacher = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
    student = teacher.clone()
    student[:, 2] = -torch.inf
    kept = top_k(teacher, 2)
    rule = TopKRule(divergence("jsd"))
    values, gradient = rule.gradient(Scores(student), kept.logprobs, kept.indices, kept.tail)
    assert torch.isfinite(values).all()
    assert torch.isfinite(gradient).all()


def test_another_temperature_than_the_stored_one_is_refused() -> None:
    """Peers' bug 20: the tail raised to a power as if it were one class."""
    _, teacher = _pair()
    kept = top_k(teacher, 3)
    with pytest.raises(ValueError, match="store them at that temperature"):
        top_k_loss(divergence("forward_kl"), kept.logprobs, kept.indices, kept.tail, temperature=2.0)


@pytest.mark.parametrize("reading", ["raw", "teacher_renormalized", "label_residual"])
def test_readings_that_leave_classes_out_are_refused_for_other_divergences(reading: str) -> None:
    _, teacher = _pair()
    kept = top_k(teacher, 3)
    with pytest.raises(ValueError, match="reading 'tail'"):
        top_k_loss(divergence("reverse_kl"), kept.logprobs, kept.indices, kept.tail, reading=reading)  # type: ignore[arg-type]


def test_the_tail_is_summed_and_not_left_over() -> None:
    logits = torch.tensor([[40.0, 0.0, -1.0]])
    kept = top_k(logits, 1)
    expected = (logits.double()[:, 1:].logsumexp(-1) - logits.double().logsumexp(-1)).float()
    torch.testing.assert_close(kept.tail, expected)
    torch.testing.assert_close(kept.logprobs + kept.logsumexp.unsqueeze(-1), logits[:, :1])
    with pytest.raises(ValueError, match="between 1 and the 3 classes"):
        top_k(logits, 4)


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_sampled_targets_are_unbiased(power: float) -> None:
    _, teacher = _pair(2)
    many = teacher.repeat(20000, 1)
    draws = draw_classes(many, 20, power=power, generator=torch.Generator().manual_seed(0))
    assert (draws.counts.sum(-1) == 20).all()
    weights = importance_weights(many, draws, power=power)
    target = torch.zeros(len(many), V, dtype=torch.float64).scatter_add(-1, draws.indices, weights)
    mean = target.view(-1, 2, V).mean(0)
    error = target.view(-1, 2, V).std(0) / 20000**0.5
    assert ((mean - teacher.softmax(-1)).abs() < 5 * error + 1e-6).all()


def test_draws_hold_each_class_once_and_are_reproducible() -> None:
    _, teacher = _pair()
    first = draw_classes(teacher, 50, generator=torch.Generator().manual_seed(3))
    again = draw_classes(teacher, 50, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first.indices, again.indices)
    for ids, counts in zip(first.indices, first.counts):
        real = ids[counts > 0]
        assert len(real.unique()) == len(real)
    with pytest.raises(ValueError, match="at least 1"):
        draw_classes(teacher, 0)


def test_gradient_of_fifty_draws_a_token_points_where_the_whole_distribution_does() -> None:
    """Over a batch the angle to full distillation is below five degrees, and that of the largest classes is not."""
    generator = torch.Generator().manual_seed(1)
    contexts, repeats, classes = 8, 200, 400
    ranks = torch.arange(1, classes + 1, dtype=torch.float64).log()
    orders = torch.stack([torch.randperm(classes, generator=generator) for _ in range(contexts)])
    teacher = (-1.2 * ranks[orders]).repeat_interleave(repeats, 0)
    noise = torch.randn(contexts, classes, generator=generator, dtype=torch.float64)
    student = teacher + noise.repeat_interleave(repeats, 0)
    states = torch.randn(contexts, 16, generator=generator, dtype=torch.float64).repeat_interleave(repeats, 0)
    full = student.softmax(-1) - teacher.softmax(-1)

    def angle(rule: Rule, *targets: Tensor) -> float:
        _, sparse = rule.gradient(Scores(student), *targets)
        a, b = (states.T @ g for g in (sparse, full))
        return float(torch.rad2deg(torch.arccos((a * b).sum() / (a.norm() * b.norm()))))

    draws: Draws = draw_classes(teacher, 50, generator=generator)
    kept = top_k(teacher, draws.indices.shape[-1])
    assert angle(SampledRule(), draws.indices, importance_weights(teacher, draws)) < 5
    renormalised = TopKRule(divergence("forward_kl"), "teacher_renormalized")
    assert angle(renormalised, kept.logprobs, kept.indices, kept.tail) > 5


def test_cross_entropy_of_draws_is_that_of_their_shares() -> None:
    student, teacher = _pair()
    draws = draw_classes(teacher, 30, generator=torch.Generator().manual_seed(0))
    weights = importance_weights(teacher, draws)
    shares = torch.zeros_like(teacher).scatter_add(-1, draws.indices, weights)
    entropy = -(shares * shares.clamp(min=1e-300).log()).sum(-1)
    ours = SampledRule().values(Scores(student), draws.indices, weights)
    torch.testing.assert_close(ours, forward_kl(shares.log(), student.log_softmax(-1)).sum(-1) + entropy)
    mine = SampledRule().gradient(Scores(student), draws.indices, weights)[1]
    torch.testing.assert_close(mine, student.softmax(-1) - shares)
