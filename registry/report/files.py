"""The files that pictures and pages go to: they appear when they are whole, and are asked about before the work."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from registry.errors import StorageError

_HINT = "Name another place."


def check_target(path: str | Path, *, is_folder: bool = False) -> None:
    """Raise StorageError if no file can be written at `path`, or no folder be made and written to."""
    target = Path(path)
    if target.exists() and target.is_dir() != is_folder:
        raise StorageError(f"{target} is {'no' if is_folder else 'a'} folder.", hint=_HINT)
    folder = target if is_folder else target.parent
    while is_folder and not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise StorageError(f"{target} cannot be written: there is no folder {folder}.", hint=_HINT)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError(f"{target} cannot be written: you may not write to {folder}.", hint=_HINT)


def save_whole(content: str | bytes, path: str | Path) -> None:
    """Write a file, which appears when it is whole. Raises StorageError if it cannot be written."""
    target, partial = Path(path), None
    try:
        with tempfile.NamedTemporaryFile("wb", dir=target.parent, delete=False) as file:
            partial = Path(file.name)
            file.write(content.encode() if isinstance(content, str) else content)
        partial.replace(target)
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror}.", hint=_HINT) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
