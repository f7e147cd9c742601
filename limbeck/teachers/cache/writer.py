"""Writes what a teacher says about every sample, so that a kill at any moment loses one shard at most.

Shards begin and end with batches, appear by one rename, and hold nothing that depends on time, place or the number of
attempts: a cache that was interrupted and continued has the same bytes as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from limbeck.errors import CacheError, RecipeError
from limbeck.signals import Batch
from limbeck.teachers.cache.codecs.base import Codec, Column, build_codec
from limbeck.teachers.cache.folder import CacheFolder, owned
from limbeck.teachers.cache.header import PLAN, FileEntry, Header, keys_path, read_header, shard_path
from limbeck.teachers.cache.layout import FloatType, Layout, NotFiniteError
from limbeck.teachers.cache.plan import make_plan, refuse_another, rows_per_block
from limbeck.teachers.cache.samples import ViewLoader, sample_keys_of
from limbeck.teachers.cache.table import Table, table_file
from limbeck.teachers.provider import Provider

_WRONG_ORDER = (
    "a cache is written in the order of the data set by one process, but the loader gives another order or leaves "
    "samples "
    "out; make it with shuffle=False and drop_last=False"
)

Progress = Callable[[int, int], None]
"""Called with the rows that are done and the rows in all."""


class KnownTeacher(Provider, Protocol):
    """A provider that can be known again by what it computes."""

    def fingerprint(self) -> str:
        """Returns a hash of everything that decides the teacher's output."""


