"""Take the sketch of weights in files: of a version that was registered without one, or of a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from registry.architecture import Architecture
from registry.checkpoint import check_fingerprint
from registry.convert import check_finite
from registry.families import find_family_by_name
from registry.families.family import Family, check_config
from registry.files import open_files
from registry.networks import build_source_network
from registry.progress import Progress, no_progress
from registry.sketch import Sketch
from registry.sketch_network import sketch_network
from registry.sources.json_file import read_json_object
from registry.store import LocalStore
from registry.take_sketch import take_sketch
from registry.versions import Version


def sketch_version(store: LocalStore, version: Version, progress: Progress = no_progress) -> Sketch:
    """Take the sketch of a version from its blobs. Raises a StorageError if they are not what was registered."""
    folder = open_files(store, version, progress)
    files = [folder / file.name for file in version.with_role("weights")]
    if version.layout == "hooked":
        return sketch_hooked_files(files, version.processing or ())
    family = find_family_by_name(version.family)
    values = check_config(family, read_json_object(folder / "config.json"))
    architecture = family.describe(values)
    check_fingerprint(version, architecture, family.config_keys)
    return sketch_files(family, values, architecture, files)


def sketch_hooked_files(files: Sequence[Path], processing: Sequence[str]) -> Sketch:
    """Take the sketch of weights in hooked layout. Raises UnusableWeights for NaN and infinities."""
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    check_finite(tensors)
    return take_sketch(tensors, processing)


def sketch_files(
    family: Family, values: Mapping[str, Any], architecture: Architecture, files: Sequence[Path]
) -> Sketch:
    """Take the sketch of Hugging Face files as verifying takes it: of the raw converted network, if there is one.

    Raises UnusableWeights for NaN and infinities.
    """
    network = build_source_network(family, values, files, dtype=None)
    check_finite(network.state_dict())
    return sketch_network(network, family, architecture)
