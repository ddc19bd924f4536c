"""Retire versions and restore them: taken out of use by name, with every byte and row kept."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection

from registry.aliases import list_aliases, remove_alias
from registry.audit import append_event
from registry.errors import VersionInUse
from registry.lineage import read_relatives
from registry.refs import check_text
from registry.resolve import ResolvedRef, resolve_ref
from registry.tables import versions

N_NAMED = 10


def retire_version(connection: Connection, ref: str, *, force: bool = False, reason: str | None = None) -> ResolvedRef:
    """Retire a version: bare names pass it by, and loading it is refused.

    Raises VersionInUse while aliases or descendants that are not retired depend on it; with `force` its aliases are
    removed and descendants keep it as their parent. Retiring twice changes nothing.
    """
    check_text(reason or "", "reason")
    version = resolve_ref(connection, ref)
    if version.retired_at is not None:
        return version
    held_by = [span.ref for span in list_aliases(connection, version.model) if span.version == version.ref]
    below = [one.version for one in read_relatives(connection, version.id, upwards=False)]
    users = [*held_by, *(one.ref for one in below if one.retired_at is None)]
    if users and not force:
        more = f" and {len(users) - N_NAMED:,} more" if len(users) > N_NAMED else ""
        raise VersionInUse(
            f"{version.ref} is in use by {', '.join(users[:N_NAMED])}{more}.",
            users=users,
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
