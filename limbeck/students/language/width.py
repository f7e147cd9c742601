"""Width: attention heads, feed-forward neurons and hidden channels that a student does without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import RecipeError
from limbeck.students.language.scores import WidthImportance
from limbeck.students.language.structure import Decoder, check_heads_are_apart, check_width_is_plain, decoder_of


def narrowed(
    model: nn.Module,
    importance: WidthImportance,
    *,
    heads: int | None = None,
    kv_heads: int | None = None,
    inner: int | None = None,
    width: int | None = None,
) -> nn.Module:
    """Keeps the most important heads, neurons and channels of a decoder, in place, and returns the model.

    Each block keeps its own heads and neurons; hidden channels are the same everywhere, as the residual stream has it.
    Heads of queries stay with the head of keys and values that they share. The norms are rescaled to the number of
    channels that is left, so that a model whose other channels were zero says exactly what it said before.

    Args:
        model: a decoder of the Llama kind.
        importance: of this model's parts, by :func:`width_importance`.
        heads: attention heads to keep; all when None.
        kv_heads: heads of keys and values to keep; when None, all of them where ``heads`` can be shared among them
            equally, else whole groups.
        inner: feed-forward neurons to keep; all when None.
        width: hidden channels to keep; all when None.

    Raises:
        RecipeError: there are not so many, groups would be uneven, or the model is of another kind.

    Reference:
        Muralidharan et al., Minitron, 2024, https://arxiv.org/abs/2407.14679
    """
    decoder = decoder_of(model)
    if heads is not None or kv_heads is not None:
        check_heads_are_apart(decoder)
        _keep_heads(decoder, importance.heads, *shared_heads(decoder, heads, kv_heads))
    if inner is not None:
        _check_count("inner", inner, decoder.inner)
        keep_neurons(decoder, [_best(row, inner) for row in importance.inner])
    if width is not None:
        _check_count("width", width, decoder.width)
        keep_channels(decoder, _best(importance.width, width))
    return model


def shared_heads(decoder: Decoder, heads: int | None, kv_heads: int | None) -> tuple[int, int]:
    """Returns how many heads of queries, and of keys and values, a student keeps.

    Raises:
        RecipeError: heads of queries cannot be shared equally.
    """
    group = decoder.heads // decoder.kv_heads
    if kv_heads is None:
        assert heads is not None
        _check_count("heads", heads, decoder.heads)
        if heads % decoder.kv_heads == 0:
            kv_heads = decoder.kv_heads
        elif heads % group == 0:
            kv_heads = heads // group
        else:
            raise RecipeError(
                f"heads = {heads}: {decoder.heads} heads share {decoder.kv_heads} heads of keys and values; keep a "
                f"multiple of {decoder.kv_heads} or of {group}, or say how many of each (kv_heads)"
            )
    _check_count("kv_heads", kv_heads, decoder.kv_heads)
    heads = kv_heads * group if heads is None else heads
    if heads % kv_heads or heads // kv_heads > group:
        raise RecipeError(
            f"heads = {heads}, kv_heads = {kv_heads}: each head of keys and values serves 1 to {group} heads, all the "
            f"same number; keep {', '.join(str(kv_heads * n) for n in range(1, group + 1))} heads"
        )
    return heads, kv_heads


def _keep_heads(decoder: Decoder, importance: Tensor, heads: int, kv_heads: int) -> None:
    grouped = importance.unflatten(1, (decoder.kv_heads, -1))
    chosen = []
    for block in grouped:
        groups = _best(block.sum(-1), kv_heads)
        members = [_best(block[g], heads // kv_heads) for g in groups]
        chosen.append((groups, torch.cat([g * grouped.shape[2] + m for g, m in zip(groups, members)])))
    keep_heads(decoder, chosen)


def keep_heads(decoder: Decoder, chosen: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Keeps, in place, of each block the heads of keys and values and the heads of queries with these numbers."""
    for block, (groups, members) in zip(decoder.blocks, chosen):
        attention = block.self_attn
        own, shared = (_channels(n, decoder.head_width) for n in (members, groups))
        attention.q_proj = keep_outputs(attention.q_proj, own)
        attention.k_proj = keep_outputs(attention.k_proj, shared)
        attention.v_proj = keep_outputs(attention.v_proj, shared)
        attention.o_proj = keep_inputs(attention.o_proj, own)
        attention.num_key_value_groups = len(members) // len(groups)
        for name, value in (("num_heads", len(members)), ("num_key_value_heads", len(groups))):
            if hasattr(attention, name):
                setattr(attention, name, value)
    config: Any = decoder.model.config
    # Without this, transformers would divide the hidden size by the number of heads.
    config.head_dim = decoder.head_width
    config.num_attention_heads, config.num_key_value_heads = len(chosen[0][1]), len(chosen[0][0])


