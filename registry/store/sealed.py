"""Small JSON files that carry their own digest: renamed in whole, and what is not whole does not count."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from registry.permissions import create_file, file_mode


def write_sealed(path: Path, content: Mapping[str, Any], staging: Path, *, sync: bool = False) -> None:
    """Write `content` to `path` by way of the folder `staging`, which is on the same file system.

    With `sync` its bytes are on disk before it has its name.
    """
    fresh = staging / f"{path.name}.sealed"
    with create_file(fresh, file_mode(path.parent)) as file:
        file.write(seal(content).encode())
        if sync:
            file.flush()
            os.fsync(file.fileno())
    fresh.replace(path)


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Return what was written, or None if there is nothing or it was altered."""
    try:
        return unseal(path.read_bytes())
    except OSError:
        return None


def seal(content: Mapping[str, Any]) -> str:
    """Write the content with its digest as text."""
    return json.dumps({"content": content, "sha256": _digest(content)})


def unseal(text: bytes) -> dict[str, Any] | None:
    """Return what was sealed, or None if it was altered."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("content"), dict):
        return None
    content: dict[str, Any] = found["content"]
    return content if found.get("sha256") == _digest(content) else None


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
