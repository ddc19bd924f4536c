"""TransformerBridges of registered versions: built from our own Hugging Face network, and checked against it.

transformer-lens builds a bridge from a name or a path; here it gets the network that was made of checked files. What a
bridge computes was not verified when the version was registered, so every bridge is compared with its own source before
it is handed out. With transformer-lens 3.9 and 4.3 that refuses the compatibility mode of BLOOM with
`apply_residual_connection_post_layernorm` (log-probs 2.1 off) and networks with LoRA layers in them (18 off); that of
GPT-OSS is 1.1 off as transformer-lens does it, and right (3e-6) without folding value biases, which guard_processing
turns off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from registry.architecture import Architecture
from registry.convert import Processing, check_finite, guard_processing
from registry.errors import UnsupportedBridge
from registry.families.family import Family
from registry.networks import build_source_network
from registry.plain_text import quote_error
from registry.progress import Counter, Progress, no_progress
from registry.quiet import quiet
from registry.take_sketch import take_sketch
from registry.texts import ReadsTexts
from registry.tokenizers import fit_tokenizer
from registry.verify import Parity, Reference, list_versions, measure_reference

_NO_LIMIT = 2**31 - 1  # of tokens in a text, where no positions run out


class RegisteredBridge(ReadsTexts, TransformerBridge):  # type: ignore[misc]
    """A TransformerBridge of a registered version."""


def build_checked_bridge(
    source: PreTrainedModel,
    family: Family,
    architecture: Architecture,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    name: str,
    compatibility: bool,
) -> TransformerBridge:
    """Build the bridge of `source`, in float32 or float64, and compare it with what `source` computed before.

    Raises UnsupportedBridge if the bridge computes something else, or cannot be built.
    """
    reference = measure_reference(source, family, architecture)
    bridge = build_bridge(source, family, architecture, tokenizer, name=name, compatibility=compatibility)
    difference = _measure_bridge(bridge, reference, family, name, compatibility=compatibility)
    if not difference <= reference.bound:
        raise UnsupportedBridge(
            f"The bridge of {name} computes something else: log-probs are {difference:.1e} off its own source network, "
            f"bound {reference.bound:.1e}.",
            hint=f"This is a fault of transformer-lens's, not of your checkpoint. {_hint(family, compatibility)}",
        )
    return bridge


def measure_bridge_parity(
    family: Family,
    values: Mapping[str, Any],
    architecture: Architecture,
    files: Sequence[Path],
    *,
    dtype: torch.dtype = torch.float64,
    progress: Progress = no_progress,
) -> Parity:
    """Measure how far the bridge of the network in `files`, without compatibility mode, is from that network.

    Raises UnusableWeights for NaN and infinities, and UnsupportedBridge if there is no bridge that can be run.
    """
    counter = Counter(progress, "verifying", 3)
    source = build_source_network(family, values, files, dtype)
    check_finite(source.state_dict())
    counter.advance()
    sketch = take_sketch(source.state_dict())
    reference = measure_reference(source, family, architecture)
    counter.advance()
    bridge = build_bridge(source, family, architecture, None, name=family.name, compatibility=False)
    difference = _measure_bridge(bridge, reference, family, family.name, compatibility=False)
    counter.advance()
    return Parity(
        raw=None,
        processed=None,
        bridge=difference,
        noise_floor=reference.noise_floor,
        bound=reference.bound,
        # Mamba gives its logits in float32 whatever it is in
        dtype=str(reference.computed.log_probs.dtype).removeprefix("torch."),
        n_tokens=reference.probe.numel(),
        probe_digest=reference.probe_digest,
        processing=(),
        versions=list_versions(),
        sketch=sketch,
    )


def _measure_bridge(
    bridge: TransformerBridge, reference: Reference, family: Family, name: str, *, compatibility: bool
) -> float:
    try:
        return reference.measure(bridge)
    except RuntimeError as error:
        raise UnsupportedBridge(
            f"The bridge of {name} cannot be run: {error}", hint=_hint(family, compatibility)
        ) from error


def build_bridge(
    source: PreTrainedModel,
    family: Family,
    architecture: Architecture,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    name: str,
    compatibility: bool,
) -> TransformerBridge:
    """Build the bridge of `source`, which becomes part of it: raw, or in compatibility mode, which processes weights.

    Raises UnsupportedBridge if it cannot be built.
    """
    if source._can_set_attn_implementation():
        source.set_attn_implementation("eager")  # the others do not show their patterns to hooks
    with quiet():
        try:
            bridge = _wrap(source, family, tokenizer, architecture, name)
            if compatibility:
                processing = guard_processing(architecture, Processing())
                bridge.enable_compatibility_mode(disable_warnings=True, **vars(processing))
                for parameter in bridge.parameters():  # it adds biases that folding makes in float32, as in Qwen 2
                    parameter.data = parameter.data.to(source.dtype)
        except Exception as error:  # transformer-lens raises whatever an architecture that it does not expect leads to
            reason = quote_error(error)
            raise UnsupportedBridge(
                f"transformer-lens cannot build a bridge of {name}: {reason}", hint=_hint(family, compatibility)
            ) from error
    return bridge


def _wrap(
    source: PreTrainedModel,
    family: Family,
    tokenizer: PreTrainedTokenizerBase | None,
    architecture: Architecture,
    name: str,
) -> TransformerBridge:
    """Do what transformer-lens's build_bridge_from_module does, with the tokenizer as it is."""
    config = build_bridge_config_from_hf(source.config, family.class_name, name, source.dtype)
    adapter: Any = ArchitectureAdapterFactory.select_architecture_adapter(config)
    adapter.cfg.device = str(source.device)
    adapter.cfg.n_ctx = _NO_LIMIT if architecture["n_ctx"] is None else architecture["n_ctx"]
    if family.adapt_bridge is not None:
        family.adapt_bridge(adapter, source.config)
    adapter.prepare_model(source)
    return RegisteredBridge(source, adapter, tokenizer and fit_tokenizer(adapter.cfg, tokenizer))


def _hint(family: Family, compatibility: bool) -> str:
    if compatibility:
        other = "" if family.convert is None else ", or Registry.load, which gives a HookedTransformer"
        return f"Take the bridge without compatibility mode{other}."
    if family.convert is None:
        return (
            "Registry.load_hf gives the Hugging Face network of what is registered; "
            "with --parity skip it is registered without a measurement, and marked so."
        )
    return "Take Registry.load, which gives a HookedTransformer, or Registry.load_hf."
