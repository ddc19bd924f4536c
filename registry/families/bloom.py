"""BLOOM: `BloomForCausalLM`, with ALiBi instead of positions and a norm after the embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.families.family import Family
from registry.families.fields import check_n_ctx, neutral, only, refuse_value, used

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformerConfig

_DROPOUT = neutral("dropout is off when a network is read")
_NOT_READ = neutral("transformers does not read it")
_SAME_PRODUCT = neutral("it splits the same matrix products")

FIELDS = {
    "vocab_size": used(int, 250880),
    "hidden_size": used(int, 64),
    "n_embed": used(int, None, optional=True),
    "n_layer": used(int, 2),
    "n_head": used(int, 8),
    "seq_length": used(int, 2048),
    "layer_norm_epsilon": used(float, 1e-5),
    "tie_word_embeddings": used(bool, True),
    "apply_residual_connection_post_layernorm": only(
        False, "HookedTransformer's residual stream does not pass through norms"
    ),
    "pretraining_tp": _SAME_PRODUCT,
    "slow_but_exact": _SAME_PRODUCT,
    "hidden_dropout": _DROPOUT,
    "attention_dropout": _DROPOUT,
    "n_inner": neutral("transformers makes every MLP 4·hidden_size wide"),
    "attention_softmax_in_fp32": _NOT_READ,
    "bias_dropout_fusion": _NOT_READ,
    "masked_softmax_fusion": _NOT_READ,
    "offset_alibi": _NOT_READ,
    "skip_bias_add": _NOT_READ,
    "skip_bias_add_qkv": _NOT_READ,
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map BLOOM's config fields to the canonical architecture.

    ALiBi has no longest text, but HookedTransformer has: `n_ctx` is seq_length, the length that BLOOM was trained on.
    """
    d_model, n_heads = config["n_embed"] or config["hidden_size"], config["n_head"]
    if d_model % n_heads:
        raise refuse_value("n_head", n_heads, f"hidden_size = {d_model} is no multiple of it")
    if n_heads & (n_heads - 1):  # transformers then takes every other slope of the next power of two
        raise refuse_value("n_head", n_heads, "HookedTransformer's ALiBi slopes are other ones unless it is 2, 4, 8 …")
    return describe_architecture(
        d_model=d_model,
        n_layers=config["n_layer"],
        n_heads=n_heads,
        d_head=d_model // n_heads,
        d_mlp=4 * d_model,
        d_vocab=config["vocab_size"],
        n_ctx=check_n_ctx("seq_length", config["seq_length"]),
        act_fn="gelu_new",
        normalization_type="LN",
        eps=config["layer_norm_epsilon"],
        positional_embedding_type="alibi",
        post_embedding_ln=True,
        tie_word_embeddings=config["tie_word_embeddings"],
    )


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give BloomConfig the one name it has for the width."""
    others = {name: value for name, value in config.items() if name != "n_embed"}
    return {**others, "hidden_size": config["n_embed"] or config["hidden_size"]}


def convert(network: torch.nn.Module, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's own converter.

    HookedTransformer has a table of positions that ALiBi never reads; transformer-lens leaves it uninitialised, so
    that two loads differ. Here it is zero.
    """
    import torch
    from transformer_lens.pretrained.weight_conversions.bloom import convert_bloom_weights

    converted: dict[str, torch.Tensor] = convert_bloom_weights(network, cfg)
    return {**converted, "pos_embed.W_pos": torch.zeros(cfg.n_ctx, cfg.d_model, dtype=cfg.dtype)}


FAMILY = Family(
    name="bloom",
    class_name="BloomForCausalLM",
    config_class_name="BloomConfig",
    model_type="bloom",
    fields=FIELDS,
    describe=describe,
    convert=convert,
    config_keys={
        "d_model": "hidden_size",
        "n_layers": "n_layer",
        "n_heads": "n_head",
        "n_key_value_heads": "n_head",
        "d_head": "hidden_size / n_head",
        "d_mlp": "4 * hidden_size",
        "d_vocab": "vocab_size",
        "d_vocab_out": "vocab_size",
        "n_ctx": "seq_length",
        "eps": "layer_norm_epsilon",
        "attn_scale": "hidden_size / n_head",
        "tie_word_embeddings": "tie_word_embeddings",
    },
    arguments=make_arguments,
    base_prefix="transformer.",
    tied=("transformer.word_embeddings.weight", "lm_head.weight"),
    absent=("unembed.b_U",),
    spellings={"num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
)
