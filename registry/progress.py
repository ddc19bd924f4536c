"""How long work tells somebody how far it is, without knowing who shows it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with the stage's name, and how much of how much is done (bytes or steps)."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take note of it; must not raise."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Show nothing."""


class Counter:
    """Adds up the steps of one stage and passes the sum on."""

    def __init__(self, progress: Progress, stage: str, total: int) -> None:
        self._progress, self._stage, self._total, self._done = progress, stage, total, 0
        progress(stage, 0, total)

    def advance(self, steps: int = 1) -> None:
        """Count `steps` more as done."""
        self._done += steps
        self._progress(self._stage, self._done, self._total)
