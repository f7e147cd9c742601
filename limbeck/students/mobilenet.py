"""MobileNetV2 for small images, as the distillation literature uses it: half width, expansion 6.

It differs from the paper where that literature does: the second group of blocks keeps the resolution, activations are
ReLU and not ReLU6, widths are not rounded to multiples of eight, the first block keeps its (useless) 1x1 expansion,
and nothing is dropped out.

Stages end where the resolution falls next or the network does. Their maps are linear bottlenecks that no activation
follows, so the maps before and after the activation are the same.

Reference:
    Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018, https://arxiv.org/abs/1801.04381
"""

from __future__ import annotations

from torch import Tensor, nn

from limbeck.anatomy import Anatomy
from limbeck.hyperparameters import Count, Positive
from limbeck.students.base import StagedClassifier, conv1x1, conv3x3, conv_norm_act, initialise, register

# Groups of blocks by stage: (whether they expand, channels at width 1, blocks, stride of the first).
_STAGES = (
    ((False, 16, 1, 1), (True, 24, 2, 1)),
    ((True, 32, 3, 2),),
    ((True, 64, 4, 2), (True, 96, 3, 1)),
    ((True, 160, 3, 2), (True, 320, 1, 1)),
)
_LAST = 1280


class InvertedResidual(nn.Module):
    """A depthwise convolution between an expansion and a linear projection, beside the identity where shapes allow."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = conv_norm_act(conv1x1(in_channels, hidden))
        self.depthwise = conv_norm_act(conv3x3(hidden, hidden, stride, groups=hidden))
        self.project = conv1x1(hidden, out_channels)
        self.project_norm = nn.BatchNorm2d(out_channels)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's map, which may be negative."""
        out = self.project_norm(self.project(self.depthwise(self.expand(x))))
        return x + out if self.residual else out


@register(
    "mobilenet_v2",
    title="MobileNetV2: Inverted Residuals and Linear Bottlenecks",
    authors="Mark Sandler and Andrew Howard and Menglong Zhu and Andrey Zhmoginov and Liang-Chieh Chen",
    paper="1801.04381",
    year=2018,
    params=812_836,
)
def mobilenet_v2(
    *, num_classes: Count, in_channels: Count = 3, width: Positive = 0.5, expansion: Count = 6
) -> nn.Module:
    """Returns MobileNetV2; ``width`` multiplies every number of channels, ``expansion`` those inside the blocks."""
    channels = int(32 * width)
    stem = conv_norm_act(conv3x3(in_channels, channels, 2))
    stages = []
    for groups in _STAGES:
        blocks: list[nn.Module] = []
        for expands, base, depth, stride in groups:
            for j in range(depth):
                factor = expansion if expands else 1
                blocks.append(InvertedResidual(channels, int(base * width), stride if j == 0 else 1, factor))
                channels = int(base * width)
        stages.append(nn.Sequential(*blocks))
    last = int(_LAST * max(width, 1.0))
    maps = tuple(f"stages.{i}" for i in range(len(stages)))
    model = StagedClassifier(
        stem,
        stages,
        neck=conv_norm_act(conv1x1(channels, last)),
        width=last,
        num_classes=num_classes,
        anatomy=Anatomy(
            stem=("stem",),
            stages=maps,
            preacts=maps,
            pooled=("head@in",),
            head="head",
            norms=tuple(f"stages.{i}.{len(stage) - 1}.project_norm" for i, stage in enumerate(stages)),
        ),
    )
    initialise(model, head_std=0.01)
    return model
