"""Read models and versions as people get them: rows only, never torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import BindParameter, Connection, Row, Select, and_, bindparam, case, exists, func, select

from registry.refs import Ref, check_limit
from registry.resolve import explain_miss
from registry.tables import (
    absent_parents,
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
from registry.versions import (
    PARITY_METRICS,
    AbsentParent,
    Measurement,
    ModelSummary,
    Parent,
    StoredFile,
    Version,
    VersionSummary,
)

_parent = versions.alias("parent")

# Queries that are asked often are made once: to make one takes longer than to run it.
_PARTS = {
    "parents": version_parents,
    "absent_parents": absent_parents,
    "aliases": aliases,
    "tags": tags,
    "validations": validations,
}
_VERSION = (
    select(
        versions,
        models.c.name.label("model"),
        architectures.c.fields.label("architecture"),
        *(exists().where(table.c.version_id == versions.c.id).label(f"has_{part}") for part, table in _PARTS.items()),
    )
    .join(models)
    .join(architectures)
    .where(versions.c.id == bindparam("id"))
)
_FILES = (
    select(version_files.c.name, version_files.c.role, blobs.c.digest, blobs.c.size_bytes)
    .join_from(version_files, blobs)
    .where(version_files.c.version_id == bindparam("id"))
    .order_by(version_files.c.name)
)
_PARENTS = (
    select(
        models.c.name,
        _parent.c.number,
        version_parents.c.relation,
        version_parents.c.admitted_differences,
        version_parents.c.evidence,
        absent_parents.c.repo,
        absent_parents.c.revision,
    )
    .select_from(
        version_parents.join(_parent, _parent.c.id == version_parents.c.parent_id)
        .join(models, models.c.id == _parent.c.model_id)
        .outerjoin(absent_parents, absent_parents.c.id == version_parents.c.absent_id)
    )
    .where(version_parents.c.version_id == bindparam("id"))
    .order_by(version_parents.c.parent_id)
)
_joined_as = and_(
    version_parents.c.version_id == absent_parents.c.version_id,  # which has an index
    version_parents.c.absent_id == absent_parents.c.id,
)
_DECLARED = (
    select(absent_parents, models.c.name, _parent.c.number)
    .select_from(
        absent_parents.outerjoin(version_parents, _joined_as)
        .outerjoin(_parent, _parent.c.id == version_parents.c.parent_id)
        .outerjoin(models, models.c.id == _parent.c.model_id)
    )
    .order_by(absent_parents.c.id)
)
_ABSENT_PARENTS = _DECLARED.where(absent_parents.c.version_id == bindparam("id"))
_ALIASES = (
    select(aliases.c.name)
    .where(aliases.c.version_id == bindparam("id"), aliases.c.removed_at.is_(None))
    .order_by(aliases.c.name)
)
_TAGS = select(tags.c.key, tags.c.value).where(tags.c.version_id == bindparam("id")).order_by(tags.c.key)
_VALIDATIONS = (
    select(*(validations.c[name] for name in Measurement.__dataclass_fields__))
    .where(validations.c.version_id == bindparam("id"))
    .order_by(validations.c.id)
)


def read_version(connection: Connection, version_id: int) -> Version:
    """Read everything that is recorded of one version; what it has none of is not asked for."""
    this = {"id": version_id}
    row = connection.execute(_VERSION, this).one()._asdict()

    def ask(part: str, query: Select[Any]) -> list[Any]:
        return list(connection.execute(query, this)) if row[f"has_{part}"] else []

    facts = {name: row[name] for name in Version.__dataclass_fields__ if name in row}
    facts["processing"] = None if row["processing"] is None else tuple(row["processing"])
    facts["findings"] = tuple(row["findings"])
    return Version(
        **facts,
        files=tuple(StoredFile(*file) for file in connection.execute(_FILES, this)),
        parents=tuple(_make_parent(edge) for edge in ask("parents", _PARENTS)),
        absent_parents=tuple(_make_absent(one) for one in ask("absent_parents", _ABSENT_PARENTS)),
        aliases=tuple(alias.name for alias in ask("aliases", _ALIASES)),
        tags={tag.key: tag.value for tag in ask("tags", _TAGS)},
        validations=tuple(Measurement(*one) for one in ask("validations", _VALIDATIONS)),
    )


def read_newest(connection: Connection, model: str) -> Version | None:
    """Read the model's newest version that is not retired, if there is one."""
    newest = connection.execute(
        select(versions.c.id)
        .join_from(versions, models)
        .where(models.c.name == model, versions.c.retired_at.is_(None))
        .order_by(versions.c.number.desc())
        .limit(1)
    ).scalar()
    return None if newest is None else read_version(connection, newest)


def find_step(connection: Connection, model: str, step: int) -> str | None:
    """Return the ref of the model's newest version of this step that is not retired, if there is one."""
    number = connection.execute(
        select(func.max(versions.c.number))
        .join_from(versions, models)
        .where(models.c.name == model, versions.c.step == step, versions.c.retired_at.is_(None))
    ).scalar()
    return None if number is None else f"{model}@v{number}"


