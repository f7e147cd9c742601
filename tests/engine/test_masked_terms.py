"""Sums over masked positions are divided once, by counts of the whole batch, however it is split."""

from __future__ import annotations

import pytest
import torch

from limbeck.engine.combine import part_means, term_means, whole_batch
from limbeck.errors import RecipeError
from limbeck.signals import Batch, Term, Terms


def _batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    mask, other = torch.rand(2, 6, 5, generator=generator) > 0.4
    mask[2] = False  # a sample without a position that counts
    return Batch(
        index=torch.arange(6), mask=mask, rejected_mask=other, x=torch.randn(6, 5, generator=generator).double()
    )


def _terms(batch: Batch) -> Terms:
    values, kept = batch["x"], batch["mask"]
    rows = torch.where(kept, values, 0.0).sum(1) / kept.sum(1).clamp(min=1)
    return {
        "tokens": Term(values, kept),
        "rejected": Term(values**2, batch["rejected_mask"]),
        "sequences": Term(rows, kept.any(1)),
        "plain": rows,
    }


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_parts_add_up_to_the_whole(parts: int) -> None:
    batch = _batch()
    whole = whole_batch(batch, lambda counts: counts)
    expected = term_means(_terms(batch))
    pieces = [part_means(_terms(part), part, whole) for part in batch.split(parts)]
    for name, mean in expected.items():
        torch.testing.assert_close(sum(piece[name] for piece in pieces), mean)


def test_a_mask_of_unknown_count_is_refused() -> None:
    batch = _batch()
    whole = whole_batch(batch, lambda counts: counts)
    with pytest.raises(RecipeError, match="mask of its own"):
        part_means({"odd": Term(batch["x"], batch["x"] > 0)}, batch, whole)
