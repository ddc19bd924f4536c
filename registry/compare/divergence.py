"""How far two distributions are apart: KL of next-token predictions, Jensen–Shannon of attention patterns; in nats."""

from __future__ import annotations

import torch

_NUMBERS = 2**20
"""How many numbers of next-token distributions are held in float64 at once."""


def count_rows(n_tokens: int) -> int:
    """Return how many distributions over `n_tokens` are worked on at once."""
    return max(1, _NUMBERS // n_tokens)


def compare_logits(a: torch.Tensor, b: torch.Tensor, n_shared: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return KL(a || b) in nats and whether the top-1 tokens agree, each `(batch, position)`.

    Only the first `n_shared` tokens of the vocabularies count.
    """
    shape = a.shape[:-1]
    one, other = (logits[..., :n_shared].reshape(-1, n_shared) for logits in (a, b))
    divergences = []
    step = count_rows(n_shared)
    for start in range(0, len(one), step):
        old, new = (logits[start : start + step].double().log_softmax(dim=-1) for logits in (one, other))
        divergences.append((old.exp() * (old - new)).sum(dim=-1))
    agreed = one.argmax(dim=-1) == other.argmax(dim=-1)
    return torch.cat(divergences).reshape(shape), agreed.reshape(shape)


def diverge(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the Jensen–Shannon divergence of distributions along the last axis, in nats."""
    middle = (a + b) / 2

    def terms(one: torch.Tensor) -> torch.Tensor:
        term: torch.Tensor = torch.special.xlogy(one, one / middle.clamp(min=torch.finfo(torch.float64).tiny))
        return term.sum(dim=-1)

    return (terms(a) + terms(b)) / 2
