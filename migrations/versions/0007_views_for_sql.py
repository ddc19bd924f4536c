"""Views for people who prefer SQL: versions, lineage, measurements and events, with refs instead of ids.

Revision: 0007, after 0006.
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

VERSION_OVERVIEW = """
CREATE VIEW version_overview AS
SELECT
    v.id AS version_id,
    m.name || '@v' || v.number AS ref,
    m.name AS model,
    v.number AS version,
    v.step,
    v.family,
    v.layout,
    v.dtype,
    v.n_parameters,
    v.size_bytes,
    v.fingerprint,
    v.weights_digest,
    v.vocabulary_digest,
    v.source_kind,
    v.source_location,
    v.note,
    EXISTS (SELECT 1 FROM validations x WHERE x.version_id = v.id AND x.suite = 'parity')
        AND NOT EXISTS (
            SELECT 1 FROM validations x WHERE x.version_id = v.id AND x.suite = 'parity' AND x.passed IS NOT TRUE
        ) AS verified,
    (
        SELECT x.value FROM validations x
        WHERE x.version_id = v.id AND x.suite = 'parity' AND x.metric = 'raw' ORDER BY x.id DESC LIMIT 1
    ) AS parity_raw,
    (
        SELECT x.value FROM validations x
        WHERE x.version_id = v.id AND x.suite = 'parity' AND x.metric = 'processed' ORDER BY x.id DESC LIMIT 1
    ) AS parity_processed,
    ({parents}) AS parents,
    ({aliases}) AS aliases,
    ({tags}) AS tags,
    s.fields AS architecture,
    v.created_at,
    v.retired_at
FROM versions v
JOIN models m ON m.id = v.model_id
JOIN architectures s ON s.fingerprint = v.fingerprint
"""
PARENTS = """
FROM version_parents e JOIN versions p ON p.id = e.parent_id JOIN models n ON n.id = p.model_id
WHERE e.version_id = v.id
"""
ALIASES = "FROM aliases a WHERE a.version_id = v.id AND a.removed_at IS NULL"
LISTS = {
    "sqlite": {
        "parents": "SELECT group_concat(ref, ', ') FROM "
        f"(SELECT n.name || '@v' || p.number AS ref {PARENTS} ORDER BY e.parent_id)",
        "aliases": f"SELECT group_concat(name, ', ') FROM (SELECT a.name {ALIASES} ORDER BY a.name)",
        "tags": "SELECT json_group_object(key, value) FROM "
        "(SELECT t.key, t.value FROM tags t WHERE t.version_id = v.id ORDER BY t.key)",
    },
    "postgresql": {
        "parents": f"SELECT string_agg(n.name || '@v' || p.number, ', ' ORDER BY e.parent_id) {PARENTS}",
        "aliases": f"SELECT string_agg(a.name, ', ' ORDER BY a.name) {ALIASES}",
        "tags": "SELECT coalesce(json_object_agg(t.key, t.value ORDER BY t.key), CAST('{}' AS json)) "
        "FROM tags t WHERE t.version_id = v.id",
    },
}
LINEAGE_EDGE = """
CREATE VIEW lineage_edge AS
SELECT
    e.version_id AS child_id,
    cm.name || '@v' || c.number AS child,
    e.parent_id,
    pm.name || '@v' || p.number AS parent,
    e.relation,
    e.admitted_differences
FROM version_parents e
JOIN versions c ON c.id = e.version_id
JOIN models cm ON cm.id = c.model_id
JOIN versions p ON p.id = e.parent_id
JOIN models pm ON pm.id = p.model_id
"""
LINEAGE_CLOSURE = """
CREATE VIEW lineage_closure AS
WITH RECURSIVE walk (descendant_id, ancestor_id, depth) AS (
    SELECT version_id, parent_id, 1 FROM version_parents
    UNION
    SELECT e.version_id, w.ancestor_id, w.depth + 1 FROM walk w JOIN version_parents e ON e.parent_id = w.descendant_id
),
shortest AS (
    SELECT descendant_id, ancestor_id, min(depth) AS depth FROM walk GROUP BY descendant_id, ancestor_id
)
SELECT
    w.descendant_id,
    dm.name || '@v' || d.number AS descendant,
    w.ancestor_id,
    am.name || '@v' || a.number AS ancestor,
    w.depth
FROM shortest w
JOIN versions d ON d.id = w.descendant_id
JOIN models dm ON dm.id = d.model_id
JOIN versions a ON a.id = w.ancestor_id
JOIN models am ON am.id = a.model_id
"""
VALIDATION_RESULT = """
CREATE VIEW validation_result AS
SELECT
    x.version_id,
    m.name || '@v' || v.number AS ref,
    m.name AS model,
    v.number AS version,
    x.suite,
    x.metric,
    x.value,
    x.bound,
    x.passed,
    x.unit,
    x.dtype,
    x.n_samples,
    x.dataset_digest,
    NOT EXISTS (
        SELECT 1 FROM validations y
        WHERE y.version_id = x.version_id AND y.suite = x.suite AND y.metric = x.metric AND y.id > x.id
    ) AS is_newest,
    x.created_at
FROM validations x
JOIN versions v ON v.id = x.version_id
JOIN models m ON m.id = v.model_id
"""
EVENT_LOG = """
CREATE VIEW event_log AS
SELECT sequence, at, actor, action, subject, details, environment, previous_digest, digest
FROM events
"""


def upgrade() -> None:
    """Make the views."""
    connection = op.get_bind()
    overview = VERSION_OVERVIEW.format(**LISTS[connection.dialect.name])
    for statement in (overview, LINEAGE_EDGE, LINEAGE_CLOSURE, VALIDATION_RESULT, EVENT_LOG):
        connection.exec_driver_sql(statement)


def downgrade() -> None:
    """Drop them."""
    for name in ("version_overview", "lineage_edge", "lineage_closure", "validation_result", "event_log"):
        op.get_bind().exec_driver_sql(f"DROP VIEW {name}")
