"""Classifiers of radio frames ``[1, 2, L]``: a convolutional transformer and two small students.

Reference:
    Hou et al., ClST: A Convolutional Transformer Framework for Automatic Modulation Recognition by Knowledge
    Distillation, 2023, https://arxiv.org/abs/2312.17446
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from limbeck.anatomy import Anatomy
from limbeck.errors import RecipeError
from limbeck.hyperparameters import Count
from limbeck.students.base import StagedClassifier, conv_norm_act, initialise, register

_PAPER: dict[str, Any] = {
    "title": "ClST: A Convolutional Transformer Framework for Automatic Modulation Recognition by Knowledge "
    "Distillation",
    "authors": "Dongbin Hou and Lixin Li and Wensheng Lin and Junli Liang and Zhu Han",
    "paper": "2312.17446",
    "year": 2023,
}


def _along(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Returns a convolution along time."""
    padding = (0, kernel // 2)
    return nn.Conv2d(in_channels, out_channels, (1, kernel), (1, stride), padding, groups=groups, bias=False)


def _joined(in_channels: int, out_channels: int, rows: int, kernel: int, stride: int) -> nn.Conv2d:
    """Returns a convolution that reads all rows, in phase and quadrature, and leaves one."""
    return nn.Conv2d(in_channels, out_channels, (rows, kernel), (1, stride), (0, kernel // 2), bias=False)


class ParallelAttention(nn.Module):
    """Attention between the moments and attention between the channels, added up.

    Queries, keys and values come from depthwise separable convolutions along time.

    Args:
        dim: channels.
        heads: heads of the attention between moments; must divide ``dim``.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Sequential(_along(dim, dim, 3, groups=dim), nn.BatchNorm2d(dim), _along(dim, 3 * dim, 1))
        self.out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``[B, dim, 1, L]``."""
        query, key, value = self.project(x).squeeze(2).chunk(3, dim=1)
        by_head = [t.unflatten(1, (self.heads, -1)).transpose(2, 3) for t in (query, key, value)]
        moments = scaled_dot_product_attention(*by_head).transpose(2, 3).flatten(1, 2)
        affinity = torch.softmax(query @ key.transpose(1, 2) / query.shape[2] ** 0.5, dim=-1)
        return self.out((moments + affinity @ value).unsqueeze(2))


class ConvolutionalTransformerBlock(nn.Module):
    """Parallel attention and a perceptron, each after a normalisation and beside the identity."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, dim)
        self.attention = ParallelAttention(dim, heads)
        self.norm2 = nn.GroupNorm(1, dim)
        self.mlp = nn.Sequential(nn.Conv2d(dim, 2 * dim, 1), nn.GELU(), nn.Conv2d(2 * dim, dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the residual stream ``[B, dim, 1, L]``."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def _built(stem: nn.Module, stages: list[nn.Module], width: int, num_classes: int) -> StagedClassifier:
    maps = tuple(f"stages.{i}" for i in range(len(stages)))
    anatomy = Anatomy(stem=("stem",), stages=maps, preacts=maps, pooled=("head@in",), head="head")
    model = StagedClassifier(stem, stages, width=width, num_classes=num_classes, anatomy=anatomy)
    initialise(model)
    return model


@register("clst", **_PAPER)
def clst(
    *,
    num_classes: Count,
    in_channels: Count = 1,
    image_size: tuple[int, int] = (2, 128),
    dims: tuple[Count, Count, Count] = (32, 64, 96),
    heads: Count = 4,
) -> nn.Module:
    """Returns three stages, each a convolution that halves time and a convolutional transformer block.

    The paper's summary leaves sizes open; those here make a teacher of about 150,000 parameters.

    Raises:
        RecipeError: ``heads`` does not divide a width.
    """
    if any(dim % heads for dim in dims):
        raise RecipeError(f"heads = {heads} does not divide every width of dims = {dims}")
    stages: list[nn.Module] = []
    for before, dim in zip((dims[0], *dims), dims):
        embed = nn.Sequential(_along(before, dim, 3, 2), nn.BatchNorm2d(dim))
        stages.append(nn.Sequential(embed, ConvolutionalTransformerBlock(dim, heads)))
    return _built(conv_norm_act(_joined(in_channels, dims[0], image_size[0], 7, 1)), stages, dims[-1], num_classes)


@register("kd_cnn", **_PAPER)
def kd_cnn(
    *, num_classes: Count, in_channels: Count = 1, image_size: tuple[int, int] = (2, 128), width: Count = 16
) -> nn.Module:
    """Returns the paper's convolutional student: a stem over both rows and two convolutions along time."""
    stages: list[nn.Module] = [
        conv_norm_act(_along(width, width, 5, 2)),
        conv_norm_act(_along(width, 2 * width, 5, 2)),
    ]
    return _built(conv_norm_act(_joined(in_channels, width, image_size[0], 7, 2)), stages, 2 * width, num_classes)


@register("kd_mobilenet", **_PAPER)
def kd_mobilenet(
    *, num_classes: Count, in_channels: Count = 1, image_size: tuple[int, int] = (2, 128), width: Count = 16
) -> nn.Module:
    """Returns the paper's student of depthwise separable convolutions along time."""
    stages: list[nn.Module] = []
    for before, after in ((width, width), (width, 2 * width), (2 * width, 4 * width)):
        depthwise, pointwise = _along(before, before, 5, 2, groups=before), _along(before, after, 1)
        stages.append(nn.Sequential(conv_norm_act(depthwise), conv_norm_act(pointwise)))
    return _built(conv_norm_act(_joined(in_channels, width, image_size[0], 7, 1)), stages, 4 * width, num_classes)
