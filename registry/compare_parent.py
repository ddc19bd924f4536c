"""Compare a checkpoint with its declared parent: in architecture, and in parameters that leave no trace in it."""

from __future__ import annotations

from registry.architecture import (
    N_PARAMETERS,
    PARAMETER_FIELDS,
    Architecture,
    Difference,
    find_differences,
    find_parameter_differences,
    refuse_differences,
)
from registry.checkpoint import Checkpoint
from registry.families import find_family_by_name
from registry.families.family import check_config
from registry.files import open_files
from registry.sources.huggingface import CONFIG
from registry.sources.json_file import read_json_object
from registry.stage import describe_weights
from registry.store import LocalStore
from registry.versions import Version


def compare_with_parent(
    store: LocalStore, parent: Version, checkpoint: Checkpoint, source: str, allowed: frozenset[str]
) -> tuple[Difference, ...]:
    """Return the differences from the parent that were admitted, or raise ArchitectureMismatch for any other."""
    differences = find_differences(Architecture(parent.architecture), checkpoint.architecture, checkpoint.config_keys)
    more = _find_parameter_differences(store, parent, checkpoint)
    if not differences and not more:
        more = _compare_counts(parent, checkpoint)
    return refuse_differences(parent.ref, source, (*differences, *more), allowed)


def _find_parameter_differences(store: LocalStore, parent: Version, checkpoint: Checkpoint) -> tuple[Difference, ...]:
    """Compare the config with the parent's stored one; weights in hooked layout have every parameter there is."""
    if checkpoint.family is None or parent.layout != "huggingface":
        return ()
    family = find_family_by_name(parent.family)
    if not any(name in family.fields and name in checkpoint.values for name in PARAMETER_FIELDS):
        return ()
    config = read_json_object(open_files(store, parent, roles=("config",)) / CONFIG)
    return find_parameter_differences(check_config(family, config), checkpoint.values)


def _compare_counts(parent: Version, checkpoint: Checkpoint) -> tuple[Difference, ...]:
    """Compare how many parameters there are with a parent of another family, whose fields and names may be others.

    Qwen2 has biases that Llama has not, and computes the same without. Within a family a wrong number of tensors is
    found when they are checked one by one.
    """
    if checkpoint.family is None or parent.layout != "huggingface" or parent.family == checkpoint.family_name:
        return ()
    found = describe_weights(checkpoint.family, checkpoint.values, checkpoint.source.tensors).n_parameters
    return () if found == parent.n_parameters else (Difference(N_PARAMETERS, parent.n_parameters, found),)
