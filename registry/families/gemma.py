"""Gemma: `GemmaForCausalLM`, built like Llama, with scaled embeddings and norms whose weights are counted from one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.families import like_llama, rope
from registry.families.family import Family
from registry.families.fields import neutral, read_activation, refuse_value, used

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformerConfig

FIELDS = {
    "vocab_size": used(int, 256000),
    "hidden_size": used(int, 3072),
    "intermediate_size": used(int, 24576),
    "num_hidden_layers": used(int, 28),
    "num_attention_heads": used(int, 16),
    "num_key_value_heads": used(int, 16),
    "head_dim": used(int, 256),
    "hidden_act": used(str, "gelu_pytorch_tanh"),
    "hidden_activation": used(str, None, optional=True),
    "max_position_embeddings": used(int, 8192),
    "rms_norm_eps": used(float, 1e-6),
    "tie_word_embeddings": used(bool, True),
    "attention_bias": used(bool, False),
    "use_bidirectional_attention": used(bool, None, optional=True),
    **rope.FIELDS,
    "attention_dropout": neutral("dropout is off when a network is read"),
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map Gemma's config fields to the canonical architecture."""
    refuse_bidirectional_attention(config)
    return describe_architecture(
        **like_llama.describe_sizes(config),
        act_fn=_read_activation(config),
        gated_mlp=True,
        **rope.describe_rope(rope.read_rope(config), config["max_position_embeddings"]),
    )


def refuse_bidirectional_attention(config: Mapping[str, Any]) -> None:
    """Refuse what transformers itself computes in two ways: its eager attention hides later tokens, its sdpa not."""
    if config["use_bidirectional_attention"]:
        raise refuse_value(
            "use_bidirectional_attention",
            True,
            "transformers 5.23 itself computes two different networks, with eager and with sdpa attention",
        )


def _read_activation(config: Mapping[str, Any]) -> str:
    """Read "gelu" as the tanh approximation, as GemmaConfig does: the first official releases said it and meant that.

    transformers 4 read `hidden_activation` instead of `hidden_act`, transformers 5 does not; they must agree.
    """
    value, other = config["hidden_act"], config["hidden_activation"]
    activation = read_activation("hidden_act", "gelu_pytorch_tanh" if value == "gelu" else value)
    if other is not None and read_activation("hidden_activation", other) != activation:
        raise refuse_value("hidden_activation", other, f"hidden_act says {value!r}", "Keep one of the two.")
    return activation


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give the config class what it reads; which token pads is none of the network's business, but must be in range."""
    arguments = like_llama.make_arguments(config)
    del arguments["hidden_activation"]
    return {**arguments, "pad_token_id": None}


def convert(network: torch.nn.Module, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's own converter: it scales the embedding and adds 1 to the weights of norms.

    It knows grouped keys and values only, and drops the biases that attention_bias brings.
    """
    from transformer_lens.pretrained.weight_conversions.gemma import convert_gemma_weights

    tensors = like_llama.convert_ungrouped(convert_gemma_weights, network, cfg)
    return like_llama.add_attention_biases(tensors, network, cfg)


FAMILY = Family(
    name="gemma",
    class_name="GemmaForCausalLM",
    config_class_name="GemmaConfig",
    model_type="gemma",
    fields=FIELDS,
    describe=describe,
    convert=convert,
    config_keys=like_llama.CONFIG_KEYS,
    arguments=make_arguments,
    base_prefix=like_llama.BASE_PREFIX,
    tied=like_llama.TIED,
    ignored=like_llama.IGNORED,
)
