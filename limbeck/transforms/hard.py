"""HARD's affine augmentor: learns warps on which student and teacher disagree."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from limbeck.functional.affine_warp import WARP_PARAMETERS, reparameterised, warp, warp_matrices
from limbeck.signals import Batch
from limbeck.transforms.base import transform
from limbeck.transforms.learnt_augmentation import FIRST_DEVIATION, LearntAugmentation, cap_deviation

LIMITS = (0.3, 0.6, 0.6, 0.2, 0.3)
"""How far means and deviations may go, in the order of the warp's parameters."""


@transform(
    "hard",
    title="HARD: Hard Augmentations for Robust Distillation",
    authors="Arne F. Nix and Max F. Burg and Fabian H. Sinz",
    paper="2305.14890",
    year=2023,
)
class HardAugmentation(LearntAugmentation):
    """Adds ``hard_inputs``: the batch under affine warps that are trained to make student and teacher disagree.

    One normal distribution of rotation, shift, scale and shear serves all samples; its means and deviations are
    trained through both models, which are in eval mode and stay as they are. The teacher must be ``differentiable``.
    At every batch the augmentor takes one step and the student then learns from the new warps; with both thresholds
    it takes steps on the batch only while it has to, see ``lowest``.

    The paper's formulas could not be read; objective, thresholds and defaults are reconstructed from its abstract
    ("adversarial synthetic points of teacher-student disagreement", dynamic during training). Of its augmentors this
    is the affine one; see also ``hard_mix`` and ``hard_vae``.

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
        self.mean = torch.zeros(len(WARP_PARAMETERS), requires_grad=True)
        self.raw_deviation = torch.full_like(self.mean, FIRST_DEVIATION, requires_grad=True)
        return {"mean": self.mean, "raw_deviation": self.raw_deviation}

    def augment(self, batch: Batch) -> Tensor:
        """Returns the warped inputs, with a graph to the augmentor where gradients are on."""
        inputs = batch["inputs"]
        noise = self.noise(batch, len(WARP_PARAMETERS))
        matrices = warp_matrices(reparameterised(self.mean, self.raw_deviation, noise)).to(inputs.device)
        return warp(inputs, matrices, outside=self.pixel_scale.bounds(inputs)[0])

    def keep_in_range(self) -> None:
        """Keeps means and deviations plausible."""
        limits = torch.tensor(LIMITS)
        self.mean.clamp_(-limits, limits)
        cap_deviation(self.raw_deviation, limits)
