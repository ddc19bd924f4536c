"""Folders in which blobs have the names of a version's files, by links: other tools read a version from there."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from registry.errors import ArtifactCorrupt, StorageError
from registry.permissions import folder_mode, make_folder, set_mode

Stage = Callable[[], AbstractContextManager[Path]]
"""Gives an empty folder on the same file system, for as long as the block lasts."""


def link_blobs(folder: Path, blobs: Mapping[str, Path], stage: Stage) -> None:
    """Make the folder with a link for each name, unless it is there, and see that nothing else is in it.

    Raises ArtifactCorrupt if there is: other tools must not write there. Raises OSError.
    """
    links = {name: os.path.relpath(blob, folder) for name, blob in blobs.items()}
    while (found := _read_links(folder)) is None:  # again if gc, having found it to dangle, took it meanwhile
        _make_folder(folder, links, stage)
    for name, blob in blobs.items():
        if found.pop(name, "") != links[name]:
            raise _refuse_altered(folder, name, blob.name)
    if found:
        raise _refuse_altered(folder, min(found), min(blob.name for blob in blobs.values()))


def _make_folder(folder: Path, links: Mapping[str, str], stage: Stage) -> None:
    with stage() as staging:
        fresh = staging / folder.name
        fresh.mkdir()
        for name, target in links.items():
            if Path(name).name != name or name in ("", "..") or "\x00" in name:
                raise StorageError(f"{name!r} is no file name.", hint="The record was altered; restore a backup.")
            _symlink(fresh / name, target)
        make_folder(folder.parent)
        set_mode(fresh, folder_mode(folder.parent))
        try:
            fresh.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # else another process was first
                raise


def _refuse_altered(folder: Path, name: str, digest: str) -> ArtifactCorrupt:
    return ArtifactCorrupt(
        f"{folder / name} is not what was put there: somebody wrote into that folder.",
        digest=digest,
        hint=f"Move what you need out of {folder}, then delete it; it is made again from the blobs.",
    )


def _read_links(folder: Path) -> dict[str, str] | None:
    """Return where the links of a folder lead to by name, "" for what is no link; None if the folder is not there."""
    try:
        return {path.name: str(path.readlink()) if path.is_symlink() else "" for path in folder.iterdir()}
    except FileNotFoundError:
        return None


def _symlink(path: Path, target: str) -> None:
    try:
        path.symlink_to(target)
    except OSError as error:  # which names the target first, as if that were what cannot be used
        raise OSError(error.errno, error.strerror, str(path)) from error
