"""A checkpoint that has been understood: an opened source with its family, its checked config and its architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.architecture import Architecture, find_differences
from registry.errors import ArchitectureMismatch
from registry.families import find_family
from registry.families.family import Family, check_config
from registry.sources import ParentVersion, Source, SourceOptions, open_source
from registry.versions import Version


@dataclass(frozen=True)
class Checkpoint:
    """A source that has been understood; of its weights nothing but headers has been read."""

    source: Source
    family: Family
    values: Mapping[str, Any]
    architecture: Architecture


def read_checkpoint(
    location: str | Path,
    scratch: Path,
    parents: Sequence[ParentVersion] = (),
    options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
) -> Checkpoint:
    """Open a source and understand its config, or raise a SourceError; `scratch` is an empty folder."""
    source = open_source(location, scratch, parents, options)
    family = find_family(source.config)
    values = check_config(family, source.config)
    return Checkpoint(source, family, values, family.describe(values))


def check_fingerprint(version: Version, now: Architecture, config_keys: Mapping[str, str]) -> None:
    """Raise ArchitectureMismatch if the stored config.json no longer means the registered architecture."""
    if now.fingerprint == version.fingerprint:
        return
    differences = find_differences(Architecture(version.architecture), now, config_keys)
    raise ArchitectureMismatch(
        f"{version.ref} was registered with another architecture than its config.json describes now.",
        differences=differences,
        hint="Either the record was altered (see: lensreg audit verify), or this lens-registry reads the config "
        "otherwise than the one that registered it; use that one, and please report it.",
    )
