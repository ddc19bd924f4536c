"""Sketches: samples of each matrix, from which related networks are told from unrelated ones.

Revision: 0008, after 0007.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def text(length: int) -> sa.String:
    return sa.String(length=length).with_variant(sa.String(length=length, collation="C"), "postgresql")


def upgrade() -> None:
    """Add the table; sketches of what is registered already are taken when they are needed."""
    op.create_table(
        "sketches",
        sa.Column("weights_digest", text(64), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("form", text(64), nullable=False),
        sa.Column("names", sa.LargeBinary(), nullable=False),
        sa.Column("samples", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("weights_digest", "fingerprint", name=op.f("pk_sketches")),
    )
    op.create_index(op.f("ix_sketches_form"), "sketches", ["form"])


def downgrade() -> None:
    """Take it away again; nothing is lost that the weights do not tell."""
    op.drop_index(op.f("ix_sketches_form"), "sketches")
    op.drop_table("sketches")
