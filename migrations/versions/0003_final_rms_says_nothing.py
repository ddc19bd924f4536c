"""Architectures with RMS norms, whose last norm is RMS in any case, no longer say so: they get their fingerprints anew.

An event tells which fingerprint became which, since the events of registration keep the ones they were written with.

Revision: 0003, after 0002.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

architectures = sa.table("architectures", sa.column("fingerprint", sa.String), sa.column("fields", sa.JSON))
versions = sa.table("versions", sa.column("fingerprint", sa.String))
events = sa.table(
    "events",
    sa.column("sequence", sa.BigInteger),
    *(sa.column(name, sa.String) for name in ("previous_digest", "digest", "at", "actor", "action", "subject")),
    sa.column("details", sa.JSON),
    sa.column("environment", sa.JSON),
)


def upgrade() -> None:
    """Rewrite the fields and fingerprints of architectures with RMS norms, and the versions that have them."""
    connection = op.get_bind()
    renamed: dict[str, str] = {}
    for row in connection.execute(sa.select(architectures).order_by(architectures.c.fingerprint)).all():
        if row.fields.get("normalization_type") == "RMS" and row.fields.get("final_rms"):
            renamed[row.fingerprint] = _rewrite(connection, row.fingerprint, {**row.fields, "final_rms": False})
    if renamed:
        _append_event(connection, {"fingerprints": renamed})


def downgrade() -> None:
    """Leave them: what an older lens-registry reads otherwise it refuses to load."""


def _rewrite(connection: sa.Connection, old: str, fields: Mapping[str, Any]) -> str:
    new = _digest(fields)
    if (
        connection.execute(sa.select(architectures.c.fingerprint).where(architectures.c.fingerprint == new)).first()
        is None
    ):
        connection.execute(architectures.insert().values(fingerprint=new, fields=fields))
    connection.execute(versions.update().where(versions.c.fingerprint == old).values(fingerprint=new))
    connection.execute(architectures.delete().where(architectures.c.fingerprint == old))
    return new


def _append_event(connection: sa.Connection, details: Mapping[str, Any]) -> None:
    """Append to the chain as registry/audit.py did at the time of this revision."""
    last = connection.execute(
        sa.select(events.c.sequence, events.c.digest).order_by(events.c.sequence.desc()).limit(1)
    ).first()
    row: dict[str, Any] = {
        "sequence": last.sequence + 1 if last else 1,
        "previous_digest": last.digest if last else "0" * 64,
        "at": datetime.now(UTC).isoformat(timespec="microseconds"),
        "actor": "migration 0003",
        "action": "schema.upgraded",
        "subject": "architectures",
        "details": details,
        "environment": {},
    }
    connection.execute(events.insert().values(digest=_digest(row), **row))


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(dict(content), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
