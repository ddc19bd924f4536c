"""OLMo 2: `Olmo2ForCausalLM`, with RMSNorm after each sublayer, and on whole queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.families import like_llama, rope
from registry.families.family import Family
from registry.families.fields import neutral, read_activation, used
from registry.families.olmo import convert_around_attention

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformerConfig

_D_HEAD = "hidden_size / num_attention_heads"

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
    **rope.FIELDS,
    "attention_dropout": neutral("dropout is off when a network is read"),
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map OLMo 2's config fields to the canonical architecture."""
    return describe_architecture(
        **like_llama.describe_sizes(config),
        act_fn=read_activation("hidden_act", config["hidden_act"]),
        gated_mlp=True,
        block_variant="olmo2",
        **rope.describe_rope(rope.read_rope(config), config["max_position_embeddings"]),
    )


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give Olmo2Config what it reads; which token pads is none of the network's business, but must be in range."""
    return {**like_llama.make_arguments(config), "pad_token_id": None}


def convert(network: torch.nn.Module, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's own converter, and attention by hand."""
    from transformer_lens.pretrained.weight_conversions.olmo2 import convert_olmo2_weights

    return convert_around_attention(convert_olmo2_weights, network, cfg)


FAMILY = Family(
    name="olmo2",
    class_name="Olmo2ForCausalLM",
    config_class_name="Olmo2Config",
    model_type="olmo2",
    fields=FIELDS,
    describe=describe,
    convert=convert,
    config_keys={
        **like_llama.CONFIG_KEYS,
        "d_head": _D_HEAD,
        "attn_scale": _D_HEAD,
        "rotary_dim": _D_HEAD,
    },
    arguments=make_arguments,
    base_prefix=like_llama.BASE_PREFIX,
    tied=like_llama.TIED,
    ignored=like_llama.IGNORED,
)
