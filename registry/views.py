"""The SQL views: what each column is, and how a migration that alters their tables lays them aside meanwhile.

Their SQL is in migrations/; a test holds it to the columns that are described here and in docs/search.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from sqlalchemy import Connection, text

VIEWS: Mapping[str, Mapping[str, str]] = {
    "version_overview": {
        "version_id": "the database's own id, to join views by",
        "ref": "`NAME@vN`",
        "model": "the model's name",
        "version": "the version's number",
        "step": "the training step",
        "family": "the model family",
        "layout": "`huggingface` or `hooked`",
        "dtype": "the weights' dtype",
        "n_parameters": "how many parameters",
        "size_bytes": "bytes of all its files",
        "fingerprint": "the architecture's fingerprint",
        "weights_digest": "the weights digest; null while they are not fetched",
        "vocabulary_digest": "the vocabulary's digest; null without a tokenizer",
        "source_kind": "what it was registered from",
        "source_location": "the path or Hub id it was registered from",
        "note": "the note",
        "verified": "whether parity was measured and within its bound",
        "parity_raw": "the newest parity of raw weights",
        "parity_processed": "the newest parity of processed weights",
        "parents": "refs of its parents, with commas",
        "aliases": "its aliases as they stand, with commas",
        "tags": "its tags, as a JSON object",
        "architecture": "the architecture's fields, as a JSON object",
        "created_at": "when it was registered, in UTC",
        "retired_at": "when it was retired; null while it is in use",
    },
    "lineage_edge": {
        "child_id": "version_id of the child",
        "child": "ref of the child",
        "parent_id": "version_id of the parent",
        "parent": "ref of the parent",
        "relation": "what the child is to the parent",
        "admitted_differences": "the architecture fields that were allowed to differ, as JSON",
        "evidence": "what the weights say of it, as JSON; null if they were not compared",
    },
    "lineage_closure": {
        "descendant_id": "version_id of the descendant",
        "descendant": "ref of the descendant",
        "ancestor_id": "version_id of the ancestor",
        "ancestor": "ref of the ancestor",
        "depth": "generations between them, by the shortest way",
    },
    "validation_result": {
        "version_id": "the database's own id of the version",
        "ref": "`NAME@vN`",
        "model": "the model's name",
        "version": "the version's number",
        "suite": "what it is part of: `parity`, …",
        "metric": "what was measured",
        "value": "the value; null is unmeasured",
        "bound": "the bound it was held to",
        "passed": "whether it was within the bound",
        "unit": "the unit",
        "dtype": "the precision it was measured in",
        "n_samples": "over how many samples",
        "dataset_digest": "the digest of the data",
        "is_newest": "whether it is the version's newest of this suite and metric",
        "created_at": "when it was recorded, in UTC",
    },
    "event_log": {
        "sequence": "the place in the chain, from 1",
        "at": "when, in UTC, as the text that was digested",
        "actor": "who",
        "action": "what was done: `version.registered`, …",
        "subject": "to what",
        "details": "the facts, as JSON",
        "environment": "from where, as JSON",
        "previous_digest": "the digest of the event before",
        "digest": "the digest of the event",
    },
}
"""View -> column -> what it is."""


@contextlib.contextmanager
def lay_views_aside(connection: Connection) -> Iterator[None]:
    """Drop the views for the length of the block, and put them back as they were.

    Every migration that alters a table which a view reads must do so: SQLite alters a table by renaming another into
    its place, which it refuses while a view would break, and Postgres keeps the types of columns that a view shows.
    On SQLite views of other people are laid aside, too.
    """
    views = _read_sqlite(connection) if connection.dialect.name == "sqlite" else _read_postgres(connection)
    for name in views:
        connection.exec_driver_sql(f'DROP VIEW "{name}"')
    yield
    for definition in views.values():
        connection.exec_driver_sql(definition)


def _read_sqlite(connection: Connection) -> dict[str, str]:
    rows = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'view' ORDER BY rowid"))
    return {row.name: row.sql for row in rows}


def _read_postgres(connection: Connection) -> dict[str, str]:
    rows = connection.execute(
        text(
            "SELECT viewname, definition FROM pg_views WHERE schemaname = current_schema() AND viewname = ANY(:names)"
        ),
        {"names": list(VIEWS)},
    )
    return {row.viewname: f'CREATE VIEW "{row.viewname}" AS {row.definition}' for row in rows}
