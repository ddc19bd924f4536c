"""Transactions, many writers, and what happens when the database cannot be used: SQLite and Postgres alike."""

from __future__ import annotations

import fcntl
import itertools
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import func, select, text

from registry import Registry, RegistryError, engines
from registry.database import Database
from registry.errors import DatabaseError, DatabaseUnavailable, OutcomeUnknown, RegistryBusy
from registry.record import record_version
from registry.tables import metadata, versions
from tests.processes import run_at_once, run_code
from tests.records import add_version, make_draft, record


def _count_rows(registry: Registry) -> dict[str, int]:
    with registry.database.read() as connection:
        return {
            name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for name, table in metadata.tables.items()
        }


def _record_many(index: int, url: str, store: str, n: int) -> list[int]:
    registry = Registry(url, store)
    try:
        return [record(registry, "m", note=f"{index}").number for _ in range(n)]
    finally:
        registry.close()


def test_eight_processes_record_versions_of_one_name(any_registry: Registry, database_url: str) -> None:
    any_registry.models()
    numbers = run_at_once(_record_many, database_url, str(any_registry.store.root), 25, n=8)
    assert sorted(itertools.chain(*numbers)) == list(range(1, 201))
    assert [one.number for one in any_registry.history("m")] == list(range(200, 0, -1))
    assert any_registry.verify_events() is None
    assert len(any_registry.events("m")) == 200


def _record_by_two_names(index: int, folder: str) -> list[int]:
    return _record_many(index, f"{folder}/{'registry.db' if index % 2 else 'link.db'}", folder, 15)


def test_writers_that_queue_behind_different_locks_do_not_clash(tmp_path: Path) -> None:
    """A file with two names has two lock files; that every write begins with IMMEDIATE keeps them apart."""
    registry = Registry(str(tmp_path / "registry.db"), tmp_path)
    registry.models()
    (tmp_path / "link.db").symlink_to("registry.db")
    numbers = run_at_once(_record_by_two_names, str(tmp_path), n=4)
    assert sorted(itertools.chain(*numbers)) == list(range(1, 61))
    assert registry.verify_events() is None
    registry.close()


def test_threads_share_a_registry(any_registry: Registry) -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                stored = record(any_registry, "m")
                any_registry.set_alias("m@newest", stored.ref)
                any_registry.history("m")
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert [one.number for one in any_registry.history("m")] == list(range(30, 0, -1))
    assert any_registry.verify_events() is None


