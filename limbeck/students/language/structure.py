"""Where the parts of a decoder are that can be made narrower: heads, feed-forward neurons, hidden channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from limbeck.errors import RecipeError
from limbeck.students.language.blocks import decoder_layers

_PLAIN = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Model types of which every use of the hidden size is one that :class:`Decoder` names."""


@dataclass(frozen=True)
class Decoder:
    """The parts of a decoder of the Llama kind, as they are in the model.

    Attributes:
        model: the whole model.
        blocks: its transformer blocks.
        heads: attention heads.
        kv_heads: heads of keys and values, each shared by ``heads / kv_heads`` neighbours.
        head_width: channels of one head.
        inner: neurons of a feed-forward layer.
        width: size of the hidden states.
    """

    model: Any
    blocks: list[Any]
    heads: int
    kv_heads: int
    head_width: int
    inner: int
    width: int

    @property
    def norms(self) -> list[Any]:
        """The norms over hidden states: two a block, and the last one."""
        inside = [n for b in self.blocks for n in (b.input_layernorm, b.post_attention_layernorm)]
        return [*inside, self.model.base_model.norm]


def decoder_of(model: nn.Module) -> Decoder:
    """Returns the parts of a decoder of the Llama kind.

    Raises:
        RecipeError: its blocks are of another kind, so heads, neurons and channels cannot be told apart.
    """
    owner, name = decoder_layers(model)
    blocks = list(getattr(owner, name))
    config: Any = model.config
    wanted = {
        "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
        "mlp": ("up_proj", "down_proj"),
    }
    for block in blocks:
        for part, layers in wanted.items():
            for layer in layers:
                if not isinstance(getattr(getattr(block, part, None), layer, None), nn.Linear):
                    raise RecipeError(
                        f"{type(model).__name__} has no {part}.{layer} in its blocks, so limbeck cannot make it "
                        "narrower; leave out heads, inner and width, and cut layers alone"
                    )
    heads = config.num_attention_heads
    head_width = blocks[0].self_attn.q_proj.out_features // heads
    inner = blocks[0].mlp.down_proj.in_features
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return Decoder(model, blocks, heads, kv_heads, head_width, inner, config.hidden_size)


def check_heads_are_apart(decoder: Decoder) -> None:
    """Refuses models that normalise queries over all heads at once.

    Raises:
        RecipeError: this is such a model.
    """
    for block in decoder.blocks:
        for name in ("q_norm", "k_norm"):
            norm = getattr(block.self_attn, name, None)
            weight = getattr(norm, "weight", None)
            if weight is not None and weight.numel() != decoder.head_width:
                raise RecipeError(
                    f"{type(decoder.model).__name__} normalises queries over all heads at once, so heads cannot be "
                    "left out one by one; leave out `heads` and `kv_heads`"
                )


def check_width_is_plain(decoder: Decoder) -> None:
    """Refuses models that use the hidden size elsewhere than in layers and norms, such as to scale embeddings.

    Raises:
        RecipeError: the model's type is not known to be plain.
    """
    kind = getattr(decoder.model.config, "model_type", None)
    if kind not in _PLAIN:
        raise RecipeError(
            f"hidden channels can be left out of models of the types {', '.join(_PLAIN)}; this one is of type "
            f"'{kind}'. Leave out `width`; layers, heads and inner may still be cut"
        )
