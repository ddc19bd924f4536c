"""GPT-NeoX and Pythia: `GPTNeoXForCausalLM`, with partly rotated heads and attention beside the MLP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.families import rope
from registry.families.family import Family
from registry.families.fields import neutral, read_activation, refuse_value, used
from registry.families.lending import lend_missing

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformerConfig

_DROPOUT = neutral("dropout is off when a network is read")
_DEFAULT_PART = 0.25
# transformers reads rotary_emb_base and rotary_pct; later releases of transformers 4 wrote these beside them
_NOT_READ = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}

FIELDS = {
    "vocab_size": used(int, 50432),
    "hidden_size": used(int, 6144),
    "num_hidden_layers": used(int, 44),
    "num_attention_heads": used(int, 64),
    "intermediate_size": used(int, 24576),
    "hidden_act": used(str, "gelu"),
    "max_position_embeddings": used(int, 2048),
    "layer_norm_eps": used(float, 1e-5),
    "tie_word_embeddings": used(bool, False),
    "use_parallel_residual": used(bool, True),
    "attention_bias": used(bool, True),
    **rope.PARTIAL_FIELDS,
    "rotary_emb_base": used(float, None, optional=True),
    "rotary_pct": used(float, None, optional=True),
    "attention_dropout": _DROPOUT,
    "hidden_dropout": _DROPOUT,
    "attention_probs_dropout_prob": _DROPOUT,
    "hidden_dropout_prob": _DROPOUT,
    "classifier_dropout": neutral("it belongs to another head than the language model's"),
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map GPT-NeoX's config fields to the canonical architecture."""
    d_model, n_heads = config["hidden_size"], config["num_attention_heads"]
    if d_model % n_heads:
        raise refuse_value("num_attention_heads", n_heads, f"hidden_size = {d_model} is no multiple of it")
    d_head = d_model // n_heads
    n_ctx = config["max_position_embeddings"]
    rotary = _read_rope(config)
    return describe_architecture(
        d_model=d_model,
        n_layers=config["num_hidden_layers"],
        n_heads=n_heads,
        d_head=d_head,
        d_mlp=config["intermediate_size"],
        d_vocab=config["vocab_size"],
        n_ctx=n_ctx,
        act_fn=read_activation("hidden_act", config["hidden_act"]),
        normalization_type="LN",
        eps=config["layer_norm_eps"],
        parallel_attn_mlp=config["use_parallel_residual"],
        tie_word_embeddings=config["tie_word_embeddings"],
        rotary_dim=rope.describe_rotary_dim(config, d_head, _DEFAULT_PART, "rotary_pct"),
        **rope.describe_rope(rotary, n_ctx),
    )


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give GPTNeoXConfig its rotary fields in the one form of transformers 5."""
    rotary = {*rope.PARTIAL_FIELDS, *_NOT_READ.values()}
    others = {name: value for name, value in config.items() if name not in rotary}
    return {**others, "rope_parameters": _read_rope(config)}


def _read_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read the rotary fields; those that transformers does not read here must not say something else."""
    rotary = rope.read_partial_rope(config, _DEFAULT_PART, "rotary_pct", "rotary_emb_base")
    for name, read in _NOT_READ.items():
        if config[name] is not None and config[name] != rotary[name]:
            raise refuse_value(name, config[name], f"transformers reads {read} instead, which is {rotary[name]!r}")
    return rotary


def convert(network: torch.nn.Module, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's own converter, which expects the biases that attention_bias=False leaves out."""
    from transformer_lens.pretrained.weight_conversions.neox import convert_neox_weights

    with lend_missing(network):
        converted: dict[str, torch.Tensor] = convert_neox_weights(network, cfg)
    return converted


FAMILY = Family(
    name="gpt_neox",
    class_name="GPTNeoXForCausalLM",
    config_class_name="GPTNeoXConfig",
    model_type="gpt_neox",
    fields=FIELDS,
    describe=describe,
    convert=convert,
    config_keys={
        "d_model": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "n_key_value_heads": "num_attention_heads",
        "d_head": "hidden_size / num_attention_heads",
        "d_mlp": "intermediate_size",
        "d_vocab": "vocab_size",
        "d_vocab_out": "vocab_size",
        "n_ctx": "max_position_embeddings",
        "act_fn": "hidden_act",
        "eps": "layer_norm_eps",
        "attn_scale": "hidden_size / num_attention_heads",
        "parallel_attn_mlp": "use_parallel_residual",
        "tie_word_embeddings": "tie_word_embeddings",
        **rope.CONFIG_KEYS,
        "rotary_dim": "rotary_pct",
        "rotary_base": "rotary_emb_base",
    },
    arguments=make_arguments,
    base_prefix="gpt_neox.",
    tied=("gpt_neox.embed_in.weight", "lm_head.weight"),
    renamed={"embed_out.weight": "lm_head.weight"},
    ignored=re.compile(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"),
)
