"""A file of rows: safetensors columns that are mapped into memory, with a checksum for every block of rows.

Any safetensors reader opens it. The columns are tensors ``[rows, ...]``, and ``block_crc32`` holds one CRC-32 a block,
over the block's rows of every column in the order of their names.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from limbeck.errors import CacheError
from limbeck.teachers.cache.codecs.base import Column
from limbeck.teachers.cache.header import FileEntry

_CRC = "block_crc32"
_TYPES = {"float32": "F32", "float16": "F16", "uint8": "U8", "uint32": "U32", "uint64": "U64"}
_LONGEST_HEAD = 1 << 20


def table_file(columns: Mapping[str, np.ndarray], rows_per_block: int) -> tuple[bytes, FileEntry]:
    """Returns the content of a file of ``columns``, all ``[rows, ...]``, and its entry; they depend on nothing else."""
    rows = len(next(iter(columns.values())))
    blocks = range(-(-rows // rows_per_block))
    checksums = np.array([_block_checksum(columns, block, rows_per_block) for block in blocks], dtype=np.uint32)
    content = safetensors.numpy.save({**columns, _CRC: checksums})
    head = content[8 : 8 + int.from_bytes(content[:8], "little")]
    return content, FileEntry(rows=rows, size=len(content), checksum=_checksum(head, checksums))


class Table:
    """An open file of rows. A row is returned only after its block's checksum was found right, once a block.

    Args:
        path: the file.
        columns: what a row must hold.
        rows: how many rows there must be.
        rows_per_block: rows that share a checksum.
        expected: what the cache's header says of the file; only its own structure is checked when None.

    Raises:
        CacheError: the file is missing, truncated, corrupt or foreign.
    """

    def __init__(
        self,
        path: Path,
        columns: Mapping[str, Column],
        rows: int,
        rows_per_block: int,
        expected: FileEntry | None = None,
    ) -> None:
        self.path = path
        self._rows_per_block = rows_per_block
        blocks = -(-rows // rows_per_block)
        try:
            size = path.stat().st_size
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                head = file.read(min(length, _LONGEST_HEAD))
            if expected is not None and size != expected.size:
                raise self._broken(f"it has {size} bytes instead of {expected.size}")
            content = np.memmap(path, np.uint8, "r")[8 + length :]
            whole = {name: (column.dtype, (rows, *column.shape)) for name, column in columns.items()}
            arrays = _columns(head, content, {**whole, _CRC: ("uint32", (blocks,))})
        except OSError as error:
            raise self._broken(error.strerror or str(error)) from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._broken("it does not hold the rows that the header describes") from None
        self._checksums = arrays.pop(_CRC)
        self._columns = arrays
        self._checked = np.zeros(blocks, bool)
        self.entry = FileEntry(rows=rows, size=size, checksum=_checksum(head, self._checksums))
        if expected is not None and self.entry != expected:
            raise self._broken("its checksum does not match")

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns copies of ``rows`` of every column.

        Raises:
            CacheError: a block that holds one of them is corrupt.
        """
        blocks = rows // self._rows_per_block
        fresh = blocks[~self._checked[blocks]]
        if len(fresh):
            self._check(np.unique(fresh))
        return {name: column[rows] for name, column in self._columns.items()}

    def column(self, name: str) -> np.ndarray:
        """Returns one whole column, checked.

        Raises:
            CacheError: a block is corrupt.
        """
        self.verify()
        return np.array(self._columns[name])

    def verify(self) -> None:
        """Checks every block.

        Raises:
            CacheError: one is corrupt; the message names the rows.
        """
        self._check(np.flatnonzero(~self._checked))

    def _check(self, blocks: np.ndarray) -> None:
        for block in blocks.tolist():
            if _block_checksum(self._columns, block, self._rows_per_block) != self._checksums[block]:
                first = block * self._rows_per_block
                raise self._broken(f"the checksum of rows {first} to {first + self._rows_per_block - 1} does not match")
        self._checked[blocks] = True

    def _broken(self, reason: str) -> CacheError:
        return CacheError(
            f"the cache file '{self.path}' is missing, corrupt or foreign: {reason}. Run the command that wrote the "
            "cache again: it rewrites what is broken"
        )


def _columns(
    head: bytes, content: np.ndarray, wanted: Mapping[str, tuple[str, tuple[int, ...]]]
) -> dict[str, np.ndarray]:
    """Returns views of the columns in ``content``, or raises ValueError, KeyError or TypeError."""
    described: dict[str, Any] = json.loads(head)
    if described.keys() != wanted.keys():
        raise ValueError("columns")
    arrays: dict[str, np.ndarray] = {}
    total = 0
    for name in sorted(wanted):
        dtype, shape = wanted[name]
        start, stop = described[name]["data_offsets"]
        size = int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64))
        right = described[name]["dtype"] == _TYPES[dtype] and tuple(described[name]["shape"]) == shape
        if not right or not 0 <= start <= stop <= len(content) or stop - start != size:
            raise ValueError(name)
        arrays[name] = np.asarray(content[start:stop]).view(dtype).reshape(shape)
        total += size
    if total != len(content):
        raise ValueError("length")
    return arrays


def _checksum(head: bytes, block_checksums: np.ndarray) -> str:
    return hashlib.blake2b(head + block_checksums.tobytes(), digest_size=16).hexdigest()


def _block_checksum(columns: Mapping[str, np.ndarray], block: int, rows_per_block: int) -> int:
    checksum = 0
    for name in sorted(columns):
        rows = columns[name][block * rows_per_block : (block + 1) * rows_per_block]
        checksum = zlib.crc32(rows.data, checksum)
    return checksum
