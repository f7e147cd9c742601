"""Mixup with a share of its own for each sample, which can leave most samples of a batch as they are."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from limbeck import streams
from limbeck.hyperparameters import Fraction, Positive
from limbeck.signals import Batch
from limbeck.transforms.base import Transform, transform
from limbeck.transforms.mixing import beta, label_probabilities


def blend(values: Tensor, shares: Tensor, partner: Tensor, own: Tensor | None = None) -> Tensor:
    """Returns ``share * values[own] + (1 - share) * values[partner]``, sample by sample.

    Args:
        values: ``[B, ...]``.
        shares: ``[B]`` in [0, 1].
        partner: ``[B]`` which sample is blended in.
        own: ``[B]`` which sample it is blended into; each its own when None.

    Example:
        >>> blend(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.25]), torch.tensor([1, 0]))
        tensor([0.0000, 0.2500])
    """
    weight = shares.to(values.dtype).view(-1, *(1,) * (values.dim() - 1))
    kept = values if own is None else values[own]
    return weight * kept + (1 - weight) * values[partner]


def leave_unmixed(shares: Tensor, chosen: Tensor) -> Tensor:
    """Returns ``shares`` ``[B]`` with 1 at the samples ``chosen``, which may name a sample more than once.

    Example:
        >>> leave_unmixed(torch.tensor([0.3, 0.6, 0.2]), torch.tensor([2, 2]))
        tensor([0.3000, 0.6000, 1.0000])
    """
    return shares.index_fill(0, chosen, 1.0)


@transform(
    "partial_mixup",
    title="Understanding the Role of Mixup in Knowledge Distillation: An Empirical Study",
    authors="Hongjun Choi and Eun Som Jeon and Ankita Shukla and Pavan Turaga",
    paper="2211.03946",
    year=2023,
)
class PartialMixup(Transform):
    """Blends each sample with a partner by a share of its own, and leaves a part of every batch unmixed.

    ``share ~ Beta(alpha, alpha)`` for each sample; inputs of all roles, further views and labels are blended alike, so
    teacher and student see the same. ``unmixed: 0`` is the study's full mixup (FMU), the default its partial one
    (PMU). The authors blend two permutations of the batch; that is the same up to the order of the samples, and here
    each keeps its place and number.

    Args:
        alpha: both parameters of the Beta distribution.
        unmixed: part of a batch that is left as it is.
        with_replacement: draw the samples to leave with replacement, as the authors' code does: then 59 % instead of
            90 % stay unmixed for ``unmixed: 0.9``.
        seed: seed of the run.
        num_classes: number of classes.
    """

    changes: ClassVar[frozenset[str]] = frozenset({"inputs", "labels", "views"})

    def __init__(
        self,
        *,
        alpha: Positive = 1.0,
        unmixed: Fraction = 0.9,
        with_replacement: bool = False,
        seed: int,
        num_classes: int,
    ) -> None:
        super().__init__(seed=seed, num_classes=num_classes)
        self.alpha, self.unmixed, self.with_replacement = alpha, unmixed, with_replacement

    def __call__(self, batch: Batch) -> Batch:
        """Returns the blended batch.

        Raises:
            DataError: the batch has no labels or only some, or the number of classes is not known.
        """
        labels = label_probabilities(batch, self.num_classes, "partial_mixup")
        numbers, epoch = batch["index"].cpu().numpy(), int(batch.get("epoch", 0))
        # The first sample's number makes the batches of an epoch differ.
        purpose = f"partial_mixup/{numbers[0]}"
        order = streams.permutation(self.seed, f"{purpose}/partner", epoch, len(numbers))
        partner = torch.from_numpy(order).to(labels.device)
        shares = torch.tensor([beta(self.alpha, self.seed, f"partial_mixup/{n}", epoch) for n in numbers])
        shares = leave_unmixed(shares, torch.from_numpy(self._left(purpose, epoch, len(numbers)))).to(labels.device)
        mixed = Batch(batch)
        for key, value in batch.items():
            if key == "inputs" or key.endswith("_inputs"):
                mixed[key] = blend(value, shares, partner)
            elif key == "views":
                mixed[key] = {name: blend(view, shares, partner) for name, view in value.items()}
        mixed["labels"] = blend(labels, shares, partner)
        return mixed

    def _left(self, purpose: str, epoch: int, count: int) -> np.ndarray:
        """Returns which samples of a batch of ``count`` stay unmixed."""
        draws = int(count * self.unmixed)
        if self.with_replacement:
            return streams.integers(self.seed, f"{purpose}/left", epoch, np.arange(draws), 1, count)[:, 0]
        return streams.permutation(self.seed, f"{purpose}/left", epoch, count)[:draws]
