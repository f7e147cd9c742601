from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy as pytorch_cross_entropy
from torch.nn.functional import one_hot

from limbeck.functional import confidence_weights, cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_indices_and_probabilities_agree_with_pytorch(smoothing: float) -> None:
    logits = torch.randn(6, 5, dtype=torch.float64)
    labels = torch.randint(5, (6,))
    soft = torch.softmax(torch.randn(6, 5, dtype=torch.float64), 1)
    for target in (labels, soft):
        ours = cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
        torch.testing.assert_close(
            ours, pytorch_cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")
        )
    torch.testing.assert_close(cross_entropy(logits, one_hot(labels, 5).double()), cross_entropy(logits, labels))


def test_value_by_hand() -> None:
    logits = np.array([[1.0, 2.0, 0.5]])
    expected = -np.log(np.exp(2.0) / np.exp(logits).sum())
    np.testing.assert_allclose(cross_entropy(torch.from_numpy(logits), torch.tensor([1])), expected, rtol=1e-14)


def test_positions_beyond_the_batch_dimension() -> None:
    logits, labels = torch.randn(2, 3, 4), torch.randint(4, (2, 3))
    ours = cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(ours, pytorch_cross_entropy(logits.transpose(1, 2), labels, reduction="none"))


def test_masked_labels_may_be_invalid() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    labels = torch.tensor([0, -100, 2, 7])
    mask = torch.tensor([True, False, True, False])
    loss = cross_entropy(logits, labels, mask=mask)
    torch.testing.assert_close(loss, pytorch_cross_entropy(logits[[0, 2]], labels[[0, 2]]))
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad[[1, 3]] == 0).all()


def test_class_without_mass_may_be_excluded() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([[0.5, 0.5, 0.0]]))
    torch.testing.assert_close(loss, torch.tensor(np.log(2.0), dtype=torch.float32))
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_soft_labels_get_no_gradient() -> None:
    logits, targets = torch.randn(2, 3, requires_grad=True), torch.rand(2, 3, requires_grad=True)
    cross_entropy(logits, targets).backward()
    assert targets.grad is None


@pytest.mark.parametrize("labels", [torch.zeros(3, dtype=torch.long), torch.zeros(2, 4)])
def test_labels_of_another_shape_are_refused(labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="same shape"):
        cross_entropy(torch.zeros(2, 3), labels)


@pytest.mark.parametrize("smoothing", [-0.1, 1.1])
def test_smoothing_is_checked(smoothing: float) -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        cross_entropy(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), label_smoothing=smoothing)


def test_confidence_weights_are_normalised_largest_probabilities() -> None:
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    largest = np.exp(logits.detach().numpy())
    largest = (largest / largest.sum(1, keepdims=True)).max(1)
    weights = confidence_weights(logits)
    np.testing.assert_allclose(weights, largest / largest.sum(), rtol=1e-12)
    assert not weights.requires_grad
    mask = torch.tensor([True, True, False, True, False])
    kept = confidence_weights(logits.masked_fill(~mask[:, None], torch.nan), mask=mask)
    np.testing.assert_allclose(kept, np.where(mask, largest, 0) / largest[mask].sum(), rtol=1e-12)
