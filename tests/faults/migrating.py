"""Migrations raced by eight processes and killed at any time, and schemas that are not ours (F19, F20)."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import alembic.command
from sqlalchemy import text

from registry import Registry, RegistryError
from registry.database import Database
from registry.errors import SchemaTooNew, SchemaUnknown
from registry.schema import SCHEMA_REVISION, make_alembic_config, migration_connection, read_revision, upgrade_schema
from tests.faults.postgres import open_server
from tests.faults.scenario import Chance, Outcome, Scenario
from tests.records import record

N_PROCESSES = 8
OLD, _N_OLD = "0004", 3  # a schema of long ago, with rows in it


@dataclass(frozen=True)
class _Databases:
    """Where databases to migrate come from: empty ones, copies of one with an old schema; each is dropped after use."""

    make: Callable[[], str]
    copy_old: Callable[[], str]
    drop: Callable[[str], None]


@contextlib.contextmanager
def _use_files(folder: Path) -> Iterator[_Databases]:
    """Use SQLite."""
    old = folder / "old" / "registry.db"
    _set_up_old(str(old), folder)
    numbers = itertools.count()

    def make() -> str:
        return f"sqlite:///{folder / str(next(numbers)) / 'registry.db'}"

    def copy_old() -> str:
        return f"sqlite:///{_copy(old, folder / str(next(numbers)))}"

    yield _Databases(make, copy_old, lambda url: shutil.rmtree(Path(url.removeprefix("sqlite:///")).parent))


@contextlib.contextmanager
def _use_server(folder: Path) -> Iterator[_Databases]:
    """Use Postgres."""
    with open_server() as server:
        old = server.make_database()
        _set_up_old(old, folder)
        yield _Databases(server.make_database, lambda: server.make_database(old), server.drop_database)


_Use = Callable[[Path], AbstractContextManager[_Databases]]


def _set_up_old(url: str, folder: Path) -> None:
    """Make a database with a few versions, taken back to an old schema."""
    registry = Registry(url, folder / "store")
    for _ in range(_N_OLD):
        record(registry, "m")
    with migration_connection(registry.database) as connection:
        config = make_alembic_config()
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, OLD)
    registry.close()


def _copy(path: Path, folder: Path) -> Path:
    folder.mkdir()
    return Path(shutil.copy(path, folder / "registry.db"))


def _run_in_children(works: list[Callable[[], None]]) -> list[int]:
    """Fork a child for each and return their pids; each waits for all, so that they begin at one moment."""
    barrier = multiprocessing.get_context("fork").Barrier(len(works))
    pids = []
    for work in works:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                barrier.wait(30)
                work()
                code = 0
            except RegistryError as error:
                os.write(2, f"{error}\n".encode())
            finally:
                os._exit(code)
        pids.append(pid)
    return pids


def _upgrade(url: str) -> None:
    database = Database(url)
    upgrade_schema(database)
    database.close()


def _check(url: str, n_versions: int, folder: Path) -> list[str]:
    """Say what is wrong with a database that was upgraded."""
    registry = Registry(url, folder / "store")
    try:
        found = len(registry.history("m")) if n_versions else 0
        broken = [] if found == n_versions else [f"{found} of {n_versions} versions are left"]
        with migration_connection(registry.database) as connection:
            config = make_alembic_config()
            config.attributes["connection"] = connection
            alembic.command.check(config)
        if registry.verify_events() is not None:
            broken.append("the audit trail does not hold")
        record(registry, "after")
    except RegistryError as error:
        return [error.message]
    except alembic.command.util.CommandError as error:
        return [f"the tables are not those of the code: {error}"]
    finally:
        registry.close()
    return broken


def _race(chance: Chance, use: _Use) -> Outcome:
    """Eight processes migrate at once, from nothing and from an old schema in turns."""
    struck, broken = 0, []
    with use(chance.folder) as databases:
        while not chance.must_end(struck) and not broken:
            is_fresh = struck % 2 == 0
            url = databases.make() if is_fresh else databases.copy_old()
            pids = _run_in_children([partial(_upgrade, url)] * N_PROCESSES)
            failed = [status for pid in pids if (status := os.waitpid(pid, 0)[1])]
            if failed:
                broken.append(f"{len(failed)} of {N_PROCESSES} processes failed, from {'nothing' if is_fresh else OLD}")
            broken += _check(url, 0 if is_fresh else _N_OLD, chance.folder)
            databases.drop(url)
            struck += 1
    return Outcome(struck, tuple(broken), f"{N_PROCESSES} processes each time")


def _kill(chance: Chance, use: _Use) -> Outcome:
    """Kill a process at a random time in its migration; the next one has to finish it."""
    chooser = random.Random(chance.seed)
    struck, n, broken = 0, 0, []
    with use(chance.folder) as databases:
        _upgrade(databases.copy_old())  # what it imports, children have
        timed, started = databases.copy_old(), time.monotonic()
        _upgrade(timed)
        whole = time.monotonic() - started
        while not chance.must_end(struck) and not broken:
            n += 1
            is_fresh = n % 2 == 0
            url = databases.make() if is_fresh else databases.copy_old()
            (pid,) = _run_in_children([partial(_upgrade, url)])
            time.sleep(chooser.uniform(0, whole * 1.2))
            os.kill(pid, signal.SIGKILL)
            struck += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
            broken += _finish(url)
            broken += _check(url, 0 if is_fresh else _N_OLD, chance.folder)
            databases.drop(url)
    return Outcome(struck, tuple(broken))


def _finish(url: str) -> list[str]:
    """Migrate after a kill, and say what is wrong with what was left."""
    database = Database(url)
    try:
        before, _ = read_revision(database)
        if before not in (None, OLD, SCHEMA_REVISION):
            return [f"half a migration was kept: {before}"]
        upgrade_schema(database)
    except RegistryError as error:
        return [f"after a kill: {error.message}"]
    finally:
        database.close()
    return []


def _refuse(chance: Chance) -> Outcome:
    """A newer schema, one that is lost, somebody else's: refused, and the file stays the same to the byte."""
    path = chance.folder / "registry.db"
    registry = Registry(str(path), chance.folder / "store")
    record(registry, "m")
    registry.close()
    struck, broken = 0, []
    for number, (statement, error) in enumerate(
        [
            ("UPDATE alembic_version SET version_num = 'r99'", SchemaTooNew),
            ("DROP TABLE alembic_version", SchemaUnknown),
            ("DELETE FROM alembic_version", SchemaUnknown),
        ]
    ):
        copy = _copy(path, chance.folder / f"{number}")
        database = Database(f"sqlite:///{copy}")
        with database.write() as connection:
            connection.execute(text(statement))
        database.close()
        before = hashlib.sha256(copy.read_bytes()).hexdigest()
        again = Registry(str(copy), chance.folder / "store")
        uses: list[Callable[[], object]] = [
            again.models,
            again.upgrade,
            lambda again=again: again.resolve("m"),  # type: ignore[misc]
            lambda again=again: again.retire("m"),  # type: ignore[misc]
            again.verify,
        ]
        for use in uses:
            struck += 1
            try:
                use()
                broken.append(f"{statement}: it was used all the same")
            except error:
                pass
        again.doctor()
        again.close()
        if hashlib.sha256(copy.read_bytes()).hexdigest() != before:
            broken.append(f"{statement}: the file was changed")
    return Outcome(struck, tuple(broken))


def race_files(chance: Chance) -> Outcome:
    """Race on SQLite."""
    return _race(chance, _use_files)


def race_server(chance: Chance) -> Outcome:
    """Race on Postgres."""
    return _race(chance, _use_server)


def kill_on_files(chance: Chance) -> Outcome:
    """Kill on SQLite."""
    return _kill(chance, _use_files)


def kill_on_server(chance: Chance) -> Outcome:
    """Kill on Postgres."""
    return _kill(chance, _use_server)


SCENARIOS = [
    Scenario("migrations raced", "F20", "eight processes migrate at once, SQLite", race_files, 0.7, 4, least_long=20),
    Scenario("migrations raced, Postgres", "F20", "the same on Postgres", race_server, 0.7, 2, least_long=20),
    Scenario("migrations killed", "F20", "SIGKILL in a migration, then again", kill_on_files, 0.7, 10, least_long=20),
    Scenario("migrations killed, Postgres", "F20", "the same on Postgres", kill_on_server, 0.7, 4, least_long=20),
    Scenario("schemas refused", "F19", "newer, lost and foreign schemas", _refuse, share=0.1, least=15),
]
