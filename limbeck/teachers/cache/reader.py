"""An open cache: rows by number, checked before they are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from limbeck.errors import CacheError
from limbeck.signals import Signals
from limbeck.teachers.cache.codecs.base import Column
from limbeck.teachers.cache.header import keys_path, read_header, shard_path
from limbeck.teachers.cache.layout import Layout
from limbeck.teachers.cache.table import Table

KEYS = {"content": Column("uint64")}
"""The column of the file of content hashes."""


class CacheReader:
    """Opens a finished cache.

    The header and the content hashes are checked at once, each shard when it is first touched, each block of rows
    before its first row is used.

    Args:
        folder: the cache.

    Raises:
        CacheError: there is no cache, or it is unfinished, corrupt, truncated, foreign or of another version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.header = read_header(self.folder)
        self.layout = Layout.from_header(self.header)
        expected = len(self.header.views) * self.header.shards_per_view
        if len(self.header.shards) != expected:
            raise CacheError(f"the header of the cache '{folder}' lists {len(self.header.shards)} of {expected} shards")
        keys = Table(keys_path(self.folder), KEYS, self.header.samples, self.header.rows_per_block, self.header.keys)
        self.keys = keys.column("content")
        self._columns = self.layout.columns()
        self._tables: dict[tuple[int, int], Table] = {}

    def match(self, hashes: np.ndarray) -> np.ndarray:
        """Returns the row of every content hash ``[M]`` as int64, -1 where the cache does not have it."""
        order = np.argsort(self.keys, kind="stable")
        place = np.searchsorted(self.keys, hashes, sorter=order)
        rows = order[np.minimum(place, len(order) - 1)]
        return np.where(self.keys[rows] == hashes, rows, -1)

    def read(self, view: int, rows: np.ndarray) -> Signals:
        """Returns the signals of ``rows`` ``[B]`` of a view, in their order.

        Raises:
            CacheError: a shard is missing or corrupt.
        """
        shards, within = np.divmod(rows, self.header.rows_per_shard)
        tables = {shard: self._table(view, shard) for shard in np.unique(shards).tolist()}
        if len(tables) == 1:
            return self.layout.decode(next(iter(tables.values())).take(within))
        gathered = {name: np.empty((len(rows), *c.shape), c.dtype) for name, c in self._columns.items()}
        for shard, table in tables.items():
            here = shards == shard
            for name, array in table.take(within[here]).items():
                gathered[name][here] = array
        return self.layout.decode(gathered)

    def verify(self) -> list[str]:
        """Checks every byte and returns what is wrong, one sentence a file."""
        problems = []
        for view in range(len(self.header.views)):
            for shard in range(self.header.shards_per_view):
                try:
                    self._table(view, shard).verify()
                except CacheError as error:
                    problems.append(str(error))
        return problems

    def size(self) -> int:
        """Bytes of all files of the cache."""
        files = [self.header.keys, *self.header.shards]
        return len(self.header.to_bytes()) + sum(file.size for file in files)

    def _table(self, view: int, shard: int) -> Table:
        table = self._tables.get((view, shard))
        if table is None:
            header = self.header
            table = Table(
                shard_path(self.folder, view, shard),
                self._columns,
                header.shard_rows(shard),
                header.rows_per_block,
                header.shards[view * header.shards_per_view + shard],
            )
            self._tables[view, shard] = table
        return table
