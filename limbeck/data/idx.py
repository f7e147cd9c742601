"""The idx file format of MNIST and its successors."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np

from limbeck.errors import DataError

_UINT8 = 8


def read_idx(path: Path, sha256: str | None = None) -> np.ndarray:
    """Returns the uint8 array of an idx file, gzip-compressed or plain.

    Args:
        path: the file.
        sha256: what the decompressed content must hash to, so that it does not matter who compressed it.

    Raises:
        DataError: the file is damaged, or is not what ``sha256`` says.
    """
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {error}; delete it and fetch it again") from error
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{path} does not hold what its name says (its checksum differs); delete it and fetch it again")
    if len(content) < 4 or content[0] or content[1] or content[2] != _UINT8:
        raise DataError(f"{path} is no idx file of bytes")
    dimensions = content[3]
    header = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4))
    if len(content) - header != math.prod(shape):
        raise DataError(
            f"{path} is truncated or damaged: its header says {shape}, but {len(content) - header} bytes follow"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
