"""A version's files in the store: checked, fetched if they are not there yet, and under their own names."""

from __future__ import annotations

from pathlib import Path

from registry.progress import Counter, Progress, no_progress
from registry.store import LocalStore
from registry.versions import Version


def open_files(store: LocalStore, version: Version, progress: Progress = no_progress) -> Path:
    """Check size and digest of every blob a network is made of; return the folder where they have their own names.

    Raises ArtifactMissing or ArtifactCorrupt.
    """
    needed = [file for file in version.files if file.role != "original"]
    counter = Counter(progress, "checking", sum(file.size_bytes for file in needed))
    for file in needed:
        store.check(file.digest, file.size_bytes, advance=counter.advance)
    return store.link_folder((file.name, file.digest) for file in version.files)
