"""SQL of one's own: it reads, within a time and a number of rows, and cannot do anything else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from registry import Registry
from registry.errors import InvalidInput, InvalidSql, QueryTimeout
from tests.patience import must_not_hang
from tests.processes import run_code
from tests.records import record, record_all
from tests.search_registry import fill


@pytest.fixture
def filled(any_registry: Registry) -> Registry:
    fill(any_registry)
    return any_registry


def test_a_query_gives_columns_rows_and_whether_there_is_more(filled: Registry) -> None:
    result = filled.sql("SELECT ref, model AS ref, step FROM version_overview WHERE model = 'run' ORDER BY version; ")
    assert result.columns == ("ref", "ref", "step")
    assert result.rows[0] == ("run@v1", "run", 100) and len(result) == 4 and not result.is_cut
    assert result.to_dicts()[1] == {"ref": "run@v2", "ref_2": "run", "step": 200}
    cut = filled.sql("SELECT ref FROM version_overview ORDER BY version_id", limit=2)
    assert (cut.rows, cut.is_cut) == ((("base@v1",), ("base@v2",)), True)
    whole = filled.sql("SELECT ref FROM version_overview", limit=12)
    assert len(whole) == 12 and not whole.is_cut
    assert filled.sql("SELECT 'a%b', 3 % 2 -- a remark").rows == (("a%b", 1),)
    assert filled.sql("WITH x AS (SELECT 1 AS n) SELECT n FROM x").rows == ((1,),)
    assert filled.sql("VALUES (1), (2)").rows == ((1,), (2,))
    assert filled.sql("SELECT ref FROM version_overview WHERE 1 = 2").columns == ("ref",)
    assert len(list(filled.sql("SELECT * FROM version_overview, event_log"))) > 150


MORE_THAN_READING = [
    "DELETE FROM tags",
    "INSERT INTO tags VALUES (1, 'a', 'b')",
    "UPDATE versions SET note = 'x'",
    "DROP TABLE tags",
    "DROP VIEW event_log",
    "CREATE TABLE x (y INTEGER)",
    "CREATE TEMP TABLE x (y INTEGER)",
    "SELECT 1; DELETE FROM tags",
    "SELECT 1; SELECT 2",
    "COMMIT",
    "ROLLBACK; DELETE FROM tags",
    "BEGIN",
    "WITH gone AS (DELETE FROM tags RETURNING key) SELECT * FROM gone",
    "INSERT INTO tags VALUES (1, 'a', 'b') RETURNING key",
    "",
    "-- nothing",
    "nonsense",
    "SELECT * FROM nowhere",
    "SELECT 'a\x00b'",
    "SELECT '\ud800'",
    "SELECT 1 -- " + "x" * 100_000,
]
OF_SQLITE = [
    "ATTACH DATABASE '{folder}/other.db' AS other",
    "VACUUM INTO '{folder}/other.db'",
    "VACUUM",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA query_only = OFF",
    "PRAGMA writable_schema = ON",
    "SELECT * FROM pragma_journal_mode('DELETE')",
    "SELECT load_extension('{folder}/x.so')",
    "SELECT writefile('{folder}/other.db', 'x')",
    "SELECT length(zeroblob(900000000))",
    "REINDEX",
    "ANALYZE",
    "DETACH DATABASE main",
    "SAVEPOINT x",
]
OF_POSTGRES = [
    "COPY (SELECT 1) TO PROGRAM 'touch {folder}/other.db'",
    "COPY (SELECT 1) TO '{folder}/other.db'",
    "SET transaction_read_only = off",
    "SELECT set_config('transaction_read_only', 'off', false)",
    "SELECT nextval('models_id_seq')",
    "SELECT * FROM tags FOR UPDATE",
    "SELECT 1 INTO x",
    "DO $$ BEGIN DELETE FROM tags; END $$",
    "LISTEN x",
    "DECLARE x CURSOR FOR SELECT 1",
    "1; DELETE FROM tags",
    "EXPLAIN ANALYZE DELETE FROM tags",
    "SELECT lo_create(0)",
]


def test_nothing_but_reading_is_possible(filled: Registry, tmp_path: Path, subtests: pytest.Subtests) -> None:
    head = filled.events()[0].digest
    own = OF_SQLITE if filled.database.is_sqlite else OF_POSTGRES
    tags = filled.sql("SELECT * FROM tags ORDER BY version_id, key").rows
    for statement in (one.replace("{folder}", str(tmp_path)) for one in [*MORE_THAN_READING, *own]):
        with subtests.test(statement=statement[:80]):
            with pytest.raises(InvalidSql) as refused:
                filled.sql(statement)
            assert refused.value.hint
            assert not (tmp_path / "other.db").exists()
    assert filled.sql("SELECT * FROM tags ORDER BY version_id, key").rows == tags
    assert filled.events()[0].digest == head and filled.verify_events() is None
    record(filled, "after")  # the registry's own connections can still write
    assert filled.search_refs("model = 'after'") == ["after@v1"]


def test_a_view_that_is_misspelt_is_suggested(registry: Registry) -> None:
    with pytest.raises(InvalidSql) as refused:
        registry.sql("SELECT * FROM version_overveiw")
    assert refused.value.hint == "Did you mean version_overview?"


ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT {what} FROM n"


def test_a_query_that_takes_too_long_is_stopped(filled: Registry, subtests: pytest.Subtests) -> None:
    statements = [ENDLESS.format(what="count(*)"), ENDLESS.format(what="x")]
    if not filled.database.is_sqlite:
        statements.append("SELECT pg_sleep(60)")
    for statement in statements:
        with subtests.test(statement=statement):
            with must_not_hang(), pytest.raises(QueryTimeout, match=r"more than 0\.5 s") as refused:
                filled.sql(statement, timeout=0.5)
            assert refused.value.seconds == 0.5 and "--timeout" in str(refused.value.hint)
    assert filled.sql(ENDLESS.format(what="x"), limit=3).rows == ((1,), (2,), (3,))


def test_what_cannot_be_asked_for(filled: Registry) -> None:
    for arguments in ({"timeout": 0}, {"timeout": -1}, {"timeout": float("nan")}, {"timeout": 1e9}, {"limit": 0}):
        with pytest.raises(InvalidInput):
            filled.sql("SELECT 1", **arguments)  # type: ignore[arg-type]


def test_values_are_plain(any_registry: Registry) -> None:
    """Whatever the drivers give: JSON and CSV can say it."""
    if any_registry.database.is_sqlite:
        row = any_registry.sql("SELECT x'00ff', 1.5, 9223372036854775807, NULL, 9e999").rows[0]
        assert row == ("00ff", 1.5, 2**63 - 1, None, float("inf"))
    else:
        row = any_registry.sql(
            "SELECT '\\x00ff'::bytea, 1.5::numeric, 2::numeric, NULL, 'NaN'::float8, '2026-01-31'::date, "
            "'{\"a\": [1]}'::json, ARRAY[1, 2], true, interval '1 day', '2026-01-31 12:00+01'::timestamptz"
        ).rows[0]
        assert row[:9] == ("00ff", 1.5, 2, None, None, "2026-01-31", {"a": [1]}, [1, 2], True)
        assert isinstance(row[9], str) and row[10].isoformat() == "2026-01-31T11:00:00+00:00"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_database_in_a_folder_that_cannot_be_written_is_read(registry: Registry) -> None:
    record_all(registry, {"model": "m"})
    registry.close()
    folder = Path(str(registry.database.url.database)).parent
    folder.chmod(0o555)
    try:
        again = Registry(registry.database.url.database)
        assert again.sql("SELECT ref FROM version_overview").rows == (("m@v1",),)
    finally:
        folder.chmod(0o755)


def test_reading_while_somebody_writes_does_not_wait(registry: Registry) -> None:
    record_all(registry, {"model": "m"})
    with registry.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM tags")
        assert registry.sql("SELECT ref FROM version_overview").rows == (("m@v1",),)


def test_neither_torch_nor_the_parser_is_imported_for_it(registry: Registry) -> None:
    record_all(registry, {"model": "m"})
    code = """
import sys
from registry import Registry
one = Registry(values["url"], values["store"])
assert len(one.sql("SELECT * FROM version_overview")) == 1
print([name for name in ("torch", "lark", "pandas", "alembic", "psycopg", "sqlalchemy.orm") if name in sys.modules])
"""
    assert run_code(code, url=registry.database.url.database, store=registry.store.root) == ["[]"]
