"""The SQL views: their columns are those that are described, and they say what Python says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import alembic.command
import pytest
import sqlalchemy
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import inspect, text

from registry import Registry
from registry.database import Database
from registry.schema import make_alembic_config, migration_connection, read_revision
from registry.views import VIEWS, lay_views_aside
from tests.search_registry import SPECS, fill


@pytest.fixture
def filled(any_registry: Registry) -> tuple[Registry, list[dict[str, Any]]]:
    return any_registry, fill(any_registry)


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def test_the_views_have_the_columns_that_are_described(any_registry: Registry) -> None:
    with any_registry.database.read() as connection:
        found = inspect(connection)
        assert set(found.get_view_names()) == set(VIEWS)
        for view, columns in VIEWS.items():
            assert [column["name"] for column in found.get_columns(view)] == list(columns), view


def test_version_overview_says_what_version_says(filled: tuple[Registry, list[dict[str, Any]]]) -> None:
    registry, rows = filled
    overview = registry.sql("SELECT * FROM version_overview ORDER BY version_id").to_dicts()
    assert [row["ref"] for row in overview] == [row["ref"] for row in rows]
    for row in overview:
        version = registry.version(row["ref"])
        for name in (
            "model", "step", "family", "layout", "dtype", "n_parameters", "size_bytes", "fingerprint", "weights_digest",
            "vocabulary_digest", "source_kind", "source_location", "note",
        ):  # fmt: skip
            assert row[name] == getattr(version, name), name
        assert row["version"] == version.number
        assert bool(row["verified"]) == version.is_verified
        for metric in ("raw", "processed"):
            measured = version.parity.get(metric)
            assert row[f"parity_{metric}"] == (measured.value if measured else None)
        assert (row["parents"] or "").split(", ") == [parent.ref for parent in version.parents] or not version.parents
        assert (row["aliases"] or "") == ", ".join(version.aliases)
        assert _json(row["tags"]) == dict(version.tags)
        assert _json(row["architecture"]) == dict(version.architecture)
        assert str(row["created_at"])[:19] == str(version.created_at)[:19]
        assert (row["retired_at"] is None) == (version.retired_at is None)


def test_lineage_views_say_what_lineage_says(filled: tuple[Registry, list[dict[str, Any]]]) -> None:
    registry, rows = filled
    edges = registry.sql("SELECT child, parent, relation, admitted_differences FROM lineage_edge")
    assert sorted(edge[:3] for edge in edges) == sorted(
        (rows[at]["ref"], rows[parent]["ref"], relation)
        for at, spec in enumerate(SPECS)
        for parent, relation in spec.parents
    )
    assert all(_json(edge[3]) == [] for edge in edges)
    closure = registry.sql("SELECT descendant, ancestor, depth FROM lineage_closure")
    assert len({row[:2] for row in closure}) == len(closure) > len(edges)
    expected = {
        (row["ref"], one.version.ref, one.depth)
        for row in rows
        for one in registry.lineage(row["ref"], down=False).ancestors()
    }
    assert set(closure) == expected
    ids = dict(registry.sql("SELECT ref, version_id FROM version_overview").rows)
    for row in registry.sql("SELECT descendant_id, descendant, ancestor_id, ancestor FROM lineage_closure"):
        assert row == (ids[row[1]], row[1], ids[row[3]], row[3])


def test_lineage_closure_reads_the_ancestors_of_the_descendant_it_is_asked_for(
    filled: tuple[Registry, list[dict[str, Any]]],
) -> None:
    """And so it takes no longer in a large registry: no part of the plan goes through all edges."""
    registry, _ = filled
    explain = "EXPLAIN QUERY PLAN" if registry.database.is_sqlite else "EXPLAIN"
    with registry.database.write() as connection:
        if not registry.database.is_sqlite:  # with few rows reading all is quickest
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        plan = connection.exec_driver_sql(f"{explain} SELECT * FROM lineage_closure WHERE descendant_id = 3").all()
    said = "\n".join(str(row[-1]) for row in plan)
    assert "version_parents" in said or " e " in said
    assert not re.search(r"SCAN (e|version_parents|d)\b|Seq Scan on (version_parents|versions)", said), said


def test_validation_result_says_what_version_says(filled: tuple[Registry, list[dict[str, Any]]]) -> None:
    registry, rows = filled
    seen = 0
    for row in rows:
        found = registry.sql(
            "SELECT suite, metric, value, bound, passed, unit, dtype, n_samples, dataset_digest, is_newest "
            f"FROM validation_result WHERE ref = '{row['ref']}' ORDER BY created_at, suite, metric"
        ).to_dicts()
        measured = registry.version(row["ref"]).validations
        assert len(found) == len(measured)
        seen += len(found)
        names = ("suite", "metric", "bound", "passed", "unit", "n_samples", "dataset_digest")
        for one in found:
            one["passed"] = None if one["passed"] is None else bool(one["passed"])  # SQLite says 1 and 0
        said = [repr([one[name] for name in names]) for one in found]
        assert sorted(said) == sorted(repr([getattr(one, name) for name in names]) for one in measured)
        newest = [one for one in found if one["is_newest"] and one["metric"] == "loss"]
        assert [one["value"] for one in newest] == [row["metric.loss"]] * len(newest)
        assert len(newest) == ("loss" in {m.metric for m in measured})
    assert seen > 20


def test_event_log_says_what_events_say(filled: tuple[Registry, list[dict[str, Any]]]) -> None:
    registry, _ = filled
    found = registry.sql("SELECT * FROM event_log ORDER BY sequence DESC").to_dicts()
    events = registry.events()
    assert len(found) == len(events) > len(SPECS)
    for row, one in zip(found, events, strict=True):
        for name in ("sequence", "actor", "action", "subject", "previous_digest", "digest"):
            assert row[name] == getattr(one, name)
        assert _json(row["details"]) == one.details and _json(row["environment"]) == one.environment


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


def _migrate(database: Database, command: Any, revision: str) -> None:
    with migration_connection(database) as connection:
        config = make_alembic_config()
        config.attributes["connection"] = connection
        command(config, revision)


FIRST_ROWS = [
    "INSERT INTO models (id, name, created_at) VALUES (1, 'old', '2026-01-01 00:00:00')",
    "INSERT INTO architectures VALUES ('f', '{\"d_model\": 64}')",
    *(
        "INSERT INTO versions (id, model_id, number, family, fingerprint, weights_digest, layout, dtype, n_parameters, "
        "size_bytes, source_kind, source_location, findings, operation_id, created_at) VALUES "
        f"({number}, 1, {number}, 'gpt2', 'f', 'w{number}', 'huggingface', 'float32', 1, 2, 'huggingface', '/', '[]', "
        f"'o{number}', '2026-01-01 00:00:00.000000')"
        for number in (1, 2)
    ),
    "INSERT INTO version_parents (version_id, parent_id, relation, admitted_differences) "
    "VALUES (2, 1, 'finetuned', '[]')",
]


def test_the_first_schema_with_rows_in_it_becomes_the_newest_and_back(
    database: Database, database_url: str, any_registry: Registry
) -> None:
    _migrate(database, alembic.command.upgrade, "0001")
    with database.write() as connection:
        for statement in FIRST_ROWS:
            connection.exec_driver_sql(statement)
    any_registry.upgrade()
    assert any_registry.sql("SELECT descendant, ancestor, depth FROM lineage_closure").rows == (
        ("old@v2", "old@v1", 1),
    )
    assert any_registry.search_refs("descends_from('old@v1') and d_model = 64") == ["old@v2"]
    _migrate(database, alembic.command.downgrade, "0001")
    assert read_revision(database)[0] == "0001"
    with database.read() as connection:
        assert inspect(connection).get_view_names() == []
        assert connection.execute(text("SELECT count(*) FROM versions")).scalar() == 2


def test_a_later_migration_lays_the_views_aside(filled: tuple[Registry, list[dict[str, Any]]]) -> None:
    """Without it SQLite refuses to put an altered table in the old one's place, and Postgres to alter the type."""
    registry, rows = filled
    database = registry.database

    def alter(connection: sqlalchemy.Connection) -> None:
        operations = Operations(MigrationContext.configure(connection))
        recreate = "always" if database.is_sqlite else "never"
        with operations.batch_alter_table(
            "versions", recreate=recreate, table_kwargs={"sqlite_autoincrement": True}
        ) as batch:
            batch.alter_column("family", existing_type=sqlalchemy.String(64), type_=sqlalchemy.String(80))

    with pytest.raises(Exception, match="view"), migration_connection(database) as connection:
        alter(connection)
    before = registry.sql("SELECT * FROM version_overview ORDER BY version_id").rows
    with migration_connection(database) as connection:
        with lay_views_aside(connection):
            assert inspect(connection).get_view_names() == []
            alter(connection)
        if not database.is_sqlite:  # there the block is a transaction by itself
            connection.commit()
    assert registry.sql("SELECT * FROM version_overview ORDER BY version_id").rows == before
    assert len(before) == len(rows)
