"""MixDistribution: copies of images in the style of other images."""

from __future__ import annotations

from typing import ClassVar

import torch

from limbeck import streams
from limbeck.errors import DataError
from limbeck.functional.web_images import mix_distributions
from limbeck.hyperparameters import Positive
from limbeck.signals import Batch
from limbeck.transforms.base import Transform, transform
from limbeck.transforms.mixing import beta


@transform(
    "mix_distribution",
    title="Distribution Shift Matters for Knowledge Distillation with Webly Collected Images",
    authors="Jialiang Tang and Shuo Chen and Gang Niu and Masashi Sugiyama and Chen Gong",
    paper="2307.11469",
    year=2023,
)
class MixDistribution(Transform):
    """Adds ``mixed_inputs``: each image with means and deviations of its channels between its own and another's.

    Args:
        alpha: both parameters of the Beta distribution that an image's own share comes from.
        seed: seed of the run.
        num_classes: number of classes.
    """

    changes: ClassVar[frozenset[str]] = frozenset({"mixed_inputs"})

    def __init__(self, *, alpha: Positive = 0.1, seed: int, num_classes: int) -> None:
        super().__init__(seed=seed, num_classes=num_classes)
        self.alpha = alpha

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch with ``mixed_inputs``.

        Raises:
            DataError: the inputs are no pictures.
        """
        inputs = batch["inputs"]
        if inputs.dim() != 4:
            raise DataError(
                f"mix_distribution needs images [batch, channels, height, width], not {tuple(inputs.shape)}"
            )
        numbers, epoch = batch["index"].cpu().numpy(), int(batch.get("epoch", 0))
        order = streams.permutation(self.seed, f"mix_distribution/{numbers[0]}", epoch, len(numbers))
        shares = [beta(self.alpha, self.seed, f"mix_distribution/{n}", epoch) for n in numbers]
        partner = torch.from_numpy(order).to(inputs.device)
        return Batch(batch, mixed_inputs=mix_distributions(inputs, partner, torch.tensor(shares, device=inputs.device)))
