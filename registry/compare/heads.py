"""Find heads that changed places: the same heads in another order compute the same, and look like a great change."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from registry.compare.components import find_layer, view_heads

_SAME = 0.99
"""The cosine above which two heads count as one; those of trained networks are far below, about 0."""


@dataclass(frozen=True)
class PermutedHeads:
    """A layer in which heads changed places: head `i` of `b` is head `order[i]` of `a`.

    `kind` is `query`, or `key-value` where these are fewer.
    """

    layer: int
    kind: str
    order: tuple[int, ...]


def find_permuted_heads(pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> tuple[PermutedHeads, ...]:
    """Return the layers whose heads are those of the other network in another order."""
    members: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
    n_queries: dict[int, int] = {}
    for name, (a, b) in pairs.items():
        layer, old, new = find_layer(name), view_heads(name, a), view_heads(name, b)
        if layer is None or old is None or new is None or a.ndim < 3:
            continue
        members[layer, old.shape[0]].append((old, new))
        if name.endswith("W_Q"):
            n_queries[layer] = old.shape[0]
    found = []
    for (layer, n_heads), tensors in sorted(members.items()):
        order = _match(tensors)
        if order is not None:
            found.append(PermutedHeads(layer, "query" if n_heads == n_queries.get(layer) else "key-value", order))
    return tuple(found)


def _match(tensors: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[int, ...] | None:
    """Return which head of `a` each head of `b` is, if that is another order; None if none moved."""
    if all(torch.equal(old, new) for old, new in tensors):
        return None
    cosines = torch.stack([_cosines(new, old) for old, new in tensors]).mean(dim=0)
    best = cosines.max(dim=1)
    order = tuple(best.indices.tolist())
    moved = [head for head, other in enumerate(order) if head != other]
    is_order = sorted(order) == list(range(len(order)))
    if not moved or not is_order or min(best.values[moved].tolist()) < _SAME:
        return None
    # heads that are nearly alike do not count as moved
    return order if all(cosines[head, head] < _SAME for head in moved) else None


def _cosines(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Return the cosines of all pairs of heads, `(n_heads of new, n_heads of old)`."""
    normed = [torch.nn.functional.normalize(tensor.detach().double().cpu(), dim=1) for tensor in (new, old)]
    return normed[0] @ normed[1].T