def write_cache(
    folder: str | Path,
    *,
    loader: ViewLoader,
    teacher: KnownTeacher,
    epochs: int = 1,
    codec: str | Mapping[str, Any] | Codec = "topk",
    extras: Sequence[str] = (),
    extras_dtype: FloatType = "float16",
    role: str = "teacher",
    rows_per_shard: int | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Header:
    """Writes a teacher cache, or continues, repairs or extends one.

    What is there and whole is kept: a cache whose writing was killed continues with the first missing shard, a broken
    shard is written again, and a finished cache to whose views ``epochs`` adds gets the further ones.

    Cached and live signals agree to the rounding of the codec and of the teacher's arithmetic, which depends on the
    shapes of batches: with the codec ``full`` in float32 to about 1e-6 of the largest logit, not bit for bit.

    Args:
        folder: where the cache goes; made when absent.
        loader: the views of the samples in the order of the data set (``shuffle=False``, ``drop_last=False``), of one
            process.
        teacher: what is cached.
        epochs: number of epochs, from 0, whose views are cached. Without random augmentation there is one view for all.
        codec: how logits are stored: a name, a mapping with ``name`` and parameters, or a codec.
        extras: further signals to store: ``embedding``, ``attentions``, ``features.<group>``.
        extras_dtype: type in which those are stored.
        role: the role whose inputs the teacher sees.
        rows_per_shard: rows a shard, rounded down to whole batches; chosen by size when None.
        device: where the teacher runs; batches stay where they are when None.
        progress: called after each batch.

    Returns:
        The header of the finished cache.

    Raises:
        CacheError: another process writes there; the folder holds something else; the disk is full; a signal is not
            finite. Finished shards stay, and the same call continues.
        NeedsError: the teacher gives no logits, or not the extras.
        RecipeError: the codec, ``epochs`` or ``rows_per_shard`` is out of range.
        TeacherChangedError: the teacher changed while it was being cached.
    """
    if epochs < 1:
        raise RecipeError(f"epochs = {epochs}: give the number of views to cache, at least 1")
    with owned(folder) as place:
        writing = _Writing(place, loader, teacher, role, device, progress)
        return writing.run(epochs, build_codec(codec), extras, extras_dtype, rows_per_shard)


class _Writing:
    """One attempt at a cache, in a folder that it owns."""

    def __init__(
        self,
        place: CacheFolder,
        loader: ViewLoader,
        teacher: KnownTeacher,
        role: str,
        device: torch.device | str | None,
        progress: Progress | None,
    ) -> None:
        self._place, self._folder = place, place.path
        self._loader, self._teacher, self._role = loader, teacher, role
        self._device, self._progress = device, progress
        self._rows_done = 0

    def run(
        self,
        epochs: int,
        codec: Codec,
        extras: Sequence[str],
        extras_dtype: FloatType,
        rows_per_shard: int | None,
    ) -> Header:
        before = self._place.headers(read_header)
        with self._place.watching(self._teacher):
            sample = self._loader.batch(np.arange(min(2, len(self._loader.source))), 0)
            layout = Layout.of(self._teacher(self._placed(sample)), codec, extras, extras_dtype)
            keys = {"content": sample_keys_of(self._loader, self._role, layout.views)}
            keys_content, keys_entry = table_file(keys, rows_per_block(layout))
            fingerprint = self._teacher.fingerprint()
            plan = make_plan(self._loader, fingerprint, self._role, layout, epochs, keys_entry, rows_per_shard)
            for header in before:
                refuse_another(self._folder, header, plan)
                plan = plan.model_copy(update={"limbeck": header.limbeck})
            self._place.store(self._folder / PLAN, plan.to_bytes())
            self._place.store(keys_path(self._folder), keys_content)
            shards = self._write_shards(plan, layout, before[0].shards if before else [])
        finished = plan.model_copy(update={"shards": shards})
        self._place.conclude(finished)
        return finished

    def _write_shards(self, plan: Header, layout: Layout, known: Sequence[FileEntry]) -> list[FileEntry]:
        """Writes what is missing and returns the entries of all shards."""
        columns = layout.columns()
        places = [(view, shard) for view in range(len(plan.views)) for shard in range(plan.shards_per_view)]
        entries: list[FileEntry | None] = []
        for number, (view, shard) in enumerate(places):
            expected = known[number] if number < len(known) else None
            entries.append(self._entry_if_whole(plan, columns, view, shard, expected))
        self._rows_done = sum(entry.rows for entry in entries if entry is not None)
        self._report(plan, 0)
        batches: Any = None
        for number, (view, shard) in enumerate(places):
            if entries[number] is not None:
                batches = None
                continue
            if batches is None or shard == 0:
                first_step = shard * plan.rows_per_shard // plan.batch_size
                batches = iter(self._loader.epoch(view, first_step))
            entries[number] = self._write_shard(plan, layout, view, shard, batches)
        return [entry for entry in entries if entry is not None]

    def _entry_if_whole(
        self, plan: Header, columns: Mapping[str, Column], view: int, shard: int, expected: FileEntry | None
    ) -> FileEntry | None:
        path = shard_path(self._folder, view, shard)
        if not path.exists():
            return None
        try:
            table = Table(path, columns, plan.shard_rows(shard), plan.rows_per_block, expected)
            table.verify()
        except CacheError:
            return None
        return table.entry

    def _write_shard(self, plan: Header, layout: Layout, view: int, shard: int, batches: Any) -> FileEntry:
        first, rows = shard * plan.rows_per_shard, plan.shard_rows(shard)
        arrays = {name: np.empty((rows, *c.shape), c.dtype) for name, c in layout.columns().items()}
        filled = 0
        for batch in islice(batches, -(-rows // plan.batch_size)):
            stop = min(filled + plan.batch_size, rows)
            if not np.array_equal(batch["index"].cpu().numpy(), np.arange(first + filled, first + stop)):
                raise CacheError(_WRONG_ORDER)
            for name, array in self._encoded(layout, batch, view).items():
                if array.shape[1:] != arrays[name].shape[1:]:
                    raise CacheError(
                        f"the teacher's '{name}' change their shape between batches, so no row can hold them"
                    )
                arrays[name][filled:stop] = array
            self._report(plan, stop - filled)
            filled = stop
        if filled < rows:
            raise CacheError(_WRONG_ORDER)
        return self._place.store_rows(shard_path(self._folder, view, shard), arrays, plan.rows_per_block)

    def _encoded(self, layout: Layout, batch: Batch, epoch: int) -> dict[str, np.ndarray]:
        try:
            return layout.encode(self._teacher(self._placed(batch)))
        except NotFiniteError as error:
            sample = int(batch["index"][error.row])
            raise CacheError(
                f"the teacher's {error.what} are NaN or infinite for sample {sample} in epoch {epoch}; check the "
                f"teacher's "
                "weights and precision, and this sample"
            ) from None

    def _placed(self, batch: Batch) -> Batch:
        return batch if self._device is None else batch.to(self._device)

    def _report(self, plan: Header, rows: int) -> None:
        self._rows_done += rows
        if self._progress is not None:
            self._progress(self._rows_done, plan.samples * len(plan.views))
