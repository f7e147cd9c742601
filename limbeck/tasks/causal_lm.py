"""Causal language modelling: what a model says about the next token at every position."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import DataError, NeedsError
from limbeck.signals import Batch, Head, Hidden, Signals
from limbeck.tasks.base import tasks

_IGNORED = -100


@tasks.register("causal-lm", data="text")
class CausalLM:
    """Runs language models: those of transformers, peft's adapters on them, or any module that returns logits.

    What runs follows from the signals that are wanted. ``logits`` are cut to the true vocabulary, since rows beyond it
    stand for no token but would take part in a softmax. ``hidden`` gives the final hidden states with the output layer,
    which is then not run. ``attentions`` and ``features.layers`` (the states after every layer) come beside them.

    Rows that hold several sequences get position ids that begin anew and a block-diagonal attention mask, so no
    sequence sees another.

    Args:
        vocabulary: number of true tokens; all rows of the model's head when None.
    """

    def __init__(self, *, vocabulary: int | None = None) -> None:
        self.vocabulary = vocabulary

    def run(self, model: nn.Module, inputs: Any, wanted: frozenset[str] = frozenset()) -> Signals:
        """Returns what ``model`` says about ``inputs``, a dict of ``[B, T]`` tensors (see :class:`Batch`).

        Raises:
            DataError: the model gives something else than ``[B, T, V]`` logits, or knows too few tokens.
            NeedsError: the model cannot keep packed sequences apart.
        """
        known = ("logits", "hidden") if has_output_layer(model) else ("logits",)
        chosen = {_first_of(name, known) for name in wanted}
        keywords = _keywords(model, inputs)
        if "attentions" in wanted:
            keywords["output_attentions"] = True
        if "hidden" in chosen and "logits" not in chosen:
            with headless(model) as (caught, head):
                output = _call(model, keywords)
            signals = Signals(hidden=Hidden(caught[0], head_of(model, head, self.vocabulary), _input_embeddings(model)))
        else:
            output = _call(model, keywords)
            signals = Signals(logits=self._logits(model, output))
        attentions = getattr(output, "attentions", None)
        return Signals(signals.logits, hidden=signals.hidden, attentions=attentions)

    def _logits(self, model: nn.Module, output: Any) -> Tensor:
        logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        if not isinstance(logits, Tensor) or logits.dim() != 3:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
            raise DataError(f"{type(model).__name__} should give logits [batch, tokens, vocabulary], but gave {got}")
        _check_vocabulary(model, logits.shape[-1], self.vocabulary)
        return logits[..., : self.vocabulary]

    def check(self, batch: Batch, num_classes: int | None) -> None:
        """Refuses labels outside the vocabulary, and a mask that is not where labels count."""
        labels, mask = batch.get("labels"), batch.get("mask")
        if labels is None or mask is None:
            raise DataError("causal language modelling needs labels and a mask, but the data gives none")
        if not torch.equal(mask, labels != _IGNORED):
            raise DataError("the mask of a batch of text should be true exactly where labels are not -100")
        if num_classes is not None:
            bad = mask & ((labels < 0) | (labels >= num_classes))
            if bool(bad.any()):
                where = batch["index"][bad.any(-1)][:5].tolist()
                raise DataError(
                    f"tokens {torch.unique(labels[bad])[:5].tolist()} of rows {where} are outside 0..{num_classes - 1}"
                )


def _first_of(name: str, known: tuple[str, ...]) -> str:
    """Returns the first alternative of a need that a live model can give."""
    return next((option for option in name.split("|") if option in known), name)


def _keywords(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns what the model's forward takes of a batch's inputs.

    Raises:
        NeedsError: rows are packed, but the model takes no positions or no attention mask.
    """
    takes = inspect.signature(forward_of(model)).parameters
    everything = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    segments = inputs.get("segment_ids")
    given: dict[str, Any] = {key: inputs[key] for key in ("input_ids", "attention_mask", "position_ids")}
    if segments is not None:
        _check_packing(model, takes, everything, segments)
        given["attention_mask"] = block_diagonal(segments, _dtype(model))
    keywords = {key: value for key, value in given.items() if everything or key in takes}
    if "use_cache" in takes:
        keywords["use_cache"] = False
    if "input_ids" not in keywords:
        return {"": given["input_ids"]}
    return keywords


def _call(model: nn.Module, keywords: dict[str, Any]) -> Any:
    """Runs a model; one whose forward names no ``input_ids`` gets them as its only argument."""
    return model(keywords[""]) if "" in keywords else model(**keywords)


def forward_of(model: nn.Module) -> Any:
    """Returns the forward function whose parameters count: that of the model inside peft's or a compiler's wrapper."""
    inner = getattr(model, "_orig_mod", model)
    base = getattr(inner, "get_base_model", None)
    return (base() if base is not None else inner).forward


def _check_packing(model: nn.Module, takes: Any, everything: bool, segments: Tensor) -> None:
    missing = [key for key in ("attention_mask", "position_ids") if not everything and key not in takes]
    if missing:
        raise NeedsError(
            f"{type(model).__name__} takes no {' and no '.join(missing)}, so it cannot keep packed sequences apart; "
            "set data.options.packed to false"
        )
    config = getattr(model, "config", None)
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if window is not None and segments.shape[1] > window:
        raise NeedsError(
            f"{type(model).__name__} attends over a sliding window of {window} tokens, which the attention mask of a "
            f"packed row of {segments.shape[1]} would replace; lower data.options.context, or set packed to false"
        )
    if getattr(config, "_attn_implementation", "sdpa") not in ("sdpa", "eager"):
        raise NeedsError(
            f"packed rows need the attention implementation sdpa or eager, but {type(model).__name__} uses "
            f"{config._attn_implementation}; set data.options.packed to false"  # type: ignore[union-attr]
        )


