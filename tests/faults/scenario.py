"""A fault scenario: it strikes until its time is up, and reports how often it struck and what was broken by it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

OVERTIME = 90  # seconds: a machine that is slower than that has failed the scenario
LONG_SECONDS, LONG_OVERTIME = 1800, 600
"""From so many seconds on a run is a long one, in which scenarios strike as often as they promise."""


@dataclass(frozen=True)
class Chance:
    """What a scenario is given: a folder of its own (emptied before), a seed, and the moment when it has to end."""

    folder: Path
    seed: int
    until: float
    """On the clock of `time.monotonic`. Whoever counts points up (every system call, say) may run past it."""
    least: int = 0
    """How often to strike at least; past `until` if need be."""
    overtime: float = OVERTIME
    """How many seconds past it."""

    def is_over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.until

    def must_end(self, n_struck: int) -> bool:
        """Whether the time is up and enough was struck, or so much time has passed that it must end all the same."""
        return self.is_over() and (n_struck >= self.least or time.monotonic() >= self.until + self.overtime)


@dataclass(frozen=True)
class Outcome:
    """How many faults took effect, every breach of the invariant in words, and figures worth printing."""

    struck: int
    broken: tuple[str, ...] = ()
    notes: str = ""


class NotHereError(Exception):
    """The fault cannot be provoked on this machine; the message says why. A listed skip, never a pass."""


@dataclass(frozen=True)
class Scenario:
    """One row of the table.

    `fault` is its number in the table of docs/reliability.md (F1 … F22); `strike` does it; `share` is its weight when
    the suite's time is shared out; fewer strikes than `least`, or in a long run than `least_long`, is a failure. A
    control leaves a safeguard out on purpose: the suite fails unless it finds something broken; `least` is how often it
    tries.
    """

    name: str
    fault: str
    words: str
    strike: Callable[[Chance], Outcome]
    share: float = 1.0
    least: int = 1
    is_control: bool = False
    least_long: int = 0

    def count_least(self, seconds: float) -> int:
        """Return how often it has to strike in a run of so many seconds."""
        return max(self.least, self.least_long) if seconds >= LONG_SECONDS else self.least
