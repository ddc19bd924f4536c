"""What moves: a version as one record, the list of records of a shipment, and the canonical JSON of both.

The canonical JSON of a value is the only text that stands for it: sorted keys, no spaces, ASCII. A record is named by
the SHA-256 of that text, so that whoever has the manifest's digest can check everything that follows from it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np

from registry.audit import Event, Head
from registry.sketch import Sketch
from registry.versions import AbsentParent, StoredFile

FORMAT = "lensreg-export"
FORMAT_VERSION = 1
RECEIVED = "received"
"""The key under which a version's provenance, and the environment of what was measured elsewhere, say from where."""


@dataclass(frozen=True)
class RecordedParent:
    """An edge to a parent by its operation, which is the same in every registry; `ref` is the sender's name for it.

    `declared` is the place in the record's absent parents of how it was declared before it was registered.
    """

    operation_id: str
    ref: str
    relation: str
    admitted_differences: tuple[Mapping[str, Any], ...]
    evidence: Mapping[str, Any] | None
    declared: int | None


@dataclass(frozen=True)
class VersionRecord:
    """Everything that a registry says of one version, with the events about it."""

    operation_id: str
    model: str
    number: int
    step: int | None
    family: str
    fingerprint: str
    architecture: Mapping[str, Any]
    weights_digest: str | None
    vocabulary_digest: str | None
    layout: str
    processing: tuple[str, ...] | None
    dtype: str
    n_parameters: int
    source_kind: str
    source_location: str
    provenance: Mapping[str, Any]
    note: str | None
    findings: tuple[Mapping[str, str], ...]
    created_at: datetime
    retired_at: datetime | None
    files: tuple[StoredFile, ...]
    parents: tuple[RecordedParent, ...]
    absent_parents: tuple[AbsentParent, ...]
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    validations: tuple[Mapping[str, Any], ...]
    sketch: Sketch | None
    events: tuple[Event, ...]

    @property
    def ref(self) -> str:
        """The sender's `NAME@vN`."""
        return f"{self.model}@v{self.number}"

    @property
    def is_lazy(self) -> bool:
        """Whether its weights were left on the Hub, and are neither here nor sent."""
        return self.weights_digest is None

    @property
    def blobs(self) -> dict[str, int]:
        """The digests and sizes of the files that are sent with it."""
        return {one.digest: one.size_bytes for one in self.files if not (self.is_lazy and one.role == "weights")}


@dataclass(frozen=True)
class Entry:
    """One record of a shipment: the sender's ref, the operation, and digest and size of its canonical JSON."""

    ref: str
    operation_id: str
    digest: str
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """What a shipment holds: where it is from, its records with parents before children, and its blobs by digest.

    `registry_id` is the digest of the sender's first event, `head` where its trail ended, `named` what was asked for.
    """

    registry_id: str
    location: str
    head: Head
    named: tuple[str, ...]
    entries: tuple[Entry, ...]
    blobs: Mapping[str, int]

    @property
    def digest(self) -> str:
        """The SHA-256, in hex, of its canonical JSON: it stands for everything in the shipment."""
        return hashlib.sha256(encode_manifest(self)).hexdigest()


def encode(value: Any) -> bytes:
    """Return the canonical JSON of plain data. Raises ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def encode_manifest(manifest: Manifest) -> bytes:
    """Return a manifest's canonical JSON."""
    return encode(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "registry": {
                "id": manifest.registry_id,
                "location": manifest.location,
                "n_events": manifest.head.n_events,
                "head": manifest.head.digest,
            },
            "named": list(manifest.named),
            "records": [asdict(entry) for entry in manifest.entries],
            "blobs": [{"digest": digest, "size_bytes": size} for digest, size in sorted(manifest.blobs.items())],
        }
    )


def encode_record(record: VersionRecord) -> bytes:
    """Return a record's canonical JSON."""
    plain = {name: getattr(record, name) for name in VersionRecord.__dataclass_fields__}
    return encode(
        plain
        | {
            "created_at": write_instant(record.created_at),
            "retired_at": record.retired_at and write_instant(record.retired_at),
            "files": [asdict(one) for one in record.files],
            "parents": [asdict(one) for one in record.parents],
            "absent_parents": [
                {"repo": one.repo, "revision": one.revision, "digest": one.digest, "relation": one.relation}
                | {"allowed": list(one.allowed)}
                for one in record.absent_parents
            ],
            "validations": [{**one, "created_at": write_instant(one["created_at"])} for one in record.validations],
            "sketch": None if record.sketch is None else _describe_sketch(record.sketch),
            "events": [asdict(one) for one in record.events],
        }
    )


def write_instant(instant: datetime) -> str:
    """Write an instant in UTC as text that can be read back to the microsecond."""
    return instant.isoformat(timespec="microseconds")


def _describe_sketch(sketch: Sketch) -> dict[str, Any]:
    names = sorted(sketch.samples)
    samples = b"".join(np.ascontiguousarray(sketch.samples[name], "<f4").tobytes() for name in names)
    return {
        "shapes": [[name, list(sketch.shapes[name])] for name in names],
        "samples": base64.b64encode(samples).decode(),
    }