def keep_neurons(decoder: Decoder, chosen: Sequence[Tensor]) -> None:
    """Keeps, in place, the feed-forward neurons of each block with these numbers."""
    for block, kept in zip(decoder.blocks, chosen):
        mlp = block.mlp
        for name in ("gate_proj", "up_proj"):
            if hasattr(mlp, name):
                setattr(mlp, name, keep_outputs(getattr(mlp, name), kept))
        mlp.down_proj = keep_inputs(mlp.down_proj, kept)
        if hasattr(mlp, "intermediate_size"):
            mlp.intermediate_size = len(kept)
    decoder.model.config.intermediate_size = len(chosen[0])


def keep_channels(decoder: Decoder, kept: Tensor) -> None:
    """Keeps, in place, the hidden channels with these numbers everywhere.

    Raises:
        RecipeError: the model uses its hidden size in ways that are not known.
    """
    check_width_is_plain(decoder)
    model, config = decoder.model, decoder.model.config
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for block in decoder.blocks:
        attention, mlp = block.self_attn, block.mlp
        for owner, names in ((attention, ("q_proj", "k_proj", "v_proj")), (mlp, ("gate_proj", "up_proj"))):
            for name in names:
                if hasattr(owner, name):
                    setattr(owner, name, keep_inputs(getattr(owner, name), kept))
        attention.o_proj = keep_outputs(attention.o_proj, kept)
        mlp.down_proj = keep_outputs(mlp.down_proj, kept)
        for owner in (block, mlp):
            if hasattr(owner, "hidden_size"):
                owner.hidden_size = len(kept)
    for norm in decoder.norms:
        _narrow_norm(norm, kept)
    embedding = model.get_input_embeddings()
    embedding.weight = _chosen(embedding.weight, kept, 1)
    embedding.embedding_dim = len(kept)
    head = keep_inputs(model.get_output_embeddings(), kept)
    if tied:
        head.weight = embedding.weight
    model.set_output_embeddings(head)
    config.head_dim = decoder.head_width
    config.hidden_size = len(kept)
    config.rms_norm_eps = decoder.norms[0].variance_epsilon


def _narrow_norm(norm: Any, kept: Tensor) -> None:
    """Divides by the root of the mean over what is left as if what is gone were zero."""
    share = len(kept) / norm.weight.numel()
    norm.weight = nn.Parameter(norm.weight.detach()[kept] * share**-0.5, norm.weight.requires_grad)
    norm.variance_epsilon = norm.variance_epsilon / share


def keep_outputs(layer: nn.Linear, kept: Tensor) -> nn.Linear:
    """Returns a linear layer with some of the outputs of another."""
    bias = None if layer.bias is None else _chosen(layer.bias, kept, 0)
    return _linear(_chosen(layer.weight, kept, 0), bias)


def keep_inputs(layer: nn.Linear, kept: Tensor) -> nn.Linear:
    """Returns a linear layer with some of the inputs of another."""
    return _linear(_chosen(layer.weight, kept, 1), layer.bias)


def _linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta", dtype=weight.dtype)
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    return layer


def _chosen(tensor: Tensor, kept: Tensor, dim: int) -> nn.Parameter:
    return nn.Parameter(tensor.detach().index_select(dim, kept.to(tensor.device)).clone(), tensor.requires_grad)


def _channels(heads: Tensor, size: int) -> Tensor:
    return (heads.unsqueeze(1) * size + torch.arange(size)).flatten()


def _best(importance: Tensor, count: int) -> Tensor:
    """Returns the numbers of the most important, in their own order."""
    return importance.topk(count).indices.sort().values


def _check_count(name: str, count: int, total: int) -> None:
    if not 1 <= count <= total:
        raise RecipeError(f"{name} = {count}: the model that is cut has {total}; keep 1 to {total}")
