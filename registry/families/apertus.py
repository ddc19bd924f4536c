"""Apertus: `ApertusForCausalLM`, Llama with norms on queries and keys, and a plain MLP whose activation learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.families import like_llama, rope
from registry.families.family import Family
from registry.families.fields import neutral, only, read_activation, refuse_value, used

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformerConfig

DEFAULT_THETA = 12e6
XIELU = "xielu"

FIELDS = {
    "vocab_size": used(int, 131072),
    "hidden_size": used(int, 4096),
    "intermediate_size": used(int, 14336),
    "num_hidden_layers": used(int, 32),
    "num_attention_heads": used(int, 32),
    "num_key_value_heads": used(int, None, optional=True),
    # no field of the config class, but the network reads it where it is given
    "head_dim": used(int, None, optional=True),
    "hidden_act": used(str, XIELU),
    "max_position_embeddings": used(int, 65536),
    "rms_norm_eps": used(float, 1e-5),
    "tie_word_embeddings": used(bool, False),
    "attention_bias": used(bool, False),
    **rope.FIELDS,
    "mlp_bias": only(False, "transformers's Apertus has no biases in its MLP"),
    "qk_norm": only(True, "transformers's Apertus always has norms on queries and keys"),
    "post_norm": only(False, "transformers's Apertus has its norms before the sublayers"),
    "attention_dropout": neutral("dropout is off when a network is read"),
    "hidden_dropout": neutral("dropout is off when a network is read"),
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map Apertus's config fields to the canonical architecture."""
    activation = config["hidden_act"]
    return describe_architecture(
        **like_llama.describe_sizes(config),
        act_fn=XIELU if activation == XIELU else read_activation("hidden_act", activation),
        use_qk_norm=True,
        **rope.describe_rope(_read_rope(config), config["max_position_embeddings"]),
    )


def _read_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read rotary fields, which must be there: transformers 4 took null for no scaling, 5 takes it for llama3."""
    if not config["rope_parameters"] and not config["rope_scaling"]:
        raise refuse_value(
            "rope_parameters",
            config["rope_parameters"],
            "without it, and without the rope_scaling of transformers 4, its releases differ in what they do",
            'Give them, as in "rope_parameters": {"rope_type": "default", "rope_theta": 12000000.0}.',
        )
    return rope.read_rope(config, DEFAULT_THETA)


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give ApertusConfig what it reads; which token pads is none of the network's business, but must be in range."""
    return {**like_llama.make_arguments(config), "rope_parameters": _read_rope(config), "pad_token_id": None}


def convert(network: torch.nn.Module, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's own converter, which drops the biases that attention_bias brings.

    It invents parameters of xIELU where the activation is another, and gives beta without eps. All four are numbers
    here, as HookedTransformer has them; transformers keeps the two that are learned as lists of one.
    """
    from transformer_lens.pretrained.weight_conversions.apertus import convert_apertus_weights

    tensors = convert_apertus_weights(network, cfg)
    tensors = {name: tensor for name, tensor in tensors.items() if ".act_fn." not in name}
    if cfg.act_fn == XIELU:
        model: Any = network.model
        for index, layer in enumerate(model.layers):
            for name in ("alpha_p", "alpha_n", "beta", "eps"):
                tensors[f"blocks.{index}.mlp.act_fn.{name}"] = getattr(layer.mlp.act_fn, name).reshape(())
    return like_llama.add_attention_biases(tensors, network, cfg)


FAMILY = Family(
    name="apertus",
    class_name="ApertusForCausalLM",
    config_class_name="ApertusConfig",
    model_type="apertus",
    fields=FIELDS,
    describe=describe,
    convert=convert,
    config_keys=like_llama.CONFIG_KEYS,
    arguments=make_arguments,
    base_prefix=like_llama.BASE_PREFIX,
    tied=like_llama.TIED,
    ignored=like_llama.IGNORED,
)
