"""The rows of sketches: kept once for each weights digest and fingerprint, from which alone a sketch follows."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, exists, not_, select

from registry.compare_sketches import Evidence, compare_sketches
from registry.errors import DatabaseError
from registry.rows import insert_missing
from registry.sketch import Sketch, pack, unpack
from registry.tables import models, sketches, versions
from registry.versions import Version


def record_sketch(connection: Connection, fingerprint: str, weights_digest: str, sketch: Sketch) -> bool:
    """Keep the sketch of some weights in some architecture; False if it is kept already."""
    return insert_missing(connection, sketches, [pack_row(fingerprint, weights_digest, sketch)])


def pack_row(fingerprint: str, weights_digest: str, sketch: Sketch) -> dict[str, Any]:
    """Make the row that keeps a sketch."""
    names, samples = pack(sketch)
    return {
        "weights_digest": weights_digest,
        "fingerprint": fingerprint,
        "form": sketch.form,
        "names": names,
        "samples": samples,
    }


def read_sketch(connection: Connection, version: Version) -> Sketch | None:
    """Return the sketch of a version, or None if none was taken. Raises DatabaseError if it was damaged."""
    where = (sketches.c.weights_digest == version.weights_digest, sketches.c.fingerprint == version.fingerprint)
    row = connection.execute(select(sketches.c.names, sketches.c.samples).where(*where)).first()
    return None if row is None else _unpack(row.names, row.samples, version.processing or (), version.ref)


def read_sketches(connection: Connection, form: str) -> list[tuple[int, Sketch]]:
    """Return the sketches of all versions in use whose layers have matrices of this form, by the database's ids."""
    same = (versions.c.weights_digest == sketches.c.weights_digest) & (versions.c.fingerprint == sketches.c.fingerprint)
    rows = connection.execute(
        select(versions.c.id, versions.c.processing, sketches.c.names, sketches.c.samples)
        .join_from(sketches, versions, same)
        .where(sketches.c.form == form, versions.c.retired_at.is_(None))
        .order_by(versions.c.id)
    )
    return [(row.id, _unpack(row.names, row.samples, row.processing or (), f"version {row.id}")) for row in rows]


def list_unsketched(connection: Connection) -> list[str]:
    """Name the versions in use of which no sketch was taken, the oldest first."""
    same = (versions.c.weights_digest == sketches.c.weights_digest) & (versions.c.fingerprint == sketches.c.fingerprint)
    rows = connection.execute(
        select(models.c.name, versions.c.number)
        .join_from(versions, models)
        .where(versions.c.retired_at.is_(None), not_(exists().where(same)))
        .order_by(versions.c.id)
    )
    return [f"{row.name}@v{row.number}" for row in rows]


def compare_recorded(connection: Connection, parent: Version, child: Version) -> Evidence | None:
    """Compare the sketches of two versions; None if one of them has none."""
    one, other = read_sketch(connection, parent), read_sketch(connection, child)
    return None if one is None or other is None else compare_sketches(one, other)


def _unpack(names: bytes, samples: bytes, processing: tuple[str, ...] | list[str], what: str) -> Sketch:
    try:
        return unpack(names, samples, tuple(processing))
    except ValueError as error:
        raise DatabaseError(
            f"The recorded sketch of {what} is damaged: {error}.",
            hint="The record was altered or damaged. See: lensreg audit verify; then restore a backup.",
        ) from error
