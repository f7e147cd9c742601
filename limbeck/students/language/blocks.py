"""Depth: which of a decoder's blocks a student keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from limbeck.errors import RecipeError


def spread(total: int, kept: int) -> list[int]:
    """Returns ``kept`` of ``total`` layer numbers, evenly spaced, the first and the last among them.

    Example:
        >>> spread(30, 5), spread(12, 1)
        ([0, 7, 15, 22, 29], [0])
    """
    if not 1 <= kept <= total:
        raise RecipeError(f"a model of {total} layers cannot keep {kept}; give 1 to {total}")
    return [0] if kept == 1 else [int(n * (total - 1) / (kept - 1) + 0.5) for n in range(kept)]


def decoder_layers(model: nn.Module) -> tuple[nn.Module, str]:
    """Returns the module that holds a decoder's blocks and the name of the list.

    Raises:
        RecipeError: the model has no list of blocks that its configuration counts.
    """
    count = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return module, name
    raise RecipeError(f"{type(model).__name__} has no list of blocks that limbeck could find, so none can be left out")


def keep_layers(model: nn.Module, layers: int | Sequence[int]) -> nn.Module:
    """Keeps some of a decoder's blocks, in place, and returns the model.

    Args:
        model: a model of transformers.
        layers: numbers of the blocks to keep, in increasing order; or how many, evenly spaced with the first and the
            last (as DistilBERT and Minitron's depth pruning take them).

    Raises:
        RecipeError: there are no such blocks.

    Reference:
        Sanh et al., DistilBERT, 2019, https://arxiv.org/abs/1910.01108
    """
    owner, name = decoder_layers(model)
    blocks = getattr(owner, name)
    chosen = spread(len(blocks), layers) if isinstance(layers, int) else list(layers)
    if not chosen or sorted(set(chosen)) != chosen or chosen[0] < 0 or chosen[-1] >= len(blocks):
        raise RecipeError(f"layers = {chosen}: give increasing numbers from 0 to {len(blocks) - 1}")
    setattr(owner, name, nn.ModuleList(blocks[n] for n in chosen))
    config: Any = model.config
    config.num_hidden_layers = len(chosen)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        config.layer_types = [kinds[n] for n in chosen]
    for number, block in enumerate(getattr(owner, name)):
        # Key-value caches are kept under the number that attention remembers.
        for part in block.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = number
    return model
