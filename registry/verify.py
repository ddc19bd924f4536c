"""Parity: the measured difference between the source network's log-probs and the converted network's.

Both sides run in float64 on the same tokens, raw and processed. What the source itself leaves open is the noise floor:
it runs again with another implementation of attention and, if it has rotary positions, with every position shifted by
one. Neither changes the function, but transformers computes rotary angles in float32 whatever the network's dtype, so
the second changes the numbers by as much as a right conversion does, and more the further out the positions are. A
fixed bound would be blind or wrong: in float32 a right conversion of SmolLM2 differs by 1e-4, and a wrong epsilon can
differ by 4e-4 (DESIGN.md §7).
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from registry.architecture import Architecture
from registry.attention import choose_second_attention
from registry.convert import (
    RAW,
    Processing,
    build_processed_network,
    check_finite,
    convert_network,
    convert_weights,
    guard_processing,
)
from registry.errors import ParityFailure
from registry.families.family import Family
from registry.networks import build_source_network
from registry.progress import Counter, Progress, no_progress
from registry.routing import Computed, compute_hooked, compute_source, find_largest_difference
from registry.sketch import Sketch
from registry.take_sketch import take_sketch

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer
    from transformers import PreTrainedModel

MIN_PROBE_TOKENS = 512
ROTARY_SEQUENCE = 128
BEYOND = 64
# the attention scores of 32 heads take 4.4 GB then; windows that are longer, only the fingerprint sees
MAX_SEQUENCE = 4096 + BEYOND
# bound = max(FLOOR_OF_BOUND, 10 * noise floor); above MAX_NOISE the floor itself could hide a wrong conversion
BOUND = {torch.float64: 1e-4, torch.float32: 1e-3}
MAX_NOISE = {torch.float64: 1e-3, torch.float32: 1e-2}


@dataclass(frozen=True)
class Parity:
    """What was measured: the largest absolute differences of log-probs, in nats, over all positions and tokens.

    None was not measured: hooked weights whose norms are folded have no raw network, and where there is no
    HookedTransformer at all, what was measured is the `bridge`, as it is without compatibility mode. `sketch` is of the
    weights that were measured, raw where they can be.
    """

    raw: float | None
    processed: float | None
    noise_floor: float
    bound: float
    dtype: str
    n_tokens: int
    probe_digest: str
    processing: tuple[str, ...]
    versions: Mapping[str, str]
    bridge: float | None = None
    sketch: Sketch | None = field(default=None, repr=False, compare=False)

    @property
    def measured(self) -> dict[str, float]:
        """The differences that were measured, by what was compared with the source."""
        differences = {"raw": self.raw, "processed": self.processed, "bridge": self.bridge}
        return {name: value for name, value in differences.items() if value is not None}

    @property
    def passed(self) -> bool:
        """Whether all that was measured is within the bound."""
        return all(value <= self.bound for value in self.measured.values())

    def as_dict(self) -> dict[str, Any]:
        """Give the measurement as plain data."""
        record = asdict(replace(self, sketch=None))
        del record["sketch"]
        return {**record, "processing": list(self.processing), "passed": self.passed}


def make_probe(architecture: Architecture) -> torch.Tensor:
    """Make the probe tokens, (n_sequences, length), seeded; at least MIN_PROBE_TOKENS in all.

    They reach beyond any attention window, and with scaled rotary positions beyond the context of the first training,
    as far as n_ctx and MAX_SEQUENCE allow. Plain rotary positions are probed with several shorter sequences, since
    noise grows with the position; a rotary sequence leaves one position of n_ctx free for the shift.
    """
    is_rotary = architecture["positional_embedding_type"] == "rotary"
    length = max(
        ROTARY_SEQUENCE if is_rotary and not _is_scaled(architecture) else MIN_PROBE_TOKENS,
        BEYOND + (architecture.get("window_size") or 0),
        BEYOND + int(_original_context(architecture)),
    )
    n_ctx = architecture["n_ctx"]  # None: recurrent layers, with no positions to run out of
    length = max(1, min(length, MAX_SEQUENCE, MAX_SEQUENCE if n_ctx is None else n_ctx - is_rotary))
    n_sequences = math.ceil(MIN_PROBE_TOKENS / length)
    chooser = random.Random(20261123)
    rows = [[chooser.randrange(architecture["d_vocab"]) for _ in range(length)] for _ in range(n_sequences)]
    return torch.tensor(rows)


def _is_scaled(architecture: Architecture) -> bool:
    return bool(
        architecture.get("use_NTK_by_parts_rope")
        or architecture.get("use_yarn_rope")
        or architecture.get("rotary_scaling_factor", 1.0) != 1.0
    )


def _original_context(architecture: Architecture) -> float:
    """Return the context that rotary positions were first trained with; 0 where they are not scaled."""
    if not _is_scaled(architecture):
        return 0
    known = architecture.get("NTK_original_ctx_len") or architecture.get("yarn_original_max_position_embeddings")
    return float(known or architecture["n_ctx"] / architecture["rotary_scaling_factor"])


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
    source = build_source_network(family, values, files, dtype)
    check_finite(source.state_dict())
    counter.advance()
    reference = measure_reference(source, family, architecture)
    counter.advance()
    processing = guard_processing(architecture, Processing())
    network = convert_network(source, family, architecture, RAW, dtype=dtype)
    raw = reference.measure_hooked(network)
    sketch = take_sketch(network.state_dict())
    del network
    counter.advance()
    held = [convert_weights(source, family, architecture, RAW)]
    del source  # what is processed next is copied several times
    network = build_processed_network(held, family, architecture, processing, dtype=dtype)
    processed = reference.measure_hooked(network)
    counter.advance(2)
    return Parity(
        raw=raw,
        processed=processed,
        noise_floor=reference.noise_floor,
        bound=reference.bound,
        dtype=str(dtype).removeprefix("torch."),
        n_tokens=reference.probe.numel(),
        probe_digest=reference.probe_digest,
        processing=tuple(processing.active),
        versions=list_versions(),
        sketch=sketch,
    )


def list_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide what is measured."""
    return {name: version(name) for name in ("torch", "transformers", "transformer-lens")}


