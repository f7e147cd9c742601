"""One token further through a Llama, with a third of the calls that its modules make."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.generation.room import Room

_MODELS = ("Llama", "Mistral", "Qwen2", "Qwen3")
_STEADY = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angles do not depend on how long a sequence has become."""
_Linear = Callable[[Tensor], Tensor]
_Norm = Callable[[Tensor], Tensor]


class _Block(NamedTuple):
    """What a layer computes with."""

    before_attention: _Norm
    query: _Linear
    key: _Linear
    value: _Linear
    query_norm: _Norm | None
    key_norm: _Norm | None
    scale: float
    output: _Linear
    before_mlp: _Norm
    gate: _Linear
    activation: Callable[[Tensor], Tensor]
    up: _Linear
    down: _Linear


class LlamaStep:
    """Computes what the layers of a Llama say about one more token of every sequence.

    It reads the parameters where they are. Linear layers that are more than a matrix, such as peft's adapters, run
    themselves.

    Args:
        core: the model without its output layer.
        positions: number of positions that can occur.
    """

    def __init__(self, core: Any, positions: int) -> None:
        self._embed = core.embed_tokens
        self._norm = _norm(core.norm)
        self._blocks = [_block(layer) for layer in core.layers[: core.config.num_hidden_layers]]
        self._width = int(core.layers[0].self_attn.head_dim)
        places = torch.arange(positions, device=core.norm.weight.device).unsqueeze(0)
        with torch.no_grad():
            cosine, sine = core.rotary_emb(self._embed(places[:, :1]), places)
        self._cosine = cosine[0].unsqueeze(1)
        # The halves of a vector change places and one of them its sign; here the sines carry the sign.
        self._sine = torch.cat([-sine[0, :, : self._width // 2], sine[0, :, self._width // 2 :]], -1).unsqueeze(1)

    def __call__(self, tokens: Tensor, positions: Tensor, layers: Iterable[Room], mask: Tensor | None) -> Tensor:
        """Returns the ``[B, D]`` states that the output layer reads.

        Args:
            tokens: ``[B]`` the tokens.
            positions: ``[B]`` their positions.
            layers: keys and values of what came before, to which those of the tokens are added.
            mask: ``[B, 1, 1, L]`` what is added to the scores of attention, where prompts are padded.
        """
        states = self._embed(tokens)
        turn = self._cosine[positions], self._sine[positions]
        for block, room in zip(self._blocks, layers):
            states = states + block.output(self._attention(block, block.before_attention(states), room, turn, mask))
            read = block.before_mlp(states)
            states = states + block.down(block.activation(block.gate(read)) * block.up(read))
        return self._norm(states)

    def _attention(
        self, block: _Block, read: Tensor, room: Room, turn: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> Tensor:
        rows, width = len(read), self._width
        query, key = block.query(read), block.key(read)
        if block.query_norm is not None and block.key_norm is not None:
            query, key = (norm(side.view(rows, -1, width)).flatten(1) for norm, side in (
                (block.query_norm, query), (block.key_norm, key)))  # fmt: skip
        heads = query.shape[1] // width
        both = torch.cat([query, key], dim=1).view(rows, -1, width)
        both = torch.addcmul(both * turn[0], both.roll(width // 2, -1), turn[1])
        value = block.value(read).view(rows, -1, 1, width)
        keys, values = room.update(both[:, heads:].unsqueeze(2), value)
        # The heads that share keys stand where a longer query would have its tokens.
        query = both[:, :heads].reshape(rows, keys.shape[1], -1, width)
        found = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=block.scale)
        return found.reshape(rows, -1)


def llama_step(model: nn.Module, positions: int) -> LlamaStep | None:
    """Returns the short way through a model, or None where the model is another one or something is attached to it.

    It exists for transformers' own Llama, Mistral, Qwen2 and Qwen3 models, with or without peft's adapters on their
    linear layers. Hooks on the modules that it passes by, replaced forward functions and rotary embeddings that change
    with the length keep the model's own way.

    Args:
        model: a causal language model in eval mode.
        positions: number of positions that can occur.
    """
    wrappers: list[Any] = [model]
    if type(model).__module__.startswith("peft."):
        wrappers += [model.base_model, model.get_base_model()]  # type: ignore[operator]
    whole = wrappers[-1]
    family = _family(whole, "ForCausalLM")
    core = getattr(whole, "model", None)
    if family is None or core is None or _family(core, "Model") != family:
        return None
    layers = list(core.layers)
    norms = [core.norm, *(norm for layer in layers for norm in _norms(layer))]
    kinds = {"DecoderLayer": layers, "RMSNorm": norms,
             "Attention": [layer.self_attn for layer in layers], "MLP": [layer.mlp for layer in layers]}  # fmt: skip
    if any(_family(module, suffix) != family for suffix, modules in kinds.items() for module in modules):
        return None
    if getattr(core.rotary_emb, "rope_type", None) not in _STEADY:
        return None
    if not all(_untouched(module) for modules in (wrappers, [core], *kinds.values()) for module in modules):
        return None
    return LlamaStep(core, positions)


def _family(module: object, suffix: str) -> str | None:
    """Returns the name of a family of transformers' own classes, without the suffix."""
    kind = type(module)
    family = kind.__name__.removesuffix(suffix)
    known = kind.__name__.endswith(suffix) and kind.__module__.startswith("transformers.models.")
    return family if known and family in _MODELS else None


def _norms(layer: Any) -> list[nn.Module]:
    own = [getattr(layer.self_attn, name) for name in ("q_norm", "k_norm") if hasattr(layer.self_attn, name)]
    return [layer.input_layernorm, layer.post_attention_layernorm, *own]


def _untouched(module: nn.Module) -> bool:
    """Whether nothing hangs on a module that wants to see its forward function run."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return not hooks and "forward" not in vars(module)


def _block(layer: Any) -> _Block:
    attention, mlp = layer.self_attn, layer.mlp
    normed = hasattr(attention, "q_norm")
    return _Block(
        _norm(layer.input_layernorm),
        _linear(attention.q_proj),
        _linear(attention.k_proj),
        _linear(attention.v_proj),
        _norm(attention.q_norm) if normed else None,
        _norm(attention.k_norm) if normed else None,
        float(attention.scaling),
        _linear(attention.o_proj),
        _norm(layer.post_attention_layernorm),
        _linear(mlp.gate_proj),
        mlp.act_fn,
        _linear(mlp.up_proj),
        _linear(mlp.down_proj),
    )


def _linear(layer: nn.Module) -> _Linear:
    if type(layer) is nn.Linear and _untouched(layer):
        return partial(functional.linear, weight=layer.weight, bias=layer.bias)
    return layer


def _norm(layer: Any) -> _Norm:
    return partial(
        functional.rms_norm, normalized_shape=layer.weight.shape, weight=layer.weight, eps=layer.variance_epsilon
    )
