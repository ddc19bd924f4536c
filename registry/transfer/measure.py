"""Measure here again what was measured elsewhere: the parity of a received version, as registering does."""

from __future__ import annotations

from typing import Any

from registry.architecture import Architecture
from registry.errors import MalformedExport
from registry.families import find_family_by_name
from registry.families.family import check_config
from registry.fetch import ParityChoice, describe_parity
from registry.networks import check_tensors
from registry.progress import Progress
from registry.sources.json_file import read_json_object
from registry.stage import digest_staged_weights
from registry.store import LocalStore
from registry.transfer.files import find_config
from registry.transfer.form import VersionRecord


def measure_version(
    store: LocalStore, record: VersionRecord, parity: ParityChoice | None, progress: Progress
) -> list[dict[str, Any]]:
    """Return the rows of a new measurement of a version whose blobs are here.

    Raises ParityFailure, and MalformedExport if the sketch that came with it is not that of its weights.
    """
    from registry.verify_hooked import verify_hooked_weights
    from registry.verify_weights import verify_weights

    folder = store.link_folder((one.name, one.digest) for one in record.files)
    files = [folder / one.name for one in record.files if one.role == "weights"]
    architecture = Architecture(record.architecture)
    if record.layout == "hooked":
        measured, ours = verify_hooked_weights(
            architecture, record.processing or (), files, choice=parity, location=record.ref, progress=progress
        )
    else:
        family = find_family_by_name(record.family)
        values = check_config(family, read_json_object(folder / find_config(record.layout)))
        if family.convert is not None:
            import registry.hooked_transformer  # noqa: F401 (raises HookedTransformerMissing)
        check_tensors(family, values, digest_staged_weights(family, values, files, progress).tensors)
        measured, ours = verify_weights(
            family, values, architecture, files, choice=parity, location=record.ref, progress=progress
        )
    theirs = record.sketch
    if ours is not None and theirs is not None and (ours.shapes, _bytes(ours)) != (theirs.shapes, _bytes(theirs)):
        raise MalformedExport(
            f"{record.ref} cannot be received: the sketch that came with it is not that of its weights.",
            hint="It was altered, or taken by another release; ask whoever sent it to take it again.",
        )
    return describe_parity(measured) if measured is not None else []


def _bytes(sketch: Any) -> dict[str, bytes]:
    return {name: sample.tobytes() for name, sample in sketch.samples.items()}
