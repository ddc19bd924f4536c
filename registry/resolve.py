"""Resolve a ref to the one version it means, or say what there is instead; one indexed query when it hits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import BigInteger, Connection, ScalarSelect, Select, and_, bindparam, case, func, or_, select

from registry.database import Database
from registry.errors import AmbiguousRef, UnknownRef, VersionRetired
from registry.refs import Ref, RefKind, find_similar, parse_ref
from registry.tables import aliases, models, versions

N_CANDIDATES = 10


@dataclass(frozen=True)
class ResolvedRef:
    """The version that a ref means; `id` is the database's own."""

    id: int
    model: str
    number: int
    retired_at: datetime | None

    @property
    def ref(self) -> str:
        """`NAME@vN`."""
        return f"{self.model}@v{self.number}"


def resolve_at_once(database: Database, text: str) -> ResolvedRef:
    """Do what `resolve_ref` does in one statement if it hits; what there is instead is read in a transaction."""
    ref = parse_ref(text)
    with database.ask() as connection:
        found = _find(connection, ref)
    if len(found) == 1:
        return found[0]
    with database.read() as connection:
        return resolve_ref(connection, text)


def resolve_ref(connection: Connection, text: str) -> ResolvedRef:
    """Return the version that `text` means; a bare name is its newest version that is not retired.

    `@last` is the highest step, and `@step~N` the step nearest to N (the lower of two), of the versions that are not
    retired. Other refs may mean a retired version. Raises UnknownRef and AmbiguousRef with the candidates.
    """
    ref = parse_ref(text)
    found = _find(connection, ref)
    if len(found) == 1:
        return found[0]
    if not found:
        raise explain_miss(connection, text, ref)
    live = [one for one in found if one.retired_at is None]
    if len(live) == 1:
        return live[0]
    candidates = [one.ref for one in (live or found)]
    raise AmbiguousRef(
        f"{text} could mean {len(candidates)} versions: {', '.join(candidates[:N_CANDIDATES])}.",
        candidates=candidates,
        hint="Write the one you mean, as NAME@vN.",
    )


def refuse_retired(version: ResolvedRef) -> None:
    """Raise VersionRetired if the version was taken out of use."""
    if version.retired_at is not None:
        raise VersionRetired(
            f"{version.ref} was retired on {version.retired_at:%Y-%m-%d}.",
            hint=f"To use it again: lensreg restore {version.ref}",
        )


def _find(connection: Connection, ref: Ref) -> list[ResolvedRef]:
    prefix = ref.digest_prefix or ""
    values = {
        "model": ref.model,
        "number": ref.number,
        "step": ref.step,
        "alias": ref.alias,
        "first": prefix,
        "last": prefix.ljust(64, "f"),
    }
    return [ResolvedRef(*row) for row in connection.execute(_select_ref(ref.kind), values)]


@cache
def _select_ref(kind: RefKind) -> Select[Any]:
    """Make the query for one kind of ref, once: making it takes longer than running it."""
    query = select(versions.c.id, models.c.name, versions.c.number, versions.c.retired_at)
    if kind == "digest":
        digest = versions.c.weights_digest
        within = digest.between(bindparam("first"), bindparam("last"))
        return query.join_from(versions, models).where(within).order_by(versions.c.id)
    if kind == "alias":
        query = query.select_from(
            models.join(aliases, aliases.c.model_id == models.c.id).join(
                versions, versions.c.id == aliases.c.version_id
            )
        )
        is_it = and_(aliases.c.name == bindparam("alias"), aliases.c.removed_at.is_(None))
        return query.where(models.c.name == bindparam("model"), is_it)
    query = query.join_from(versions, models).where(models.c.name == bindparam("model"))
    if kind == "number":
        return query.where(versions.c.number == bindparam("number"))
    if kind == "step":
        return query.where(versions.c.step == bindparam("step")).order_by(versions.c.number)
    if kind in ("nearest", "last"):
        is_live = versions.c.retired_at.is_(None)
        return query.where(versions.c.step == _select_step(kind), is_live).order_by(versions.c.number)
    return query.where(versions.c.retired_at.is_(None)).order_by(versions.c.number.desc()).limit(1)