@dataclass(frozen=True)
class Reference:
    """What a network must agree with: what a source computes of the probe, and its own noise, in nats."""

    probe: torch.Tensor
    computed: Computed
    noise_floor: float

    @property
    def probe_digest(self) -> str:
        """The SHA-256, in hex, of the probe's tokens."""
        return hashlib.sha256(self.probe.numpy().tobytes()).hexdigest()

    @property
    def bound(self) -> float:
        """By how much log-probs may differ; more noise than MAX_NOISE is no excuse."""
        dtype = self.computed.log_probs.dtype
        return max(BOUND[dtype], 10 * min(self.noise_floor, MAX_NOISE[dtype]))

    def measure(self, network: Any) -> float:
        """Return the largest difference of log-probs of a network that gives logits for tokens."""
        with torch.inference_mode():
            log_probs = network(self.probe).log_softmax(-1)
        return find_largest_difference(Computed(self.computed.log_probs), Computed(log_probs))

    def measure_hooked(self, network: HookedTransformer) -> float:
        """Return the largest difference of log-probs, of tokens and of experts, of a HookedTransformer."""
        return find_largest_difference(self.computed, compute_hooked(network, self.probe, self.computed))


def measure_reference(source: PreTrainedModel, family: Family, architecture: Architecture) -> Reference:
    """Run the source network on the probe in its own dtype, and again in other ways for the noise floor.

    It is left with eager attention.
    """
    probe = make_probe(architecture).to(source.device)
    computed = compute_source(source, family, probe, "eager")
    second = compute_source(source, family, probe, choose_second_attention(source), like=computed)
    noise_floor = find_largest_difference(computed, second)
    del second
    if architecture["positional_embedding_type"] == "rotary" and probe.shape[1] < architecture["n_ctx"]:
        shifted = compute_source(source, family, probe, "eager", like=computed, first_position=1)
        noise_floor = max(noise_floor, find_largest_difference(computed, shifted))
    if source._can_set_attn_implementation():
        source.set_attn_implementation("eager")
    return Reference(probe, computed, noise_floor)


def refuse_disparity(parity: Parity, location: str) -> None:
    """Raise ParityFailure if the converted network computes something else, or if noise would hide that it does."""
    measured = ", ".join(f"{name} {value:.1e}" for name, value in parity.measured.items())
    numbers = (
        f"{measured}, bound {parity.bound:.1e} "
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
        what, fault = "converts to a network", "the conversion"
        if parity.bridge is not None:
            what, fault = "can only be run by a bridge, and has one", "transformer-lens's bridge"
        raise ParityFailure(
            f"{location} {what} that computes something else: {numbers}.",
            parity=parity,
            hint=f"Nothing was stored. This is a fault of {fault}, not of your checkpoint; please report it.",
        )
