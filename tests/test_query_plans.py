"""Every statement finds its rows by an index: what the database itself says of each that a call really executed."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, select, text

from benchmarks.big_registry import Spec, digest_of, fill, name_model
from registry import Registry, RegistryError
from registry.query import find_same_weights, read_newest
from registry.record import find_existing, record_fetched
from registry.resolve import resolve_ref
from registry.tables import absent_parents, versions
from registry.transfer.receive import Terms, receive
from registry.transfer.shipment import RegistryShipment
from registry.verify_store import verify_store
from registry.versions import StoredFile
from tests.conftest import make_database
from tests.records import record

M = name_model(3)
LAST = 99  # versions of each model
WEIGHTS = digest_of((f"{M}@v7", "weights"))


@dataclass
class Log:
    """What was sent to the database while somebody listened."""

    statements: list[tuple[str, Any]] = field(default_factory=list)

    def note(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        if re.match(r"SELECT|WITH|UPDATE|DELETE|INSERT .*\bSELECT\b", statement):
            self.statements.append((statement, parameters[0] if many else parameters))


@pytest.fixture(scope="module")
def log() -> Iterator[Log]:
    made = Log()
    event.listen(Engine, "before_cursor_execute", made.note)  # before any engine is made, or it would not notice
    yield made
    event.remove(Engine, "before_cursor_execute", made.note)


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, log: Log) -> Iterator[Registry]:
    """A registry of 2,000 versions, on SQLite and on Postgres."""
    folder = tmp_path_factory.mktemp("plans")
    with contextlib.ExitStack() as stack:
        url = str(folder / "registry.db")
        if request.param == "postgres":
            url = stack.enter_context(make_database(request.getfixturevalue("postgres_url")))
        registry = Registry(url, folder / "store")
        fill(registry, Spec(n_versions=20 * LAST + 1, n_models=20, depth=10))
        _declare_parents(registry)
        yield registry
        registry.close()


def _declare_parents(registry: Registry) -> None:
    """Let every version declare a parent that is absent: of an empty table any plan is as good as another."""
    row: dict[str, Any] = {"revision": "main", "relation": "finetuned", "allowed": []}
    with registry.database.write() as connection:
        ids = connection.execute(select(versions.c.id)).scalars()
        rows = [row | {"version_id": one, "repo": f"org/{one}", "digest": digest_of(("absent", one))} for one in ids]
        connection.execute(absent_parents.insert(), rows)
        connection.exec_driver_sql("ANALYZE")


# what reads all of a table, because all of it was asked for
WHOLE = {
    "models()": {"models"},
    "count_models()": {"models"},
    "aliases()": {"aliases", "models"},
    "verify_events()": {"events"},
    "verify(REF)": {"events", "pk_events"},  # the chain is one
    "set_alias()": {"gates"},  # of an empty table any plan is as good as another
    "register(absent parent)": {"versions"},  # for a commit, which is in the JSON of where they are from: see absent.py
}
# looking for what somebody may have meant goes through the models' names
SUGGESTS = {"models"}


def _in_read(function: Callable[..., object], *args: object) -> Callable[[Registry], object]:
    def call(registry: Registry) -> object:
        with registry.database.read() as connection:
            return function(connection, *args)

    return call


def _fetch_rows(registry: Registry) -> None:
    version = record(registry, "lazy")
    with registry.database.write() as connection:
        version_id = resolve_ref(connection, version.ref).id
        connection.execute(versions.update().where(versions.c.id == version_id).values(weights_digest=None))
        assert record_fetched(connection, version_id, digest_of("fetched"), [])


def _register_with_absent_parent(registry: Registry) -> None:
    record(registry, "tuned-of-absent", absent=[f"org/later@{'a' * 40}"])


FILES = [StoredFile("model.safetensors", "weights", digest_of((f"{M}@v7", "file")), 4000)]
FINGERPRINT = "0" * 64


def _send(registry: Registry) -> None:
    """Read what is sent, and plan how it would be received, in this very registry."""
    with tempfile.TemporaryDirectory() as scratch:
        refs = [f"{M}@v7", f"{M}@v9"]
        shipment = RegistryShipment(registry.database, registry.store, refs, alone=False, scratch=Path(scratch))
        receive(registry.database, registry.store, shipment, Terms(dry_run=True, aliases=True))


CALLS: dict[str, Callable[[Registry], object]] = {
    "resolve(NAME)": lambda one: one.resolve(M),
    "resolve(NAME@vN)": lambda one: one.resolve(f"{M}@v7"),
    "resolve(NAME@step-N)": lambda one: one.resolve(f"{M}@step-70"),
    "resolve(NAME@ALIAS)": lambda one: one.resolve(f"{M}@best"),
    "resolve(sha256:PREFIX)": lambda one: one.resolve(f"sha256:{WEIGHTS[:12]}"),
    "resolve(unknown digest)": lambda one: one.resolve("sha256:000000000000"),
    "resolve(unknown model)": lambda one: one.resolve("team-1/modl"),
    "resolve(unknown number)": lambda one: one.resolve(f"{M}@v4321"),
    "resolve(unknown step)": lambda one: one.resolve(f"{M}@step-71"),
    "resolve(unknown alias)": lambda one: one.resolve(f"{M}@bst"),
    "version()": lambda one: one.version(M),
    "models()": lambda one: one.models(),
    "models(page)": lambda one: one.models(limit=5, after=M),
    "count_models()": lambda one: one.count_models(),
    "history(page)": lambda one: one.history(M, limit=5, before=50),
    "count_versions()": lambda one: one.count_versions(M),
    "history()": lambda one: one.history(M),
    "history(unknown)": lambda one: one.history("nothing"),
    "push(dry_run)": _send,
    "path()": lambda one: one.path(M),
    "load()": lambda one: one._find(M),
    "lineage()": lambda one: one.lineage(f"{M}@v5"),
    "aliases()": lambda one: one.aliases(),
    "aliases(NAME)": lambda one: one.aliases(M),
    "aliases(NAME@ALIAS)": lambda one: one.aliases(f"{M}@best"),
    "aliases(history)": lambda one: one.aliases(M, history=True),
    "set_alias()": lambda one: one.set_alias(f"{M}@best", f"{M}@v7"),
    "remove_alias()": lambda one: one.remove_alias(f"{M}@first"),
    "remove_alias(unknown)": lambda one: one.remove_alias(f"{M}@nothing"),
    "retire()": lambda one: one.retire(f"{M}@v20"),
    "retire(in use)": lambda one: one.retire(f"{M}@v21"),
    "restore()": lambda one: one.restore(f"{M}@v20"),
    "events()": lambda one: one.events(limit=50),
    "events(NAME)": lambda one: one.events(M, limit=50),
    "events(NAME@vN)": lambda one: one.events(f"{M}@v7", limit=50),
    "events(page)": lambda one: one.events(limit=5, before=50),
    "events(page of NAME)": lambda one: one.events(M, limit=5, before=500),
    "verify_events()": lambda one: one.verify_events(),
    "register": lambda one: record(one, M, parents=[f"{M}@v7"], tags={"a": "b"}),
    "register(unchanged)": _in_read(find_existing, M, FINGERPRINT, WEIGHTS, FILES),
    "register(unchanged, lazy)": _in_read(find_existing, M, FINGERPRINT, None, FILES),
    "register(same weights)": _in_read(find_same_weights, WEIGHTS),
    "register(newest)": _in_read(read_newest, M),
    "fetch": _fetch_rows,
    "weigh(REF)": lambda one: one.weigh(f"{M}@v8"),
    "register(absent parent)": _register_with_absent_parent,
    "join_parent()": lambda one: one.join_parent(f"{M}@v9", f"{M}@v3"),
    "join_parent(unknown)": lambda one: one.join_parent("tuned-of-absent", f"{M}@v3", declared="org/nothing@main"),
    "protect()": lambda one: one.protect(M),
    "plan_retention(steps)": lambda one: one.plan_retention(M, keep_last=2, keep_every=100),
    "plan_retention(best)": lambda one: one.plan_retention(M, keep_best=3, by="parity.raw"),
    "attest()": lambda one: one.attest(f"{M}@v7"),
    "verify_attestation()": lambda one: one.verify_attestation(f"{M}@v7", "/no/key.pub"),
    "search(model)": lambda one: one.search(f"model = '{M}' and step >= 100", limit=5),
    "search(page)": lambda one: one.search(limit=5, after=f"{M}@v7"),
    "search(descends_from)": lambda one: one.search(f"descends_from('{M}@v3')", limit=5),
    "search(ancestor_of)": lambda one: one.search(f"ancestor_of('{M}@v9')", limit=5),
    "search(metric of model)": lambda one: one.search(f"model = '{M}' and metric.raw < 1", limit=5),
    "search(digest)": lambda one: one.search(f"weights_digest = '{WEIGHTS}'"),
    "changed_tensors()": lambda one: one.changed_tensors(f"{M}@v7", f"{M}@v8"),
    "verify(REF)": lambda one: verify_store(one.database, one.store, [f"{M}@v7"]),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_statement_finds_its_rows_by_an_index(filled: Registry, log: Log, name: str) -> None:
    log.statements.clear()
    with contextlib.suppress(RegistryError):
        CALLS[name](filled)
    executed = list(log.statements)
    assert executed, "nothing was executed"
    suggests = SUGGESTS if "unknown" in name else set()
    for statement, parameters in executed:
        if re.search(r"FROM (\w+) ORDER BY \1\.sequence DESC\s+LIMIT", statement):
            continue  # the few newest, at the end of the index
        scanned = find_scans(filled, statement, parameters)
        once = {"models"} if ONCE_FOR_A_MODEL in statement else set()
        free = WHOLE.get(name, set()) | suggests | once | FREE
        assert scanned <= free, f"{scanned} read from end to end by:\n{statement}"


def test_a_scan_is_found(filled: Registry) -> None:
    """The test above can fail."""
    assert find_scans(filled, "SELECT * FROM versions WHERE note = 'x'", ()) == {"versions"}
    assert find_scans(filled, "SELECT digest FROM events WHERE substr(subject, 1, 3) = 'abc'", ()) == {"events"}
    assert find_scans(filled, "SELECT * FROM versions WHERE id = 3", ()) == set()


# of few rows, or held in memory
FREE = {"alembic_version", "architectures", "walk", "walk_1", "anon_1"}
# whether a new model's name is another's but for case: once for a model, not for a version
ONCE_FOR_A_MODEL = "lower(models.name) IN"


def find_scans(registry: Registry, statement: str, parameters: Any) -> set[str]:
    """Return the tables that the database would read from end to end."""
    with registry.database.write() as connection:
        if registry.database.is_sqlite:
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            return {match[1] for row in rows if (match := re.match(r"SCAN (?!CONSTANT ROW)(\w+)", row.detail))}
        # with few rows reading all is quickest, so take away every way that an index could be missed
        for way in ("seqscan", "hashjoin", "mergejoin"):
            connection.execute(text(f"SET LOCAL enable_{way} = off"))
        (plan,) = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
    return set(_walk_plan(plan["Plan"]))


def _walk_plan(node: dict[str, Any]) -> Iterator[str]:
    reads_all = node["Node Type"] == "Seq Scan" or ("Index" in node["Node Type"] and "Index Cond" not in node)
    if reads_all and "Relation Name" in node and not node["Relation Name"].startswith("pg_"):
        yield node["Relation Name"]
    if node["Node Type"] == "Bitmap Index Scan" and "Index Cond" not in node:
        yield node["Index Name"]
    for one in node.get("Plans", []):
        yield from _walk_plan(one)
