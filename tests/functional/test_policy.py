"""Estimates and surrogates by exact enumeration over a small vocabulary."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck.functional.log_divergences import forward_kl, reverse_kl
from limbeck.functional.policy import (
    group_statistics,
    kl_estimate,
    mixed_sampler_log_weight,
    policy_surrogate,
    reward_to_go,
    whitened,
)
from limbeck.functional.sequences import opening, sequence_means, spread_hits, top_fraction

V = 6


def _policies() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    student, teacher = torch.randn(2, V, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher


def _expected_gradient(kind: str) -> Tensor:
    """Sum over all tokens of q(v) times the gradient of the estimate for v."""
    student, teacher = _policies()
    log_q = student.log_softmax(-1)
    losses = kl_estimate(log_q, teacher.log_softmax(-1), kind=kind)  # type: ignore[arg-type]
    return torch.autograd.grad((log_q.exp().detach() * losses).sum(), student)[0]


def test_what_each_estimate_teaches() -> None:
    """Peers' bug 18: k1 as a loss teaches nothing; and k3 teaches the forward KL."""
    student, teacher = _policies()
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    reverse = torch.autograd.grad(reverse_kl(log_p, log_q).sum(), student, retain_graph=True)[0]
    forward = torch.autograd.grad(forward_kl(log_p, log_q).sum(), student, retain_graph=True)[0]
    torch.testing.assert_close(_expected_gradient("k2"), reverse)
    torch.testing.assert_close(_expected_gradient("k3"), forward)
    torch.testing.assert_close(_expected_gradient("k1"), torch.zeros(V, dtype=torch.float64), rtol=0, atol=1e-14)
    for kind in ("k1", "k3"):
        values = (log_q.exp() * kl_estimate(log_q, log_p, kind=kind)).sum()  # type: ignore[arg-type]
        torch.testing.assert_close(values, reverse_kl(log_p, log_q).sum())
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(log_q, log_p, kind="k4")  # type: ignore[arg-type]


def test_the_log_ratio_as_advantage_has_the_gradient_of_reverse_kl() -> None:
    """Peers' bug 17: a divergence over the vocabulary as advantage of every token alike has none."""
    student, teacher = _policies()
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    advantage = (log_p - log_q).detach()
    surrogate = policy_surrogate(log_q.unsqueeze(0), [(log_q.unsqueeze(0), 1.0)], advantage.unsqueeze(0), clip=None)
    loss = -(log_q.exp().detach() * surrogate.objective[0]).sum()
    (ours,) = torch.autograd.grad(loss, student, retain_graph=True)
    (exact,) = torch.autograd.grad(reverse_kl(log_p, log_q).sum(), student)
    torch.testing.assert_close(ours, exact)
    torch.testing.assert_close(loss.detach(), reverse_kl(log_p, log_q).sum().detach())


def test_groups_are_normalised_each_by_itself() -> None:
    rewards = torch.tensor([1.0, 0.0, 3.0, 3.0, 7.0])
    groups = torch.tensor([4, 4, 9, 9, 0])
    found = group_statistics(rewards, groups)
    torch.testing.assert_close(found.advantage[:2], torch.tensor([1.0, -1.0]) / 2**0.5, rtol=1e-5, atol=0)
    assert (found.advantage[2:] == 0).all()
    assert found.best.tolist() == [1.0, 1.0, 3.0, 3.0, 7.0]
    shuffled = torch.tensor([3, 0, 4, 1, 2])
    again = group_statistics(rewards[shuffled], groups[shuffled])
    torch.testing.assert_close(again.advantage, found.advantage[shuffled])


def test_ratios_are_clipped_on_the_side_that_would_go_on() -> None:
    log_q = torch.log(torch.tensor([[2.0, 2.0, 0.5, 0.5]])).requires_grad_()
    old, advantage = torch.zeros(1, 4), torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    found = policy_surrogate(log_q, [(old, 1.0)], advantage, clip=0.2)
    torch.testing.assert_close(found.objective, torch.tensor([[1.2, -2.0, 0.5, -0.8]]))
    assert found.clipped.tolist() == [[True, False, False, True]]
    (gradient,) = torch.autograd.grad(found.objective.sum(), log_q)
    assert (gradient[found.clipped] == 0).all()
    assert (gradient[~found.clipped] != 0).all()


