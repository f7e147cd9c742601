"""A model that goes on with sequences token by token, with a key-value cache where it has one."""

from __future__ import annotations

import inspect
from typing import Protocol

import torch
from torch import Tensor, nn

from limbeck.functional.reduction import widened
from limbeck.generation.cached import CachedDecoder
from limbeck.tasks.causal_lm import CausalLM, forward_of


class Decoder(Protocol):
    """Goes on with the sequences of a batch.

    Logits are ``[B, V]`` float32 over the true vocabulary, those of the token after the last one.
    """

    def start(self, ids: Tensor, mask: Tensor, repeats: int, tokens: int) -> Tensor:
        """Reads prompts and returns the logits of the sequences that go on from them.

        Args:
            ids: ``[P, L]`` prompts, padded on the left.
            mask: ``[P, L]`` 1 where a token is real.
            repeats: sequences a prompt; those of one prompt follow each other.
            tokens: tokens that will be added to a sequence, for which memory is taken.
        """

    def step(self, tokens: Tensor) -> Tensor:
        """Adds a token ``[B]`` to every sequence and returns the next logits."""

    def keep(self, rows: Tensor) -> None:
        """Keeps the sequences of the given numbers, in that order, and forgets the others.

        Fastest where most of them stay in their places.
        """


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

    def start(self, ids: Tensor, mask: Tensor, repeats: int, tokens: int) -> Tensor:
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
