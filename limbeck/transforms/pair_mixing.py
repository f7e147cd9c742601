"""Mixup and CutMix within pairs of neighbours, which can be replayed from the seeds of the two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from limbeck import streams
from limbeck.errors import DataError
from limbeck.hyperparameters import Fraction, NonNegative
from limbeck.signals import Batch
from limbeck.transforms.base import Transform, transform
from limbeck.transforms.mixing import label_probabilities

_SEEDS = 0x7FFFFFFF


@dataclass(frozen=True)
class PairMix:
    """What happens to a pair.

    Attributes:
        share: each sample's own share as drawn; 1 where nothing is mixed.
        box: top, bottom, left and right of the exchanged rectangle; None for a blend.
    """

    share: float
    box: tuple[int, int, int, int] | None = None

    def apply(self, pair: Tensor) -> Tensor:
        """Returns both pictures ``[2, C, H, W]``, each mixed with the other."""
        if self.share == 1.0:
            return pair
        if self.box is None:
            return pair * self.share + pair.flip(0) * (1.0 - self.share)
        top, bottom, left, right = self.box
        mixed = pair.clone()
        mixed[..., top:bottom, left:right] = pair.flip(0)[..., top:bottom, left:right]
        return mixed

    def kept(self, size: tuple[int, int]) -> float:
        """Returns the share that is really each sample's own, after the rectangle was cut at the border."""
        if self.box is None or self.share == 1.0:
            return self.share
        top, bottom, left, right = self.box
        return 1.0 - (bottom - top) * (right - left) / (size[0] * size[1])


def draw_pair_mix(
    first_seed: int,
    second_seed: int,
    size: tuple[int, int],
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    p: float = 1.0,
    switch: float = 0.5,
) -> PairMix:
    """Draws what happens to a pair, from the exclusive or of its two seeds, in TinyViT's order of draws.

    Args:
        first_seed: seed of one sample's view.
        second_seed: seed of the other's; their order does not matter.
        size: ``(H, W)`` of the pictures.
        mixup_alpha: shape of mixup's Beta distribution; 0 for no mixup.
        cutmix_alpha: shape of CutMix's; 0 for no CutMix.
        p: probability that the pair is mixed.
        switch: probability of CutMix where both are on.
    """
    generator = np.random.Generator(np.random.PCG64(first_seed ^ second_seed))
    if generator.random() >= p or not (mixup_alpha > 0 or cutmix_alpha > 0):
        return PairMix(1.0)
    cut = generator.random() < switch if mixup_alpha > 0 and cutmix_alpha > 0 else cutmix_alpha > 0
    alpha = cutmix_alpha if cut else mixup_alpha
    share = float(generator.beta(alpha, alpha))
    if not cut or share == 1.0:
        return PairMix(share)
    box: list[int] = []
    for length in size:
        half = int(length * float(np.sqrt(1 - share))) // 2
        centre = min(int(generator.random() * length), length - 1)
        box += [max(centre - half, 0), min(centre + half, length)]
    return PairMix(share, (box[0], box[1], box[2], box[3]))


@transform(
    "pair_mix",
    title="TinyViT: Fast Pretraining Distillation for Small Vision Transformers",
    authors="Kan Wu and Jinnian Zhang and Houwen Peng and Mengchen Liu and Bin Xiao and Jianlong Fu and Lu Yuan",
    paper="2207.10666",
    year=2022,
)
class PairMixing(Transform):
    """Mixes samples 2i and 2i + 1 of a batch with each other, by a seed that both together make.

    What happens to a pair depends on these two samples and the epoch alone, not on the rest of the batch, so it is the
    same for every division into batches that keeps pairs together. The last sample of an odd batch stays as it is.

    ``labels`` become class probabilities by the share that is really a sample's own; the authors' share ignores that a
    rectangle is cut at the border, which does no harm where labels are not used.

    Args:
        mixup_alpha: shape of mixup's Beta distribution; 0 for no mixup.
        cutmix_alpha: shape of CutMix's; 0 for no CutMix.
        p: probability that a pair is mixed.
        switch: probability of CutMix where both are on.
        seed: seed of the run.
        num_classes: number of classes.
    """

    changes: ClassVar[frozenset[str]] = frozenset({"inputs", "labels", "views"})

    def __init__(
        self,
        *,
        mixup_alpha: NonNegative = 0.8,
        cutmix_alpha: NonNegative = 1.0,
        p: Fraction = 1.0,
        switch: Fraction = 0.5,
        seed: int,
        num_classes: int,
    ) -> None:
        super().__init__(seed=seed, num_classes=num_classes)
        self._options = {"mixup_alpha": mixup_alpha, "cutmix_alpha": cutmix_alpha, "p": p, "switch": switch}

    def seeds(self, batch: Batch) -> list[int]:
        """Returns a seed for each sample of the batch in its epoch."""
        numbers, epoch = batch["index"].cpu().numpy(), int(batch.get("epoch", 0))
        words = streams.words(self.seed, "pair mixing", epoch, numbers, 1)[:, 0]
        return [int(word) & _SEEDS for word in words]

    def __call__(self, batch: Batch) -> Batch:
        """Returns the mixed batch.

        Raises:
            DataError: the inputs are no pictures, or only some have labels.
        """
        inputs = batch["inputs"]
        if inputs.dim() != 4:
            raise DataError(
                f"pair_mix needs images [batch, channels, height, width], but inputs have shape {tuple(inputs.shape)}"
            )
        size, seeds = (int(inputs.shape[2]), int(inputs.shape[3])), self.seeds(batch)
        pairs = [draw_pair_mix(a, b, size, **self._options) for a, b in zip(seeds[::2], seeds[1::2])]
        mixed = Batch(batch)
        for key, value in batch.items():
            if key == "inputs" or key.endswith("_inputs"):
                mixed[key] = mix_pairs(value, pairs)
            elif key == "views":
                mixed[key] = {name: mix_pairs(view, pairs) for name, view in value.items()}
        if "labels" in batch and self.num_classes:
            known = label_probabilities(batch, self.num_classes, "pair_mix")
            mixed["labels"] = self._labels(known, [pair.kept(size) for pair in pairs])
        return mixed

    def _labels(self, known: Tensor, kept: list[float]) -> Tensor:
        own = torch.tensor([k for k in kept for _ in range(2)], dtype=known.dtype, device=known.device).unsqueeze(1)
        paired = known[: len(own)]
        partner = paired.unflatten(0, (-1, 2)).flip(1).flatten(0, 1) if len(own) else paired
        return torch.cat([paired * own + partner * (1 - own), known[len(own) :]])


def mix_pairs(images: Tensor, pairs: list[PairMix]) -> Tensor:
    """Returns pictures ``[B, C, H, W]`` of which 2i and 2i + 1 are mixed by ``pairs[i]``."""
    mixed = [pair.apply(images[2 * i : 2 * i + 2]) for i, pair in enumerate(pairs)]
    return torch.cat([*mixed, images[2 * len(pairs) :]])
