"""HookedTransformers for tests: trained a little, or built of a config with every norm and bias randomised."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import AutoModelForCausalLM

from registry import Registry

TOKENS = torch.arange(60).reshape(2, 30) * 3 % 211
CUSTOM: dict[str, Any] = {
    "n_layers": 2, "d_model": 32, "n_heads": 4, "d_head": 8, "d_mlp": 64, "d_vocab": 211, "n_ctx": 40,
    "act_fn": "gelu_new", "normalization_type": "LN", "device": "cpu", "seed": 1,
}  # fmt: skip


def train(network: HookedTransformer, *, n_steps: int = 4, lr: float = 1e-3, optimizer: str = "AdamW") -> None:
    """Take a few steps of training on random tokens, in place."""
    generator = torch.Generator().manual_seed(7)
    stepper = getattr(torch.optim, optimizer)(network.parameters(), lr=lr)
    network.train()
    for _ in range(n_steps):
        tokens = torch.randint(0, network.cfg.d_vocab, (2, 24), generator=generator)
        network(tokens, return_type="loss").backward()
        stepper.step()
        stepper.zero_grad()
    network.eval()


def make_hooked(**config: Any) -> HookedTransformer:
    """Build a HookedTransformer as people do, and randomise it: norms and biases get 0.3·N."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # HookedTransformer says that it is deprecated
        network = HookedTransformer(HookedTransformerConfig(**{**CUSTOM, **config}))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1 or name.rpartition(".")[2].lstrip("_").startswith("b_"):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.mul_(1.5)
    return network.eval()


def save_state_dict(path: Path, tensors: dict[str, torch.Tensor], prefix: str = "") -> Path:
    """Save a state dict as a safetensors file, or with torch.save if the path ends otherwise."""
    named = {prefix + name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    if path.suffix == ".safetensors":
        save_file(named, path)
    else:
        torch.save(named, path)
    return path


def log_probs(network: HookedTransformer, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    """Run the network, without gradients."""
    with torch.no_grad():
        return network(tokens).log_softmax(-1)


def compare(one: HookedTransformer, other: HookedTransformer, tokens: torch.Tensor = TOKENS) -> float:
    """Return the largest difference of log-probs."""
    return float((log_probs(one, tokens) - log_probs(other, tokens)).abs().max())


def assert_identical(one: HookedTransformer, other: HookedTransformer) -> None:
    """The same parameters, bit for bit, and the same logits."""
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(log_probs(one), log_probs(other))


def assert_computes(registry: Registry, ref: str, folder: Path) -> None:
    """The network of that name computes what the folder's does."""
    tokens = torch.arange(40).reshape(2, 20)
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(folder)(tokens).logits.log_softmax(-1)
        assert float((registry.load(ref)(tokens).log_softmax(-1) - expected).abs().max()) < 1e-4
