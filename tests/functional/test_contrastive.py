from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.functional import log_partition, memory_scores, noise_contrastive


def _by_formula(scores: Tensor, z: float, population: int, eps: float) -> np.ndarray:
    """The published expression, exponentials and all."""
    h = np.exp(scores.detach().numpy()) / z
    noise = (scores.shape[1] - 1) / population
    positive = np.log(h[:, 0] / (h[:, 0] + noise + eps))
    return -(positive + np.log(noise / (h[:, 1:] + noise + eps)).sum(1))


@pytest.mark.parametrize("eps", [0.0, 1e-7, 0.1])
def test_loss_is_the_published_expression(eps: float) -> None:
    scores = (3 * torch.randn(4, 6, dtype=torch.float64)).requires_grad_()
    z = 250.0
    ours = noise_contrastive(
        scores, torch.tensor(z, dtype=torch.float64).log(), population=40, eps=eps, reduction="none"
    )
    np.testing.assert_allclose(ours.detach(), _by_formula(scores, z, 40, eps), rtol=1e-9)


def test_normaliser_is_population_times_mean() -> None:
    scores = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    z = log_partition(scores, population=100)
    np.testing.assert_allclose(z.exp().item(), 100 * np.exp(scores.detach().numpy()).mean(), rtol=1e-12)
    assert not z.requires_grad


@pytest.mark.parametrize("memory_rows", [20, 500])
def test_scores_are_scaled_products_with_chosen_rows(memory_rows: int) -> None:
    # Few rows are multiplied as a whole, many are gathered; both ways must agree with the definition.
    embedding = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(memory_rows, 4, dtype=torch.float64, requires_grad=True)
    index = torch.randint(memory_rows, (3, 5))
    scores = memory_scores(embedding, memory, index, temperature=0.5)
    for b in range(3):
        for k in range(5):
            expected = 2 * (embedding[b] @ memory[index[b, k]])
            torch.testing.assert_close(scores[b, k], expected)
    scores.sum().backward()
    assert embedding.grad is not None
    assert memory.grad is None


@pytest.mark.parametrize("scale", [1e3, 1e5])
def test_extreme_scores_stay_finite(scale: float) -> None:
    scores = (scale * torch.tensor([[-1.0, 1.0, 0.3], [1.0, -1.0, -1.0]])).requires_grad_()
    loss = noise_contrastive(scores, torch.tensor(0.0), population=10)
    loss.backward()
    assert loss.isfinite()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_a_found_positive_costs_little_and_a_missed_one_much() -> None:
    z = torch.tensor(0.0)
    found = noise_contrastive(torch.tensor([[30.0, -30.0, -30.0]]), z, population=10)
    missed = noise_contrastive(torch.tensor([[-30.0, 30.0, -30.0]]), z, population=10)
    assert found < 1e-6
    assert missed > 50


def test_contrast_without_negatives_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        noise_contrastive(torch.zeros(2, 1), torch.tensor(0.0), population=5)
