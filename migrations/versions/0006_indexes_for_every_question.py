"""Indexes for every question: versions in use by number, and the events of a model, newest first.

Revision: 0006, after 0005.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

IS_LIVE = sa.text("retired_at IS NULL")


def upgrade() -> None:
    """Make them; on Postgres subjects are compared by code point from now on, as on SQLite."""
    op.create_index(
        "ix_versions_live", "versions", ["model_id", "number"], sqlite_where=IS_LIVE, postgresql_where=IS_LIVE
    )
    op.drop_index("ix_events_subject", "events")
    collate_subjects("C")
    op.create_index("ix_events_subject_sequence", "events", ["subject", "sequence"])


def downgrade() -> None:
    """Go back to the one that was there."""
    op.drop_index("ix_events_subject_sequence", "events")
    collate_subjects("default")
    op.create_index("ix_events_subject", "events", ["subject"])
    op.drop_index("ix_versions_live", "versions")


def collate_subjects(collation: str) -> None:
    """Set the order of subjects; SQLite's is that of code points anyway."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f'ALTER TABLE events ALTER COLUMN subject TYPE VARCHAR(255) COLLATE "{collation}"')