def _select_step(kind: RefKind) -> ScalarSelect[Any]:
    """Pick the step that a ref of kind "nearest" or "last" means; two looks into the index, however many steps."""
    of_model = select(models.c.id).where(models.c.name == bindparam("model")).scalar_subquery()
    steps = versions.alias("steps")
    live = and_(steps.c.model_id == of_model, steps.c.retired_at.is_(None))
    highest = select(func.max(steps.c.step)).where(live)
    if kind == "last":
        return highest.scalar_subquery()
    wanted = bindparam("step", type_=BigInteger)
    lowest = select(func.min(steps.c.step)).where(live)
    sides = select(
        highest.where(steps.c.step <= wanted).scalar_subquery().label("below"),
        lowest.where(steps.c.step >= wanted).scalar_subquery().label("above"),
    ).subquery()
    below, above = sides.c.below, sides.c.above
    is_below_nearer = or_(above.is_(None), wanted - below <= above - wanted)
    return select(case((is_below_nearer, below), else_=above)).scalar_subquery()


def explain_miss(connection: Connection, text: str, ref: Ref) -> UnknownRef | VersionRetired:
    """Make the error for a ref that means nothing, with what its writer may have meant."""
    if ref.kind == "digest":
        return UnknownRef(f"No version has weights that start with {text}.", hint="See: lensreg ls")
    known = connection.execute(select(models.c.name)).scalars().all()
    if not known:
        hint = "Nothing is registered in this registry yet. See which one it is: lensreg doctor"
        return UnknownRef(f"There is no model {ref.model!r}.", hint=hint)
    if ref.model not in known:
        similar = find_similar(ref.model or "", known)
        hint = f"Did you mean {' or '.join(similar)}?" if similar else "See what there is: lensreg ls"
        return UnknownRef(f"There is no model {ref.model!r}.", candidates=similar, hint=hint)
    candidates = _candidates_of(connection, ref)
    if ref.kind == "newest":
        return VersionRetired(
            f"Every version of {ref.model} was retired.",
            candidates=candidates,
            hint=f"See: lensreg history {ref.model}",
        )
    if ref.kind in ("nearest", "last"):
        return UnknownRef(
            f"{ref.model} has no version with a step that is in use.", hint=f"See: lensreg history {ref.model}"
        )
    what = {"number": "version", "step": "step", "alias": "alias"}[ref.kind]
    return UnknownRef(
        f"{ref.model} has no {what} {text.partition('@')[2]!r}.",
        candidates=candidates,
        hint=f"It has: {', '.join(candidates)}." if candidates else f"See: lensreg history {ref.model}",
    )


def _candidates_of(connection: Connection, ref: Ref) -> list[str]:
    of_model = select(versions.c.number, versions.c.step).join_from(versions, models).where(models.c.name == ref.model)
    if ref.kind == "alias":
        names = connection.execute(
            select(aliases.c.name)
            .join_from(aliases, models)
            .where(models.c.name == ref.model, aliases.c.removed_at.is_(None))
            .order_by(aliases.c.name)
        ).scalars()
        return [f"{ref.model}@{name}" for name in names]
    if ref.kind == "step":
        step = versions.c.step
        around = [
            *connection.execute(of_model.where(step < ref.step).order_by(step.desc()).limit(N_CANDIDATES)),
            *connection.execute(of_model.where(step > ref.step).order_by(step).limit(N_CANDIDATES)),
        ]
        nearest = sorted(around, key=lambda row: (abs(row.step - (ref.step or 0)), row.step))[:N_CANDIDATES]
        return list(dict.fromkeys(f"{ref.model}@step-{row.step}" for row in nearest))
    rows = connection.execute(of_model.order_by(versions.c.number.desc()).limit(N_CANDIDATES)).all()
    return [f"{ref.model}@v{row.number}" for row in rows]
