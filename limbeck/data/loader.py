"""Batches in an order that depends on (seed, epoch) alone, for any number of workers and ranks, from any step on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck import streams
from limbeck.data.augment.base import Entry
from limbeck.data.hashing import fingerprint, with_position
from limbeck.data.orders import PairedOrder
from limbeck.data.pixel_scale import PixelScale
from limbeck.data.source import Source
from limbeck.data.views import STATIC, View
from limbeck.errors import DataError, LimbeckError, RecipeError
from limbeck.signals import UNLABELLED, Batch

Recipe = Sequence[Entry]


class Loader:
    """Gives the batches of an epoch.

    The order of samples is a permutation made from (seed, epoch), augmentation comes from counter-based streams, so
    any batch of any epoch can be made again at any time, and an epoch can begin in its middle. Of every batch a rank
    gets a contiguous part, so the ranks' parts together are the batch of the one-process run. Iterating touches no
    global random generator.

    Args:
        source: the data set.
        augment: augmentation of ``inputs``, as recipe entries; none for evaluation.
        batch_size: samples of one step, over all ranks.
        seed: seed of the order, and of augmentation where ``view_seed`` is None.
        shuffle: whether to permute; samples come in their own order otherwise.
        drop_last: leave out the last batch of an epoch where it is smaller.
        labelled_per_batch: how many samples of a batch have a label, where the data is labelled in part: an epoch then
            shows every unlabelled sample once, and the labelled ones as often as that takes. None leaves it to chance.
        workers: processes that decode samples; ignored where they lie in memory.
        views: recipes of further views by name; they are independent of each other and come as ``batch["views"]``.
        role_views: recipes of what single roles see, by role; they come as ``<role>_inputs`` and share the random
            numbers of ``inputs``, so a recipe that begins alike sees the same crop and flip.
        normalize: subtract the mean and divide by the deviation, where the data set has them.
        view_seed: seed of the augmentation, that of a cache to replay; ``seed`` when None.
        view_epochs: epochs after which views repeat, the number that a cache holds; they never do when None.
        rank: number of this process.
        world_size: number of processes.

    Attributes:
        source: the data set.
        input_shape: shape of one input.

    Raises:
        RecipeError: a recipe is wrong, or a batch cannot be divided over the ranks.
        DataError: no batch would be given.

    Example:
        >>> from limbeck.data import as_source
        >>> source = as_source((torch.rand(10, 1, 4, 4), torch.arange(10) % 2))
        >>> loader = Loader(source, ["flip"], batch_size=4, seed=1)
        >>> first, second, third = loader.epoch(0)
        >>> again, = loader.epoch(0, start_step=2)
        >>> third.size, bool(torch.equal(third["inputs"], again["inputs"]))
        (2, True)
    """

    def __init__(
        self,
        source: Source,
        augment: Recipe = (),
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        labelled_per_batch: int | None = None,
        workers: int = 0,
        views: Mapping[str, Recipe] | None = None,
        role_views: Mapping[str, Recipe] | None = None,
        normalize: bool = True,
        view_seed: int | None = None,
        view_epochs: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.source = source
        self._view = View(augment, source.info, normalize=normalize)
        self._views = {
            n: View(r, source.info, stream=f"view/{n}", normalize=normalize) for n, r in (views or {}).items()
        }
        self._role_views = {n: View(r, source.info, normalize=normalize) for n, r in (role_views or {}).items()}
        self.input_shape = self._view.input_shape
        self._batch_size, self._seed, self._shuffle, self._drop_last = batch_size, seed, shuffle, drop_last
        self._view_seed, self._view_epochs = seed if view_seed is None else view_seed, view_epochs
        labels = source.labels()
        self._partly_labelled = labels is not None and bool((labels == UNLABELLED).any())
        self._paired: PairedOrder | None = None
        if labelled_per_batch is not None:
            labelled = np.zeros(len(source), bool) if labels is None else (labels != UNLABELLED).numpy()
            self._paired = PairedOrder(labelled, batch_size, labelled_per_batch, seed)
        self._workers = 0 if source.in_memory else workers
        self._rank, self._world_size = rank, world_size
        self._check_sizes()

    def _check_sizes(self) -> None:
        count = self._shown
        if self._batch_size < 1:
            raise RecipeError(f"batch_size = {self._batch_size}: give at least 1")
        if self._view_epochs is not None and self._view_epochs < 1:
            raise RecipeError(f"view_epochs = {self._view_epochs}: give at least 1")
        if self.steps_per_epoch == 0:
            raise DataError(
                f"'{self.source.info.name}' has {count} samples, fewer than one batch of {self._batch_size}, and "
                "drop_last leaves that out"
            )
        smallest = self._batch_size if self._drop_last else count % self._batch_size or self._batch_size
        if smallest < self._world_size:
            raise RecipeError(
                f"a batch of {smallest} cannot be divided over {self._world_size} processes; choose a batch_size that "
                f"leaves a larger rest, or none, of {count} samples (a Loader of your own may also drop_last)"
            )

    @property
    def batch_size(self) -> int:
        """Samples of one step, over all ranks."""
        return self._batch_size

    @property
    def view_seed(self) -> int:
        """Seed of the augmentation."""
        return self._view_seed

    @property
    def pixel_scale(self) -> PixelScale:
        """How pixel values in [0, 1] become inputs."""
        return self._view.pixel_scale

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches an epoch."""
        whole, rest = divmod(self._shown, self._batch_size)
        return whole + (rest > 0 and not self._drop_last)

    @property
    def _shown(self) -> int:
        """Number of samples an epoch shows, repetitions included."""
        return len(self.source) if self._paired is None else len(self._paired)

    def order(self, epoch: int) -> np.ndarray:
        """Returns the numbers of all samples in the order of ``epoch``, those of a dropped last batch included."""
        if self._paired is not None:
            return self._paired.order(epoch)
        if not self._shuffle:
            return np.arange(len(self.source))
        return streams.permutation(self._seed, "order", epoch, len(self.source))

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch from ``start_step`` on: this rank's part of each.

        A batch has ``inputs`` (float32), ``labels`` (int64 ``[B]``, where there are any), ``index`` (int64 ``[B]``),
        ``epoch``, and ``views`` and ``<role>_inputs`` where there are any.

        Raises:
            DataError: a sample cannot be read; names it.
        """
        yield from self.in_order(self.order(epoch), epoch, start_step)

    def in_order(self, order: np.ndarray, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch whose samples come in a given order, which may repeat or leave out some.

        Args:
            order: numbers of the samples, as many as an epoch shows.
            epoch: the epoch.
            start_step: the first batch.
        """
        parts = [self._part_of_rank(order, step) for step in range(start_step, self.steps_per_epoch)]
        for index, samples in zip(parts, self._fetched(parts, self.view_epoch(epoch))):
            yield self._assembled(samples, index, epoch)

    def batch(self, index: np.ndarray, epoch: int) -> Batch:
        """Returns the batch of any samples as ``epoch`` sees them: a replay for caches and for looking at."""
        numbers = np.asarray(index, dtype=np.int64)
        return self._assembled(self.source.fetch(numbers, self.view_epoch(epoch)), numbers, epoch)

    def _part_of_rank(self, order: np.ndarray, step: int) -> np.ndarray:
        whole = order[step * self._batch_size : (step + 1) * self._batch_size]
        bounds = [len(whole) * r // self._world_size for r in (self._rank, self._rank + 1)]
        return whole[bounds[0] : bounds[1]].astype(np.int64)

    def _fetched(self, parts: Sequence[np.ndarray], epoch: int) -> Iterator[dict[str, Tensor]]:
        if not self._workers:
            for index in parts:
                yield self.source.fetch(index, epoch)
            return
        from torch.utils.data import DataLoader

        jobs: Any = DataLoader(
            _Fetch(self.source, epoch),  # type: ignore[arg-type]
            batch_size=None,
            sampler=list(parts),
            num_workers=min(self._workers, len(parts)),
            # A generator of its own keeps the loader from drawing from the global one.
            generator=torch.Generator().manual_seed(0),
        )
        for found in jobs:
            if isinstance(found, LimbeckError):
                raise found
            yield found

    def _assembled(self, samples: dict[str, Tensor], index: np.ndarray, epoch: int) -> Batch:
        raw = samples["inputs"]

        def see(view: View) -> Tensor:
            return view(raw, index, seed=self._view_seed, epoch=self.view_epoch(epoch))

        batch = Batch(inputs=see(self._view))
        if "labels" in samples:
            batch["labels"] = samples["labels"]
        if self._partly_labelled:
            batch["labelled_mask"] = samples["labels"] != UNLABELLED
            batch["unlabelled_mask"] = ~batch["labelled_mask"]
        batch["index"] = torch.from_numpy(index)
        batch["epoch"] = epoch
        for role, view in self._role_views.items():
            batch[f"{role}_inputs"] = see(view)
        if self._views:
            batch["views"] = {name: see(view) for name, view in self._views.items()}
        return batch

    def view_epoch(self, epoch: int) -> int:
        """Returns the epoch whose views are shown in ``epoch``: itself, unless views repeat."""
        return epoch if self._view_epochs is None else epoch % self._view_epochs

    def _seen_by(self, role: str | None, view: str | None) -> View:
        if view is None:
            return self._role_views.get(role or "", self._view)
        if view not in self._views:
            raise RecipeError(f"there is no view '{view}', only {sorted(self._views)}")
        return self._views[view]

    def fingerprint(self, role: str | None = None, view: str | None = None) -> str:
        """Returns a hash of what a role's inputs are made of: data set, the view's recipe, normalisation.

        Seed and epoch are in :meth:`augmentation_key`; batch size and order of samples do not matter.
        """
        return fingerprint([self.source.fingerprint(), self._seen_by(role, view).recipe()])

    def preprocessing(self, role: str | None = None, view: str | None = None) -> str:
        """Returns a hash of what makes a role's inputs of samples without chance: resizing, cropping, normalisation."""
        return self._seen_by(role, view).preprocessing()

    def augmentation_key(self, epoch: int, role: str | None = None, view: str | None = None) -> str:
        """Returns what tells the views of one sample apart; ``static`` where every epoch sees the same."""
        seen = self._seen_by(role, view)
        if not self.source.random:
            return seen.augmentation_key(self._view_seed, self.view_epoch(epoch))
        return fingerprint([seen.recipe(), str(self._view_seed), str(self.view_epoch(epoch))])

    def sample_keys(self, role: str | None = None, view: str | None = None) -> np.ndarray:
        """Returns what tells the samples apart for a cache, ``[N]`` uint64.

        It is the content hash; where the view is random it also holds the sample's number, since that decides the
        view: two copies of a picture are then two samples.
        """
        hashes = self.source.content_hashes()
        if self.augmentation_key(0, role, view) == STATIC:
            return hashes
        return with_position(hashes, np.arange(len(hashes)))


class _Fetch:
    """One item is one batch of raw samples, or the error that it met."""

    def __init__(self, source: Source, epoch: int) -> None:
        self._source = source
        self._epoch = epoch

    def __getitem__(self, index: Any) -> Any:
        try:
            return self._source.fetch(index, self._epoch)
        except LimbeckError as error:
            return error
