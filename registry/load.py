"""Load a version: check its blobs and its fingerprint, rebuild the network, attach the registered tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformer_lens import HookedTransformer

from registry.checkpoint import check_fingerprint
from registry.convert import RAW, Processing, convert_network, guard_processing
from registry.errors import InvalidInput
from registry.families import find_family_by_name
from registry.families.family import check_config
from registry.files import open_files
from registry.networks import build_source_network
from registry.progress import Progress, no_progress
from registry.sources.json_file import read_json_object
from registry.store import LocalStore
from registry.tokenizers import attach_tokenizer, load_tokenizer
from registry.versions import Version


class UnverifiedVersion(UserWarning):
    """The version that was loaded was registered without measuring parity."""


@dataclass(frozen=True)
class LoadOptions:
    """How a network is wanted."""

    processing: Processing
    dtype: torch.dtype
    device: str
    n_devices: int = 1


def make_options(
    *,
    processed: bool,
    flags: Mapping[str, bool | None],
    dtype: str | torch.dtype,
    device: str | torch.device | None,
    n_devices: int,
) -> LoadOptions:
    """Turn keywords into options: `flags` that are None take transformer-lens's defaults, or off if not `processed`."""
    chosen = {name: value for name, value in flags.items() if value is not None}
    base = Processing() if processed else RAW
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise InvalidInput(f"{dtype!r} is no floating-point dtype.", hint='Use "float32", "bfloat16" or "float16".')
    where = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return LoadOptions(Processing(**{**vars(base), **chosen}), kind, where, n_devices)


def load_network(
    store: LocalStore, version: Version, options: LoadOptions, progress: Progress = no_progress
) -> HookedTransformer:
    """Return the version's HookedTransformer, or raise ArtifactMissing, ArtifactCorrupt or ArchitectureMismatch.

    Every blob is hashed on the way. The architecture is derived again from the stored config.json and must be the
    registered one.
    """
    folder = open_files(store, version, progress)
    family = find_family_by_name(version.family)
    values = check_config(family, read_json_object(folder / "config.json"))
    architecture = family.describe(values)
    check_fingerprint(version, architecture, family.config_keys)
    if not version.is_verified:
        warnings.warn(f"{version.ref} was registered without verification.", UnverifiedVersion, stacklevel=3)
    processing = guard_processing(architecture, options.processing)
    for name in sorted(set(options.processing.active) - set(processing.active)):
        warnings.warn(f"{name} would change what {version.ref} computes; it was left out.", stacklevel=3)
    files = [folder / file.name for file in version.with_role("weights")]
    # what is stored in fewer bits loses nothing in float32, and folding in it loses less
    working_dtype = torch.float64 if options.dtype == torch.float64 else torch.float32
    source = build_source_network(family, values, files, working_dtype)
    network = convert_network(
        source,
        family,
        architecture,
        processing,
        dtype=options.dtype,
        device=options.device,
        n_devices=options.n_devices,
    )
    network.cfg.model_name = version.ref
    if version.with_role("tokenizer"):
        attach_tokenizer(network, load_tokenizer(folder))
    return network
