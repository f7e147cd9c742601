"""Batches of tokens in an order that depends on (seed, epoch) alone, from any step on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from limbeck import streams
from limbeck.data.text.encoding import Encoded
from limbeck.data.text.source import TextSource
from limbeck.errors import RecipeError
from limbeck.signals import Batch

IGNORED = -100
"""Label of a position that is not to be learnt, as PyTorch's cross-entropy has it."""
_MULTIPLE = 8


class TextLoader:
    """Gives the batches of an epoch: tokens, positions, shifted labels and masks.

    Labels are shifted here, once: the label at position ``t`` is token ``t + 1`` of the same sequence. What is padding
    is told by masks, never by the id of a token, so a model may pad with the token that ends a document.

    Args:
        source: rows of tokens.
        batch_size: rows of one step, over all ranks.
        seed: seed of the order.
        shuffle: whether to permute; rows come in their own order otherwise.
        fixed_length: pad every row to the whole context, for compiled models; otherwise to the longest of the batch,
            rounded up to eight.
        rank: number of this process.
        world_size: number of processes.
        views: names of the views under which batches hold the rejected answers, where the data are pairs: inputs in
            ``views``, and ``<view>_labels``, ``<view>_mask`` and ``<view>_completion`` beside them. Both answers to a
            prompt are one sample, so nothing that divides a batch parts them.

    Raises:
        RecipeError: a batch cannot be divided over the ranks.

    Example:
        >>> from limbeck.data.text import TextSource, Encoded, load_tokenizer
        >>> tokenizer = load_tokenizer("bytes")
        >>> words = [Encoded(np.arange(n), np.arange(n) > 1, 2) for n in (4, 6)]
        >>> batch = next(TextLoader(TextSource("w", words, tokenizer, context=8), batch_size=2, shuffle=False).epoch(0))
        >>> batch["labels"][0].tolist(), batch["mask"][0].tolist()[:4]
        ([-100, 2, 3, -100, -100, -100, -100, -100], [False, True, True, False])
    """

    def __init__(
        self,
        source: TextSource,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        fixed_length: bool = False,
        rank: int = 0,
        world_size: int = 1,
        views: Sequence[str] = (),
    ) -> None:
        self.source, self._views = source, tuple(views) if source.rejected else ()
        self._batch_size, self._seed, self._shuffle, self._fixed = batch_size, seed, shuffle, fixed_length
        self._rank, self._world_size = rank, world_size
        self.check_batches(len(source))

    def check_batches(self, rows: int) -> None:
        """Refuses an epoch of so many rows whose last batch has none for some process.

        Raises:
            RecipeError: names the batch.
        """
        smallest = rows % self._batch_size or self._batch_size
        if smallest < self._world_size:
            raise RecipeError(
                f"a batch of {smallest} rows cannot be divided over {self._world_size} processes; change "
                "train.batch_size"
            )

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self._rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self._world_size

    @property
    def batch_size(self) -> int:
        """Rows of one step, over all ranks."""
        return self._batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches an epoch."""
        return -(-len(self.source) // self._batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """Returns the numbers of all rows in the order of ``epoch``."""
        count = len(self.source)
        return streams.permutation(self._seed, "order", epoch, count) if self._shuffle else np.arange(count)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch from ``start_step`` on: this rank's part of each."""
        yield from self.in_order(self.order(epoch), epoch, start_step)

    def in_order(self, order: np.ndarray, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of rows in a given order, from the batch ``start_step`` on: this rank's part of each."""
        for step in range(start_step, -(-len(order) // self._batch_size)):
            whole = order[step * self._batch_size : (step + 1) * self._batch_size]
            first, last = (len(whole) * r // self._world_size for r in (self._rank, self._rank + 1))
            yield self.batch(whole[first:last], epoch)

    def batch(self, index: np.ndarray, epoch: int) -> Batch:
        """Returns the batch of any rows."""
        numbers = np.asarray(index, np.int64)
        rows = [[self.source.sequences[n] for n in self.source.rows[row]] for row in numbers.tolist()]
        batch = self._collated(rows, packed=self.source.packed)
        if self._views:
            beside = self._collated(
                [[self.source.rejected[n] for n in self.source.rows[row]] for row in numbers.tolist()]
            )
            inputs = beside.pop("inputs")
            batch["views"] = Batch(dict.fromkeys(self._views, inputs))
            batch |= {f"{view}_{key}": value for view in self._views for key, value in beside.items()}
        batch["index"] = torch.from_numpy(numbers)
        if self.source.domains is not None:
            batch["domain"] = torch.from_numpy(self.source.domains[numbers])
        batch["epoch"] = epoch
        return batch

    def _collated(self, rows: Sequence[Sequence[Encoded]], *, packed: bool = False) -> Batch:
        length = self.source.context if self._fixed else _rounded(rows)
        return collate(rows, length, pad_id=self.source.tokenizer.pad_id, packed=packed)


def _rounded(rows: Sequence[Sequence[Encoded]]) -> int:
    longest = max(sum(len(s) - 1 for s in row) for row in rows)
    return -(-longest // _MULTIPLE) * _MULTIPLE


def collate(rows: Sequence[Sequence[Encoded]], length: int, *, pad_id: int, packed: bool = False) -> Batch:
    """Returns ``inputs``, ``labels``, ``mask`` and ``completion`` of rows of sequences, padded on the right.

    Args:
        rows: the sequences of each row.
        length: tokens of a row after padding.
        pad_id: id that fills the row.
        packed: give ``segment_ids``, which keep the sequences of a row apart.
    """
    shape = (len(rows), length)
    ids = np.full(shape, pad_id, np.int64)
    labels = np.full(shape, IGNORED, np.int64)
    segments, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    completion = np.zeros(shape, bool)
    for row, sequences in enumerate(rows):
        start = 0
        for number, sequence in enumerate(sequences, 1):
            count = len(sequence) - 1
            here = (row, slice(start, start + count))
            ids[here] = sequence.ids[:-1]
            labels[here] = np.where(sequence.learn[1:], sequence.ids[1:], IGNORED)
            completion[here] = np.arange(1, count + 1) >= sequence.prompt
            segments[here] = number
            positions[here] = np.arange(count)
            start += count
    inputs = {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy((segments > 0).astype(np.int64)),
        "position_ids": torch.from_numpy(positions),
    }
    if packed:
        inputs["segment_ids"] = torch.from_numpy(segments)
    found = torch.from_numpy(labels)
    return Batch(inputs=inputs, labels=found, mask=found != IGNORED, completion=torch.from_numpy(completion))
