"""Verify the weights of a Hugging Face checkpoint: against the HookedTransformer, or the bridge where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from registry.architecture import Architecture
from registry.convert import check_finite
from registry.errors import HookedTransformerMissing
from registry.families.family import Family
from registry.networks import build_source_network
from registry.progress import Progress, no_progress
from registry.sketch import Sketch
from registry.sketch_network import sketch_network
from registry.verify import Parity, measure_parity, refuse_disparity


def verify_weights(
    family: Family,
    values: Mapping[str, Any],
    architecture: Architecture,
    files: Sequence[Path],
    *,
    choice: str | None,
    location: str,
    progress: Progress = no_progress,
) -> tuple[Parity | None, Sketch | None]:
    """Measure parity in the precision that was chosen (None: float64) and refuse disparity; give the sketch, too.

    With the choice `skip` nothing is measured, and NaN and infinities are refused all the same. There is no sketch then
    if transformer-lens has no HookedTransformer to convert to.
    """
    if choice == "skip":
        network = build_source_network(family, values, files, dtype=None)
        check_finite(network.state_dict())
        try:
            return None, sketch_network(network, family, architecture)
        except HookedTransformerMissing:
            return None, None
    measure = measure_parity
    if family.convert is None:
        from registry.bridge import measure_bridge_parity as measure  # it takes seconds to import
    parity = measure(family, values, architecture, files, dtype=getattr(torch, choice or "float64"), progress=progress)
    refuse_disparity(parity, location)
    return parity, parity.sketch
