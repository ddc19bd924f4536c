"""Resolve refs, and read models and versions: rows only, never torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, exists, func, not_, select

from registry.architecture import Architecture
from registry.errors import AmbiguousRef, UnknownRef, VersionRetired
from registry.refs import Ref, find_similar, parse_ref
from registry.tables import (
    aliases,
    architectures,
    blobs,
    models,
    tags,
    validations,
    version_files,
    version_parents,
    versions,
)
from registry.versions import Measurement, ModelSummary, Parent, StoredFile, Version, VersionSummary

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


def resolve_ref(connection: Connection, text: str) -> ResolvedRef:
    """Return the version that `text` means; a bare name is its newest version that is not retired.

    Raises UnknownRef and AmbiguousRef with the candidates. Other refs may mean a retired version.
    """
    ref = parse_ref(text)
    found = [ResolvedRef(*row) for row in connection.execute(_select_ref(ref))]
    if len(found) == 1:
        return found[0]
    if not found:
        raise _explain_miss(connection, text, ref)
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


def read_version(connection: Connection, version_id: int) -> Version:
    """Read everything that is recorded of one version."""
    row = connection.execute(
        select(versions, models.c.name.label("model"), architectures.c.fields)
        .join(models)
        .join(architectures)
        .where(versions.c.id == version_id)
    ).one()
    names = [name for name in Version.__dataclass_fields__ if name in row._fields]
    return Version(
        **{name: getattr(row, name) for name in names if name != "findings"},
        findings=tuple(row.findings),
        architecture=row.fields,
        files=_read_files(connection, version_id),
        parents=_read_parents(connection, [version_id])[version_id],
        aliases=_read_aliases(connection, [version_id])[version_id],
        tags={
            tag.key: tag.value
            for tag in connection.execute(select(tags).where(tags.c.version_id == version_id).order_by(tags.c.key))
        },
        validations=_read_validations(connection, version_id),
    )


def read_architecture(connection: Connection, version_id: int) -> tuple[str, Architecture]:
    """Return a version's ref and its canonical architecture."""
    row = connection.execute(
        select(models.c.name, versions.c.number, architectures.c.fields)
        .select_from(versions.join(models).join(architectures))
        .where(versions.c.id == version_id)
    ).one()
    return f"{row.name}@v{row.number}", Architecture(row.fields)


def list_models(connection: Connection) -> list[ModelSummary]:
    """List every model by name, with its newest version that is not retired."""
    live = and_(versions.c.model_id == models.c.id, versions.c.retired_at.is_(None))
    newest = select(func.max(versions.c.number)).where(live).correlate(models).scalar_subquery().label("newest")
    rows = connection.execute(
        select(
            models,
            select(func.count()).select_from(versions).where(live).correlate(models).scalar_subquery().label("n"),
            versions.c.number,
            versions.c.family,
            versions.c.n_parameters,
            _is_verified().label("verified"),
        )
        .select_from(models.outerjoin(versions, and_(versions.c.model_id == models.c.id, versions.c.number == newest)))
        .order_by(models.c.name)
    )
    return [
        ModelSummary(
            name=row.name,
            n_versions=row.n,
            newest=f"{row.name}@v{row.number}" if row.number else None,
            family=row.family,
            n_parameters=row.n_parameters,
            verified=bool(row.verified) if row.number else None,
            created_at=row.created_at,
        )
        for row in rows
    ]


def list_history(connection: Connection, model: str) -> list[VersionSummary]:
    """List all versions of one model, newest first, retired ones too."""
    query = _select_summaries().where(models.c.name == model).order_by(versions.c.number.desc())
    found = _summarise(connection, query)
    if not found:
        raise _explain_miss(connection, model, Ref("newest", model=model))
    return found


def summarise_ids(connection: Connection, ids: Iterable[int]) -> dict[int, VersionSummary]:
    """Return one line about each of these versions, by the database's id."""
    wanted = sorted(set(ids))
    summaries: dict[int, VersionSummary] = {}
    for start in range(0, len(wanted), 500):
        some = wanted[start : start + 500]
        query = _select_summaries().where(versions.c.id.in_(some)).order_by(versions.c.id)
        summaries |= zip(some, _summarise(connection, query), strict=True)
    return summaries


def find_same_weights(connection: Connection, weights_digest: str) -> list[str]:
    """Return the refs of all versions that hold exactly these weights, oldest first."""
    rows = connection.execute(
        select(models.c.name, versions.c.number)
        .join_from(versions, models)
        .where(versions.c.weights_digest == weights_digest)
        .order_by(versions.c.id)
    )
    return [f"{row.name}@v{row.number}" for row in rows]


