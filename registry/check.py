"""Check a source without registering it: from its config and safetensors headers alone, the cheap checks first."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from registry.architecture import Architecture, Difference, check_allowed
from registry.checkpoint import Checkpoint, read_checkpoint
from registry.compare_parent import compare_with_parent
from registry.database import Database
from registry.errors import (
    AccessDenied,
    ArchitectureMismatch,
    RegistryError,
    SourceError,
    SourceNotFound,
    SourceUnreachable,
)
from registry.fetch import fetch_version
from registry.files import open_files
from registry.query import read_version
from registry.resolve import refuse_retired, resolve_ref
from registry.sources import Finding, ParentVersion, SourceOptions
from registry.sources.hooked_json import HOOKED_CONFIG
from registry.stage import Weights, describe_weights
from registry.store import LocalStore

ONLY_ADD = ("values (NaN and infinities)", "parity", "the tokenizer")
"""What headers cannot tell, and only registering does."""


@dataclass(frozen=True)
class Check:
    """What was found: `fault` is the refusal that registering would give, or None if the source would load.

    What is None was not reached; `findings` are no faults.
    """

    source: str
    fault: RegistryError | None = None
    family: str | None = None
    architecture: Architecture | None = None
    weights: Weights | None = None
    admitted_differences: tuple[Difference, ...] = ()
    findings: tuple[Finding, ...] = ()
    commit: str | None = None
    step: int | None = None


def check_source(
    database: Database | None,
    store: LocalStore,
    source: str,
    parents: Sequence[str],
    allow: Sequence[str],
    options: SourceOptions,
) -> Check:
    """Check `source`, also against its parents if there are any; `database` is needed for those only.

    Raises what keeps it from being checked at all.
    """
    allowed = check_allowed(allow)
    known = [_read_parent(database, store, ref) for ref in parents] if database is not None else []
    with tempfile.TemporaryDirectory(prefix="lensreg-") as scratch:
        done = Check(source)
        try:
            checkpoint = read_checkpoint(source, Path(scratch), known, options)
            done = _describe(checkpoint, source)
            done = _compare(done, store, known, checkpoint, allowed)
            return _check_tensors(done, checkpoint)
        except (SourceError, ArchitectureMismatch) as error:
            if not _is_fault(error):
                raise
            return replace(done, fault=error)


def _read_parent(database: Database, store: LocalStore, ref: str) -> ParentVersion:
    with database.read() as connection:
        resolved = resolve_ref(connection, ref)
        refuse_retired(resolved)
        version = read_version(connection, resolved.id)
    return ParentVersion(version, lambda: open_files(store, fetch_version(database, store, version)))


def _describe(checkpoint: Checkpoint, source: str) -> Check:
    opened = checkpoint.source
    return Check(
        source,
        family=checkpoint.family_name,
        architecture=checkpoint.architecture,
        findings=opened.findings,
        commit=opened.provenance.get("commit"),
        step=opened.step,
    )


def _compare(
    done: Check,
    store: LocalStore,
    parents: Sequence[ParentVersion],
    checkpoint: Checkpoint,
    allowed: frozenset[str],
) -> Check:
    admitted: list[Difference] = []
    for parent in parents:
        admitted += compare_with_parent(store, parent.version, checkpoint, done.source, allowed)
    return replace(done, admitted_differences=tuple(admitted))


def _check_tensors(done: Check, checkpoint: Checkpoint) -> Check:
    if checkpoint.family is None:
        from registry.hooked_weights import check_hooked_weights

        weights = Weights(checkpoint.source.tensors, None)
        check_hooked_weights(checkpoint.architecture, weights.tensors, HOOKED_CONFIG)
        return replace(done, weights=weights)
    weights = describe_weights(checkpoint.family, checkpoint.values, checkpoint.source.tensors)
    from registry.networks import check_tensors  # torch; what is refused before does not wait for it

    check_tensors(checkpoint.family, checkpoint.values, weights.tensors)
    return replace(done, weights=weights)


def _is_fault(error: RegistryError) -> bool:
    """Tell what is wrong with a source from what keeps anybody from looking at it."""
    if isinstance(error, SourceNotFound):
        path = error.fields.get("path")
        return path is not None and Path(path).exists()  # something of it is missing, and not all of it
    return not isinstance(error, (SourceUnreachable, AccessDenied))
