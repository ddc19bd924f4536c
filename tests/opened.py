"""A checkpoint read the way registering reads it, for tests that want no database."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from registry.architecture import Architecture
from registry.families import find_family
from registry.families.family import Family, check_config
from registry.networks import build_source_network
from registry.sources import open_source
from registry.verify import Parity, measure_parity


class Opened(NamedTuple):
    """Its family, checked values, architecture and weights files."""

    family: Family
    values: Mapping[str, Any]
    architecture: Architecture
    files: list[Path]

    def build(self, dtype: torch.dtype = torch.float32) -> Any:
        """Build the Hugging Face network."""
        return build_source_network(self.family, self.values, self.files, dtype)

    def measure(self, architecture: Architecture | None = None, dtype: torch.dtype = torch.float64) -> Parity:
        """Measure parity, converting with another architecture than its own if one is given."""
        return measure_parity(self.family, self.values, architecture or self.architecture, self.files, dtype=dtype)


def read_checkpoint(folder: Path) -> Opened:
    """Read a Hugging Face folder."""
    source = open_source(folder, folder)
    family = find_family(source.config)
    values = check_config(family, source.config)
    return Opened(family, values, family.describe(values), [file.path for file in source.with_role("weights")])
