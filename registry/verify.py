"""Parity: the measured difference between the source network's log-probs and the converted network's.

Both sides run in float64 on the same tokens, raw and processed. So does the source in other ways that should give the
same, with another implementation of attention and with all positions shifted; what that changes is the noise floor. A
fixed bound would be blind or wrong: in float32 a right conversion of SmolLM2 differs by 1e-4, and a wrong epsilon can
differ by 4e-4 (DESIGN.md §7).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from registry.architecture import Architecture
from registry.convert import RAW, Processing, check_finite, convert_network, guard_processing
from registry.errors import ParityFailure
from registry.families.family import Family
from registry.networks import build_source_network
from registry.progress import Counter, Progress, no_progress
from registry.routing import Computed, compute_hooked, compute_source, find_largest_difference
from registry.sinks import SINK_ATTENTION

N_SEQUENCES = 2
MIN_PROBE_TOKENS = 64
SCALED_ROPE_PROBE_TOKENS = 512
# bound = max(FLOOR_OF_BOUND, 10 * noise floor); above MAX_NOISE the floor itself could hide a wrong conversion
BOUND = {torch.float64: 1e-4, torch.float32: 1e-3}
MAX_NOISE = {torch.float64: 1e-3, torch.float32: 1e-2}


@dataclass(frozen=True)
class Parity:
    """What was measured: the largest absolute differences of log-probs, in nats, over all positions and tokens."""

    raw: float
    processed: float
    noise_floor: float
    bound: float
    dtype: str
    n_tokens: int
    probe_digest: str
    processing: tuple[str, ...]
    versions: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether raw and processed are both within the bound."""
        return self.raw <= self.bound and self.processed <= self.bound

    def as_dict(self) -> dict[str, Any]:
        """Give the measurement as plain data."""
        return {**asdict(self), "processing": list(self.processing), "passed": self.passed}


def make_probe(architecture: Architecture) -> torch.Tensor:
    """Make the probe tokens, (N_SEQUENCES, n_tokens): seeded, longer than any attention window if n_ctx allows."""
    scaled = (
        architecture.get("use_NTK_by_parts_rope")
        or architecture.get("use_yarn_rope")
        or architecture.get("rotary_scaling_factor", 1.0) != 1.0
    )
    length = max(
        MIN_PROBE_TOKENS,
        2 * (architecture.get("window_size") or 0),
        SCALED_ROPE_PROBE_TOKENS if scaled else 0,
    )
    length = min(length, architecture["n_ctx"])
    chooser = random.Random(20261123)
    rows = [[chooser.randrange(architecture["d_vocab"]) for _ in range(length)] for _ in range(N_SEQUENCES)]
    return torch.tensor(rows)


def measure_parity(
    family: Family,
    values: Mapping[str, Any],
    architecture: Architecture,
    files: Sequence[Path],
    *,
    dtype: torch.dtype = torch.float64,
    progress: Progress = no_progress,
) -> Parity:
    """Measure parity of the network in `files`, raw and with the default processing.

    Raises UnusableWeights for NaN and infinities, which HookedTransformer would hide. At most the source network and
    one converted network are in memory at a time.
    """
    counter = Counter(progress, "verifying", 5)
    probe = make_probe(architecture)
    source = build_source_network(family, values, files, dtype)
    check_finite(source.state_dict())
    counter.advance()
    reference = compute_source(source, family, probe, "eager")
    noise_floor = _measure_noise(source, family, architecture, probe, reference)
    counter.advance()
    processing = guard_processing(architecture, Processing())
    differences = []
    for one in (RAW, processing):
        network = convert_network(source, family, architecture, one, dtype=dtype)
        differences.append(find_largest_difference(reference, compute_hooked(network, probe, reference)))
        del network
        counter.advance()
    counter.advance()
    return Parity(
        raw=differences[0],
        processed=differences[1],
        noise_floor=noise_floor,
        bound=max(BOUND[dtype], 10 * noise_floor),
        dtype=str(dtype).removeprefix("torch."),
        n_tokens=probe.numel(),
        probe_digest=hashlib.sha256(probe.numpy().tobytes()).hexdigest(),
        processing=tuple(processing.active),
        versions={name: version(name) for name in ("torch", "transformers", "transformer-lens")},
    )


def refuse_disparity(parity: Parity, location: str) -> None:
    """Raise ParityFailure if the converted network computes something else, or if noise would hide that it does."""
    numbers = (
        f"raw {parity.raw:.1e}, processed {parity.processed:.1e}, bound {parity.bound:.1e} "
        f"(noise floor {parity.noise_floor:.1e}, {parity.dtype}, {parity.n_tokens} tokens)"
    )
    noise_limit = MAX_NOISE[getattr(torch, parity.dtype)]
    if not parity.noise_floor <= noise_limit:
        raise ParityFailure(
            f"{location} cannot be verified: its own two ways to compute attention differ by {parity.noise_floor:.1e}.",
            parity=parity,
            hint="The weights may be far out of range. Nothing was stored.",
        )
    if not parity.passed:
        raise ParityFailure(
            f"{location} converts to a network that computes something else: {numbers}.",
            parity=parity,
            hint="Nothing was stored. This is a fault of the conversion, not of your checkpoint; please report it.",
        )


def _measure_noise(
    source: PreTrainedModel, family: Family, architecture: Architecture, probe: torch.Tensor, reference: Computed
) -> float:
    """Return how far the source is from itself where it should compute the same: its noise floor.

    Attention is computed in another way. And where positions are rotary, all of them are shifted by one: transformers
    computes the angles in float32 whatever the dtype, so that at the 500th position they are off by 2e-5.
    """
    other = SINK_ATTENTION if architecture["use_attention_sinks"] else "sdpa"
    noise = find_largest_difference(reference, compute_source(source, family, probe, other, like=reference))
    if architecture["positional_embedding_type"] == "rotary" and probe.shape[1] > 1:
        shorter = reference.without_last()  # a table of positions may end with the probe
        shifted = compute_source(source, family, probe[:, :-1], "eager", like=shorter, first_position=1)
        noise = max(noise, find_largest_difference(shorter, shifted))
    return noise
