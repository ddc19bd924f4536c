"""Rotary position embeddings: from the config.json fields of transformers 4 and 5 to architecture fields.

Sources: transformers 5.23 `modeling_rope_utils.py` (what each `rope_type` computes) and transformer-lens 3.9
`AbstractAttention.calculate_sin_cos_rotary` (what HookedTransformer can compute).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from registry.families.fields import Field, only, refuse_value, used
from registry.families.layer_types import FULL, SLIDING

DEFAULT_THETA = 10000.0
_KEYS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "original_max_position_embeddings",
        "truncate",
    },
}

FIELDS: Mapping[str, Field] = {
    "rope_parameters": used(dict, None, optional=True),
    "rope_scaling": used(dict, None, optional=True),
    "rope_theta": used(float, None, optional=True),
    "rope_interleaved": only(False, "the converter lays rotated pairs out in halves"),
    "partial_rotary_factor": only(None, "the converter rotates whole heads"),
}

_ALSO = " (files of transformers 4 have it under rope_scaling)"

CONFIG_KEYS: Mapping[str, str] = {
    "rotary_dim": "head_dim",
    "rotary_base": "rope_theta",
    "rotary_scaling_factor": "rope_scaling",
    "use_NTK_by_parts_rope": "rope_scaling",
    "NTK_by_parts_factor": "rope_scaling.factor",
    "NTK_by_parts_low_freq_factor": "rope_scaling.low_freq_factor",
    "NTK_by_parts_high_freq_factor": "rope_scaling.high_freq_factor",
    "NTK_original_ctx_len": "rope_scaling.original_max_position_embeddings",
    "use_yarn_rope": "rope_scaling",
    "yarn_factor": "rope_scaling.factor",
    "yarn_attention_factor": "rope_scaling.attention_factor",
    "yarn_beta_fast": "rope_scaling.beta_fast",
    "yarn_beta_slow": "rope_scaling.beta_slow",
    "yarn_original_max_position_embeddings": "rope_scaling.original_max_position_embeddings",
    "yarn_truncate": "rope_scaling.truncate",
}
# for families that may rotate a part of each head only; what they do when nothing is said is theirs to say
PARTIAL_FIELDS: Mapping[str, Field] = {**FIELDS, "partial_rotary_factor": used(float, None, optional=True)}


def read_rope(
    config: Mapping[str, Any], default_theta: float = DEFAULT_THETA, theta_key: str = "rope_theta"
) -> dict[str, Any]:
    """Return transformers 5's flat `rope_parameters`, whichever release wrote the config.

    transformers 4 wrote `rope_theta` (a few families: `theta_key`) beside `rope_scaling`; transformers 5 writes one
    `rope_parameters`. Two that disagree are refused.
    """
    modern, legacy = config["rope_parameters"], config["rope_scaling"]
    if modern and legacy and modern != legacy:
        raise refuse_value("rope_scaling", legacy, f"rope_parameters says {modern}", "Keep one of the two.")
    source = "rope_parameters" if modern else "rope_scaling"
    return _read_parameters(source, modern or legacy or {}, theta_key, config[theta_key], default_theta)


def read_layered_rope(config: Mapping[str, Any], full_theta: float, sliding_theta: float) -> dict[str, dict[str, Any]]:
    """Return transformers 5's `rope_parameters` by layer type, whichever release wrote the config.

    transformers 4 wrote `rope_theta` and `rope_scaling` for the layers with full attention, `rope_local_base_freq` for
    those with a window, which it never scaled.
    """
    modern, legacy = config["rope_parameters"] or {}, config["rope_scaling"]
    thetas = {FULL: ("rope_theta", full_theta), SLIDING: ("rope_local_base_freq", sliding_theta)}
    if unknown := set(modern) - set(thetas):
        wrong = {name: modern[name] for name in sorted(unknown)}
        raise refuse_value("rope_parameters", wrong, f"here it has one entry for {FULL} and one for {SLIDING}")
    for kind, entry in modern.items():
        if entry is not None and not isinstance(entry, dict):
            raise refuse_value("rope_parameters", {kind: entry}, "its entries are objects")
    if modern.get(FULL) and legacy and modern[FULL] != legacy:
        raise refuse_value("rope_scaling", legacy, f"rope_parameters says {modern[FULL]}", "Keep one of the two.")
    if legacy and "rope_type" not in legacy and legacy.get("type", "default") != "default":
        why = "transformers 5 reads rope_type there and takes no notice of type"
        raise refuse_value("rope_scaling", legacy, why, "Write rope_type for type, if the network was trained so.")
    read = {}
    for kind, (theta_key, default_theta) in thetas.items():
        source, given = "rope_parameters", modern.get(kind)
        if not given and kind == FULL:
            source, given = "rope_scaling", legacy
        read[kind] = _read_parameters(source, given or {}, theta_key, config[theta_key], default_theta)
    return read


def _read_parameters(
    source: str, found: Mapping[str, Any], theta_key: str, theta: float | None, default_theta: float
) -> dict[str, Any]:
    """Check the entries of one `rope_parameters`, found under `source`; `theta` stood beside it, as `theta_key`."""
    given = dict(found)
    if "rope_theta" in given and theta is not None and given["rope_theta"] != theta:
        raise refuse_value(theta_key, theta, f"{source} says {given['rope_theta']!r}", "Keep one of the two.")
    kind = given.pop("rope_type", None) or given.get("type") or "default"
    if given.pop("type", kind) != kind:
        raise refuse_value(source, dict(found), "rope_type and type disagree", "Keep one of the two.")
    inner_theta = given.pop("rope_theta", None)
    base, found_in = (theta, theta_key) if inner_theta is None else (inner_theta, source)
    known = _KEYS.get(kind) if isinstance(kind, str) else None
    if known is None:
        raise refuse_value(source, {"rope_type": kind}, "HookedTransformer cannot compute this kind of rope scaling")
    if base is not None and _number(found_in, "rope_theta", base) < 1:
        raise refuse_value(
            found_in, {"rope_theta": base}, "wavelengths would shrink from pair to pair; no network is trained so"
        )
    if unknown := set(given) - known:
        raise refuse_value(source, {name: given[name] for name in sorted(unknown)}, f"not a field of {kind} rope")
    for name, value in given.items():
        if value is not None:
            given[name] = _check_entry(source, name, value)
    return {
        "rope_type": kind,
        "rope_theta": _number(found_in, "rope_theta", default_theta if base is None else base),
        **given,
    }


def read_partial_rope(
    config: Mapping[str, Any], default: float, part_key: str = "partial_rotary_factor", theta_key: str = "rope_theta"
) -> dict[str, Any]:
    """Return `rope_parameters` with the `partial_rotary_factor` that transformers 5 keeps there; see read_rope.

    transformers 4 wrote the factor beside `rope_scaling`; `default` stands where neither place has it.
    """
    inner = dict(config)
    for source in ("rope_parameters", "rope_scaling"):
        inner[source] = {key: value for key, value in (config[source] or {}).items() if key != "partial_rotary_factor"}
    return {**read_rope(inner, theta_key=theta_key), "partial_rotary_factor": _read_part(config, default, part_key)[0]}


def describe_rotary_dim(
    config: Mapping[str, Any], d_head: int, default: float, part_key: str = "partial_rotary_factor"
) -> int:
    """Return how many dimensions of a head are rotated: transformers rounds down, and HookedTransformer takes pairs."""
    part, found = _read_part(config, default, part_key)
    rotary_dim = int(d_head * part)
    if not 2 <= rotary_dim <= d_head or rotary_dim % 2:
        shown = part if found == part_key else {"partial_rotary_factor": part}
        raise refuse_value(found, shown, f"it rotates {rotary_dim} of a head's {d_head} dimensions, and not in pairs")
    return rotary_dim


def _read_part(config: Mapping[str, Any], default: float, part_key: str) -> tuple[float, str]:
    """Return which part of a head is rotated, and the field that says so."""
    part, found = config[part_key], part_key
    for source in ("rope_parameters", "rope_scaling"):
        nested = (config[source] or {}).get("partial_rotary_factor")
        if nested is not None and part is not None and nested != part:
            later, said, other = (found, part, source) if found == part_key else (source, nested, found)
            raise refuse_value(later, said, f"{other} gives partial_rotary_factor otherwise", "Keep one of the two.")
        if nested is not None:
            part, found = _number(source, "partial_rotary_factor", nested), source
    return (default if part is None else part), found


def describe_rope(rope: Mapping[str, Any], n_ctx: int, attn_types: Sequence[str] = ()) -> dict[str, Any]:
    """Map `rope_parameters` to architecture fields; `n_ctx` stands in where the original length is not given.

    Raises UnsupportedConfig for linear scaling of local layers (`attn_types`): HookedTransformer leaves those unscaled.
    """
    fields: dict[str, Any] = {"positional_embedding_type": "rotary", "rotary_base": rope["rope_theta"]}
    kind = rope["rope_type"]
    if kind != "default" and rope.get("factor") is None:
        raise refuse_value("rope_parameters", dict(rope), f"{kind} rope needs a factor")
    original = int(rope.get("original_max_position_embeddings") or n_ctx)
    if kind == "linear":
        if "local" in attn_types and rope["factor"] != 1:
            raise refuse_value("rope_parameters", dict(rope), f"HookedTransformer scales no layer with a window{_ALSO}")
        fields["rotary_scaling_factor"] = rope["factor"]
    elif kind == "llama3":
        if not (rope.get("low_freq_factor") and rope.get("high_freq_factor")):
            raise refuse_value("rope_parameters", dict(rope), "llama3 rope needs low_freq_factor and high_freq_factor")
        fields |= {
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": rope["factor"],
            "NTK_by_parts_low_freq_factor": rope["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": rope["high_freq_factor"],
            "NTK_original_ctx_len": original,
        }
    elif kind == "yarn":
        fields |= {
            "use_yarn_rope": True,
            "yarn_factor": rope["factor"],
            "yarn_attention_factor": _yarn_attention_factor(rope),
            "yarn_beta_fast": rope.get("beta_fast") or 32.0,
            "yarn_beta_slow": rope.get("beta_slow") or 1.0,
            "yarn_original_max_position_embeddings": original,
            "yarn_truncate": bool(rope.get("truncate", True)),
        }
    return fields


def describe_layered_rope(
    rope: Mapping[str, Mapping[str, Any]], n_ctx: int, attn_types: Sequence[str]
) -> dict[str, Any]:
    """Map `rope_parameters` by layer type to architecture fields.

    HookedTransformer's local layers may have a theta of their own. It leaves them out of linear scaling, can leave them
    out of yarn, and scales all layers alike otherwise; what is neither is refused.
    """
    if "local" not in attn_types:
        return describe_rope(rope[FULL], n_ctx)
    sliding = describe_rope(rope[SLIDING], n_ctx, attn_types)
    if "global" not in attn_types:
        return sliding
    fields = describe_rope(rope[FULL], n_ctx)
    sliding_theta = sliding.pop("rotary_base")
    scaling = {name: value for name, value in fields.items() if name != "rotary_base"}
    if rope[SLIDING]["rope_type"] in ("default", "linear"):  # linear is by 1 here
        if rope[FULL]["rope_type"] == "llama3":
            why = f"HookedTransformer has llama3 rope in all layers or none{_ALSO}"
            raise refuse_value("rope_parameters", dict(rope), why)
        if rope[FULL]["rope_type"] == "yarn":
            fields["yarn_global_attn_only"] = True
    elif sliding != scaling:
        why = f"HookedTransformer cannot scale each layer type in its own way{_ALSO}"
        raise refuse_value("rope_parameters", dict(rope), why)
    if sliding_theta != fields["rotary_base"]:
        fields["rotary_base_local"] = sliding_theta
    return fields


def _yarn_attention_factor(rope: Mapping[str, Any]) -> float:
    """Compute the factor on sin and cos as transformers does: 0.1·mscale·ln(factor) + 1, or a ratio of two."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])

    def scale(mscale: float) -> float:
        return 1.0 if rope["factor"] <= 1 else 0.1 * mscale * math.log(rope["factor"]) + 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return scale(rope["mscale"]) / scale(rope["mscale_all_dim"])
    return scale(1.0)


def _check_entry(source: str, name: str, value: Any) -> float | bool:
    if name == "truncate":
        if type(value) is not bool:
            raise refuse_value(source, {name: value}, f"{name} must be true or false")
        return value
    number = _number(source, name, value)
    if name == "original_max_position_embeddings" and not (number.is_integer() and number < 2**40):
        raise refuse_value(source, {name: value}, f"{name} must be a number of tokens")
    return number


def _number(source: str, name: str, value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
        raise refuse_value(source, {name: value}, f"{name} must be a positive number")
    return float(value)