def test_teacher_in_the_trust_region_is_grpo_where_it_is_the_sampler() -> None:
    student, teacher = _policies()
    log_q, old = student.log_softmax(-1).unsqueeze(0), teacher.log_softmax(-1).unsqueeze(0)
    grpo = policy_surrogate(log_q, [(old, 1.0)], torch.ones(1))
    for alpha in (0.0, 0.3, 1.0):
        mixed = policy_surrogate(log_q, [(old, alpha), (old, 1 - alpha)], torch.ones(1))
        torch.testing.assert_close(mixed.objective, grpo.objective)


def test_extreme_log_probabilities_stay_finite() -> None:
    log_q = torch.tensor([[0.0, -60.0, -1e4]], requires_grad=True)
    anchors = [(torch.tensor([[-1e4, 0.0, 0.0]]), 1.0)]
    found = policy_surrogate(log_q, anchors, -torch.ones(1))
    assert torch.isfinite(found.objective).all()
    assert torch.isfinite(torch.autograd.grad(found.objective.sum(), log_q)[0]).all()
    assert torch.isfinite(kl_estimate(log_q, anchors[0][0], kind="k3")).all()


def test_rewards_to_go_discount_and_stop_at_the_mask() -> None:
    rewards, mask = torch.tensor([[1.0, 2.0, 4.0, 9.0]]), torch.tensor([[1, 1, 1, 0]])
    assert reward_to_go(rewards, mask).tolist() == [[7.0, 6.0, 4.0, 0.0]]
    assert reward_to_go(rewards, mask, discount=0.5).tolist() == [[3.0, 4.0, 4.0, 0.0]]
    assert reward_to_go(rewards, mask, discount=0.0).tolist() == [[1.0, 2.0, 4.0, 0.0]]
    assert reward_to_go(rewards, mask, length_normalized=True)[0].tolist() == pytest.approx([7 / 3, 3.0, 4.0, 0.0])


def test_whitening_counts_tokens_only_unless_told_otherwise() -> None:
    values, mask = torch.tensor([[1.0, 3.0, 500.0]]), torch.tensor([[1, 1, 0]])
    found = whitened(values, mask=mask)[mask.bool()]
    torch.testing.assert_close(found, torch.tensor([-1.0, 1.0]) / 2**0.5)
    assert whitened(values).abs().max() < 1.2
    assert (whitened(values[:, :1]) == 0).all()


def test_tokens_of_a_mixture_are_weighted_by_who_drew_them() -> None:
    student, teacher = _policies()
    log_q, log_p = student.detach().log_softmax(-1), teacher.log_softmax(-1)
    weight = mixed_sampler_log_weight(log_q, log_p, teacher_share=0.3).exp()
    mixture = 0.7 * log_q.exp() + 0.3 * log_p.exp()
    torch.testing.assert_close((mixture * weight), log_q.exp())
    assert (mixed_sampler_log_weight(log_q, log_p, teacher_share=0.0) == 0).all()


def test_selections_keep_to_the_mask_and_to_each_sequence() -> None:
    weights = torch.tensor([[9.0, 1.0, 1.0, 2.0], [0.0, 9.0, 0.0, 0.0]])
    mask = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 0]]).bool()
    assert opening(weights, mask, fraction=0.5).tolist() == [[False, True, True, False], [False] * 4]
    assert opening(weights, mask, fraction=1.0).tolist() == mask.tolist()
    assert top_fraction(weights, mask, fraction=0.3).tolist() == [[False, False, False, True], [False] * 4]
    assert top_fraction(weights, mask, fraction=1.0).tolist() == mask.tolist()
    assert sequence_means(weights, mask).tolist() == pytest.approx([4 / 3, 0.0])
    assert spread_hits(torch.tensor([[1.0, 0.0, 0.0]]), decay=0.0).tolist() == [[1.0, 0.0, 0.0]]
