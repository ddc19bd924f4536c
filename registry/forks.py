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
    """Have forks in other threads wait while the block lasts; forks of this thread are its own affair."""
    use = _Use()
    if any(one.thread == use.thread for one in list(_uses)):
        _uses.add(use)  # it is in the middle already, and a fork that waits for it must not hold it up
    else:
        with _gate:
            _uses.add(use)
    try:
        yield
    finally:
        _uses.discard(use)


def _wait_for_others() -> None:
    _gate.acquire()
    until = time.monotonic() + PATIENCE_SECONDS
    me = threading.get_ident()
    while any(one.thread != me for one in list(_uses)) and time.monotonic() < until:
        time.sleep(_PAUSE_SECONDS)


def _begin_anew() -> None:
    global _gate
    _gate = threading.Lock()
    me = threading.get_ident()
    for use in list(_uses):
        if use.thread != me:  # there is one thread in a child
            _uses.discard(use)


_uses: weakref.WeakSet[_Use] = weakref.WeakSet()
_gate = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_wait_for_others, after_in_parent=lambda: _gate.release(), after_in_child=_begin_anew)
