"""What no family can be made of is refused with the reason: other classes, and fields with values of no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

from registry.errors import MalformedArtifact, UnsupportedConfig, UnsupportedFamily
from registry.families import find_family, find_family_by_name
from registry.families.unsupported import BRIDGED
from tests.checkpoints import edit_config
from tests.config_grid import (
    LAYERS,
    LINEAR,
    LLAMA3_128,
    NO_ROPE,
    YARN_128,
    write_nulls,
)
from tests.opened import read_checkpoint

MakeCheckpoint = Callable[..., Path]


@pytest.mark.parametrize(
    ("config", "error", "text"),
    [
        ({}, MalformedArtifact, "architectures is None"),
        ({"architectures": None}, MalformedArtifact, "architectures is None"),
        ({"architectures": []}, MalformedArtifact, "architectures is []"),
        ({"architectures": "GPT2LMHeadModel"}, MalformedArtifact, "architectures is 'GPT2LMHeadModel'"),
        ({"architectures": [["GPT2LMHeadModel"]]}, MalformedArtifact, "architectures is"),
        ({"architectures": ["GPT2LMHeadModel", "LlamaForCausalLM"]}, MalformedArtifact, "architectures is"),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "llama"}, MalformedArtifact, "model_type 'llama'"),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": ["gpt2"]}, MalformedArtifact, "model_type"),
        ({"architectures": ["Cohere2ForCausalLM"]}, UnsupportedFamily, "Cohere2ForCausalLM"),
        ({"architectures": ["StableLmForCausalLm"]}, UnsupportedFamily, "Did you mean StableLmForCausalLM?"),
        ({"architectures": ["FalconForCausalLM"], "model_type": "RefinedWeb"}, MalformedArtifact, "'RefinedWeb'"),
        ({"architectures": ["GPT2LMHead"]}, UnsupportedFamily, "Did you mean GPT2LMHeadModel?"),
        ({"architectures": ["GPT2ForSequenceClassification"]}, UnsupportedFamily, "cannot be converted"),
        ({"architectures": ["LlamaModel"]}, UnsupportedFamily, "cannot be converted"),
        ({"architectures": ["Gemma3ForConditionalGeneration"]}, UnsupportedFamily, "Gemma3ForConditionalGeneration"),
        ({"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3"}, MalformedArtifact, "model_type 'gemma3'"),
    ],
)
def test_the_family_is_what_config_json_says_and_nothing_else(
    config: dict[str, Any], error: type[MalformedArtifact], text: str
) -> None:
    with pytest.raises(error) as refused:
        find_family(config)
    assert text in str(refused.value)


@pytest.mark.parametrize(
    ("class_name", "why", "hint"),
    [
        ("Cohere2ForCausalLM", "no converter", "TransformerBridge can run it"),
        ("CohereForCausalLM", "no converter", "0.8 to 14 nats off"),
        ("Mamba2ForCausalLM", "recurrent", "TransformerBridge can run it"),
        ("FalconMambaForCausalLM", "recurrent", "TransformerBridge can run it"),
        ("T5ForConditionalGeneration", "encoder", "TransformerBridge can run it"),
        ("T5EncoderModel", "encoder", ""),
        ("BertForMaskedLM", "both directions", "TransformerBridge can run it"),
        ("BertLMHeadModel", "both directions", "TransformerBridge can run it"),
        ("RobertaForSequenceClassification", "another head", ""),
        ("LlavaForConditionalGeneration", "pictures", "TransformerBridge can run it"),
        ("GPT2Model", "without the head", "saved whole as GPT2LMHeadModel"),
        ("LlamaModel", "without the head", "saved whole as LlamaForCausalLM"),
        ("BloomModel", "without the head", "saved whole as BloomForCausalLM"),
        ("GPT2DoubleHeadsModel", "another head", "saved whole as GPT2LMHeadModel"),
        ("GPT2ForSequenceClassification", "another head", "saved whole as GPT2LMHeadModel"),
        ("PhiForTokenClassification", "another head", "saved whole as PhiForCausalLM"),
        ("GPTNeoForQuestionAnswering", "another head", "saved whole as GPTNeoForCausalLM"),
        ("QWenLMHeadModel", "no converter", ""),
        ("LlamaForCausalLm", "no converter", "Did you mean LlamaForCausalLM?"),
    ],
)
def test_what_cannot_be_a_hooked_transformer_is_refused_with_the_reason(class_name: str, why: str, hint: str) -> None:
    with pytest.raises(UnsupportedFamily) as refused:
        find_family({"architectures": [class_name]})
    assert refused.value.fields["family"] == class_name
    assert why in refused.value.message and hint in str(refused.value.hint)
    assert "GPT2LMHeadModel, " in str(refused.value.hint) and "StableLmForCausalLM" in str(refused.value.hint)
    assert ("TransformerBridge" in str(refused.value.hint)) == (class_name in SUPPORTED_ARCHITECTURES)


def test_what_a_bridge_can_run_is_what_transformer_lens_says() -> None:
    assert {name for name in SUPPORTED_ARCHITECTURES if hasattr(transformers, name)} == BRIDGED


def test_a_family_that_this_release_does_not_know_is_refused() -> None:
    with pytest.raises(UnsupportedFamily, match="Update lens-registry"):
        find_family_by_name("mamba9")


LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("name", "changes", "field"),
    [
        ("bloom", {"n_head": 5}, "n_head"),
        ("bloom", {"n_head": 12, "hidden_size": 96}, "n_head"),
        ("bloom", {"hidden_size": 66}, "n_head"),
        ("gpt_neo", {"num_heads": 5}, "num_heads"),
        ("gpt_neo", {"num_layers": 3}, "attention_types"),
        ("gpt_neo", LAYERS | {"num_layers": 3}, "attention_layers"),
        ("gpt_neo", {"attention_layers": ["local", "global"]}, "attention_layers"),
        ("gpt_neo", {"attention_types": [[["global", "random"], 1]], "attention_layers": None}, "attention_types"),
        ("gpt_neo", {"attention_types": [["global", "local"]], "attention_layers": None}, "attention_types"),
        ("gpt_neo", {"attention_types": [[["global"], 2**39]], "attention_layers": None}, "attention_types"),
        ("gpt_neo", {"attention_types": [], "attention_layers": None}, "attention_types"),
        ("gpt_neo", LAYERS | {"attention_layers": [["global"], "local"]}, "attention_layers"),
        ("gpt_neox", {"num_attention_heads": 5}, "num_attention_heads"),
        ("gpt_neox", NO_ROPE | {"rotary_pct": 0.2}, "rotary_pct"),
        ("gpt_neox", NO_ROPE | {"rotary_pct": 0.0}, "rotary_pct"),
        ("gpt_neox", NO_ROPE | {"rotary_pct": 1.5}, "rotary_pct"),
        ("gpt_neox", {"rotary_pct": 0.5}, "rotary_pct"),
        ("gpt_neox", {"rotary_emb_base": 5e5}, "rotary_emb_base"),
        ("gpt_neox", NO_ROPE | {"rotary_emb_base": 0.0}, "rotary_emb_base"),
        ("gpt_neox", NO_ROPE | {"rope_theta": 5e5}, "rope_theta"),
        ("gpt_neox", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 0.2}}, "rope_parameters"),
        ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": "half"}}, "rope_parameters"),
        ("gpt_neox", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_parameters"),
        ("gptj", {"n_head": 5}, "n_head"),
        ("gptj", {"rotary_dim": 7}, "rotary_dim"),
        ("gptj", {"n_positions": 2**39}, "n_positions"),
        ("bloom", {"seq_length": 2**39}, "seq_length"),
        ("gptj", {"rotary_dim": 18}, "rotary_dim"),
        ("gptj", {"activation_function": "quick_gelu"}, "activation_function"),
        ("opt", {"num_attention_heads": 5}, "num_attention_heads"),
        ("opt", {"word_embed_proj_dim": 32}, "word_embed_proj_dim"),
        ("phi", {"num_attention_heads": 5}, "num_attention_heads"),
        ("phi", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("phi", NO_ROPE | {"partial_rotary_factor": 0.3125}, "partial_rotary_factor"),
        ("phi", {"partial_rotary_factor": 0.4}, "partial_rotary_factor"),
        ("phi3", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("phi3", {"sliding_window": 0}, "sliding_window"),
        ("phi3", NO_ROPE | {"rope_scaling": LONGROPE}, "rope_scaling"),
        ("phi3", NO_ROPE | {"rope_scaling": LONGROPE | {"type": "su"}}, "rope_scaling"),
        ("phi3", {"rope_parameters": LONGROPE | {"rope_type": "longrope"}}, "rope_parameters"),
        ("phi3", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_parameters"),
        ("phi3", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}, "rope_parameters"),
        ("gpt2", {"n_head": 5}, "n_head"),
        ("gpt2", {"activation_function": "quick_gelu"}, "activation_function"),
        ("llama", {"num_attention_heads": 5}, "num_attention_heads"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("llama", {"head_dim": 15}, "head_dim"),
        ("llama", {"rope_parameters": None, "rope_theta": 0.0}, "rope_theta"),
        ("llama", {"rope_parameters": None, "rope_theta": 0.5}, "rope_theta"),
        ("llama", {"rope_parameters": {"rope_theta": 1e-3}}, "rope_parameters"),
        ("llama", {"hidden_act": "relu2"}, "hidden_act"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_parameters"),
        ("llama", {"rope_parameters": {"rope_type": "default", "factor": 8.0}}, "rope_parameters"),
        ("mistral", {"num_attention_heads": 5}, "num_key_value_heads"),
        ("mistral", {"num_attention_heads": 5, "head_dim": None}, "num_attention_heads"),
        ("mistral", {"num_hidden_layers": 2**39}, "num_hidden_layers"),
        ("mistral", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_parameters"),
        ("mistral", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "use_sliding_window"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2, "use_sliding_window": True}, "sliding_window"),
        ("qwen2", {"use_sliding_window": True, "layer_types": ["sliding_attention"]}, "layer_types"),
        ("qwen2", {"use_sliding_window": True, "layer_types": ["chunked_attention"] * 2}, "layer_types"),
        ("qwen2", {"use_mrope": True}, "use_mrope"),
        (
            "qwen2",
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["full_attention", "sliding_attention"],
                "rope_parameters": {"rope_type": "linear", "factor": 2.0},
            },
            "rope_parameters",
        ),
        ("qwen3", {"layer_types": ["sliding_attention"] * 2}, "use_sliding_window"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 2, "use_sliding_window": True}, "sliding_window"),
        ("qwen3", {"head_dim": 15}, "head_dim"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma", {"hidden_activation": "gelu"}, "hidden_activation"),
        ("gemma", {"hidden_act": "relu", "hidden_activation": "gelu_pytorch_tanh"}, "hidden_activation"),
        ("gemma", {"hidden_act": "quick_gelu"}, "hidden_act"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"hidden_act": "relu"}, "hidden_act"),
        ("gemma2", {"num_attention_heads": 5, "num_key_value_heads": 1}, "num_attention_heads"),
        ("gemma2", {"attn_logit_softcapping": 0.0}, "attn_logit_softcapping"),
        ("gemma2", {"final_logit_softcapping": 0}, "final_logit_softcapping"),
        ("gemma2", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_parameters"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3", {"sliding_window_pattern": 3}, "sliding_window_pattern"),
        ("gemma3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "rope_parameters"),
        ("gemma3", {"rope_parameters": {"full_attention": 3}}, "rope_parameters"),
        ("gemma3", {"rope_theta": 5.0}, "rope_theta"),
        ("gemma3", {"rope_local_base_freq": 5.0}, "rope_local_base_freq"),
        ("gemma3", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling"),
        ("gemma3", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ("gemma3", {"rope_parameters": None, "rope_local_base_freq": 0.5}, "rope_local_base_freq"),
        ("mistral", {"num_key_value_heads": "null"}, "num_key_value_heads"),
        (
            "gemma3",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "rope_parameters",
        ),
        (
            "gemma3",
            {"rope_parameters": {"sliding_attention": {"rope_type": "yarn", "factor": 2.0}}},
            "rope_parameters",
        ),
        (
            "gemma3",
            {
                "rope_parameters": {
                    "full_attention": {
                        "rope_type": "llama3",
                        "factor": 2.0,
                        "low_freq_factor": 1.0,
                        "high_freq_factor": 4.0,
                    }
                }
            },
            "rope_parameters",
        ),
        ("apertus", {"rope_parameters": None}, "rope_parameters"),
        ("apertus", {"rope_parameters": None, "rope_theta": 1e4}, "rope_parameters"),
        ("apertus", {"qk_norm": False}, "qk_norm"),
        ("apertus", {"hidden_act": "quick_gelu"}, "hidden_act"),
        ("gpt_oss", {"num_experts_per_tok": 5}, "num_experts_per_tok"),
        ("gpt_oss", {"sliding_window": "null"}, "sliding_window"),
        ("gpt_oss", {"layer_types": ["full_attention"]}, "layer_types"),
        ("gpt_oss", {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types"),
        ("gpt_oss", {"layer_types": ["full_attention", ["sliding_attention"]]}, "layer_types"),
        ("gpt_oss", {"swiglu_limit": 6.0}, "swiglu_limit"),
        ("gpt_oss", {"swiglu_alpha": 1.7}, "swiglu_alpha"),
        ("gpt_oss", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_parameters"),
        ("gpt_oss", {"head_dim": 15}, "head_dim"),
        ("mixtral", {"num_experts_per_tok": 5}, "num_experts_per_tok"),
        ("mixtral", {"head_dim": 15}, "head_dim"),
        ("mixtral", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_parameters"),
        (
            "mixtral",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "sliding_window": 8},
            "rope_parameters",
        ),
        ("olmo", {"clip_qkv": -1.0}, "clip_qkv"),
        ("olmo", {"num_attention_heads": 5}, "num_attention_heads"),
        ("olmo", {"num_attention_heads": 64}, "num_attention_heads"),
        ("olmo2", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("olmoe", {"num_experts_per_tok": 7}, "num_experts_per_tok"),
        # transformers 5.23 would leave a flat one out, and give another theta to full attention only
        ("olmo3", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_parameters"),
        ("olmo3", {"rope_parameters": None, "rope_theta": 1e4}, "rope_theta"),
        ("olmo3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling"),
        ("olmo3", {"rope_parameters": {"sliding_attention": YARN_128}}, "rope_parameters"),
        ("olmo3", {"rope_parameters": {"full_attention": LLAMA3_128}}, "rope_parameters"),
        ("olmo3", {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": LINEAR}}, "rope_parameters"),
    ],
)
def test_numbers_that_no_network_has_are_refused(
    name: str, changes: dict[str, Any], field: str, make_checkpoint: MakeCheckpoint
) -> None:
    folder = write_nulls(edit_config(make_checkpoint(name, tokenizer=False), **changes))
    with pytest.raises(UnsupportedConfig) as refused:
        read_checkpoint(folder)
    assert refused.value.field == field
