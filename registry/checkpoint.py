"""A checkpoint that has been understood: an opened source with its architecture, and the way to it in its layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from registry.architecture import Architecture, find_differences
from registry.errors import ArchitectureMismatch
from registry.families import find_family
from registry.families.family import Family, check_config
from registry.sources import ParentVersion, Source, SourceOptions, open_source
from registry.sources.code import refuse_code
from registry.sources.hooked_architecture import CUSTOM_FAMILY
from registry.sources.hooked_json import read_description
from registry.versions import Version


@dataclass(frozen=True)
class Checkpoint:
    """A source that has been understood; of its weights nothing but headers has been read.

    A Hugging Face checkpoint has the family that converts it, with its checked config. Weights in hooked layout need no
    converting; they have the processing that they have gone through instead.
    """

    source: Source
    architecture: Architecture
    family_name: str
    family: Family | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    processing: tuple[str, ...] | None = None

    @property
    def is_bridged_only(self) -> bool:
        """Whether there is no HookedTransformer of this, and a TransformerBridge is what can be had."""
        return self.family is not None and self.family.convert is None

    @property
    def config_keys(self) -> Mapping[str, str]:
        """Which config.json key an architecture field is read from."""
        return self.family.config_keys if self.family else {}


def read_checkpoint(
    location: str | Path,
    scratch: Path,
    parents: Sequence[ParentVersion] = (),
    options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
) -> Checkpoint:
    """Open a source and understand its config, or raise a SourceError; `scratch` is an empty folder."""
    source = open_source(location, scratch, parents, options)
    if options.strict:
        refuse_code(str(location), (one.as_dict() for one in source.findings))
    if source.layout == "hooked":
        described = read_description(source.config)
        family_name = described.family or CUSTOM_FAMILY
        return Checkpoint(source, described.architecture, family_name, processing=described.processing)
    family = find_family(source.config)
    values = check_config(family, source.config)
    return Checkpoint(source, family.describe(values), family.name, family, values)


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
