"""A teacher that is read from disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from limbeck.data.views import STATIC
from limbeck.errors import CacheError
from limbeck.signals import Batch, Signals
from limbeck.teachers.cache.reader import CacheReader
from limbeck.teachers.cache.samples import ViewLoader, augmentation_of, preprocessing_of, sample_keys_of
from limbeck.teachers.fingerprint import fingerprint

_NAMED = 5
_BY_NUMBER = " (a random view depends on a sample's number, so that must be the same as in the cache)"


class CachedTeacher:
    """Gives the signals that a teacher left in a cache. No teacher is in memory.

    Opening compares everything that decides a signal: the teacher where it is given, the preprocessing, the
    augmentation key of every cached epoch, and the key of every sample, by which rows are found whatever the order of
    the data set. Signals are those of the live teacher to the rounding of the codec; with ``topk`` the tail of
    ``logits`` is spread evenly.

    Args:
        folder: the cache.
        loader: the loader whose batches will be asked about. One made with ``view_epochs`` repeats the cached views in
            the epochs beyond them.
        role: the role's name; None takes the role under which the cache was written.
        teacher: what the cache must have been written from: a model, or its fingerprint. Not compared when None.

    Raises:
        CacheError: the cache is absent, unfinished, corrupt, or was written for something else; the message says which
            fingerprint differs, both values and the way out.
    """

    def __init__(
        self,
        folder: str | Path,
        loader: ViewLoader,
        *,
        role: str | None = None,
        teacher: nn.Module | str | None = None,
    ) -> None:
        self.reader = CacheReader(folder)
        self.header = self.reader.header
        self._cache = f"the cache '{self.reader.folder}'"
        self.role = self.header.role if role is None else role
        self._loader = loader
        self._views_of_samples = tuple(self.header.further_views)
        if teacher is not None:
            self._check_teacher(teacher if isinstance(teacher, str) else fingerprint(teacher))
        self._check_preprocessing()
        self._check_augmentation()
        self._view_of_key = {key: number for number, key in enumerate(self.header.views)}
        self._view_of_epoch: dict[int, int] = {}
        self._rows = self._match()

    def fingerprint(self) -> str:
        """Returns the fingerprint of the teacher that the cache was written from."""
        return self.header.teacher

    def start(self) -> None:
        """Does nothing: a cache has no mode."""

    def finish(self) -> None:
        """Does nothing: a cache is only read."""

    def __call__(self, batch: Batch) -> Signals:
        """Returns the cached signals of a batch, in float32 and on the device of its index.

        Raises:
            CacheError: the cache has no view for the batch's epoch, or lacks a sample, or its rows are corrupt.
        """
        index = batch["index"]
        signals = self.reader.read(self._view(int(batch["epoch"])), self._rows[index.cpu().numpy()])
        return signals if index.device.type == "cpu" else signals.map(lambda t: t.to(index.device, non_blocking=True))

    def _view(self, epoch: int) -> int:
        if epoch not in self._view_of_epoch:
            view = self._view_of_key.get(self._augmentation(epoch))
            if view is None:
                last = len(self.header.views) - 1
                raise CacheError(
                    f"{self._cache} has the views of epochs 0 to {last}, but not of epoch {epoch}; write more views, "
                    "train for fewer epochs, or let the loader repeat them (view_epochs)"
                )
            self._view_of_epoch[epoch] = view
        return self._view_of_epoch[epoch]

    def _augmentation(self, epoch: int) -> str:
        return augmentation_of(self._loader, self.role, self._views_of_samples, epoch)

    def _check_teacher(self, asked: str) -> None:
        if asked != self.header.teacher:
            raise self._another("teacher", self.header.teacher, asked, "give the teacher that it was written from")

    def _check_preprocessing(self) -> None:
        asked = preprocessing_of(self._loader, self.role, self._views_of_samples)
        if asked != self.header.preprocessing:
            raise self._another(
                "preprocessing", self.header.preprocessing, asked, "use the same resizing, cropping and normalisation"
            )

    def _check_augmentation(self) -> None:
        for epoch, held in enumerate(self.header.views):
            asked = self._augmentation(epoch)
            if asked != held:
                seeds = f"seed {self.header.seed} in the cache, {self._loader.view_seed} now"
                fix = f"use the same augmentation and seed ({seeds})"
                raise self._another(f"augmentation of epoch {epoch}", held, asked, fix)

    def _match(self) -> np.ndarray:
        rows = self.reader.match(sample_keys_of(self._loader, self.role, self._views_of_samples))
        absent = np.flatnonzero(rows < 0)
        if len(absent):
            more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
            numbered = self.header.views[0] != STATIC
            why = _BY_NUMBER if numbered else ""
            raise CacheError(
                f"{self._cache} lacks samples {absent[:_NAMED].tolist()}{more} of the {len(rows)} in the data{why}. "
                "Use the data that it was written for, or write the cache again"
            )
        return rows

    def _another(self, what: str, held: str, asked: str, fix: str) -> CacheError:
        return CacheError(
            f"{self._cache} was written for another {what}: it holds {held}, now it is {asked}. "
            f"To use this cache {fix}; otherwise write the cache again"
        )
