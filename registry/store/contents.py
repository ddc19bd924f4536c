"""What a store holds, as listed for `lensreg gc`: blobs, and what is left over of work that was not finished."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class StoredBlob:
    """A blob, with the time at which it was last written."""

    digest: str
    size_bytes: int
    modified_at: datetime


@dataclass(frozen=True)
class Leftover:
    """Something that is no blob: `place` says where it is to whoever made it, `kind` what it is."""

    place: str
    kind: str
    size_bytes: int
    modified_at: datetime
