"""VGG networks with batch normalisation for small images, one linear layer after global average pooling.

The distillation literature divides them into five blocks, of which the first counts as the stem. Blocks 1 to 3 begin
with max pooling; block 4 keeps the resolution of block 3 up to 63 pixels and halves it for larger images.

Reference: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015,
    https://arxiv.org/abs/1409.1556
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from limbeck.anatomy import Anatomy
from limbeck.hyperparameters import Count
from limbeck.students.base import StagedClassifier, initialise, register

_PAPER: dict[str, Any] = {
    "title": "Very Deep Convolutional Networks for Large-Scale Image Recognition",
    "authors": "Karen Simonyan and Andrew Zisserman",
    "paper": "1409.1556",
    "year": 2015,
}
_CHANNELS = (64, 128, 256, 512, 512)


def _block(in_channels: int, channels: int, depth: int, *, pool: bool) -> nn.Sequential:
    """Returns ``depth`` times convolution, normalisation and ReLU, after max pooling where asked."""
    layers: list[nn.Module] = [nn.MaxPool2d(2)] if pool else []
    for _ in range(depth):
        layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
        in_channels = channels
    return nn.Sequential(*layers)


def _vgg(depths: Sequence[int], num_classes: int, in_channels: int, image_size: tuple[int, int]) -> StagedClassifier:
    pools = (False, True, True, True, max(image_size) >= 64)
    inputs = (in_channels, *_CHANNELS)
    stem, *stages = (_block(inputs[i], channels, depths[i], pool=pools[i]) for i, channels in enumerate(_CHANNELS))
    # The last two layers of a block are its normalisation and its ReLU.
    lengths = [len(stage) for stage in stages]
    model = StagedClassifier(
        stem,
        stages,
        width=_CHANNELS[-1],
        num_classes=num_classes,
        anatomy=Anatomy(
            stem=("stem",),
            stages=tuple(f"stages.{i}" for i in range(len(stages))),
            preacts=tuple(f"stages.{i}.{length - 1}@in" for i, length in enumerate(lengths)),
            pooled=("head@in",),
            head="head",
            norms=tuple(f"stages.{i}.{length - 2}" for i, length in enumerate(lengths)),
        ),
    )
    initialise(model, head_std=0.01)
    return model


@register("vgg8", **_PAPER, params=3_965_028)
def vgg8(*, num_classes: Count, in_channels: Count = 3, image_size: tuple[int, int] = (32, 32)) -> nn.Module:
    """Returns VGG-8 with one convolution in its blocks."""
    return _vgg((1, 1, 1, 1, 1), num_classes, in_channels, image_size)


@register("vgg11", **_PAPER, params=9_277_284)
def vgg11(*, num_classes: Count, in_channels: Count = 3, image_size: tuple[int, int] = (32, 32)) -> nn.Module:
    """Returns VGG-11 with 1, 1, 2, 2, 2 convolutions in its blocks."""
    return _vgg((1, 1, 2, 2, 2), num_classes, in_channels, image_size)


@register("vgg13", **_PAPER, params=9_462_180)
def vgg13(*, num_classes: Count, in_channels: Count = 3, image_size: tuple[int, int] = (32, 32)) -> nn.Module:
    """Returns VGG-13 with 2, 2, 2, 2, 2 convolutions in its blocks."""
    return _vgg((2, 2, 2, 2, 2), num_classes, in_channels, image_size)