def _summarise(connection: Connection, query: Select[Any]) -> list[VersionSummary]:
    """Run a query made of `_select_summaries` and put parents and aliases to its rows, some hundred at a time."""
    summaries = []
    for rows in connection.execute(query).partitions(500):
        ids = [row.id for row in rows]
        parents, names = _read_parents(connection, ids), _read_aliases(connection, ids)
        summaries += [
            VersionSummary(
                **{name: value for name, value in row._asdict().items() if name not in ("id", "verified")},
                verified=bool(row.verified),
                parents=tuple(parent.ref for parent in parents[row.id]),
                aliases=names[row.id],
            )
            for row in rows
        ]
    return summaries


def _select_summaries() -> Select[Any]:
    return select(
        versions.c.id,
        models.c.name.label("model"),
        versions.c.number,
        versions.c.step,
        versions.c.family,
        versions.c.n_parameters,
        versions.c.size_bytes,
        versions.c.weights_digest,
        _is_verified().label("verified"),
        versions.c.note,
        versions.c.created_at,
        versions.c.retired_at,
    ).join_from(versions, models)


def _is_verified() -> Any:
    of_parity = and_(validations.c.version_id == versions.c.id, validations.c.suite == "parity")
    return and_(exists().where(of_parity), not_(exists().where(of_parity, validations.c.passed.is_not(True))))


def _select_ref(ref: Ref) -> Select[Any]:
    query = select(versions.c.id, models.c.name, versions.c.number, versions.c.retired_at).join_from(versions, models)
    if ref.kind == "digest":
        prefix = ref.digest_prefix or ""
        digest = versions.c.weights_digest
        return query.where(digest >= prefix, digest <= prefix.ljust(64, "f")).order_by(versions.c.id)
    query = query.where(models.c.name == ref.model)
    if ref.kind == "number":
        return query.where(versions.c.number == ref.number)
    if ref.kind == "step":
        return query.where(versions.c.step == ref.step).order_by(versions.c.number)
    if ref.kind == "alias":
        open_alias = and_(
            aliases.c.version_id == versions.c.id, aliases.c.name == ref.alias, aliases.c.removed_at.is_(None)
        )
        return query.join(aliases, open_alias)
    return query.where(versions.c.retired_at.is_(None)).order_by(versions.c.number.desc()).limit(1)


def _explain_miss(connection: Connection, text: str, ref: Ref) -> UnknownRef | VersionRetired:
    """Make the error for a ref that means nothing, with what its writer may have meant."""
    if ref.kind == "digest":
        return UnknownRef(f"No version has weights that start with {text}.", hint="See: lensreg ls")
    known = connection.execute(select(models.c.name)).scalars().all()
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
        rows = connection.execute(of_model.where(versions.c.step.is_not(None)).order_by(versions.c.step)).all()
        nearest = sorted(rows, key=lambda row: abs(row.step - (ref.step or 0)))[:N_CANDIDATES]
        return list(dict.fromkeys(f"{ref.model}@step-{row.step}" for row in nearest))
    rows = connection.execute(of_model.order_by(versions.c.number.desc()).limit(N_CANDIDATES)).all()
    return [f"{ref.model}@v{row.number}" for row in rows]


def _read_files(connection: Connection, version_id: int) -> tuple[StoredFile, ...]:
    rows = connection.execute(
        select(version_files.c.name, version_files.c.role, blobs.c.digest, blobs.c.size_bytes)
        .join_from(version_files, blobs)
        .where(version_files.c.version_id == version_id)
        .order_by(version_files.c.name)
    )
    return tuple(StoredFile(*row) for row in rows)


def _read_parents(connection: Connection, ids: Sequence[int]) -> dict[int, tuple[Parent, ...]]:
    parent = versions.alias("parent")
    rows = connection.execute(
        select(
            version_parents.c.version_id,
            models.c.name,
            parent.c.number,
            version_parents.c.relation,
            version_parents.c.admitted_differences,
        )
        .select_from(
            version_parents.join(parent, parent.c.id == version_parents.c.parent_id).join(
                models, models.c.id == parent.c.model_id
            )
        )
        .where(version_parents.c.version_id.in_(ids))
        .order_by(version_parents.c.parent_id)
    )
    found: dict[int, tuple[Parent, ...]] = defaultdict(tuple)
    for row in rows:
        edge = Parent(f"{row.name}@v{row.number}", row.relation, tuple(row.admitted_differences))
        found[row.version_id] += (edge,)
    return found


def _read_aliases(connection: Connection, ids: Sequence[int]) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = defaultdict(tuple)
    rows: Iterable[Row[Any]] = connection.execute(
        select(aliases.c.version_id, aliases.c.name)
        .where(aliases.c.version_id.in_(ids), aliases.c.removed_at.is_(None))
        .order_by(aliases.c.name)
    )
    for row in rows:
        found[row.version_id] += (row.name,)
    return found


def _read_validations(connection: Connection, version_id: int) -> tuple[Measurement, ...]:
    columns = [validations.c[name] for name in Measurement.__dataclass_fields__]
    rows = connection.execute(select(*columns).where(validations.c.version_id == version_id).order_by(validations.c.id))
    return tuple(Measurement(*row) for row in rows)
