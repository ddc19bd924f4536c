"""Receive a shipment: look at everything, decide, take the blobs in, inspect them, and only then write rows.

Blobs come before rows, some are published at a time, and what is here already is not taken again: what was interrupted
goes on where it stopped. Rows come in transactions of some hundred versions, parents first, so that a version is
visible whole, with all its ancestors, or not at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from registry.aliases import set_alias
from registry.database import Database
from registry.digests import digest_stream
from registry.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    InvalidInput,
    PlanOutdated,
    StorageError,
    StoreUnavailable,
)
from registry.fetch import ParityChoice
from registry.ownership import change_with_blobs
from registry.progress import Counter, Progress, no_progress
from registry.store import LocalStore, StagedFile
from registry.tensor_digests import pack_tensors
from registry.transfer.form import Manifest
from registry.transfer.inspect import inspect_version
from registry.transfer.outline import Outline, read_outlines, read_whole
from registry.transfer.plan import Outcome, Placed, Plan, make_plan, name_models
from registry.transfer.rows import Received, join_received, write_versions
from registry.transfer.shipment import Parcel, Shipment
from registry.weights import Advance

PUBLISHED_AT_ONCE = 32
PUBLISHED_BYTES = 256 * 2**20
WRITTEN_AT_ONCE = 100  # with others waiting, and every blob looked for once more meanwhile
_PAGE = 50


@dataclass(frozen=True)
class Terms:
    """How a shipment is received.

    `name` is what the one model that was named is called here; `aliases` are set as the sender has them; `verify`
    measures parity again; `expect` is the digest that the manifest must have; a dry run changes nothing;
    `strict` refuses what brings code along.
    """

    name: str | None = None
    aliases: bool = False
    verify: bool = False
    parity: ParityChoice | None = None
    expect: str | None = None
    dry_run: bool = False
    strict: bool = False


@dataclass(frozen=True)
class Move:
    """One version: what the sender calls it, what it is called here, and whether it came now or was here before."""

    sent_as: str
    ref: str
    outcome: Outcome


@dataclass(frozen=True)
class Transfer:
    """What came of a shipment, or would: its versions, parents first, and the blobs that had to be sent."""

    registry_id: str
    location: str
    digest: str
    moves: tuple[Move, ...]
    aliases: tuple[tuple[str, str], ...]
    n_blobs: int
    n_sent: int
    sent_bytes: int
    dry_run: bool

    @property
    def received(self) -> tuple[Move, ...]:
        """The versions that were not here before."""
        return tuple(one for one in self.moves if one.outcome == "received")

    @property
    def unchanged(self) -> bool:
        """Whether everything was here already."""
        return not self.received and not self.aliases and not self.n_sent


def receive(
    database: Database, store: LocalStore, shipment: Shipment, terms: Terms, progress: Progress = no_progress
) -> Transfer:
    """Receive a shipment, or raise a RegistryError; what is visible then is whole.

    Raises MalformedExport for what is not whole or was altered, TransferConflict for what cannot be here, and
    ParityFailure if it is verified and computes something else.
    """
    manifest = shipment.manifest
    _check_expected(manifest, terms.expect)
    outlines = read_outlines(shipment)
    names = name_models(manifest, outlines, terms.name)
    with database.read() as connection:
        plan = make_plan(connection, manifest, outlines, names, terms.aliases)
    wanted = _find_wanted(store, plan, read=not (terms.dry_run and store.is_remote))
    transfer = _describe(manifest, plan, wanted, dry_run=terms.dry_run)
    if terms.dry_run:
        return transfer
    with contextlib.suppress(StoreUnavailable):  # another user's blobs; writing looks once more whether they are there
        store.renew(digest for one in plan.fresh for digest in one.outline.blobs if digest not in wanted)
    if wanted:
        _take_in(store, shipment, wanted, progress)
    found = _inspect(store, shipment, plan, terms, progress)
    placed = _write(database, store, shipment, plan, found, terms, names)
    return replace(transfer, moves=tuple(Move(one.outline.entry.ref, one.ref, one.outcome) for one in placed))


def _check_expected(manifest: Manifest, expect: str | None) -> None:
    if expect is not None and expect.strip().lower().removeprefix("sha256:") != manifest.digest:
        raise InvalidInput(
            f"This is the export sha256:{manifest.digest}, and not the one that was expected.",
            hint="Ask whoever exported it for the file and the digest again. Nothing was changed.",
        )


def _find_wanted(store: LocalStore, plan: Plan, *, read: bool) -> dict[str, int]:
    """Return the blobs that are not in the store: of new versions those that are not whole, of others those missing."""
    whole: dict[str, bool] = {}
    sizes: dict[str, int] = {}
    for one in plan.placed:
        for digest, size in one.outline.blobs.items():
            sizes[digest] = size
            whole[digest] = whole.get(digest, False) or (read and one.outcome == "received")
    return {digest: size for digest, size in sizes.items() if not _is_here(store, digest, size, read=whole[digest])}


def _is_here(store: LocalStore, digest: str, size: int, *, read: bool) -> bool:
    try:
        if store.is_remote:  # what is cached here says nothing of what is kept there
            store.verify(digest, size)
        if read or not store.is_remote:  # from a bucket it comes into the cache, where it will be inspected
            store.check(digest, size, read=read, verify="changed")
    except (ArtifactMissing, ArtifactCorrupt):
        return False
    except StorageError:
        if store.is_remote:  # a bucket that cannot be asked cannot be given anything, either
            raise
        return False
    return True


def _take_in(store: LocalStore, shipment: Shipment, wanted: Mapping[str, int], progress: Progress) -> None:
    """Take blobs in and publish them some at a time; if something fails those that are whole stay, for the next try."""
    counter = Counter(progress, "receiving", sum(wanted.values()))
    at_once = 1 if store.is_remote else PUBLISHED_AT_ONCE  # a bucket gains nothing by several
    with store.stage() as folder:
        staged: list[StagedFile] = []
        try:
            for parcel in shipment.send_blobs(wanted):
                staged.append(_stage(store, shipment, parcel, folder, counter.advance))
                if len(staged) >= at_once or sum(one.size_bytes for one in staged) >= PUBLISHED_BYTES:
                    ready, staged = staged, []  # what a store refuses is not given to it again
                    store.publish(ready, replace=True)
        finally:
            store.publish(staged, replace=True)


def _stage(store: LocalStore, shipment: Shipment, parcel: Parcel, folder: Path, advance: Advance) -> StagedFile:
    target = folder / parcel.digest
    if isinstance(parcel.content, Path):
        staged = store.copy_in(parcel.content, target, advance=advance)
    else:
        with target.open("xb") as writer:
            digests = digest_stream(parcel.content, write=writer.write, advance=advance)
        target.chmod(0o444)
        staged = StagedFile(target, digests.whole, parcel.size_bytes)
    if staged.digest != parcel.digest:
        target.unlink()
        raise shipment.refuse_blob(parcel.digest)
    return staged


def _inspect(
    store: LocalStore, shipment: Shipment, plan: Plan, terms: Terms, progress: Progress
) -> dict[str, tuple[dict[str, Any] | None, list[dict[str, Any]]]]:
    """Look at the files of every new version; return the rows of its tensors, and of what was measured here."""
    found = {}
    counter = Counter(progress, "inspecting", len(plan.fresh))
    for one in plan.fresh:
        record = read_whole(shipment, one.outline.entry)
        weights = inspect_version(store, record, strict=terms.strict)
        row = None
        if weights is not None and weights.digest is not None:
            row = pack_tensors(weights.digest, weights.tensors, weights.digests)
        measured: list[dict[str, Any]] = []
        if terms.verify and weights is not None:
            from registry.transfer.measure import measure_version

            measured = measure_version(store, record, terms.parity, progress)
        found[record.operation_id] = (row, measured)
        counter.advance()
    return found


def _write(
    database: Database,
    store: LocalStore,
    shipment: Shipment,
    plan: Plan,
    found: Mapping[str, tuple[dict[str, Any] | None, list[dict[str, Any]]]],
    terms: Terms,
    names: Mapping[str, str],
) -> tuple[Placed, ...]:
    """Write rows, some hundred versions at a time; each time it is asked again what is here by now."""
    outlines = [one.outline for one in plan.placed]
    outcomes: dict[str, Placed] = {}
    for chosen in _split(outlines, {one.outline.operation_id for one in plan.fresh}):

        def write(connection: Connection, chosen: set[str] = chosen) -> dict[str, Placed]:
            now = make_plan(connection, shipment.manifest, outlines, names, terms.aliases)
            return _write_some(connection, shipment, now, chosen, found)

        blobs = {blob: size for one in outlines if one.operation_id in chosen for blob, size in one.blobs.items()}
        outcomes |= change_with_blobs(database, store, blobs, write)
    if terms.aliases:

        def write_aliases(connection: Connection) -> None:
            now = make_plan(connection, shipment.manifest, outlines, names, with_aliases=True)
            for alias, ref in now.aliases:
                set_alias(connection, alias, ref)

        database.change(write_aliases)
    return tuple(outcomes.get(one.outline.operation_id, one) for one in plan.placed)


def _split(outlines: Sequence[Outline], fresh: set[str]) -> Iterator[set[str]]:
    operations = [one.operation_id for one in outlines if one.operation_id in fresh]
    for start in range(0, len(operations), WRITTEN_AT_ONCE):
        yield set(operations[start : start + WRITTEN_AT_ONCE])


def _write_some(
    connection: Connection,
    shipment: Shipment,
    plan: Plan,
    chosen: set[str],
    found: Mapping[str, tuple[dict[str, Any] | None, list[dict[str, Any]]]],
) -> dict[str, Placed]:
    known = {**plan.outer}
    known |= {one.outline.operation_id: (one.version_id, one.ref) for one in plan.placed if one.version_id is not None}
    placed = [one for one in plan.placed if one.outline.operation_id in chosen]
    new = [one for one in placed if one.outcome == "received"]
    if any(one.outline.operation_id not in found for one in new):
        raise PlanOutdated("Versions changed here while they were received.", hint="Run the same command again.")
    for start in range(0, len(new), _PAGE):
        page = [
            Received(one, read_whole(shipment, one.outline.entry), *found[one.outline.operation_id])
            for one in new[start : start + _PAGE]
        ]
        write_versions(connection, shipment.manifest, page, known)
    join_received(connection, [known[one.outline.operation_id][0] for one in new])
    return {one.outline.operation_id: one for one in placed}


def _describe(manifest: Manifest, plan: Plan, wanted: Mapping[str, int], *, dry_run: bool) -> Transfer:
    return Transfer(
        registry_id=manifest.registry_id,
        location=manifest.location,
        digest=manifest.digest,
        moves=tuple(Move(one.outline.entry.ref, one.ref, one.outcome) for one in plan.placed),
        aliases=plan.aliases,
        n_blobs=len(manifest.blobs),
        n_sent=len(wanted),
        sent_bytes=sum(wanted.values()),
        dry_run=dry_run,
    )
