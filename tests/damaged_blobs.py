"""Ways in which a blob is damaged behind the store's back, and what lies in a store."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from registry.errors import ArtifactCorrupt, ArtifactMissing, StorageError


def list_store(folder: Path) -> list[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*"))
    # the folders for blobs are there from the beginning
    return sorted(str(path) for path in found if path.parts[0] != "blobs" or len(path.parts) > 2)


def _flip(blob: Path) -> None:
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 0x10
    overwrite(blob, bytes(content))


def overwrite(blob: Path, content: bytes) -> None:
    blob.chmod(0o644)
    blob.write_bytes(content)


def swap(blob: Path, make: Callable[[Path], object]) -> None:
    blob.unlink()
    make(blob)


def _link_to_copy(blob: Path) -> None:
    elsewhere = blob.parent.parent.parent / "elsewhere"
    blob.rename(elsewhere)
    blob.symlink_to(elsewhere)


FAULTS: dict[str, tuple[Callable[[Path], object], type[StorageError]]] = {
    "deleted": (lambda blob: blob.unlink(), ArtifactMissing),
    "truncated": (lambda blob: overwrite(blob, blob.read_bytes()[:-1]), ArtifactCorrupt),
    "emptied": (lambda blob: overwrite(blob, b""), ArtifactCorrupt),
    "grown": (lambda blob: overwrite(blob, blob.read_bytes() + b"\x00"), ArtifactCorrupt),
    "flipped": (_flip, ArtifactCorrupt),
    "zeroed": (lambda blob: overwrite(blob, bytes(blob.stat().st_size)), ArtifactCorrupt),
    "link-to-a-copy": (_link_to_copy, ArtifactCorrupt),
    "dangling-link": (lambda blob: swap(blob, lambda path: path.symlink_to("nowhere")), ArtifactCorrupt),
    "fifo": (lambda blob: swap(blob, os.mkfifo), ArtifactMissing),
}
