"""Versions from sources of every kind: where they came from, how hooked weights were processed, bytes not fetched yet.

Revision: 0002, after 0001.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def text(length: int) -> sa.String:
    return sa.String(length=length).with_variant(sa.String(length=length, collation="C"), "postgresql")


def upgrade() -> None:
    """Add provenance and processing, and let the weights digest be unknown until the bytes are fetched."""
    with op.batch_alter_table("versions", table_kwargs={"sqlite_autoincrement": True}) as batch:
        batch.add_column(sa.Column("provenance", sa.JSON(), nullable=False, server_default="{}"))
        batch.add_column(sa.Column("processing", sa.JSON(), nullable=True))
        batch.alter_column("weights_digest", existing_type=text(64), nullable=True)


def downgrade() -> None:
    """Take them away again; fails while a version's bytes are not fetched."""
    with op.batch_alter_table("versions", table_kwargs={"sqlite_autoincrement": True}) as batch:
        batch.alter_column("weights_digest", existing_type=text(64), nullable=False)
        batch.drop_column("processing")
        batch.drop_column("provenance")
