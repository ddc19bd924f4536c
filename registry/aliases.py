"""Aliases: movable names for versions, and what each meant at any time."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, func, select

from registry.audit import append_event
from registry.errors import InvalidRef, UnknownRef
from registry.refs import check_instant, check_model_name, find_similar, parse_ref
from registry.requirements import read_gate, refuse_unmet
from registry.resolve import refuse_retired, resolve_ref
from registry.tables import aliases, models, versions
from registry.versions import AliasSpan


def set_alias(connection: Connection, alias_ref: str, version_ref: str) -> AliasSpan:
    """Make `NAME@ALIAS` mean the version that `version_ref` means now; setting it to what it means changes nothing."""
    model, alias = split_alias(alias_ref)
    version = resolve_ref(connection, version_ref)
    refuse_retired(version)
    if version.model != model:
        raise InvalidRef(
            f"{alias_ref} cannot mean {version.ref}: an alias names a version of its own model.",
            hint=f"Write lensreg alias set {version.model}@{alias} {version_ref}",
        )
    model_id = connection.execute(select(models.c.id).where(models.c.name == model)).scalar_one()
    current = list_aliases(connection, alias_ref)
    if current and current[0].version == version.ref:
        return current[0]
    refuse_unmet(connection, version.id, version.ref, read_gate(connection, model, alias), what=f"{model}@{alias}")
    now = _tell_time(connection, model_id, alias)
    _close(connection, model_id, alias, now)
    connection.execute(aliases.insert().values(model_id=model_id, name=alias, version_id=version.id, set_at=now))
    before = current[0].version if current else None
    append_event(connection, "alias.set", version.ref, {"alias": f"{model}@{alias}", "before": before})
    return AliasSpan(model, alias, version.ref, now, None)


def remove_alias(connection: Connection, alias_ref: str) -> AliasSpan:
    """Take an alias away; its history stays."""
    model, alias = split_alias(alias_ref)
    current = list_aliases(connection, alias_ref)
    if not current:
        names = [span.ref for span in list_aliases(connection, model)]
        similar = find_similar(alias_ref, names)
        raise UnknownRef(
            f"There is no alias {alias_ref}.",
            candidates=similar,
            hint=f"Did you mean {similar[0]}?" if similar else "See: lensreg alias list",
        )
    model_id = connection.execute(select(models.c.id).where(models.c.name == model)).scalar_one()
    now = _tell_time(connection, model_id, alias)
    _close(connection, model_id, alias, now)
    append_event(connection, "alias.removed", current[0].version, {"alias": f"{model}@{alias}"})
    return AliasSpan(model, alias, current[0].version, current[0].set_at, now)


def list_aliases(
    connection: Connection, name: str | None = None, *, history: bool = False, at: datetime | None = None
) -> list[AliasSpan]:
    """List aliases by name: those of now, those that stood `at` an instant, or with `history` all there ever were.

    `name` is a model, `NAME`, or one alias, `NAME@ALIAS`.
    """
    query = (
        select(models.c.name, aliases.c.name, versions.c.number, aliases.c.set_at, aliases.c.removed_at)
        .select_from(
            aliases.join(models, models.c.id == aliases.c.model_id).join(
                versions, versions.c.id == aliases.c.version_id
            )
        )
        .order_by(models.c.name, aliases.c.name, aliases.c.id)
    )
    if name is not None and "@" in name:
        model, alias = split_alias(name)
        query = query.where(models.c.name == model, aliases.c.name == alias)
    elif name is not None:
        query = query.where(models.c.name == check_model_name(name))
    if at is not None:
        at = check_instant(at)
        query = query.where(aliases.c.set_at <= at, (aliases.c.removed_at.is_(None)) | (aliases.c.removed_at > at))
    elif not history:
        query = query.where(aliases.c.removed_at.is_(None))
    return [
        AliasSpan(model, alias, f"{model}@v{number}", set_at, removed_at)
        for model, alias, number, set_at, removed_at in connection.execute(query)
    ]


def _tell_time(connection: Connection, model_id: int, alias: str) -> datetime:
    """Return the time, which for one alias never goes back, whatever clocks do: no span ends before it began."""
    latest = connection.execute(
        select(func.max(aliases.c.set_at), func.max(aliases.c.removed_at)).where(
            aliases.c.model_id == model_id, aliases.c.name == alias
        )
    ).one()
    instants: list[datetime | None] = [datetime.now(UTC), *latest]
    return max(one for one in instants if one is not None)


def _close(connection: Connection, model_id: int, alias: str, now: datetime) -> None:
    connection.execute(
        aliases.update()
        .where(aliases.c.model_id == model_id, aliases.c.name == alias, aliases.c.removed_at.is_(None))
        .values(removed_at=now)
    )


def split_alias(alias_ref: str) -> tuple[str, str]:
    """Return the model and the alias of `NAME@ALIAS`. Raises InvalidRef."""
    ref = parse_ref(alias_ref)
    if ref.kind != "alias" or ref.model is None or ref.alias is None:
        raise InvalidRef(f"{alias_ref!r} names no alias.", hint="Write NAME@ALIAS, as in pirate@best.")
    return ref.model, ref.alias
