"""How much each part of a decoder does, found by running it on text: what a student can best do without."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.errors import DataError
from limbeck.modes import evaluation_mode
from limbeck.signals import Batch
from limbeck.students.language.blocks import decoder_layers
from limbeck.students.language.structure import Decoder, decoder_of

_IGNORED = -100


def block_influence(model: nn.Module, batches: Iterable[Batch]) -> Tensor:
    r"""Returns how far each block turns its hidden states, :math:`1 - \cos(x_i, x_{i+1})`, meant over tokens.

    A block of small influence leaves hidden states nearly as they were, so that a model without it says nearly the
    same.

    Args:
        model: a decoder of transformers.
        batches: text; rows hold one sequence each.

    Returns:
        ``[L]``, between 0 and 2.

    Raises:
        DataError: there is no text.
        RecipeError: the model has no list of blocks that limbeck could find.

    Reference:
        Men et al., ShortGPT, 2024, https://arxiv.org/abs/2403.03853
    """
    owner, name = decoder_layers(model)
    blocks = list(getattr(owner, name))
    sums = torch.zeros(len(blocks), dtype=torch.float64)
    count, seen = 0, torch.zeros(0)

    def watch(number: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, keywords: Any, output: Any) -> None:
            before = args[0] if args else keywords["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            cosine = functional.cosine_similarity(before.double(), after.double(), dim=-1)
            sums[number] += float((1 - cosine)[seen].sum())

        return hook

    with ExitStack() as stack:
        for number, block in enumerate(blocks):
            handle = block.register_forward_hook(watch(number), with_kwargs=True)
            stack.callback(handle.remove)
        for batch in _read(model, batches):
            seen = batch["inputs"]["attention_mask"].bool()
            count += int(seen.sum())
            _run(model, batch)
    return sums / count


def loss_increase(model: nn.Module, batches: Iterable[Batch]) -> Tensor:
    """Returns by how much the loss of a token rises, in nats, when each block alone is left out.

    Costs one pass over the text a block, where :func:`block_influence` costs one in all.

    Args:
        model: a decoder of transformers.
        batches: text with labels.

    Returns:
        ``[L]``; below zero where a model is better without the block.

    Raises:
        DataError: there is no text, or no token of it counts.
        RecipeError: the model has no list of blocks that limbeck could find.

    Reference:
        Muralidharan et al., Minitron, 2024, https://arxiv.org/abs/2407.14679
    """
    text = list(batches)
    owner, name = decoder_layers(model)
    whole = _loss(model, text)
    losses = []
    for block in getattr(owner, name):
        with _left_out(block):
            losses.append(_loss(model, text))
    return torch.tensor(losses, dtype=torch.float64) - whole


@contextmanager
def _left_out(block: nn.Module) -> Iterator[None]:
    def same(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states

    block.forward = same
    try:
        yield
    finally:
        del block.forward


def _loss(model: nn.Module, batches: Sequence[Batch]) -> float:
    total, count = 0.0, 0
    for batch in _read(model, batches):
        labels = batch["labels"]
        logits = _run(model, batch).float()
        total += float(functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
        count += int((labels != _IGNORED).sum())
    if count == 0:
        raise DataError("no token of the text that blocks should be scored on counts; give other text")
    return total / count


@dataclass(frozen=True)
class WidthImportance:
    """How strongly the parts of a decoder are active on text.

    Attributes:
        heads: ``[L, H]``, norm of what a head adds before the output projection.
        inner: ``[L, I]``, size of what a feed-forward neuron gives to the down projection.
        width: ``[D]``, size of a hidden channel after the norms, summed over all norms.
    """

    heads: Tensor
    inner: Tensor
    width: Tensor


def width_importance(model: nn.Module, batches: Iterable[Batch]) -> WidthImportance:
    """Returns how active heads, feed-forward neurons and hidden channels are on text.

    Sizes are averaged over the tokens of a sequence, and sequences are put together by their root mean square, the
    aggregation that Minitron found best.

    Args:
        model: a decoder of the Llama kind.
        batches: text; rows hold one sequence each.

    Raises:
        DataError: there is no text.
        RecipeError: the model's blocks are of another kind.

    Reference:
        Muralidharan et al., Minitron, 2024, https://arxiv.org/abs/2407.14679
    """
    decoder = decoder_of(model)
    layers = len(decoder.blocks)
    heads = torch.zeros(layers, decoder.heads, dtype=torch.float64)
    inner = torch.zeros(layers, decoder.inner, dtype=torch.float64)
    width = torch.zeros(2 * layers + 1, decoder.width, dtype=torch.float64)
    rows, seen = 0, torch.zeros(0)

    def add(sums: Tensor, sizes: Tensor) -> None:
        weights = seen.double() / seen.sum(-1, keepdim=True).clamp(min=1)
        means = torch.einsum("bt,btc->bc", weights, sizes.double())
        sums += means.square().sum(0)

    with ExitStack() as stack:
        for number, block in enumerate(decoder.blocks):
            _watch_input(stack, block.self_attn.o_proj, _of_heads(heads[number], decoder, add))
            _watch_input(stack, block.mlp.down_proj, _of_channels(inner[number], add))
        for number, norm in enumerate(decoder.norms):
            _watch_output(stack, norm, _of_channels(width[number], add))
        for batch in _read(model, batches):
            seen = batch["inputs"]["attention_mask"].bool()
            rows += len(seen)
            _run(model, batch)
    return WidthImportance((heads / rows).sqrt(), (inner / rows).sqrt(), (width / rows).sqrt().sum(0))


_Add = Callable[[Tensor, Tensor], None]


def _of_channels(sums: Tensor, add: _Add) -> Callable[[Tensor], None]:
    return lambda x: add(sums, x.abs())


def _of_heads(sums: Tensor, decoder: Decoder, add: _Add) -> Callable[[Tensor], None]:
    return lambda x: add(sums, x.unflatten(-1, (decoder.heads, decoder.head_width)).norm(dim=-1))


def _watch_input(stack: ExitStack, module: nn.Module, look: Callable[[Tensor], None]) -> None:
    stack.callback(module.register_forward_pre_hook(lambda _, args: look(args[0])).remove)


def _watch_output(stack: ExitStack, module: nn.Module, look: Callable[[Tensor], None]) -> None:
    stack.callback(module.register_forward_hook(lambda _, args, output: look(output)).remove)


def _read(model: nn.Module, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yields batches while the model is in eval mode and keeps no graph."""
    empty = True
    with evaluation_mode(model), torch.no_grad():
        for batch in batches:
            empty = False
            yield batch
    if empty:
        raise DataError("there is no text to score the parts of a model on")


def _run(model: Any, batch: Batch) -> Tensor:
    inputs = batch["inputs"]
    taken = {key: inputs[key] for key in ("input_ids", "attention_mask", "position_ids")}
    return model(**taken, use_cache=False).logits
