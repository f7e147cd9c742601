"""Where a text says something private: what a teacher must not hand on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.data.text.token_bytes import TokenBytes
from limbeck.errors import NeedsError, RecipeError
from limbeck.signals import Batch, Signals
from limbeck.transforms.base import Transform, transform

Kind = Literal["email", "phone", "card", "number", "url", "titled_name"]
_TITLES = "Mr|Mrs|Ms|Miss|Dr|Prof|Sir|Lady|Lord|Captain|Admiral|Colonel"
_KINDS: dict[str, str] = {
    "email": r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    "phone": r"\+?\d(?:[ ()/.-]?\d){6,14}",
    "card": r"\d(?:[ -]?\d){12,18}",
    "number": r"\d+",
    "url": r"https?://\S+",
    "titled_name": rf"(?:{_TITLES})\.? +[A-Z][\w'-]*(?: [A-Z][\w'-]*)*",
}


@transform(
    "private_tokens",
    title="Swing Distillation: A Privacy-Preserving Knowledge Distillation Framework",
    authors="Junzhuo Li and Xinwei Wu and Weilong Dong and Shuangzhi Wu and Chao Bian and Deyi Xiong",
    paper="2212.08349",
    year=2022,
)
class PrivateTokens(Transform):
    """Adds ``privacy_hits`` ``[B, T]``: 1 where the token to predict is part of something private, else 0.

    What is private is found in the text by patterns. A token counts if any of its bytes belongs to a match, so whole
    secrets are covered however they are tokenized; the method spreads hits to their neighbours. Every sequence of a
    packed row is read by itself.

    Args:
        kinds: patterns by name: ``email``, ``phone``, ``card`` (long numbers of cards and accounts), ``number`` (any
            digits), ``url``, ``titled_name`` (Captain Wentworth).
        patterns: regular expressions of your own.
        words: words and phrases, found whatever their case.
        seed: seed of the run.
        num_classes: number of tokens.

    Raises:
        RecipeError: nothing says what is private, or a pattern is no regular expression.
    """

    changes: ClassVar[frozenset[str]] = frozenset({"privacy_hits"})

    def __init__(
        self,
        *,
        kinds: list[Kind] | None = None,
        patterns: list[str] | None = None,
        words: list[str] | None = None,
        seed: int,
        num_classes: int,
    ) -> None:
        super().__init__(seed=seed, num_classes=num_classes)
        chosen = [_KINDS[kind] for kind in kinds or []] + list(patterns or [])
        named = [rf"(?i:(?<!\w){re.escape(word)}(?!\w))" for word in words or []]
        if not chosen and not named:
            raise RecipeError("transform 'private_tokens': say what is private: `kinds`, `patterns` or `words`")
        self._patterns = [_compiled(pattern) for pattern in [*chosen, *named]]
        self._bytes: TokenBytes | None = None

    def bind(self, observers: Mapping[str, Callable[[Batch], Signals]], loader: Any = None) -> None:
        """Takes the tokenizer from the loader.

        Raises:
            NeedsError: the data is no text.
        """
        tokenizer = getattr(getattr(loader, "source", None), "tokenizer", None)
        if tokenizer is None:
            raise NeedsError("private_tokens reads text, but the data has no tokenizer; remove it")
        self._bytes = TokenBytes(tokenizer)

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch with ``privacy_hits``."""
        inputs, labels = batch["inputs"], batch["labels"].cpu()
        ids, seen = inputs["input_ids"].cpu(), inputs["attention_mask"].cpu().bool()
        segments = inputs["segment_ids"].cpu() if "segment_ids" in inputs else seen.long()
        hits = torch.zeros(labels.shape)
        for row in range(len(ids)):
            for number in range(1, int(segments[row].max()) + 1):
                places = (segments[row] == number).nonzero()[:, 0]
                last = int(labels[row, places[-1]])
                sequence = ids[row, places].tolist() + ([last] if last >= 0 else [])
                # The token at a place is predicted at the place before.
                found = self.found(sequence)[1:]
                hits[row, places[: len(found)]] = found
        return Batch({**batch, "privacy_hits": hits.to(batch["labels"].device)})

    def found(self, sequence: Sequence[int]) -> Tensor:
        """Returns for each token of a sequence 1 where it is part of something private, ``[n]``."""
        assert self._bytes is not None
        content, ends = self._bytes.read(sequence)
        text, starts = _with_places(content)
        private = np.zeros(len(content) + 1, bool)
        for pattern in self._patterns:
            for match in pattern.finditer(text):
                private[starts[match.start()] : starts[match.end()]] = True
        counts = np.concatenate([[0], np.cumsum(private[:-1])])
        begins = np.concatenate([[0], ends[:-1]])
        return torch.from_numpy((counts[ends] > counts[begins]).astype(np.float32))


def _with_places(content: bytes) -> tuple[str, np.ndarray]:
    """Returns a text and the byte at which each of its characters begins, and where the last one ends."""
    text = content.decode("utf-8", errors="surrogateescape")
    widths = [len(character.encode("utf-8", errors="surrogateescape")) for character in text]
    return text, np.concatenate([[0], np.cumsum(widths, dtype=np.int64)]).astype(np.int64)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RecipeError(
            f"transform 'private_tokens': the pattern {pattern!r} is no regular expression: {error}"
        ) from None
