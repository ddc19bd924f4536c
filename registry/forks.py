"""A fork waits until no other thread is in the middle of a SQLite transaction.

SQLite keeps a process's locks in its memory. A child that was forked in the middle of another thread's transaction
finds that lock there, held by a thread that it does not have, and could never write again.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Iterator

PATIENCE_SECONDS = 10.0  # then it forks all the same: a long read, or a thread that is stuck
_PAUSE_SECONDS = 0.002


class _Use:
    """One thread's use of SQLite; it ends with the block that holds it, or with the block's remains."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()


@contextlib.contextmanager
def keep_from_forking() -> Iterator[None]:
    """Have forks in other threads wait while the block lasts; forks of this thread are its own affair.

    There is no lock in it, which an interrupt between two steps could leave locked for good: a use shows itself first
    and looks for forks then, a fork does it the other way round, so that one of the two sees the other.
    """
    use = _Use()
    is_within = any(one.thread == use.thread for one in list(_uses))  # and a fork that waits for it must not hold it up
    try:
        _uses.add(use)
        while not is_within and _is_forking_elsewhere(use.thread):
            _uses.discard(use)
            time.sleep(_PAUSE_SECONDS)
            _uses.add(use)
        yield
    finally:
        _uses.discard(use)


def _is_forking_elsewhere(me: int) -> bool:
    """Say whether another thread forks; one that began so long ago is done, or was cut off."""
    since = time.monotonic() - 2 * PATIENCE_SECONDS
    return any(thread != me and began > since for thread, began in list(_forks.items()))


def _wait_for_others() -> None:
    me = threading.get_ident()
    _forks[me] = began = time.monotonic()
    while any(one.thread != me for one in list(_uses)) and time.monotonic() < began + PATIENCE_SECONDS:
        time.sleep(_PAUSE_SECONDS)


def _go_on() -> None:
    _forks.pop(threading.get_ident(), None)


def _begin_anew() -> None:
    _forks.clear()
    me = threading.get_ident()
    for use in list(_uses):
        if use.thread != me:  # there is one thread in a child
            _uses.discard(use)


_uses: weakref.WeakSet[_Use] = weakref.WeakSet()
_forks: dict[int, float] = {}
"""Threads that are forking, and since when."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_wait_for_others, after_in_parent=_go_on, after_in_child=_begin_anew)
