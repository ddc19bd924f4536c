"""Which of transformer-lens's weight processings hooked tensors have gone through, told from the tensors alone.

transformer-lens records none of it but whether norms are folded. The rules and their thresholds were measured on 15
families, in three precisions, and after training (HAZARDS.md §4): `r(W) = |mean of W along an axis| · sqrt(n) / rms(W)`
is about 1 in weights without structure and about 0 in centred ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from registry.architecture import Architecture
from registry.errors import WeightsMismatch

_CENTRED = {torch.float32: 1e-3, torch.float64: 1e-3, torch.bfloat16: 1e-2, torch.float16: 1e-2}
_NOT_CENTRED = 0.3
_ORTHONORMAL = 1e-2
_WRITES = re.compile(r"embed\.W_E|blocks\.\d+\.(attn\.W_O|mlp\.W_out)")
_VALUE_BIAS = re.compile(r"blocks\.\d+\.attn\._?b_V")
_ATTENTION_BIAS = re.compile(r"blocks\.\d+\.attn\.(_?b_[QK]|b_O)")
_OUTPUT = re.compile(r"blocks\.\d+\.attn\.W_O")
POST_NORM_BLOCKS = frozenset({"olmo2", "olmo3"})


@dataclass(frozen=True)
class AppliedProcessing:
    """The flags that had been applied, in transformer-lens's order, and those whose traces training has blurred."""

    flags: tuple[str, ...]
    blurred: tuple[str, ...]


def tell_folded(names: Iterable[str], norms: Sequence[str]) -> bool:
    """Say whether the norms' own weights, `norms`, are gone; some of them without the others are refused."""
    found = set(names)
    missing = [name for name in norms if name not in found]
    if missing and len(missing) < len(norms):
        raise WeightsMismatch(
            f"Of {len(norms)} weights of norms, {len(missing)} are missing, such as {missing[0]}: the norms are "
            "neither all folded into the weights after them nor all there.",
            missing=missing,
            hint="Take all tensors from one network, of which either every norm was folded or none.",
        )
    return bool(norms) and bool(missing)


def tell_processing(tensors: Mapping[str, torch.Tensor], architecture: Architecture, folded: bool) -> AppliedProcessing:
    """Tell from hooked tensors what they have gone through; `folded` is what `tell_folded` says.

    A centring that is neither there nor absent was there before the weights were trained on. That value biases are
    zero is evidence only where other attention biases are not.
    """
    flags, blurred = ["fold_ln"] if folded else [], []
    for flag, ratios in (
        ("center_writing_weights", _writing_ratios(tensors) if can_center_writing(architecture) else []),
        ("center_unembed", [_ratio(tensors["unembed.W_U"], -1)]),
    ):
        if ratios and not any(ratio > _NOT_CENTRED for ratio, _ in ratios):
            flags.append(flag)
            if any(ratio >= bound for ratio, bound in ratios):
                blurred.append(flag)
    if _all_zero(tensors, _VALUE_BIAS) and (flags or not _all_zero(tensors, _ATTENTION_BIAS)):
        flags.append("fold_value_biases")
    if _is_refactored(tensors):
        flags.append("refactor_factored_attn_matrices")
    return AppliedProcessing(tuple(flags), tuple(blurred))


def can_center_writing(architecture: Architecture) -> bool:
    """Say whether transformer-lens would centre what is written to the residual stream: only where LayerNorm reads."""
    return (
        architecture["normalization_type"] == "LN"
        and not architecture["final_rms"]
        and architecture["positional_embedding_type"] != "shortformer"
        and architecture["num_experts"] is None
        and architecture["block_variant"] not in POST_NORM_BLOCKS
    )


def _writing_ratios(tensors: Mapping[str, torch.Tensor]) -> list[tuple[float, float]]:
    return [_ratio(tensor, -1) for name, tensor in tensors.items() if _WRITES.fullmatch(name)]


def _ratio(tensor: torch.Tensor, axis: int) -> tuple[float, float]:
    """Return r, with the bound below which a tensor of this dtype is centred along `axis`; all zeros are centred."""
    bound = _CENTRED[tensor.dtype]
    wide = tensor.detach().float()
    rms = float(wide.square().mean().sqrt())
    if rms == 0.0 or not math.isfinite(rms):
        return 0.0, bound
    mean = float(wide.mean(axis).square().mean().sqrt())
    return mean * math.sqrt(wide.shape[axis]) / rms, bound


def _all_zero(tensors: Mapping[str, torch.Tensor], pattern: re.Pattern[str]) -> bool:
    return all(not bool(tensor.any()) for name, tensor in tensors.items() if pattern.fullmatch(name))


def _is_refactored(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Say whether the rows of every head's W_O, (d_head, d_model), are orthonormal."""
    outputs = [tensor.detach().float() for name, tensor in tensors.items() if _OUTPUT.fullmatch(name)]
    return bool(outputs) and all(
        float((one @ one.transpose(-1, -2) - torch.eye(one.shape[-2], device=one.device)).abs().max()) < _ORTHONORMAL
        for one in outputs
    )
