"""Writes what a teacher says about every token that counts, so that a kill loses one shard at most.

A shard holds whole sequences, appears by one rename, and depends on nothing but data, teacher and codec: a cache that
was interrupted and continued has the same bytes as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck import __version__
from limbeck.data.hashing import with_position
from limbeck.data.text import Encoded, TextSource
from limbeck.data.text.loader import collate
from limbeck.errors import CacheError, NeedsError, RecipeError
from limbeck.signals import Batch, Signals
from limbeck.teachers.cache.codecs.base import Column
from limbeck.teachers.cache.folder import CacheFolder, owned, refuse_another
from limbeck.teachers.cache.header import PLAN, FileEntry, keys_path, sealed
from limbeck.teachers.cache.sequences.codecs import Rows, SequenceCodec, build_sequence_codec, revision_of
from limbeck.teachers.cache.sequences.header import (
    SequenceHeader,
    entries_path,
    head_path,
    read_sequence_header,
    shard_of,
    shard_path,
)
from limbeck.teachers.cache.sequences.layer import head_file
from limbeck.teachers.cache.table import Table, table_file
from limbeck.teachers.cache.writer import KnownTeacher, Progress

KEYS = {"content": Column("uint64"), "tokens": Column("uint32")}
_WAY_OUT = "choose another folder, or delete this one to write it anew"
_SHARD_BYTES = 32 << 20
_BLOCK_BYTES = 32 << 10
_SHARD_TOKENS = 1 << 16
_CHUNK = 512
_COMPARED = {
    "teacher": "teacher (fingerprint of its architecture and weights)",
    "tokenizer": "tokenizer (fingerprint)",
    "template": "chat template (fingerprint)",
    "vocabulary": "vocabulary",
    "codec": "codec",
    "revision": "revision of the codec",
    "width": "size of hidden states",
    "precision": "type in which the teacher runs",
    "keys": "set of sequences",
    "tokens_per_shard": "number of tokens a shard",
    "rows_per_block": "number of rows a block",
    "head": "output layer",
}


def write_sequences(
    folder: str | Path,
    *,
    source: TextSource,
    teacher: KnownTeacher,
    codec: str | Mapping[str, Any] | SequenceCodec = "topk",
    batch_size: int = 8,
    tokens_per_shard: int | None = None,
    precision: str = "fp32",
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> SequenceHeader:
    """Writes a cache of a teacher's next-token distributions, or continues or repairs one.

    Only tokens that count are stored. Every sequence is shown by itself, so what is stored does not depend on packing,
    order or batch size (but for the rounding of the arithmetic), and the cache serves all of them. What is there and
    whole is kept: a cache whose writing was killed continues with the first missing shard, a broken shard is written
    again.

    Args:
        folder: where the cache goes; made when absent.
        source: the sequences.
        teacher: what is cached: a provider of hidden states or logits.
        codec: a name, a mapping with ``name`` and parameters, or a codec.
        batch_size: sequences that the teacher sees at once.
        tokens_per_shard: tokens a file, about; chosen by size when None.
        precision: type in which the teacher runs, for the header.
        device: where the teacher runs; batches stay where they are when None.
        progress: called after each batch with the tokens that are done and all.

    Returns:
        The header of the finished cache.

    Raises:
        CacheError: another process writes there; the folder holds something else; the disk is full; a number is NaN.
            Finished shards stay, and the same call continues.
        NeedsError: the teacher gives no logits, or no hidden states where they are to be stored.
        RecipeError: ``batch_size``, ``tokens_per_shard`` or the codec is out of range.
        TeacherChangedError: the teacher changed while it was being cached.
    """
    if batch_size < 1 or (tokens_per_shard is not None and tokens_per_shard < 1):
        raise RecipeError(f"batch_size = {batch_size} and tokens_per_shard = {tokens_per_shard} should be at least 1")
    with owned(folder) as place:
        writing = _Writing(place, source, teacher, build_sequence_codec(codec), batch_size, device, progress)
        return writing.run(tokens_per_shard, precision)


class _Writing:
    """One attempt at a cache, in a folder that it owns."""

    def __init__(
        self,
        place: CacheFolder,
        source: TextSource,
        teacher: KnownTeacher,
        codec: SequenceCodec,
        batch_size: int,
        device: torch.device | str | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._place, self._folder = place, place.path
        self._source, self._teacher, self._codec = source, teacher, codec
        self._batch_size, self._device, self._progress = batch_size, device, progress
        # Equal sequences are stored once; rejected answers are sequences like others.
        everything = (*source.sequences, *source.rejected)
        keys, first = np.unique(np.concatenate([source.sequence_keys, source.rejected_keys]), return_index=True)
        order = np.argsort(first)
        self._keys = keys[order]
        self._sequences = [everything[n] for n in first[order].tolist()]
        self._counts = np.array([s.targets for s in self._sequences], np.uint32)
        self._done = 0

    def run(self, tokens_per_shard: int | None, precision: str) -> SequenceHeader:
        before = self._place.headers(read_sequence_header)
        with self._place.watching(self._teacher):
            plan, files = self._plan(tokens_per_shard, precision)
            for header in before:
                refuse_another(self._folder, header, plan, _COMPARED, _WAY_OUT)
                plan = plan.model_copy(update={"limbeck": header.limbeck})
            self._place.store(self._folder / PLAN, sealed(plan))
            for path, content in files.items():
                self._place.store(path, content)
            shards, entries = self._write_shards(plan)
        finished = plan.model_copy(update={"shards": shards, "entries": entries})
        self._place.conclude(finished)
        return finished

    def _plan(self, tokens_per_shard: int | None, precision: str) -> tuple[SequenceHeader, dict[Path, bytes]]:
        """Returns the header without its shards, and the files that stand beside them."""
        signals = self._teacher(self._batch(self._sequences[:1]))
        classes, width = _sizes(signals, self._codec)
        row_bytes = sum(c.bytes for c in self._codec.columns(classes, width).values())
        per_block = int(1 << max((_BLOCK_BYTES // row_bytes).bit_length() - 1, 0))
        keys_content, keys_entry = table_file({"content": self._keys, "tokens": self._counts}, per_block)
        files, described = {keys_path(self._folder): keys_content}, None
        if self._codec.reads == "hidden":
            assert signals.hidden is not None
            content, described = head_file(signals.hidden.head)
            files[head_path(self._folder)] = content
        tokenizer = self._source.tokenizer
        return SequenceHeader(
            limbeck=__version__,
            teacher=self._teacher.fingerprint(),
            tokenizer=tokenizer.fingerprint,
            template=tokenizer.template_fingerprint,
            vocabulary=classes,
            width=width,
            codec={"name": self._codec.name, **self._codec.parameters},
            revision=revision_of(self._codec),
            precision=precision,
            sequences=len(self._keys),
            tokens=int(self._counts.sum()),
            tokens_per_shard=tokens_per_shard or max(1, min(_SHARD_TOKENS, _SHARD_BYTES // row_bytes)),
            rows_per_block=per_block,
            keys=keys_entry,
            head=described,
            shards=[],
            entries=[],
        ), files

    def _write_shards(self, plan: SequenceHeader) -> tuple[list[FileEntry], list[FileEntry]]:
        numbers = shard_of(self._counts, plan.tokens_per_shard)
        shards: list[FileEntry] = []
        entries: list[FileEntry] = []
        for shard in range(int(numbers.max()) + 1):
            members = np.flatnonzero(numbers == shard)
            found = self._whole(plan, shard, members) or self._write_shard(plan, shard, members)
            shards.append(found[0])
            entries.extend(found[1:])
            self._done = int(self._counts[: members[-1] + 1].sum())
            self._report(0)
        return shards, entries

    def _whole(self, plan: SequenceHeader, shard: int, members: np.ndarray) -> list[FileEntry] | None:
        """Returns the entries of a shard that is there and whole."""
        path, rows = shard_path(self._folder, shard), int(self._counts[members].sum())
        try:
            table = Table(path, self._codec.columns(plan.vocabulary, plan.width), rows, plan.rows_per_block)
            table.verify()
            columns = self._codec.entry_columns(plan.vocabulary)
            if not columns:
                return [table.entry]
            count = int(table.column("count").astype(np.int64).sum())
            second = Table(entries_path(self._folder, shard), columns, count, plan.rows_per_block)
            second.verify()
        except CacheError:
            return None
        return [table.entry, second.entry]

    def _write_shard(self, plan: SequenceHeader, shard: int, members: np.ndarray) -> list[FileEntry]:
        # Sequences of like length together: less padding.
        by_length = sorted(members.tolist(), key=lambda n: len(self._sequences[n]))
        pieces: dict[int, Rows] = {}
        for start in range(0, len(by_length), self._batch_size):
            chosen = by_length[start : start + self._batch_size]
            pieces.update(zip(chosen, self._encoded(chosen)))
            self._report(sum(int(self._counts[n]) for n in chosen))
        parts = [pieces[n] for n in members.tolist()]
        tokens = {name: np.concatenate([p.tokens[name] for p in parts]) for name in parts[0].tokens}
        found = [self._place.store_rows(shard_path(self._folder, shard), tokens, plan.rows_per_block)]
        if parts[0].entries:
            entries = {name: np.concatenate([p.entries[name] for p in parts]) for name in parts[0].entries}
            found.append(self._place.store_rows(entries_path(self._folder, shard), entries, plan.rows_per_block))
        return found

    def _encoded(self, numbers: list[int]) -> Iterator[Rows]:
        """Yields the rows of each of some sequences."""
        sequences = [self._sequences[n] for n in numbers]
        batch = self._batch(sequences)
        signals = self._teacher(batch)
        for row, (number, sequence) in enumerate(zip(numbers, sequences)):
            places = batch["mask"][row].nonzero()[:, 0]
            keys = with_position(np.repeat(self._keys[number], len(places)), places.cpu().numpy())
            parts = []
            for start in range(0, len(places), _CHUNK):
                values = _values(signals, self._codec, row, places[start : start + _CHUNK])
                self._refuse_nan(values, sequence, number)
                parts.append(self._codec.encode(values, keys[start : start + _CHUNK]))
            yield _joined(parts)

    def _refuse_nan(self, values: Tensor, sequence: Encoded, number: int) -> None:
        # -inf is the logit of a token that is ruled out; NaN and +inf are errors.
        if bool((values.isnan() | (values == torch.inf)).any()):
            text = self._source.tokenizer.decode(sequence.ids[:24].tolist())
            raise CacheError(
                f"the teacher says NaN or infinity about sequence {number} ('{text}...'); check its weights and its "
                "precision"
            )

    def _batch(self, sequences: list[Encoded]) -> Batch:
        length = max(len(s) for s in sequences) - 1
        batch = collate([[s] for s in sequences], length, pad_id=self._source.tokenizer.pad_id)
        batch["index"], batch["epoch"] = torch.arange(len(sequences)), 0
        return batch if self._device is None else batch.to(self._device)

    def _report(self, tokens: int) -> None:
        self._done += tokens
        if self._progress is not None:
            self._progress(self._done, int(self._counts.sum()))


def _values(signals: Signals, codec: SequenceCodec, row: int, places: Tensor) -> Tensor:
    """Returns ``[M, ...]`` logits or hidden states of a row at some places."""
    if signals.hidden is not None:
        states = signals.hidden.states[row, places]
        with torch.no_grad():
            return states if codec.reads == "hidden" else signals.hidden.head(states)
    assert signals.logits is not None
    return signals.logits[row, places]


def _sizes(signals: Signals, codec: SequenceCodec) -> tuple[int, int]:
    """Returns the number of tokens of the vocabulary and the size of the states that are stored."""
    if signals.hidden is not None:
        return signals.hidden.head.classes, signals.hidden.states.shape[-1] if codec.reads == "hidden" else 0
    if codec.reads == "hidden" or signals.logits is None:
        wanted = "hidden states" if codec.reads == "hidden" else "logits"
        raise NeedsError(f"a cache with the codec '{codec.name}' stores {wanted}, but the teacher gives none")
    return signals.logits.shape[-1], 0


def _joined(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    tokens = {name: np.concatenate([p.tokens[name] for p in parts]) for name in parts[0].tokens}
    entries = {name: np.concatenate([p.entries[name] for p in parts]) for name in parts[0].entries}
    return Rows(tokens, entries)
