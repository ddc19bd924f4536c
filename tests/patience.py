"""How tests tell what hangs from what a busy machine only makes slow."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

PATIENCE_SECONDS = 25
"""Far more than what does not hang takes, on any machine; what hangs here, hangs for half a minute at least."""


@contextlib.contextmanager
def must_not_hang() -> Iterator[None]:
    """Fail if the block takes so long that it must have waited for what never comes."""
    started = time.monotonic()
    yield
    seconds = time.monotonic() - started
    assert seconds < PATIENCE_SECONDS, f"it hung for {seconds:.0f} s"
