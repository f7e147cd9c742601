"""Preferences against sums in float64 and against the reward that they imply."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.functional.preference import implicit_reward, preference_loss
from limbeck.functional.sequences import sequence_sums


def test_the_loss_is_that_of_bradley_and_terry() -> None:
    margin = torch.linspace(-4, 4, 9, dtype=torch.float64)
    for noise in (0.0, 0.2):
        expected = [
            -(1 - noise) * math.log(1 / (1 + math.exp(-m))) - noise * math.log(1 / (1 + math.exp(m)))
            for m in margin.tolist()
        ]
        found = preference_loss(margin, label_smoothing=noise, reduction="none")
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(preference_loss(torch.zeros(2)), torch.tensor(math.log(2)))
    mask = torch.tensor([1, 0])
    assert preference_loss(torch.tensor([0.0, -9.0]), mask=mask).item() == pytest.approx(math.log(2))


def test_noise_has_its_minimum_where_the_preference_is_as_sure_as_the_labels() -> None:
    margin = torch.tensor(math.log(0.9 / 0.1), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(preference_loss(margin, label_smoothing=0.1), margin)
    assert slope.abs() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_margins_are_finite(dtype: torch.dtype) -> None:
    margin = torch.tensor([-6e4, -1e3, 0.0, 1e3, 6e4], dtype=dtype, requires_grad=True)
    loss = preference_loss(margin, label_smoothing=0.1, reduction="sum")
    loss.backward()
    assert torch.isfinite(loss)
    assert margin.grad is not None
    assert torch.isfinite(margin.grad).all()


def test_the_reference_is_a_constant_and_the_best_policy_has_the_reward() -> None:
    """Of all policies near a reference, the best for a reward implies that reward up to a constant."""
    numbers = torch.Generator().manual_seed(0)
    reward, reference = torch.randn(2, 5, generator=numbers, dtype=torch.float64)
    log_reference = reference.log_softmax(-1).requires_grad_()
    best = (log_reference.detach() + reward / 0.3).log_softmax(-1).requires_grad_()
    found = implicit_reward(best, log_reference, beta=0.3)
    torch.testing.assert_close(found - found[0], reward - reward[0])
    found.sum().backward()
    assert log_reference.grad is None
    assert best.grad is not None


def test_sums_of_sequences_leave_out_what_does_not_count() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, math.nan]])
    assert sequence_sums(values, torch.tensor([[1, 1], [1, 0]])).tolist() == [3.0, 3.0]
