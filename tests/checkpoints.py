"""Make small checkpoints with every norm and bias randomised: fresh initialisations hide bugs."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Tokenizer

D_VOCAB = 211

GPT2 = {
    "vocab_size": D_VOCAB,
    "n_positions": 96,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LLAMA = {
    "vocab_size": D_VOCAB,
    "max_position_embeddings": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GPT_NEOX = {
    "vocab_size": D_VOCAB,
    "max_position_embeddings": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GPT_NEO = {
    "vocab_size": D_VOCAB,
    "max_position_embeddings": 96,
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 11,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GPTJ = {**GPT2, "rotary_dim": 8}
OPT = {
    "vocab_size": D_VOCAB,
    "max_position_embeddings": 96,
    "hidden_size": 64,
    "ffn_dim": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
BLOOM = {
    "vocab_size": D_VOCAB,
    "seq_length": 96,
    "hidden_size": 64,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
PHI3 = {**LLAMA, "sliding_window": 37, "pad_token_id": 0}
QWEN3 = LLAMA | {"head_dim": 16}
GEMMA = LLAMA | {"head_dim": 16, "pad_token_id": 0}
GEMMA2 = GEMMA | {"sliding_window": 8, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 5.0}
GEMMA3 = GEMMA | {
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 8,
    "query_pre_attn_scalar": 24,
}
APERTUS = LLAMA | {
    "pad_token_id": None,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 12e6,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}
MIXTRAL = LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48}
OLMO = LLAMA | {"num_key_value_heads": 4, "pad_token_id": 0}
OLMO3 = LLAMA | {"pad_token_id": 0, "sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]}
OLMOE = LLAMA | {"num_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 48, "pad_token_id": 0}
GPT_OSS = MIXTRAL | {"head_dim": 24, "sliding_window": 12}
FALCON = {
    "vocab_size": D_VOCAB,
    "max_position_embeddings": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_kv_heads": 2,
    "new_decoder_architecture": True,
    "bias": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
MAMBA = {
    "vocab_size": D_VOCAB,
    "hidden_size": 48,
    "state_size": 8,
    "num_hidden_layers": 2,
    "use_bias": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GRANITE = LLAMA | {
    "embedding_multiplier": 3.0,
    "logits_scaling": 0.5,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.2,
    "attention_bias": True,
    "mlp_bias": True,
}
STABLELM = LLAMA | {"use_qkv_bias": True, "qk_layernorm": True}
QWEN_MOE = LLAMA | {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True}
CLASSES = {
    "bloom": ("BloomForCausalLM", "BloomConfig", BLOOM),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "gpt_oss": ("GptOssForCausalLM", "GptOssConfig", GPT_OSS),
    "gpt_neo": ("GPTNeoForCausalLM", "GPTNeoConfig", GPT_NEO),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", GPT_NEOX),
    "gptj": ("GPTJForCausalLM", "GPTJConfig", GPTJ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA),
    "opt": ("OPTForCausalLM", "OPTConfig", OPT),
    "phi": ("PhiForCausalLM", "PhiConfig", GPT_NEOX),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", PHI3),
    "mistral": ("MistralForCausalLM", "MistralConfig", LLAMA | {"sliding_window": 8}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", LLAMA),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", QWEN3),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", GEMMA),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", GEMMA2),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", GEMMA3),
    "apertus": ("ApertusForCausalLM", "ApertusConfig", APERTUS),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", MIXTRAL),
    "olmo": ("OlmoForCausalLM", "OlmoConfig", OLMO),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", OLMO),
    "olmo3": ("Olmo3ForCausalLM", "Olmo3Config", OLMO3),
    "olmoe": ("OlmoeForCausalLM", "OlmoeConfig", OLMOE),
    # these only a bridge can run
    "falcon": ("FalconForCausalLM", "FalconConfig", FALCON),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", "GPTBigCodeConfig", GPT2),
    "granite": ("GraniteForCausalLM", "GraniteConfig", GRANITE),
    "mamba": ("MambaForCausalLM", "MambaConfig", MAMBA),
    "qwen2_moe": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", QWEN_MOE | {"shared_expert_intermediate_size": 40}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", QWEN_MOE | {"head_dim": 16, "sliding_window": 8}),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", STABLELM),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", LLAMA | {"sliding_window": 8}),
}
_CONV1D = {"gpt2"}  # these keep their matrices as (fan_in, fan_out)
_TRANSPOSED = {"gpt_oss"}  # and these those of their experts, as (n_experts, fan_in, fan_out)
_NORMS_FROM_ONE = {"gemma", "gemma2", "gemma3"}  # these add 1 to the weights of their norms
UNRELATED = 1000
"""From this seed on, nothing of a checkpoint is that of another seed."""

_TABLES = ("wte", "wpe", "embed_", "word_embeddings")


def make_network(family: str, seed: int = 0, **config: Any) -> PreTrainedModel:
    """Build a Hugging Face network: norm weights 1 + 0.3·N, biases 0.2·N, matrices 1.3·N/sqrt(fan_in)."""
    class_name, config_name, base = CLASSES[family]
    values = copy.deepcopy({**base, **config})  # transformers writes into what it is given
    network: PreTrainedModel = getattr(transformers, class_name)(getattr(transformers, config_name)(**values))
    randomise(network, family, seed)
    return network.eval()


def randomise(network: PreTrainedModel, family: str, seed: int = 0) -> None:
    """Give every parameter random values; the same for the same seed and shapes.

    Below UNRELATED, another seed is a fine-tune of seed 0, if the shapes are the same: correlated by 0.8.
    """
    generator = torch.Generator().manual_seed(seed)
    base = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if 0 < seed < UNRELATED:
                noise = 0.8 * torch.randn(parameter.shape, generator=base) + 0.6 * noise
            if parameter.ndim > 1 and not name.endswith("bias"):
                transposed = family in _CONV1D or (family in _TRANSPOSED and ".experts." in name)
                fan_in = parameter.shape[-2 if transposed else -1]
                is_table = any(part in name for part in _TABLES)
                parameter.copy_(noise * (0.5 if is_table else 1.3 / math.sqrt(fan_in)))
            else:
                center = 1 if name.endswith("weight") and family not in _NORMS_FROM_ONE else 0
                parameter.copy_(center + (0.3 if name.endswith("weight") else 0.2) * noise)


def make_tokenizer(n_tokens: int = D_VOCAB) -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer: `<bos>`, `w1`, `w2`, …"""
    vocabulary = {"<bos>": 0} | {f"w{index}": index for index in range(1, n_tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<bos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<bos>", unk_token="<bos>", pad_token="<bos>"
    )


def make_qwen2_tokenizer() -> PreTrainedTokenizerBase:
    """Build the tokenizer that transformers reads beside a Qwen2 network, whatever tokenizer_config.json names."""
    vocabulary = {"<|endoftext|>": 0} | {chr(code): index for index, code in enumerate([*range(33, 127), 288], 1)}
    return Qwen2Tokenizer(vocab=vocabulary | {"w1": 96}, merges=[("w", "1")])  # chr(288) stands for a space


def save_checkpoint(
    folder: Path, family: str, *, seed: int = 0, tokenizer: bool = True, max_shard_size: str = "5GB", **config: Any
) -> Path:
    """Save a randomised network as a Hugging Face folder."""
    make_network(family, seed, **config).save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer:
        (make_qwen2_tokenizer() if family == "qwen2" else make_tokenizer()).save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: Any) -> Path:
    """Change config.json alone, as somebody does who copies the wrong one; None removes a field."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name, value in changes.items():
        config.pop(name, None)
        if value is not None:
            config[name] = value
    path.write_text(json.dumps(config))
    return folder


def edit_weights(folder: Path, target: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """Copy a checkpoint of one file to `target`, with its tensors as `edit` leaves them."""
    shutil.copytree(folder, target)
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target
