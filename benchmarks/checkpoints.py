"""Make checkpoints of a real family with random weights: a GPT-NeoX, as Pythia is, of any size."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Shape:
    """How big a network is."""

    n_layers: int
    d_model: int
    n_heads: int
    d_vocab: int = 50304
    dtype: str = "float32"

    def estimate_bytes(self) -> int:
        """Return about how many bytes its weights have."""
        n_parameters = 12 * self.n_layers * self.d_model**2 + 2 * self.d_vocab * self.d_model
        return n_parameters * getattr(torch, self.dtype).itemsize


def save_checkpoint(folder: Path, shape: Shape, *, n_files: int = 1) -> int:
    """Save a checkpoint in `n_files` files of about one size, without a tokenizer; return its number of parameters."""
    folder.mkdir(parents=True)
    config = GPTNeoXConfig(
        architectures=["GPTNeoXForCausalLM"],
        num_hidden_layers=shape.n_layers,
        hidden_size=shape.d_model,
        intermediate_size=4 * shape.d_model,
        num_attention_heads=shape.n_heads,
        vocab_size=shape.d_vocab,
        max_position_embeddings=2048,
        dtype=shape.dtype,
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in GPTNeoXForCausalLM(config).state_dict().items()}
    tensors = dict(_make_tensors(shapes, getattr(torch, shape.dtype)))
    total = sum(tensor.nbytes for tensor in tensors.values())
    if n_files == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        _save_sharded(folder, tensors, total, n_files)
    return sum(math.prod(one) for one in shapes.values())


def make_tokenizer(n_tokens: int) -> PreTrainedTokenizerFast:
    """Build a byte-level BPE tokenizer with a vocabulary and merges of a usual size, of made-up words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = ["<|endoftext|>", *alphabet]
    merges = []
    words = iter(range(10**9))
    known = set(vocabulary)
    while len(vocabulary) < n_tokens:
        letters = [chr(ord("a") + (next(words) * 7919 + place * 104729) // 26**place % 26) for place in range(5)]
        for left, right in pairwise(["".join(letters[:end]) for end in range(1, 6)]):
            if right not in known and len(vocabulary) < n_tokens:
                merges.append((left, right[len(left) :]))
                vocabulary.append(right)
                known.add(right)
    ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    end = vocabulary[0]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end)


def _make_tensors(shapes: dict[str, torch.Size], dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Norms 1 + 0.3·N, biases 0.2·N, matrices N/sqrt(fan_in)."""
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator, dtype=dtype)
        if len(shape) > 1:
            noise.mul_(shape[-1] ** -0.5)
        elif name.endswith("bias"):
            noise.mul_(0.2)
        else:
            noise.mul_(0.3).add_(1)
        yield name, noise


def _save_sharded(folder: Path, tensors: dict[str, torch.Tensor], total: int, n_files: int) -> None:
    shards: list[dict[str, torch.Tensor]] = [{} for _ in range(n_files)]
    sizes = [0] * n_files
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].nbytes):
        smallest = sizes.index(min(sizes))
        shards[smallest][name] = tensor
        sizes[smallest] += tensor.nbytes
    places = {}
    for index, shard in enumerate(shards, 1):
        file = f"model-{index:05}-of-{n_files:05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    index_file = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))
