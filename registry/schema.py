"""The schema's version: check it on opening, create it in a fresh database, upgrade it by Alembic's migrations.

One process migrates at a time. SQLite: behind the writers' file lock, in one `BEGIN IMMEDIATE` transaction, on a
connection with foreign keys off (altering a parent table with them on can delete every child row), ended by `PRAGMA
foreign_key_check`. Postgres: behind a session advisory lock, taken before the heads are read. Alembic is imported only
when there is something to do.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from registry.ballast import set_ballast_aside
from registry.database import BEGIN_WRITING, Database
from registry.errors import SchemaOutdated, SchemaTooNew, SchemaUnknown

if TYPE_CHECKING:
    from alembic.config import Config

SCHEMA_REVISION = "0010"
MIGRATION_LOCK = 0x1E45_0002
_BACK_UP = {True: "lensreg backup FILE", False: "pg_dump"}
_ONE_MIGRATION = threading.Lock()  # Alembic's context is global to the process


def prepare_schema(database: Database) -> None:
    """Check that the schema is the one this code knows; create it in a fresh database.

    Raises SchemaOutdated, SchemaTooNew or SchemaUnknown.
    """
    if check_schema(database):
        upgrade_schema(database)


def check_schema(database: Database) -> bool:
    """Say whether the database is fresh, with no schema at all; any other schema than this code's is refused."""
    revision, is_fresh = read_revision(database)
    if revision != SCHEMA_REVISION and not is_fresh:
        _refuse_foreign(database, revision)
        raise SchemaOutdated(
            f"{database} has schema {revision}, and this lens-registry needs {SCHEMA_REVISION}.",
            hint=f"Back it up ({_BACK_UP[database.is_sqlite]}), then run: lensreg db upgrade. Others who use it "
            "with an older lens-registry have to update that, too.",
            found=revision,
            needed=SCHEMA_REVISION,
        )
    return is_fresh


def read_revision(database: Database) -> tuple[str | None, bool]:
    """Return the schema's revision, and whether the database holds no tables at all."""
    database.make_file()
    with database.read() as connection:
        tables = set(inspect(connection).get_table_names())
        said = "alembic_version" in tables
        revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar() if said else None
        # a downgrade to nothing leaves Alembic's own table behind
        return revision, revision is None and tables <= {"alembic_version"}


def upgrade_schema(database: Database) -> None:
    """Bring the schema to this code's version; many processes may do so at once.

    Raises SchemaTooNew or SchemaUnknown.
    """
    from alembic import command

    revision, is_fresh = read_revision(database)
    if not is_fresh:
        _refuse_foreign(database, revision)
    with _ONE_MIGRATION, migration_connection(database) as connection:
        config = make_alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    set_ballast_aside(database)


def make_alembic_config() -> Config:
    """Make Alembic's config for the migrations that belong to this code, in the wheel or in the checkout."""
    from alembic.config import Config

    inside_wheel = Path(__file__).parent / "migrations"
    folder = inside_wheel if inside_wheel.is_dir() else Path(__file__).parent.parent / "migrations"
    config = Config(stdout=io.StringIO())  # it would print to the stdout of the moment when Alembic was imported
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@contextlib.contextmanager
def migration_connection(database: Database) -> Iterator[Connection]:
    """Give a connection that alone may migrate; on SQLite all of the block is one transaction."""
    database.make_file()
    migrate = _migrate_sqlite if database.is_sqlite else _migrate_postgres
    with (
        database.typed_errors(),
        database.queue_for_writing(),
        database.engine.connect() as connection,
        migrate(connection),
    ):
        yield connection


@contextlib.contextmanager
def _migrate_sqlite(connection: Connection) -> Iterator[None]:
    connection.connection.execute("PRAGMA foreign_keys = OFF")  # has no effect inside a transaction, so before it
    try:
        with connection.begin():
            connection.exec_driver_sql(BEGIN_WRITING)
            yield
            if broken := connection.exec_driver_sql("PRAGMA foreign_key_check").all():
                raise SchemaUnknown(
                    f"The migration would leave {len(broken)} rows without their parents; it was undone.",
                    hint="The database was damaged before; restore a backup.",
                )
    finally:
        connection.connection.execute("PRAGMA foreign_keys = ON")


@contextlib.contextmanager
def _migrate_postgres(connection: Connection) -> Iterator[None]:
    connection.exec_driver_sql(f"SELECT pg_advisory_lock({MIGRATION_LOCK})")
    connection.commit()
    # a migration takes as long as it takes, on a connection that nobody gets after it
    connection.exec_driver_sql("SET statement_timeout = 0")
    connection.commit()
    connection.connection.driver_connection.answer_seconds = None  # type: ignore[union-attr]
    connection.detach()
    try:
        yield
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": MIGRATION_LOCK})
        connection.commit()


def _refuse_foreign(database: Database, revision: str | None) -> None:
    """Raise if the tables that are there are not of a schema that this code's migrations lead through."""
    if revision is None:
        raise SchemaUnknown(
            f"{database} has tables, but does not say which version of the schema they are.",
            hint="It may not be a registry; point --registry at another database, or restore a backup.",
        )
    if not _is_known(revision):
        raise SchemaTooNew(
            f"{database} has schema {revision}, which is newer than this lens-registry ({SCHEMA_REVISION}).",
            hint="Update lens-registry: pip install --upgrade lens-registry",
        )


def _is_known(revision: str) -> bool:
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(make_alembic_config())
    return revision in {script.revision for script in scripts.walk_revisions()}
