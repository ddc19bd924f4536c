"""Migrations raced by eight processes and killed at any time, and schemas that are not ours (F19, F20), on SQLite."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import alembic.command
from sqlalchemy import text

from registry import Registry, RegistryError
from registry.database import Database
from registry.errors import SchemaTooNew, SchemaUnknown
from registry.schema import make_alembic_config, migration_connection, read_revision, upgrade_schema
from tests.faults.scenario import Chance, Outcome, Scenario
from tests.records import record

N_PROCESSES = 8
OLD = "0004"  # a schema of long ago, with rows in it


def _set_up_old(folder: Path) -> Path:
    """Make a database with a few versions, taken back to an old schema."""
    path = folder / "old" / "registry.db"
    registry = Registry(str(path), folder / "store")
    for _ in range(3):
        record(registry, "m")
    with migration_connection(registry.database) as connection:
        config = make_alembic_config()
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, OLD)
    registry.close()
    return path


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


def _upgrade(path: Path) -> None:
    database = Database(f"sqlite:///{path}")
    upgrade_schema(database)
    database.close()


def _check(path: Path, n_versions: int, folder: Path) -> list[str]:
    """Say what is wrong with a database that was upgraded."""
    registry = Registry(str(path), folder / "store")
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


def _race(chance: Chance) -> Outcome:
    """Eight processes migrate at once, from nothing and from an old schema in turns."""
    old = _set_up_old(chance.folder)
    struck, broken = 0, []
    while not chance.is_over() and not broken:
        folder = chance.folder / f"{struck}"
        is_fresh = struck % 2 == 0
        path = folder / "registry.db" if is_fresh else _copy(old, folder)
        pids = _run_in_children([lambda path=path: _upgrade(path)] * N_PROCESSES)  # type: ignore[misc]
        failed = [status for pid in pids if (status := os.waitpid(pid, 0)[1])]
        if failed:
            broken.append(f"{len(failed)} of {N_PROCESSES} processes failed, from {'nothing' if is_fresh else OLD}")
        broken += _check(path, 0 if is_fresh else 3, chance.folder)
        shutil.rmtree(folder)
        struck += 1
    return Outcome(struck, tuple(broken), f"{N_PROCESSES} processes each time")


def _kill(chance: Chance) -> Outcome:
    """Kill a process at a random time in its migration; the next one has to finish it."""
    chooser = random.Random(chance.seed)
    old = _set_up_old(chance.folder)
    upgrade_schema(Database(f"sqlite:///{_copy(old, chance.folder / 'warm')}"))  # what it imports, children have
    started = time.monotonic()
    upgrade_schema(Database(f"sqlite:///{_copy(old, chance.folder / 'timed')}"))
    whole = time.monotonic() - started
    struck, n, broken = 0, 0, []
    while not chance.is_over() and not broken:
        folder = chance.folder / f"{n}"
        n += 1
        is_fresh = n % 2 == 0
        path = folder / "registry.db" if is_fresh else _copy(old, folder)
        (pid,) = _run_in_children([lambda path=path: _upgrade(path)])  # type: ignore[misc]
        time.sleep(chooser.uniform(0, whole * 1.2))
        os.kill(pid, signal.SIGKILL)
        struck += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        database = Database(f"sqlite:///{path}")
        try:
            before, _ = read_revision(database)
            if before not in (None, OLD) and before != read_revision(database)[0]:
                broken.append(f"half a migration was kept: {before}")
            upgrade_schema(database)
        except RegistryError as error:
            broken.append(f"after a kill: {error.message}")
        database.close()
        broken += _check(path, 0 if is_fresh else 3, chance.folder)
        shutil.rmtree(folder)
    return Outcome(struck, tuple(broken))


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


SCENARIOS = [
    Scenario("migrations raced", "F20", "eight processes migrate at once", _race, least=4),
    Scenario("migrations killed", "F20", "SIGKILL in a migration, then again", _kill, share=1.5, least=10),
    Scenario("schemas refused", "F19", "newer, lost and foreign schemas", _refuse, share=0.1, least=15),
]
