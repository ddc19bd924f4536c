"""Convert a Hugging Face network to a HookedTransformer, with the processing that `from_pretrained` would do.

The weights go through transformer-lens's own converters and its own `ProcessWeights`; what is ours is the strictness
around them and the guards, which transformer-lens has in `from_pretrained` only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from registry.architecture import FAMILY, Architecture
from registry.errors import UnusableWeights, WeightsMismatch
from registry.families.family import Family
from registry.families.unsupported import refuse_hooked_transformer
from registry.networks import make_hooked_config, make_hooked_network
from registry.processing import POST_NORM_BLOCKS, can_center_writing
from registry.quiet import quiet

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer, HookedTransformerConfig


@dataclass(frozen=True)
class Processing:
    """Which of transformer-lens's weight processings are applied; the defaults are those of `from_pretrained`."""

    fold_ln: bool = True
    center_writing_weights: bool = True
    center_unembed: bool = True
    fold_value_biases: bool = True
    refactor_factored_attn_matrices: bool = False

    @property
    def active(self) -> list[str]:
        """The names of the processings that are on."""
        return [name for name, value in vars(self).items() if value]


RAW = Processing(False, False, False, False, False)


def guard_processing(architecture: Architecture, wanted: Processing) -> Processing:
    """Turn off what would change the function of this architecture.

    Folding and centring assume that a norm's gain sits on a sublayer's input (not so in post-norm blocks); centring
    the unembedding assumes that adding a constant to the logits changes nothing (not so under a soft cap); folding
    value biases assumes that attention patterns sum to 1 (not so with attention sinks) and that values with their bias
    are used as they are (not so if they are clipped); refactoring W_Q and W_K assumes that nothing stands between them
    (not so with rotary embeddings). A last norm of another kind and positions that are added behind the norms, as in
    shortformers, make folding and centring wrong, too.
    """
    allowed = wanted
    if FAMILY in architecture.fields:  # no words for what would be in the way; bridges are measured when they are built
        return wanted
    if architecture["positional_embedding_type"] == "shortformer":
        allowed = replace(allowed, fold_ln=False, center_writing_weights=False)
    if architecture["normalization_type"] == "LN" and architecture["final_rms"]:
        allowed = replace(allowed, fold_ln=False)
    if architecture["block_variant"] in POST_NORM_BLOCKS:
        allowed = replace(allowed, fold_ln=False, center_writing_weights=False)
    if architecture["output_logits_soft_cap"] > 0:
        allowed = replace(allowed, center_unembed=False)
    if architecture["use_attention_sinks"] or architecture["clip_qkv"] is not None:
        allowed = replace(allowed, fold_value_biases=False)
    if architecture["positional_embedding_type"] == "rotary":
        allowed = replace(allowed, refactor_factored_attn_matrices=False)
    return allowed


def choose_hooked_processing(architecture: Architecture, applied: Sequence[str], wanted: Processing) -> Processing:
    """Return what of `wanted` is to be done to hooked weights that have gone through `applied`.

    Weights whose norms are folded are never processed again: it would rewrite what was trained since, to no effect on
    what is computed. The others are processed as wanted, but what was centred is not centred again, for that reason.
    """
    if "fold_ln" in applied:
        return RAW
    allowed = guard_processing(architecture, wanted)
    if not can_center_writing(architecture):
        allowed = replace(allowed, center_writing_weights=False)
    takes_no_bias = architecture["gated_mlp"] or architecture["num_experts"] is not None
    if architecture["normalization_type"] is None or (architecture["normalization_type"] == "LN" and takes_no_bias):
        allowed = replace(allowed, fold_ln=False)  # a norm's bias would become one that gates and experts do not have
    centred = {"center_writing_weights", "center_unembed"}.intersection(applied)
    return replace(allowed, **dict.fromkeys(centred, False))


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse NaN and infinities: HookedTransformer hides those in `W_Q` and `W_K` and computes something else."""
    bad = sorted(name for name, tensor in tensors.items() if not _is_finite(tensor))
    if bad:
        raise UnusableWeights(
            f"{len(bad)} tensors hold NaN or infinite values, such as {bad[0]}.",
            tensors=bad,
            hint="The training run diverged before this checkpoint; take an earlier one.",
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    """Look at the smallest and largest number, which NaN passes on: `isfinite` takes 10 times as long, and a copy."""
    return tensor.numel() == 0 or all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor))


def convert_network(
    network: PreTrainedModel,
    family: Family,
    architecture: Architecture,
    processing: Processing,
    *,
    dtype: torch.dtype,
    device: str = "cpu",
    n_devices: int = 1,
) -> HookedTransformer:
    """Convert a Hugging Face network to a HookedTransformer in `dtype` on `device`.

    Processing is done in float32 whatever `dtype` is, as transformer-lens does; the result is cast at the end. Only
    attention matrices are refactored in float64.
    """
    tensors = own_tensors(convert_weights(network, family, architecture, processing), dtype)
    cfg = make_hooked_config(
        architecture, family, folded=processing.fold_ln, dtype=dtype, device=device, n_devices=n_devices
    )
    return make_hooked_network(cfg, tensors)


def convert_weights(
    network: PreTrainedModel, family: Family, architecture: Architecture, processing: Processing
) -> dict[str, torch.Tensor]:
    """Return the state dict in hooked layout, processed, in the network's dtype; raw tensors are views of its own."""
    if family.convert is None:
        raise refuse_hooked_transformer(family, "The network cannot be converted", "Take a TransformerBridge.")
    cfg = make_hooked_config(architecture, family, folded=False, dtype=network.dtype, device="cpu")
    tensors = {name: tensor.detach() for name, tensor in family.convert(network, cfg).items()}
    for name in family.absent:
        tensors[name] = torch.zeros(cfg.d_vocab_out, dtype=network.dtype)
    held = [tensors]
    del tensors
    return _process_weights(held, cfg, processing)


