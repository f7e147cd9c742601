"""Sets of class numbers with counts, in few bits: gaps between sorted numbers as Rice codes, counts in unary.

A row takes 5 bits for its parameter ``r``; then for each class, in increasing order, the gap from the class before as
``gap >> r`` ones, a zero and ``r`` low bits; and its count less one as ones and a zero. A row ends when its counts sum
to what they must, so how many classes it has is not stored, and it begins on a byte.

Reference:
    Rice and Plaunt, Adaptive variable-length coding, IEEE Transactions on Communications, 1971
"""

from __future__ import annotations

import numpy as np

_WIDTH = 5
_LARGEST = 24


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
    gaps = np.diff(numbers, prepend=-1) - 1
    gaps[first] = numbers[first]
    sizes = [np.add.reduceat((gaps >> r) + r, first) for r in range(_LARGEST + 1)]
    rice = np.argmin(sizes, axis=0)
    r = np.repeat(rice, classes)
    quotient = gaps >> r
    length = quotient + 1 + r + counts
    lengths = -(-(np.add.reduceat(length, first) + _WIDTH) // 8)
    row_start = 8 * (np.cumsum(lengths) - lengths)
    within = np.cumsum(length) - length
    start = np.repeat(row_start + _WIDTH - within[first], classes) + within
    bits = np.zeros(8 * int(lengths.sum()), np.uint8)
    _write_number(bits, row_start, rice, np.full_like(rice, _WIDTH))
    _write_ones(bits, start, quotient)
    _write_number(bits, start + quotient + 1, gaps & ((1 << r) - 1), r)
    _write_ones(bits, start + quotient + 1 + r, counts - 1)
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
    rice = _read_number(bits, place, np.full(rows, _WIDTH))
    place = place + _WIDTH
    sums, before = np.zeros(rows, np.int64), np.full(rows, -1, np.int64)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    active = np.arange(rows)
    while len(active):
        here, r = place[active], rice[active]
        stop = zero[np.minimum(here, last)]
        gap = ((stop - here) << r) + _read_number(bits, stop + 1, r)
        counting = stop + 1 + r
        end = zero[np.minimum(counting, last)]
        count = end - counting + 1
        number = before[active] + 1 + gap
        found.append((active, number, count))
        before[active], place[active] = number, end + 1
        sums[active] += count
        active = active[sums[active] < total]
        if len(found) > total:
            raise ValueError("a row has more classes than draws")
    if not rows or bool((sums != total).any()):
        raise ValueError("the counts of a row do not sum to what was drawn")
    row, numbers, counts = (np.concatenate(parts) for parts in zip(*found))
    order = np.argsort(row, kind="stable")
    return numbers[order], counts[order], np.bincount(row, minlength=rows)


def _write_ones(bits: np.ndarray, start: np.ndarray, count: np.ndarray) -> None:
    before = np.cumsum(count) - count
    bits[np.repeat(start - before, count) + np.arange(int(count.sum()))] = 1


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
