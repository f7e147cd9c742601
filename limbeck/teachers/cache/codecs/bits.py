"""Class numbers in as few bits as the number of classes needs."""

from __future__ import annotations

import numpy as np


def width_of(classes: int) -> int:
    """Returns the number of bits that tell ``classes`` classes apart, at least 1.

    Example:
        >>> [width_of(c) for c in (1, 2, 3, 1000, 32768, 65536, 65537)]
        [1, 1, 2, 10, 15, 16, 17]
    """
    return max(1, (classes - 1).bit_length())


def packed_bytes(count: int, width: int) -> int:
    """Returns the bytes that ``count`` numbers of ``width`` bits take, rounded up."""
    return -(-count * width // 8)


def pack(numbers: np.ndarray, width: int) -> np.ndarray:
    """Packs ``[B, k]`` integers in ``[0, 2**width)`` into ``[B, packed_bytes(k, width)]`` bytes, low bits first."""
    bits = (numbers[..., None].astype(np.uint64) >> np.arange(width, dtype=np.uint64)) & np.uint64(1)
    return np.packbits(bits.astype(np.uint8).reshape(len(numbers), -1), axis=1, bitorder="little")


def unpack(packed: np.ndarray, count: int, width: int) -> np.ndarray:
    """Returns the ``[B, count]`` int64 numbers that :func:`pack` packed."""
    starts = np.arange(count) * width
    first, shift = starts >> 3, (starts & 7).astype(np.int64)
    # A number of `width` bits that starts anywhere within a byte reaches over this many bytes.
    span = (width + 14) // 8
    padded = np.zeros((len(packed), packed.shape[1] + span), dtype=np.int64)
    padded[:, : packed.shape[1]] = packed
    words = padded[:, first]
    for byte in range(1, span):
        words |= padded[:, first + byte] << (8 * byte)
    return (words >> shift) & ((1 << width) - 1)