def process_converted_weights(
    held: list[dict[str, torch.Tensor]],
    family: Family,
    architecture: Architecture,
    processing: Processing,
    *,
    working_dtype: torch.dtype,
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    """Process raw tensors in hooked layout, which `convert_weights` gave in `working_dtype`; return them in `dtype`.

    They are taken out of `held`, which must be the only place that holds them. A caller who has let go of the source
    too needs memory for two copies of the weights, and not for four.
    """
    cfg = make_hooked_config(architecture, family, folded=False, dtype=working_dtype, device="cpu")
    return own_tensors(_process_weights(held, cfg, processing), dtype)


def build_processed_network(
    held: list[dict[str, torch.Tensor]],
    family: Family,
    architecture: Architecture,
    processing: Processing,
    *,
    dtype: torch.dtype,
) -> HookedTransformer:
    """Process raw tensors as `process_converted_weights` does, in `dtype`, and build the network."""
    processed = process_converted_weights(held, family, architecture, processing, working_dtype=dtype, dtype=dtype)
    cfg = make_hooked_config(architecture, family, folded=processing.fold_ln, dtype=dtype, device="cpu")
    return make_hooked_network(cfg, processed)


def build_hooked_network(
    tensors: Mapping[str, torch.Tensor],
    architecture: Architecture,
    processing: Processing,
    *,
    folded: bool,
    dtype: torch.dtype,
) -> HookedTransformer:
    """Build a HookedTransformer of tensors in hooked layout, processed first; `folded` says whether their norms are."""
    processed = process_hooked_weights(tensors, architecture, processing, folded=folded, dtype=dtype)
    cfg = make_hooked_config(architecture, None, folded=folded or processing.fold_ln, dtype=dtype, device="cpu")
    return make_hooked_network(cfg, processed)


def process_hooked_weights(
    tensors: Mapping[str, torch.Tensor],
    architecture: Architecture,
    processing: Processing,
    *,
    folded: bool,
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    """Process tensors in hooked layout and return them in `dtype`; `folded` says whether their norms are.

    Processing is done in float32, as transformer-lens does, and its result is not cast back to fewer bits before the
    end: what is stored in fewer bits loses nothing in float32.
    """
    cfg = make_hooked_config(architecture, None, folded=folded, dtype=torch.float32, device="cpu")
    working_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    held = [{name: tensor.to(working_dtype) if processing.active else tensor for name, tensor in tensors.items()}]
    return own_tensors(_process_weights(held, cfg, processing), dtype)


def _process_weights(
    held: list[dict[str, torch.Tensor]], cfg: HookedTransformerConfig, processing: Processing
) -> dict[str, torch.Tensor]:
    """Process the tensors that `held` holds, taking them out of it.

    transformer-lens copies all weights in every step. Nobody else may hold those of the step before, or they would
    stay in memory until the end.
    """
    if not processing.active:
        return held.pop()
    from transformer_lens.weight_processing import ProcessWeights  # takes seconds, and only processing needs it

    refactors = processing.refactor_factored_attn_matrices
    with quiet():
        tensors = ProcessWeights.process_weights(
            held.pop(),  # and the rest named one by one: with ** the call itself would hold them
            cfg,
            fold_ln=processing.fold_ln,
            center_writing_weights=processing.center_writing_weights,
            center_unembed=processing.center_unembed,
            fold_value_biases=processing.fold_value_biases,
            refactor_factored_attn_matrices=False,
        )
        if refactors:
            dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
            # in float32 the singular values leave W_Q @ W_K.T 1.2e-6 off, and unscaled scores make much of that:
            # GPT-Neo's log-probs are up to 5e-4 off then, with scores of 40, and 5e-13 in float64
            wide = {name: tensor.double() if ".attn." in name else tensor for name, tensor in tensors.items()}
            refactored = ProcessWeights.refactor_factored_attn_matrices(wide, cfg)
            tensors = {name: tensor.to(dtypes[name]) for name, tensor in refactored.items()}
    return _drop_folded_norms(tensors) if processing.fold_ln else tensors


def _drop_folded_norms(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drop the norms' own weights after folding, which must have left them the identity.

    Where a LayerNorm is before a gated MLP, folding also makes the biases `b_gate` of the norm's. HookedTransformer has
    no such biases, and they are zero in the one family of the kind, OLMo, whose norms have no weights.
    """
    kept = {}
    for name, tensor in tensors.items():
        norm, _, leaf = name.rpartition(".")
        if not norm.endswith(("ln1", "ln2", "ln_final", "mlp.ln")) and leaf != "b_gate":
            kept[name] = tensor
        elif not bool((tensor == (1.0 if leaf == "w" else 0.0)).all()):
            raise WeightsMismatch(
                f"{name} still has weights after folding.",
                left_over=[name],
                hint="This is a fault in lens-registry or in transformer-lens; please report it.",
            )
    return kept


def own_tensors(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Cast, lay out in order, and part tensors that share memory (a tied head), so that edits stay apart."""
    owned: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        mine = tensor.to(dtype).contiguous()
        if mine.data_ptr() in seen:
            mine = mine.clone()
        seen.add(mine.data_ptr())
        owned[name] = mine
    return owned
