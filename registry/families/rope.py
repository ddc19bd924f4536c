"""Rotary position embeddings: from the config.json fields of transformers 4 and 5 to architecture fields.

Sources: transformers 5.23 `modeling_rope_utils.py` (what each `rope_type` computes) and transformer-lens 3.9
`AbstractAttention.calculate_sin_cos_rotary` (what HookedTransformer can compute).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from registry.families.fields import Field, only, refuse_value, used

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

# for a Family's config_keys
CONFIG_KEYS: Mapping[str, str] = {
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


def read_rope(config: Mapping[str, Any], theta_key: str = "rope_theta") -> dict[str, Any]:
    """Return transformers 5's flat `rope_parameters`, whichever release wrote the config.

    transformers 4 wrote `rope_theta` (a few families: `theta_key`) beside `rope_scaling`; transformers 5 writes one
    `rope_parameters`. Two that disagree are refused.
    """
    modern, legacy = config["rope_parameters"], config["rope_scaling"]
    if modern and legacy and modern != legacy:
        raise refuse_value("rope_scaling", legacy, f"rope_parameters says {modern}", "Keep one of the two.")
    source = "rope_parameters" if modern else "rope_scaling"
    given = dict(modern or legacy or {})
    theta = config[theta_key]
    if "rope_theta" in given and theta is not None and given["rope_theta"] != theta:
        raise refuse_value(theta_key, theta, f"{source} says {given['rope_theta']!r}", "Keep one of the two.")
    kind = given.pop("rope_type", None) or given.get("type") or "default"
    if given.pop("type", kind) != kind:
        raise refuse_value(source, dict(modern or legacy or {}), "rope_type and type disagree", "Keep one of the two.")
    inner_theta = given.pop("rope_theta", None)
    base, found = (theta, theta_key) if inner_theta is None else (inner_theta, source)
    known = _KEYS.get(kind) if isinstance(kind, str) else None
    if known is None:
        raise refuse_value(source, {"rope_type": kind}, "HookedTransformer cannot compute this kind of rope scaling")
    if unknown := set(given) - known:
        raise refuse_value(source, {name: given[name] for name in sorted(unknown)}, f"not a field of {kind} rope")
    for name, value in given.items():
        if value is not None:
            given[name] = _check_entry(source, name, value)
    base = _number(found, "rope_theta", DEFAULT_THETA if base is None else base)
    if base < 1:
        raise refuse_value(found, {"rope_theta": base}, "the slower of two frequencies would be the faster one")
    return {"rope_type": kind, "rope_theta": base, **given}


def read_partial_rope(
    config: Mapping[str, Any], default: float, part_key: str = "partial_rotary_factor", theta_key: str = "rope_theta"
) -> dict[str, Any]:
    """Return `rope_parameters` with the `partial_rotary_factor` that transformers 5 keeps there; see read_rope.

    transformers 4 wrote the factor beside `rope_scaling`; `default` stands where neither place has it.
    """
    inner = dict(config)
    for source in ("rope_parameters", "rope_scaling"):
        inner[source] = {key: value for key, value in (config[source] or {}).items() if key != "partial_rotary_factor"}
    return {**read_rope(inner, theta_key), "partial_rotary_factor": _read_part(config, default, part_key)[0]}


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


def describe_rope(rope: Mapping[str, Any], n_ctx: int) -> dict[str, Any]:
    """Map `rope_parameters` to architecture fields; `n_ctx` stands in where the original length is not given."""
    fields: dict[str, Any] = {"positional_embedding_type": "rotary", "rotary_base": rope["rope_theta"]}
    kind = rope["rope_type"]
    if kind != "default" and rope.get("factor") is None:
        raise refuse_value("rope_parameters", dict(rope), f"{kind} rope needs a factor")
    original = int(rope.get("original_max_position_embeddings") or n_ctx)
    if kind == "linear":
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
