"""The queue of SQLite's writers, by locks on two files beside it: whoever came first has the first turn.

SQLite's own lock is asked for again and again, by each after a pause of its own, and so are locks of the usual library:
whoever has just written often gets the next turn too. The kernel's `flock` is a queue, but knows no timeout, so a
thread waits in it; and a lock that was given back is free until the first of its queue runs, so that on a busy machine
whoever gave it back has it again. So there are two: the queue is for the place of who comes next, who keeps that place
until the turn is his, and the turn is asked for by nobody else. The locks hang on file objects and on nothing else:
wherever an interrupt strikes, they go with them.
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

    A process that ends, however it ends, gives its turn back. Locks are given back before their files are closed: a
    child that another thread forks as a file is opened has it open, too, for as long as it lives.
    """
    with _open(path) as turn:
        with _open(f"{path}.next") as place:
            try:
                _lock(place, turn, seconds)
            finally:
                _give_back(place)
        try:
            yield
        finally:
            _give_back(turn)


def _give_back(file: FileIO) -> None:
    if not file.closed:  # in a child that was forked within the block, or taken back
        fcntl.flock(file, fcntl.LOCK_UN)


def _open(path: str) -> FileIO:
    make_file(Path(path))
    _take_back(path)
    return _remember(FileIO(path, "r+"))


def _remember(file: FileIO) -> FileIO:
    _open_files[file] = threading.get_ident()
    return file


def _take_back(path: str) -> None:
    """End a turn that this thread still has: whoever asks anew was cut off, by an interrupt between two of our steps.

    What the interrupt left is kept alive by its traceback, or waits for the garbage collector, with the connection.
    """
    me = threading.get_ident()
    for file, thread in list(_open_files.items()):
        if thread == me and file.name == path and not file.closed:
            gc.collect()
            file.close()


def _lock(place: FileIO, turn: FileIO, seconds: float) -> None:
    try:
        for file in (place, turn):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting = _Waiting(place, turn)
        if not waiting.over.wait(seconds):
            raise TimeoutError from None
        if waiting.error is not None:
            raise waiting.error from None


class _Waiting:
    """Someone in the queue.

    It waits on descriptors of its own for the same locks: whoever gives up closes the files, and the turn that comes
    after that ends with these descriptors.
    """

    def __init__(self, place: FileIO, turn: FileIO) -> None:
        self.over = threading.Event()
        self.error: OSError | None = None
        own = [_remember(FileIO(os.dup(file.fileno()), "r+")) for file in (place, turn)]
        threading.Thread(target=self._wait, args=own, daemon=True).start()

    def _wait(self, place: FileIO, turn: FileIO) -> None:
        with place, turn:
            try:
                fcntl.flock(place, fcntl.LOCK_EX)
                fcntl.flock(turn, fcntl.LOCK_EX)
                fcntl.flock(place, fcntl.LOCK_UN)
            except OSError as error:
                self.error = error
            self.over.set()


def _close_in_child() -> None:
    """Let go, in a forked child, of what is the parent's, or its turn would last until the child ends."""
    for file in list(_open_files):
        file.close()


_open_files: weakref.WeakKeyDictionary[FileIO, int] = weakref.WeakKeyDictionary()
os.register_at_fork(after_in_child=_close_in_child)
