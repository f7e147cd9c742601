from __future__ import annotations

import torch

from limbeck.functional.dark_knowledge import permuted_dark_knowledge


def test_prediction_stays_and_the_rest_is_permuted() -> None:
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    order = torch.stack([torch.randperm(4) for _ in range(6)])
    probabilities = torch.softmax(logits.detach(), 1)
    permuted = permuted_dark_knowledge(logits, order)
    assert not permuted.requires_grad
    for row in range(6):
        top = int(probabilities[row].argmax())
        others = [c for c in range(5) if c != top]
        assert permuted[row, top] == probabilities[row, top]
        for place, c in enumerate(others):
            assert permuted[row, c] == probabilities[row, others[order[row, place]]]


def test_identity_order_changes_nothing() -> None:
    logits = torch.randn(3, 4)
    torch.testing.assert_close(permuted_dark_knowledge(logits, torch.arange(3).expand(3, 3)), torch.softmax(logits, 1))
