"""Keys and values of what was read, in memory with room for what will be written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

_AT_FIRST = 256


class Room(DynamicLayer):
    """Keys and values of one layer of a transformer, with room for tokens to come.

    A token is written into its place, where transformers' own layer copies everything that was read before. What
    attention sees are views up to the last token. Room that may never be needed is taken when it is: at first for some
    tokens, then for as many again as there are.

    Args:
        keys: ``[P, heads, L, D]`` of the prompts.
        values: ``[P, heads, L, D']``.
        repeats: sequences that go on from each prompt.
        tokens: tokens that will be added to each.
    """

    def __init__(self, keys: Tensor, values: Tensor, repeats: int, tokens: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        length = keys.shape[2]
        self._most = length + tokens
        self._stored = [_spacious(side, repeats, min(tokens, max(length, _AT_FIRST))) for side in (keys, values)]
        self._show(length)

    def _show(self, length: int) -> None:
        self._length = length
        self.keys, self.values = (side[:, :, :length] for side in self._stored)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Adds keys and values of tokens and returns all."""
        end = self._length + key_states.shape[2]
        for number, new in enumerate((key_states, value_states)):
            room = self._stored[number].shape[2]
            if end > room:
                further = max(end - room, min(room, self._most - room))
                self._stored[number] = _spacious(self._stored[number], 1, further)
            self._stored[number][:, :, self._length : end] = new
        self._show(end)
        return self.keys, self.values

    def forget(self, tokens: int) -> None:
        """Forgets the last tokens of every sequence."""
        self._show(self._length - tokens)

    def move(self, count: int, places: Tensor, rows: Tensor) -> None:
        """Keeps the first ``count`` sequences, after those of ``rows`` were put into the given places."""
        for number, side in enumerate(self._stored):
            if len(places):
                side[places, :, : self._length] = side[rows, :, : self._length]
            self._stored[number] = side[:count]
        self._show(self._length)


def make_room(cache: Any, length: int, repeats: int, tokens: int) -> bool:
    """Gives a cache room, if it is of the plain kind: every layer keeps all keys and values, and nothing else.

    Layers with a sliding window, recurrent states, quantised or offloaded keys stay as they are.

    Args:
        cache: what a model of transformers returned after reading prompts.
        length: tokens that it should hold.
        repeats: sequences that go on from each prompt.
        tokens: tokens that will be added to each.

    Returns:
        Whether it has room now.
    """
    if type(cache) is not DynamicCache or getattr(cache, "offloading", False):
        return False
    if any(type(layer) is not DynamicLayer or layer.get_seq_length() != length for layer in cache.layers):
        return False
    cache.layers = [Room(layer.keys, layer.values, repeats, tokens) for layer in cache.layers]
    return True


def _spacious(side: Tensor, repeats: int, tokens: int) -> Tensor:
    rows, heads, length, width = side.shape
    found = side.new_empty(rows, repeats, heads, length + tokens, width)
    found[:, :, :, :length] = side.unsqueeze(1)
    return torch.flatten(found, 0, 1)
