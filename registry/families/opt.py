"""OPT: `OPTForCausalLM`, with learned positions, the first two of them unused, and norms before its sublayers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.families.family import Family
from registry.families.fields import neutral, only, read_activation, refuse_value, used
from registry.families.lending import lend_missing

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformerConfig

_DROPOUT = neutral("dropout is off when a network is read")
_NOT_READ = neutral("transformers does not read it")
_EPS = 1e-5  # torch.nn.LayerNorm's own; OPT's config has no field for it

FIELDS = {
    "vocab_size": used(int, 50272),
    "hidden_size": used(int, 768),
    "num_hidden_layers": used(int, 12),
    "ffn_dim": used(int, 3072),
    "max_position_embeddings": used(int, 2048),
    "num_attention_heads": used(int, 12),
    "activation_function": used(str, "relu"),
    "word_embed_proj_dim": used(int, None, optional=True),
    "enable_bias": used(bool, True),
    "layer_norm_elementwise_affine": used(bool, True),
    "tie_word_embeddings": used(bool, True),
    "do_layer_norm_before": only(True, "HookedTransformer's norms stand before attention and MLP"),
    "_remove_final_layer_norm": only(False, "HookedTransformer has a norm before the unembedding"),
    "dropout": _DROPOUT,
    "attention_dropout": _DROPOUT,
    "activation_dropout": _DROPOUT,
    "layerdrop": _DROPOUT,
    "init_std": neutral("it matters in training only"),
    "learned_embeddings": _NOT_READ,
    "scale_embeddings": _NOT_READ,
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map OPT's config fields to the canonical architecture."""
    d_model, n_heads = config["hidden_size"], config["num_attention_heads"]
    if d_model % n_heads:
        raise refuse_value("num_attention_heads", n_heads, f"hidden_size = {d_model} is no multiple of it")
    d_embed = config["word_embed_proj_dim"] or d_model
    if d_embed != d_model:
        raise refuse_value("word_embed_proj_dim", d_embed, f"embeddings must have hidden_size = {d_model} dimensions")
    return describe_architecture(
        d_model=d_model,
        n_layers=config["num_hidden_layers"],
        n_heads=n_heads,
        d_head=d_model // n_heads,
        d_mlp=config["ffn_dim"],
        d_vocab=config["vocab_size"],
        n_ctx=config["max_position_embeddings"],
        act_fn=read_activation("activation_function", config["activation_function"]),
        normalization_type="LN",
        eps=_EPS,
        positional_embedding_type="standard",
        tie_word_embeddings=config["tie_word_embeddings"],
    )


def convert(network: torch.nn.Module, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's own converter, which expects the biases and gains that a config may leave out."""
    from transformer_lens.pretrained.weight_conversions.opt import convert_opt_weights

    with lend_missing(network):
        converted: dict[str, torch.Tensor] = convert_opt_weights(network, cfg)
    return converted


FAMILY = Family(
    name="opt",
    class_name="OPTForCausalLM",
    config_class_name="OPTConfig",
    model_type="opt",
    fields=FIELDS,
    describe=describe,
    convert=convert,
    config_keys={
        "d_model": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "n_key_value_heads": "num_attention_heads",
        "d_head": "hidden_size / num_attention_heads",
        "d_mlp": "ffn_dim",
        "d_vocab": "vocab_size",
        "d_vocab_out": "vocab_size",
        "n_ctx": "max_position_embeddings",
        "act_fn": "activation_function",
        "attn_scale": "hidden_size / num_attention_heads",
        "tie_word_embeddings": "tie_word_embeddings",
    },
    base_prefix="model.",
    tied=("model.decoder.embed_tokens.weight", "lm_head.weight"),
)
