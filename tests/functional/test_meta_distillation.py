from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import pytest
import torch
from torch import Tensor

from limbeck.functional.divergences import kl_of_log_probabilities
from limbeck.functional.meta_distillation import (
    anchored_step,
    closed_form,
    contraction,
    floored,
    meta_distillation_chain,
    mix_log_probabilities,
)
from limbeck.methods.base import build_method
from limbeck.signals import Batch, Signals, as_term

KINDS: tuple[Literal["linear", "geometric"], ...] = ("linear", "geometric")
both = pytest.mark.parametrize("kind", KINDS)


def _distributions(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(2 * torch.randn(shape, generator=generator, dtype=torch.float64), -1)


@both
@pytest.mark.parametrize("anchor", [0.1, 0.5, 0.9])
def test_divergence_contracts_and_generations_have_a_closed_form(kind: str, anchor: float) -> None:
    start, base = _distributions(20, 7), _distributions(20, 7, seed=1)
    chain = meta_distillation_chain(start, base, anchor=anchor, generations=6, kind=kind)  # type: ignore[arg-type]
    assert (contraction(chain.divergence) <= 1 - anchor + 1e-9).all()
    assert (chain.reverse.diff(dim=0) <= 1e-12).all()
    direct = closed_form(start, base, anchor=anchor, generation=6, kind=kind)  # type: ignore[arg-type]
    torch.testing.assert_close(chain.log_probabilities[-1], direct)


@both
def test_the_fixed_point_is_unique_and_an_anchor_of_one_reaches_it_at_once(kind: str) -> None:
    base = _distributions(5, 4, seed=1)
    ends = [
        meta_distillation_chain(_distributions(5, 4, seed=s), base, anchor=0.3, generations=90, kind=kind)  # type: ignore[arg-type]
        for s in (2, 3)
    ]
    for end in ends:
        torch.testing.assert_close(end.log_probabilities[-1], base)
    at_once = anchored_step(_distributions(5, 4), base, anchor=1.0, kind=kind)  # type: ignore[arg-type]
    torch.testing.assert_close(at_once, base)


def test_a_lossy_student_stays_within_the_hard_bound() -> None:
    base, start = _distributions(30, 6), _distributions(30, 6, seed=1)
    for student in (
        lambda p: torch.log_softmax(p + _distributions(6, seed=4), -1),
        lambda p: torch.log_softmax(50 * p, -1),
        lambda p: p.roll(1, -1),
    ):
        chain = meta_distillation_chain(start, base, anchor=0.2, generations=30, student=student)
        assert (chain.divergence[1:] <= -math.log(0.2) + 1e-9).all()
        free = meta_distillation_chain(start, base, anchor=0.0, generations=30, student=student)
        assert free.divergence[-1].mean() > chain.divergence[-1].mean()


@both
def test_axioms(kind: Literal["linear", "geometric"]) -> None:
    teachers, weights = _distributions(3, 4, 6), torch.tensor([0.5, 0.2, 0.3])
    mixture = mix_log_probabilities(teachers, weights, kind=kind)
    torch.testing.assert_close(mixture.exp().sum(-1), torch.ones(4, dtype=torch.float64))
    same = mix_log_probabilities(teachers[:1].expand(3, -1, -1), weights, kind=kind)
    torch.testing.assert_close(same, teachers[0])
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(mix_log_probabilities(teachers[order], weights[order], kind=kind), mixture)
    classes = torch.randperm(6)
    torch.testing.assert_close(mix_log_probabilities(teachers[..., classes], weights, kind=kind), mixture[..., classes])
    far = _distributions(4, 6, seed=9)
    divergences = [
        kl_of_log_probabilities(mixture, anchored_step(far, mixture, anchor=a, kind=kind)).mean()
        for a in (0.0, 0.2, 0.5, 0.8)
    ]
    assert all(b < a for a, b in pairwise(divergences))


def test_exact_zeros_are_kept_linearly_and_refused_geometrically() -> None:
    certain = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.25, 0.25]], dtype=torch.float64).log()
    halves = torch.tensor([0.5, 0.5])
    mixed = mix_log_probabilities(certain, halves).exp()
    torch.testing.assert_close(mixed, torch.tensor([0.25, 0.625, 0.125], dtype=torch.float64))
    with pytest.raises(ValueError, match="floored"):
        mix_log_probabilities(certain, halves, kind="geometric")
    lifted = floored(certain, floor=1e-6)
    assert torch.isfinite(mix_log_probabilities(lifted, halves, kind="geometric")).all()
    torch.testing.assert_close(lifted.exp().sum(-1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("weights", [[0.5, 0.4], [1.5, -0.5], [1.0]])
def test_weights_that_are_no_distribution_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        mix_log_probabilities(_distributions(2, 3), torch.tensor(weights))


@both
def test_the_training_loss_is_least_at_the_operator(kind: Literal["linear", "geometric"]) -> None:
    teacher, parent = _distributions(4, 5), _distributions(4, 5, seed=1)
    best = anchored_step(parent, teacher, anchor=0.3, kind=kind).requires_grad_()
    method = build_method("recursive_meta_distillation", anchor=0.3, kind=kind)
    said = {"teacher": Signals(logits=teacher), "parent": Signals(logits=parent)}

    def loss(logits: Tensor) -> Tensor:
        terms = method(Batch(index=torch.arange(4)), student=Signals(logits=logits), **said)
        return torch.stack([method.weights[n] * as_term(t).mean() for n, t in terms.items()]).sum()  # type: ignore[operator]

    (gradient,) = torch.autograd.grad(loss(best), best)
    assert gradient.abs().max() < 1e-12
    for seed in range(5):
        assert loss(best + 0.1 * torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))) > loss(best)
