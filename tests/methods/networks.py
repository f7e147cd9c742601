"""Small deterministic classifiers with the parts that methods tap."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from limbeck.anatomy import Anatomy

CLASSES = 5
CHANNELS = 3
SIZE = 8


class Classifier(nn.Module):
    """A stem and stages of convolution, normalisation and ReLU, global average pooling and a linear classifier.

    Args:
        widths: channels of the stem and of every stage.
        strides: stride of every stage.
        seed: of the initial weights.
        batch_norm: batch normalisation where true; else group normalisation, which treats each sample alone.
    """

    def __init__(self, widths: tuple[int, ...], strides: tuple[int, ...], *, seed: int, batch_norm: bool) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = nn.Conv2d(CHANNELS, widths[0], 3, padding=1)
            self.stages = nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
                    nn.BatchNorm2d(after) if batch_norm else nn.GroupNorm(1, after),
                    nn.ReLU(),
                )
                for (before, after), stride in zip(itertools.pairwise(widths), strides)
            )
            self.head = nn.Linear(widths[-1], CLASSES)
            for stage in self.stages:
                nn.init.normal_(stage[1].weight, 1.0, 0.3)
                nn.init.normal_(stage[1].bias, 0.0, 0.3)
        numbers = range(len(strides))
        self.anatomy = Anatomy(
            stem=("stem",),
            stages=tuple(f"stages.{i}" for i in numbers),
            preacts=tuple(f"stages.{i}.1" for i in numbers),
            pooled=("head@in",),
            head="head",
            norms=tuple(f"stages.{i}.1" for i in numbers),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns logits ``[B, CLASSES]``."""
        features = self.stem(inputs)
        for stage in self.stages:
            features = stage(features)
        return self.head(features.mean((2, 3)))


def small_student(seed: int = 1, *, batch_norm: bool = False) -> Classifier:
    """Maps of 4 to 8 channels, 8x8, 4x4 and 2x2."""
    return Classifier((4, 4, 6, 8), (1, 2, 2), seed=seed, batch_norm=batch_norm)


def large_teacher(seed: int = 2, *, batch_norm: bool = False, same_channels: bool = False) -> Classifier:
    """Maps of 6 to 10 channels (or the student's), 8x8, 8x8 and 4x4."""
    widths = (4, 4, 6, 8) if same_channels else (5, 6, 8, 10)
    return Classifier(widths, (1, 1, 2), seed=seed, batch_norm=batch_norm)
