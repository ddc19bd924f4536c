"""The queue of SQLite's writers, by a lock on a file beside it: whoever came first has the first turn.

SQLite's own lock is asked for again and again, by each after a pause of its own, and so are locks of the usual library:
whoever has just written often gets the next turn too. The kernel's `flock` is a queue, but knows no timeout, so a thread
waits in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def wait_for_turn(path: str, seconds: float) -> Iterator[None]:
    """Have the turn while the block lasts. Raises TimeoutError if it did not come within so many seconds, and OSError.

    A process that ends, however it ends, gives its turn back.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    _lock(descriptor, seconds)
    try:
        yield
    finally:
        # closing alone would leave it to a child that was forked meanwhile
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _lock(descriptor: int, seconds: float) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        waiting = _Waiting(descriptor)
    except OSError:
        os.close(descriptor)
        raise
    try:
        threading.Thread(target=waiting.wait, daemon=True).start()
        is_over = waiting.over.wait(seconds)
    except BaseException:  # an interrupt
        waiting.leave()
        raise
    if not is_over:
        waiting.leave()
        raise TimeoutError
    if waiting.error is not None:
        os.close(descriptor)
        raise waiting.error


class _Waiting:
    """One place in the queue, which can be left."""

    def __init__(self, descriptor: int) -> None:
        self.over = threading.Event()
        self.error: OSError | None = None
        self._descriptor = descriptor
        self._has_left = False
        self._moment = threading.Lock()

    def leave(self) -> None:
        """Give the place up, and the turn if it has just come."""
        with self._moment:
            self._has_left = True
            if self.over.is_set():
                os.close(self._descriptor)

    def wait(self) -> None:
        """Block until the turn comes, and pass it on if nobody wants it any more."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        except OSError as error:
            self.error = error
        with self._moment:
            if self._has_left:
                os.close(self._descriptor)
            self.over.set()
