"""Which symbolic links in a checkpoint's folder are followed: those that stay in it, and those of the Hub's cache.

A folder that somebody else made could otherwise bring any file of this user's into the store. What the caller names, a
folder or a file, may be a link itself: that is how the caller calls it.
"""

from __future__ import annotations

import os
from pathlib import Path

from registry.errors import UnsafeArtifact

# what is read of a folder ends like this; other links in it are nobody's business
_READ = (".json", ".safetensors", ".bin", ".pt", ".pth", ".txt", ".model", ".jinja", ".distcp", ".metadata")
_PIECES = "pytorch_model_fsdp_"


def refuse_foreign_links(folder: Path) -> None:
    """Raise UnsafeArtifact if a file that may be read in `folder`, a real path, is a link that leads out of it."""
    homes = _list_homes(folder)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(_PIECES) and entry.is_dir():
                check_link(Path(entry), homes)
                refuse_foreign_links(Path(entry))
            elif entry.is_symlink() and entry.name.endswith(_READ):
                check_link(Path(entry), homes)


def find_real_file(path: Path, folder: Path) -> Path:
    """Return where a file of `folder`, a real path, really is; raises UnsafeArtifact if that is elsewhere."""
    return check_link(path, _list_homes(folder))


def check_link(path: Path, homes: tuple[Path, ...]) -> Path:
    """Return where `path` leads to, or raise UnsafeArtifact if that is in none of the `homes`."""
    try:
        real = path.resolve()
    except RuntimeError as error:  # a loop
        raise _refuse(path, "leads nowhere") from error
    if not any(real.is_relative_to(home) for home in homes):
        raise _refuse(path, "is a symbolic link that leads out of its folder")
    return real


def _list_homes(folder: Path) -> tuple[Path, ...]:
    """List what links in the folder may lead to: itself, and where a cache that is laid out as the Hub's keeps bytes.

    models--org--name/snapshots/COMMIT/file leads to models--org--name/blobs, or to the blobs that all models share; the
    registry's own folders/ab/abcd…/file leads to its blobs. Neither is above what holds the folder.
    """
    homes = [folder]
    for parent in folder.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            homes += [parent.parent / "blobs", parent.parent.parent / "blobs"]
    if folder.parent.parent.name == "folders":
        homes.append(folder.parent.parent.parent / "blobs")
    return tuple(homes)


def _refuse(path: Path, what: str) -> UnsafeArtifact:
    return UnsafeArtifact(
        f"{path.name!r} {what}.",
        hint="If you know where it leads and mean that file, copy it into the folder: cp -L.",
        path=str(path),
    )
