"""A database that can only be read, by a mount, by permissions or by a role: it is read, and writing is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from sqlalchemy import text

from registry import Registry
from registry.errors import DatabaseReadOnly
from tests.processes import needs_mounts, run_code
from tests.records import record

needs_setpriv = pytest.mark.skipif(not shutil.which("setpriv"), reason="dropping root's rights needs util-linux")

READ = """
    from registry import Registry, RegistryError
    registry = Registry(values["url"], values["store"])
    assert registry.resolve("m").ref == "m@v2"
    assert [one.number for one in registry.history("m")] == [2, 1]
    assert [one.name for one in registry.models()] == ["m"]
    assert registry.lineage("m").ref == "m@v2"
    assert registry.aliases()[0].ref == "m@best"
    assert registry.verify_events() is None
    assert len(registry.events()) == 3
    for write in (
        lambda: registry.set_alias("m@other", "m"),
        lambda: registry.remove_alias("m@best"),
        lambda: registry.retire("m@v2"),
    ):
        try:
            write()
        except RegistryError as error:
            print(error.code)
    registry.close()
"""


@pytest.fixture
def quiet_database(tmp_path: Path) -> Path:
    """A SQLite file with two versions and an alias, in a folder by itself, that nobody has open."""
    folder = tmp_path / "shared"
    registry = Registry(str(folder / "registry.db"), tmp_path / "store")
    record(registry, "m")
    record(registry, "m")
    registry.set_alias("m@best", "m@v1")
    registry.close()
    return folder / "registry.db"


def _freeze(folder: Path) -> str:
    return f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}"


@needs_mounts
def test_on_a_read_only_mount_reading_works_and_writing_is_refused(quiet_database: Path) -> None:
    before = {path.name: path.read_bytes() for path in quiet_database.parent.iterdir()}
    printed = run_code(READ, mounts=_freeze(quiet_database.parent), url=quiet_database, store="store")
    assert printed == ["database-read-only"] * 3
    assert {path.name: path.read_bytes() for path in quiet_database.parent.iterdir()} == before


@pytest.mark.skipif(not shutil.which("setpriv"), reason="dropping root's rights needs util-linux")
@pytest.mark.parametrize(
    "closed", [["."], ["registry.db"], [".", "registry.db"], [".", "registry.db", "registry.db.lock"]]
)
def test_who_may_only_read_can_read(quiet_database: Path, closed: list[str]) -> None:
    for name in closed:
        path = quiet_database.parent / name
        path.chmod(0o555 if path.is_dir() else 0o444)
    printed = run_code(READ, with_rights=False, url=quiet_database, store="store")
    assert printed == ["database-read-only"] * 3
    quiet_database.parent.chmod(0o755)


@needs_mounts
def test_a_read_only_mount_shows_what_a_writer_elsewhere_has_not_yet_settled(
    quiet_database: Path, tmp_path: Path
) -> None:
    """The newest rows are in the -wal file then, and the file itself is out of date."""
    writer = Registry(str(quiet_database), tmp_path / "store")
    writer.set_alias("m@best", "m@v2")
    assert Path(f"{quiet_database}-wal").stat().st_size > 0
    code = """
        from registry import Registry
        registry = Registry(values["url"])
        print(registry.resolve("m@best").ref, len(registry.events()))
    """
    assert run_code(code, mounts=_freeze(quiet_database.parent), url=quiet_database) == ["m@v2 4"]
    writer.close()


@needs_mounts
def test_a_fresh_database_cannot_be_made_on_a_read_only_mount(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    code = """
        from registry import Registry, RegistryError
        try:
            Registry(values["url"]).models()
        except RegistryError as error:
            print(error.code)
    """
    path = tmp_path / "shared" / "registry.db"
    assert run_code(code, mounts=_freeze(path.parent), url=path) == ["database-unavailable"]


WRITE_MEANWHILE = """
    import pathlib
    from registry import Registry, RegistryError
    from registry.resolve import resolve_ref
    from tests.records import record
    folder = pathlib.Path(values["url"]).parent
    reader = Registry(values["url"])
    assert reader.resolve("m").number == 2
    try:
        with reader.database.read() as connection:
            assert resolve_ref(connection, "m").number == 2
            folder.chmod(0o755)
            writer = Registry(values["url"])
            record(writer, "m")
            writer.close()
            folder.chmod(0o555)
    except RegistryError as error:
        print(error.code)
    print(reader.resolve("m").number)
    reader.close()
"""


@needs_setpriv
def test_a_reader_without_locks_notices_that_the_file_was_written_to(quiet_database: Path) -> None:
    """SQLite takes a file in a closed folder for one that nobody changes; who reads it then must not be told a mix."""
    quiet_database.parent.chmod(0o555)
    assert run_code(WRITE_MEANWHILE, with_rights=False, url=quiet_database) == ["registry-busy", "3"]
    quiet_database.parent.chmod(0o755)


def test_a_postgres_role_that_may_only_read(fresh_postgres: str, tmp_path: Path) -> None:
    owner = Registry(fresh_postgres, tmp_path)
    record(owner, "m")
    role = f"guest_{os.urandom(4).hex()}"
    with owner.database.write() as connection:
        for statement in (
            f"CREATE ROLE {role} LOGIN PASSWORD 'guest'",
            f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}",
        ):
            connection.execute(text(statement))
    url = owner.database.url.set(username=role, password="guest").render_as_string(hide_password=False)
    guest = Registry(url, tmp_path)
    assert guest.resolve("m").number == 1
    assert guest.verify_events() is None
    for write in (lambda: guest.set_alias("m@best", "m"), lambda: guest.retire("m"), lambda: record(guest, "m")):
        with pytest.raises(DatabaseReadOnly):
            write()
    guest.close()
    with owner.database.write() as connection:
        connection.execute(text(f"DROP OWNED BY {role}"))
        connection.execute(text(f"DROP ROLE {role}"))
    owner.close()
