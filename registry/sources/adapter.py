"""A PEFT adapter folder: merged into its registered parent's own weights, and marked as such.

An adapter is no network; what it makes of its base is. So the merged network is what is registered, in a Hugging Face
folder with the parent's config.json, and the adapter's files are kept beside it, under names by which peft does not
find them: it would merge them a second time.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from registry.architecture import find_differences, find_parameter_differences
from registry.errors import ArchitectureMismatch, InvalidInput, UnsupportedSource
from registry.families import find_family, find_family_by_name
from registry.families.family import Family, check_config
from registry.sources.adapter_config import CONFIG as ADAPTER_CONFIG
from registry.sources.adapter_config import check_adapter_config, check_ranks
from registry.sources.adapter_files import read_adapter_weights
from registry.sources.huggingface import CONFIG, TOKENIZER_FILES, has_vocabulary, read_folder
from registry.sources.json_file import read_json_object
from registry.sources.source import Finding, ParentVersion, Source, SourceFile, SourceOptions
from registry.sources.trainer_state import read_trainer_state
from registry.versions import Version

_KEPT_AS = "original_{}"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def read_adapter(
    folder: Path,
    location: str,
    scratch: Path,
    parents: Sequence[ParentVersion],
    options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
) -> Source:
    """Merge the adapter in `folder` into its one parent, in `scratch`, and open that.

    Raises UnsupportedSource, UnsupportedConfig, WeightsMismatch or UnusableWeights if it cannot be merged into that
    parent, InvalidInput without one, and what reading its tensors raises.
    """
    weights = read_adapter_weights(folder, scratch, options)
    config = read_json_object(folder / ADAPTER_CONFIG)
    used = check_adapter_config(config)
    check_ranks(used, weights.tensors)
    parent = _choose_parent(location, config, parents)
    finding = _compare_names(config, parent.version)
    version, parent_folder = parent.version, parent.open_folder()
    family = find_family_by_name(version.family)
    values = check_config(family, read_json_object(parent_folder / CONFIG))
    _compare_config_beside(folder, family, values, version)

    from registry.sources.adapter_merge import merge_adapter

    merged = scratch / "merged"
    merge = merge_adapter(
        config={**used, "peft_type": config["peft_type"]},
        weights=weights.files[0].path,
        family=family,
        values=values,
        parent_files=[parent_folder / file.name for file in version.with_role("weights")],
        parent_ref=version.ref,
        parent_dtype=version.dtype,
        parity=options.parity,
        folder=merged,
    )
    _copy_rest(folder, parent_folder, version, merged)
    source = read_folder(merged, location, scratch)
    originals = (SourceFile(ADAPTER_CONFIG, folder / ADAPTER_CONFIG, "original"), *weights.files)
    kept = (replace(file, name=_KEPT_AS.format(file.name)) for file in originals)
    training = read_trainer_state([folder])
    return Source(
        "peft",
        location,
        source.config,
        (*source.files, *kept, *training.files),
        source.tensors,
        (*weights.findings, *merge.findings, *finding, *training.findings, *source.findings),
        step=training.step,
        relation="adapter-merged",
        provenance={
            "adapter": {name: config.get(name) for name in ("peft_type", "base_model_name_or_path", "revision")},
            "merge": merge.as_dict(),
            **weights.provenance,
            **training.provenance,
        },
    )


def _choose_parent(location: str, config: Mapping[str, Any], parents: Sequence[ParentVersion]) -> ParentVersion:
    if len(parents) != 1:
        named = config.get("base_model_name_or_path")
        raise InvalidInput(
            f"{location} is an adapter of {named!r}; it is merged into one parent, and {len(parents)} are given.",
            hint="Register that base first, and name it: --parent REF.",
            base=named,
        )
    if parents[0].version.layout != "huggingface":
        raise UnsupportedSource(
            f"{location} cannot be merged into {parents[0].version.ref}, which was registered in TransformerLens's "
            "layout: the adapter's matrices belong to Hugging Face's.",
            hint="Register the base as a Hugging Face folder, and name that as the parent.",
        )
    return parents[0]


def _compare_names(config: Mapping[str, Any], parent: Version) -> list[Finding]:
    """Compare the base that the adapter names with the parent.

    Two Hub models of different names are a contradiction, and so are two commits. A path says nothing on another
    machine, nor does a mirror's owner: if the last part of the name is not the parent's, that is pointed out.
    """
    named, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(named, str) or not named:
        return [Finding("base-not-confirmed", f"The adapter names no base; it was merged into {parent.ref}.")]
    repo, commit = parent.provenance.get("repo"), parent.provenance.get("commit")
    known = {_last_part(name) for name in (repo, parent.source_location, parent.model) if name}
    if _last_part(named) not in known:
        if repo and _HUB_ID.fullmatch(named):
            raise UnsupportedSource(
                f"The adapter was trained on {named}, and {parent.ref} is {repo}.",
                hint=f"Register {named} and name it as the parent. If both hold the same weights, say so: set "
                f'"base_model_name_or_path" to "{repo}" in {ADAPTER_CONFIG}.',
                base=named,
                parent=parent.ref,
            )
        message = f"The adapter was trained on {named!r}; that {parent.ref} is the same cannot be told from its name."
        return [Finding("base-not-confirmed", message)]
    if commit and isinstance(revision, str) and _COMMIT.fullmatch(revision) and revision != commit:
        raise UnsupportedSource(
            f"The adapter was trained on {named} at commit {revision[:12]}, and {parent.ref} is commit {commit[:12]}.",
            hint=f"Register {named}@{revision} and name it as the parent.",
            base=named,
            parent=parent.ref,
        )
    return []


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].partition("@")[0].casefold()


def _compare_config_beside(folder: Path, family: Family, values: Mapping[str, Any], parent: Version) -> None:
    """Refuse a config.json that lies beside the adapter and describes another architecture than the parent's.

    It is what the adapter was trained with: other rope scaling, say, with which the parent's config would be wrong.
    """
    if not (folder / CONFIG).is_file():
        return
    config = read_json_object(folder / CONFIG)
    beside = find_family(config)
    given = check_config(beside, config)
    differences = find_differences(family.describe(values), beside.describe(given), family.config_keys)
    differences += find_parameter_differences(values, given)
    if differences:
        raise ArchitectureMismatch(
            f"The config.json beside the adapter does not describe its parent {parent.ref}.",
            differences=differences,
            hint="Merge it where it was trained, model.merge_and_unload().save_pretrained(folder), and register that "
            "folder; or take config.json out of the folder if it has nothing to do with the adapter.",
            parent=parent.ref,
        )


def _copy_rest(folder: Path, parent_folder: Path, parent: Version, merged: Path) -> None:
    """Put beside the merged weights the parent's config, and the adapter's tokenizer or else the parent's."""
    kept = [CONFIG, *(file.name for file in parent.with_role("generation"))]
    own = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if has_vocabulary(own):
        places = [(folder, name) for name in own]
    else:
        places = [(parent_folder, file.name) for file in parent.with_role("tokenizer")]
    for place, name in [*((parent_folder, name) for name in kept), *places]:
        shutil.copyfile(place / name, merged / name)
