"""Load a version: check its blobs and its fingerprint, map its tensors, attach the registered tokenizer.

It comes as a HookedTransformer, as a TransformerBridge, or as the Hugging Face network, all of the same bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from registry.architecture import Architecture
from registry.checkpoint import check_fingerprint
from registry.convert import RAW, Processing, convert_weights, guard_processing, process_converted_weights
from registry.derived import derive_tensors, describe_tensors
from registry.errors import UnsupportedLayout
from registry.families import find_family_by_name
from registry.families.family import Family, check_config
from registry.families.unsupported import refuse_hooked_transformer
from registry.files import open_files
from registry.lazy_tokenizer import attach_registered_tokenizer
from registry.load_options import LoadOptions, warn_left_out, warn_unverified
from registry.networks import build_source_network, make_hooked_config, make_hooked_network
from registry.progress import Progress, no_progress
from registry.sources.json_file import read_json_object
from registry.store import LocalStore
from registry.store.derived import DerivedFiles
from registry.store.stamps import Verify
from registry.tokenizers import load_tokenizer
from registry.versions import Version

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class OpenedVersion:
    """A version whose blobs and fingerprint have been checked: what its networks are built from."""

    version: Version
    folder: Path
    family: Family
    values: Mapping[str, Any]
    architecture: Architecture

    def build_source(self, dtype: torch.dtype) -> PreTrainedModel:
        """Build the Hugging Face network on the files of the store."""
        files = [self.folder / file.name for file in self.version.with_role("weights")]
        return build_source_network(self.family, self.values, files, dtype)

    def load_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Load the registered tokenizer; None if none was registered."""
        return load_tokenizer(self.folder) if self.version.with_role("tokenizer") else None


def open_version(
    store: LocalStore, version: Version, progress: Progress = no_progress, verify: Verify = "always"
) -> OpenedVersion:
    """Check every blob of a version, and that its config.json still describes the registered architecture."""
    folder = open_files(store, version, progress, verify=verify)
    family = find_family_by_name(version.family)
    values = check_config(family, read_json_object(folder / "config.json"))
    architecture = family.describe(values)
    check_fingerprint(version, architecture, family.config_keys)
    warn_unverified(version)
    return OpenedVersion(version, folder, family, values, architecture)


def load_network(
    derived: DerivedFiles, version: Version, options: LoadOptions, progress: Progress = no_progress
) -> HookedTransformer:
    """Return the version's HookedTransformer, on tensors that are mapped from its derived file.

    Every blob is hashed on the way unless its stamp stands. The architecture is derived again from the stored config
    and must be the registered one. Raises ArtifactMissing, ArtifactCorrupt or ArchitectureMismatch, ProcessingConflict
    for raw weights of a version that was registered folded, UnsupportedFamily if only a bridge can run its family, and
    HookedTransformerMissing where transformer-lens has none.
    """
    refuse_bridged(version)
    import registry.hooked_transformer  # noqa: F401 (before gigabytes are read)

    if version.layout == "hooked":
        from registry.load_hooked import build_registered_network, read_default_prepend_bos

        folder = open_files(derived.store, version, progress, verify=options.verify)
        network = build_registered_network(derived, folder, version, options)
        prepend_bos = read_default_prepend_bos(folder)
    else:
        opened = open_version(derived.store, version, progress, options.verify)
        processing = guard_processing(opened.architecture, options.processing)
        warn_left_out(version, options.asked, processing)
        network = _build_converted_network(derived, opened, processing, options)
        prepend_bos = None
    read_tokenizer = functools.partial(load_registered_tokenizer, derived.store, version, verify=options.verify)
    attach_registered_tokenizer(network, derived.store, version, read_tokenizer)
    if prepend_bos is not None:
        network.cfg.default_prepend_bos = prepend_bos
    network.cfg.model_name = version.ref
    return network


def refuse_bridged(version: Version) -> None:
    """Raise UnsupportedFamily if only a bridge can run the family of a version."""
    family = find_family_by_name(version.family) if version.layout == "huggingface" else None
    if family is not None and family.convert is None:
        raise refuse_hooked_transformer(
            family,
            f"{version.ref} cannot be loaded as a HookedTransformer",
            f'Registry.load_bridge("{version.ref}") gives its TransformerBridge, which is compared with its source '
            "before it is handed out, and load_hf that source, the Hugging Face network.",
        )


