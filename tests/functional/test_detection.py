"""Scores that tell two groups apart, against scikit-learn, scipy and loops."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score, roc_curve

from limbeck.functional import detection


def groups(seed: int, *, ties: bool = False, shift: float = 0.7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    positive = torch.randn(173, generator=generator, dtype=torch.float64) + shift
    negative = torch.randn(211, generator=generator, dtype=torch.float64)
    return (positive.mul(2).round(), negative.mul(2).round()) if ties else (positive, negative)


def stacked(positive: torch.Tensor, negative: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]), torch.cat([positive, negative])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_auroc_equals_scikit_learn(seed: int, ties: bool) -> None:
    positive, negative = groups(seed, ties=ties)
    assert detection.auroc(positive, negative).item() == pytest.approx(roc_auc_score(*stacked(positive, negative)))


@pytest.mark.parametrize("ties", [False, True])
def test_rates_lie_on_scikit_learns_curve(ties: bool) -> None:
    positive, negative = groups(3, ties=ties)
    false, true, _ = roc_curve(*stacked(positive, negative), drop_intermediate=False)
    for wanted in (0.5, 0.95, 1.0):
        expected = false[true >= wanted - 1e-12].min()
        assert detection.false_positive_rate(positive, negative, true_positive_rate=wanted).item() == pytest.approx(
            expected
        )
    for allowed in (0.0, 0.01, 0.2):
        expected = true[false <= allowed + 1e-12].max()
        assert detection.true_positive_rate(positive, negative, false_positive_rate=allowed).item() == pytest.approx(
            expected
        )


@pytest.mark.parametrize("ties", [False, True])
def test_best_advantage_is_the_one_sided_kolmogorov_smirnov_distance(ties: bool) -> None:
    positive, negative = groups(4, ties=ties)
    expected = ks_2samp(positive.numpy(), negative.numpy(), alternative="less").statistic
    assert detection.advantage(positive, negative).item() == pytest.approx(expected)
    bar = detection.best_threshold(positive, negative)
    assert detection.advantage(positive, negative, threshold=bar) == detection.advantage(positive, negative)


def test_groups_that_are_apart_or_the_same() -> None:
    high, low = torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])
    assert detection.auroc(high, low) == 1
    assert detection.auroc(low, high) == 0
    assert detection.auroc(low, low) == 0.5
    assert detection.false_positive_rate(high, low) == 0
    assert detection.true_positive_rate(high, low) == 1
    assert detection.advantage(high, low) == 1
    assert detection.advantage(low, low) == 0


def test_auroc_of_a_monotone_map_is_the_same() -> None:
    positive, negative = groups(5)
    assert detection.auroc(positive.exp(), negative.exp()) == detection.auroc(positive, negative)


@pytest.mark.parametrize("wrong", [torch.tensor([]), torch.tensor([float("nan")]), torch.zeros(2, 2)])
def test_useless_scores_are_refused(wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="score"):
        detection.auroc(wrong, torch.ones(3))
    with pytest.raises(ValueError, match="rate"):
        detection.threshold_at(torch.ones(3), 0.0)
