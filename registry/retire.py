"""Retire versions and restore them: taken out of use by name, with every byte and row kept."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, select

from registry.aliases import list_aliases, remove_alias
from registry.ancestry import read_relatives
from registry.audit import append_event
from registry.errors import VersionInUse
from registry.refs import Ref, check_model_name, check_text
from registry.resolve import ResolvedRef, explain_miss, resolve_ref
from registry.tables import models, versions

N_NAMED = 10


def retire_version(connection: Connection, ref: str, *, force: bool = False, reason: str | None = None) -> ResolvedRef:
    """Retire a version: bare names pass it by, and loading it is refused.

    Raises VersionInUse if its model is protected, and while aliases or descendants that are not retired depend on it;
    with `force` its aliases are removed and descendants keep it as their parent. Retiring twice changes nothing.
    """
    check_text(reason or "", "reason")
    version = resolve_ref(connection, ref)
    if version.retired_at is not None:
        return version
    refuse_protected(connection, version.model)
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
    return mark_retired(connection, version, {"reason": reason, "forced": force})


def mark_retired(connection: Connection, version: ResolvedRef, details: Mapping[str, Any]) -> ResolvedRef:
    """Write that a version is retired, and its event; whether it may be was asked before."""
    registered = connection.execute(select(versions.c.created_at).where(versions.c.id == version.id)).scalar_one()
    now = max(datetime.now(UTC), registered)  # a clock may have gone back
    connection.execute(versions.update().where(versions.c.id == version.id).values(retired_at=now))
    append_event(connection, "version.retired", version.ref, details)
    return ResolvedRef(version.id, version.model, version.number, now)


def protect_model(connection: Connection, model: str, *, protect: bool = True) -> None:
    """Protect a model, so that none of its versions can be retired, or stop doing so; twice changes nothing."""
    check_model_name(model)
    row = connection.execute(select(models.c.id, models.c.protected_at).where(models.c.name == model)).first()
    if row is None:
        raise explain_miss(connection, model, Ref("newest", model=model))
    if (row.protected_at is not None) == protect:
        return
    since = datetime.now(UTC) if protect else None
    connection.execute(models.update().where(models.c.id == row.id).values(protected_at=since))
    append_event(connection, "model.protected" if protect else "model.unprotected", model, {})


def refuse_protected(connection: Connection, model: str) -> None:
    """Raise VersionInUse if the model is protected."""
    since = connection.execute(select(models.c.protected_at).where(models.c.name == model)).scalar()
    if since is not None:
        raise VersionInUse(
            f"{model} is protected since {since:%Y-%m-%d}; none of its versions can be retired.",
            users=[],
            hint=f"To change that: lensreg protect {model} --off",
        )


def restore_version(connection: Connection, ref: str) -> ResolvedRef:
    """Put a retired version back to use; restoring one that is in use changes nothing."""
    version = resolve_ref(connection, ref)
    if version.retired_at is None:
        return version
    connection.execute(versions.update().where(versions.c.id == version.id).values(retired_at=None))
    append_event(connection, "version.restored", version.ref, {})
    return ResolvedRef(version.id, version.model, version.number, None)
