"""Alembic's entry: migrates over the connection it is given, or else opens the registry that the settings name."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from sqlalchemy import Connection

from registry.tables import UtcDateTime, limit_indexes, metadata

limit_indexes()


def render_item(kind: str, item: Any, autogen_context: Any) -> str | Literal[False]:
    """Write our own types into migrations as the plain types they are in the database."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False


def migrate(connection: Connection) -> None:
    """Run the migrations in one transaction, DDL included."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        transactional_ddl=True,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
        render_item=render_item,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    migrate(given)
else:
    from registry.database import Database
    from registry.schema import migration_connection
    from registry.settings import read_settings

    settings = read_settings()
    with migration_connection(Database(settings.url, on_network=settings.on_network)) as connection:
        migrate(connection)