def block_diagonal(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the additive attention mask ``[B, 1, T, T]`` of packed rows: causal, and within one sequence only.

    Padding (segment 0) attends to padding before it, so that no row of a softmax is empty.

    Args:
        segments: ``[B, T]`` number of the sequence at each position.
        dtype: type of the mask, that of the model.
    """
    length = segments.shape[1]
    same = segments.unsqueeze(2) == segments.unsqueeze(1)
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    blocked = torch.zeros((), dtype=dtype, device=segments.device).masked_fill(~(same & causal), torch.finfo(dtype).min)
    return blocked.unsqueeze(1)


def _dtype(model: nn.Module) -> torch.dtype:
    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(floating, torch.float32)


def output_layer(model: nn.Module) -> nn.Module:
    """Returns the linear layer that makes logits, peft's adapter around it included.

    Raises:
        NeedsError: the model does not say which it is.
    """
    inner = getattr(model, "_orig_mod", model)
    getter = getattr(inner, "get_output_embeddings", None)
    layer = getter() if getter is not None else getattr(inner, "lm_head", None)
    if not isinstance(layer, nn.Module) or getattr(layer, "weight", None) is None:
        raise NeedsError(
            f"{type(inner).__name__} has no output layer that limbeck could find (get_output_embeddings, lm_head), so "
            "its hidden states cannot be given; use logits"
        )
    return layer


def _input_embeddings(model: nn.Module) -> Tensor | None:
    """Returns the table of a model's input embeddings, where it says which they are."""
    getter = getattr(getattr(model, "_orig_mod", model), "get_input_embeddings", None)
    try:
        table = None if getter is None else getattr(getter(), "weight", None)
    except NotImplementedError:  # what transformers raises where a model does not say
        return None
    return table if isinstance(table, Tensor) and table.dim() == 2 else None


def has_output_layer(model: nn.Module) -> bool:
    """Whether a model says which of its layers makes logits."""
    try:
        output_layer(model)
    except NeedsError:
        return False
    return True


@contextmanager
def headless(model: nn.Module) -> Iterator[tuple[list[Tensor], nn.Module]]:
    """Lets a model run without its output layer, whose input is caught; wrappers around the model still see the run."""
    layer = output_layer(model)
    caught: list[Tensor] = []

    def catch(states: Tensor, *_: Any, **__: Any) -> Tensor:
        caught.append(states)
        # What follows the head (a cast, a softcap) need not work on every state.
        return states[..., :1, :]

    layer.forward = catch
    try:
        yield caught, layer
    finally:
        del layer.forward


def head_of(model: nn.Module, layer: nn.Module, vocabulary: int | None = None) -> Head:
    """Returns a model's output layer as a record: weights, softcap, scale, and LoRA factors where peft put some.

    Softcap and scale are read from the configuration: ``final_logit_softcapping`` (Gemma), ``logit_scale`` (Cohere),
    ``logits_scaling`` (Granite, which divides).

    Args:
        model: the language model.
        layer: its output layer.
        vocabulary: number of true tokens.

    Raises:
        DataError: the head has fewer rows than there are tokens.
        NeedsError: more than one adapter is active on the head.
    """
    config: Any = getattr(getattr(model, "_orig_mod", model), "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    scale = float(getattr(text, "logit_scale", None) or 1.0) / float(getattr(text, "logits_scaling", None) or 1.0)
    softcap = getattr(text, "final_logit_softcapping", None)
    base: Any = getattr(layer, "base_layer", layer)
    _check_vocabulary(model, base.weight.shape[0], vocabulary)
    return Head(
        base.weight,
        getattr(base, "bias", None),
        scale,
        None if softcap is None else float(softcap),
        vocabulary,
        _adapter(layer),
    )


def _adapter(layer: Any) -> tuple[Tensor, Tensor, float] | None:
    """Returns the LoRA factors of a layer, where peft put some and they are on."""
    factors = getattr(layer, "lora_A", None)
    if factors is None or getattr(layer, "disable_adapters", False) or getattr(layer, "merged", False):
        return None
    active = [name for name in layer.active_adapters if name in factors]
    if not active:
        return None
    if len(active) > 1:
        raise NeedsError(f"the adapters {active} are all active on the output layer; activate one")
    name = active[0]
    if layer.use_dora.get(name, False) or (layer.training and getattr(layer.lora_dropout[name], "p", 0.0)):
        raise NeedsError("the output layer's adapter uses DoRA or dropout, which needs logits: choose a dense loss")
    return factors[name].weight, layer.lora_B[name].weight, float(layer.scaling[name])


def _check_vocabulary(model: nn.Module, rows: int, vocabulary: int | None) -> None:
    if vocabulary is not None and rows < vocabulary:
        raise DataError(
            f"{type(model).__name__} has logits for {rows} tokens, but the tokenizer has {vocabulary}; they do not "
            "belong together"
        )
