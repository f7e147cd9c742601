"""Auxiliary classifiers behind a stage of a network: convolutional for maps, transformers for tokens."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_unshuffle

from limbeck.functional.tokens import split_tokens, token_map

_GRID_AFTER_MERGING = 7
_MOST_HEADS = 4


def as_map(features: Tensor) -> Tensor:
    """Returns vectors ``[B, D]``, tokens ``[B, N, D]`` or maps as maps ``[B, D, H, W]``.

    Raises:
        ValueError: tokens are no square grid.
    """
    return features[:, :, None, None] if features.dim() == 2 else token_map(features)


def separable_convolution(inputs: int, outputs: int) -> nn.Sequential:
    """Returns two depthwise-separable 3x3 convolutions; the first halves the map, the second keeps it."""

    def depthwise_and_pointwise(channels: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False),
            nn.Conv2d(inputs, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]

    return nn.Sequential(*depthwise_and_pointwise(inputs, 2), *depthwise_and_pointwise(outputs, 1))


class ConvolutionExit(nn.Module):
    """Separable convolutions that halve the map and double the channels, average pooling, a linear classifier.

    Args:
        channels: of the map that is read.
        width: channels before the classifier.
        num_classes: number of classes.
        blocks: number of halvings; with 0 a single 1x1 convolution stands in their place.
    """

    def __init__(self, channels: int, width: int, num_classes: int, blocks: int) -> None:
        super().__init__()
        widths = [channels * 2**i for i in range(blocks)] + [width]
        layers: list[nn.Module] = [separable_convolution(a, b) for a, b in pairwise(widths)]
        self.layers = nn.Sequential(*(layers or [nn.Conv2d(channels, width, 1)]))
        self.classifier = nn.Linear(width, num_classes)
        _initialise(self)

    def forward(self, features: Tensor) -> Tensor:
        """Returns logits ``[B, num_classes]`` of maps, tokens or vectors."""
        maps = as_map(features).to(self.classifier.weight.dtype)
        return self.classifier(self.layers(maps).mean((2, 3)))


class PatchMerging(nn.Module):
    """Joins each 2x2 neighbouring places of a map ``[B, D, H, W]`` into one; odd sides are padded with zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.linear = nn.Linear(4 * width, width, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Returns ``[B, D, ceil(H/2), ceil(W/2)]``."""
        height, width = maps.shape[2:]
        joined = pixel_unshuffle(pad(maps, (0, width % 2, 0, height % 2)), 2)
        tokens = nn.functional.gelu(self.linear(self.norm(joined.movedim(1, -1))))
        return tokens.movedim(-1, 1)


class TokenExit(nn.Module):
    """Merged patches, transformer blocks, and a classifier that reads the class token or the mean of all tokens.

    Args:
        features: ``[B, N, D]`` or ``[B, D, H, W]`` from a dry run; only its shape is used. Places are merged until
            about 7x7 are left.
        width: width of the blocks; features of another width are mapped to it first.
        num_classes: number of classes.
        blocks: number of transformer blocks.
    """

    def __init__(self, features: Tensor, width: int, num_classes: int, blocks: int) -> None:
        super().__init__()
        maps = as_map(features)
        merges = max(int(math.log2(max(min(maps.shape[2:]) / _GRID_AFTER_MERGING, 1))), 0)
        self.entry = nn.Identity() if maps.shape[1] == width else nn.Linear(maps.shape[1], width)
        self.merging = nn.Sequential(*(PatchMerging(width) for _ in range(merges)))
        heads = max(h for h in range(1, _MOST_HEADS + 1) if width % h == 0)
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
                for _ in range(blocks)
            )
        )
        self.classifier = nn.Linear(width, num_classes)
        _initialise(self)

    def forward(self, features: Tensor) -> Tensor:
        """Returns logits ``[B, num_classes]`` of tokens or maps."""
        features = features.to(self.classifier.weight.dtype)
        _, classes = split_tokens(features if features.dim() == 3 else as_map(features))
        maps = self.merging(self.entry(as_map(features).movedim(1, -1)).movedim(-1, 1))
        places, _ = split_tokens(maps)
        mixed = self.blocks(torch.cat([self.entry(classes), places], dim=1))
        read = mixed[:, : classes.shape[1]] if classes.shape[1] else mixed
        return self.classifier(read.mean(1))


def _initialise(module: nn.Module) -> None:
    """He's normal distribution over the fan-out for convolutions, a narrow one for linear maps, zero biases."""
    for name, parameter in module.named_parameters():
        if parameter.dim() == 4:
            nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")
        elif parameter.dim() == 2:
            nn.init.trunc_normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
