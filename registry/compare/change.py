"""Measure the change from one tensor to another, a few rows at a time, so that memory stays at a chunk of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from registry.compare.components import view_matrix

_CHUNK = 2**22
"""How many numbers are held in float64 at once."""

# half the distance from 1 to the next number: what rounding to it changes at most, as a share
UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}


@dataclass(frozen=True)
class Change:
    """What is measured of one tensor: norms of both, of the difference, its largest element, and its ranks.

    All norms are Frobenius norms. `rank` counts singular values of the difference above what rounding alone makes;
    `effective_rank` is exp of the entropy of the squared singular values (Roy and Vetterli 2007). Both are None for
    vectors, and where ranks were not asked for.
    """

    norm_a: float
    norm_b: float
    distance: float
    largest: float
    rank: int | None
    effective_rank: float | None

    @property
    def relative_distance(self) -> float:
        """The norm of the difference as a share of that of `a`; infinite where `a` is zero and `b` is not."""
        return ratio(self.distance, self.norm_a)

    @property
    def cosine(self) -> float | None:
        """The cosine between both; None where one of them is zero."""
        return cosine(self.norm_a, self.norm_b, self.distance)


def ratio(distance: float, norm: float) -> float:
    """Return distance / norm; 0 for 0 / 0."""
    if norm:
        return distance / norm
    return math.inf if distance else 0.0


def cosine(norm_a: float, norm_b: float, distance: float) -> float | None:
    """Return the cosine of two vectors by their norms and the distance between them; None where one is zero."""
    if not (norm_a and norm_b):
        return None
    if distance == 0.0:
        return 1.0
    return max(-1.0, min(1.0, (norm_a**2 + norm_b**2 - distance**2) / (2 * norm_a * norm_b)))


def measure_change(name: str, a: torch.Tensor, b: torch.Tensor, *, roundoff: float, ranks: bool) -> Change:
    """Measure the change from `a` to `b`, of one shape; `roundoff` is that of the coarser dtype they were kept in."""
    old, new = (view_matrix(name, tensor.detach()) for tensor in (a, b))
    if old.shape[0] < old.shape[1]:  # the Gram matrix of the shorter side is as good, and smaller
        old, new = old.T, new.T
    n_rows, n_columns = old.shape
    wants_rank = ranks and n_columns > 1
    gram = torch.zeros(n_columns, n_columns, dtype=torch.float64) if wants_rank else None
    sums = torch.zeros(3, dtype=torch.float64)
    largest = 0.0
    step = max(1, _CHUNK // n_columns)
    for start in range(0, n_rows, step):
        one, other = (matrix[start : start + step].double().cpu() for matrix in (old, new))
        difference = other - one
        sums += torch.stack([one.square().sum(), other.square().sum(), difference.square().sum()])
        largest = max(largest, float(difference.abs().max())) if difference.numel() else largest
        if gram is not None and largest:
            gram.addmm_(difference.T, difference)
    norm_a, norm_b, distance = (math.sqrt(value) for value in sums.tolist())
    rank, effective_rank = None, None
    if gram is not None:
        size = max(norm_a, norm_b) / math.sqrt(n_rows * n_columns)
        rank, effective_rank = _count_ranks(gram, roundoff * size * (math.sqrt(n_rows) + math.sqrt(n_columns)))
    return Change(norm_a, norm_b, distance, largest, rank, effective_rank)


def _count_ranks(gram: torch.Tensor, noise: float) -> tuple[int, float]:
    """Return the number of singular values above `noise`, and the effective rank of the difference, by `D.T @ D`.

    A matrix of independent elements of deviation s has no singular value above s * (sqrt(rows) + sqrt(columns)), but
    for fluctuations that vanish with its size (Bai and Yin 1993); rounding changes elements independently.
    """
    squares = torch.linalg.eigvalsh(gram).clamp(min=0.0)
    total = float(squares.sum())
    if not total:
        return 0, 0.0
    shares = squares[squares > 0] / total
    return int((squares > noise**2).sum()), float(torch.exp(-(shares * shares.log()).sum()))