def list_models(connection: Connection, *, limit: int | None = None, after: str | None = None) -> list[ModelSummary]:
    """List the models by name, from the one `after` that name, each with its newest version that is not retired."""
    check_limit(limit)
    live = and_(versions.c.model_id == models.c.id, versions.c.retired_at.is_(None))
    newest = select(func.max(versions.c.number)).where(live).correlate(models).scalar_subquery().label("newest")
    query = (
        select(
            models,
            select(func.count()).select_from(versions).where(live).correlate(models).scalar_subquery().label("n"),
            versions.c.number,
            versions.c.family,
            versions.c.n_parameters,
            is_verified().label("verified"),
        )
        .select_from(models.outerjoin(versions, and_(versions.c.model_id == models.c.id, versions.c.number == newest)))
        .order_by(models.c.name)
        .limit(limit)
    )
    rows = connection.execute(query if after is None else query.where(models.c.name > after))
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


def list_history(
    connection: Connection, model: str, *, limit: int | None = None, before: int | None = None
) -> list[VersionSummary]:
    """List the versions of one model, newest first from the one `before` that number, retired ones too."""
    check_limit(limit)
    query = _select_summaries().where(models.c.name == model).order_by(versions.c.number.desc()).limit(limit)
    found = _summarise(connection, query if before is None else query.where(versions.c.number < before))
    if not found and before is None and limit != 0:
        raise explain_miss(connection, model, Ref("newest", model=model))
    return found


def count_models(connection: Connection) -> int:
    """Count the models."""
    return connection.execute(select(func.count()).select_from(models)).scalar_one()


def count_versions(connection: Connection, model: str) -> int:
    """Count the versions of one model, retired ones too."""
    query = select(func.count()).select_from(versions.join(models)).where(models.c.name == model)
    return connection.execute(query).scalar_one()


def summarise_ids(connection: Connection, ids: Iterable[int]) -> dict[int, VersionSummary]:
    """Return one line about each of these versions, by the database's id."""
    wanted = sorted(set(ids))
    summaries: dict[int, VersionSummary] = {}
    for start in range(0, len(wanted), 500):
        some = wanted[start : start + 500]
        query = _select_summaries().where(versions.c.id.in_(bind_ids(some))).order_by(versions.c.id)
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
        ids = [row[0] for row in rows]
        parents, names = _read_parent_refs(connection, ids), _read_aliases(connection, ids)
        for version_id, *facts, verified, note, created_at, retired_at in rows:  # by position: lineages are long
            relatives = (parents[version_id], names[version_id])
            fields: list[Any] = [*facts, bool(verified), *relatives, note, created_at, retired_at]
            summaries.append(VersionSummary(*fields))
    return summaries


def _select_summaries() -> Select[Any]:
    """Select the id, and then the fields of VersionSummary in their order."""
    return select(
        versions.c.id,
        models.c.name.label("model"),
        versions.c.number,
        versions.c.step,
        versions.c.family,
        versions.c.n_parameters,
        versions.c.size_bytes,
        versions.c.weights_digest,
        is_verified().label("verified"),  # and after it, in VersionSummary, parents and aliases
        versions.c.note,
        versions.c.created_at,
        versions.c.retired_at,
    ).join_from(versions, models)


def bind_ids(ids: Sequence[int]) -> BindParameter[Sequence[int]]:
    """Write the database's ids into a query as the numbers they are: binding each costs more than the query does."""
    return bindparam("ids", ids, expanding=True, unique=True, literal_execute=True)


def is_verified() -> Any:
    """Whether parity was measured and every measurement passed: by one look into the index for each version."""
    passed = func.min(case((validations.c.passed.is_(True), 1), else_=0))
    of_parity = and_(
        validations.c.version_id == versions.c.id,
        validations.c.suite == "parity",
        validations.c.metric.in_(PARITY_METRICS),
    )
    return func.coalesce(select(passed).where(of_parity).correlate(versions).scalar_subquery(), 0) == 1


def read_absent_parents(connection: Connection, ids: Iterable[int]) -> dict[int, tuple[AbsentParent, ...]]:
    """Return the parents that these versions declare without their being registered, joined since or not."""
    found: dict[int, tuple[AbsentParent, ...]] = defaultdict(tuple)
    for row in connection.execute(_DECLARED.where(absent_parents.c.version_id.in_(bind_ids(list(ids))))):
        found[row.version_id] += (_make_absent(row),)
    return found


def _make_parent(row: Row[Any]) -> Parent:
    declared = None if row.repo is None else f"hf://{row.repo}@{row.revision}"
    return Parent(f"{row.name}@v{row.number}", row.relation, tuple(row.admitted_differences), declared, row.evidence)


def _make_absent(row: Row[Any]) -> AbsentParent:
    joined = None if row.name is None else f"{row.name}@v{row.number}"
    return AbsentParent(row.repo, row.revision, row.digest, row.relation, tuple(row.allowed), joined)


def _read_parent_refs(connection: Connection, ids: Sequence[int]) -> dict[int, tuple[str, ...]]:
    rows = connection.execute(
        select(version_parents.c.version_id, models.c.name, versions.c.number)
        .join_from(version_parents, versions, versions.c.id == version_parents.c.parent_id)
        .join(models)
        .where(version_parents.c.version_id.in_(bind_ids(ids)))
        .order_by(version_parents.c.parent_id)
    )
    found: dict[int, tuple[str, ...]] = defaultdict(tuple)
    for version_id, name, number in rows.all():
        found[version_id] += (f"{name}@v{number}",)
    return found


def _read_aliases(connection: Connection, ids: Sequence[int]) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = defaultdict(tuple)
    rows: Iterable[Row[Any]] = connection.execute(
        select(aliases.c.version_id, aliases.c.name)
        .where(aliases.c.version_id.in_(bind_ids(ids)), aliases.c.removed_at.is_(None))
        .order_by(aliases.c.name)
    )
    for row in rows:
        found[row.version_id] += (row.name,)
    return found
