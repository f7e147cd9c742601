from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck.functional import align_gradients


def _flat(gradients: list[Tensor | None]) -> Tensor:
    return torch.cat([g.reshape(-1) for g in gradients if g is not None])


def _pair(sign: float) -> tuple[list[Tensor], list[Tensor]]:
    firm = [torch.randn(3, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
    yielding = [torch.randn_like(g) + sign * g for g in firm]
    return firm, yielding


def test_gradients_that_agree_are_added() -> None:
    firm, yielding = _pair(3.0)
    torch.testing.assert_close(_flat(align_gradients(firm, yielding)), _flat([*firm]) + _flat([*yielding]))


def test_the_second_loses_its_component_along_the_first() -> None:
    firm, yielding = _pair(-3.0)
    first, second = _flat([*firm]), _flat([*yielding])
    assert first @ second < 0
    merged = _flat(align_gradients(firm, yielding))
    torch.testing.assert_close(merged, first + second - (first @ second) / (first @ first) * first)
    torch.testing.assert_close(merged @ first, first @ first)


def test_what_only_one_loss_reaches() -> None:
    firm: list[Tensor | None] = [torch.tensor([1.0]), torch.tensor([2.0]), None, None]
    yielding: list[Tensor | None] = [torch.tensor([-5.0]), None, torch.tensor([3.0]), None]
    shared, own, other, neither = align_gradients(firm, yielding)
    # The inner product is -5, the first one's squared norm 5: it is added once more.
    assert shared == torch.tensor([-3.0])
    assert own == torch.tensor([4.0])
    assert other == torch.tensor([3.0])
    assert neither is None


def test_a_first_gradient_of_zero_changes_nothing() -> None:
    assert torch.equal(align_gradients([torch.zeros(2)], [torch.ones(2)])[0], torch.ones(2))  # type: ignore[arg-type]


def test_both_have_the_same_parameters() -> None:
    with pytest.raises(ValueError, match="zip"):
        align_gradients([torch.zeros(2)], [])
