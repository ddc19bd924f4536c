"""Verify the weights of a Hugging Face checkpoint: against the HookedTransformer, or the bridge where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from registry.architecture import Architecture
from registry.convert import check_finite
from registry.families.family import Family
from registry.networks import build_source_network
from registry.progress import Progress, no_progress
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
) -> Parity | None:
    """Measure parity in the precision that was chosen (None: float64) and refuse disparity.

    With the choice `skip` nothing is converted and None returned; NaN and infinities are refused all the same.
    """
    if choice == "skip":
        check_finite(build_source_network(family, values, files, dtype=None).state_dict())
        return None
    measure = measure_parity
    if family.convert is None:
        from registry.bridge import measure_bridge_parity as measure  # it takes seconds to import
    parity = measure(family, values, architecture, files, dtype=getattr(torch, choice or "float64"), progress=progress)
    refuse_disparity(parity, location)
    return parity
