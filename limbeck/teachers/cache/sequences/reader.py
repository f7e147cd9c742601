"""An open cache of sequences: rows of a sequence by its content, checked before they are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from limbeck.errors import CacheError
from limbeck.signals import Signals
from limbeck.teachers.cache.header import keys_path, sealed
from limbeck.teachers.cache.sequences.codecs import Rows, build_sequence_codec, revision_of
from limbeck.teachers.cache.sequences.header import (
    entries_path,
    head_path,
    read_sequence_header,
    shard_of,
    shard_path,
)
from limbeck.teachers.cache.sequences.layer import read_head
from limbeck.teachers.cache.sequences.writer import KEYS
from limbeck.teachers.cache.table import Table


class SequenceReader:
    """Opens a finished cache.

    Args:
        folder: the cache.

    Raises:
        CacheError: there is no cache, or it is unfinished, corrupt, foreign or of another version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.header = read_sequence_header(self.folder)
        header = self.header
        try:
            self.codec = build_sequence_codec(header.codec)
        except ValueError as error:
            raise CacheError(f"the cache was written with a codec that this limbeck cannot read: {error}") from None
        if header.revision != revision_of(self.codec):
            raise CacheError(
                f"the cache '{folder}' was written by limbeck {header.limbeck} with revision {header.revision} of the "
                f"codec '{self.codec.name}', but this limbeck reads revision {revision_of(self.codec)}; delete the "
                "folder and write the cache again"
            )
        table = Table(keys_path(self.folder), KEYS, header.sequences, header.rows_per_block, header.keys)
        self.keys = table.column("content")
        self.counts = table.column("tokens").astype(np.int64)
        self._order = np.argsort(self.keys, kind="stable")
        self._shards = shard_of(self.counts, header.tokens_per_shard)
        first = np.cumsum(self.counts) - self.counts
        _, start = np.unique(self._shards, return_index=True)
        self._within = first - first[start][self._shards]
        self._rows = np.bincount(self._shards, weights=self.counts).astype(np.int64)
        if len(header.shards) != len(self._rows):
            raise CacheError(
                f"the header of the cache '{folder}' lists {len(header.shards)} of {len(self._rows)} shards"
            )
        self.head = None if header.head is None else read_head(head_path(self.folder), header.head)
        self._columns = self.codec.columns(header.vocabulary, header.width)
        self._entry_columns = self.codec.entry_columns(header.vocabulary)
        self._tables: dict[int, Table] = {}
        self._entries: dict[int, tuple[Table, np.ndarray]] = {}

    def match(self, keys: np.ndarray) -> np.ndarray:
        """Returns the number of the sequence of every key ``[M]``, -1 where the cache does not have it."""
        place = np.searchsorted(self.keys, keys, sorter=self._order)
        numbers = self._order[np.minimum(place, len(self._order) - 1)]
        return np.where(self.keys[numbers] == keys, numbers, -1)

    def read(self, sequences: list[int]) -> Signals:
        """Returns the signals ``[M, ...]`` of all tokens of some sequences, one sequence after the other.

        Raises:
            CacheError: a shard is missing or corrupt.
        """
        parts = [self._rows_of(number) for number in sequences]
        tokens = {name: np.concatenate([p.tokens[name] for p in parts]) for name in self._columns}
        if not self._entry_columns:
            return self.codec.decode(Rows(tokens), self.header.vocabulary, self.head)
        entries = {name: np.concatenate([p.entries[name] for p in parts]) for name in self._entry_columns}
        counts = tokens["count"].astype(np.int64)
        return self.codec.decode(Rows(tokens, entries, counts), self.header.vocabulary, self.head)

    def _rows_of(self, number: int) -> Rows:
        shard, first = int(self._shards[number]), int(self._within[number])
        rows = np.arange(first, first + int(self.counts[number]))
        tokens = self._table(shard).take(rows)
        if not self._entry_columns:
            return Rows(tokens)
        table, before = self._entry_table(shard)
        return Rows(tokens, table.take(np.arange(before[rows[0]], before[rows[-1] + 1])))

    def _table(self, shard: int) -> Table:
        if shard not in self._tables:
            self._tables[shard] = Table(
                shard_path(self.folder, shard),
                self._columns,
                int(self._rows[shard]),
                self.header.rows_per_block,
                self.header.shards[shard],
            )
        return self._tables[shard]

    def _entry_table(self, shard: int) -> tuple[Table, np.ndarray]:
        """Returns the entries of a shard, and how many come before each of its tokens."""
        if shard not in self._entries:
            counts = self._table(shard).column("count").astype(np.int64)
            before = np.concatenate([[0], np.cumsum(counts)])
            table = Table(
                entries_path(self.folder, shard),
                self._entry_columns,
                int(before[-1]),
                self.header.rows_per_block,
                self.header.entries[shard],
            )
            self._entries[shard] = (table, before)
        return self._entries[shard]

    def verify(self) -> list[str]:
        """Checks every byte and returns what is wrong, one sentence a file."""
        problems = []
        for shard in range(len(self._rows)):
            try:
                self._table(shard).verify()
                if self._entry_columns:
                    self._entry_table(shard)[0].verify()
            except CacheError as error:
                problems.append(str(error))
        return problems

    def size(self) -> int:
        """Bytes of the stored distributions: shards and entries, without the output layer and the list of keys."""
        return sum(file.size for file in (*self.header.shards, *self.header.entries))

    def total_size(self) -> int:
        """Bytes of all files of the cache."""
        head = head_path(self.folder).stat().st_size if self.header.head is not None else 0
        return self.size() + self.header.keys.size + head + len(sealed(self.header))
