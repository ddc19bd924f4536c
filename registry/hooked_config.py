"""From a HookedTransformerConfig to the canonical architecture; every one of its fields is declared here.

A field that nobody declared is refused, so that a new release of transformer-lens cannot slip a new meaning in. What
each field does was found by changing it over 15 families: HAZARDS.md §3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.errors import UnsupportedConfig
from registry.plain_text import clean_line

if TYPE_CHECKING:
    from transformer_lens import HookedTransformerConfig


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _all(kind: type, names: str) -> dict[str, type]:
    return dict.fromkeys(names.split(), kind)


# what transformer-lens can do to weights, in the order in which it does
PROCESSING_FLAGS = (
    "fold_ln",
    "center_writing_weights",
    "center_unembed",
    "fold_value_biases",
    "refactor_factored_attn_matrices",
)
# transformer-lens looks at four names of `original_architecture`; each makes another block
BLOCK_CLASSES: Mapping[str, str] = {
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
}
# the architecture's fields, by the type of their values
_KINDS: Mapping[str, type] = {
    **_all(
        int,
        """
        d_model n_layers n_heads n_key_value_heads d_head d_mlp d_vocab d_vocab_out n_ctx num_experts experts_per_token
        window_size rotary_dim NTK_original_ctx_len yarn_original_max_position_embeddings train_seq_length""",
    ),
    **_all(
        float,
        """
        eps attn_scale clip_qkv attn_scores_soft_cap output_logits_soft_cap rotary_base rotary_base_local
        rotary_scaling_factor NTK_by_parts_low_freq_factor NTK_by_parts_high_freq_factor NTK_by_parts_factor yarn_factor
        yarn_attention_factor yarn_beta_fast yarn_beta_slow""",
    ),
    **_all(
        bool,
        """
        tie_word_embeddings scale_attn_by_inverse_layer_idx attn_only gated_mlp parallel_attn_mlp final_rms
        post_embedding_ln use_qk_norm use_attention_sinks use_normalization_before_and_after use_local_attn
        use_logn_attn rotary_adjacent_pairs use_NTK_by_parts_rope use_yarn_rope use_dynamic_ntk_rope yarn_truncate
        yarn_global_attn_only norm_topk_prob""",
    ),
    **_all(str, "act_fn normalization_type positional_embedding_type attention_dir block_variant"),
    "attn_types": list,
}
_OPTIONAL = {
    "d_mlp", "act_fn", "normalization_type", "clip_qkv", "num_experts", "block_variant", "rotary_base_local",
    "train_seq_length", "window_size", "attn_types", "experts_per_token", "rotary_dim",
}  # fmt: skip
_WORDS: Mapping[str, set[str]] = {
    "normalization_type": {"LN", "RMS"},
    "positional_embedding_type": {"standard", "rotary", "alibi", "shortformer"},
    "attention_dir": {"causal", "bidirectional"},
    "block_variant": set(BLOCK_CLASSES),
}
_MAY_BE_NEGATIVE = {"attn_scores_soft_cap", "output_logits_soft_cap"}

# fields of HookedTransformerConfig that are read into architecture fields of other names or meaning
_READ = {"use_attn_scale", "original_architecture"}
# reason -> fields that cannot change what the network computes from tokens
NEUTRAL: Mapping[str, frozenset[str]] = {
    "it says where and how the network was made": _names("""
        device n_devices seed model_name from_checkpoint checkpoint_index checkpoint_label_type checkpoint_value
        init_mode initializer_range init_weights n_params trust_remote_code dtype"""),
    "it switches hook points; the numbers stay the same": _names("""
        use_attn_result use_split_qkv_input use_hook_mlp_in use_attn_in use_hook_tokens
        ungroup_grouped_query_attention"""),
    "HookedTransformer does not read it": frozenset({"uses_rms_norm", "layer_norm_folding"}),
    "it is about text, not tokens": frozenset({"tokenizer_name", "default_prepend_bos", "tokenizer_prepends_bos"}),
}
# fields that are refused unless they have this value: field -> (value, why)
ONLY: Mapping[str, tuple[Any, str]] = {
    "load_in_4bit": (False, "its weights are packed in 4 bits"),
    "quantization_method": (None, "its weights come from a quantised checkpoint"),
    "relative_attention_max_distance": (None, "it belongs to T5"),
    "relative_attention_num_buckets": (None, "it belongs to T5"),
    "decoder_start_token_id": (None, "it belongs to T5"),
}
_UNFOLDED = {"LNPre": "LN", "RMSPre": "RMS"}
KNOWN = frozenset([*_KINDS, *_READ, *ONLY, *(name for names in NEUTRAL.values() for name in names)]) - {"block_variant"}


def describe_hooked_config(cfg: HookedTransformerConfig) -> Architecture:
    """Return the canonical architecture of a HookedTransformerConfig, or raise UnsupportedConfig naming the field.

    Whether norms are folded (`LNPre`, `RMSPre`) belongs to the processing of the weights and not to the architecture.
    """
    given = dict(vars(cfg))
    unknown = sorted(set(given) - KNOWN)
    if unknown:
        raise _refuse(unknown[0], given[unknown[0]], "this lens-registry does not know such a field")
    for name, (value, why) in ONLY.items():
        if given.get(name, value) != value:
            raise _refuse(name, given[name], why)
    fields = {name: value for name, value in given.items() if name in _KINDS}
    fields["normalization_type"] = _UNFOLDED.get(given["normalization_type"], given["normalization_type"])
    fields["n_key_value_heads"] = given["n_key_value_heads"] or given["n_heads"]
    fields["attn_scale"] = given["attn_scale"] if given["use_attn_scale"] else 1.0
    fields["block_variant"] = _read_block_variant(given["original_architecture"])
    for name in ("attn_scores_soft_cap", "output_logits_soft_cap"):
        if fields[name] is None or not fields[name] > 0:
            fields[name] = -1.0
    if given["attn_only"]:
        fields |= {"d_mlp": None, "act_fn": None, "gated_mlp": False, "num_experts": None}
    types = list(given["attn_types"] or [])[: given["n_layers"]]
    fields["attn_types"] = types if given["use_local_attn"] else None
    return check_architecture_fields(fields)


def check_architecture_fields(fields: Mapping[str, Any]) -> Architecture:
    """Return the architecture that these fields describe, or raise UnsupportedConfig naming one that makes no sense."""
    unknown = sorted(set(fields) - set(_KINDS))
    if unknown:
        raise _refuse(unknown[0], fields[unknown[0]], "an architecture has no such field")
    checked = {name: _check_value(name, value) for name, value in fields.items()}
    try:
        architecture = describe_architecture(**checked)
    except (KeyError, ValueError) as error:
        raise UnsupportedConfig(
            f"The config does not describe a whole architecture: {error}.", field="architecture"
        ) from None
    _check_whole(architecture)
    return architecture


def _check_whole(one: Architecture) -> None:
    """Refuse combinations from which no network can be built."""
    needed = {
        "d_mlp": not one["attn_only"],
        "act_fn": not one["attn_only"],
        "window_size": one["use_local_attn"],
        "rotary_dim": one["positional_embedding_type"] == "rotary",
        "experts_per_token": one["num_experts"] is not None,
    }
    for name, is_needed in needed.items():
        if is_needed and one.get(name) is None:
            raise _refuse(name, None, "the rest of the config needs it")
    if one["n_heads"] % one["n_key_value_heads"]:
        raise _refuse("n_key_value_heads", one["n_key_value_heads"], f"n_heads = {one['n_heads']} is no multiple of it")
    if not one["attn_scale"] > 0:
        raise _refuse("attn_scale", one["attn_scale"], "attention scores are divided by it")
    types = one.get("attn_types") or []
    if one["use_local_attn"] and (len(types) != one["n_layers"] or not set(types) <= {"global", "local"}):
        raise _refuse("attn_types", types, "it must say global or local for every layer")
    if one["use_normalization_before_and_after"] and one["normalization_type"] == "LN":
        raise _refuse("use_normalization_before_and_after", True, "transformer-lens has it for RMS norms only")


def _read_block_variant(name: str | None) -> str | None:
    return next((variant for variant, class_name in BLOCK_CLASSES.items() if class_name == name), None)


def _check_value(name: str, value: Any) -> Any:
    """Return `value` as plain data of the field's type (transformer-lens keeps numpy numbers), or refuse it."""
    kind = _KINDS[name]
    if value is None and name in _OPTIONAL:
        return None
    legal = type(value) is kind
    if kind is int:
        legal = type(value) is int and 1 <= value < 2**40
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):  # np.float64 is a float
        value = float(value) if abs(value) < 1e300 else math.inf
        legal = math.isfinite(value) and (value >= 0 or name in _MAY_BE_NEGATIVE)
    elif kind is str:
        legal = type(value) is str and (name not in _WORDS or value in _WORDS[name])
    if not legal:
        raise _refuse(name, value, "that makes no sense there")
    return value


def _refuse(name: str, value: Any, why: str) -> UnsupportedConfig:
    return UnsupportedConfig(
        f"The network's config has {clean_line(name)[:80]} = {repr(value)[:80]}, and that cannot be registered: {why}.",
        field=name,
        hint="A field that is not understood could change what the network computes.",
    )
