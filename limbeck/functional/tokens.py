"""Features as tokens: places of an image in a row, whether a convolution or a transformer made them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.functional.feature_maps import pool_to_smaller

_MOST_CLASS_TOKENS = 2


def split_tokens(features: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the tokens of an image's places and the class tokens before them.

    Tokens are taken for a square grid; the one or two that are over come first and are class tokens.

    Args:
        features: a map ``[B, D, H, W]`` of any size, or tokens ``[B, K + N, D]`` with ``K`` class tokens first.

    Returns:
        ``[B, N, D]`` and ``[B, K, D]``; a map has no class tokens.

    Raises:
        ValueError: the features have neither three nor four dimensions, or the tokens are no square grid.

    Example:
        >>> places, classes = split_tokens(torch.zeros(2, 17, 8))
        >>> places.shape, classes.shape
        (torch.Size([2, 16, 8]), torch.Size([2, 1, 8]))
    """
    if features.dim() == 4:
        tokens = features.flatten(2).transpose(1, 2)
        return tokens, tokens[:, :0]
    if features.dim() != 3:
        raise ValueError(
            f"tokens are [batch, tokens, width] and maps [batch, channels, height, width], not {tuple(features.shape)}"
        )
    over = features.shape[1] - math.isqrt(features.shape[1]) ** 2
    if over > _MOST_CLASS_TOKENS:
        raise ValueError(f"{features.shape[1]} tokens are no square grid, with or without class tokens")
    return features[:, over:], features[:, :over]


def token_map(features: Tensor) -> Tensor:
    """Returns the places of an image as a map ``[B, D, H, W]``, without class tokens.

    Args:
        features: a map, which is returned as it is, or tokens as in :func:`split_tokens`.

    Raises:
        ValueError: the tokens are no square grid.

    Example:
        >>> token_map(torch.zeros(2, 10, 4)).shape
        torch.Size([2, 4, 3, 3])
    """
    if features.dim() == 4:
        return features
    places, _ = split_tokens(features)
    side = math.isqrt(places.shape[1])
    return places.transpose(1, 2).unflatten(2, (side, side))


def aligned_tokens(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Returns two features as tokens of the same places; the finer grid is average-pooled to the coarser.

    Args:
        first: a map ``[B, D1, H, W]`` or tokens ``[B, K + N, D1]``, as in :func:`split_tokens`.
        second: likewise, of any other size and width.

    Returns:
        ``[B, N, D1]`` and ``[B, N, D2]``, without class tokens.

    Raises:
        ValueError: tokens are no square grid.

    Example:
        >>> one, other = aligned_tokens(torch.zeros(2, 6, 8, 8), torch.zeros(2, 17, 5))
        >>> one.shape, other.shape
        (torch.Size([2, 16, 6]), torch.Size([2, 16, 5]))
    """
    one, other = pool_to_smaller(token_map(first), token_map(second))
    return split_tokens(one)[0], split_tokens(other)[0]


def sampled_rows(tokens: Tensor, index: Tensor) -> Tensor:
    """Returns chosen tokens of a batch as rows.

    Args:
        tokens: ``[B, N, D]``.
        index: ``[M]`` positions among the ``B * N`` tokens, image after image.

    Returns:
        ``[M, D]``.
    """
    return torch.flatten(tokens, 0, 1)[index]
