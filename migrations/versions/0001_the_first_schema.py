"""The first schema.

Revision: 0001, the beginning.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def text(length: int) -> sa.String:
    return sa.String(length=length).with_variant(sa.String(length=length, collation="C"), "postgresql")


def upgrade() -> None:
    """The first schema."""
    op.create_table(
        "architectures",
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("fields", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint", name=op.f("pk_architectures")),
    )
    op.create_table(
        "blobs",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_blobs")),
    )
    op.create_table(
        "events",
        sa.Column(
            "sequence",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=False,
            nullable=False,
        ),
        sa.Column("previous_digest", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("at", sa.String(length=32), nullable=False),
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("environment", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_events")),
        sa.UniqueConstraint("digest", name=op.f("uq_events_digest")),
        sa.UniqueConstraint("previous_digest", name=op.f("uq_events_previous_digest")),
    )
    op.create_index(op.f("ix_events_subject"), "events", ["subject"], unique=False)

    op.create_table(
        "models",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", text(200), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_models")),
        sa.UniqueConstraint("name", name=op.f("uq_models_name")),
    )
    op.create_table(
        "versions",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "model_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
        ),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("family", sa.String(length=64), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("weights_digest", text(64), nullable=False),
        sa.Column("vocabulary_digest", sa.String(length=64), nullable=True),
        sa.Column("layout", sa.String(length=16), nullable=False),
        sa.Column("dtype", sa.String(length=32), nullable=False),
        sa.Column("n_parameters", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("source_kind", sa.String(length=32), nullable=False),
        sa.Column("source_location", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("findings", sa.JSON(), nullable=False),
        sa.Column("operation_id", sa.String(length=32), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("layout IN ('huggingface', 'hooked')", name=op.f("ck_versions_layout")),
        sa.CheckConstraint("number >= 1", name=op.f("ck_versions_number")),
        sa.ForeignKeyConstraint(
            ["fingerprint"],
            ["architectures.fingerprint"],
            name=op.f("fk_versions_fingerprint_architectures"),
        ),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_versions_model_id_models")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_versions")),
        sa.UniqueConstraint("model_id", "number", name=op.f("uq_versions_model_id_number")),
        sa.UniqueConstraint("operation_id", name=op.f("uq_versions_operation_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_versions_fingerprint"), "versions", ["fingerprint"], unique=False)
    op.create_index(
        op.f("ix_versions_model_id_step"),
        "versions",
        ["model_id", "step"],
        unique=False,
    )
    op.create_index(op.f("ix_versions_weights_digest"), "versions", ["weights_digest"], unique=False)

    op.create_table(
        "aliases",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "model_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
        ),
        sa.Column("name", text(96), nullable=False),
        sa.Column(
            "version_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
        ),
        sa.Column("set_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_aliases_model_id_models")),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_aliases_version_id_versions")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_aliases")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_aliases_model_id_name"), "aliases", ["model_id", "name"], unique=False)
    op.create_index(op.f("ix_aliases_version_id"), "aliases", ["version_id"], unique=False)
    op.create_index(
        "uq_aliases_open",
        "aliases",
        ["model_id", "name"],
        unique=True,
        sqlite_where=sa.text("removed_at IS NULL"),
        postgresql_where=sa.text("removed_at IS NULL"),
    )

    op.create_table(
        "tags",
        sa.Column(
            "version_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
        ),
        sa.Column("key", text(128), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name=op.f("fk_tags_version_id_versions")),
        sa.PrimaryKeyConstraint("version_id", "key", name=op.f("pk_tags")),
    )
    op.create_table(
        "validations",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column(
            "version_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
        ),
        sa.Column("suite", sa.String(length=64), nullable=False),
        sa.Column("metric", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("bound", sa.Float(), nullable=True),
        sa.Column("passed", sa.Boolean(), nullable=True),
        sa.Column("unit", sa.String(length=32), nullable=True),
        sa.Column("dtype", sa.String(length=32), nullable=True),
        sa.Column("n_samples", sa.BigInteger(), nullable=True),
        sa.Column("dataset_digest", sa.String(length=64), nullable=True),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("environment", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["versions.id"],
            name=op.f("fk_validations_version_id_versions"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_validations")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_validations_version_id"), "validations", ["version_id"], unique=False)

    op.create_table(
        "version_files",
        sa.Column(
            "version_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
        ),
        sa.Column("name", text(255), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.CheckConstraint(
            "role IN ('weights', 'config', 'tokenizer', 'generation', 'original')",
            name=op.f("ck_version_files_role"),
        ),
        sa.ForeignKeyConstraint(["digest"], ["blobs.digest"], name=op.f("fk_version_files_digest_blobs")),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["versions.id"],
            name=op.f("fk_version_files_version_id_versions"),
        ),
        sa.PrimaryKeyConstraint("version_id", "name", name=op.f("pk_version_files")),
    )
    op.create_index(op.f("ix_version_files_digest"), "version_files", ["digest"], unique=False)

    op.create_table(
        "version_parents",
        sa.Column(
            "version_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
        ),
        sa.Column(
            "parent_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            nullable=False,
        ),
        sa.Column("relation", sa.String(length=32), nullable=False),
        sa.Column("admitted_differences", sa.JSON(), nullable=False),
        sa.CheckConstraint(
            "relation IN ('finetuned', 'continued', 'adapter-merged', 'merged', 'converted', 'quantised', 'distilled')",
            name=op.f("ck_version_parents_relation"),
        ),
        sa.CheckConstraint("version_id <> parent_id", name=op.f("ck_version_parents_not_itself")),
        sa.ForeignKeyConstraint(
            ["parent_id"],
            ["versions.id"],
            name=op.f("fk_version_parents_parent_id_versions"),
        ),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["versions.id"],
            name=op.f("fk_version_parents_version_id_versions"),
        ),
        sa.PrimaryKeyConstraint("version_id", "parent_id", name=op.f("pk_version_parents")),
    )
    op.create_index(
        op.f("ix_version_parents_parent_id"),
        "version_parents",
        ["parent_id"],
        unique=False,
    )


def downgrade() -> None:
    """Undo it."""
    op.drop_index(op.f("ix_version_parents_parent_id"), "version_parents")

    op.drop_table("version_parents")
    op.drop_index(op.f("ix_version_files_digest"), "version_files")

    op.drop_table("version_files")
    op.drop_index(op.f("ix_validations_version_id"), "validations")

    op.drop_table("validations")
    op.drop_table("tags")
    op.drop_index(
        "uq_aliases_open",
        "aliases",
        sqlite_where=sa.text("removed_at IS NULL"),
        postgresql_where=sa.text("removed_at IS NULL"),
    )
    op.drop_index(op.f("ix_aliases_version_id"), "aliases")
    op.drop_index(op.f("ix_aliases_model_id_name"), "aliases")

    op.drop_table("aliases")
    op.drop_index(op.f("ix_versions_weights_digest"), "versions")
    op.drop_index(op.f("ix_versions_model_id_step"), "versions")
    op.drop_index(op.f("ix_versions_fingerprint"), "versions")

    op.drop_table("versions")
    op.drop_table("models")
    op.drop_index(op.f("ix_events_subject"), "events")

    op.drop_table("events")
    op.drop_table("blobs")
    op.drop_table("architectures")
