"""A database one schema older than the code can be read, gives the same answers, and stays as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import alembic.command
import alembic.script
import pytest
from sqlalchemy import text

from registry import Registry, older_schema
from registry.errors import SchemaOutdated, SchemaTooNew
from registry.older_schema import READABLE
from registry.schema import SCHEMA_REVISION, make_alembic_config, migration_connection
from tests.records import record
from tests.test_schema import _dump
from tests.transfers import add, fill, open_registry


def _downgrade(registry: Registry, revision: str) -> None:
    with migration_connection(registry._unprepared) as connection:
        config = make_alembic_config()
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, revision)
    registry._unprepared.close()


def _read_all(registry: Registry) -> dict[str, Any]:
    """Ask everything that only reads."""
    refs = [one.ref for model in registry.models() for one in registry.history(model.name)]
    return {
        "models": list(registry.models()),
        "versions": [registry.version(ref) for ref in refs],
        "resolved": [registry.resolve(ref) for ref in (*refs, "merge@best", "run@step-20", "run@step~13", "run@last")],
        "aliases": list(registry.aliases()),
        "lineage": [repr(registry.lineage(ref).ancestors()) for ref in refs],
        "search": [one.ref for one in registry.search("descends_from('base') or tag.lang = 'en'")],
        "metrics": [one.ref for one in registry.search("metric.loss < 3")],
        "sql": repr(registry.sql("SELECT * FROM lineage_edge")),
        "events": list(registry.events()),
        "head": registry.events_head(),
        "verified": (registry.verify(read_data=True), registry.verify_events()),
        "paths": [sorted(path.name for path in registry.path(ref).iterdir()) for ref in refs if ref != "run@v1"],
        "diff": repr(registry.diff("base", "run@v2")),
    }


def test_the_revision_before_this_one_can_be_read_or_it_is_said_why_not() -> None:
    """Whoever adds a migration says in READABLE what may still be read; see there."""
    scripts = alembic.script.ScriptDirectory.from_config(make_alembic_config())
    script = scripts.get_revision(SCHEMA_REVISION)
    assert script is not None
    assert not READABLE or script.down_revision in READABLE
    assert {one.revision for one in scripts.walk_revisions()} > set(READABLE)


@pytest.mark.parametrize("revision", READABLE)
def test_reading_gives_the_same_answers_and_changes_nothing(
    revision: str, any_registry: Registry, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill(any_registry)
    expected = _read_all(any_registry)
    _downgrade(any_registry, revision)
    before = _dump(any_registry._unprepared)
    older = Registry(database_url, any_registry.store.root)
    assert _read_all(older) == expected
    assert f"has schema {revision}" in caplog.text and "can be read" in caplog.text
    assert older.status()["schema"] == revision
    older.close()
    assert _dump(any_registry._unprepared) == before


@pytest.mark.parametrize("revision", READABLE)
def test_nothing_is_written_until_it_is_upgraded(
    revision: str, any_registry: Registry, database_url: str, tmp_path: Path
) -> None:
    fill(any_registry)
    other = open_registry(tmp_path / "other")
    add(other, "more")
    other.export_versions("more", target=tmp_path / "more.tar")
    _downgrade(any_registry, revision)
    before = _dump(any_registry._unprepared)
    older = Registry(database_url, any_registry.store.root)
    uses: list[Callable[[], object]] = [
        lambda: older.register("new", "/nowhere"),  # before anything is read
        lambda: record(older, "base"),
        lambda: older.set_alias("base@x", "base"),
        lambda: older.retire("merge"),
        lambda: older.pull("more", source=other),
        lambda: other.push("more", to=older),
        lambda: older.import_versions(tmp_path / "more.tar"),
        lambda: older.validate("base", "structure"),
        lambda: older.set_gate("base@best", ["loss<3"]),
    ]
    for use in uses:
        with pytest.raises(SchemaOutdated, match=f"has schema {revision}.*can be read until then") as refused:
            use()
        assert "lensreg db upgrade" in str(refused.value.hint) and "Back it up" in str(refused.value.hint)
    assert _dump(any_registry._unprepared) == before
    assert other.pull("merge", source=older).received, "but it can be sent from"
    assert older.upgrade() == (revision, SCHEMA_REVISION)
    assert record(older, "base").ref == "base@v2", "the same object writes then"
    older.close()
    other.close()


def test_an_older_database_can_be_backed_up_before_it_is_upgraded(registry: Registry, tmp_path: Path) -> None:
    for revision, name in (("0009", "one"), ("0004", "two")):
        record(registry, "m")
        _downgrade(registry, revision)
        again = Registry(str(tmp_path / "registry.db"), tmp_path / "store")
        assert again.backup(tmp_path / f"{name}.db").n_events > 0
        copy = Registry(str(tmp_path / f"{name}.db"), tmp_path / "store")
        assert copy.status()["schema"] == revision
        copy.upgrade()
        assert copy.models()
        again.upgrade()
        again.close()
        copy.close()


def test_a_schema_that_is_older_than_that_is_refused(any_registry: Registry, database_url: str) -> None:
    record(any_registry, "m")
    _downgrade(any_registry, "0006")
    older = Registry(database_url, any_registry.store.root)
    with pytest.raises(SchemaOutdated) as refused:
        older.models()
    assert refused.value.fields == {"found": "0006", "needed": SCHEMA_REVISION}
    hint = str(refused.value.hint)
    assert ("lensreg backup" if any_registry._unprepared.is_sqlite else "pg_dump") in hint and "db upgrade" in hint
    older.close()


def test_what_cannot_be_made_up_is_refused(
    any_registry: Registry, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(any_registry, "m")
    _downgrade(any_registry, READABLE[0])
    monkeypatch.setattr(older_schema, "_write_null", lambda *_: "no_such_function()")
    older = Registry(database_url, any_registry.store.root)
    with pytest.raises(SchemaOutdated, match="needs"):
        older.models()
    older.close()


def test_a_newer_schema_is_left_alone_to_the_byte(registry: Registry, tmp_path: Path) -> None:
    record(registry, "m")
    with registry.database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'r99'"))
    registry.close()
    path = tmp_path / "registry.db"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    again = Registry(str(path), tmp_path / "store")
    uses: list[Callable[[], object]] = [
        again.models,
        again.upgrade,
        again.verify,
        lambda: again.resolve("m"),
        lambda: again.register("m", "/nowhere"),
        lambda: again.backup(tmp_path / "backup.db"),
    ]
    for use in uses:
        with pytest.raises(SchemaTooNew):
            use()
    again.doctor()
    again.close()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest and not (tmp_path / "backup.db").exists()
