"""What somebody asks to have registered, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from registry.architecture import Architecture, Difference
from registry.checkpoint import Checkpoint
from registry.fetch import ParityChoice
from registry.sources import Finding, SourceOptions
from registry.versions import Version

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

    from registry.verify import Parity


@dataclass(frozen=True)
class Request:
    """What somebody asks to have registered: what is at `source`, or the network in memory that it then describes.

    `relations` are those of single parents, absent or not, as they are written; `relation` is that of all others.
    """

    name: str
    source: str
    parents: tuple[str, ...] = ()
    relation: str | None = None
    relations: Mapping[str, str | None] = field(default_factory=dict)
    absent_parents: tuple[str, ...] = ()
    step: int | None = None
    allow: tuple[str, ...] = ()
    note: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    parity: ParityChoice | None = None
    source_options: SourceOptions = field(default_factory=SourceOptions)
    link: bool = False
    dry_run: bool = False
    network: HookedTransformer | None = None
    new_step: bool = False
    """Refuse other weights than those that the model has under this step already."""

    def choose_step(self, checkpoint: Checkpoint) -> int | None:
        """Return the step that was asked for, or else the one that the source says."""
        return self.step if self.step is not None else checkpoint.source.step


@dataclass(frozen=True)
class Registration:
    """What came of it: `version` is None after a dry run; `outcome` says whether it was there already."""

    outcome: Literal["registered", "unchanged", "would-register"]
    name: str
    version: Version | None
    architecture: Architecture
    weights_digest: str | None
    n_parameters: int
    admitted_differences: tuple[Difference, ...]
    parity: Parity | None
    findings: tuple[Finding, ...]
