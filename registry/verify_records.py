"""Compare rows with what the events say of them, the chain of events with itself, and keep count of what is wrong."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Text, cast, func, select

from registry.architecture import Architecture
from registry.audit import verify_chain
from registry.database import Database
from registry.progress import Counter, Progress
from registry.said import CAME_IN, SAYING, take_in
from registry.tables import architectures, events, models, version_files, version_parents, versions

MAX_FAULTS = 1000
_PAGE = 500
_UPGRADED = "schema.upgraded"
_DIGESTS = ("weights_digest", "fingerprint", "vocabulary_digest")
_RESTORE = "Restore the database from a backup of before; what was altered is not made up."


@dataclass(frozen=True)
class Fault:
    """One thing that does not hold.

    `code` is that of the error a load would raise, `record-altered` or `chain-broken`; `subject` the blob's digest, the
    version, the architecture's fingerprint or the event. `versions` are the first of those that need it.
    """

    code: str
    subject: str
    message: str
    hint: str
    versions: tuple[str, ...] = ()
    n_versions: int = 0


class Faults:
    """Counts faults and keeps the first."""

    def __init__(self) -> None:
        self.kept: list[Fault] = []
        self.subjects: set[str] = set()
        self.count = 0

    def add(self, fault: Fault) -> None:
        """Count a fault, and keep it if there is room."""
        self.count += 1
        self.subjects.add(fault.subject)
        if len(self.kept) < MAX_FAULTS:
            self.kept.append(fault)


def verify_events(connection: Connection, faults: Faults) -> int:
    """Check the chain of events, and return how many there are."""
    broken = verify_chain(connection)
    if broken is not None:
        message = f"The chain of events does not hold: {broken.message}."
        faults.add(Fault("chain-broken", f"event {broken.sequence}", message, _RESTORE))
    return int(connection.execute(select(func.count()).select_from(events)).scalar_one())


def verify_records(
    database: Database, ids: Sequence[int] | None, faults: Faults, *, compare: bool, progress: Progress
) -> int:
    """Compare every version's rows with its events, if `compare`, and architectures with their fingerprints.

    Returns the number of versions.
    """
    with database.read() as connection:
        total = connection.execute(select(func.count()).select_from(versions)).scalar_one() if ids is None else len(ids)
        _verify_architectures(connection, faults)
        if compare and ids is None:
            _find_lost(connection, faults)
    if not compare:
        return int(total)
    counter = Counter(progress, "comparing", total)
    columns = [versions.c[name] for name in ("id", "number", "step", *_DIGESTS)]
    query = select(*columns, models.c.name).join_from(versions, models).order_by(versions.c.id).limit(_PAGE)
    if ids is not None:
        query = query.where(versions.c.id.in_(ids))
    last, n_versions = 0, 0
    while True:
        with database.read() as connection:
            rows = connection.execute(query.where(versions.c.id > last)).all()
            _compare_page(connection, rows, faults)
        counter.advance(len(rows))
        n_versions += len(rows)
        if len(rows) < _PAGE:
            return n_versions
        last = rows[-1].id


def _compare_page(connection: Connection, rows: Sequence[Any], faults: Faults) -> None:
    refs = {row.id: f"{row.name}@v{row.number}" for row in rows}
    files, parents = _read_files(connection, list(refs)), _read_parents(connection, list(refs))
    said = _read_said(connection, list(refs.values()))
    for row in rows:
        ref = refs[row.id]
        found = {name: getattr(row, name) for name in ("step", *_DIGESTS)}
        edges = parents[row.id]
        found |= {
            "files": files[row.id],
            "parents": {parent: relation for parent, (relation, _) in edges.items()},
            "evidence": {parent: verdict for parent, (_, verdict) in edges.items() if verdict is not None},
        }
        if ref not in said:
            message = f"{ref} is in the database, and no event says that it was registered."
            faults.add(Fault("record-altered", ref, message, _RESTORE, (ref,), 1))
            continue
        wrong = [name for name, value in found.items() if said[ref].get(name) != value]
        if wrong:
            message = f"The rows of {ref} do not say what its event says: {', '.join(wrong)}."
            faults.add(Fault("record-altered", ref, message, _RESTORE, (ref,), 1))


def _read_said(connection: Connection, refs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what the events say of each version that they name: as it came in, with what came to it since."""
    said: dict[str, dict[str, Any]] = {}
    query = select(events.c.subject, events.c.action, events.c.details).where(
        events.c.subject.in_(refs), events.c.action.in_(SAYING)
    )
    for event in connection.execute(query.order_by(events.c.sequence)):
        now = take_in(said.get(event.subject), event.action, event.details)
        if now is not None:
            said[event.subject] = now
    renamed = _read_renamed(connection)
    for one in said.values():
        one["fingerprint"] = renamed.get(one.get("fingerprint"), one.get("fingerprint"))
    return said


