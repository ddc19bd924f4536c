"""Lay out a table for people: columns as wide as their widest cell, or shortened to what a terminal has room for.

Not by rich: its tables take longer to import than a registry takes to read, and a second for a thousand rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_GAP = "  "
_NARROW = 8  # no column is cut below this for another's sake


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and the row's key that it shows."""

    heading: str
    key: str
    right: bool = False


def lay_out(rows: Sequence[Mapping[str, str]], columns: Sequence[Column], room: int | None) -> Iterator[str]:
    """Give the lines, headings first; columns with nothing in them are left out, and `room` is the longest line."""
    from rich.cells import cell_len

    shown = [column for column in columns if any(row[column.key] for row in rows)]
    cells = [[column.heading for column in shown], *([row[column.key] for column in shown] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    if room is not None:
        widths = _fit(widths, room - len(_GAP) * (len(widths) - 1))
    for line in cells:
        fitted = (_fit_cell(*one) for one in zip(line, widths, (column.right for column in shown), strict=True))
        yield _GAP.join(fitted).rstrip()


def _fit(widths: Sequence[int], room: int) -> list[int]:
    """Take what is too much from the widest columns."""
    cap = max(widths, default=0)
    while cap > _NARROW and sum(min(width, cap) for width in widths) > room:
        cap -= 1
    return [min(width, cap) for width in widths]


def _fit_cell(text: str, width: int, right: bool) -> str:
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    padding = " " * (width - cell_len(text))
    return padding + text if right else text + padding
