"""What is recorded of a run's steps: what Trainer logged, and how many tensors changed, by their digests alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from registry.errors import MalformedArtifact, StorageError
from registry.files import open_files
from registry.sources.json_file import read_json_object
from registry.sources.trainer_state import TRAINER_STATE, LogEntry, read_log
from registry.store import LocalStore
from registry.tensor_digests import TensorRecord, read_tensors
from registry.trajectory.find_run import Run, name_some
from registry.versions import Version


@dataclass(frozen=True)
class ChangedCount:
    """How many tensors a step has, and how many are not those of the step before and of the base; None: not known."""

    n_tensors: int | None
    from_previous: int | None
    from_base: int | None


def count_changed(connection: Connection, run: Run) -> tuple[dict[str, ChangedCount], list[str]]:
    """Count by ref, from digests, the tensors that changed; and say of which versions they are not known."""
    base = _read(connection, run.base)
    counts: dict[str, ChangedCount] = {}
    unknown = [] if base is not None else [run.base.ref]
    before: tuple[Version, Mapping[str, TensorRecord] | None] | None = None
    for version in run.steps:
        tensors = _read(connection, version)
        if tensors is None:
            unknown.append(version.ref)
        counts[version.ref] = ChangedCount(
            None if tensors is None else len(tensors),
            None if before is None else _count(before, (version, tensors)),
            _count((run.base, base), (version, tensors)),
        )
        before = (version, tensors)
    refs = list(dict.fromkeys(unknown))
    how = "they were left on the Hub, or registered long ago (lensreg diff A B --read keeps them)"
    return counts, [f"The digests of single tensors are not known of {name_some(refs)}: {how}."] if refs else []


def read_training_log(store: LocalStore, versions: Sequence[Version]) -> tuple[list[LogEntry], list[str]]:
    """Return what Trainer logged along a run, by step, from the files that were kept of it.

    The last one holds the whole log; earlier ones are read only for what is before its beginning.
    """
    found: list[LogEntry] = []
    notes = []
    begins = math.inf
    for version in reversed(versions):
        if version.step is None or version.step >= begins:
            continue
        try:
            entries = list(_read_log(store, version))
        except (StorageError, MalformedArtifact) as error:
            notes.append(f"The training log of {version.ref} cannot be read: {error.message}")
            continue
        if entries:
            found = [*entries, *found]
            begins = min(entry.step for entry in entries)
    return sorted(found, key=lambda entry: entry.step), notes


def _read_log(store: LocalStore, version: Version) -> Iterator[LogEntry]:
    if any(file.name == TRAINER_STATE for file in version.with_role("original")):
        folder = open_files(store, version, roles=("original",), verify="changed")
        yield from read_log(read_json_object(folder / TRAINER_STATE, constants=True))


def _read(connection: Connection, version: Version) -> dict[str, TensorRecord] | None:
    return None if version.weights_digest is None else read_tensors(connection, version.weights_digest)


def _count(
    a: tuple[Version, Mapping[str, TensorRecord] | None], b: tuple[Version, Mapping[str, TensorRecord] | None]
) -> int | None:
    """Count the tensors of either that are not the other's; None if names mean other things, or digests are unknown."""
    (one, old), (other, new) = a, b
    if old is None or new is None or one.layout != other.layout:
        return None
    return sum(old.get(name) != new.get(name) for name in old.keys() | new.keys())
