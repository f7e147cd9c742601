"""From logits to a token: temperature, truncation, and the probability with which a token was drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import RecipeError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: divides the logits.
        top_k: only that many of the likeliest tokens can be drawn; all when None.
        top_p: only the fewest tokens can be drawn that together have at least this probability, after ``top_k``.
        greedy: take the likeliest token; the other settings then say nothing.
        max_new_tokens: tokens after the prompt, the end token included.

    Raises:
        RecipeError: a value is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    greedy: bool = False
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise RecipeError(f"temperature = {self.temperature} should be above 0; for the likeliest token set greedy")
        if self.top_k is not None and self.top_k < 1:
            raise RecipeError(f"top_k = {self.top_k} should be at least 1, or left out")
        if not 0 < self.top_p <= 1:
            raise RecipeError(f"top_p = {self.top_p} should be above 0 and at most 1")
        if self.max_new_tokens < 1:
            raise RecipeError(f"max_new_tokens = {self.max_new_tokens} should be at least 1")

    @property
    def plain(self) -> bool:
        """Whether tokens are drawn from the model's own distribution, neither tempered nor truncated."""
        whole = self.top_k is None and self.top_p == 1.0
        return whole and self.temperature == 1.0 and not self.greedy

    def filtered(self, logits: Tensor) -> Tensor:
        """Returns ``[B, V]`` logits whose softmax tokens are drawn from: tempered, ``-inf`` where truncated.

        Example:
            >>> Sampling(temperature=0.5, top_k=2).filtered(torch.tensor([[1.0, 2.0, 3.0]]))
            tensor([[-inf, 4., 6.]])
        """
        if self.greedy:
            best = logits.argmax(-1, keepdim=True)
            return torch.full_like(logits, -torch.inf).scatter(-1, best, 0.0)
        kept = logits / self.temperature if self.temperature != 1.0 else logits
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            values, places = kept.topk(self.top_k, dim=-1)
            if self.top_p < 1.0:
                values = values.masked_fill(_beyond(values, self.top_p), -torch.inf)
            return torch.full_like(kept, -torch.inf).scatter(-1, places, values)
        if self.top_p < 1.0:
            values, places = kept.sort(dim=-1, descending=True, stable=True)
            values = values.masked_fill(_beyond(values, self.top_p), -torch.inf)
            return torch.full_like(kept, -torch.inf).scatter(-1, places, values)
        return kept


def _beyond(descending: Tensor, top_p: float) -> Tensor:
    """Whether a class comes after the fewest that have ``top_p`` together; never the first."""
    probabilities = descending.softmax(-1, dtype=torch.float64)
    return probabilities.cumsum(-1) - probabilities >= top_p


def log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """Returns ``[B]`` log-probabilities of ``tokens`` ``[B]`` under ``softmax(logits)``, ``[B, V]``."""
    return -torch.nn.functional.cross_entropy(logits, tokens, reduction="none")
