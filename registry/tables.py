"""The SQLAlchemy tables and their constraints; no behaviour.

Everything but `aliases.removed_at`, `versions.retired_at`, `models.protected_at` and new rows is written once and never
changed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

SHA256_HEX = 64
RELATIONS = ("finetuned", "continued", "adapter-merged", "merged", "converted", "quantised", "distilled")
ROLES = ("weights", "config", "tokenizer", "generation", "original")


class UtcDateTime(TypeDecorator[datetime]):
    """An instant in UTC; SQLite keeps no time zones, so it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive instants and turn others into UTC."""
        if value is not None and value.tzinfo is None:
            raise ValueError("an instant must say its time zone")
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Give the instant back in UTC."""
        if value is None:
            return None
        instant: datetime = value if value.tzinfo else value.replace(tzinfo=UTC)
        return instant.astimezone(UTC)


def _text(length: int) -> String:
    """Make a text column that is sorted and compared alike everywhere: by code point, never by a language's rules."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


def _one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


_id = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

models = Table(
    "models",
    metadata,
    Column("id", _id, primary_key=True),
    Column("name", _text(200), nullable=False, unique=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("protected_at", UtcDateTime),  # since when none of its versions can be retired
)

architectures = Table(
    "architectures",
    metadata,
    Column("fingerprint", String(SHA256_HEX), primary_key=True),
    Column("fields", JSON, nullable=False),
)

blobs = Table(
    "blobs",
    metadata,
    Column("digest", String(SHA256_HEX), primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("id", _id, primary_key=True),
    Column("model_id", _id, ForeignKey("models.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("step", BigInteger),
    Column("family", String(64), nullable=False),
    Column("fingerprint", String(SHA256_HEX), ForeignKey("architectures.fingerprint"), nullable=False, index=True),
    Column("weights_digest", _text(SHA256_HEX), index=True),  # NULL until bytes that were left elsewhere are fetched
    Column("vocabulary_digest", String(SHA256_HEX)),
    Column("layout", String(16), nullable=False),
    Column(
        "processing", JSON(none_as_null=True)
    ),  # what was done to hooked weights before they came here; NULL in other layouts
    Column("dtype", String(32), nullable=False),
    Column("n_parameters", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("source_kind", String(32), nullable=False),
    Column("source_location", Text, nullable=False),
    Column("provenance", JSON, nullable=False, server_default="{}"),
    Column("note", Text),
    Column("findings", JSON, nullable=False),
    Column("operation_id", String(32), nullable=False, unique=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("retired_at", UtcDateTime),
    UniqueConstraint("model_id", "number"),
    Index(None, "model_id", "step"),
    Index("ix_versions_live", "model_id", "number"),  # of versions that are not retired: see limit_indexes
    _one_of("layout", ("huggingface", "hooked")),
    CheckConstraint("number >= 1", name="number"),
    sqlite_autoincrement=True,
)

version_files = Table(
    "version_files",
    metadata,
    Column("version_id", _id, ForeignKey("versions.id"), primary_key=True),
    Column("name", _text(255), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("digest", String(SHA256_HEX), ForeignKey("blobs.digest"), nullable=False, index=True),
    _one_of("role", ROLES),
)

version_parents = Table(
    "version_parents",
    metadata,
    Column("version_id", _id, ForeignKey("versions.id"), primary_key=True),
    Column("parent_id", _id, ForeignKey("versions.id"), primary_key=True, index=True),
    Column("relation", String(32), nullable=False),
    Column("admitted_differences", JSON, nullable=False),
    Column("absent_id", _id, ForeignKey("absent_parents.id"), unique=True),  # how it was declared before it was here
    Column("evidence", JSON(none_as_null=True)),  # what the weights say of the edge; NULL is not looked at
    _one_of("relation", RELATIONS),
    CheckConstraint("version_id <> parent_id", name="not_itself"),
    # ids only grow, so no edge closes a cycle; one that had been absent is walked before it is joined (absent.py)
    CheckConstraint("parent_id < version_id OR absent_id IS NOT NULL", name="parent_first"),
)

absent_parents = Table(
    "absent_parents",
    metadata,
    Column("id", _id, primary_key=True),
    Column("version_id", _id, ForeignKey("versions.id"), nullable=False),
    Column("repo", _text(200), nullable=False),
    Column("revision", _text(200), nullable=False),
    Column("digest", _text(SHA256_HEX), index=True),  # of its weights, or of its one weight file
    Column("relation", String(32), nullable=False),
    Column("allowed", JSON, nullable=False),  # the fields in which it may differ once it is here
    UniqueConstraint("version_id", "repo", "revision"),
    Index(None, "repo", "revision"),
    _one_of("relation", RELATIONS),
    sqlite_autoincrement=True,
)

tensor_digests = Table(
    "tensor_digests",
    metadata,
    Column("weights_digest", _text(SHA256_HEX), primary_key=True),
    Column("n_tensors", Integer, nullable=False),
    Column("forms", LargeBinary, nullable=False),  # names, dtypes and shapes, compressed
    Column("digests", LargeBinary, nullable=False),  # 32 bytes each, in the order of the names
)

sketches = Table(
    "sketches",
    metadata,
    Column("weights_digest", _text(SHA256_HEX), primary_key=True),
    Column("fingerprint", String(SHA256_HEX), primary_key=True),
    Column("form", _text(SHA256_HEX), nullable=False, index=True),  # digest of the layers' names and shapes
    Column("names", LargeBinary, nullable=False),  # names and shapes, compressed
    Column("samples", LargeBinary, nullable=False),  # float32, little-endian, in the order of the names
)

aliases = Table(
    "aliases",
    metadata,
    Column("id", _id, primary_key=True),
    Column("model_id", _id, ForeignKey("models.id"), nullable=False),
    Column("name", _text(96), nullable=False),
    Column("version_id", _id, ForeignKey("versions.id"), nullable=False, index=True),
    Column("set_at", UtcDateTime, nullable=False),
    Column("removed_at", UtcDateTime),
    Index(None, "model_id", "name"),
    # a row is one stretch of an alias's life; at most one of them is open
    Index("uq_aliases_open", "model_id", "name", unique=True),  # of those rows: see limit_indexes
    sqlite_autoincrement=True,
)

tags = Table(
    "tags",
    metadata,
    Column("version_id", _id, ForeignKey("versions.id"), primary_key=True),
    Column("key", _text(128), primary_key=True),
    Column("value", Text, nullable=False),
)

validations = Table(
    "validations",
    metadata,
    Column("id", _id, primary_key=True),
    Column("version_id", _id, ForeignKey("versions.id"), nullable=False, index=True),
    Column("suite", String(64), nullable=False),
    Column("metric", String(64), nullable=False),
    Column("value", Float),  # NULL is unmeasured, never 0
    Column("bound", Float),
    Column("passed", Boolean),
    Column("unit", String(32)),
    Column("dtype", String(32)),
    Column("n_samples", BigInteger),
    Column("dataset_digest", String(SHA256_HEX)),
    Column("details", JSON, nullable=False),
    Column("environment", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    # of runs of a suite; NULL in what registering measured
    Column("run_id", String(32), index=True),
    Column("suite_version", String(32)),
    Column("direction", String(8)),  # which way is better: lower or higher
    Column("seed", BigInteger),
    Column("device", String(64)),
    Column("seconds", Float),
    Column("parameters", JSON(none_as_null=True)),
    Column("weights_digest", String(SHA256_HEX)),  # of the weights that were measured
    sqlite_autoincrement=True,
)

gates = Table(
    "gates",
    metadata,
    Column("id", _id, primary_key=True),
    Column("model_id", _id, ForeignKey("models.id"), nullable=False),
    Column("alias", _text(96), nullable=False),
    Column("requirement", Text, nullable=False),
    Column("set_at", UtcDateTime, nullable=False),
    Column("removed_at", UtcDateTime),
    Index(None, "model_id", "alias"),
    sqlite_autoincrement=True,
)

events = Table(
    "events",
    metadata,
    Column("sequence", _id, primary_key=True, autoincrement=False),
    Column("previous_digest", String(SHA256_HEX), nullable=False, unique=True),
    Column("digest", String(SHA256_HEX), nullable=False, unique=True),
    Column("at", String(32), nullable=False),  # kept as the text that was digested
    Column("actor", String(255), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", _text(255), nullable=False),
    Column("details", JSON, nullable=False),
    Column("environment", JSON, nullable=False),
    Index(None, "subject", "sequence"),
)


def limit_indexes() -> None:
    """Say which rows a partial index is of: for migrations only, as SQLAlchemy imports both databases' parts for it."""
    for table, name, column in (
        (versions, "ix_versions_live", "retired_at"),
        (aliases, "uq_aliases_open", "removed_at"),
    ):
        (index,) = (one for one in table.indexes if one.name == name)
        is_open = table.c[column].is_(None)
        index.dialect_kwargs.update(sqlite_where=is_open, postgresql_where=is_open)
