"""Weights that are no numbers to compute with, told by the config, by names and by shapes: packed, or left elsewhere.

Where a checkpoint says that it is quantised, it says how. Where it does not, the names of what goes with packed numbers
tell: scales, zero points, tables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from registry.errors import UnsupportedConfig, UnsupportedSource, UnusableWeights
from registry.families.fields import shorten
from registry.weights import TensorHeader

_DEQUANTISE = (
    "Load it where its library is installed and save it again: "
    "AutoModelForCausalLM.from_pretrained(FOLDER{arguments}){after}.save_pretrained(NEW). "
    "Better register the checkpoint that it was made from."
)
_BY_ITSELF = _DEQUANTISE.format(arguments="", after=".dequantize()")
_ORIGINAL = (
    "It cannot be turned back into the weights that were trained: register the full-precision checkpoint that it was "
    "made from."
)
# quant_method of transformers -> what to do
_HINTS = {
    "bitsandbytes": _BY_ITSELF,
    "higgs": _BY_ITSELF,
    "fp8": _DEQUANTISE.format(arguments=", quantization_config=FineGrainedFP8Config(dequantize=True)", after=""),
    "mxfp4": _DEQUANTISE.format(arguments=", quantization_config=Mxfp4Config(dequantize=True)", after=""),
    "compressed-tensors": _DEQUANTISE.format(
        arguments=", quantization_config=CompressedTensorsConfig(dequantize=True)", after=""
    ),
}
# the end of a tensor's name -> what packs numbers that way
_TRACES = (
    (re.compile(r"\.(qweight|qzeros|g_idx|scales)$"), "GPTQ or AWQ", _ORIGINAL),
    (re.compile(r"\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB|weight_format)$"), "bitsandbytes", _BY_ITSELF),
    (re.compile(r"\.quant_state\."), "bitsandbytes", _BY_ITSELF),
    (
        re.compile(r"\.weight_(packed|zero_point|global_scale|shape)$"),
        "compressed-tensors",
        _HINTS["compressed-tensors"],
    ),
    (re.compile(r"\.(weight_scale|weight_scale_inv|input_scale|activation_scale)$"), "fp8 or int8", _HINTS["fp8"]),
    (re.compile(r"_(blocks|scales)$"), "MXFP4", _HINTS["mxfp4"]),
)
_ADAPTER = re.compile(r"\.(lora_(A|B|embedding_A|embedding_B|magnitude_vector)|base_layer|modules_to_save)\.")


def refuse_quantised_config(config: Mapping[str, Any]) -> None:
    """Raise UnsupportedConfig if config.json says that the weights are quantised, with what to do for that method."""
    for field in ("quantization_config", "compression_config"):
        found = config.get(field)
        if found is None:
            continue
        method = found.get("quant_method") if isinstance(found, dict) else None
        if method is None and isinstance(found, dict) and any(key.startswith(("load_in_", "bnb_")) for key in found):
            method = "bitsandbytes"
        named = f" by {shorten(method)}" if method else ""
        raise UnsupportedConfig(
            f"config.json has {field}: the weights are quantised{named}, and transformer-lens would read the packed "
            "numbers as weights.",
            field=field,
            hint=_HINTS.get(str(method), _ORIGINAL),
            value=shorten(found),
        )


def refuse_packed_tensors(tensors: Mapping[str, TensorHeader]) -> None:
    """Refuse tensors whose names or shapes tell that the numbers are packed, in an adapter, or on another rank.

    Raises UnusableWeights or UnsupportedSource.
    """
    for trace, packing, hint in _TRACES:
        packed = sorted(name for name in tensors if trace.search(name))
        if packed:
            raise UnusableWeights(
                f"The weights are quantised, as {packing} does it: {len(packed)} tensors are such as {packed[0]}.",
                tensors=packed,
                hint=hint,
            )
    adapter = sorted(name for name in tensors if _ADAPTER.search(name))
    if adapter:
        raise UnsupportedSource(
            f"{len(adapter)} tensors are of an adapter that is not merged, such as {adapter[0]}.",
            hint="Merge it first: model.merge_and_unload().save_pretrained(FOLDER).",
        )
    empty = sorted(name for name, tensor in tensors.items() if tensor.n_parameters == 0)
    if empty:
        raise UnusableWeights(
            f"{len(empty)} tensors are empty, such as {empty[0]}: as ZeRO-3 leaves them, whose numbers are elsewhere.",
            tensors=empty,
            hint="Consolidate the DeepSpeed checkpoint: python zero_to_fp32.py . consolidated --safe_serialization, "
            "or train with stage3_gather_16bit_weights_on_model_save.",
        )
