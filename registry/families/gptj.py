"""GPT-J: `GPTJForCausalLM`, with adjacent pairs rotated, attention beside the MLP, one norm for both, a head bias."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.families.family import Family
from registry.families.fields import check_n_ctx, neutral, only, read_activation, refuse_value, used
from registry.families.rope import DEFAULT_THETA

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformerConfig

_DROPOUT = neutral("dropout is off when a network is read")
_SUMMARY = neutral("it belongs to another head than the language model's")

FIELDS = {
    "vocab_size": used(int, 50400),
    "n_positions": used(int, 2048),
    "n_embd": used(int, 4096),
    "n_layer": used(int, 28),
    "n_head": used(int, 16),
    "rotary_dim": used(int, 64),
    "n_inner": used(int, None, optional=True),
    "activation_function": used(str, "gelu_new"),
    "layer_norm_epsilon": used(float, 1e-5),
    "tie_word_embeddings": used(bool, False),
    "rotary": only(True, "transformers rotates whatever it says"),
    "scale_attn_weights": only(True, "transformers scales whatever it says"),
    "n_ctx": neutral("transformers reads n_positions"),
    "resid_pdrop": _DROPOUT,
    "embd_pdrop": _DROPOUT,
    "attn_pdrop": _DROPOUT,
    "summary_type": _SUMMARY,
    "summary_use_proj": _SUMMARY,
    "summary_activation": _SUMMARY,
    "summary_proj_to_labels": _SUMMARY,
    "summary_first_dropout": _SUMMARY,
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map GPT-J's config fields to the canonical architecture."""
    d_model, n_heads = config["n_embd"], config["n_head"]
    if d_model % n_heads:
        raise refuse_value("n_head", n_heads, f"n_embd = {d_model} is no multiple of it")
    d_head, rotary_dim = d_model // n_heads, config["rotary_dim"]
    if rotary_dim % 2 or rotary_dim > d_head:
        raise refuse_value("rotary_dim", rotary_dim, f"rotary embeddings turn pairs of a head's {d_head} dimensions")
    return describe_architecture(
        d_model=d_model,
        n_layers=config["n_layer"],
        n_heads=n_heads,
        d_head=d_head,
        d_mlp=config["n_inner"] or 4 * d_model,
        d_vocab=config["vocab_size"],
        n_ctx=check_n_ctx("n_positions", config["n_positions"]),
        act_fn=read_activation("activation_function", config["activation_function"]),
        normalization_type="LN",
        eps=config["layer_norm_epsilon"],
        parallel_attn_mlp=True,
        positional_embedding_type="rotary",
        rotary_dim=rotary_dim,
        rotary_base=DEFAULT_THETA,
        rotary_adjacent_pairs=True,
        tie_word_embeddings=config["tie_word_embeddings"],
    )


def convert(network: torch.nn.Module, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's own converter."""
    from transformer_lens.pretrained.weight_conversions.gptj import convert_gptj_weights

    converted: dict[str, torch.Tensor] = convert_gptj_weights(network, cfg)
    return converted


FAMILY = Family(
    name="gptj",
    class_name="GPTJForCausalLM",
    config_class_name="GPTJConfig",
    model_type="gptj",
    fields=FIELDS,
    describe=describe,
    convert=convert,
    config_keys={
        "d_model": "n_embd",
        "n_layers": "n_layer",
        "n_heads": "n_head",
        "n_key_value_heads": "n_head",
        "d_head": "n_embd / n_head",
        "d_mlp": "n_inner",
        "d_vocab": "vocab_size",
        "d_vocab_out": "vocab_size",
        "n_ctx": "n_positions",
        "act_fn": "activation_function",
        "eps": "layer_norm_epsilon",
        "attn_scale": "n_embd / n_head",
        "rotary_dim": "rotary_dim",
        "tie_word_embeddings": "tie_word_embeddings",
    },
    base_prefix="transformer.",
    tied=("transformer.wte.weight", "lm_head.weight"),
    spellings={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    ignored=re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias|embed_positions)"),
)
