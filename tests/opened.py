"""A checkpoint read the way registering reads it, for tests that want no database."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformer_lens import HookedTransformer

from registry import checkpoint
from registry.architecture import Architecture
from registry.bridge import measure_bridge_parity
from registry.convert import Processing, convert_network
from registry.families.family import Family
from registry.networks import build_source_network
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

    def convert(self, processing: Processing, dtype: torch.dtype = torch.float32) -> HookedTransformer:
        """Convert it, processed like this."""
        return convert_network(self.build(), self.family, self.architecture, processing, dtype=dtype)

    def measure(self, architecture: Architecture | None = None, dtype: torch.dtype = torch.float64) -> Parity:
        """Measure parity, converting with another architecture than its own if one is given."""
        if self.family.convert is None:
            return measure_bridge_parity(self.family, self.values, self.architecture, self.files, dtype=dtype)
        return measure_parity(self.family, self.values, architecture or self.architecture, self.files, dtype=dtype)


def read_checkpoint(folder: Path) -> Opened:
    """Read a Hugging Face folder."""
    one = checkpoint.read_checkpoint(folder, folder)
    return Opened(one.family, one.values, one.architecture, [file.path for file in one.source.with_role("weights")])
