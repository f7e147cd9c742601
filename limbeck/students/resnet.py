"""Residual networks for small images, as the distillation literature uses them on CIFAR.

Two lines: He et al.'s CIFAR networks of depth ``6n + 2`` with three stages (``resnet8`` ... ``resnet110``, and their
four times wider ``resnet8x4`` and ``resnet32x4``), and the four-stage ImageNet networks with a 3x3 stem and no initial
pooling (``resnet18``, ``resnet50``). Shortcuts that change the shape are projections with batch normalisation, as in
the distillation literature; He et al. pad with zeros on CIFAR.

Reference:
    He et al., Deep Residual Learning for Image Recognition, CVPR 2016, https://arxiv.org/abs/1512.03385
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from limbeck.anatomy import Anatomy
from limbeck.hyperparameters import Count
from limbeck.students.base import StagedClassifier, conv1x1, conv3x3, conv_norm_act, initialise, register

_PAPER: dict[str, Any] = {
    "title": "Deep Residual Learning for Image Recognition",
    "authors": "Kaiming He and Xiangyu Zhang and Shaoqing Ren and Jian Sun",
    "paper": "1512.03385",
    "year": 2016,
}
_NARROW = (16, 16, 32, 64)
_WIDE = (32, 64, 128, 256)
_IMAGENET = (64, 64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; ``act2`` reads the sum."""

    expansion = 1
    last_norm = "bn2"

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(in_channels, width, stride)
        self.act_sum = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's map."""
        residual = self.act1(self.bn1(self.conv1(x)))
        return self.act_sum(self.bn2(self.conv2(residual)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones, four times as wide outside as inside, beside a shortcut."""

    expansion = 4
    last_norm = "bn3"

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU()
        self.conv3 = conv1x1(width, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)
        self.act_sum = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's map."""
        residual = self.act1(self.bn1(self.conv1(x)))
        residual = self.act2(self.bn2(self.conv2(residual)))
        return self.act_sum(self.bn3(self.conv3(residual)) + self.shortcut(x))


Block = type[BasicBlock] | type[Bottleneck]


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


def _resnet(
    block: Block, depths: Sequence[int], widths: Sequence[int], *, num_classes: int, in_channels: int
) -> StagedClassifier:
    """Builds a stem of ``widths[0]`` channels and stages of ``depths[i]`` blocks with ``widths[i + 1]`` channels."""
    channels = widths[0]
    stages = []
    for i, (depth, width) in enumerate(zip(depths, widths[1:])):
        blocks: list[nn.Module] = []
        for j in range(depth):
            blocks.append(block(channels, width, 2 if i > 0 and j == 0 else 1))
            channels = width * block.expansion
        stages.append(nn.Sequential(*blocks))
    ends = [f"stages.{i}.{depth - 1}" for i, depth in enumerate(depths)]
    model = StagedClassifier(
        conv_norm_act(conv3x3(in_channels, widths[0])),
        stages,
        width=channels,
        num_classes=num_classes,
        anatomy=Anatomy(
            stem=("stem",),
            stages=tuple(f"stages.{i}" for i in range(len(depths))),
            preacts=tuple(f"{end}.act_sum@in" for end in ends),
            pooled=("head@in",),
            head="head",
            norms=tuple(f"{end}.{block.last_norm}" for end in ends),
        ),
    )
    initialise(model)
    return model


def _cifar(depth: int, widths: Sequence[int], num_classes: int, in_channels: int) -> StagedClassifier:
    """Builds the three-stage network of ``depth`` layers, counted as the paper counts them."""
    return _resnet(BasicBlock, [(depth - 2) // 6] * 3, widths, num_classes=num_classes, in_channels=in_channels)


@register("resnet8", **_PAPER, params=83_892)
def resnet8(*, num_classes: Count, in_channels: Count = 3) -> nn.Module:
    """Returns the CIFAR ResNet of 8 layers, 16-16-32-64 channels."""
    return _cifar(8, _NARROW, num_classes, in_channels)


@register("resnet14", **_PAPER, params=181_108)
def resnet14(*, num_classes: Count, in_channels: Count = 3) -> nn.Module:
    """Returns the CIFAR ResNet of 14 layers, 16-16-32-64 channels."""
    return _cifar(14, _NARROW, num_classes, in_channels)


@register("resnet20", **_PAPER, params=278_324)
def resnet20(*, num_classes: Count, in_channels: Count = 3) -> nn.Module:
    """Returns the CIFAR ResNet of 20 layers, 16-16-32-64 channels."""
    return _cifar(20, _NARROW, num_classes, in_channels)


@register("resnet32", **_PAPER, params=472_756)
def resnet32(*, num_classes: Count, in_channels: Count = 3) -> nn.Module:
    """Returns the CIFAR ResNet of 32 layers, 16-16-32-64 channels."""
    return _cifar(32, _NARROW, num_classes, in_channels)


@register("resnet44", **_PAPER, params=667_188)
def resnet44(*, num_classes: Count, in_channels: Count = 3) -> nn.Module:
    """Returns the CIFAR ResNet of 44 layers, 16-16-32-64 channels."""
    return _cifar(44, _NARROW, num_classes, in_channels)


@register("resnet56", **_PAPER, params=861_620)
def resnet56(*, num_classes: Count, in_channels: Count = 3) -> nn.Module:
    """Returns the CIFAR ResNet of 56 layers, 16-16-32-64 channels."""
    return _cifar(56, _NARROW, num_classes, in_channels)


@register("resnet110", **_PAPER, params=1_736_564)
def resnet110(*, num_classes: Count, in_channels: Count = 3) -> nn.Module:
    """Returns the CIFAR ResNet of 110 layers, 16-16-32-64 channels."""
    return _cifar(110, _NARROW, num_classes, in_channels)


@register("resnet8x4", **_PAPER, params=1_233_540)
def resnet8x4(*, num_classes: Count, in_channels: Count = 3) -> nn.Module:
    """Returns the CIFAR ResNet of 8 layers, 32-64-128-256 channels."""
    return _cifar(8, _WIDE, num_classes, in_channels)


@register("resnet32x4", **_PAPER, params=7_433_860)
def resnet32x4(*, num_classes: Count, in_channels: Count = 3) -> nn.Module:
    """Returns the CIFAR ResNet of 32 layers, 32-64-128-256 channels."""
    return _cifar(32, _WIDE, num_classes, in_channels)


@register("resnet18", **_PAPER, params=11_220_132)
def resnet18(*, num_classes: Count, in_channels: Count = 3) -> nn.Module:
    """Returns ResNet-18 with a 3x3 stem of stride 1 and no initial pooling, for small images."""
    return _resnet(BasicBlock, (2, 2, 2, 2), _IMAGENET, num_classes=num_classes, in_channels=in_channels)


@register("resnet50", **_PAPER, params=23_705_252)
def resnet50(*, num_classes: Count, in_channels: Count = 3) -> nn.Module:
    """Returns ResNet-50 with a 3x3 stem of stride 1 and no initial pooling, for small images."""
    return _resnet(Bottleneck, (3, 4, 6, 3), _IMAGENET, num_classes=num_classes, in_channels=in_channels)


@register("resnet_cifar", **_PAPER)
def resnet_cifar(
    *,
    num_classes: Count,
    in_channels: Count = 3,
    depths: tuple[Count, Count, Count] = (1, 1, 1),
    widths: tuple[Count, Count, Count] = (16, 32, 64),
) -> nn.Module:
    """Returns a CIFAR ResNet with any number of blocks and any width in its three stages; the default is resnet8."""
    widths_with_stem = (widths[0], *widths)
    return _resnet(BasicBlock, depths, widths_with_stem, num_classes=num_classes, in_channels=in_channels)
