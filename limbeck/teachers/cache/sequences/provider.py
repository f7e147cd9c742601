"""A teacher of language models that is read from disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.data.text import Encoded, TextLoader
from limbeck.errors import CacheError
from limbeck.signals import Batch, Hidden, Sampled, Signals, TopK
from limbeck.teachers.cache.sequences.reader import SequenceReader
from limbeck.teachers.fingerprint import fingerprint

_NAMED = 5


class CachedSequences:
    """Gives the signals that a teacher left in a cache of sequences. No teacher is in memory.

    Opening compares everything that decides a signal: the tokenizer, the chat template, the vocabulary, the teacher
    where it is given, and the content of every sequence, by which rows are found whatever the order, the packing and
    the batch size. Positions that do not count hold zeros.

    Args:
        folder: the cache.
        loader: the loader whose batches will be asked about.
        teacher: what the cache must have been written from: a model, or its fingerprint. Not compared when None.

    Raises:
        CacheError: the cache is absent, unfinished, corrupt, or was written for something else; the message says what
            differs, both values and the way out.
    """

    def __init__(self, folder: str | Path, loader: TextLoader, *, teacher: nn.Module | str | None = None) -> None:
        self.reader = SequenceReader(folder)
        self.header = self.reader.header
        self._cache = f"the cache '{self.reader.folder}'"
        self._loader = loader
        tokenizer = loader.source.tokenizer
        self._compare("tokenizer", self.header.tokenizer, tokenizer.fingerprint, "give the data that tokenizer")
        self._compare("chat template", self.header.template, tokenizer.template_fingerprint, "use that template")
        self._compare("vocabulary", self.header.vocabulary, tokenizer.vocabulary, "give the data that tokenizer")
        if teacher is not None:
            asked = teacher if isinstance(teacher, str) else fingerprint(teacher)
            self._compare("teacher", self.header.teacher, asked, "give the teacher that it was written from")
        source = loader.source
        self._numbers = self._match(source.sequences, source.sequence_keys)
        self._beside = self._match(source.rejected, source.rejected_keys) if source.rejected else None

    def fingerprint(self) -> str:
        """Returns the fingerprint of the teacher that the cache was written from."""
        return self.header.teacher

    def start(self) -> None:
        """Does nothing: a cache has no mode."""

    def finish(self) -> None:
        """Does nothing: a cache is only read."""

    def __call__(self, batch: Batch) -> Signals:
        """Returns the cached signals of a batch, ``[B, T, ...]`` in float32, on the device of its index.

        Raises:
            CacheError: the batch holds other tokens than its rows have, or rows of the cache are corrupt.
        """
        source, rows = self._loader.source, batch["index"].cpu().tolist()
        signals = self._said(batch, rows, source.sequences, self._numbers)
        if self._beside is not None and batch.get("views"):
            views = {v: self._said(batch.of_view(v), rows, source.rejected, self._beside) for v in batch["views"]}
            signals = replace(signals, views=views)
        device = batch["index"].device
        return signals if device.type == "cpu" else signals.map(lambda t: t.to(device, non_blocking=True))

    def _said(self, batch: Batch, rows: list[int], held: Sequence[Encoded], numbers: np.ndarray) -> Signals:
        mask, labels = batch["mask"].cpu(), batch["labels"].cpu()
        sequences = [n for row in rows for n in self._loader.source.rows[row]]
        known = np.concatenate([held[n].ids[1:][held[n].learn[1:]] for n in sequences])
        if not np.array_equal(known, labels[mask].numpy()):
            raise CacheError(
                f"{self._cache} knows rows {rows[:_NAMED]} with other tokens than the batch has; a transform has "
                "changed the text, which needs a live teacher"
            )
        return _placed(self.reader.read([int(numbers[n]) for n in sequences]), mask)

    def _match(self, held: Sequence[Encoded], keys: np.ndarray) -> np.ndarray:
        numbers = self.reader.match(keys)
        absent = np.flatnonzero(numbers < 0)
        if len(absent):
            text = self._loader.source.tokenizer.decode(held[int(absent[0])].ids[:24].tolist())
            raise CacheError(
                f"{self._cache} lacks {len(absent)} of the {len(numbers)} sequences, the first being number "
                f"{absent[0]} ('{text}...'). Use the data and the context that it was written for, or write the cache "
                "again"
            )
        return numbers

    def _compare(self, what: str, held: Any, asked: Any, fix: str) -> None:
        if held != asked:
            raise CacheError(
                f"{self._cache} was written for another {what}: it holds {held}, now it is {asked}. To use this cache "
                f"{fix}; otherwise write the cache again"
            )


def _placed(signals: Signals, mask: Tensor) -> Signals:
    """Puts the rows of tokens ``[M, ...]`` where a batch's mask ``[B, T]`` is true, zeros elsewhere."""

    def place(values: Tensor) -> Tensor:
        whole = torch.zeros(*mask.shape, *values.shape[1:], dtype=values.dtype)
        whole[mask] = values
        return whole

    if signals.topk is not None:
        kept = signals.topk
        lse = None if kept.logsumexp is None else place(kept.logsumexp)
        return Signals(topk=TopK(place(kept.logprobs), place(kept.indices), place(kept.tail), kept.classes, lse))
    if signals.sampled is not None:
        drawn = signals.sampled
        return Signals(sampled=Sampled(place(drawn.indices), place(drawn.weights), drawn.classes))
    if signals.hidden is not None:
        return Signals(hidden=Hidden(place(signals.hidden.states), signals.hidden.head))
    assert signals.logits is not None
    return Signals(logits=place(signals.logits))
