"""Retire versions and restore them: taken out of use by name, with every byte and row kept."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, select

from registry.aliases import list_aliases, remove_alias
from registry.audit import append_event
from registry.errors import VersionInUse
from registry.query import ResolvedRef, resolve_ref
from registry.tables import models, version_parents, versions


def retire_version(connection: Connection, ref: str, *, force: bool = False, reason: str | None = None) -> ResolvedRef:
    """Retire a version: bare names pass it by, and loading it is refused.

    Raises VersionInUse while aliases or descendants that are not retired depend on it; with `force` its aliases are
    removed and descendants keep it as their parent. Retiring twice changes nothing.
    """
    version = resolve_ref(connection, ref)
    if version.retired_at is not None:
        return version
    held_by = [span.ref for span in list_aliases(connection, version.model) if span.version == version.ref]
    children = _list_children(connection, version.id)
    if (held_by or children) and not force:
        raise VersionInUse(
            f"{version.ref} is in use by {', '.join([*held_by, *children])}.",
            users=[*held_by, *children],
            hint="Move the aliases and retire the descendants first, or say --force: "
            "aliases are then removed, and descendants keep it as their parent.",
        )
    for alias in held_by:
        remove_alias(connection, alias)
    now = datetime.now(UTC)
    connection.execute(versions.update().where(versions.c.id == version.id).values(retired_at=now))
    append_event(connection, "version.retired", version.ref, {"reason": reason, "forced": force})
    return ResolvedRef(version.id, version.model, version.number, now)


def restore_version(connection: Connection, ref: str) -> ResolvedRef:
    """Put a retired version back to use; restoring one that is in use changes nothing."""
    version = resolve_ref(connection, ref)
    if version.retired_at is None:
        return version
    connection.execute(versions.update().where(versions.c.id == version.id).values(retired_at=None))
    append_event(connection, "version.restored", version.ref, {})
    return ResolvedRef(version.id, version.model, version.number, None)


def _list_children(connection: Connection, version_id: int) -> list[str]:
    rows = connection.execute(
        select(models.c.name, versions.c.number)
        .select_from(version_parents.join(versions, versions.c.id == version_parents.c.version_id).join(models))
        .where(version_parents.c.parent_id == version_id, versions.c.retired_at.is_(None))
        .order_by(versions.c.id)
    )
    return [f"{row.name}@v{row.number}" for row in rows]