def _read_renamed(connection: Connection) -> dict[Any, Any]:
    """Return which fingerprint became which when the schema was upgraded."""
    renamed: dict[Any, Any] = {}
    query = select(events.c.details).where(events.c.subject == "architectures", events.c.action == _UPGRADED)
    for details in connection.execute(query.order_by(events.c.sequence)).scalars():
        fresh = details.get("fingerprints", {})
        renamed = {old: fresh.get(new, new) for old, new in renamed.items()} | fresh
    return renamed


def _read_files(connection: Connection, ids: Sequence[int]) -> dict[int, dict[str, str]]:
    columns = (version_files.c.version_id, version_files.c.name, version_files.c.digest)
    found: dict[int, dict[str, str]] = defaultdict(dict)
    for row in connection.execute(select(*columns).where(version_files.c.version_id.in_(ids))):
        found[row.version_id][row.name] = row.digest
    return found


def _read_parents(connection: Connection, ids: Sequence[int]) -> dict[int, dict[str, tuple[str, str | None]]]:
    """Return the relation and the verdict of the weights (None: not weighed) of every version's parents."""
    edge = (version_parents.c.version_id, version_parents.c.relation, version_parents.c.evidence)
    query = (
        select(*edge, models.c.name, versions.c.number)
        .join_from(version_parents, versions, versions.c.id == version_parents.c.parent_id)
        .join(models, models.c.id == versions.c.model_id)
        .where(version_parents.c.version_id.in_(ids))
    )
    found: dict[int, dict[str, tuple[str, str | None]]] = defaultdict(dict)
    for row in connection.execute(query):
        verdict = None if row.evidence is None else str(row.evidence.get("verdict"))
        found[row.version_id][f"{row.name}@v{row.number}"] = (row.relation, verdict)
    return found


def _find_lost(connection: Connection, faults: Faults) -> None:
    """Find versions that came in by an event and that are no longer there: nothing ever deletes one."""
    query = select(events.c.subject).where(events.c.action.in_(CAME_IN)).order_by(events.c.sequence)
    for page in connection.execute(query.execution_options(yield_per=_PAGE)).scalars().partitions():
        named = [tuple(subject.rpartition("@v")[::2]) for subject in page]
        rows = connection.execute(
            select(models.c.name, versions.c.number)
            .join_from(versions, models)
            .where(
                models.c.name.in_({name for name, _ in named}),
                versions.c.number.in_({int(number) for _, number in named}),
            )
        )
        there = {f"{row.name}@v{row.number}" for row in rows}
        for ref in page:
            if ref not in there:
                message = f"{ref} was registered, and its row is gone; nothing here deletes rows."
                faults.add(Fault("record-altered", ref, message, _RESTORE, (ref,), 1))


def _verify_architectures(connection: Connection, faults: Faults) -> None:
    query = select(architectures.c.fingerprint, cast(architectures.c.fields, Text).label("fields"))
    for row in connection.execute(query.execution_options(yield_per=_PAGE)):
        try:
            right = Architecture(json.loads(row.fields)).fingerprint == row.fingerprint
        except (ValueError, TypeError, RecursionError):
            right = False
        if not right:
            message = f"The architecture sha256:{row.fingerprint} was altered: its fields have another fingerprint."
            faults.add(Fault("record-altered", row.fingerprint, message, _RESTORE))
