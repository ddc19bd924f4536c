"""A version's files in the store: checked, and under their own names."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from registry.errors import ArtifactMissing
from registry.progress import Counter, Progress, no_progress
from registry.store import LocalStore
from registry.store.stamps import Verify
from registry.versions import Version

_ROLES = ("weights", "config", "tokenizer", "generation")


def open_files(
    store: LocalStore,
    version: Version,
    progress: Progress = no_progress,
    roles: Collection[str] = _ROLES,
    verify: Verify = "always",
) -> Path:
    """Check size and digest of every blob a network is made of; return the folder where they have their own names.

    `verify` says which blobs are read for it. With fewer `roles` only the files that play them are checked, and only
    those may be read.

    Raises ArtifactMissing or ArtifactCorrupt. A version whose bytes were left elsewhere must be fetched first.
    """
    if "weights" in roles:
        refuse_unfetched(version)
    needed = [file for file in version.files if file.role in roles]
    store.bring([(file.digest, file.size_bytes) for file in needed], progress)
    counter = Counter(progress, "checking", sum(file.size_bytes for file in needed))
    for file in needed:
        store.check(file.digest, file.size_bytes, verify=verify, advance=counter.advance)
    return store.link_folder((file.name, file.digest) for file in version.files)


def refuse_unfetched(version: Version) -> None:
    """Raise ArtifactMissing if the version was registered without its bytes and they were not fetched since."""
    if version.weights_digest is None:
        raise ArtifactMissing(
            f"The weights of {version.ref} were left on the Hub and are not here yet.",
            digest=next((file.digest for file in version.with_role("weights")), ""),
            hint=f"Fetch them: lensreg fetch {version.ref}",
        )
