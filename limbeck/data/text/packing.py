"""Several short sequences in one row, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Sequence

_OPEN = 64


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Returns rows of sequence numbers, each of at most ``room`` tokens: first fit, in order, over the last 64 rows.

    The result depends on the lengths only, so rows are the same in every run.

    Args:
        lengths: tokens of each sequence, at most ``room``.
        room: tokens of a row.

    Example:
        >>> pack([5, 4, 3, 2], 8)
        [[0, 2], [1, 3]]
    """
    rows: list[list[int]] = []
    free: list[int] = []
    for number, length in enumerate(lengths):
        first = max(len(rows) - _OPEN, 0)
        fitting = next((row for row in range(first, len(rows)) if free[row] >= length), None)
        if fitting is None:
            rows.append([number])
            free.append(room - length)
        else:
            rows[fitting].append(number)
            free[fitting] -= length
    return rows
