"""Read JSON files that nobody vouches for: bounded in size, values and depth, no duplicate keys, no NaN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from registry.bounded_json import BadJsonError, parse_json
from registry.errors import MalformedArtifact
from registry.regular_files import open_regular

MAX_BYTES = 24 * 2**20
_MAX_VALUES = 500_000


def read_json_object(path: Path, *, constants: bool = False) -> dict[str, Any]:
    """Return the one JSON object that `path` holds, or raise MalformedArtifact.

    `constants` lets NaN and infinities pass, as a log of losses may hold them.
    """
    with open_regular(path) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise _malformed(path, f"it has more than {MAX_BYTES:,} bytes")
    try:
        value = parse_json(content, max_values=_MAX_VALUES, constants=constants)
    except BadJsonError as error:
        raise _malformed(path, f"it {error}") from None
    if not isinstance(value, dict):
        raise _malformed(path, "it holds no JSON object")
    return value


def _malformed(path: Path, what: str) -> MalformedArtifact:
    return MalformedArtifact(
        f"{path.name} cannot be read: {what}.", hint="Copy or save the checkpoint again.", path=str(path)
    )
