"""StarCoder2: `Starcoder2ForCausalLM`, with LayerNorm, biases, rotary positions and a window; a bridge runs it.

transformer-lens 3.9 does not read `norm_epsilon`, and its bridge would have 1e-5 whatever that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry.architecture import Architecture
from registry.families import bridged, like_llama, rope
from registry.families.family import Family
from registry.families.fields import neutral, used

_DROPOUT = neutral("dropout is off when a network is read")

FIELDS = {
    "vocab_size": used(int, 49152),
    "hidden_size": used(int, 3072),
    "intermediate_size": used(int, 12288),
    "num_hidden_layers": used(int, 30),
    "num_attention_heads": used(int, 24),
    "num_key_value_heads": used(int, 2),
    # no field of the config class, but the network reads it where it is given
    "head_dim": used(int, None, optional=True),
    "hidden_act": used(str, "gelu_pytorch_tanh"),
    "max_position_embeddings": used(int, 4096),
    "norm_epsilon": used(float, 1e-5),
    "sliding_window": used(int, None, optional=True),
    "use_bias": used(bool, True),
    "tie_word_embeddings": used(bool, True),
    **rope.FIELDS,
    "attention_dropout": _DROPOUT,
    "residual_dropout": _DROPOUT,
    "embedding_dropout": _DROPOUT,
}


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map StarCoder2's config fields to the canonical architecture."""
    arguments = like_llama.make_arguments(config)
    window = arguments.pop("sliding_window")
    windows = {} if window is None else {"use_local_attn": True, "window_size": window}
    return bridged.describe_like_llama("starcoder2", config, arguments, **windows)


def adapt_bridge(adapter: Any, config: Any) -> None:
    """Give the bridge the epsilon of the norms."""
    adapter.cfg.eps = config.norm_epsilon


FAMILY = Family(
    name="starcoder2",
    class_name="Starcoder2ForCausalLM",
    config_class_name="Starcoder2Config",
    model_type="starcoder2",
    fields=FIELDS,
    describe=describe,
    convert=None,
    config_keys={
        **bridged.name_keys(FIELDS, bridged.LIKE_LLAMA),
        "d_head": "head_dim",
        "use_local_attn": "sliding_window",
        "window_size": "sliding_window",
    },
    arguments=like_llama.make_arguments,
    base_prefix=like_llama.BASE_PREFIX,
    tied=like_llama.TIED,
    ignored=like_llama.IGNORED,
    adapt_bridge=adapt_bridge,
)
