"""Runs of suites: what they were asked for, and what they measured it on; and what aliases require.

Revision: 0010, after 0009.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

COLUMNS = ("run_id", "suite_version", "direction", "seed", "device", "seconds", "parameters", "weights_digest")


def text(length: int) -> sa.String:
    return sa.String(length=length).with_variant(sa.String(length=length, collation="C"), "postgresql")


def upgrade() -> None:
    """Add the columns; they stay NULL in what is there."""
    op.add_column("validations", sa.Column("run_id", sa.String(length=32)))
    op.add_column("validations", sa.Column("suite_version", sa.String(length=32)))
    op.add_column("validations", sa.Column("direction", sa.String(length=8)))
    op.add_column("validations", sa.Column("seed", sa.BigInteger()))
    op.add_column("validations", sa.Column("device", sa.String(length=64)))
    op.add_column("validations", sa.Column("seconds", sa.Float()))
    op.add_column("validations", sa.Column("parameters", sa.JSON(none_as_null=True)))
    op.add_column("validations", sa.Column("weights_digest", sa.String(length=64)))
    op.create_index(op.f("ix_validations_run_id"), "validations", ["run_id"])
    op.create_table(
        "gates",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("model_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("alias", text(96), nullable=False),
        sa.Column("requirement", sa.Text(), nullable=False),
        sa.Column("set_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("removed_at", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_gates_model_id_models")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gates")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_gates_model_id_alias"), "gates", ["model_id", "alias"])


def downgrade() -> None:
    """Take them away again: what runs of suites were asked for is lost, what they measured stays."""
    op.drop_index(op.f("ix_gates_model_id_alias"), "gates")
    op.drop_table("gates")
    op.drop_index(op.f("ix_validations_run_id"), "validations")
    for name in reversed(COLUMNS):
        op.drop_column("validations", name)
