"""Build the network of a version in hooked layout: as it was registered if its norms are folded, else as wanted."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from registry.checkpoint import check_fingerprint
from registry.convert import Processing, choose_hooked_processing, guard_processing, process_hooked_weights
from registry.derived import derive_tensors, describe_tensors
from registry.errors import ProcessingConflict
from registry.load_options import LoadOptions, warn_left_out, warn_unverified
from registry.networks import make_hooked_config, make_hooked_network
from registry.processing import can_center_writing
from registry.sources.hooked_json import HOOKED_CONFIG, read_description
from registry.sources.json_file import read_json_object
from registry.store.derived import DerivedFiles
from registry.versions import Version

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def build_registered_network(
    derived: DerivedFiles, folder: Path, version: Version, options: LoadOptions
) -> HookedTransformer:
    """Build the network of the hooked weights in `folder`, without its tokenizer.

    Raises ProcessingConflict for what cannot be undone, and ArchitectureMismatch or ProcessingConflict if the record
    is not what the stored hooked_config.json says.
    """
    described = read_description(read_json_object(folder / HOOKED_CONFIG))
    architecture, applied = described.architecture, described.processing
    check_fingerprint(version, architecture, {})
    _check_processing(version, applied)
    _refuse_undoing(version, applied, options.processing)
    warn_unverified(version)
    allowed = guard_processing(architecture, options.processing)
    warn_left_out(version, options.asked, allowed)
    processing = choose_hooked_processing(architecture, applied, allowed)
    possible = {name for name in allowed.active if name != "center_writing_weights" or can_center_writing(architecture)}
    _warn_otherwise(version, possible, {*applied, *processing.active}, options.asked)
    folded = "fold_ln" in applied
    files = [folder / file.name for file in version.with_role("weights")]
    registered = {name: tensor for file in files for name, tensor in load_file(file).items()}

    def make() -> dict[str, torch.Tensor]:
        return process_hooked_weights(registered, architecture, processing, folded=folded, dtype=options.dtype)

    if processing.active or any(tensor.dtype != options.dtype for tensor in registered.values()):
        facts = describe_tensors(version, processing.active, options.dtype)
        tensors = derive_tensors(derived, facts, version.ref, make, options.verify)
    else:  # the registered file itself is mapped
        tensors = make()
    cfg = make_hooked_config(
        architecture,
        None,
        folded=folded or processing.fold_ln,
        dtype=options.dtype,
        device=options.device,
        n_devices=options.n_devices,
    )
    return make_hooked_network(cfg, tensors)


def read_default_prepend_bos(folder: Path) -> bool | None:
    """Return what the network did with texts when it was registered, whatever its tokenizer has."""
    return read_description(read_json_object(folder / HOOKED_CONFIG)).default_prepend_bos


def _check_processing(version: Version, applied: Sequence[str]) -> None:
    """Refuse a record that says otherwise than the stored file what the weights have gone through."""
    if version.processing != tuple(applied):
        raise ProcessingConflict(
            f"{version.ref} is recorded as having gone through {_name(version.processing)}, and its {HOOKED_CONFIG} "
            f"says {_name(applied)}.",
            applied=applied,
            hint="The record was altered. See: lensreg audit verify; then restore a backup.",
        )


def _name(processing: Sequence[str] | None) -> str:
    if processing is None:
        return "what nobody recorded"
    return ", ".join(processing) or "nothing"


def _refuse_undoing(version: Version, applied: Sequence[str], wanted: Processing) -> None:
    """Refuse raw weights of a version whose norms were folded before it was registered: nobody has them."""
    if "fold_ln" in applied and not wanted.fold_ln:
        raise ProcessingConflict(
            f"{version.ref} was registered with its norms folded, and folding cannot be undone.",
            applied=applied,
            hint="Load it without processed=False and fold_ln=False; it is given as it was registered.",
        )


def _warn_otherwise(version: Version, possible: Set[str], done: Set[str], asked: Mapping[str, bool]) -> None:
    """Warn of flags that were asked for by name and are otherwise in weights that were registered processed.

    None of them changes what is computed, and undoing or redoing one would rewrite what was trained.
    """
    for name, value in asked.items():
        if value and name in possible - done:
            warnings.warn(f"{name} was not applied to {version.ref}: it would rewrite trained weights.", stacklevel=5)
        elif not value and name in done:
            warnings.warn(f"{name} had been applied to {version.ref} already; it cannot be undone.", stacklevel=5)
