"""Content hashes: a sample is known again by what it holds, a data set by all its samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from torch import Tensor

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def hash_bytes(content: bytes | memoryview, kind: str) -> int:
    """Returns a 64-bit BLAKE2b hash of ``content``; the same bytes of different ``kind`` differ."""
    head = hashlib.blake2b(kind.encode(), digest_size=16).digest()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, key=head).digest(), "little")


def hash_tensor(sample: Tensor) -> int:
    """Returns a 64-bit hash of one sample: its bytes, type and shape."""
    return int(hash_rows(sample.unsqueeze(0))[0])


def hash_rows(samples: Tensor) -> np.ndarray:
    """Returns :func:`hash_tensor` of every row of ``samples`` ``[N, ...]`` as ``[N]`` uint64.

    About half a gigabyte a second.
    """
    array = np.ascontiguousarray(samples.detach().cpu().numpy())
    kind = f"{array.dtype.str}{array.shape[1:]}"
    head = hashlib.blake2b(kind.encode(), digest_size=16).digest()
    empty = hashlib.blake2b(digest_size=8, key=head)
    digests = bytearray()
    for row in array.reshape(len(array), -1):
        hasher = empty.copy()
        hasher.update(row.data)
        digests += hasher.digest()
    return np.frombuffer(bytes(digests), dtype="<u8").astype(np.uint64)


def with_position(hashes: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Returns 64-bit words that depend on the content and on the sample's number."""
    with np.errstate(over="ignore"):
        words = hashes ^ ((index.astype(np.uint64) + np.uint64(1)) * _MULTIPLIER)
        words = (words ^ (words >> np.uint64(29))) * _MULTIPLIER
    return words ^ (words >> np.uint64(32))


def fingerprint(parts: Iterable[bytes | np.ndarray | str]) -> str:
    """Returns a 128-bit hash, in hexadecimal, of a sequence of parts; where one ends and the next begins matters."""
    whole = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.encode() if isinstance(part, str) else part.tobytes() if isinstance(part, np.ndarray) else part
        whole.update(len(content).to_bytes(8, "little"))
        whole.update(content)
    return whole.hexdigest()


def source_fingerprint(hashes: np.ndarray, labels: Tensor | None) -> str:
    """Returns the fingerprint of a data set from its content hashes ``[N]`` and labels ``[N]``, in order."""
    numbers = np.zeros(0, "<i8") if labels is None else labels.cpu().numpy().astype("<i8")
    return fingerprint([hashes.astype("<u8"), numbers])
