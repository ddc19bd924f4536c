"""Who may read and write what we make: the user alone, unless the folder that holds it is shared.

A folder is shared if somebody set its set-group-id bit (`chmod 2770 STORE`, or 2775, or 2750 for readers only): what is
made in it then takes its permissions, as in a shared git repository, and the file system gives it the folder's group.
The folder itself says so, to every process alike; an environment variable would be missing in one of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_FILE, _FOLDER = 0o600, 0o700
_CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)


def is_shared(folder: Path) -> bool:
    """Whether what is made in this folder is for others, too."""
    return bool(_read_mode(folder) & stat.S_ISGID)


def file_mode(folder: Path, *, frozen: bool = False) -> int:
    """Return the permissions of a new file in this folder; a `frozen` one nobody may write to."""
    mode = _FILE | (_read_mode(folder) & 0o666 if is_shared(folder) else 0)
    return mode & 0o444 if frozen else mode


def folder_mode(folder: Path) -> int:
    """Return the permissions of a new folder in this folder."""
    return _FOLDER | (_read_mode(folder) & 0o2777 if is_shared(folder) else 0)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing."""
    missing = []
    above = folder
    while not above.exists() and above.parent != above:
        missing.append(above)
        above = above.parent
    for one in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process was first
            one.mkdir(_FOLDER)
            set_mode(one, folder_mode(one.parent))
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))


def make_file(path: Path) -> None:
    """Make an empty file if there is none; its name appears when it has its permissions and nobody has it open.

    For SQLite's files: closing any descriptor of one takes away the locks that this process holds on it, so it must
    never be opened under its own name.
    """
    if path.exists():
        return
    beside = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    create_file(beside, file_mode(path.parent)).close()
    try:
        with contextlib.suppress(FileExistsError):  # another process was first
            _give_name(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def create_file(path: Path, mode: int) -> BinaryIO:
    """Create a file with these permissions, whatever the umask says, and open it for writing."""
    file = os.fdopen(os.open(path, _CREATE, mode), "wb")
    set_mode(path, mode)
    return file


def set_mode(path: Path, mode: int) -> None:
    """Set a file's permissions, where the file system keeps any."""
    with contextlib.suppress(PermissionError, NotImplementedError):
        path.chmod(mode)


def _give_name(beside: Path, path: Path) -> None:
    try:
        os.link(beside, path)
    except FileExistsError:
        raise
    except OSError:  # no links on this file system
        create_file(path, file_mode(path.parent)).close()


def _read_mode(folder: Path) -> int:
    try:
        return folder.stat().st_mode
    except OSError:
        return 0
