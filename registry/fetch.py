"""Fetch what a version left on the Hub: into the store, each file checked, then measured and recorded.

The network is verified as when registering, on the bytes that the store will hold; rows and event come last, in one
transaction. If two processes do it at once, both end with the same blobs, and one of them writes the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from sqlalchemy import Connection, false

from registry.architecture import UNRELATED_PARENT, check_allowed
from registry.checkpoint import check_fingerprint
from registry.database import Database
from registry.environment import describe_environment
from registry.errors import ArtifactMissing, DatabaseReadOnly, InvalidInput, MalformedArtifact, StorageError
from registry.families import find_family_by_name
from registry.families.family import check_config
from registry.ownership import change_with_blobs
from registry.progress import Counter, Progress, no_progress
from registry.query import read_version
from registry.record import record_fetched
from registry.resolve import resolve_ref
from registry.sketch import Sketch
from registry.sources import SourceFile
from registry.sources.hub_snapshot import fetch_file
from registry.sources.json_file import read_json_object
from registry.stage import Weights, digest_staged_weights, stage_file
from registry.store import LocalStore, StagedFile
from registry.tables import versions
from registry.versions import StoredFile, Version
from registry.weigh_later import list_claims, weigh_children
from registry.weigh_parents import Weighed, weigh_parents

if TYPE_CHECKING:
    from registry.verify import Parity

ParityChoice = Literal["float64", "float32", "skip"]


def fetch_version(
    database: Database,
    store: LocalStore,
    version: Version,
    parity: ParityChoice | None = None,
    progress: Progress = no_progress,
    allow: Sequence[str] = (),
) -> Version:
    """Return the version as it is once its bytes are in the store and measured; at once if they are.

    Raises SourceError if the Hub does not give the bytes whose digests are recorded or if they make no right network,
    UnrelatedParent if they do not come from its parents and `allow` does not say that they need not, and
    DatabaseReadOnly where the result cannot be recorded.
    """
    if version.weights_digest is not None:
        return version
    if parity not in (None, *get_args(ParityChoice)):
        raise InvalidInput(f"{parity!r} is no way to verify.", hint="Give float64, float32 or skip.")
    allowed = check_allowed(allow)
    _check_writable(database, version)
    with store.stage() as folder:
        staged = _bring_in(store, version, folder, progress)
        weights, measured, sketch = _verify(version, folder, staged, parity, progress)
        weighed = _weigh(database, store, version, sketch, allowed, progress)
        store.publish(staged, progress, replace=True)  # they are not there, or not whole
        store.link_folder((file.name, file.digest) for file in version.files)
        published = {file.digest: file.size_bytes for file in staged}

        def record(connection: Connection) -> Version:
            version_id = resolve_ref(connection, version.ref).id
            record_fetched(
                connection,
                version_id,
                weights.digest or "",
                describe_parity(measured) if measured else [],
                weights.tensors,
                weights.digests,
                sketch,
                weighed.edges,
                weighed.taken,
            )
            return read_version(connection, version_id)

        fetched = change_with_blobs(database, store, published, record)
    weigh_children(database, store, fetched)
    return fetched


def describe_parity(parity: Parity) -> list[dict[str, Any]]:
    """Make the validation rows of a parity measurement: one for raw, one for processed, or one for the bridge."""
    details = {"noise_floor": parity.noise_floor, "processing": list(parity.processing), "n_tokens": parity.n_tokens}
    return [
        {
            "suite": "parity",
            "metric": metric,
            "value": value,
            "bound": parity.bound,
            "passed": value <= parity.bound,
            "unit": "nats",
            "dtype": parity.dtype,
            "n_samples": parity.n_tokens,
            "dataset_digest": parity.probe_digest,
            "details": details,
            "environment": {**describe_environment(), "versions": dict(parity.versions)},
        }
        for metric, value in parity.measured.items()
    ]


def _check_writable(database: Database, version: Version) -> None:
    """Find out before gigabytes are fetched whether the result can be recorded."""
    try:
        with database.write() as connection:
            # changes nothing, but a role must be allowed to
            connection.execute(versions.update().where(false()).values(weights_digest=None))
    except DatabaseReadOnly as error:
        raise DatabaseReadOnly(
            f"{version.ref} was registered without its bytes, and {error.message}",
            hint=f"Fetch it once where the database can be written to: lensreg fetch {version.ref}",
        ) from error


def _bring_in(store: LocalStore, version: Version, folder: Path, progress: Progress) -> list[StagedFile]:
    """Put every file of the version into `folder` under its own name; return those that are no blobs yet."""
    missing = [file for file in version.with_role("weights") if not _is_there(store, file)]
    store.bring([(file.digest, file.size_bytes) for file in version.files if file not in missing], progress)
    for file in version.files:
        if file not in missing:
            (folder / file.name).symlink_to(store.check(file.digest, file.size_bytes))
    counter = Counter(progress, "fetching", sum(file.size_bytes for file in missing))
    family = find_family_by_name(version.family)
    staged = []
    for file in missing:
        path = fetch_file(*_read_origin(version.provenance, file), file.name, counter.advance)
        fetched = SourceFile(file.name, path, "weights", file.digest)
        staged.append(
            stage_file(
                store, fetched, family, folder / file.name, link=False, unpacked_in=folder, advance=lambda _: None
            )
        )
    return staged


def _is_there(store: LocalStore, file: StoredFile) -> bool:
    try:
        store.check(file.digest, file.size_bytes)
    except StorageError:
        return False
    return True


def _read_origin(provenance: Mapping[str, Any], file: StoredFile) -> tuple[str, str]:
    repo, commit = provenance.get("repo"), provenance.get("commit")
    if not isinstance(repo, str) or not isinstance(commit, str):
        raise ArtifactMissing(
            f"{file.name} is not in the store, and the record does not say where it was left.",
            digest=file.digest,
            hint="The record was altered. See: lensreg audit verify; then restore a backup.",
        )
    return repo, commit


def _verify(
    version: Version, folder: Path, staged: Sequence[StagedFile], parity: ParityChoice | None, progress: Progress
) -> tuple[Weights, Parity | None, Sketch | None]:
    """Verify the network as when registering; what the headers said then must be what the files hold."""
    from registry.networks import check_tensors
    from registry.verify_weights import verify_weights

    family = find_family_by_name(version.family)
    values = check_config(family, read_json_object(folder / "config.json"))
    architecture = family.describe(values)
    check_fingerprint(version, architecture, family.config_keys)
    files = [folder / file.name for file in version.with_role("weights")]
    weights = digest_staged_weights(family, values, files, progress, staged)
    check_tensors(family, values, weights.tensors)
    measured, sketch = verify_weights(
        family, values, architecture, files, choice=parity, location=version.ref, progress=progress
    )
    if (weights.n_parameters, weights.dtype) != (version.n_parameters, version.dtype):
        raise MalformedArtifact(
            f"{version.ref} was registered with {version.n_parameters:,} parameters ({version.dtype}), and the files "
            f"hold {weights.n_parameters:,} ({weights.dtype}).",
            hint="The headers that the Hub gave then were not those of these files. Register the model again.",
        )
    return weights, measured, sketch


def _weigh(
    database: Database,
    store: LocalStore,
    version: Version,
    sketch: Sketch | None,
    allowed: frozenset[str],
    progress: Progress,
) -> Weighed:
    """Compare the weights with the parents', which nobody could when it was registered; raises UnrelatedParent."""
    with database.read() as connection:
        claims = list_claims(connection, version, allowed)
    hint = (
        f"{version.ref} stays as it was, not fetched. Retire it, and register it again without that parent (lensreg "
        f"retire {version.ref}). If it was trained so far from it that nothing is left, or its neurons were put in "
        f"another order: lensreg fetch {version.ref} --allow {UNRELATED_PARENT}"
    )
    return weigh_parents(database, store, claims, sketch, version.ref, progress, hint=hint)
