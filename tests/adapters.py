"""Make small PEFT adapters of the networks in tests/checkpoints.py, with every tensor of theirs randomised."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file

from registry import Registry
from registry.quiet import quiet
from tests.checkpoints import make_network

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
Tensors = dict[str, torch.Tensor]
Spoil = Callable[[Path], object]


def make_adapted(family: str, kind: type[peft.PeftConfig] = peft.LoraConfig, *, seed: int = 0, **fields: Any) -> Any:
    """Return the family's network with a trained adapter in it: all that would be trained is off its beginning."""
    base = fields.pop("base", None) or {}
    with quiet():
        adapted = peft.get_peft_model(make_network(family, **base), kind(**fields)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                size = 0.3 / parameter.shape[-1] ** 0.5 if "lora_" in name and parameter.ndim > 1 else 0.1
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return adapted


def save_adapter(folder: Path, adapted: Any) -> Path:
    """Save an adapter as peft does, naming no base."""
    with quiet():
        adapted.save_pretrained(folder)
    return folder


def save_plain_adapter(folder: Path) -> Path:
    """Save an adapter of Llama's as most are: of two projections, in rank 4."""
    return save_adapter(folder, make_adapted("llama", target_modules=["q_proj", "v_proj"], r=4))


def register_bases(folder: Path, make_checkpoint: Callable[..., Path]) -> Registry:
    """Return a registry in a folder that holds `gpt2`, `llama`, and `untied`, which has a head of its own."""
    registry = Registry(str(folder / "registry.db"), folder / "store")
    registry.register("gpt2", make_checkpoint("gpt2"))
    registry.register("llama", make_checkpoint("llama"))
    registry.register("untied", make_checkpoint("gpt2", tie_word_embeddings=False))
    return registry


def edit_adapter(folder: Path, **changes: Any) -> Path:
    """Change adapter_config.json; `...` removes a field."""
    config = json.loads((folder / CONFIG).read_text())
    config |= changes
    (folder / CONFIG).write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    return folder


def edit_tensors(folder: Path, change: Any) -> Path:
    """Change the adapter's tensors with a function from a dict to a dict."""
    tensors = change(load_file(folder / WEIGHTS))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    return folder


def pickle_tensors(folder: Path, change: Callable[[Tensors], Any] = dict) -> None:
    """Save the adapter's tensors as peft did before safetensors, beside them."""
    torch.save(change(load_file(folder / WEIGHTS)), folder / PICKLE)


def to_pickle(folder: Path, change: Callable[[Tensors], Any] = dict) -> None:
    """Save the adapter's tensors as peft did before safetensors, in their place."""
    pickle_tensors(folder, change)
    (folder / WEIGHTS).unlink()


def fill(value: float) -> Spoil:
    """Return what puts a value into one place of the first tensor."""

    def change(tensors: Tensors) -> Tensors:
        min(tensors.items())[1].view(-1)[3] = value
        return tensors

    return lambda folder: edit_tensors(folder, change)
