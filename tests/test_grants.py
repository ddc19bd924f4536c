"""What the roles of a team's Postgres may and may not do, with our own methods and with SQL, on a real server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy
from click.testing import CliRunner
from sqlalchemy import text

from cli.main import lensreg
from registry import Registry
from registry.errors import InvalidInput, NotPermitted, RegistryError
from registry.grants import write_grants
from registry.tables import metadata
from tests.records import record

READS: dict[str, Callable[[Registry], object]] = {
    "resolve": lambda registry: registry.resolve("m@best"),
    "version": lambda registry: registry.version("m"),
    "models": lambda registry: registry.models(),
    "history": lambda registry: registry.history("m"),
    "lineage": lambda registry: registry.lineage("m").ancestors(),
    "aliases": lambda registry: registry.aliases(),
    "events": lambda registry: registry.events(),
    "verify_events": lambda registry: registry.verify_events(),
    "search": lambda registry: registry.search("family = 'gpt2'"),
    "sql": lambda registry: registry.sql("SELECT ref FROM version_overview"),
    "status": lambda registry: registry.status(),
    "upgrade": lambda registry: registry.upgrade(),
}
WRITES: dict[str, Callable[[Registry], object]] = {
    "register": lambda registry: record(registry, "m", tags={"a": "b"}, parents=["m@v1"], absent=["org/base@main"]),
    "set_alias": lambda registry: registry.set_alias("m@other", "m@v2"),
    "remove_alias": lambda registry: registry.remove_alias("m@best"),
    "retire": lambda registry: registry.retire("m@v2", force=True),
    "restore": lambda registry: registry.restore("m@v3"),
    "protect": lambda registry: registry.protect("m"),
    "unprotect": lambda registry: registry.protect("other", protect=False),
}
TAMPERS = [
    "UPDATE events SET actor = 'somebody else'",
    "DELETE FROM events",
    "TRUNCATE events",
    "DELETE FROM versions",
    "UPDATE versions SET number = number + 1",
    "UPDATE version_files SET digest = digest",
    "UPDATE validations SET value = 0",
    "DELETE FROM version_parents",
    "UPDATE aliases SET version_id = version_id",
    "DELETE FROM aliases",
    "ALTER TABLE events ADD COLUMN more text",
    "DROP TABLE events CASCADE",
    "CREATE TABLE mine (x int)",
]


@pytest.fixture(params=["public", "of a team"])
def schema(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def owner(fresh_postgres: str, schema: str, tmp_path: Path) -> Iterator[Registry]:
    """A registry in a schema of its own, as the superuser has it."""
    url = sqlalchemy.make_url(fresh_postgres).update_query_dict({"search_path": f'"{schema}"'})
    registry = Registry(url.render_as_string(hide_password=False), tmp_path)
    with registry._unprepared.engine.begin() as connection:
        connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'))
    for _ in range(3):
        record(registry, "m")
    record(registry, "other")
    registry.set_alias("m@best", "m@v1")
    registry.retire("m@v3")
    registry.protect("other")
    yield registry
    registry.close()


@pytest.fixture
def become(owner: Registry, schema: str) -> Iterator[Callable[[str], Registry]]:
    """Return a function that opens the registry as a new role, granted what our script grants."""
    name = f'ann "{os.urandom(4).hex()}"'
    quoted = '"' + name.replace('"', '""') + '"'
    opened: list[Registry] = []

    def become(role: str) -> Registry:
        script = CliRunner().invoke(lensreg, ["db", "grants", "--role", role, "--schema", schema, name])
        assert script.exit_code == 0, script.output
        with owner.database.engine.begin() as connection:
            if not opened:
                connection.execute(text(f"CREATE ROLE {quoted} LOGIN PASSWORD 'secret'"))
            connection.connection.driver_connection.execute(script.output)  # as psql would, without placeholders
        url = owner.database.url.set(username=name, password="secret")
        opened.append(Registry(url.render_as_string(hide_password=False), owner.store.root))
        return opened[-1]

    yield become
    for one in opened:
        one.close()
    with owner.database.engine.begin() as connection:
        connection.execute(text(f"REASSIGN OWNED BY {quoted} TO CURRENT_USER"))
        connection.execute(text(f"DROP OWNED BY {quoted}"))
        connection.execute(text(f"DROP ROLE {quoted}"))


def _tamper(registry: Registry, statement: str) -> None:
    with registry.database.write() as connection:
        connection.execute(text(statement))


def _refuse(registry: Registry, subtests: pytest.Subtests, *what: str) -> None:
    for statement in what or TAMPERS:
        with subtests.test(statement):
            with pytest.raises(NotPermitted) as refused:
                _tamper(registry, statement)
            assert "lensreg db grants" in str(refused.value.hint)
            assert "secret" not in str(refused.value)


def test_a_reader_reads_everything_and_changes_nothing(
    become: Callable[[str], Registry], owner: Registry, subtests: pytest.Subtests
) -> None:
    reader = become("read")
    before = owner.events_head()
    for name, read in READS.items():
        with subtests.test(name):
            read(reader)
    for name, write in WRITES.items():
        with subtests.test(name), pytest.raises(NotPermitted):
            write(reader)
    _refuse(reader, subtests)
    assert owner.events_head() == before
    assert reader.verify().n_faults == len(owner.verify().faults)


def test_who_registers_can_neither_alter_nor_delete(
    become: Callable[[str], Registry], owner: Registry, subtests: pytest.Subtests
) -> None:
    registrar = become("register")
    for name, method in (READS | WRITES).items():
        with subtests.test(name):
            method(registrar)
    _refuse(registrar, subtests)
    assert owner.verify_events() is None
    assert owner.version("m").number == 4


def test_an_admin_owns_everything_and_upgrades_it(
    become: Callable[[str], Registry], owner: Registry, schema: str, subtests: pytest.Subtests
) -> None:
    from alembic import command

    from registry.schema import make_alembic_config, migration_connection

    admin = become("admin")
    for name, method in (READS | WRITES).items():
        with subtests.test(name):
            method(admin)
    with migration_connection(admin.database) as connection:
        config = make_alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "-1")
    outdated = Registry(admin.database.url.render_as_string(hide_password=False), admin.store.root)
    assert [one.name for one in outdated.models()] == [one.name for one in admin.models()]
    with pytest.raises(RegistryError, match="needs"):
        outdated.set_alias("m@newest", "m")
    outdated.close()
    admin.upgrade()
    assert admin.resolve("m").number == 4
    owner.close()
    assert admin.verify_events() is None


def test_a_role_can_be_given_less_than_it_had(become: Callable[[str], Registry], subtests: pytest.Subtests) -> None:
    become("register")
    reader = become("read")
    reader.resolve("m")
    _refuse(reader, subtests, "UPDATE versions SET retired_at = NULL", "INSERT INTO blobs VALUES ('a', 1, now())")


def test_a_role_without_any_grant_is_told_what_to_ask_for(owner: Registry, schema: str) -> None:
    with owner.database.engine.begin() as connection:
        connection.execute(text("CREATE ROLE stranger LOGIN"))
    url = owner.database.url.set(username="stranger").render_as_string(hide_password=False)
    stranger = Registry(url, owner.store.root)
    with pytest.raises(RegistryError) as refused:
        stranger.resolve("m")
    assert refused.value.code == "not-permitted"
    assert "lensreg db grants" in str(refused.value.hint)
    stranger.close()
    with owner.database.engine.begin() as connection:
        connection.execute(text("DROP ROLE stranger"))


def test_every_table_is_named_by_the_script_of_those_who_register() -> None:
    script = write_grants("register", "ann")
    assert [name for name in metadata.tables if f'"public".{name}' not in script] == []


@pytest.mark.parametrize("name", ["", "a'b", "a$b", "a%b", "a\nb", "x" * 64, "é" * 32, "a\x00b", "\ud800"])
def test_names_that_could_break_out_of_the_script_are_refused(name: str) -> None:
    for arguments in ((name, "public"), ("ann", name)):
        with pytest.raises(InvalidInput):
            write_grants("admin", *arguments)
