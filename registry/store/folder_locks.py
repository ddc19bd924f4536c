"""Locks on the folders of a local store: held by who is at work in one, taken by who would tidy it up.

They are the kernel's, by `flock`, so they end with the process. Where folders cannot be locked, all go on without.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

_LOCK_SECONDS = 1.0  # what is done under a lock takes far less, unless whoever has it was stopped


def hold(folder: Path) -> int | None:
    """Let others see that somebody is at work on a folder, until what is returned is closed or this process ends.

    Raises FileNotFoundError if somebody took the folder for a leftover before it was held.
    """
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        is_gone = not folder.exists()
    except BlockingIOError:
        is_gone = True
    except OSError:  # some network file systems lock no folders; there its age has to tell
        is_gone = False
    if is_gone:
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    return descriptor


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep other blocks with this lock from the folder; where it cannot be had within a second, do without."""
    descriptor = os.open(folder, os.O_RDONLY)
    until = time.monotonic() + _LOCK_SECONDS
    try:
        while not _try_lock(descriptor) and time.monotonic() < until:
            time.sleep(0.001)
        yield
    finally:
        _unlock(descriptor)
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Lock a folder, and say whether nobody else has it locked; where folders cannot be locked, nobody has."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # some network file systems lock no folders
        pass
    return True


def _unlock(descriptor: int) -> None:
    """Give up a lock also in children that were forked meanwhile, to which closing would leave it."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextlib.contextmanager
def take(path: Path) -> Iterator[bool]:
    """Say whether nobody is at work on a folder, and keep everybody from starting while the block lasts."""
    if not path.is_dir() or path.is_symlink():
        yield True
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        yield True
        return
    try:
        yield _try_lock(descriptor)
    finally:
        _unlock(descriptor)
        os.close(descriptor)
