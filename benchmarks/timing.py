"""Time calls, both sides in turn, so that what else the machine does falls on both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

Call = Callable[[], object]


def time_call(call: Call) -> float:
    """Return the seconds that one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def take_turns(ways: Mapping[str, Call], rounds: int, *, before: Call | None = None) -> dict[str, tuple[float, ...]]:
    """Call each way once to warm up, then in turn, `rounds` times; return the seconds of each.

    `before` is called before each of them, outside the time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, call in ways.items():
            if before is not None:
                before()
            taken = time_call(call)
            if turn:
                seconds[name].append(taken)
    return {name: tuple(taken) for name, taken in seconds.items()}


def time_many(
    ways: Mapping[str, Call], calls: int, *, block: int = 50, budget_seconds: float = 5
) -> dict[str, tuple[float, ...]]:
    """Time each of many short calls by itself, the ways in turn in blocks; fewer of them when the budget is spent."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for call in ways.values():
        call()
    stop = time.monotonic() + budget_seconds
    for start in range(0, calls, block):
        for name, call in ways.items():
            for _ in range(min(block, calls - start)):
                seconds[name].append(time_call(call))
                if time.monotonic() > stop:
                    break
        if time.monotonic() > stop:
            break
    return {name: tuple(taken) for name, taken in seconds.items()}


def median_of(seconds: tuple[float, ...]) -> float:
    """Return the median."""
    return statistics.median(seconds)
