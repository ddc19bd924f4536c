"""Parity of hooked weights, which nothing has to convert: what is stored against what transformer-lens loads itself.

The reference is a HookedTransformer that transformer-lens builds, with initialised weights, and fills by its own strict
`load_state_dict`. No other network is there to compare with: whether the architecture is the one of training is for the
fingerprint. Raw weights are measured processed, too. The noise floor is what it changes to run the reference on each
sequence of the probe by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from registry.architecture import Architecture
from registry.convert import RAW, Processing, build_hooked_network, check_finite, choose_hooked_processing
from registry.networks import make_hooked_config
from registry.progress import Counter, Progress, no_progress
from registry.quiet import quiet
from registry.routing import Computed, find_largest_difference
from registry.sketch import Sketch
from registry.take_sketch import take_sketch
from registry.verify import BOUND, Parity, make_probe, refuse_disparity

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def check_finite_files(files: Sequence[Path]) -> None:
    """Refuse NaN and infinities in safetensors files; see `check_finite`."""
    for file in files:
        check_finite(load_file(file))


def verify_hooked_weights(
    architecture: Architecture,
    applied: Sequence[str],
    files: Sequence[Path],
    *,
    choice: str | None,
    location: str,
    progress: Progress = no_progress,
) -> tuple[Parity | None, Sketch | None]:
    """Measure parity in the precision that was chosen (None: float64, float32 with experts) and refuse disparity.

    With the choice `skip` nothing is measured; NaN and infinities are refused all the same. The sketch is given, too.
    """
    if choice == "skip":
        check_finite_files(files)
        return None, take_sketch({name: tensor for file in files for name, tensor in load_file(file).items()}, applied)
    # not every kind of HookedTransformer's experts runs in float64: some raise for mixed dtypes
    default = "float64" if architecture["num_experts"] is None else "float32"
    dtype = getattr(torch, choice or default)
    parity = measure_hooked_parity(architecture, applied, files, dtype=dtype, progress=progress)
    refuse_disparity(parity, location)
    return parity, parity.sketch


def measure_hooked_parity(
    architecture: Architecture,
    applied: Sequence[str],
    files: Sequence[Path],
    *,
    dtype: torch.dtype = torch.float64,
    progress: Progress = no_progress,
) -> Parity:
    """Measure parity of the hooked weights in `files`, which have gone through the processing `applied`.

    Raises UnusableWeights for NaN and infinities, which HookedTransformer would hide.
    """
    counter = Counter(progress, "verifying", 3)
    check_finite_files(files)
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    folded = "fold_ln" in applied
    probe = make_probe(architecture)
    theirs = _load_strictly(architecture, tensors, folded, dtype)
    reference = _log_probs(theirs, probe)
    noise_floor = _find_difference(reference, torch.cat([_log_probs(theirs, row[None]) for row in probe]))
    del theirs
    counter.advance()
    wanted = choose_hooked_processing(architecture, applied, Processing())
    differences = []
    for processing in (RAW, wanted) if wanted != RAW else (RAW,):
        ours = build_hooked_network(tensors, architecture, processing, folded=folded, dtype=dtype)
        differences.append(_find_difference(reference, _log_probs(ours, probe)))
        del ours
        counter.advance()
    as_it_is = differences[0]
    return Parity(
        raw=None if folded else as_it_is,
        processed=differences[-1] if folded or wanted != RAW else None,
        noise_floor=noise_floor,
        bound=max(BOUND[dtype], 10 * noise_floor),
        dtype=str(dtype).removeprefix("torch."),
        n_tokens=probe.numel(),
        probe_digest=hashlib.sha256(probe.numpy().tobytes()).hexdigest(),
        processing=tuple(applied) if folded else (*applied, *wanted.active),
        versions={name: version(name) for name in ("torch", "transformers", "transformer-lens")},
        sketch=take_sketch(tensors, applied),
    )


def _load_strictly(
    architecture: Architecture, tensors: dict[str, torch.Tensor], folded: bool, dtype: torch.dtype
) -> HookedTransformer:
    """Let transformer-lens initialise the network and load the weights; the buffers are its own."""
    from transformer_lens import HookedTransformer

    cfg = make_hooked_config(architecture, None, folded=folded, dtype=dtype, device="cpu")
    with quiet():
        network = HookedTransformer(cfg, move_to_device=False)
    network.load_state_dict({**network.state_dict(), **tensors}, strict=True)
    return network.eval()


def _log_probs(network: HookedTransformer, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        log_probs: torch.Tensor = network(tokens).log_softmax(-1)
    return log_probs


def _find_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return find_largest_difference(Computed(one), Computed(other))
