"""Make small PEFT adapters of the networks in tests/checkpoints.py, with every tensor of theirs randomised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file

from registry.quiet import quiet
from tests.checkpoints import make_network

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


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
