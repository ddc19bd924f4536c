"""Read JSON that nobody vouches for: bounded in size and depth, no duplicate keys, no NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from registry.errors import MalformedArtifact

MAX_BYTES = 64 * 2**20


def read_json_object(path: Path, *, constants: bool = False) -> dict[str, Any]:
    """Return the one JSON object that `path` holds, or raise MalformedArtifact.

    `constants` lets NaN and infinities pass, as a log of losses may hold them.
    """
    if path.stat().st_size > MAX_BYTES:
        raise _malformed(path, f"it has {path.stat().st_size:,} bytes")
    try:
        value = json.loads(
            path.read_bytes().decode("utf-8"),
            object_pairs_hook=lambda pairs: _unique(path, pairs),
            parse_constant=float if constants else lambda text: _refuse_constant(path, text),
        )
    except RecursionError:
        raise _malformed(path, "it is nested too deeply") from None
    except ValueError as error:
        raise _malformed(path, f"it is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise _malformed(path, "it holds no JSON object")
    return value


def _unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for key, value in pairs:
        if key in unique:
            raise _malformed(path, f"it has the key {key[:80]!r} twice")
        unique[key] = value
    return unique


def _refuse_constant(path: Path, text: str) -> None:
    raise _malformed(path, f"it holds {text}")


def _malformed(path: Path, what: str) -> MalformedArtifact:
    return MalformedArtifact(
        f"{path.name} cannot be read: {what}.", hint="Copy or save the checkpoint again.", path=str(path)
    )
