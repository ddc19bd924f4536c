"""Where each version of a shipment goes: what is here already, which numbers the others get, and what stands against.

A version is the same as one here if it has the same operation, which no two versions of any registries share; or if it
was registered on both sides, each for itself: under the same name, with equal files, weights, step and parents.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, func, select

from registry.errors import InvalidInput, InvalidName, TransferConflict
from registry.model_names import find_case_twins
from registry.query import bind_ids
from registry.refs import check_model_name, check_new_model_name
from registry.tables import aliases, models, version_files, version_parents, versions
from registry.transfer.form import RECEIVED, Manifest
from registry.transfer.outline import Outline
from registry.versions import StoredFile

_PAGE = 500
N_NAMED = 10
Outcome = Literal["received", "there", "identical"]
Files = frozenset[tuple[str, str, str]]
Candidate = tuple[Any, Files, frozenset[tuple[int, str]]]
"""A version here, with its files and its parents."""
_COLUMNS = [
    versions.c[name] for name in ("id", "operation_id", "number", "step", "fingerprint", "weights_digest", "retired_at")
]


@dataclass(frozen=True)
class Placed:
    """One version: what it is here. `version_id` is None if it has yet to be written."""

    outline: Outline
    model: str
    number: int
    outcome: Outcome
    version_id: int | None
    is_retired: bool

    @property
    def ref(self) -> str:
        """The `NAME@vN` that it has here, or will have."""
        return f"{self.model}@v{self.number}"


@dataclass(frozen=True)
class Plan:
    """All versions of a shipment, parents first, what each parent is here, and the aliases that are still to be set.

    `outer` are parents that are here and not in the shipment, by their operations.
    """

    placed: tuple[Placed, ...]
    outer: Mapping[str, tuple[int, str]]
    aliases: tuple[tuple[str, str], ...]

    @property
    def fresh(self) -> tuple[Placed, ...]:
        """Those that are not here yet."""
        return tuple(one for one in self.placed if one.outcome == "received")


def name_models(manifest: Manifest, outlines: Sequence[Outline], name: str | None) -> dict[str, str]:
    """Return what each model is called here: all as they are, or with `name` the one that was named otherwise.

    Raises InvalidInput if versions of several models were named, or if `name` is that of another one.
    """
    names = {one.model: one.model for one in outlines}
    if name is None:
        return names
    named = {ref.rpartition("@v")[0] for ref in manifest.named}
    if len(named) != 1 or check_model_name(name) in names.keys() - named:
        raise InvalidInput(
            f"{name} cannot stand for {', '.join(sorted(named))}.",
            hint="Another name can be given to one model at a time, and not that of one that comes with it.",
        )
    return names | dict.fromkeys(named, name)


def make_plan(
    connection: Connection,
    manifest: Manifest,
    outlines: Sequence[Outline],
    names: Mapping[str, str],
    with_aliases: bool,
) -> Plan:
    """Decide about every version, or raise TransferConflict with everything that stands against it."""
    here = _find_operations(connection, [one.operation_id for one in outlines])
    parents = {operation for one in outlines for operation, _ in one.parents} - {one.operation_id for one in outlines}
    outer = {
        operation: (row.id, f"{row.name}@v{row.number}")
        for operation, (row, _) in _find_operations(connection, parents).items()
    }
    alike = _find_alike(connection, [one for one in outlines if one.operation_id not in here], names)
    steps = _find_steps(connection, outlines, names)
    newest = _find_newest(connection, set(names.values()))
    ids = {operation: found[0] for operation, found in outer.items()}
    conflicts, placed = [], []
    for one in outlines:
        if one.operation_id in here:
            row, files = here[one.operation_id]
            if _contradicts(one, row, files):
                conflicts.append(f"{one.entry.ref} is {row.name}@v{row.number} here, with other content")
            ids[one.operation_id] = row.id
            placed.append(Placed(one, row.name, row.number, "there", row.id, row.retired_at is not None))
            continue
        match = _choose_alike(one, alike.get((names[one.model], one.weights_digest), ()), ids)
        if match is not None:
            ids[one.operation_id] = match.id
            placed.append(Placed(one, match.name, match.number, "identical", match.id, False))
            continue
        missing = [
            ref
            for (operation, _), ref in zip(one.parents, one.parent_refs, strict=True)
            if operation in parents and operation not in outer
        ]
        conflicts += [f"{one.entry.ref} comes from {ref}, which is not here and not sent" for ref in missing]
        conflicts += _name_taken_steps(one, steps.get((names[one.model], one.step), ()), manifest)
        newest[names[one.model]] += 1
        placed.append(Placed(one, names[one.model], newest[names[one.model]], "received", None, one.is_retired))
    conflicts += _name_unfit(
        connection, sorted({one.model for one in placed if one.version_id is None and one.number == 1})
    )
    wanted = _choose_aliases(connection, placed, conflicts) if with_aliases else ()
    _refuse(conflicts)
    return Plan(tuple(placed), outer, tuple(wanted))


def _refuse(conflicts: Sequence[str]) -> None:
    if not conflicts:
        return
    more = f"; and {len(conflicts) - N_NAMED:,} more" if len(conflicts) > N_NAMED else ""
    raise TransferConflict(
        f"Nothing was received: {'; '.join(conflicts[:N_NAMED])}{more}.",
        conflicts=conflicts,
        hint="Give the model another name with --as, send its parents, too (without --alone), or leave out --aliases.",
    )


def _find_operations(connection: Connection, operations: Iterable[str]) -> dict[str, tuple[Row[Any], Files]]:
    found: dict[str, tuple[Row[Any], Files]] = {}
    for page in _pages(operations):
        rows = connection.execute(
            select(*_COLUMNS, models.c.name).join_from(versions, models).where(versions.c.operation_id.in_(page))
        ).all()
        files = _read_files(connection, [row.id for row in rows])
        found |= {row.operation_id: (row, files[row.id]) for row in rows}
    return found


def _contradicts(one: Outline, row: Row[Any], files: Files) -> bool:
    other_weights = None not in (one.weights_digest, row.weights_digest) and one.weights_digest != row.weights_digest
    other = (row.fingerprint, row.step) != (one.fingerprint, one.step)
    return other or other_weights or files != _name_files(one.files)


def _find_alike(
    connection: Connection, outlines: Sequence[Outline], names: Mapping[str, str]
) -> Mapping[tuple[str, str | None], list[Candidate]]:
    """Find versions in use that hold the same weights under the same name, with their files and parents."""
    found: dict[tuple[str, str | None], list[Candidate]] = defaultdict(list)
    wanted = {(names[one.model], one.weights_digest) for one in outlines if one.weights_digest and not one.is_retired}
    for page in _pages({str(digest) for _, digest in wanted}):
        rows = connection.execute(
            select(*_COLUMNS, models.c.name)
            .join_from(versions, models)
            .where(versions.c.weights_digest.in_(page), versions.c.retired_at.is_(None))
            .order_by(versions.c.id)
        ).all()
        rows = [row for row in rows if (row.name, row.weights_digest) in wanted]
        files = _read_files(connection, [row.id for row in rows])
        parents: dict[int, set[tuple[int, str]]] = defaultdict(set)
        columns = (version_parents.c.version_id, version_parents.c.parent_id, version_parents.c.relation)
        ids = bind_ids([row.id for row in rows])
        for version_id, parent_id, relation in connection.execute(
            select(*columns).where(version_parents.c.version_id.in_(ids))
        ):
            parents[version_id].add((parent_id, relation))
        for row in rows:
            found[row.name, row.weights_digest].append((row, files[row.id], frozenset(parents[row.id])))
    return found


def _choose_alike(one: Outline, candidates: Sequence[Candidate], ids: Mapping[str, int]) -> Any | None:
    if one.is_retired or any(operation not in ids for operation, _ in one.parents):
        return None
    parents = frozenset((ids[operation], relation) for operation, relation in one.parents)
    for row, files, its_parents in candidates:
        if (row.fingerprint, row.step) != (one.fingerprint, one.step):
            continue
        if files == _name_files(one.files) and its_parents == parents:
            return row
    return None


def _find_steps(
    connection: Connection, outlines: Sequence[Outline], names: Mapping[str, str]
) -> Mapping[tuple[str, int | None], list[Any]]:
    """Find the versions in use that hold one of the steps already."""
    found: dict[tuple[str, int | None], list[Any]] = defaultdict(list)
    for page in _pages({one.step for one in outlines if one.step is not None}):
        rows = connection.execute(
            select(versions.c.number, versions.c.step, versions.c.weights_digest, versions.c.provenance, models.c.name)
            .join_from(versions, models)
            .where(models.c.name.in_(set(names.values())), versions.c.step.in_(page), versions.c.retired_at.is_(None))
        )
        for row in rows:
            found[row.name, row.step].append(row)
    return found


def _name_taken_steps(one: Outline, holders: Sequence[Any], manifest: Manifest) -> Iterator[str]:
    """Name the versions here that hold other weights for the step; what came from the same registry may be newer."""
    for row in () if one.is_retired or one.step is None else holders:
        received = row.provenance.get(RECEIVED)
        from_there = isinstance(received, dict) and received.get("registry") == manifest.registry_id
        if row.weights_digest != one.weights_digest and not from_there:
            yield f"{one.entry.ref} is step {one.step}, for which {row.name}@v{row.number} has other weights"


def _name_unfit(connection: Connection, names: Sequence[str]) -> Iterator[str]:
    """Say which new models cannot be called so here, though they may be where they come from."""
    twins = find_case_twins(connection, names)
    seen: dict[str, str] = {}
    for name in names:
        try:
            check_new_model_name(name)
        except InvalidName as error:
            yield error.message.rstrip(".")
        twin = twins.get(name) or seen.get(name.lower())
        if twin is not None:
            where = "is here" if name in twins else "comes with it"
            yield f"{name} differs from {twin}, which {where}, only in upper and lower case"
        seen[name.lower()] = name


def _find_newest(connection: Connection, names: Iterable[str]) -> dict[str, int]:
    found = dict.fromkeys(names, 0)
    for page in _pages(names):
        query = select(models.c.name, func.max(versions.c.number)).join_from(models, versions)
        for name, number in connection.execute(query.where(models.c.name.in_(page)).group_by(models.c.name)):
            found[name] = number or 0
    return found


def _choose_aliases(
    connection: Connection, placed: Sequence[Placed], conflicts: list[str]
) -> Iterator[tuple[str, str]]:
    """Give the aliases that are to be set, with the ref that each will mean; one that means another is a conflict."""
    wanted = {(one.model, alias): one for one in placed for alias in one.outline.aliases}
    stand: dict[tuple[str, str], tuple[int, int]] = {}
    for page in _pages({model for model, _ in wanted}):
        rows = connection.execute(
            select(models.c.name, aliases.c.name, versions.c.id, versions.c.number)
            .select_from(
                aliases.join(models, models.c.id == aliases.c.model_id).join(
                    versions, versions.c.id == aliases.c.version_id
                )
            )
            .where(models.c.name.in_(page), aliases.c.removed_at.is_(None))
        )
        stand |= {(model, alias): (version_id, number) for model, alias, version_id, number in rows}
    chosen = []
    for (model, alias), one in wanted.items():
        version_id, number = stand.get((model, alias), (None, None))
        if number is None and not one.is_retired:
            chosen.append((f"{model}@{alias}", one.ref))
        elif number is not None and version_id != one.version_id:
            conflicts.append(f"{model}@{alias} means v{number} here, and would mean v{one.number}")
    return iter(chosen)


def _read_files(connection: Connection, ids: Sequence[int]) -> Mapping[int, Files]:
    found: dict[int, set[tuple[str, str, str]]] = defaultdict(set)
    columns = [version_files.c[name] for name in ("version_id", "name", "role", "digest")]
    for row in connection.execute(select(*columns).where(version_files.c.version_id.in_(bind_ids(ids)))):
        found[row.version_id].add((row.name, row.role, row.digest))
    return {one: frozenset(found[one]) for one in ids}


def _name_files(files: Iterable[StoredFile]) -> Files:
    return frozenset((one.name, one.role, one.digest) for one in files)


def _pages(values: Iterable[Any]) -> Iterator[list[Any]]:
    listed = list(values)
    for start in range(0, len(listed), _PAGE):
        yield listed[start : start + _PAGE]
