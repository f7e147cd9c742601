from __future__ import annotations

import pytest
import torch

from limbeck.functional.classification import cross_entropy
from limbeck.functional.focal import average_logits, average_probabilities, balanced_class_weights, focal_cross_entropy

LOGITS = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 0, 0])
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)


def test_without_focus_it_is_the_weighted_cross_entropy_over_the_number_of_samples() -> None:
    expected = WEIGHTS[LABELS] * cross_entropy(LOGITS, LABELS, reduction="none")
    for released in (False, True):
        loss = focal_cross_entropy(LOGITS, LABELS, gamma=0, class_weights=WEIGHTS, weighted_focus=released)
        torch.testing.assert_close(loss, expected.mean())
    torchs = torch.nn.functional.cross_entropy(LOGITS, LABELS, weight=WEIGHTS)
    assert not torch.isclose(expected.mean(), torchs)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_both_readings_of_the_focus(gamma: float) -> None:
    p = torch.softmax(LOGITS, 1).gather(1, LABELS[:, None])[:, 0]
    w = WEIGHTS[LABELS]
    plain = focal_cross_entropy(LOGITS, LABELS, gamma=gamma, class_weights=WEIGHTS, reduction="none")
    torch.testing.assert_close(plain, -w * (1 - p) ** gamma * p.log())
    released = focal_cross_entropy(
        LOGITS, LABELS, gamma=gamma, class_weights=WEIGHTS, weighted_focus=True, reduction="none"
    )
    torch.testing.assert_close(released, -w * (1 - p**w) ** gamma * p.log())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_certain_predictions_have_finite_gradients(gamma: float, dtype: torch.dtype) -> None:
    logits = torch.tensor([[300.0, 0.0], [-300.0, 0.0], [0.0, 0.0]], dtype=dtype, requires_grad=True)
    loss = focal_cross_entropy(logits, torch.tensor([0, 0, 1]), gamma=gamma)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_balanced_weights_make_classes_count_alike() -> None:
    weights = balanced_class_weights(LABELS, 5)
    counts = torch.bincount(LABELS, minlength=5)
    assert (weights * counts)[:4].allclose(torch.tensor(6 / 5))
    assert weights[4] == 0


def test_averages() -> None:
    views = torch.stack([LOGITS, 2 * LOGITS])
    torch.testing.assert_close(average_logits(views), 1.5 * LOGITS)
    torch.testing.assert_close(average_probabilities(views).sum(1), torch.ones(6, dtype=torch.float64))
    assert not torch.allclose(average_probabilities(views), torch.softmax(average_logits(views), 1))
    with pytest.raises(ValueError, match="gamma"):
        focal_cross_entropy(LOGITS, LABELS, gamma=-1)


def test_mixed_labels_are_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="needs class indices; soft labels"):
        focal_cross_entropy(LOGITS, torch.softmax(LOGITS, 1))
