"""Fewer tokens: embeddings and output layer cut to the rows that a trimmed tokenizer still names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import RecipeError


def trim_embeddings(model: Any, kept: Sequence[int]) -> nn.Module:
    """Keeps the rows of some tokens, in place, in the order given, and returns the model.

    Rows are copied as they are, so that the logits of a token that is kept do not change by a bit; a softmax then runs
    over fewer of them. Tied embeddings stay tied, and the ids of special tokens in the configuration follow.

    Args:
        model: a model of transformers.
        kept: ids of the tokens to keep; token ``kept[n]`` becomes token ``n``.

    Raises:
        RecipeError: there are no such tokens, or the model says nothing of its embeddings.
    """
    if not hasattr(model, "get_input_embeddings") or model.get_output_embeddings() is None:
        raise RecipeError(f"{type(model).__name__} does not say which layers know its tokens; keep its vocabulary")
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows = torch.as_tensor(list(kept), dtype=torch.long)
    if not len(rows) or int(rows.min()) < 0 or int(rows.max()) >= len(embedding.weight) or len(set(kept)) != len(rows):
        raise RecipeError(f"tokens to keep are different numbers from 0 to {len(embedding.weight) - 1}")
    tied = head.weight is embedding.weight
    padding = None if embedding.padding_idx is None else _moved(embedding.padding_idx, kept)
    small = nn.Embedding(len(rows), embedding.embedding_dim, padding_idx=padding, device="meta")
    small.weight = _rows(embedding.weight, rows)
    if type(embedding) is not nn.Embedding:
        raise RecipeError(f"{type(model).__name__} has embeddings of its own kind; keep its vocabulary")
    out = nn.Linear(head.in_features, len(rows), bias=head.bias is not None, device="meta")
    out.weight = small.weight if tied else _rows(head.weight, rows)
    if head.bias is not None:
        out.bias = _rows(head.bias, rows)
    model.set_input_embeddings(small)
    model.set_output_embeddings(out)
    for part in model.modules():
        if getattr(part, "vocab_size", None) == len(embedding.weight):
            part.vocab_size = len(rows)
        if hasattr(part, "padding_idx") and part is not small:
            part.padding_idx = padding
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None:
            _move_special(config, kept)
    model.config.vocab_size = len(rows)
    return model


def _rows(tensor: Tensor, rows: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach()[rows.to(tensor.device)].clone(), tensor.requires_grad)


_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def _move_special(config: Any, kept: Sequence[int]) -> None:
    for name in _SPECIAL:
        value = getattr(config, name, None)
        if isinstance(value, (list, tuple)):
            moved = [m for v in value if (m := _moved(v, kept)) is not None]
            setattr(config, name, moved or None)
        elif isinstance(value, int):
            setattr(config, name, _moved(value, kept))


def _moved(token: int, kept: Sequence[int]) -> int | None:
    """Returns the new id of a token; None where it is gone."""
    where: Mapping[int, int] = {old: new for new, old in enumerate(kept)}
    return where.get(token)
