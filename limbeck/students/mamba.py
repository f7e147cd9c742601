"""Small classifiers of selective state-space blocks: an image is read as a sequence of patches.

Reference:
    Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, 2023,
    https://arxiv.org/abs/2312.00752
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from limbeck.functional.selective_scan import selective_scan
from limbeck.hyperparameters import Count
from limbeck.students.base import register
from limbeck.students.patches import PatchClassifier

_PAPER: dict[str, Any] = {
    "title": "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
    "authors": "Albert Gu and Tri Dao",
    "paper": "2312.00752",
    "year": 2023,
}
_SHORTEST_STEP, _LONGEST_STEP = 1e-3, 0.1


class SelectiveBlock(nn.Module):
    """Normalisation, causal convolution, selective scan and gate, beside the identity.

    Args:
        dim: width of a token.
        state: size of each channel's state.
        expansion: inner width over ``dim``.
        kernel: tokens that the causal convolution sees.
    """

    def __init__(self, dim: int, state: int, expansion: int, kernel: int) -> None:
        super().__init__()
        inner, rank = dim * expansion, max(dim // 16, 1)
        self.state, self.rank = state, rank
        self.norm = nn.LayerNorm(dim)
        self.entry = nn.Linear(dim, 2 * inner, bias=False)
        self.convolution = nn.Conv1d(inner, inner, kernel, padding=kernel - 1, groups=inner)
        self.selection = nn.Linear(inner, rank + 2 * state, bias=False)
        self.step = nn.Linear(rank, inner)
        self.a_log = nn.Parameter(torch.arange(1, state + 1, dtype=torch.float32).log().repeat(inner, 1))
        self.direct = nn.Parameter(torch.ones(inner))
        self.exit = nn.Linear(inner, dim, bias=False)
        self._initialise_steps()

    def _initialise_steps(self) -> None:
        """Draws step sizes evenly in their logarithm, as the authors do; the bias is the softplus's inverse of them."""
        nn.init.uniform_(self.step.weight, -(self.rank**-0.5), self.rank**-0.5)
        spread = math.log(_LONGEST_STEP) - math.log(_SHORTEST_STEP)
        sizes = torch.exp(torch.rand(len(self.step.bias)) * spread + math.log(_SHORTEST_STEP))
        with torch.no_grad():
            self.step.bias.copy_(sizes + torch.log(-torch.expm1(-sizes)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the residual stream ``[B, L, dim]`` after the block."""
        u, gate = self.entry(self.norm(tokens)).chunk(2, dim=-1)
        u = silu(self.convolution(u.transpose(1, 2))[..., : tokens.shape[1]].transpose(1, 2))
        dt, b, c = self.selection(u).split([self.rank, self.state, self.state], dim=-1)
        y, _ = selective_scan(u, self.step(dt), self.a_log, b, c, self.direct, gate=gate)
        return tokens + self.exit(y.to(tokens.dtype))


class MambaClassifier(PatchClassifier):
    """Patches in raster order, then selective blocks.

    Args:
        dim: width of a token.
        state: size of each channel's state.
        expansion: inner width of a block over ``dim``.
        kernel: tokens that a block's causal convolution sees.
        shape: the other keywords of :class:`~limbeck.students.patches.PatchClassifier`.

    Raises:
        RecipeError: sizes that do not divide.
    """

    def __init__(self, *, dim: int, state: int, expansion: int = 2, kernel: int = 4, **shape: Any) -> None:
        super().__init__(partial(SelectiveBlock, dim, state, expansion, kernel), dim=dim, **shape)


@register("mamba", **_PAPER)
def mamba(
    *,
    num_classes: Count,
    in_channels: Count = 3,
    image_size: tuple[int, int] = (32, 32),
    patch_size: Count = 4,
    dim: Count = 64,
    depth: Count = 3,
    state: Count = 16,
    expansion: Count = 2,
    kernel: Count = 4,
    stages: Count = 3,
) -> nn.Module:
    """Returns selective state-space blocks on square patches; keywords as in :class:`MambaClassifier`."""
    return MambaClassifier(
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        patch_size=patch_size,
        dim=dim,
        depth=depth,
        state=state,
        expansion=expansion,
        kernel=kernel,
        stages=stages,
    )
