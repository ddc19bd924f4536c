"""Whether the files of a version from elsewhere are what its record says: all is read, and nothing believed."""

from __future__ import annotations

from typing import Any

from registry.architecture import Architecture, find_differences
from registry.errors import MalformedArtifact, MalformedExport
from registry.families import find_family
from registry.families.family import Family, check_config
from registry.progress import no_progress
from registry.sources.code import CODE, asks_for_code, refuse_code
from registry.sources.hooked_architecture import CUSTOM_FAMILY
from registry.sources.hooked_json import read_description
from registry.sources.json_file import read_json_object
from registry.stage import Weights, digest_staged_hooked_weights, digest_staged_weights
from registry.store import LocalStore
from registry.transfer.files import find_config
from registry.transfer.form import VersionRecord


def inspect_version(store: LocalStore, record: VersionRecord, *, strict: bool = False) -> Weights | None:
    """Read config and tensors of a version whose blobs are here, and return the digests of its tensors.

    None if its weights were left on the Hub: fetching them checks them. Raises MalformedExport if the config describes
    another architecture than is recorded, or the files hold other weights; with `strict` UnsafeArtifact for what brings
    code along, by its config or by what was found when it was registered.
    """
    store.bring(list(record.blobs.items()))
    paths = {one.name: store.blob_path(one.digest) for one in record.files}
    config = read_json_object(paths[find_config(record.layout)])
    if strict:
        asked = asks_for_code(config)
        more = [{"code": CODE, "message": f"Its config asks for code: {', '.join(asked)}."}] if asked else []
        refuse_code(record.ref, [*record.findings, *more])
    family, values = _inspect_config(record, config)
    if record.is_lazy:
        return None
    files = [paths[one.name] for one in record.files if one.role == "weights"]
    try:
        weights = (
            digest_staged_hooked_weights(files, no_progress)
            if family is None
            else digest_staged_weights(family, values, files, no_progress)
        )
    except MalformedArtifact as error:
        raise _refuse(record, f"its weights cannot be read: {error.message}") from error
    if weights.digest != record.weights_digest:
        raise _refuse(record, "the files hold other weights than are recorded")
    if (weights.n_parameters, weights.dtype) != (record.n_parameters, record.dtype):
        raise _refuse(record, f"the files hold {weights.n_parameters:,} parameters ({weights.dtype})")
    return weights


def _inspect_config(record: VersionRecord, config: dict[str, Any]) -> tuple[Family | None, dict[str, Any]]:
    if record.layout == "hooked":
        described = read_description(config)
        _compare(record, described.architecture, described.family or CUSTOM_FAMILY)
        if described.processing != record.processing:
            raise _refuse(record, f"its config says {', '.join(described.processing) or 'no'} processing")
        return None, {}
    family = find_family(config)
    values = dict(check_config(family, config))
    _compare(record, family.describe(values), family.name)
    return family, values


def _compare(record: VersionRecord, described: Architecture, family: str) -> None:
    if family != record.family:
        raise _refuse(record, f"its config is one of {family}, and not of {record.family}")
    if described.fingerprint != record.fingerprint:
        names = [one.field for one in find_differences(Architecture(record.architecture), described)]
        raise _refuse(record, f"its config describes another architecture than is recorded ({', '.join(names[:10])})")


def _refuse(record: VersionRecord, what: str) -> MalformedExport:
    return MalformedExport(
        f"{record.ref} cannot be received: {what}. Nothing was registered.",
        hint="Either it was altered (ask whoever sent it), or this lens-registry reads the config otherwise than the "
        "one that registered it; use that one, and please report it.",
    )
