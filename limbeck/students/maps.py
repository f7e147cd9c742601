"""Modules that show vectors and tokens as maps, so that methods written for convolutional features can read them."""

from __future__ import annotations

from torch import Tensor, nn


class TokensToMap(nn.Module):
    """Shows the tokens of an image ``[B, H*W, D]`` as a map ``[B, D, H, W]``, without a copy.

    Args:
        grid: ``(H, W)``, tokens down and across.
    """

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the map."""
        return tokens.transpose(1, 2).unflatten(2, self.grid)


class VectorToMap(nn.Module):
    """Shows a vector ``[B, D]`` as a map ``[B, D, 1, 1]``, without a copy."""

    def forward(self, vector: Tensor) -> Tensor:
        """Returns the map."""
        return vector[:, :, None, None]
