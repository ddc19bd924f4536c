"""Mamba: `MambaForCausalLM`, layers of a selective state space instead of attention; a bridge runs it.

It has no positions and no context that it must keep within.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from registry.architecture import Architecture
from registry.families import bridged
from registry.families.family import Family
from registry.families.fields import neutral, only, refuse_value, used

_FRESH = neutral("it shapes a fresh initialisation only")
_SAME_SCAN = neutral("it is another way to compute the same scan")
_WORDS = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "d_vocab": "vocab_size",
    "tie_word_embeddings": "tie_word_embeddings",
}
# the first release of Mamba wrote these beside those that transformers reads
_NOT_READ = {"d_model": "hidden_size", "n_layer": "num_hidden_layers", "d_inner": "intermediate_size"}

FIELDS = {
    "vocab_size": used(int, 50280),
    "hidden_size": used(int, 768),
    "state_size": used(int, 16),
    "num_hidden_layers": used(int, 32),
    "layer_norm_epsilon": used(float, 1e-5),
    "expand": used(int, 2),
    # no field of the config class, but where it is given it takes the place of what expand makes
    "intermediate_size": used(int, None),
    "conv_kernel": used(int, 4),
    "use_bias": used(bool, False),
    "use_conv_bias": used(bool, True),
    "hidden_act": used(str, "silu"),
    "residual_in_fp32": used(bool, True),
    "time_step_rank": used(int, "auto"),
    "tie_word_embeddings": used(bool, True),
    **{name: used(int, None, optional=True) for name in _NOT_READ},
    "time_step_scale": _FRESH,
    "time_step_min": _FRESH,
    "time_step_max": _FRESH,
    "time_step_init_scheme": _FRESH,
    "time_step_floor": _FRESH,
    "rescale_prenorm_residual": _FRESH,
    "use_mambapy": _SAME_SCAN,
    "use_associative_scan": _SAME_SCAN,
    "fused_add_norm": neutral("it fuses the same sum and norm"),
    "pad_vocab_size_multiple": neutral("vocab_size says how large the vocabulary is"),
    "rms_norm": only(
        True, "transformers's Mamba has RMSNorm", "transformers itself computes RMSNorm whatever this is."
    ),
    "ssm_cfg": only({}, "transformers does not read it", "Put what it says into the fields that transformers reads."),
}


def make_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give MambaConfig what it reads; fields that it does not read must not say something else."""
    d_model = config["hidden_size"]
    read = {name: value for name, value in config.items() if name not in (*_NOT_READ, "expand")}
    read["intermediate_size"] = config["intermediate_size"] or config["expand"] * d_model
    if config["time_step_rank"] == "auto":
        read["time_step_rank"] = math.ceil(d_model / 16)
    for name, key in _NOT_READ.items():
        if config[name] is not None and config[name] != read[key]:
            raise refuse_value(name, config[name], f"transformers reads {key} instead, which is {read[key]!r}")
    return read


def describe(config: Mapping[str, Any]) -> Architecture:
    """Map Mamba's config fields to the canonical architecture."""
    bridged.check_activation("hidden_act", config["hidden_act"])
    return bridged.describe("mamba", make_arguments(config), _WORDS, n_ctx=None, positional_embedding_type=None)


FAMILY = Family(
    name="mamba",
    class_name="MambaForCausalLM",
    config_class_name="MambaConfig",
    model_type="mamba",
    fields=FIELDS,
    describe=describe,
    convert=None,
    config_keys=bridged.name_keys(FIELDS, _WORDS),
    arguments=make_arguments,
    base_prefix="backbone.",
    tied=("backbone.embeddings.weight", "lm_head.weight"),
)
