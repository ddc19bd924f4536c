"""The queue of SQLite's writers, by a lock on a file beside it: whoever came first has the first turn.

SQLite's own lock is asked for again and again, by each after a pause of its own, and so are locks of the usual library:
whoever has just written often gets the next turn too. The kernel's `flock` is a queue, but knows no timeout, so a
thread waits in it. The lock hangs on a file object and on nothing else: wherever an interrupt strikes, it goes with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import threading
import weakref
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from registry.permissions import make_file


@contextlib.contextmanager
def wait_for_turn(path: str, seconds: float) -> Iterator[None]:
    """Have the turn while the block lasts. Raises TimeoutError if it did not come within so many seconds, and OSError.

    A process that ends, however it ends, gives its turn back.
    """
    make_file(Path(path))
    _take_back(path)
    with FileIO(path, "r+") as file:
        _open_files[file] = threading.get_ident()
        _lock(file, seconds)
        try:
            yield
        finally:
            if not file.closed:  # in a child that was forked within the block
                fcntl.flock(file, fcntl.LOCK_UN)


def _take_back(path: str) -> None:
    """End a turn that this thread still has: whoever asks anew was cut off, by an interrupt between two of our steps.

    What the interrupt left is kept alive by its traceback, or waits for the garbage collector, with the connection.
    """
    me = threading.get_ident()
    for file, thread in list(_open_files.items()):
        if thread == me and file.name == path and not file.closed:
            gc.collect()
            file.close()


def _lock(file: FileIO, seconds: float) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting = _Waiting(file)
        if not waiting.over.wait(seconds):
            raise TimeoutError from None
        if waiting.error is not None:
            raise waiting.error from None


class _Waiting:
    """One place in the queue.

    It waits on a descriptor of its own for the same lock: whoever gives up closes the file, and the turn that comes
    after that ends with this descriptor.
    """

    def __init__(self, file: FileIO) -> None:
        self.over = threading.Event()
        self.error: OSError | None = None
        own = FileIO(os.dup(file.fileno()), "r+")
        _open_files[own] = threading.get_ident()
        threading.Thread(target=self._wait, args=(own,), daemon=True).start()

    def _wait(self, own: FileIO) -> None:
        with own:
            try:
                fcntl.flock(own, fcntl.LOCK_EX)
            except OSError as error:
                self.error = error
            self.over.set()


def _close_in_child() -> None:
    """Let go, in a forked child, of what is the parent's, or its turn would last until the child ends."""
    for file in list(_open_files):
        file.close()


_open_files: weakref.WeakKeyDictionary[FileIO, int] = weakref.WeakKeyDictionary()
os.register_at_fork(after_in_child=_close_in_child)
