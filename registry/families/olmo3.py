"""OLMo 3: `Olmo3ForCausalLM`, OLMo 2 with windows in some layers, and scaled rotary positions in the others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.families import rope
from registry.families.attention import convert_around_attention
from registry.families.family import Family
from registry.families.fields import neutral, read_activation, refuse_value, used
from registry.families.layer_types import FULL, SLIDING, describe_windows, read_layer_types
from registry.families.sizes import read_sizes

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformerConfig

DEFAULT_THETA = 5e5
_HINT = "Give rope_parameters of transformers 5: one entry for full_attention and one for sliding_attention."

FIELDS = {
    "vocab_size": used(int, 50304),
    "hidden_size": used(int, 4096),
    "intermediate_size": used(int, 11008),
    "num_hidden_layers": used(int, 32),
    "num_attention_heads": used(int, 32),
    "num_key_value_heads": used(int, None, optional=True),
    "hidden_act": used(str, "silu"),
    "max_position_embeddings": used(int, 2048),
    "tie_word_embeddings": used(bool, False),
    "attention_bias": used(bool, False),
    "rms_norm_eps": used(float, 1e-5),
    "sliding_window": used(int, 4096, optional=True),
    "layer_types": used(list, None, optional=True),
    **rope.FIELDS,
    "attention_dropout": neutral("dropout is off when a network is read"),
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map OLMo 3's config fields to the canonical architecture."""
    n_layers = config["num_hidden_layers"]
    # every fourth layer attends to everything
    attn_types = read_layer_types(config["layer_types"], n_layers, lambda layer: (layer + 1) % 4 != 0)
    return describe_architecture(
        **read_sizes(config),
        n_layers=config["num_hidden_layers"],
        d_mlp=config["intermediate_size"],
        d_vocab=config["vocab_size"],
        n_ctx=config["max_position_embeddings"],
        act_fn=read_activation("hidden_act", config["hidden_act"]),
        normalization_type="RMS",
        final_rms=True,
        gated_mlp=True,
        eps=config["rms_norm_eps"],
        block_variant="olmo3",
        tie_word_embeddings=config["tie_word_embeddings"],
        **describe_windows(attn_types, config["sliding_window"]),
        **describe_ropes(read_ropes(config), attn_types, config["max_position_embeddings"]),
    )


def read_ropes(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rotary parameters of each layer type, whichever release wrote the config.

    transformers 4 wrote `rope_scaling`, which it applied to full attention only, and one `rope_theta`.
    """
    nested, scaling, theta = config["rope_parameters"], config["rope_scaling"], config["rope_theta"]
    if nested is None:
        nested = {FULL: scaling or {}, SLIDING: {}}
        # transformers 5.23 would give another theta than the default to full attention only
        if theta not in (None, DEFAULT_THETA):
            raise refuse_value("rope_theta", theta, "releases of transformers differ in which layers it is for", _HINT)
    elif scaling or theta is not None:
        key = "rope_scaling" if scaling else "rope_theta"
        raise refuse_value(key, config[key], "rope_parameters is there too", "Keep one of the two.")
    kinds = {FULL, SLIDING}
    if set(nested) - kinds or not all(isinstance(one, dict) for one in nested.values()):
        raise refuse_value("rope_parameters", nested, "transformers reads one entry for each layer type", _HINT)
    return {
        kind: rope.read_rope(
            {"rope_parameters": nested.get(kind), "rope_scaling": None, "rope_theta": None}, DEFAULT_THETA
        )
        for kind in sorted(kinds)
    }


def describe_ropes(ropes: Mapping[str, Mapping[str, Any]], attn_types: Sequence[str], n_ctx: int) -> dict[str, Any]:
    """Map both layer types' rotary parameters to architecture fields, if HookedTransformer can tell them apart.

    It has a theta of its own for local layers, can do yarn in global layers only, and scales linearly there only.
    """
    if "local" not in attn_types:
        return rope.describe_rope(ropes[FULL], n_ctx)
    if "global" not in attn_types:
        rope.refuse_scaled_windows(ropes[SLIDING], attn_types)
        return rope.describe_rope(ropes[SLIDING], n_ctx)
    near, far = (rope.describe_rope(ropes[kind], n_ctx) for kind in (SLIDING, FULL))
    fields = dict(far)
    if near["rotary_base"] != far["rotary_base"]:
        fields["rotary_base_local"] = near["rotary_base"]
    scaling_near, scaling_far = ({**one, "rotary_base": None} for one in (near, far))
    kinds = {kind: ropes[kind]["rope_type"] for kind in ropes}
    if kinds[SLIDING] == "default" and kinds[FULL] == "yarn":
        fields["yarn_global_attn_only"] = True
    elif kinds[SLIDING] == "default" and kinds[FULL] in ("default", "linear"):
        pass
    elif scaling_near != scaling_far or kinds[SLIDING] == "linear":
        raise refuse_value(
            "rope_parameters",
            {kind: ropes[kind] for kind in (FULL, SLIDING)},
            "HookedTransformer cannot scale sliding_attention in this way beside full_attention",
        )
    return fields


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give Olmo3Config its rotary fields in the one form of transformers 5."""
    others = {name: value for name, value in config.items() if name not in rope.FIELDS}
    return {**others, "rope_parameters": read_ropes(config)}


def convert(network: torch.nn.Module, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's own converter, and the attention with biases (see attention.py)."""
    from transformer_lens.pretrained.weight_conversions.olmo3 import convert_olmo3_weights

    return convert_around_attention(convert_olmo3_weights, network, cfg)


FAMILY = Family(
    name="olmo3",
    class_name="Olmo3ForCausalLM",
    config_class_name="Olmo3Config",
    model_type="olmo3",
    fields=FIELDS,
    describe=describe,
    convert=convert,
    config_keys={
        "d_model": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "n_key_value_heads": "num_key_value_heads",
        "d_head": "hidden_size / num_attention_heads",
        "d_mlp": "intermediate_size",
        "d_vocab": "vocab_size",
        "d_vocab_out": "vocab_size",
        "n_ctx": "max_position_embeddings",
        "act_fn": "hidden_act",
        "eps": "rms_norm_eps",
        "attn_scale": "hidden_size / num_attention_heads",
        "rotary_dim": "hidden_size / num_attention_heads",
        "tie_word_embeddings": "tie_word_embeddings",
        "use_local_attn": "layer_types",
        "attn_types": "layer_types",
        "window_size": "sliding_window",
        "rotary_base_local": "rope_parameters.sliding_attention.rope_theta",
        "yarn_global_attn_only": "rope_parameters",
        **rope.CONFIG_KEYS,
    },
    arguments=make_arguments,
    base_prefix="model.",
    tied=("model.embed_tokens.weight", "lm_head.weight"),
    ignored=re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"),
)
