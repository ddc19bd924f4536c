"""Keep, for every head, its attention patterns where they moved most, to be shown side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from registry.compare.results import HeadBehaviour, HeadPatterns

N_TOKENS = 40
"""How many tokens of a prompt are shown; attention looks back, so the rest changes nothing of these."""
N_HEADS = 3

Spell = Callable[[Sequence[int]], Sequence[str]]


@dataclass(frozen=True)
class _Shown:
    score: float
    tokens: tuple[int, ...]
    a: torch.Tensor
    b: torch.Tensor


@dataclass
class PatternsWhereTheyMoved:
    """The patterns of every head on the one prompt whose first tokens it looks at most differently."""

    _shown: dict[tuple[int, int], _Shown] = field(default_factory=dict)

    def see(self, layer: int, a: torch.Tensor, b: torch.Tensor, jsd: torch.Tensor, tokens: torch.Tensor) -> None:
        """Look at the patterns of one layer, `(batch, head, query, key)`, of which `jsd` is `(batch, head, query)`."""
        scores, rows = jsd[..., :N_TOKENS].sum(dim=-1).max(dim=0)
        for head, (score, row) in enumerate(zip(scores.tolist(), rows.tolist(), strict=True)):
            before = self._shown.get((layer, head))
            if score > (before.score if before else 0.0):
                patterns = (one[row, head, :N_TOKENS, :N_TOKENS].float().cpu().clone() for one in (a, b))
                self._shown[layer, head] = _Shown(score, tuple(tokens[row, :N_TOKENS].tolist()), *patterns)

    def choose(self, heads: Sequence[HeadBehaviour], spell: Spell) -> list[HeadPatterns]:
        """Return the patterns of the heads that moved most; `spell` writes tokens as people read them."""
        moved = sorted((one for one in heads if one.pattern_jsd > 0), key=lambda one: -one.pattern_jsd)
        found = []
        for one in moved[:N_HEADS]:
            shown = self._shown[one.layer, one.head]
            a, b = (_as_tuples(pattern) for pattern in (shown.a, shown.b))
            found.append(HeadPatterns(one.layer, one.head, one.pattern_jsd, tuple(spell(shown.tokens)), a, b))
        return found


def _as_tuples(pattern: torch.Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(value, 4) for value in row) for row in pattern.tolist())
