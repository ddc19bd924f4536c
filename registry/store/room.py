"""The bound on the cached copies of blobs: what was unused for longest goes first, and never what may be in use.

CACHE/uses/ab/DIGEST   an empty file; its time is that of the last use

A load finds its blobs, then opens them. So that none is gone in between, whatever was used within HELD_SECONDS stays,
though the bound be exceeded, and a load that still downloads marks what it has again and again. A file that is mapped
may go: POSIX keeps it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from registry.permissions import make_folder

MAX_BYTES = 50 * 10**9
HELD_SECONDS = 900.0


@dataclass(frozen=True)
class _Copy:
    path: Path
    size_bytes: int
    used_at: float


class CacheRoom:
    """The cached blobs below `root`; `max_bytes` None means 50 GB, or half of what the disk has for them."""

    def __init__(self, root: Path, max_bytes: int | None = None, held_seconds: float = HELD_SECONDS) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._held_seconds = held_seconds

    def mark(self, digests: Iterable[str]) -> None:
        """Remember that blobs are used now."""
        for digest in digests:
            mark = self._find_mark(digest)
            with contextlib.suppress(OSError):  # a cache that is read only keeps no order of use
                make_folder(mark.parent)
                mark.touch()
                os.utime(mark)

    def make(self, size_bytes: int = 0) -> None:
        """Remove cached blobs until `size_bytes` more fit into the bound, or all the others are in use."""
        copies = sorted(self._list(), key=lambda one: one.used_at)
        taken = sum(one.size_bytes for one in copies)
        bound = self._find_bound(taken)
        for one in copies:
            if taken + size_bytes <= bound or one.used_at > time.time() - self._held_seconds:
                return
            with contextlib.suppress(FileNotFoundError):  # another process was first
                one.path.unlink()
            self._find_mark(one.path.name).unlink(missing_ok=True)
            taken -= one.size_bytes

    def measure(self) -> tuple[int, int]:
        """Return how many bytes the cached blobs take, and how many they may."""
        taken = sum(one.size_bytes for one in self._list())
        return taken, self._find_bound(taken)

    def _find_bound(self, taken: int) -> int:
        if self._max_bytes is not None:
            return self._max_bytes
        free = shutil.disk_usage(self._root).free if self._root.exists() else MAX_BYTES * 2
        return min(MAX_BYTES, (free + taken) // 2)

    def _list(self) -> Iterator[_Copy]:
        for path in self._root.glob("blobs/??/*"):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                status = path.lstat()
                mark = self._find_mark(path.name)
                # one that was never marked has just been put there, or is what somebody else left
                used = mark.stat().st_mtime if mark.exists() else status.st_ctime
                yield _Copy(path, status.st_size, used)

    def _find_mark(self, digest: str) -> Path:
        return self._root / "uses" / digest[:2] / digest
