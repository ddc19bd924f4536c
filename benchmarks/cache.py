"""Put files into the page cache, or out of it."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

_CHUNK = 1 << 22
_mincore = ctypes.CDLL(None, use_errno=True).mincore
_mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


def list_files(*places: Path) -> list[Path]:
    """List files, and those in folders; each once, whatever links lead to it."""
    found = [file for place in places for file in ([place] if place.is_file() else place.rglob("*")) if file.is_file()]
    return sorted({file.resolve() for file in found})


def warm(files: Iterable[Path]) -> None:
    """Read files, so that they are in the page cache."""
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.read(_CHUNK):
                pass


def chill(files: Iterable[Path]) -> None:
    """Write files out and let the kernel forget their pages; raises OSError if it kept more than a tenth of them."""
    kept = total = 0
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened)
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        cached = count_cached(file)
        kept, total = kept + cached[0], total + cached[1]
    if kept > total / 10:
        raise OSError(f"{kept:,} of {total:,} pages stayed in the page cache")


def count_cached(file: Path) -> tuple[int, int]:
    """Return how many pages of a file are in the page cache, and how many it has."""
    size = file.stat().st_size
    if size == 0:
        return 0, 0
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        start = (ctypes.c_ubyte * size).from_buffer(mapped)
        failed = _mincore(ctypes.addressof(start), size, pages)
        del start  # the map cannot be closed while somebody points into it
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return sum(page & 1 for page in pages), len(pages)
