"""Bring a file into a folder: by sharing blocks, by a hard link, or byte by byte, digesting it on the way."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from registry.digests import Digests, Range, digest_stream
from registry.permissions import create_file
from registry.regular_files import open_regular
from registry.weights import Advance

_SYNC_BYTES = 64 * 2**20
_FICLONE = 0x40049409  # linux/fs.h: share the other file's blocks


def copy_file(source: Path, target: Path, mode: int, ranges: Iterable[Range], advance: Advance | None) -> Digests:
    """Copy by sharing blocks where the file system can, else byte by byte, and digest what is then in the copy."""
    with open_regular(source, follow=False) as reader, create_file(target, mode) as writer:
        if _clone(reader.fileno(), writer.fileno()):
            digests = digest_ranges(target, ranges, advance)
        else:
            _refuse_too_big(reader.fileno(), writer.fileno(), target)
            with _write_back(writer) as write:
                digests = digest_stream(reader, ranges, write, advance)
        writer.flush()
    return digests


def digest_ranges(path: Path, ranges: Iterable[Range], advance: Advance | None) -> Digests:
    """Digest a whole file, and ranges of it, in one pass."""
    with path.open("rb", buffering=0) as reader:
        return digest_stream(reader, ranges, advance=advance)


def link_file(source: Path, target: Path) -> bool:
    """Make a hard link to a regular file; True, as from `try_link`. Raises OSError."""
    os.link(source, target, follow_symlinks=False)
    if not stat.S_ISREG(target.lstat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(source))
    return True


def try_link(source: Path, target: Path) -> bool:
    """Make a hard link; False where it cannot be made."""
    try:
        return link_file(source, target)
    except OSError:  # another file system, one without links, or a file that is not ours to link
        return False


def _refuse_too_big(source: int, copy: int, target: Path) -> None:
    """Raise ENOSPC before a disk is filled to the brim with a file that cannot fit: one of holes, say."""
    if hasattr(os, "fstatvfs"):
        disk = os.fstatvfs(copy)
        if os.fstat(source).st_size > disk.f_bavail * disk.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))


@contextlib.contextmanager
def _write_back(writer: BinaryIO) -> Iterator[Callable[[memoryview], None]]:
    """Give a function that writes, and has the disk begin with what was written while the rest is still to come.

    `publish` syncs what is left; nothing relies on what was written back before.
    """
    waiting = 0
    syncing: Future[None] | None = None

    def write(chunk: memoryview) -> None:
        nonlocal waiting, syncing
        writer.write(chunk)
        waiting += len(chunk)
        if waiting >= _SYNC_BYTES and (syncing is None or syncing.done()):
            if syncing is not None:
                syncing.result()
            syncing = pool.submit(os.fsync, writer.fileno())
            waiting = 0

    with ThreadPoolExecutor(1) as pool:
        yield write
    if syncing is not None:
        syncing.result()


def _clone(source: int, target: int) -> bool:
    try:
        import fcntl

        fcntl.ioctl(target, _FICLONE, source)
    except (ImportError, OSError):
        return False
    return True
