"""Vision transformers for small images.

Plain pre-norm encoders with learned positions. The classifier reads the mean of the tokens, not a class token, so that
every token has a place on the image and the tokens after a stage are a map. Blocks are divided into as many stages as
convolutional partners have.

References: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, https://arxiv.org/abs/2010.11929 Lee et al.,
    Vision Transformer for Small-Size Datasets, 2021, https://arxiv.org/abs/2112.13492 (the shape of ``vit_tiny``)
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from limbeck.errors import RecipeError
from limbeck.hyperparameters import Count, Fraction, Positive
from limbeck.students.base import register
from limbeck.students.patches import PatchClassifier

_PAPER: dict[str, Any] = {
    "title": "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
    "authors": (
        "Alexey Dosovitskiy and Lucas Beyer and Alexander Kolesnikov and Dirk Weissenborn and "
        "Xiaohua Zhai and Thomas Unterthiner and Mostafa Dehghani and Matthias Minderer and Georg Heigold and "
        "Sylvain Gelly and Jakob Uszkoreit and Neil Houlsby"
    ),
    "paper": "2010.11929",
    "year": 2021,
}


class SelfAttention(nn.Module):
    """Multi-head self-attention over ``[B, N, D]``."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the mixed tokens."""
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    """Attention and a two-layer perceptron, each after a normalisation and beside the identity."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the residual stream after the block."""
        tokens = tokens + self.dropout(self.attention(self.norm1(tokens)))
        return tokens + self.dropout(self.mlp(self.norm2(tokens)))


class VisionTransformer(PatchClassifier):
    """Patches with learned positions, then encoder blocks.

    Args:
        dim: width of a token.
        heads: attention heads; must divide ``dim``.
        mlp_ratio: hidden width of the perceptrons over ``dim``.
        dropout: dropout rate on both branches of a block.
        shape: the other keywords of :class:`~limbeck.students.patches.PatchClassifier`; positions are learned for its
            ``image_size``.

    Raises:
        RecipeError: sizes that do not divide.
    """

    def __init__(self, *, dim: int, heads: int, mlp_ratio: float, dropout: float, **shape: Any) -> None:
        if dim % heads:
            raise RecipeError(f"heads = {heads} does not divide dim = {dim}")
        super().__init__(partial(EncoderBlock, dim, heads, mlp_ratio, dropout), dim=dim, **shape)
        self.positions = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1], dim))
        _initialise(self)

    def embed(self, images: Tensor) -> Tensor:
        """Returns the tokens ``[B, N, dim]`` with their positions."""
        return super().embed(images) + self.positions


def _initialise(model: VisionTransformer) -> None:
    nn.init.trunc_normal_(model.positions, std=0.02)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@register("vit", **_PAPER)
def vit(
    *,
    num_classes: Count,
    in_channels: Count = 3,
    image_size: tuple[int, int] = (32, 32),
    patch_size: Count = 4,
    dim: Count = 192,
    depth: Count = 9,
    heads: Count = 6,
    mlp_ratio: Positive = 2.0,
    dropout: Fraction = 0.0,
    stages: Count = 3,
) -> nn.Module:
    """Returns a transformer of any shape; keywords as in :class:`VisionTransformer`."""
    return VisionTransformer(
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        patch_size=patch_size,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_ratio=mlp_ratio,
        dropout=dropout,
        stages=stages,
    )


@register("vit_micro", **_PAPER, params=469_444)
def vit_micro(
    *, num_classes: Count, in_channels: Count = 3, image_size: tuple[int, int] = (32, 32), patch_size: Count = 4
) -> nn.Module:
    """Returns a transformer that trains in minutes on a CPU: 6 blocks, 96 wide."""
    return vit(
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        patch_size=patch_size,
        dim=96,
        depth=6,
        heads=3,
        mlp_ratio=2.0,
    )


@register("vit_tiny", **_PAPER, params=2_714_596)
def vit_tiny(
    *, num_classes: Count, in_channels: Count = 3, image_size: tuple[int, int] = (32, 32), patch_size: Count = 4
) -> nn.Module:
    """Returns Lee et al.'s transformer for small data sets: 9 blocks, 192 wide."""
    return vit(
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        patch_size=patch_size,
        dim=192,
        depth=9,
        heads=12,
        mlp_ratio=2.0,
    )


@register("vit_small", **_PAPER, params=16_052_836)
def vit_small(
    *, num_classes: Count, in_channels: Count = 3, image_size: tuple[int, int] = (32, 32), patch_size: Count = 4
) -> nn.Module:
    """Returns a transformer of the usual small width: 9 blocks, 384 wide."""
    return vit(
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        patch_size=patch_size,
        dim=384,
        depth=9,
        heads=6,
        mlp_ratio=4.0,
    )
