"""Two tokenisations of one text: the spans between the places where both have a boundary, and sums over them.

A *span* is a shortest piece of text that both tokenisations cut out. Its log-probability is the sum over its tokens,
for either model (chain rule), so spans are what models with different tokenizers can be compared on.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NO_SPAN = -1
"""Number of the span of a token that belongs to none."""


class Spans(NamedTuple):
    """The spans of two tokenisations of one text.

    Attributes:
        first: ``[n]`` int64 span of every token of the first, :data:`NO_SPAN` after the last common boundary.
        second: ``[m]`` likewise of the second.
        ends: ``[spans]`` where each span ends.
    """

    first: np.ndarray
    second: np.ndarray
    ends: np.ndarray


def common_spans(first_ends: np.ndarray, second_ends: np.ndarray) -> Spans:
    """Returns the spans of two tokenisations.

    A token without text (the space that SentencePiece puts before a text and that is none of it) belongs to the span
    that begins where it stands: it has a probability, and what follows was predicted after it.

    Args:
        first_ends: ``[n]`` number of bytes up to the end of each token, never decreasing.
        second_ends: ``[m]`` likewise of the other tokenisation.

    Raises:
        ValueError: ends decrease or are negative.

    Example:
        >>> common_spans(np.array([2, 5, 6]), np.array([5, 6])).first.tolist()
        [0, 0, 1]
    """
    first, second = np.asarray(first_ends, np.int64), np.asarray(second_ends, np.int64)
    for ends in (first, second):
        if (np.diff(ends, prepend=0) < 0).any():
            raise ValueError("the ends of tokens should be numbers of bytes that never decrease")
    shared = np.intersect1d(first, second)
    shared = shared[shared > 0]
    return Spans(_span_of(first, shared), _span_of(second, shared), shared)


def _span_of(ends: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Returns the span of every token, by the end of the first token from it on that has text."""
    holds = np.diff(ends, prepend=0) > 0
    reach = np.where(holds, ends, np.iinfo(np.int64).max)[::-1]
    reach = np.minimum.accumulate(reach)[::-1]
    # Tokens without text at the very end close the last span.
    reach = np.where(reach == np.iinfo(np.int64).max, ends, reach)
    found = np.searchsorted(shared, reach)
    return np.where(found < len(shared), found, NO_SPAN)


def span_count(*spans: Tensor) -> int:
    """Returns how many spans the longest row has, at least one so that a term has a place for a loss.

    Args:
        spans: ``[B, T]`` numbers of spans, of any number of sides.
    """
    return max(1, *(int(side.max()) + 1 if side.numel() else 0 for side in spans))


def span_sums(values: Tensor, spans: Tensor, count: int) -> Tensor:
    """Returns sums over the tokens of each span, ``[B, count]``; 0 where a row has no such span.

    Args:
        values: ``[B, T]``, log-probabilities of tokens for example.
        spans: ``[B, T]`` number of each token's span, :data:`NO_SPAN` where it has none; such values may be anything.
        count: number of spans.

    Example:
        >>> span_sums(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0, 0, 1]]), 2)
        tensor([[3., 4.]])
    """
    inside = spans >= 0
    kept = torch.where(inside, values, values.new_zeros(()))
    return values.new_zeros(len(values), count).scatter_add(1, spans.clamp(min=0), kept)


def span_lengths(spans: Tensor, count: int) -> Tensor:
    """Returns the number of tokens of each span, ``[B, count]`` int64."""
    inside = (spans >= 0).long()
    return inside.new_zeros(len(spans), count).scatter_add(1, spans.clamp(min=0), inside)


def span_places(spans: Tensor, count: int, *, last: bool = False) -> Tensor:
    """Returns where each span begins (or has its last token), ``[B, count]`` int64; 0 where there is no such span.

    Example:
        >>> span_places(torch.tensor([[-1, 0, 0, 1]]), 2), span_places(torch.tensor([[-1, 0, 0, 1]]), 2, last=True)
        (tensor([[1, 3]]), tensor([[2, 3]]))
    """
    places = torch.arange(spans.shape[1], device=spans.device).expand_as(spans)
    inside = spans >= 0
    # Places outside all spans are sent where they can win against none.
    sentinel = -1 if last else spans.shape[1]
    offered = torch.where(inside, places, sentinel)
    start = places.new_full((len(spans), count), sentinel)
    found = start.scatter_reduce(1, spans.clamp(min=0), offered, "amax" if last else "amin")
    return torch.where((found >= 0) & (found < spans.shape[1]), found, 0)
