from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor

from limbeck.functional.head_mixture import mixed_log_probabilities, search_mixture


def _logits(rows: int = 40, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    first, second = (2 * torch.randn(rows, classes, dtype=torch.float64) for _ in range(2))
    return first, second, torch.randint(classes, (rows,))


def test_probabilities_are_mixed_and_sum_to_one() -> None:
    first, second, _ = _logits()
    ours = mixed_log_probabilities(first, second, alpha=0.3, beta=0.5).exp()
    expected = 0.3 * scipy.special.softmax(first.numpy(), 1) + 0.7 * scipy.special.softmax(second.numpy() / 0.5, 1)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12)
    torch.testing.assert_close(ours.sum(1), torch.ones(40, dtype=torch.float64))


def test_the_ends_are_single_classifiers() -> None:
    first, second, _ = _logits()
    only_first = mixed_log_probabilities(first, second, alpha=1.0, beta=3.0)
    torch.testing.assert_close(only_first, torch.log_softmax(first, 1))
    for beta in (0.5, 1.0, 4.0):
        only_second = mixed_log_probabilities(first, second, alpha=0.0, beta=beta)
        assert torch.equal(only_second.argmax(1), second.argmax(1))


def test_extreme_logits_stay_finite() -> None:
    huge = torch.tensor([[3e4, -3e4]], dtype=torch.float16)
    mixed = mixed_log_probabilities(huge, -huge, alpha=0.5, beta=0.5)
    torch.testing.assert_close(mixed.exp(), torch.tensor([[0.5, 0.5]]))


def test_the_search_is_never_worse_than_either_classifier() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        first, second, labels = _logits()
        found = search_mixture(first, second, labels)
        alone = [(z.argmax(1) == labels).double().mean().item() for z in (first, second)]
        assert found.accuracy >= max(alone)
        mixed = mixed_log_probabilities(first, second, alpha=found.alpha, beta=found.beta)
        assert (mixed.argmax(1) == labels).double().mean().item() == found.accuracy


def test_ties_are_broken_as_asked() -> None:
    certain = torch.tensor([[9.0, 0.0]])
    first = search_mixture(certain, certain, torch.tensor([0]))
    central = search_mixture(certain, certain, torch.tensor([0]), ties="central")
    assert (first.alpha, first.beta) == (0.0, 0.5)
    assert (central.alpha, central.beta) == (0.5, 0.5)


@pytest.mark.parametrize("options", [{"alpha": 1.5, "beta": 1.0}, {"alpha": 0.5, "beta": 0.0}])
def test_mixtures_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="should be"):
        mixed_log_probabilities(torch.zeros(1, 2), torch.zeros(1, 2), **options)
