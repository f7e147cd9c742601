"""HARD's mixing augmentor: learns shares and magnitudes of the usual augmentations."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from limbeck.functional.affine_warp import WARP_PARAMETERS, reparameterised, warp, warp_matrices
from limbeck.signals import Batch
from limbeck.transforms.base import transform
from limbeck.transforms.hard import LIMITS
from limbeck.transforms.learnt_augmentation import FIRST_DEVIATION, LearntAugmentation, cap_deviation

OPERATIONS = (*WARP_PARAMETERS, "brightness", "contrast")
"""What is mixed beside the image itself: the warps one by one, then light."""
_LIMITS = (*LIMITS, 0.4, 0.7)


def mixed_operations(images: Tensor, magnitudes: Tensor, shares: Tensor, *, low: Tensor, high: Tensor) -> Tensor:
    """Returns a convex mixture of an image and what single operations make of it.

    Args:
        images: ``[B, C, H, W]``.
        magnitudes: ``[B, K]`` of each operation in :data:`OPERATIONS`; 0 leaves the image as it is. Brightness is a
            part of the range, contrast the logarithm of a factor around the image's mean.
        shares: ``[K + 1]``, of the image itself and of each operation, which sum to one.
        low: smallest possible values, broadcast to the images.
        high: largest possible values.

    Returns:
        ``[B, C, H, W]``, within the range.
    """
    count = len(WARP_PARAMETERS)
    made = [images]
    for number in range(count):
        alone = torch.zeros_like(magnitudes[:, :count])
        alone[:, number] = magnitudes[:, number]
        made.append(warp(images, warp_matrices(alone), outside=low))
    light, contrast = (m.view(-1, 1, 1, 1) for m in magnitudes[:, count:].unbind(1))
    middle = images.mean((1, 2, 3), keepdim=True)
    made += [images + light * (high - low), middle + (images - middle) * contrast.exp()]
    return sum((share * image.clamp(low, high) for share, image in zip(shares, made)), torch.zeros_like(images))


@transform(
    "hard_mix",
    title="HARD: Hard Augmentations for Robust Distillation",
    authors="Arne F. Nix and Max F. Burg and Fabian H. Sinz",
    paper="2305.14890",
    year=2023,
)
class HardMix(LearntAugmentation):
    """Adds ``hard_inputs``: convex mixtures of the usual augmentations, whose shares and magnitudes are trained.

    As ``hard``, with another augmentor: each sample's image is mixed with what rotation, shifts, scaling, shear,
    brightness and contrast make of it one by one, in the way of AugMix. The shares are a softmax that serves all
    samples, the magnitudes come from one normal distribution of each operation.

    Args:
        temperature: divides logits in the augmentor's objective.
        disagreement: weight of the divergence between teacher and student that it seeks.
        drift: weight of the divergence between the teacher's answers to plain and changed inputs that it avoids.
        lr: its learning rate, of Adam.
        lowest: with ``highest``: the augmentor rests until the disagreement falls below this.
        highest: and then trains until it exceeds this.
        most_steps: steps that it may take on one batch while it trains.
        seed: seed of the run.
        num_classes: number of classes.
    """

    def begin(self) -> Mapping[str, Tensor]:
        """Makes the tensors that are trained, and returns them by name."""
        self.preference = torch.zeros(len(OPERATIONS) + 1, requires_grad=True)
        self.mean = torch.zeros(len(OPERATIONS), requires_grad=True)
        self.raw_deviation = torch.full_like(self.mean, FIRST_DEVIATION, requires_grad=True)
        return {"preference": self.preference, "mean": self.mean, "raw_deviation": self.raw_deviation}

    def augment(self, batch: Batch) -> Tensor:
        """Returns the mixtures, with a graph to the augmentor where gradients are on."""
        inputs = batch["inputs"]
        low, high = self.pixel_scale.bounds(inputs)
        magnitudes = reparameterised(self.mean, self.raw_deviation, self.noise(batch, len(OPERATIONS)))
        shares = torch.softmax(self.preference, 0)
        return mixed_operations(
            inputs, magnitudes.to(inputs.device), shares.to(inputs.device),
            low=torch.as_tensor(low).to(inputs), high=torch.as_tensor(high).to(inputs),
        )  # fmt: skip

    def keep_in_range(self) -> None:
        """Keeps magnitudes plausible."""
        limits = torch.tensor(_LIMITS)
        self.mean.clamp_(-limits, limits)
        cap_deviation(self.raw_deviation, limits)
