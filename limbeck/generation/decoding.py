"""A model that goes on with sequences token by token, with a key-value cache where it has one."""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from limbeck.errors import NeedsError
from limbeck.functional.reduction import widened
from limbeck.signals import Head
from limbeck.tasks.causal_lm import CausalLM, forward_of, has_output_layer, head_of, headless


class Decoder(Protocol):
    """Goes on with the sequences of a batch.

    Logits are ``[B, V]`` float32 over the true vocabulary, those of the token after the last one.
    """

    def start(self, ids: Tensor, mask: Tensor, repeats: int) -> Tensor:
        """Reads prompts ``[P, L]``, padded on the left, and returns the logits of ``P * repeats`` sequences.

        Sequences of one prompt follow each other.
        """

    def step(self, tokens: Tensor) -> Tensor:
        """Adds a token ``[B]`` to every sequence and returns the next logits."""

    def keep(self, rows: Tensor) -> None:
        """Forgets all sequences but those of the given numbers."""


def decoder(model: nn.Module, *, vocabulary: int | None, autocast: torch.dtype | None = None) -> Decoder:
    """Returns what goes on with sequences by ``model``.

    Models of transformers keep the keys and values of what they have read. Any other module that maps tokens to logits
    reads the whole sequence again for every token.

    Args:
        model: a causal language model.
        vocabulary: number of true tokens; all rows of the model's head when None.
        autocast: run the model under autocast to this type.
    """
    # A compiled model would be compiled again for every length.
    inner = getattr(model, "_orig_mod", model)
    takes = inspect.signature(forward_of(inner)).parameters
    chosen = CachedDecoder if {"past_key_values", "use_cache"} <= set(takes) else RecomputingDecoder
    return chosen(inner, vocabulary, autocast)


class CachedDecoder:
    """A model of transformers with its key-value cache. Prompts are read once, however many sequences go on from each.

    Args:
        model: the model, in eval mode.
        vocabulary: number of true tokens.
        autocast: type of autocast.
    """

    def __init__(self, model: nn.Module, vocabulary: int | None, autocast: torch.dtype | None) -> None:
        self._model: Any = model
        self._vocabulary, self._autocast = vocabulary, autocast
        parameters = inspect.signature(forward_of(model)).parameters
        self._takes = set(parameters)
        self._everything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._reads_states = has_output_layer(model)
        self._cache: Any = None
        self._head: Head | None = None
        self._mask = self._next = torch.empty(0)

    def start(self, ids: Tensor, mask: Tensor, repeats: int) -> Tensor:
        """Reads the prompts; see :class:`Decoder`."""
        self._cache, self._mask, self._head = None, mask, None
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self._run(ids, positions)
        self._next = mask.sum(-1)
        if repeats > 1:
            self._cache.batch_repeat_interleave(repeats)
            self._mask = mask.repeat_interleave(repeats, 0)
            self._next = self._next.repeat_interleave(repeats, 0)
            logits = logits.repeat_interleave(repeats, 0)
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """Adds a token to every sequence; see :class:`Decoder`."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        logits = self._run(tokens.unsqueeze(1), self._next.unsqueeze(1))
        self._next = self._next + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        """Forgets the other sequences; see :class:`Decoder`."""
        self._cache.batch_select_indices(rows)
        self._mask, self._next = self._mask[rows], self._next[rows]

    def _run(self, ids: Tensor, positions: Tensor) -> Tensor:
        given = {
            "input_ids": ids,
            "attention_mask": self._mask,
            "position_ids": positions,
            "past_key_values": self._cache,
            "use_cache": True,
        }
        if not self._reads_states:
            given["logits_to_keep"] = 1
        keywords = {key: value for key, value in given.items() if key in self._takes or self._usual(key)}
        output, states = self._call(keywords, ids.device.type)
        self._cache = getattr(output, "past_key_values", None)
        if not hasattr(self._cache, "batch_select_indices"):
            raise NeedsError(
                f"{type(self._model).__name__} keeps no key-value cache of which sequences could be dropped "
                f"({type(self._cache).__name__}); write with another model"
            )
        if self._head is None:
            return widened(output.logits[:, -1, : self._vocabulary])
        return self._head(widened(states[:, -1]))

    def _usual(self, key: str) -> bool:
        return self._everything and key != "logits_to_keep"

    def _call(self, keywords: dict[str, Any], device: str) -> tuple[Any, Tensor]:
        """Runs the model; its output layer will see the last position only, and in float32 as losses do."""
        enabled = self._autocast is not None
        with torch.autocast(device, self._autocast or torch.bfloat16, enabled=enabled):
            if not self._reads_states:
                return self._model(**keywords), torch.empty(0)
            with headless(self._model) as (caught, layer):
                output = self._model(**keywords)
        if self._head is None:
            self._head = head_of(self._model, layer, self._vocabulary).map(widened)
        return output, caught[0]


class RecomputingDecoder:
    """Any causal module: whole sequences, padded on the right, go through it again for every token.

    Args:
        model: the module, in eval mode.
        vocabulary: number of true tokens.
        autocast: type of autocast.
    """

    def __init__(self, model: nn.Module, vocabulary: int | None, autocast: torch.dtype | None) -> None:
        self._model, self._autocast = model, autocast
        self._task = CausalLM(vocabulary=vocabulary)
        self._ids = self._lengths = torch.empty(0)

    def start(self, ids: Tensor, mask: Tensor, repeats: int) -> Tensor:
        """Reads the prompts; see :class:`Decoder`."""
        self._lengths = mask.sum(-1)
        # From left to right padding, where a module that knows of no mask sees every token at its place.
        order = (torch.arange(ids.shape[1], device=ids.device) - self._lengths.unsqueeze(1)) % ids.shape[1]
        self._ids = ids.gather(1, order.expand_as(ids)).repeat_interleave(repeats, 0)
        self._lengths = self._lengths.repeat_interleave(repeats, 0)
        return self._run()

    def step(self, tokens: Tensor) -> Tensor:
        """Adds a token to every sequence; see :class:`Decoder`."""
        if int(self._lengths.max()) == self._ids.shape[1]:
            self._ids = torch.cat([self._ids, torch.zeros_like(self._ids[:, :1])], dim=1)
        self._ids = self._ids.scatter(1, self._lengths.unsqueeze(1), tokens.unsqueeze(1))
        self._lengths = self._lengths + 1
        return self._run()

    def keep(self, rows: Tensor) -> None:
        """Forgets the other sequences; see :class:`Decoder`."""
        self._ids, self._lengths = self._ids[rows], self._lengths[rows]
        self._ids = self._ids[:, : int(self._lengths.max())]

    def _run(self) -> Tensor:
        places = torch.arange(self._ids.shape[1], device=self._ids.device)
        there = places < self._lengths.unsqueeze(1)
        inputs = {
            "input_ids": self._ids,
            "attention_mask": there.long(),
            "position_ids": places.expand_as(self._ids) * there,
        }
        last = (self._lengths - 1).view(-1, 1, 1)
        with torch.autocast(self._ids.device.type, self._autocast or torch.bfloat16, enabled=bool(self._autocast)):
            signals = self._task.run(self._model, inputs, frozenset({"hidden|logits"}))
        if signals.hidden is not None:
            states = signals.hidden.states
            chosen = states.gather(1, last.expand(-1, -1, states.shape[-1])).squeeze(1)
            return signals.hidden.head.map(widened)(widened(chosen))
        assert signals.logits is not None
        return widened(signals.logits.gather(1, last.expand(-1, -1, signals.logits.shape[-1])).squeeze(1))
