"""Digest again, from the store, the tensors of versions that were registered before those digests were kept."""

from __future__ import annotations

from registry.database import Database
from registry.errors import ArtifactCorrupt
from registry.families import find_family_by_name
from registry.families.family import check_config
from registry.files import open_files
from registry.progress import Progress, no_progress
from registry.record import record_missing_tensors
from registry.sources.json_file import read_json_object
from registry.stage import Weights, digest_staged_hooked_weights, digest_staged_weights
from registry.store import LocalStore
from registry.tensor_digests import has_tensors
from registry.versions import Version


def digest_missing(database: Database, store: LocalStore, version: Version, progress: Progress = no_progress) -> None:
    """Record the digests of a version's tensors if they are not, and if its bytes are here.

    Raises ArtifactMissing or ArtifactCorrupt if the store does not hold what was registered.
    """
    if version.weights_digest is None:
        return
    with database.read() as connection:
        if has_tensors(connection, version.weights_digest):
            return
    weights = _digest(store, version, progress)
    if weights.digest != version.weights_digest:
        raise ArtifactCorrupt(
            f"The tensors of {version.ref} are not those of its weights digest.",
            digest=version.weights_digest,
            hint="The record was altered. See: lensreg audit verify; then restore a backup.",
        )
    database.change(lambda connection: record_missing_tensors(connection, version, weights.tensors, weights.digests))


def _digest(store: LocalStore, version: Version, progress: Progress) -> Weights:
    folder = open_files(store, version, progress)
    files = [folder / file.name for file in version.with_role("weights")]
    if version.layout == "hooked":
        return digest_staged_hooked_weights(files, progress)
    family = find_family_by_name(version.family)
    values = check_config(family, read_json_object(folder / "config.json"))
    return digest_staged_weights(family, values, files, progress)
