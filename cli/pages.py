"""Read long lists a page at a time: the first rows come at once, and memory does not grow with the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from cli.output import say

PAGE = 1000
IN_A_TABLE = 1000
T = TypeVar("T")


def choose_limit(limit: int | None, output: str) -> int | None:
    """Return how many rows to show: what was asked for, or else all, but no more in a table than people read."""
    return IN_A_TABLE if limit is None and output == "table" else limit


def read_pages(read: Callable[[int, Any], Sequence[T]], place_of: Callable[[T], Any], limit: int | None) -> Iterator[T]:
    """Give the rows that `read(n, place)` finds beyond the place of the last one, at most `limit`."""
    place, left = None, limit
    while left is None or left > 0:
        n = PAGE if left is None else min(PAGE, left)
        rows = read(n, place)
        yield from rows
        if len(rows) < n:
            return
        place = place_of(rows[-1])
        left = None if left is None else left - n


def tell_rest(limit: int | None, output: str, count: Callable[[], int]) -> None:
    """Say on stderr how many rows a table left out because nobody said --limit."""
    if limit is None and output == "table" and (rest := count() - IN_A_TABLE) > 0:
        say(f"… and {rest:,} more: say --limit N, or --output json, csv or ids", err=True)
