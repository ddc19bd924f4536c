"""GPT-Neo and TinyStories: `GPTNeoForCausalLM`, with unscaled attention, in some layers within a window."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from registry.architecture import Architecture, describe_architecture
from registry.families.family import Family
from registry.families.fields import neutral, read_activation, refuse_value, used
from registry.families.layer_types import MAX_LAYERS, describe_windows

if TYPE_CHECKING:
    import torch
    from transformer_lens import HookedTransformerConfig

_DROPOUT = neutral("dropout is off when a network is read")
_OTHER_HEAD = neutral("it belongs to another head than the language model's")
_DEFAULT_TYPES = [[["global", "local"], 12]]

FIELDS = {
    "vocab_size": used(int, 50257),
    "max_position_embeddings": used(int, 2048),
    "hidden_size": used(int, 2048),
    "num_layers": used(int, 24),
    "num_heads": used(int, 16),
    "intermediate_size": used(int, None, optional=True),
    "attention_types": used(list, None, optional=True),
    "attention_layers": used(list, None, optional=True),
    "window_size": used(int, 256),
    "activation_function": used(str, "gelu_new"),
    "layer_norm_epsilon": used(float, 1e-5),
    "tie_word_embeddings": used(bool, True),
    "resid_dropout": _DROPOUT,
    "embed_dropout": _DROPOUT,
    "attention_dropout": _DROPOUT,
    "classifier_dropout": _OTHER_HEAD,
    "summary_type": _OTHER_HEAD,
    "summary_use_proj": _OTHER_HEAD,
    "summary_activation": _OTHER_HEAD,
    "summary_proj_to_labels": _OTHER_HEAD,
    "summary_first_dropout": _OTHER_HEAD,
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map GPT-Neo's config fields to the canonical architecture."""
    d_model, n_heads = config["hidden_size"], config["num_heads"]
    if d_model % n_heads:
        raise refuse_value("num_heads", n_heads, f"hidden_size = {d_model} is no multiple of it")
    return describe_architecture(
        d_model=d_model,
        n_layers=config["num_layers"],
        n_heads=n_heads,
        d_head=d_model // n_heads,
        d_mlp=config["intermediate_size"] or 4 * d_model,
        d_vocab=config["vocab_size"],
        n_ctx=config["max_position_embeddings"],
        act_fn=read_activation("activation_function", config["activation_function"]),
        normalization_type="LN",
        eps=config["layer_norm_epsilon"],
        positional_embedding_type="standard",
        tie_word_embeddings=config["tie_word_embeddings"],
        attn_scale=1.0,
        **describe_windows(read_layers(config), config["window_size"]),
    )


def read_layers(config: Mapping[str, Any]) -> list[str]:
    """Return each layer's kind of attention, "global" or "local".

    transformers expands attention_types, as in [[["global", "local"], 12]], to attention_layers, writes both, and
    lets attention_layers win; two that disagree are refused.
    """
    types, layers = config["attention_types"], config["attention_layers"]
    if layers is None or types is not None:
        key, expanded = "attention_types", _expand_types(_DEFAULT_TYPES if types is None else types)
        if layers is not None and layers != expanded:
            raise refuse_value(
                "attention_layers", layers, "attention_types says something else", "Keep one of the two."
            )
    else:
        key, expanded = "attention_layers", layers
    if len(expanded) != config["num_layers"]:
        raise refuse_value(key, config[key], f"it is about {len(expanded)} layers, num_layers = {config['num_layers']}")
    if not all(kind in ("global", "local") for kind in expanded):
        raise refuse_value(key, config[key], 'a layer is either "global" or "local"')
    return [str(kind) for kind in expanded]


def _expand_types(types: list[Any]) -> list[Any]:
    expanded: list[Any] = []
    for item in types:
        if not (isinstance(item, list) and len(item) == 2 and isinstance(item[0], list) and type(item[1]) is int):
            raise refuse_value("attention_types", types, "it must be pairs of a list of kinds and how often it repeats")
        if len(item[0]) * item[1] > MAX_LAYERS:
            raise refuse_value("attention_types", types, "it is about more layers than any network has")
        expanded += item[0] * item[1]
    return expanded


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give GPTNeoConfig its attention_types, from which it makes the attention_layers."""
    others = {name: value for name, value in config.items() if name != "attention_layers"}
    return {**others, "attention_types": config["attention_types"] or [[read_layers(config), 1]]}


def convert(network: torch.nn.Module, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    """Convert with transformer-lens's own converter."""
    from transformer_lens.pretrained.weight_conversions.neo import convert_neo_weights

    converted: dict[str, torch.Tensor] = convert_neo_weights(network, cfg)
    return converted


FAMILY = Family(
    name="gpt_neo",
    class_name="GPTNeoForCausalLM",
    config_class_name="GPTNeoConfig",
    model_type="gpt_neo",
    fields=FIELDS,
    describe=describe,
    convert=convert,
    config_keys={
        "d_model": "hidden_size",
        "n_layers": "num_layers",
        "n_heads": "num_heads",
        "n_key_value_heads": "num_heads",
        "d_head": "hidden_size / num_heads",
        "d_mlp": "intermediate_size",
        "d_vocab": "vocab_size",
        "d_vocab_out": "vocab_size",
        "n_ctx": "max_position_embeddings",
        "act_fn": "activation_function",
        "eps": "layer_norm_epsilon",
        "tie_word_embeddings": "tie_word_embeddings",
        "use_local_attn": "attention_types",
        "attn_types": "attention_types",
        "window_size": "window_size",
    },
    arguments=make_arguments,
    base_prefix="transformer.",
    tied=("transformer.wte.weight", "lm_head.weight"),
    spellings={"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"},
    ignored=re.compile(r"transformer\.h\.\d+\.attn\.attention\.(bias|masked_bias)"),
)