def _build_converted_network(
    derived: DerivedFiles, opened: OpenedVersion, processing: Processing, options: LoadOptions
) -> HookedTransformer:
    def make() -> dict[str, torch.Tensor]:
        working_dtype = _working_dtype(options.dtype)
        # the source is let go of before its weights are processed
        held = [convert_weights(opened.build_source(working_dtype), opened.family, opened.architecture, RAW)]
        return process_converted_weights(
            held,
            opened.family,
            opened.architecture,
            processing,
            working_dtype=working_dtype,
            dtype=options.dtype,
        )

    facts = describe_tensors(opened.version, processing.active, options.dtype)
    tensors = derive_tensors(derived, facts, opened.version.ref, make, options.verify)
    cfg = make_hooked_config(
        opened.architecture,
        opened.family,
        folded=processing.fold_ln,
        dtype=options.dtype,
        device=options.device,
        n_devices=options.n_devices,
    )
    return make_hooked_network(cfg, tensors)


def load_bridge_network(
    store: LocalStore,
    version: Version,
    *,
    compatibility: bool,
    dtype: torch.dtype,
    device: str,
    verify: Verify = "always",
    progress: Progress = no_progress,
) -> TransformerBridge:
    """Return the version's TransformerBridge, compared with its source network in float32 or float64.

    Raises UnsupportedBridge if it computes something else, and UnsupportedLayout if there are no Hugging Face weights.
    """
    from registry.bridge import build_bridge, build_checked_bridge

    _refuse_hooked(version, "A TransformerBridge")
    opened = open_version(store, version, progress, verify)

    def build(how: Callable[..., TransformerBridge], dtype: torch.dtype) -> TransformerBridge:
        source = opened.build_source(dtype).requires_grad_(True).to(device)
        tokenizer = opened.load_tokenizer()
        return how(source, opened.family, opened.architecture, tokenizer, name=version.ref, compatibility=compatibility)

    bridge = build(build_checked_bridge, _working_dtype(dtype))
    # not cast: bridge.to would round the frequencies of rotary positions, and forget weights that are no parameters
    return bridge if dtype == _working_dtype(dtype) else build(build_bridge, dtype)


def load_source_network(
    store: LocalStore,
    version: Version,
    *,
    dtype: torch.dtype,
    device: str,
    verify: Verify = "always",
    progress: Progress = no_progress,
) -> PreTrainedModel:
    """Return the version's Hugging Face network, in eval mode, with its registered generation config if it has one."""
    _refuse_hooked(version, "A Hugging Face network")
    opened = open_version(store, version, progress, verify)
    network = opened.build_source(dtype).requires_grad_(True).to(device)
    config = read_json_object(opened.folder / "config.json")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):  # they steer generation, not the network
        setattr(network.config, name, config.get(name))
    generation = [read_json_object(opened.folder / file.name) for file in version.with_role("generation")]
    network.generation_config = (
        GenerationConfig.from_dict(generation[0]) if generation else GenerationConfig.from_model_config(network.config)
    )
    return network


def load_registered_tokenizer(
    store: LocalStore, version: Version, progress: Progress = no_progress, verify: Verify = "always"
) -> PreTrainedTokenizerBase | None:
    """Return the version's tokenizer as it was registered, or None if it was registered without one."""
    if not version.with_role("tokenizer"):
        return None
    return load_tokenizer(open_files(store, version, progress, ("tokenizer", "config"), verify))


def _working_dtype(wanted: torch.dtype) -> torch.dtype:
    """What is stored in fewer bits loses nothing in float32, and processing in it loses less."""
    return torch.float64 if wanted == torch.float64 else torch.float32


def _refuse_hooked(version: Version, what: str) -> None:
    if version.layout != "huggingface":
        raise UnsupportedLayout(
            f"{what} cannot be made of {version.ref}: it was registered in TransformerLens's layout, and processed "
            "weights cannot be turned back into Hugging Face's.",
            hint="Registry.load gives its HookedTransformer.",
        )
