"""Tables on a terminal: words wrap, figures never do, and columns without room stand in a further table below."""

from __future__ import annotations

import copy
from dataclasses import replace

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

_SHORT = 24
"""Cells of up to so many letters are kept on one line, as figures are."""
_PROSE = 20
"""Least width of a column of longer ones, which wrap."""


def print_table(console: Console, table: Table) -> None:
    """Prints a table of which no figure is cut, whatever the width of the terminal.

    Columns to the right hold figures, which stay on one line, as short words do; longer texts wrap. Where the terminal
    has no room for all columns, the last ones follow in tables of their own, each beginning with the first column.

    Args:
        console: where to.
        table: the table; its columns are changed to wrap like this.
    """
    for column in table.columns:
        column.overflow = "fold"
        column.no_wrap = column.no_wrap or column.justify == "right" or _widest(column) <= _SHORT
    # Without a box the last column needs no room beside it.
    table.pad_edge = table.pad_edge and table.box is not None
    for number, columns in enumerate(_parted(table, console.width)):
        part = copy.copy(table)
        part.columns = [replace(column, _index=place) for place, column in enumerate(columns)]
        part.title = None if number else table.title
        if number:
            console.print()
        console.print(part)


def _parted(table: Table, width: int) -> list[list[Column]]:
    """Divides columns into as few groups as fit, each beginning with the first column."""
    if not table.columns:
        return [[]]
    first, *rest = table.columns
    frame = 0 if table.box is None else 1
    beside = table.padding[1] + table.padding[3] + frame
    edge = frame if table.pad_edge else frame - table.padding[1] - table.padding[3]
    start = edge + beside + _needed(first)
    groups: list[list[Column]] = [[first]]
    taken = start
    for column in rest:
        more = beside + _needed(column)
        if taken + more > width and len(groups[-1]) > 1:
            groups.append([first])
            taken = start
        groups[-1].append(column)
        taken += more
    return groups


def _needed(column: Column) -> int:
    return _widest(column) if column.no_wrap else min(_widest(column), _PROSE)


def _widest(column: Column) -> int:
    lines = [line for cell in (column.header, *column.cells) for line in _plain(cell).split("\n")]
    return max(map(cell_len, lines), default=0)


def _plain(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)
