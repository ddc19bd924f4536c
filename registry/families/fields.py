"""How a config.json field is treated, and the fields that all families share.

`used`: it decides the function, and the family reads it. `neutral`: it cannot change the function, for the reason
given. `only`: it is refused unless it is absent or has this one value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from registry.errors import UnsupportedConfig

Kind = type[int] | type[float] | type[bool] | type[str] | type[dict[str, Any]] | type[list[Any]]


@dataclass(frozen=True)
class Field:
    """How one config.json field is treated; `reason` says why it may be neutral or must have its value."""

    role: Literal["used", "neutral", "only"]
    kind: Kind | None = None
    default: Any = None
    optional: bool = False
    reason: str = ""
    at_least: int = 1
    hint: str = "transformer-lens's HookedTransformer cannot compute this network."


def used(kind: Kind, default: Any, *, optional: bool = False, at_least: int = 1) -> Field:
    """Declare a field that decides the function; `default` is the Hugging Face config class's.

    A whole number must be `at_least` that; `optional` admits null.
    """
    return Field("used", kind, default, optional, at_least=at_least)


def neutral(reason: str) -> Field:
    """Declare a field that cannot change the function of a trained network."""
    return Field("neutral", reason=reason)


def only(value: Any, reason: str, hint: str | None = None) -> Field:
    """Declare a field that is refused unless it is absent or equal to `value`; `hint` says what to do instead."""
    rule = Field("only", default=value, reason=reason)
    return replace(rule, hint=hint) if hint else rule


def _all_neutral(reason: str, names: str) -> dict[str, Field]:
    return {name: neutral(reason) for name in names.split()}


SHARED: Mapping[str, Field] = {
    **_all_neutral(
        "it steers sampling, not the network",
        """
        max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups temperature top_k top_p
        typical_p repetition_penalty length_penalty diversity_penalty no_repeat_ngram_size num_return_sequences
        encoder_no_repeat_ngram_size bad_words_ids output_scores return_dict_in_generate forced_bos_token_id
        forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
        begin_suppress_tokens use_cache epsilon_cutoff eta_cutoff encoder_repetition_penalty num_assistant_tokens
        num_assistant_tokens_schedule assistant_confidence_threshold assistant_lookbehind target_lookbehind
        """,
    ),
    **_all_neutral(
        "it is bookkeeping",
        """
        architectures model_type transformers_version dtype torch_dtype torchscript return_dict output_hidden_states
        output_attentions _name_or_path name_or_path _commit_hash id2label label2id num_labels problem_type
        finetuning_task task_specific_params tokenizer_class prefix attn_implementation _attn_implementation
        _attn_implementation_autoset _attn_implementation_internal _experts_implementation_internal is_llama_config
        transformers.js_config unsloth_version unsloth_fixed tie_last_hidden_states trust_remote_code tf_legacy_loss
        use_bfloat16
        """,
    ),
    **_all_neutral(
        "it names a token; the network takes ids as they come",
        "bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id mask_token_id decoder_start_token_id",
    ),
    **_all_neutral("it matters in training only", "initializer_range gradient_checkpointing use_return_dict"),
    "is_encoder_decoder": only(False, "HookedTransformer is a decoder"),
    "is_decoder": neutral("the class is a decoder either way"),
    "add_cross_attention": only(False, "HookedTransformer has no cross-attention"),
    "cross_attention_hidden_size": only(None, "HookedTransformer has no cross-attention"),
    "tie_encoder_decoder": only(False, "HookedTransformer is a decoder"),
    "chunk_size_feed_forward": only(0, "HookedTransformer does not chunk its MLP"),
    "pruned_heads": only({}, "transformer-lens converts whole layers only"),
    "per_layer_config": only(None, "HookedTransformer's layers have one config"),
    "auto_map": only(
        None,
        "it says that the model's own Python code decides the function, and that is never run",
        "If the checkpoint was trained with transformers's own {class_name} (without trust_remote_code), remove "
        "auto_map from config.json: that class is what is registered and measured here. If it was trained with the "
        "code that auto_map names, compare its logits with those of transformers's {class_name} first.",
    ),
    "quantization_config": only(None, "transformer-lens would read packed numbers as weights; dequantise first"),
}


# Where no tensor says how long a text may be, but tables are made for it, a wrong number must not fill the memory.
MAX_UNCHECKED_N_CTX = 2**17


def check_n_ctx(name: str, value: int) -> int:
    """Return `value` of the field `name`, refusing more than MAX_UNCHECKED_N_CTX."""
    if value > MAX_UNCHECKED_N_CTX:
        raise refuse_value(name, value, f"more than {MAX_UNCHECKED_N_CTX:,} positions are not provided for")
    return value


# transformers's activation -> HookedTransformer's that computes the same
_ACTIVATIONS = {
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def read_activation(name: str, value: str) -> str:
    """Return HookedTransformer's name for the activation that the field `name` gives."""
    if value not in _ACTIVATIONS:
        raise refuse_value(name, value, "HookedTransformer has no activation that computes the same")
    return _ACTIVATIONS[value]


def read_soft_cap(name: str, value: float | None) -> float:
    """Return HookedTransformer's number for a soft cap: null is none, which it writes -1; a cap of 0 is nonsense."""
    if value == 0:
        raise refuse_value(name, value, "a soft cap of 0 divides by it", "Use null for no soft cap.")
    return -1.0 if value is None else value


def refuse_value(name: str, value: Any, why: str, hint: str | None = None) -> UnsupportedConfig:
    """Make the error for a used field whose value this family cannot convert."""
    return UnsupportedConfig(
        f"config.json has {name} = {shorten(value)}: {why}.",
        field=name,
        hint=hint or "transformer-lens's HookedTransformer cannot compute this network.",
    )


def shorten(value: Any) -> str:
    """Show a value in at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
