"""What classifiers that read an image as a row of patches have in common."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn

from limbeck.anatomy import Anatomy
from limbeck.errors import RecipeError
from limbeck.students.maps import TokensToMap


class PatchClassifier(nn.Module):
    """Patches in raster order, blocks in stages, the mean of the normalised tokens, a linear classifier.

    Modules: ``stem`` (the patch embedding), ``stages.<i>.<j>`` (blocks), ``maps.<i>`` (the tokens after stage ``i`` as
    ``[B, D, H, W]``), ``norm``, ``head``.

    Args:
        block: makes one block, from tokens ``[B, N, dim]`` to tokens.
        num_classes: number of classes.
        in_channels: channels of the images.
        image_size: ``(H, W)``, which the patches must divide.
        patch_size: side of a patch, or its ``(h, w)``.
        dim: width of a token.
        depth: number of blocks, at least ``stages``.
        stages: number of groups of blocks, as equal as ``depth`` allows.

    Raises:
        RecipeError: sizes that do not divide.
    """

    def __init__(
        self,
        block: Callable[[], nn.Module],
        *,
        num_classes: int,
        in_channels: int,
        image_size: tuple[int, int],
        patch_size: int | tuple[int, int],
        dim: int,
        depth: int,
        stages: int = 1,
    ) -> None:
        super().__init__()
        patch = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
        if any(side % length for side, length in zip(image_size, patch)):
            raise RecipeError(
                f"patch_size = {patch_size} does not divide images of {'x'.join(map(str, image_size))} pixels"
            )
        if depth < stages:
            raise RecipeError(f"depth = {depth} is less than stages = {stages}; each stage needs a block")
        self.grid = (image_size[0] // patch[0], image_size[1] // patch[1])
        self.stem = nn.Conv2d(in_channels, dim, patch, patch)
        bounds = [depth * i // stages for i in range(stages + 1)]
        self.stages = nn.ModuleList(
            nn.Sequential(*(block() for _ in range(start, stop))) for start, stop in pairwise(bounds)
        )
        self.maps = nn.ModuleList(TokensToMap(self.grid) for _ in range(stages))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        maps = tuple(f"maps.{i}" for i in range(stages))
        self.anatomy = Anatomy(stem=("stem",), stages=maps, preacts=maps, pooled=("head@in",), head="head")

    def embed(self, images: Tensor) -> Tensor:
        """Returns the tokens ``[B, N, dim]`` that the first block reads."""
        return self.stem(images).flatten(2).transpose(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits ``[B, num_classes]`` of ``images`` ``[B, in_channels, H, W]``."""
        tokens = self.embed(images)
        for stage, as_map in zip(self.stages, self.maps):
            tokens = stage(tokens)
            as_map(tokens)  # for taps; a view that nothing else reads
        return self.head(self.norm(tokens).mean(1))
