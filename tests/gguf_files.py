"""Write small GGUF files from Hugging Face networks, the way llama.cpp's convert_hf_to_gguf.py does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import PreTrainedModel

Array = np.ndarray[Any, Any]

LLAMA_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "lm_head": "output",
}
GPT2_NAMES = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "ln_f": "output_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "lm_head": "output",
}


def write_gguf(
    path: Path,
    network: PreTrainedModel,
    *,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Array | None] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    packing: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> Path:
    """Write `network`; of what is given in `metadata` and `tensors`, None takes an entry away.

    `packing` is for the matrices of the blocks; the rest stays in float32, as llama.cpp leaves it.
    """
    architecture = network.config.model_type
    if architecture == "mistral":  # llama.cpp knows it under this name
        architecture = "llama"
    describe, collect = {
        "llama": (_describe_llama, _collect_llama),
        "qwen2": (_describe_qwen, _collect_qwen),
        "qwen3": (_describe_qwen, _collect_qwen),
        "gpt2": (_describe_gpt2, _collect_gpt2),
    }[architecture]
    writer = gguf.GGUFWriter(path, architecture)
    entries = {f"{architecture}.{key}": value for key, value in describe(network.config).items()}
    entries |= tokenizer if tokenizer is not None else TOKENIZERS[architecture](network.config.vocab_size)
    for key, value in {**entries, **(metadata or {})}.items():
        _add(writer, key, value)
    for name, array in {**collect(network), **(tensors or {})}.items():
        if array is not None:
            kind = packing if name.startswith("blk.") and array.ndim == 2 else gguf.GGMLQuantizationType.F32
            packed = gguf.quantize(np.ascontiguousarray(array), kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case None:
            pass
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def _describe_llama(config: Any) -> dict[str, Any]:
    return {
        **_describe_sizes(config),
        "rope.dimension_count": config.head_dim,
        "vocab_size": config.vocab_size,
    }


def _describe_sizes(config: Any) -> dict[str, Any]:
    return {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
    }


def _describe_qwen(config: Any) -> dict[str, Any]:
    """Qwen2's width of a head follows from the others."""
    described = _describe_sizes(config)
    if config.model_type == "qwen3":
        described |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    return described


def _describe_gpt2(config: Any) -> dict[str, Any]:
    return {
        "context_length": config.n_positions,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": config.n_inner or 4 * config.n_embd,
        "attention.head_count": config.n_head,
        "attention.layer_norm_epsilon": config.layer_norm_epsilon,
    }


def _collect_llama(network: PreTrainedModel) -> dict[str, Array]:
    """Q and K go in with the rotated pairs side by side, as Meta had them."""
    config = network.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    collected = _collect_qwen(network)
    for name, array in collected.items():
        n_heads = heads.get(name.split(".")[-2])
        if n_heads:
            halves = array.reshape(n_heads, 2, array.shape[0] // n_heads // 2, -1)
            collected[name] = halves.swapaxes(1, 2).reshape(array.shape)
    return collected


def _collect_qwen(network: PreTrainedModel) -> dict[str, Array]:
    collected: dict[str, Array] = {}
    for name, tensor in network.state_dict().items():
        *path, module, leaf = name.split(".")
        place = f"blk.{path[2]}." if "layers" in path else ""
        collected[f"{place}{LLAMA_NAMES[module]}.{leaf}"] = tensor.float().numpy()
    if network.config.tie_word_embeddings:
        del collected["output.weight"]
    return collected


def _collect_gpt2(network: PreTrainedModel) -> dict[str, Array]:
    """GPT-2 keeps its matrices the other way round."""
    collected: dict[str, Array] = {}
    for name, tensor in network.state_dict().items():
        *path, leaf = name.removeprefix("transformer.").split(".")
        module = ".".join(path[2:] if path[0] == "h" else path)
        array = tensor.float().numpy()
        if leaf == "weight" and "c_" in module:
            array = array.T
        collected[
            f"blk.{path[1]}.{GPT2_NAMES[module]}.{leaf}" if path[0] == "h" else f"{GPT2_NAMES[module]}.{leaf}"
        ] = array
    if network.config.tie_word_embeddings:
        del collected["output.weight"]
    return collected


def _llama_tokenizer(n_tokens: int) -> dict[str, Any]:
    """A sentencepiece vocabulary of w0, w1, …, which merges can build from single letters."""
    tokens = ["<unk>", "<s>", "</s>", "▁", "w", *"0123456789", "▁w"]
    tokens += [f"▁w{index}" for index in range(n_tokens - len(tokens))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(index) for index in range(len(tokens))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [1] * (len(tokens) - 3),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def _qwen_tokenizer(n_tokens: int) -> dict[str, Any]:
    return {**_gpt2_tokenizer(n_tokens), "tokenizer.ggml.pre": "qwen2"}


def _gpt2_tokenizer(n_tokens: int) -> dict[str, Any]:
    """A byte-level vocabulary of letters and a few pairs."""
    letters = [chr(code) for code in range(33, 127)]
    pairs = [(one, other) for one in "Ġaeiou" for other in "abcdefghijklmnopqrst"]
    tokens = ["<|endoftext|>", *letters, "Ġ", *("".join(pair) for pair in pairs)][:n_tokens]
    known = set(tokens)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] + [1] * (len(tokens) - 1),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in pairs if "".join(pair) in known],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
    }


TOKENIZERS = {
    "llama": _llama_tokenizer,
    "qwen2": _qwen_tokenizer,
    "qwen3": _qwen_tokenizer,
    "gpt2": _gpt2_tokenizer,
}
