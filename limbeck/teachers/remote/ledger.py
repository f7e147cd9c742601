"""What a server was paid, and the point at which to stop."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limbeck.errors import CostLimitError


@dataclass(frozen=True)
class Prices:
    """What a million tokens cost, in any currency.

    Attributes:
        prompt: tokens that are sent.
        completion: tokens that are written.
        limit: what may be spent in all; no limit when None.
    """

    prompt: float = 0.0
    completion: float = 0.0
    limit: float | None = None

    def of(self, usage: Mapping[str, Any]) -> float:
        """Returns the cost of an answer with ``prompt_tokens`` and ``completion_tokens``.

        Example:
            >>> Prices(prompt=2.0, completion=8.0).of({"prompt_tokens": 500_000, "completion_tokens": 250_000})
            3.0
        """
        prompt, completion = (int(usage.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion"))
        return (prompt * self.prompt + completion * self.completion) / 1e6


class Ledger:
    """Adds up answers, those of earlier runs included.

    Args:
        prices: what tokens cost.

    Attributes:
        answers: number of answers that were paid.
        prompt_tokens: tokens that were sent.
        completion_tokens: tokens that were written.
        spent: what they cost.
    """

    def __init__(self, prices: Prices) -> None:
        self.prices = prices
        self.answers = self.prompt_tokens = self.completion_tokens = 0
        self.spent = 0.0
        self._turn = threading.Lock()

    def add(self, usage: Mapping[str, Any]) -> None:
        """Enters an answer."""
        with self._turn:
            self.answers += 1
            self.prompt_tokens += int(usage.get("prompt_tokens") or 0)
            self.completion_tokens += int(usage.get("completion_tokens") or 0)
            self.spent += self.prices.of(usage)

    def check(self) -> None:
        """Refuses another request once the limit is reached.

        Raises:
            CostLimitError: says what was spent.
        """
        limit = self.prices.limit
        if limit is not None and self.spent >= limit:
            raise CostLimitError(
                f"{self.spent:.4g} were spent on {self.answers:,} answers, and the limit is {limit:g}; every answer is "
                "kept. Raise price.limit to go on"
            )

    def __str__(self) -> str:
        """One line for people."""
        cost = f", {self.spent:.4g} in all" if self.prices.prompt or self.prices.completion else ""
        tokens = f"{self.prompt_tokens:,} tokens sent, {self.completion_tokens:,} written"
        return f"{self.answers:,} answers: {tokens}{cost}"
