"""What turns the residual stream into logits: the last norm, the unembedding and the soft cap.

It is all of a network that is still needed once its activations are kept.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


class Readout:
    """The last norm and the unembedding of a network: copies that keep nothing else of it alive."""

    def __init__(self, network: HookedTransformer) -> None:
        self.norm: torch.nn.Module = copy.deepcopy(getattr(network, "ln_final", torch.nn.Identity()))
        # (d_vocab, d_model): transformer-lens's Unembed lays W_U out like this at every call, unless it already is
        self._directions: torch.Tensor = network.unembed.W_U.detach().T.contiguous()
        laid_out = torch.nn.Parameter(self._directions.T, requires_grad=False)
        self.unembed: torch.nn.Module = copy.deepcopy(network.unembed, {id(network.unembed.W_U): laid_out})
        self.n_layers = int(network.cfg.n_layers)
        self.device = self._directions.device
        self._cap = float(network.cfg.output_logits_soft_cap or 0.0)
        kind = str(network.cfg.normalization_type or "")
        self._is_centred = kind.startswith("LN") and not network.cfg.final_rms

    def is_like(self, other: Readout) -> bool:
        """Say whether both read the same in every residual stream, and as the last of as many layers."""
        mine, others = ({**one.norm.state_dict(), **one.unembed.state_dict()} for one in (self, other))
        return (
            (self.n_layers, type(self.norm), self._cap, mine.keys())
            == (other.n_layers, type(other.norm), other._cap, others.keys())
            and getattr(self.norm, "eps", None) == getattr(other.norm, "eps", None)
            and all(torch.equal(mine[name], others[name]) for name in mine)
        )

    def read(self, residuals: torch.Tensor) -> torch.Tensor:
        """Return the logits that norm and unembedding make of residual streams, `(n, d_vocab)`: the logit lens."""
        logits: torch.Tensor = self.unembed(self.norm(residuals[None]))[0]
        return logits

    def predict(self, residuals: torch.Tensor) -> torch.Tensor:
        """Return the network's logits by what leaves its last block, `(n, d_vocab)`."""
        logits = self.read(residuals)
        return self._cap * torch.tanh(logits / self._cap) if self._cap > 0 else logits

    def find_directions(self, targets: torch.Tensor) -> torch.Tensor:
        """Return the directions of the residual stream that add to the logits of `targets`, `(…, d_model)`.

        As transformer-lens's `ActivationCache.logit_attrs` projects, with the norm's own weights and centring.
        """
        directions = self._directions[targets.to(self.device)]
        gain = getattr(self.norm, "w", None)
        if gain is not None:
            directions = directions * gain
        return directions - directions.mean(dim=-1, keepdim=True) if self._is_centred else directions

    def measure_scale(self, residuals: torch.Tensor) -> torch.Tensor:
        """Return what the last norm divides by, `(…, 1)`."""
        found: list[torch.Tensor] = []
        point = getattr(self.norm, "hook_scale", None)
        if point is None:
            return torch.ones_like(residuals[..., :1])
        handle = point.register_forward_hook(lambda *seen: found.append(seen[-1].detach()))
        try:
            self.norm(residuals)
        finally:
            handle.remove()
        return found[0]
