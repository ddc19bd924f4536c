"""Verify a checkpoint before it is registered, elsewhere: what was measured is bound to the digests of its bytes.

So a run's checkpoints are verified side by side, while they are registered in the order of their steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from registry.checkpoint import Checkpoint, read_checkpoint
from registry.environment import read_packages
from registry.errors import WorkerMismatch
from registry.fetch import ParityChoice
from registry.progress import Progress
from registry.register import describe_staged_weights, read_parent
from registry.registration import Request
from registry.stage import Files, Weights, refuse_misfits, stage_files
from registry.verify_checkpoint import Verified, verify_checkpoint

if TYPE_CHECKING:
    from registry.methods.opened import OpenedRegistry


@dataclass(frozen=True)
class VerifiedAhead:
    """What was found of bytes with these digests, by these packages, in the precision that was asked for."""

    fingerprint: str
    weights_digest: str | None
    files: frozenset[tuple[str, str, str]]
    packages: frozenset[tuple[str, str | None]]
    parity: ParityChoice | None
    verified: Verified

    def is_of(self, request: Request, checkpoint: Checkpoint, weights: Weights, files: Files) -> bool:
        """Say whether verifying this now would be doing the same once more."""
        now = _describe(request, checkpoint, weights, files, self.verified)
        return weights.digest is not None and now == self


def verify_ahead(registry: OpenedRegistry, request: Request, progress: Progress) -> VerifiedAhead:
    """Stage and verify what `request` describes. Nothing is recorded; in a bucket, its blobs are there afterwards.

    Raises what registering it would, and WorkerMismatch if this machine does not see its folder.
    """
    if not Path(request.source).is_dir():
        raise WorkerMismatch(
            f"A worker does not see {request.source}.", hint="Keep the run on a file system that all workers see."
        )
    store = registry.store
    with registry.database.read() as connection:
        found = [read_parent(connection, registry.database, store, ref, progress)[1] for ref in request.parents]
    with store.stage() as folder:
        unpacked = folder / "unpacked"
        unpacked.mkdir()
        options = replace(request.source_options, parity=request.parity)
        checkpoint = read_checkpoint(request.source, unpacked, found, options)
        refuse_misfits(checkpoint)
        files = stage_files(
            store,
            checkpoint.source,
            checkpoint.family,
            folder,
            link=request.link,
            lazy=False,
            dry_run=False,
            progress=progress,
        )
        weights = describe_staged_weights(request, checkpoint, files, progress)
        verified = verify_checkpoint(request, checkpoint, weights, files, progress)
        if store.is_remote:  # uploading takes longest, and a blob that is there is not uploaded again
            store.publish(files.staged, progress)
        return _describe(request, checkpoint, weights, files, verified)


def _describe(
    request: Request, checkpoint: Checkpoint, weights: Weights, files: Files, verified: Verified
) -> VerifiedAhead:
    return VerifiedAhead(
        checkpoint.architecture.fingerprint,
        weights.digest,
        frozenset((file.name, file.role, file.digest) for file in files.stored),
        frozenset(read_packages().items()),
        request.parity,
        verified,
    )
