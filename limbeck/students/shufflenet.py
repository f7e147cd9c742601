"""ShuffleNet V1 and V2 for small images: a 1x1 stem of stride 1 and three stages, no initial pooling.

As in the distillation literature, V1 keeps a ReLU after its depthwise convolution, and weights start as PyTorch draws
them.

References: Zhang et al., ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices, CVPR
    2018, https://arxiv.org/abs/1707.01083 Ma et al., ShuffleNet V2: Practical Guidelines for Efficient CNN
    Architecture Design, ECCV 2018, https://arxiv.org/abs/1807.11164
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.anatomy import Anatomy
from limbeck.hyperparameters import Count
from limbeck.students.base import StagedClassifier, conv1x1, conv3x3, conv_norm_act, register

_STEM = 24
_UNITS = (4, 8, 4)
_V1_CHANNELS = (240, 480, 960)
_V2_CHANNELS = (116, 232, 464)
_V2_LAST = 1024


class ChannelShuffle(nn.Module):
    """Interleaves the channels of ``groups`` groups."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[B, C, H, W]`` with channel ``i * C/groups + j`` moved to ``j * groups + i``."""
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


class UnitV1(nn.Module):
    """Grouped 1x1, depthwise 3x3 and grouped 1x1 convolutions beside the identity; ``act_sum`` reads the sum.

    With stride 2 average pooling replaces the identity, and concatenation the sum.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int) -> None:
        super().__init__()
        middle = out_channels // 4
        # The stem's 24 channels are too few to be grouped.
        first_groups = 1 if in_channels == _STEM else groups
        self.reduce = conv_norm_act(conv1x1(in_channels, middle, groups=first_groups))
        self.shuffle = ChannelShuffle(first_groups)
        self.depthwise = conv_norm_act(conv3x3(middle, middle, stride, groups=middle))
        self.expand = conv1x1(middle, out_channels, groups=groups)
        self.expand_norm = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.act_sum = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the unit's map."""
        residual = self.expand_norm(self.expand(self.depthwise(self.shuffle(self.reduce(x)))))
        if self.shortcut is None:
            return self.act_sum(residual + x)
        return self.act_sum(torch.cat([residual, self.shortcut(x)], 1))


def _separable(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    """Returns a depthwise 3x3 and a 1x1 convolution, each normalised, without an activation."""
    depthwise = conv3x3(in_channels, in_channels, stride, groups=in_channels)
    pointwise = conv1x1(in_channels, out_channels)
    return [depthwise, nn.BatchNorm2d(in_channels), pointwise, nn.BatchNorm2d(out_channels)]


class UnitV2(nn.Module):
    """One half of the channels passes, the other is convolved; with stride 2 both halves come from the whole input.

    The half that passes is the output of a ReLU already, so one activation of both halves after the shuffle (``act``)
    gives the same map and the same gradients as the paper's activation of the convolved half, and its input is the
    whole pre-activation map.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.splits = stride == 1
        branch_inputs = half if self.splits else in_channels
        self.passing = None if self.splits else nn.Sequential(*_separable(in_channels, half, stride))
        self.convolved = nn.Sequential(*conv_norm_act(conv1x1(branch_inputs, half)), *_separable(half, half, stride))
        self.shuffle = ChannelShuffle(2)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the unit's map."""
        if self.passing is None:
            left, right = x.chunk(2, 1)
        else:
            left, right = self.passing(x), x
        return self.act(self.shuffle(torch.cat([left, self.convolved(right)], 1)))


@register(
    "shufflenet_v1",
    title="ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices",
    authors="Xiangyu Zhang and Xinyu Zhou and Mengxiao Lin and Jian Sun",
    paper="1707.01083",
    year=2018,
    params=949_258,
)
def shufflenet_v1(*, num_classes: Count, in_channels: Count = 3) -> nn.Module:
    """Returns ShuffleNet V1 with three groups."""
    groups = 3
    channels = _STEM
    stages = []
    for out_channels, depth in zip(_V1_CHANNELS, _UNITS):
        units: list[nn.Module] = [UnitV1(channels, out_channels - channels, 2, groups)]
        units += [UnitV1(out_channels, out_channels, 1, groups) for _ in range(depth - 1)]
        stages.append(nn.Sequential(*units))
        channels = out_channels
    ends = [f"stages.{i}.{depth - 1}" for i, depth in enumerate(_UNITS)]
    return StagedClassifier(
        conv_norm_act(conv1x1(in_channels, _STEM)),
        stages,
        width=channels,
        num_classes=num_classes,
        anatomy=Anatomy(
            stem=("stem",),
            stages=("stages.0", "stages.1", "stages.2"),
            preacts=tuple(f"{end}.act_sum@in" for end in ends),
            pooled=("head@in",),
            head="head",
            norms=tuple(f"{end}.expand_norm" for end in ends),
        ),
    )


@register(
    "shufflenet_v2",
    title="ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design",
    authors="Ningning Ma and Xiangyu Zhang and Hai-Tao Zheng and Jian Sun",
    paper="1807.11164",
    year=2018,
    params=1_355_528,
)
def shufflenet_v2(*, num_classes: Count, in_channels: Count = 3) -> nn.Module:
    """Returns ShuffleNet V2 of width 1.

    It names no ``norms``: half of a stage's channels only pass through its last unit, so no single normalisation
    stands before the map.
    """
    channels = _STEM
    stages = []
    for out_channels, depth in zip(_V2_CHANNELS, _UNITS):
        units: list[nn.Module] = [UnitV2(channels, out_channels, 2)]
        units += [UnitV2(out_channels, out_channels, 1) for _ in range(depth - 1)]
        stages.append(nn.Sequential(*units))
        channels = out_channels
    return StagedClassifier(
        conv_norm_act(conv1x1(in_channels, _STEM)),
        stages,
        neck=conv_norm_act(conv1x1(channels, _V2_LAST)),
        width=_V2_LAST,
        num_classes=num_classes,
        anatomy=Anatomy(
            stem=("stem",),
            stages=("stages.0", "stages.1", "stages.2"),
            preacts=tuple(f"stages.{i}.{depth - 1}.act@in" for i, depth in enumerate(_UNITS)),
            pooled=("head@in",),
            head="head",
        ),
    )
