"""lineage_closure walks from each descendant it is asked for, and not from all; lineage_edge shows the evidence.

Revision: 0009, after 0008. A database cannot carry a filter into a recursive query, but it can into a join: here the
query is one for each version, which is left out if the version is.
"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

LINEAGE_EDGE = """
CREATE VIEW lineage_edge AS
SELECT
    e.version_id AS child_id,
    cm.name || '@v' || c.number AS child,
    e.parent_id,
    pm.name || '@v' || p.number AS parent,
    e.relation,
    e.admitted_differences{more}
FROM version_parents e
JOIN versions c ON c.id = e.version_id
JOIN models cm ON cm.id = c.model_id
JOIN versions p ON p.id = e.parent_id
JOIN models pm ON pm.id = p.model_id
"""
ANCESTORS = """
    WITH RECURSIVE walk (ancestor_id, depth) AS (
        SELECT e.parent_id, 1 FROM version_parents e WHERE e.version_id = d.id
        UNION
        SELECT e.parent_id, w.depth + 1 FROM walk w JOIN version_parents e ON e.version_id = w.ancestor_id
    )
    SELECT ancestor_id, min(depth) AS depth FROM walk GROUP BY ancestor_id
"""
CLOSURE = {
    # SQLite has no LATERAL; a table of JSON may be made of what stands before it
    "sqlite": f"""
CREATE VIEW lineage_closure AS
SELECT
    d.id AS descendant_id,
    dm.name || '@v' || d.number AS descendant,
    a.id AS ancestor_id,
    am.name || '@v' || a.number AS ancestor,
    json_extract(w.value, '$[1]') AS depth
FROM versions d
JOIN models dm ON dm.id = d.model_id
JOIN json_each((SELECT json_group_array(json_array(ancestor_id, depth)) FROM ({ANCESTORS}))) w
JOIN versions a ON a.id = json_extract(w.value, '$[0]')
JOIN models am ON am.id = a.model_id
""",
    "postgresql": f"""
CREATE VIEW lineage_closure AS
SELECT
    d.id AS descendant_id,
    dm.name || '@v' || d.number AS descendant,
    w.ancestor_id,
    am.name || '@v' || a.number AS ancestor,
    w.depth
FROM versions d
JOIN models dm ON dm.id = d.model_id
CROSS JOIN LATERAL ({ANCESTORS}) w
JOIN versions a ON a.id = w.ancestor_id
JOIN models am ON am.id = a.model_id
""",
}
FORMER_CLOSURE = """
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


def upgrade() -> None:
    """Make both views anew."""
    _replace(LINEAGE_EDGE.format(more=",\n    e.evidence"), CLOSURE[op.get_bind().dialect.name])


def downgrade() -> None:
    """Make them as they were."""
    _replace(LINEAGE_EDGE.format(more=""), FORMER_CLOSURE)


def _replace(lineage_edge: str, lineage_closure: str) -> None:
    connection = op.get_bind()
    for name, statement in (("lineage_edge", lineage_edge), ("lineage_closure", lineage_closure)):
        connection.exec_driver_sql(f"DROP VIEW {name}")
        connection.exec_driver_sql(statement)
