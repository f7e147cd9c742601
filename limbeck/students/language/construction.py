"""Students made of a teacher: which blocks, heads, neurons and channels they take over."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import nn

from limbeck.errors import RecipeError, suggest
from limbeck.signals import Batch
from limbeck.students.language.blocks import decoder_layers, keep_layers
from limbeck.students.language.scores import block_influence, loss_increase, width_importance
from limbeck.students.language.width import narrowed

BlockScore = Literal["block_influence", "loss_increase"]
_SCORES: dict[str, Any] = {"block_influence": block_influence, "loss_increase": loss_increase}

Text = Callable[[], Sequence[Batch]]


def cut(
    model: nn.Module,
    *,
    text: Text | None = None,
    layers: int | Sequence[int] | None = None,
    scored: str | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    inner: int | None = None,
    width: int | None = None,
) -> nn.Module:
    """Makes a decoder smaller, in place, and returns it: first fewer blocks, then narrower ones.

    Args:
        model: a model of transformers.
        text: gives batches of text with one sequence a row, on which parts are scored; only called where that is
            needed. Heads, neurons and channels are always scored, by how active they are (Minitron).
        layers: how many blocks to keep, or which; all when None.
        scored: how the blocks to keep are chosen where ``layers`` is a number: by ``block_influence`` or by
            ``loss_increase``; evenly spaced when None.
        heads: attention heads to keep.
        kv_heads: heads of keys and values to keep.
        inner: feed-forward neurons to keep.
        width: hidden channels to keep.

    Raises:
        RecipeError: there are no such parts, or something has to be scored and there is no text.
        DataError: the text is empty.
    """
    if layers is not None:
        model = keep_layers(model, _chosen_layers(model, layers, scored, text))
    elif scored is not None:
        raise RecipeError("scored chooses blocks; say how many to keep (layers: 6)")
    sizes = {"heads": heads, "kv_heads": kv_heads, "inner": inner, "width": width}
    if all(size is None for size in sizes.values()):
        return model
    return narrowed(model, width_importance(model, _required(text)()), **sizes)


def student_from(teacher: nn.Module, **parts: Any) -> nn.Module:
    """Returns a student that is a copy of parts of a teacher, which stays as it is; see :func:`cut`.

    Raises:
        RecipeError: there are no such parts.
    """
    return cut(copy.deepcopy(teacher), **parts)


def _chosen_layers(
    model: nn.Module, layers: int | Sequence[int], scored: str | None, text: Text | None
) -> int | list[int]:
    if scored is None:
        return layers if isinstance(layers, int) else list(layers)
    if scored not in _SCORES:
        raise RecipeError(f"unknown score of blocks '{scored}'. {suggest(scored, _SCORES)}")
    owner, name = decoder_layers(model)
    total = len(getattr(owner, name))
    if not isinstance(layers, int) or not 1 <= layers <= total:
        raise RecipeError(f"scored chooses among {total} blocks; say how many to keep (layers: 1 to {total})")
    scores = _SCORES[scored](model, _required(text)())
    return sorted(scores.topk(layers).indices.tolist())


def _required(text: Text | None) -> Text:
    if text is None:
        raise RecipeError("parts of a model are scored on text, but there is none; give batches (text=...)")
    return text
