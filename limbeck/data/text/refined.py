"""Batches of the documents that were chosen once, before the first step, by what two models make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck import streams
from limbeck.data.text.document_losses import DocumentLosses, Gather, Observe, OnFirst
from limbeck.data.text.loader import TextLoader
from limbeck.data.text.source import TextSource
from limbeck.errors import DataError
from limbeck.selection.base import PoolSignals
from limbeck.selection.documents import DifferenceSampling
from limbeck.signals import Batch


class RefinedLoader:
    """Batches of the rows of a corpus that a selector keeps.

    Its roles score every row when a stage begins; after that they are let go, and no row is scored twice: losses that
    were worked out lie in a folder, and the choice is part of a checkpoint. How many rows are kept is known from the
    start, and so is the length of an epoch. Until a stage begins, batches are those of the whole corpus.

    Args:
        loader: gives batches of the corpus.
        selector: chooses rows.
        scorers: by role, what gives the signals of a batch of the corpus.
        seed: seed of the order of rows, and of draws.
        folder: where losses are kept; nowhere when None.
        gather: returns every process's value in every process.
        on_first: runs an action in the first process alone and gives all what it returns.

    Raises:
        DataError: no row would be kept.
    """

    def __init__(
        self,
        loader: TextLoader,
        selector: DifferenceSampling,
        scorers: Mapping[str, Observe],
        *,
        seed: int,
        folder: Path | None = None,
        gather: Gather = lambda value: [value],
        on_first: OnFirst = lambda action: action(),
    ) -> None:
        rows = len(loader.source)
        self._loader, self._selector, self._seed = loader, selector, seed
        self._scorers: dict[str, Observe] = dict(scorers)
        self._folder = folder if selector.folder is None else Path(selector.folder).expanduser()
        self._gather, self._on_first = gather, on_first
        self._count = selector.kept(rows)
        if self._count < 1:
            raise DataError(f"{selector.ratio:g} of {rows} rows of text is none; raise `ratio` of the selection")
        loader.check_batches(self._count)
        self._started = False
        self.chosen = np.zeros(0, np.int64)

    @property
    def source(self) -> TextSource:
        """The whole corpus."""
        return self._loader.source

    @property
    def batch_size(self) -> int:
        """Rows of one step, over all ranks."""
        return self._loader.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches an epoch."""
        return -(-self._count // self._loader.batch_size)

    def start(self, student: Callable[[], Any], observers: Mapping[str, Observe]) -> None:
        """Chooses the rows, unless a checkpoint knows them; a stage calls it when it begins."""
        if not len(self.chosen):
            self._choose()
        self._scorers.clear()
        self._started = True

    def _choose(self) -> None:
        rows = np.arange(len(self.source))
        losses = {
            role: DocumentLosses(role, observe, self._folder, self._gather, self._on_first).of(self._loader)
            for role, observe in self._scorers.items()
        }
        tokens = [sum(self.source.sequences[n].targets for n in row) for row in self.source.rows]
        pool = PoolSignals(
            index=torch.from_numpy(rows), loss=losses, tokens=torch.tensor(tokens), seed=self._seed,
        )  # fmt: skip
        self.chosen = self._selector(pool).chosen.nonzero().squeeze(1).numpy()

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch from ``start_step`` on: this process's part of each."""
        if not self._started:
            yield from self._loader.epoch(epoch, start_step)
            return
        order = streams.permutation(self._seed, "refined", epoch, len(self.chosen))
        yield from self._loader.in_order(self.chosen[order], epoch, start_step)

    def state_dict(self) -> dict[str, Any]:
        """Returns the chosen rows."""
        return {"chosen": torch.from_numpy(self.chosen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        self.chosen = state["chosen"].numpy()
