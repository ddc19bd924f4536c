"""Find what a source comes from among all registered versions: its sketch against theirs, the nearest first.

What is said is what the weights say. Who came from whom they do not: a fine-tune and its base are equally far from each
other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from registry.architecture import Architecture, Difference, find_differences
from registry.checkpoint import Checkpoint, read_checkpoint
from registry.compare_sketches import Evidence, centre, compare_sketches, find_ranks, list_comparable
from registry.database import Database
from registry.errors import StorageError
from registry.fetch import fetch_version
from registry.files import open_files
from registry.progress import Progress, no_progress
from registry.query import read_version
from registry.resolve import refuse_retired, resolve_ref
from registry.sketch import Sketch, sample_size
from registry.sketches import list_unsketched, read_sketches, record_sketch
from registry.sources import ParentVersion, SourceOptions
from registry.stage import (
    Weights,
    digest_staged_hooked_weights,
    digest_staged_weights,
    refuse_misfits,
    stage_files,
)
from registry.store import LocalStore

N_MIXED = 6
"""Of how many of the nearest versions a source may be a merge."""

MIXED_RESIDUAL = 0.1
"""How far a source may be from a mixture, relative to its distance from the nearest of what is mixed."""

MIN_SHARE = 0.02

_ROUNDOFF = {"float64": 2.0**-24, "float32": 2.0**-24, "bfloat16": 2.0**-9, "float16": 2.0**-11}

Kind = Literal["identical-weights", "unchanged", "adapter", "finetuned", "unrelated"]


@dataclass(frozen=True)
class Match:
    """One registered version, and what the source is to it, as far as weights tell.

    `identical-weights` have one digest; `unchanged` are matrices that are equal where they were sampled. For `adapter`,
    a change of low rank in some matrices, `rank` is the largest. `differences` are those of the architectures: the same
    weights compute something else with another config.
    """

    ref: str
    kind: Kind
    evidence: Evidence
    rank: int | None = None
    differences: tuple[Difference, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Give it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Mixture:
    """A merge: the share of each version, and how far the source is from it, relative to the nearest of them."""

    shares: Mapping[str, float]
    residual: float

    def __str__(self) -> str:
        return " + ".join(f"{share:.3g} x {ref}" for ref, share in self.shares.items())


@dataclass(frozen=True)
class Identification:
    """What a source is likely to be: the related versions, nearest first, and the nearest of the unrelated ones.

    `n_compared` versions have matrices of its names and shapes; `unsketched` versions could not be compared, since they
    were registered without being converted.
    """

    source: str
    weights_digest: str | None
    matches: tuple[Match, ...]
    mixture: Mixture | None
    n_compared: int
    unsketched: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """One line of what it is likely to be."""
        best = self.matches[0] if self.matches else None
        if best is None:
            return "nothing that is registered has matrices of these names and shapes"
        if best.kind in ("finetuned", "adapter") and self.mixture is not None:
            said = f"likely a merge: {self.mixture}"
        else:
            said = _VERDICTS[best.kind].format(best.ref, rank=best.rank, change=best.evidence.change)
        if best.kind == "unrelated" or not best.differences:
            return said
        return f"{said}; in another architecture: {describe_differences(best.differences)}"

    def as_dict(self) -> dict[str, Any]:
        """Give it as plain data."""
        return {"verdict": self.verdict, **asdict(self)}


_VERDICTS: dict[Kind, str] = {
    "identical-weights": "identical weights to {}",
    "unchanged": "the same as {} in every matrix that was sampled",
    "adapter": "likely {} with an adapter of rank {rank} merged into it (or the other way round): {change}",
    "finetuned": "likely a fine-tune of {} (or the other way round): {change}",
    "unrelated": "unrelated to everything that is registered; the nearest is {}",
}


def describe_differences(differences: Sequence[Difference]) -> str:
    """Write in one line in which fields a source differs from a version."""
    return ", ".join(f"{one.field} {one.parent} → {one.checkpoint}" for one in differences)


def identify_source(
    database: Database,
    store: LocalStore,
    source: str,
    parents: Sequence[str] = (),
    options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
    limit: int = 10,
    progress: Progress = no_progress,
) -> Identification:
    """Compare a source with every version of the same names and shapes; `parents` are for an adapter to merge into."""
    with database.read() as connection:
        known = [_read_parent(connection, database, store, ref, progress) for ref in parents]
    with tempfile.TemporaryDirectory(prefix="lensreg-") as name:
        unpacked = Path(name) / "unpacked"
        unpacked.mkdir()
        checkpoint = read_checkpoint(source, unpacked, known, options)
        refuse_misfits(checkpoint)
        files = stage_files(
            store,
            checkpoint.source,
            checkpoint.family,
            Path(name),
            link=False,
            lazy=False,
            dry_run=True,
            progress=progress,
        )
        weights, sketch = _read(checkpoint, files.paths("weights"), progress)
    with database.read() as connection:
        return identify_sketch(connection, source, sketch, weights, checkpoint.architecture, limit)


def identify_sketch(
    connection: Connection,
    source: str,
    sketch: Sketch,
    weights: Weights,
    architecture: Architecture,
    limit: int = 10,
) -> Identification:
    """Rank the registered versions by how near their sketches are."""
    recorded = dict(read_sketches(connection, sketch.form))
    compared = {one: compare_sketches(other, sketch) for one, other in recorded.items()}
    order = sorted(compared, key=lambda one: _distance(compared[one]))
    matches = []
    for one in order[:limit]:
        version = read_version(connection, one)
        roundoff = max(_ROUNDOFF.get(kind, 2.0**-9) for kind in f"{version.dtype}+{weights.dtype}".split("+"))
        rank = _find_adapter(recorded[one], sketch, roundoff)
        kind = _choose_kind(compared[one], rank, same=version.weights_digest == weights.digest)
        differences = find_differences(Architecture(version.architecture), architecture)
        matches.append(Match(version.ref, kind, compared[one], rank if kind == "adapter" else None, differences))
    matches.sort(key=lambda one: (one.kind != "identical-weights", bool(one.differences)))
    mixture = _find_mixture(connection, sketch, recorded, compared, order)
    return Identification(
        source, weights.digest, tuple(matches), mixture, len(recorded), tuple(list_unsketched(connection))
    )


def sketch_missing(database: Database, store: LocalStore, progress: Progress = no_progress) -> None:
    """Take the sketches of all versions in use that have none and whose bytes are here, and record them."""
    from registry.resketch import sketch_version

    with database.read() as connection:
        missing = [read_version(connection, resolve_ref(connection, ref).id) for ref in list_unsketched(connection)]
    for version in missing:
        if version.weights_digest is not None:
            try:
                sketch = sketch_version(store, version, progress)
            except StorageError:  # its bytes are lost; it stays among those that were not compared
                continue
            fingerprint, digest = version.fingerprint, version.weights_digest
            database.change(partial(record_sketch, fingerprint=fingerprint, weights_digest=digest, sketch=sketch))


def _read_parent(
    connection: Connection, database: Database, store: LocalStore, ref: str, progress: Progress
) -> ParentVersion:
    resolved = resolve_ref(connection, ref)
    refuse_retired(resolved)
    version = read_version(connection, resolved.id)
    return ParentVersion(
        version, lambda: open_files(store, fetch_version(database, store, version, None, progress), progress)
    )


def _read(checkpoint: Checkpoint, files: Sequence[Path], progress: Progress) -> tuple[Weights, Sketch]:
    """Digest and sketch the files, once their tensors are known to fit the config."""
    from registry.networks import check_tensors
    from registry.resketch import sketch_files, sketch_hooked_files

    if checkpoint.family is None:
        return digest_staged_hooked_weights(files, progress), sketch_hooked_files(files, checkpoint.processing or ())
    weights = digest_staged_weights(checkpoint.family, checkpoint.values, files, progress)
    check_tensors(checkpoint.family, checkpoint.values, weights.tensors)
    return weights, sketch_files(checkpoint.family, checkpoint.values, checkpoint.architecture, files)


def _distance(evidence: Evidence) -> tuple[bool, float]:
    """Order by relation first, then by distance; what is unchanged is nearest."""
    far = float("inf") if evidence.distance is None else evidence.distance
    share = evidence.n_unchanged / max(1, evidence.n_matrices)
    return evidence.verdict not in ("unchanged", "related"), far - share * 1e-9


def _choose_kind(evidence: Evidence, rank: int | None, *, same: bool) -> Kind:
    if same:
        return "identical-weights"
    if evidence.verdict == "related":
        return "finetuned" if rank is None else "adapter"
    return "unchanged" if evidence.verdict == "unchanged" else "unrelated"


def _find_adapter(parent: Sketch, sketch: Sketch, roundoff: float) -> int | None:
    """Return the largest rank of what changed if every change has less than its sub-matrix could have."""
    ranks = find_ranks(parent, sketch, roundoff)
    full = {name: min(sample_size(name, sketch.shapes[name])) for name in ranks}
    return max(ranks.values()) if ranks and all(0 < ranks[name] < full[name] for name in ranks) else None


def _find_mixture(
    connection: Connection,
    sketch: Sketch,
    recorded: Mapping[int, Sketch],
    compared: Mapping[int, Evidence],
    order: Sequence[int],
) -> Mixture | None:
    """Find shares of the nearest related versions whose sum is much nearer than any of them, by least squares."""
    vectors: dict[int, NDArray[np.float64]] = {}
    related = [one for one in order if compared[one].verdict == "related"]
    names = sorted(set(sketch.blocks).intersection(*(list_comparable(recorded[one], sketch) for one in related)))
    if not names:
        return None
    for one in related:
        vector = _join(recorded[one], names)
        if all(np.linalg.norm(vector - other) > 1e-6 * np.linalg.norm(vector) for other in vectors.values()):
            vectors[one] = vector
        if len(vectors) == N_MIXED:
            break
    target = _join(sketch, names)
    shares = _fit(target, vectors)
    if len(shares) < 2:
        return None
    nearest = min(float(np.linalg.norm(target - vectors[one])) for one in shares)
    mixed = sum(share * vectors[one] for one, share in shares.items())
    residual = float(np.linalg.norm(target - mixed)) / nearest if nearest else 1.0
    if residual > MIXED_RESIDUAL:
        return None
    return Mixture({read_version(connection, one).ref: share for one, share in shares.items()}, residual)


def _fit(target: NDArray[np.float64], vectors: Mapping[int, NDArray[np.float64]]) -> dict[int, float]:
    """Return the shares of least squares, without those of which there is next to nothing."""
    wanted = dict(vectors)
    while len(wanted) > 1:
        found = np.linalg.lstsq(np.stack(list(wanted.values()), axis=1), target, rcond=None)[0]
        shares = dict(zip(wanted, map(float, found), strict=True))
        small = min(shares, key=lambda one: abs(shares[one]))
        if abs(shares[small]) >= MIN_SHARE:
            return shares
        del wanted[small]
    return {}


def _join(sketch: Sketch, names: Sequence[str]) -> NDArray[np.float64]:
    """Make one vector of all samples."""
    return np.concatenate([centre(sketch.samples[name]).ravel() for name in names])
