"""Wide residual networks: pre-activation blocks, few layers, many channels.

Taps follow the literature (attention transfer onwards): a stage's map is the residual sum that leaves its last block,
which no activation follows; its pre-activation is that sum after the batch normalisation that reads it next, in the
following stage's first block or, for the last stage, before the pooling.

Reference:
    Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016, https://arxiv.org/abs/1605.07146
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from limbeck.anatomy import Anatomy
from limbeck.hyperparameters import Count, Fraction
from limbeck.students.base import StagedClassifier, conv1x1, conv3x3, initialise, register

_PAPER: dict[str, Any] = {
    "title": "Wide Residual Networks",
    "authors": "Sergey Zagoruyko and Nikos Komodakis",
    "paper": "1605.07146",
    "year": 2016,
}


class PreActivationBlock(nn.Module):
    """Normalisation, activation and 3x3 convolution, twice, beside a shortcut.

    Where the shape changes, the shortcut is a 1x1 convolution of the first activation; otherwise it is the block's
    input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act1 = nn.ReLU()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.act2 = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(out_channels, out_channels)
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = conv1x1(in_channels, out_channels, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Returns the residual sum."""
        active = self.act1(self.bn1(x))
        residual = self.conv2(self.dropout(self.act2(self.bn2(self.conv1(active)))))
        return residual + (x if self.shortcut is None else self.shortcut(active))


def _wide_resnet(depth: int, width: int, *, num_classes: int, in_channels: int, dropout: float) -> StagedClassifier:
    """Builds three stages of ``(depth - 4) / 6`` blocks with 16, 32 and 64 times ``width`` channels."""
    blocks = (depth - 4) // 6
    channels = 16
    stages = []
    for i, out_channels in enumerate((16 * width, 32 * width, 64 * width)):
        stage: list[nn.Module] = []
        for j in range(blocks):
            stage.append(PreActivationBlock(channels, out_channels, 2 if i > 0 and j == 0 else 1, dropout))
            channels = out_channels
        stages.append(nn.Sequential(*stage))
    model = StagedClassifier(
        conv3x3(in_channels, 16),
        stages,
        neck=nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU()),
        width=channels,
        num_classes=num_classes,
        anatomy=Anatomy(
            stem=("stem",),
            stages=("stages.0", "stages.1", "stages.2"),
            preacts=("stages.1.0.act1@in", "stages.2.0.act1@in", "neck.1@in"),
            pooled=("head@in",),
            head="head",
            norms=("stages.1.0.bn1", "stages.2.0.bn1", "neck.0"),
        ),
    )
    initialise(model)
    nn.init.zeros_(model.head.bias)
    return model


@register("wrn_16_1", **_PAPER, params=180_916)
def wrn_16_1(*, num_classes: Count, in_channels: Count = 3, dropout: Fraction = 0.0) -> nn.Module:
    """Returns WRN-16-1; ``dropout`` acts between the two convolutions of each block."""
    return _wide_resnet(16, 1, num_classes=num_classes, in_channels=in_channels, dropout=dropout)


@register("wrn_16_2", **_PAPER, params=703_284)
def wrn_16_2(*, num_classes: Count, in_channels: Count = 3, dropout: Fraction = 0.0) -> nn.Module:
    """Returns WRN-16-2; ``dropout`` acts between the two convolutions of each block."""
    return _wide_resnet(16, 2, num_classes=num_classes, in_channels=in_channels, dropout=dropout)


@register("wrn_40_1", **_PAPER, params=569_780)
def wrn_40_1(*, num_classes: Count, in_channels: Count = 3, dropout: Fraction = 0.0) -> nn.Module:
    """Returns WRN-40-1; ``dropout`` acts between the two convolutions of each block."""
    return _wide_resnet(40, 1, num_classes=num_classes, in_channels=in_channels, dropout=dropout)


@register("wrn_40_2", **_PAPER, params=2_255_156)
def wrn_40_2(*, num_classes: Count, in_channels: Count = 3, dropout: Fraction = 0.0) -> nn.Module:
    """Returns WRN-40-2; ``dropout`` acts between the two convolutions of each block."""
    return _wide_resnet(40, 2, num_classes=num_classes, in_channels=in_channels, dropout=dropout)
