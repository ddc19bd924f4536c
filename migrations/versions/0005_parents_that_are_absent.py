"""Lineage: parents that are declared but absent, evidence on the edges, and the digests of single tensors.

Revision: 0005, after 0004.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

RELATIONS = "'finetuned', 'continued', 'adapter-merged', 'merged', 'converted', 'quantised', 'distilled'"


def text(length: int) -> sa.String:
    return sa.String(length=length).with_variant(sa.String(length=length, collation="C"), "postgresql")


def number() -> sa.BigInteger:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add absent parents and tensor digests; a parent is registered before its child, unless it was absent."""
    op.create_table(
        "absent_parents",
        sa.Column("id", number(), nullable=False),
        sa.Column("version_id", number(), nullable=False),
        sa.Column("repo", text(200), nullable=False),
        sa.Column("revision", text(200), nullable=False),
        sa.Column("digest", text(64), nullable=True),
        sa.Column("relation", sa.String(length=32), nullable=False),
        sa.Column("allowed", sa.JSON(), nullable=False),
        sa.CheckConstraint(f"relation IN ({RELATIONS})", name=op.f("ck_absent_parents_relation")),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_absent_parents_version_id_versions")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_absent_parents")),
        sa.UniqueConstraint("version_id", "repo", "revision", name=op.f("uq_absent_parents_version_id_repo_revision")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_absent_parents_digest"), "absent_parents", ["digest"])
    op.create_index(op.f("ix_absent_parents_repo_revision"), "absent_parents", ["repo", "revision"])
    with op.batch_alter_table("version_parents") as batch:
        batch.add_column(sa.Column("absent_id", number(), nullable=True))
        batch.add_column(sa.Column("evidence", sa.JSON(), nullable=True))
        batch.create_foreign_key(
            op.f("fk_version_parents_absent_id_absent_parents"), "absent_parents", ["absent_id"], ["id"]
        )
        batch.create_unique_constraint(op.f("uq_version_parents_absent_id"), ["absent_id"])
        batch.create_check_constraint(
            op.f("ck_version_parents_parent_first"), "parent_id < version_id OR absent_id IS NOT NULL"
        )
    op.create_table(
        "tensor_digests",
        sa.Column("weights_digest", text(64), nullable=False),
        sa.Column("n_tensors", sa.Integer(), nullable=False),
        sa.Column("forms", sa.LargeBinary(), nullable=False),
        sa.Column("digests", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("weights_digest", name=op.f("pk_tensor_digests")),
    )


def downgrade() -> None:
    """Take them away again; refused while an absent parent is declared, which the schema before cannot keep."""
    if op.get_bind().scalar(sa.text("SELECT count(*) FROM absent_parents")):
        raise ValueError("parents that are declared but absent would be forgotten")
    op.drop_table("tensor_digests")
    with op.batch_alter_table("version_parents") as batch:
        batch.drop_constraint(op.f("ck_version_parents_parent_first"), type_="check")
        batch.drop_constraint(op.f("uq_version_parents_absent_id"), type_="unique")
        batch.drop_constraint(op.f("fk_version_parents_absent_id_absent_parents"), type_="foreignkey")
        batch.drop_column("evidence")
        batch.drop_column("absent_id")
    op.drop_table("absent_parents")