@pytest.mark.parametrize("break_off", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_inside_write_undoes_everything(any_registry: Registry, break_off: type[BaseException]) -> None:
    record(any_registry, "m")
    before = _count_rows(any_registry)
    with pytest.raises(break_off), any_registry.database.write() as connection:
        add_version(connection, "m", parents=["m"], tags={"a": "b"})
        add_version(connection, "another")
        raise break_off
    assert _count_rows(any_registry) == before
    assert record(any_registry, "m").number == 2


def test_an_operation_that_is_tried_again_gives_the_version_it_made(any_registry: Registry) -> None:
    """The answer to COMMIT can get lost after the rows were kept."""
    draft = make_draft("m", operation_id="0123456789abcdef")
    with any_registry.database.write() as connection:
        first = record_version(connection, draft)
    before = _count_rows(any_registry)
    with any_registry.database.write() as connection:
        assert record_version(connection, draft) == first
    assert _count_rows(any_registry) == before


def test_foreign_keys_are_on_in_every_connection(any_registry: Registry, database_url: str) -> None:
    record(any_registry, "m")
    again = Registry(database_url, any_registry.store.root)  # its connections have not migrated anything
    for statement in ("DELETE FROM versions", "DELETE FROM models", "DELETE FROM blobs", "DELETE FROM architectures"):
        with pytest.raises(DatabaseError, match="refused"), again.database.write() as connection:
            connection.execute(text(statement))
    assert again.resolve("m").number == 1
    again.close()


def test_a_row_that_breaks_a_rule_is_refused_with_an_error_of_ours(any_registry: Registry) -> None:
    record(any_registry, "m")
    for changes in ({"number": 0}, {"layout": "sideways"}, {"fingerprint": "nobody's"}, {"operation_id": None}):
        with pytest.raises(DatabaseError, match="refused"), any_registry.database.write() as connection:
            connection.execute(versions.update().values(**changes))


def test_writers_of_sqlite_keep_to_the_safe_settings(registry: Registry) -> None:
    record(registry, "m")
    again = Registry(str(registry.database.url.database), registry.store.root)
    lock = Path(f"{again.database.url.database}.lock")
    with again.database.write() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
        with lock.open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    again.close()


def test_a_writer_that_takes_too_long_is_reported_as_busy(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "BUSY_SECONDS", 1)
    holder, other = Registry(database_url, tmp_path), Registry(database_url, tmp_path)
    record(holder, "m")
    with holder.database.write():
        started = time.perf_counter()
        with pytest.raises(RegistryBusy) as refused:
            other.set_alias("m@best", "m")
        assert 0.5 < time.perf_counter() - started < 20
        assert "Try again" in str(refused.value.hint)
        assert other.resolve("m").number == 1, "reading goes on meanwhile"
    other.set_alias("m@best", "m")
    holder.close()
    other.close()


def test_a_lock_held_past_our_queue_is_busy_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody with `sqlite3 registry.db` open does not know the file lock."""
    import sqlite3

    monkeypatch.setattr(engines, "BUSY_SECONDS", 1)
    registry = Registry(str(tmp_path / "registry.db"), tmp_path)
    record(registry, "m")
    stranger = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
    stranger.execute("BEGIN IMMEDIATE")
    with pytest.raises(RegistryBusy, match="locked"):
        registry.set_alias("m@best", "m")
    stranger.execute("ROLLBACK")
    stranger.close()
    registry.set_alias("m@best", "m")
    registry.close()


def _methods(registry: Registry) -> list[tuple[str, Callable[[], object]]]:
    """Return every method that asks the database something."""
    return [
        ("resolve", lambda: registry.resolve("m")),
        ("version", lambda: registry.version("m")),
        ("models", registry.models),
        ("history", lambda: registry.history("m")),
        ("path", lambda: registry.path("m")),
        ("lineage", lambda: registry.lineage("m")),
        ("aliases", registry.aliases),
        ("events", registry.events),
        ("verify_events", registry.verify_events),
        ("load", lambda: registry.load("m")),
        ("set_alias", lambda: registry.set_alias("m@best", "m")),
        ("remove_alias", lambda: registry.remove_alias("m@best")),
        ("retire", lambda: registry.retire("m")),
        ("restore", lambda: registry.restore("m")),
        ("register", lambda: registry.register("m", "/nowhere")),
        ("upgrade", registry.upgrade),
        ("status", registry.status),
    ]


def _refuse_all(registry: Registry, error: type[RegistryError], subtests: pytest.Subtests) -> None:
    for name, method in _methods(registry):
        with subtests.test(method=name):
            with pytest.raises(error) as refused:
                method()
            assert refused.value.hint
            assert "secret" not in str(refused.value)
    registry.close()


def test_a_postgres_that_does_not_answer_is_reported_soon(tmp_path: Path, subtests: pytest.Subtests) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    registry = Registry(f"postgresql://ann:secret@127.0.0.1:{port}/registry", tmp_path)
    started = time.perf_counter()
    with pytest.raises(DatabaseUnavailable):
        registry.models()
    assert time.perf_counter() - started < 5
    _refuse_all(registry, DatabaseUnavailable, subtests)


def test_a_server_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "CONNECT_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        registry = Registry(f"postgresql://ann@127.0.0.1:{server.getsockname()[1]}/registry", tmp_path)
        started = time.perf_counter()
        with pytest.raises(DatabaseUnavailable):
            registry.models()
        assert time.perf_counter() - started < 20
        registry.close()


def test_a_database_that_is_not_there_or_not_ours_to_enter(
    fresh_postgres: str, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    url = sqlalchemy.make_url(fresh_postgres)
    missing = url.set(database="nowhere").render_as_string(hide_password=False)
    _refuse_all(Registry(missing, tmp_path), DatabaseUnavailable, subtests)
    odd = url.update_query_dict({"no_such_option": "1"}).render_as_string(hide_password=False)
    with pytest.raises(DatabaseUnavailable, match="no_such_option"):
        Registry(odd, tmp_path).models()


def test_a_connection_that_the_server_closed_is_replaced(fresh_postgres: str, tmp_path: Path) -> None:
    registry = Registry(fresh_postgres, tmp_path)
    record(registry, "m")
    admin = sqlalchemy.create_engine(registry.database.url)
    with admin.connect() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid()"
            )
        )
    admin.dispose()
    assert registry.resolve("m").number == 1
    registry.close()


def test_a_connection_that_is_cut_while_writing_leaves_nothing(fresh_postgres: str, tmp_path: Path) -> None:
    registry, other = Registry(fresh_postgres, tmp_path), Registry(fresh_postgres, tmp_path)
    record(registry, "m")
    before = _count_rows(registry)
    with pytest.raises(DatabaseUnavailable), registry.database.write() as connection:
        add_version(connection, "m")
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        with other.database.read() as admin:
            admin.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        add_version(connection, "m")
    assert _count_rows(registry) == before
    assert record(registry, "m").number == 2
    registry.close()
    other.close()


BAD_URLS = [
    "://",
    "postgresql://ann:secret@host:port/db",
    "postgresql://[::1/db",
    "postgresql+psycopg2://ann:secret@host/db",
    "postgresql+asyncpg://host/db",
    "mysql://ann:secret@host/db",
    "nonsense://host/db",
    "http://host/db",
    "sqlite://",
    "sqlite:///:memory:",
    "sqlite://host/registry.db",
    "sqlite+aiosqlite:///registry.db",
    "sqlite:///file:registry.db?mode=ro&uri=true",
    "sqlite:///file::memory:?cache=shared&uri=true",
    "regis\x00try.db",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_url_that_cannot_be_used_is_refused_and_shows_no_password(tmp_path: Path, url: str) -> None:
    with pytest.raises(DatabaseUnavailable) as refused:
        Registry(url, tmp_path).models()
    assert refused.value.hint
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgres_goes_by_several_names(fresh_postgres: str, tmp_path: Path, scheme: str) -> None:
    registry = Registry(fresh_postgres.replace("postgresql+psycopg", scheme), tmp_path)
    assert registry.models() == []
    registry.close()


@pytest.mark.parametrize("name", ["registry.db", "what?.db", "50%20.db", "a b#c.db", "π.db", "a&b=c.db"])
def test_a_path_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    registry = Registry(str(tmp_path / "new" / name), tmp_path / "store")
    record(registry, "m")
    registry.close()
    assert (tmp_path / "new" / name).is_file()
    beside = {f"{name}{end}" for end in (".lock", ".lock.next", ".ballast")}
    assert {path.name for path in (tmp_path / "new").iterdir()} == {name, *beside}


def test_a_relative_path_stays_where_it_was_when_the_process_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    databases = [Database("sqlite:///registry.db"), Registry("registry.db", "store").database]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for database in databases:
        with database.write() as connection:
            connection.execute(text("SELECT 1"))
        database.close()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert (tmp_path / "registry.db.lock").exists()


@pytest.mark.parametrize("content", [b"no database, " * 1000, b"xy", b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_refused_and_left_alone(
    tmp_path: Path, content: bytes, subtests: pytest.Subtests
) -> None:
    path = tmp_path / "registry.db"
    path.write_bytes(content)
    _refuse_all(Registry(str(path), tmp_path / "store"), DatabaseUnavailable, subtests)
    assert path.read_bytes() == content


def test_a_place_where_no_file_can_be_is_refused(tmp_path: Path, subtests: pytest.Subtests) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "registry.db", tmp_path, Path("/proc/nowhere/registry.db")):
        with subtests.test(path=str(path)):
            registry = Registry(str(path), tmp_path / "store")
            with pytest.raises(DatabaseUnavailable):
                registry.models()
            registry.close()


def test_a_damaged_row_is_reported_as_one(registry: Registry) -> None:
    record(registry, "m")
    with registry.database.write() as connection:
        connection.execute(text("UPDATE versions SET findings = 'nonsense'"))
    with pytest.raises(DatabaseError, match="cannot be read"):
        registry.version("m")


FORK = """
    from registry import Registry
    registry = Registry(values["url"], values["store"])
    registry.models()
    child = os.fork()
    name = "parent" if child else "child"
    for _ in range(60):
        assert registry.resolve(f"{name}@v1").model == name
        registry.set_alias(f"{name}@best", name)
        registry.remove_alias(f"{name}@best")
    registry.close()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        print(registry.verify_events(), len(registry.events()))
        registry.close()
"""


def test_a_forked_child_gets_connections_of_its_own(any_registry: Registry, database_url: str) -> None:
    record(any_registry, "parent")
    record(any_registry, "child")
    assert run_code(FORK, url=database_url, store=any_registry.store.root) == ["None 242"]


@pytest.mark.parametrize("took_effect", [True, False])
def test_a_commit_that_fails_on_the_disk_is_looked_for(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, took_effect: bool
) -> None:
    """SQLite says "disk I/O error" of a COMMIT whose pages may be in the file all the same."""
    import sqlite3

    record(registry, "m")
    dialect = registry.database.engine.dialect
    commit = dialect.do_commit

    def fail(connection: sqlite3.Connection) -> None:
        monkeypatch.undo()
        if took_effect:
            commit(connection)
        raise sqlite3.OperationalError("disk I/O error")

    n_events = len(registry.events())
    monkeypatch.setattr(dialect, "do_commit", fail)
    if took_effect:
        assert registry.set_alias("m@best", "m").ref == "m@best"
    else:
        with pytest.raises(DatabaseUnavailable, match="disk"):
            registry.set_alias("m@best", "m")
    assert len(registry.aliases()) == took_effect
    assert len(registry.events()) == n_events + took_effect
    assert registry.verify_events() is None


def test_when_the_disk_stays_broken_the_outcome_is_unknown(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    record(registry, "m")

    def fail(connection: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(registry.database.engine.dialect, "do_commit", fail)
    with pytest.raises(OutcomeUnknown) as told:
        registry.set_alias("m@best", "m")
    assert "audit log" in str(told.value.hint)
    monkeypatch.undo()
    registry.set_alias("m@best", "m")
    assert registry.verify_events() is None
