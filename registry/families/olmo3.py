"""OLMo 3: `Olmo3ForCausalLM`, OLMo 2 with windows in some layers, and scaled rotary positions in the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.families import like_llama, rope
from registry.families.family import Family
from registry.families.fields import neutral, read_activation, refuse_value, used
from registry.families.layer_types import SLIDING, describe_windows, read_layer_types

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformerConfig

DEFAULT_THETA = 5e5
_D_HEAD = "hidden_size / num_attention_heads"
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
        **like_llama.describe_sizes(config),
        act_fn=read_activation("hidden_act", config["hidden_act"]),
        gated_mlp=True,
        block_variant="olmo3",
        **describe_windows(attn_types, config["sliding_window"]),
        **rope.describe_layered_rope(read_ropes(config), config["max_position_embeddings"], attn_types),
    )


def read_ropes(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rotary parameters of each layer type, whichever release wrote the config."""
    theta, sliding = config["rope_theta"], (config["rope_parameters"] or {}).get(SLIDING)
    known = isinstance(sliding, dict) and sliding.get("rope_theta") is not None
    if theta not in (None, DEFAULT_THETA) and not known:
        # transformers 4 gave it to all layers, and 5.23 gives those with a window the default
        raise refuse_value("rope_theta", theta, "releases of transformers differ in which layers it is for", _HINT)
    return rope.read_layered_rope({**config, "rope_local_base_freq": None}, DEFAULT_THETA, DEFAULT_THETA)


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give Olmo3Config what it reads; which token pads is none of the network's business, but must be in range."""
    others = {name: value for name, value in config.items() if name not in rope.FIELDS}
    return {**others, "rope_parameters": read_ropes(config), "pad_token_id": None}


def convert(network: torch.nn.Module, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's own converter, which drops the biases that attention_bias brings."""
    from transformer_lens.pretrained.weight_conversions.olmo3 import convert_olmo3_weights

    return like_llama.add_attention_biases(
        like_llama.convert_ungrouped(convert_olmo3_weights, network, cfg), network, cfg
    )


FAMILY = Family(
    name="olmo3",
    class_name="Olmo3ForCausalLM",
    config_class_name="Olmo3Config",
    model_type="olmo3",
    fields=FIELDS,
    describe=describe,
    convert=convert,
    config_keys={
        **like_llama.CONFIG_KEYS,
        "d_head": _D_HEAD,
        "attn_scale": _D_HEAD,
        "rotary_dim": _D_HEAD,
        "use_local_attn": "layer_types",
        "attn_types": "layer_types",
        "window_size": "sliding_window",
        "rotary_base_local": "rope_parameters.sliding_attention.rope_theta",
        "yarn_global_attn_only": "rope_parameters",
    },
    arguments=make_arguments,
    base_prefix=like_llama.BASE_PREFIX,
    tied=like_llama.TIED,
    ignored=like_llama.IGNORED,
)
