"""Load a version: check its blobs and its fingerprint, rebuild the network, attach the registered tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformer_lens import HookedTransformer

from registry.architecture import Architecture, find_differences
from registry.convert import (
    RAW,
    Processing,
    build_hooked_network,
    choose_hooked_processing,
    convert_network,
    guard_processing,
)
from registry.errors import ArchitectureMismatch, InvalidInput, ProcessingConflict
from registry.families import find_family_by_name
from registry.families.family import check_config
from registry.files import open_files
from registry.networks import build_source_network
from registry.processing import can_center_writing
from registry.progress import Progress, no_progress
from registry.sources.hooked_json import HOOKED_CONFIG, read_description
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
    asked: Mapping[str, bool] = field(default_factory=dict)
    """The processing flags that were given by name."""


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
    return LoadOptions(Processing(**{**vars(base), **chosen}), kind, where, n_devices, chosen)


def load_network(
    store: LocalStore, version: Version, options: LoadOptions, progress: Progress = no_progress
) -> HookedTransformer:
    """Return the version's HookedTransformer.

    Every blob is hashed on the way. The architecture is derived again from the stored config and must be the registered
    one. Raises ArtifactMissing, ArtifactCorrupt or ArchitectureMismatch, and ProcessingConflict for raw weights of a
    version that was registered folded.
    """
    folder = open_files(store, version, progress)
    build = _build_hooked if version.layout == "hooked" else _build_from_huggingface
    network = build(folder, version, options)
    network.cfg.model_name = version.ref
    if version.with_role("tokenizer"):
        attach_tokenizer(network, load_tokenizer(folder))
    return network


def _build_from_huggingface(folder: Path, version: Version, options: LoadOptions) -> HookedTransformer:
    family = find_family_by_name(version.family)
    values = check_config(family, read_json_object(folder / "config.json"))
    architecture = family.describe(values)
    _check_fingerprint(version, architecture, family.config_keys)
    _warn_unverified(version)
    processing = guard_processing(architecture, options.processing)
    _warn_left_out(version, options.asked, processing)
    files = [folder / file.name for file in version.with_role("weights")]
    # what is stored in fewer bits loses nothing in float32, and folding in it loses less
    working_dtype = torch.float64 if options.dtype == torch.float64 else torch.float32
    source = build_source_network(family, values, files, working_dtype)
    return convert_network(
        source,
        family,
        architecture,
        processing,
        dtype=options.dtype,
        device=options.device,
        n_devices=options.n_devices,
    )


def _build_hooked(folder: Path, version: Version, options: LoadOptions) -> HookedTransformer:
    """Build the network of hooked weights: as they are if their norms are folded, processed as wanted if not."""
    described = read_description(read_json_object(folder / HOOKED_CONFIG))
    architecture, applied = described.architecture, described.processing
    _check_fingerprint(version, architecture, {})
    _refuse_undoing(version, applied, options.processing)
    _warn_unverified(version)
    allowed = guard_processing(architecture, options.processing)
    _warn_left_out(version, options.asked, allowed)
    processing = choose_hooked_processing(architecture, applied, allowed)
    possible = {name for name in allowed.active if name != "center_writing_weights" or can_center_writing(architecture)}
    _warn_otherwise(version, possible, {*applied, *processing.active}, options.asked)
    files = [folder / file.name for file in version.with_role("weights")]
    network = build_hooked_network(
        {name: tensor for file in files for name, tensor in load_file(file).items()},
        architecture,
        processing,
        folded="fold_ln" in applied,
        dtype=options.dtype,
        device=options.device,
        n_devices=options.n_devices,
    )
    if described.default_prepend_bos is not None:
        network.cfg.default_prepend_bos = described.default_prepend_bos
    return network


def _refuse_undoing(version: Version, applied: Sequence[str], wanted: Processing) -> None:
    """Refuse raw weights of a version whose norms were folded before it was registered: nobody has them."""
    if "fold_ln" in applied and not wanted.fold_ln:
        raise ProcessingConflict(
            f"{version.ref} was registered with its norms folded, and folding cannot be undone.",
            applied=applied,
            hint="Load it without processed=False and fold_ln=False; it is given as it was registered.",
        )


def _warn_unverified(version: Version) -> None:
    if not version.is_verified:
        warnings.warn(f"{version.ref} was registered without verification.", UnverifiedVersion, stacklevel=5)


def _warn_left_out(version: Version, asked: Mapping[str, bool], done: Processing) -> None:
    """Warn of flags that were asked for by name; what transformer-lens does by default goes without saying."""
    for name in sorted(name for name, value in asked.items() if value and name not in done.active):
        warnings.warn(f"{name} would change what {version.ref} computes; it was left out.", stacklevel=5)


def _warn_otherwise(version: Version, possible: Set[str], done: Set[str], asked: Mapping[str, bool]) -> None:
    """Warn of flags that were asked for by name and are otherwise in weights that were registered processed.

    None of them changes what is computed, and undoing or redoing one would rewrite what was trained.
    """
    for name, value in asked.items():
        if value and name in possible - done:
            warnings.warn(f"{name} was not applied to {version.ref}: it would rewrite trained weights.", stacklevel=5)
        elif not value and name in done:
            warnings.warn(f"{name} had been applied to {version.ref} already; it cannot be undone.", stacklevel=5)


def _check_fingerprint(version: Version, now: Architecture, config_keys: Mapping[str, str]) -> None:
    if now.fingerprint == version.fingerprint:
        return
    differences = find_differences(Architecture(version.architecture), now, config_keys)
    raise ArchitectureMismatch(
        f"{version.ref} was registered with another architecture than its config.json describes now.",
        differences=differences,
        hint="Either the record was altered (see: lensreg audit verify), or this lens-registry reads the config "
        "otherwise than the one that registered it; use that one, and please report it.",
    )
