"""Ballast: a file beside a SQLite database that takes up room until a full disk leaves none.

A new connection to a database in WAL mode has to make files of its own; on a full disk it cannot even read. So `gc`
throws the ballast off before it can begin to make room, and sets it aside again in the end.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from registry.database import Database
from registry.permissions import create_file, file_mode

BALLAST_BYTES = 256 * 2**10


def set_ballast_aside(database: Database) -> None:
    """Make the ballast if it is not there; where there is no room for it, do without."""
    if not database.is_sqlite:
        return
    path = _place(database)
    try:
        if path.exists() and path.stat().st_size == BALLAST_BYTES:
            return
        path.unlink(missing_ok=True)
        with create_file(path, file_mode(path.parent)) as file:
            file.write(os.urandom(BALLAST_BYTES))  # which no file system can keep in less room
    except OSError:
        with contextlib.suppress(OSError):  # half of it would only be in the way
            path.unlink(missing_ok=True)


def throw_off_ballast(database: Database) -> bool:
    """Delete the ballast; say whether there was any."""
    if not database.is_sqlite:
        return False
    try:
        _place(database).unlink()
    except OSError:
        return False
    return True


def _place(database: Database) -> Path:
    return Path(f"{database.file}.ballast")
