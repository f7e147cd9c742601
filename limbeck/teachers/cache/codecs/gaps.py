"""Sets of class numbers with counts, in few bits: gaps between sorted numbers and counts as exponential Golomb codes.

A number ``n`` takes ``k`` ones, a zero and the low ``k + r`` bits of ``n + 2**r``, where ``k`` is how many doublings of
``2**r`` it reaches. A row takes 4 bits for its parameter ``p``; then for each class, in increasing order, the gap from
the class before, ``b``, with ``r = max(floor(log2(b + 256)) - p, 0)``, and its count less one with ``r = 0``. A row
ends when its counts sum to what they must, so how many classes it has is not stored, and it begins on a byte.

The number of low bits grows with the class before because tokenizers number tokens from frequent to rare, behind the
256 bytes that many begin with: gaps are then about proportional to where they are, as Zipf's law has it.

References:
    Teuhola, A compression method for clustered bit-vectors, Information Processing Letters, 1978
"""

from __future__ import annotations

import numpy as np

_WIDTH = 4
_FIRST = 256
_MOST = 40


def pack_counts(numbers: np.ndarray, counts: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Packs rows of class numbers with counts.

    Args:
        numbers: ``[N]`` class numbers of all rows, increasing within a row.
        counts: ``[N]`` their counts, at least 1.
        classes: ``[M]`` how many classes each row has, at least 1.

    Returns:
        The bytes of all rows ``[sum of lengths]`` uint8, and the length of each ``[M]`` int64.

    Example:
        >>> packed, lengths = pack_counts(np.array([3, 9, 4]), np.array([1, 2, 3]), np.array([2, 1]))
        >>> [part.tolist() for part in unpack_counts(packed, lengths, 3)]
        [[3, 9, 4], [1, 2, 3], [2, 1]]
    """
    numbers, counts = numbers.astype(np.int64), counts.astype(np.int64)
    first = np.cumsum(classes) - classes
    before = np.concatenate([[-1], numbers[:-1]])
    before[first] = -1
    gaps = numbers - before - 1
    sizes = [np.add.reduceat(_size(gaps, _low_bits(before, p)), first) for p in range(1 << _WIDTH)]
    chosen = np.argmin(sizes, axis=0)
    r = _low_bits(before, np.repeat(chosen, classes))
    gap_size = _size(gaps, r)
    size = gap_size + _size(counts - 1, np.zeros_like(r))
    lengths = -(-(np.add.reduceat(size, first) + _WIDTH) // 8)
    row_start = 8 * (np.cumsum(lengths) - lengths)
    within = np.cumsum(size) - size
    start = np.repeat(row_start + _WIDTH - within[first], classes) + within
    bits = np.zeros(8 * int(lengths.sum()), np.uint8)
    _write_number(bits, row_start, chosen, np.full_like(chosen, _WIDTH))
    _write(bits, start, gaps, r)
    _write(bits, start + gap_size, counts - 1, np.zeros_like(r))
    return np.packbits(bits, bitorder="little"), lengths


def unpack_counts(packed: np.ndarray, lengths: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the class numbers, the counts and the number of classes of each row that :func:`pack_counts` packed.

    Args:
        packed: bytes of all rows.
        lengths: ``[M]`` length of each.
        total: what the counts of a row sum to.

    Raises:
        ValueError: the bytes are not what was packed.
    """
    bits = np.append(np.unpackbits(packed, bitorder="little"), np.uint8(0))
    last = len(bits) - 1
    # For every place the first zero from there on.
    zero = np.minimum.accumulate(np.where(bits == 0, np.arange(len(bits)), last)[::-1])[::-1]
    rows = len(lengths)
    place = 8 * (np.cumsum(lengths) - lengths)
    chosen = _read_number(bits, place, np.full(rows, _WIDTH))
    place = place + _WIDTH
    sums, before = np.zeros(rows, np.int64), np.full(rows, -1, np.int64)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    active = np.arange(rows)
    while len(active):
        gap, here = _read(bits, zero, place[active], _low_bits(before[active], chosen[active]))
        less, here = _read(bits, zero, here, np.zeros_like(here))
        number, count = before[active] + 1 + gap, less + 1
        found.append((active, number, count))
        before[active], place[active] = number, here
        sums[active] += count
        active = active[sums[active] < total]
        if len(found) > total:
            raise ValueError("a row has more classes than draws")
    if not rows or bool((sums != total).any()):
        raise ValueError("the counts of a row do not sum to what was drawn")
    row, numbers, counts = (np.concatenate(parts) for parts in zip(*found))
    order = np.argsort(row, kind="stable")
    return numbers[order], counts[order], np.bincount(row, minlength=rows)


def _low_bits(before: np.ndarray, p: np.ndarray | int) -> np.ndarray:
    return np.maximum(_log2(before + _FIRST) - p, 0)


def _log2(numbers: np.ndarray) -> np.ndarray:
    """Returns the whole part of the logarithm of positive integers below ``2**53``."""
    return np.frexp(numbers.astype(np.float64))[1].astype(np.int64) - 1


def _size(numbers: np.ndarray, r: np.ndarray) -> np.ndarray:
    return 2 * _log2((numbers >> r) + 1) + 1 + r


def _write(bits: np.ndarray, start: np.ndarray, numbers: np.ndarray, r: np.ndarray) -> None:
    doublings = _log2((numbers >> r) + 1)
    before = np.cumsum(doublings) - doublings
    bits[np.repeat(start - before, doublings) + np.arange(int(doublings.sum()))] = 1
    _write_number(bits, start + doublings + 1, numbers + (1 << r), doublings + r)


def _read(bits: np.ndarray, zero: np.ndarray, start: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers and where each ends."""
    last = len(bits) - 1
    stop = zero[np.minimum(start, last)]
    # Broken bytes may have a run of any length; no number has more bits than these.
    width = np.minimum(stop - start, _MOST) + r
    return (1 << width) + _read_number(bits, stop + 1, width) - (1 << r), stop + 1 + width


def _write_number(bits: np.ndarray, start: np.ndarray, value: np.ndarray, width: np.ndarray) -> None:
    for bit in range(int(width.max(initial=0))):
        wide = width > bit
        bits[start[wide] + bit] = (value[wide] >> bit) & 1


def _read_number(bits: np.ndarray, start: np.ndarray, width: np.ndarray) -> np.ndarray:
    value = np.zeros(len(start), np.int64)
    for bit in range(int(width.max(initial=0))):
        wide = width > bit
        value[wide] |= bits[np.minimum(start[wide] + bit, len(bits) - 1)].astype(np.int64) << bit
    return value
