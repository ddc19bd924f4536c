"""How tests tell what hangs from what a busy machine only makes slow."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

PATIENCE_SECONDS = 25
"""Far more than what does not hang takes, on any machine; what hangs here, hangs for half a minute at least."""


@contextlib.contextmanager
def must_not_hang() -> Iterator[None]:
    """Fail if the block takes so long that it must have waited for what never comes."""
    started = time.monotonic()
    yield
    seconds = time.monotonic() - started
    assert seconds < PATIENCE_SECONDS, f"it hung for {seconds:.0f} s"


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> bool:
    """Wait until something is so; return whether it came to be."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()
