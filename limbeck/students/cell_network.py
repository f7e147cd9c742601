"""Networks of searched cells: four maps, six edges, an operation on each edge.

Reference:
    Dong and Yang, NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search, ICLR 2020,
    https://arxiv.org/abs/2001.00326
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from limbeck.anatomy import Anatomy
from limbeck.hyperparameters import Count
from limbeck.students.base import StagedClassifier, conv1x1, conv3x3, initialise, register
from limbeck.students.resnet import BasicBlock

Operation = Literal["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"]
OPERATIONS: tuple[Operation, ...] = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""What an edge of a cell can do, by the benchmark's names."""
_EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
_WIDTHS = (16, 32, 64)


class Nothing(nn.Module):
    """Gives zeros, which no gradient passes."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns a map of zeros."""
        return torch.zeros_like(x)


def _operation(name: Operation, width: int) -> nn.Module:
    if name == "none":
        return Nothing()
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)
    convolution = conv1x1(width, width) if name == "nor_conv_1x1" else conv3x3(width, width)
    # An edge reads a map that other edges read too, so its ReLU must not overwrite it.
    return nn.Sequential(_Activation(), convolution, nn.BatchNorm2d(width))


class _Activation(nn.Module):
    """ReLU that leaves its input as it is, whatever the network around it prefers."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the positive part."""
        return torch.relu(x)


class Cell(nn.Module):
    """Four maps of one shape: the input, and three that each sum what the edges from all earlier maps give.

    Args:
        operations: operation of each edge, in the order 0-1, 0-2, 1-2, 0-3, 1-3, 2-3.
        width: channels.
    """

    def __init__(self, operations: Sequence[Operation], width: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(_operation(name, width) for name in operations)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the last map."""
        maps: list[Tensor] = [x]
        for node in (1, 2, 3):
            given = [edge(maps[start]) for edge, (start, end) in zip(self.edges, _EDGES) if end == node]
            maps.append(torch.stack(given).sum(0))
        return maps[-1]


@register(
    "cell_network",
    title="NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search",
    authors="Xuanyi Dong and Yi Yang",
    paper="2001.00326",
    year=2020,
)
def cell_network(
    *,
    num_classes: Count,
    in_channels: Count = 3,
    operations: tuple[Operation, Operation, Operation, Operation, Operation, Operation] = (
        "nor_conv_3x3", "skip_connect", "nor_conv_3x3", "skip_connect", "skip_connect", "nor_conv_3x3",
    ),
    cells: Count = 1,
) -> nn.Module:  # fmt: skip
    """Returns three stages of equal cells with 16, 32 and 64 channels, a residual block between stages.

    ``operations`` are those of the edges 0-1, 0-2, 1-2, 0-3, 1-3 and 2-3. The benchmark has five cells a stage.
    """
    stages: list[nn.Module] = []
    for number, width in enumerate(_WIDTHS):
        reduction = [BasicBlock(_WIDTHS[number - 1], width, 2)] if number else []
        stages.append(nn.Sequential(*reduction, *(Cell(operations, width) for _ in range(cells))))
    maps = tuple(f"stages.{i}" for i in range(3))
    model = StagedClassifier(
        nn.Sequential(conv3x3(in_channels, 16), nn.BatchNorm2d(16)),
        stages,
        width=64,
        num_classes=num_classes,
        # The normalisation and activation before the pooling are the benchmark's.
        neck=nn.Sequential(nn.BatchNorm2d(64), nn.ReLU()),
        anatomy=Anatomy(stem=("stem",), stages=maps, preacts=maps, pooled=("head@in",), head="head"),
    )
    initialise(model)
    return model
