"""Models of transformers that go on with sequences by their key-value cache."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.errors import NeedsError
from limbeck.functional.reduction import widened
from limbeck.signals import Head
from limbeck.tasks.causal_lm import forward_of, has_output_layer, head_of, headless

if TYPE_CHECKING:
    from limbeck.generation.llama_step import LlamaStep

_TRUSTED: WeakSet[nn.Module] = WeakSet()
"""Models whose short way gave what they give themselves."""


class CachedDecoder:
    """A model of transformers with its key-value cache. Prompts are read once, however many sequences go on from each.

    Where the cache keeps all keys and values and nothing else, they are written into memory with room for them (see
    :class:`~limbeck.generation.room.Room`), and models of Llama's family take a shorter way through their layers (see
    :class:`~limbeck.generation.llama_step.LlamaStep`), after it gave what the model itself gives.

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
        self._short: LlamaStep | None = None
        self._scores: Tensor | None = None
        self._mask = self._next = torch.empty(0)
        self._length, self._roomy, self._padded = 0, False, True

    def start(self, ids: Tensor, mask: Tensor, repeats: int, tokens: int) -> Tensor:
        """Reads the prompts; see :class:`Decoder`."""
        from limbeck.generation.room import make_room

        self._cache, self._head, self._short, self._scores = None, None, None, None
        self._length, self._roomy, self._padded = ids.shape[1], False, not bool(mask.all())
        self._mask = functional.pad(mask, (0, tokens), value=1)
        logits = self._run(ids, (mask.cumsum(-1) - 1).clamp(min=0))
        self._next = mask.sum(-1)
        self._roomy = make_room(self._cache, self._length, repeats, tokens)
        if repeats > 1:
            if not self._roomy:
                self._cache.batch_repeat_interleave(repeats)
            self._mask = self._mask.repeat_interleave(repeats, 0)
            self._next = self._next.repeat_interleave(repeats, 0)
            logits = logits.repeat_interleave(repeats, 0)
        if self._roomy and self._head is not None:
            self._shorten()
        return logits

    def _shorten(self) -> None:
        """Takes the short way from now on, if there is one and its first token is that of the model itself."""
        from limbeck.generation.llama_step import llama_step

        self._short = llama_step(self._model, self._mask.shape[1])
        if self._short is None:
            return
        if self._padded:
            unseen = (self._mask == 0)[:, None, None]
            self._scores = torch.zeros(unseen.shape, device=unseen.device).masked_fill(unseen, -torch.inf)

    def step(self, tokens: Tensor) -> Tensor:
        """Adds a token to every sequence; see :class:`Decoder`."""
        self._length += 1
        if self._mask.shape[1] < self._length:
            self._mask = functional.pad(self._mask, (0, self._length), value=1)
            self._short = None
        if self._short is None:
            logits = self._run(tokens.unsqueeze(1), self._next.unsqueeze(1))
        elif self._model in _TRUSTED:
            logits = self._shortly(tokens)
        else:
            logits = self._compared(tokens)
        self._next = self._next + 1
        return logits

    def _shortly(self, tokens: Tensor) -> Tensor:
        assert self._short is not None
        assert self._head is not None
        scores = None if self._scores is None else self._scores[..., : self._length]
        with self._precision(tokens.device.type):
            states = self._short(tokens, self._next, self._cache.layers, scores)
        return self._head(widened(states))

    def _compared(self, tokens: Tensor) -> Tensor:
        """Goes both ways; if they part, the model's own is taken from now on."""
        found = self._shortly(tokens)
        for layer in self._cache.layers:
            layer.forget(1)
        logits = self._run(tokens.unsqueeze(1), self._next.unsqueeze(1))
        kept = logits.isfinite()
        apart = (found - logits)[kept].norm()
        type_ = self._autocast or self._model.dtype
        if bool(apart <= torch.finfo(type_).eps ** 0.5 * logits[kept].norm()):
            _TRUSTED.add(self._model)
        else:
            self._short = None
        return logits

    def keep(self, rows: Tensor) -> None:
        """Keeps sequences; see :class:`Decoder`."""
        if self._roomy:
            places = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
            for layer in self._cache.layers:
                layer.move(len(rows), places, rows[places])
        else:
            self._cache.batch_select_indices(rows)
        self._mask, self._next = self._mask[rows], self._next[rows]
        self._scores = None if self._scores is None else self._scores[rows]

    def _run(self, ids: Tensor, positions: Tensor) -> Tensor:
        # Without padding a mask says nothing, but to look for that in every step takes time.
        needless = self._roomy and not self._padded
        given = {
            "input_ids": ids,
            "attention_mask": None if needless else self._mask[:, : self._length],
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

    def _precision(self, device: str) -> AbstractContextManager[Any]:
        return torch.autocast(device, self._autocast or torch.bfloat16, enabled=self._autocast is not None)

    def _call(self, keywords: dict[str, Any], device: str) -> tuple[Any, Tensor]:
        """Runs the model; its output layer will see the last position only, and in float32 as losses do."""
        with self._precision(device):
            if not self._reads_states:
                return self._model(**keywords), torch.empty(0)
            with headless(self._model) as (caught, layer):
                output = self._model(**keywords)
        if self._head is None:
            self._head = head_of(self._model, layer, self._vocabulary).map(widened)
        return output, caught[0]
