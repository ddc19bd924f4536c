"""Models that are protected: none of their versions can be retired.

Revision: 0004, after 0003.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add when a model was protected; NULL is not at all."""
    op.add_column("models", sa.Column("protected_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Take it away again."""
    op.drop_column("models", "protected_at")
