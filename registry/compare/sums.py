"""What is added up over tokens while two networks are compared, and the results that are made of it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from registry.compare.capture import Part
from registry.compare.patterns import PatternsWhereTheyMoved, Spell
from registry.compare.results import (
    Attribution,
    BehaviourComparison,
    HeadAttribution,
    HeadBehaviour,
    HeadPatterns,
    LayerChange,
    PositionChange,
)
from registry.results import Results


def _zeros(n: int) -> Callable[[], list[float]]:
    return lambda: [0.0] * n


@dataclass
class Sums:
    """Sums over tokens, to be divided by their numbers."""

    n_tokens: int = 0
    n_targets: int = 0
    positions: dict[int, list[float]] = field(default_factory=lambda: defaultdict(_zeros(3)))
    layers: dict[int, list[float]] = field(default_factory=lambda: defaultdict(_zeros(4)))
    has_cosines: bool = True
    heads: dict[tuple[int, int], float] = field(default_factory=lambda: defaultdict(float))
    losses: list[float] = field(default_factory=_zeros(2))
    attributed: tuple[dict[Part, float], dict[Part, float]] = field(
        default_factory=lambda: (defaultdict(float), defaultdict(float))
    )
    patterns: PatternsWhereTheyMoved = field(default_factory=PatternsWhereTheyMoved)

    def add_predictions(self, kl: torch.Tensor, agreed: torch.Tensor, losses: Sequence[float]) -> None:
        """Add what is predicted on a batch: `kl` and `agreed` are `(batch, position)`."""
        n_prompts, length = kl.shape
        self.n_tokens += kl.numel()
        self.n_targets += n_prompts * (length - 1)
        for position, (one, other) in enumerate(
            zip(kl.sum(dim=0).tolist(), agreed.double().sum(dim=0).tolist(), strict=True)
        ):
            row = self.positions[position]
            row[0] += n_prompts
            row[1] += one
            row[2] += other
        for which, loss in enumerate(losses):
            self.losses[which] += loss

    def add_lens(self, kl: Mapping[int, float]) -> None:
        """Add the KL that the logit lens reads in the residual streams, summed over tokens, by layer."""
        for layer, value in kl.items():
            self.layers[layer][3] += value

    def add_residuals(self, layer: int, a: torch.Tensor, b: torch.Tensor) -> None:
        """Add residual streams, `(batch, position, d_model)`."""
        one, other = a.double(), b.double()
        row = self.layers[layer]
        if one.shape == other.shape:
            row[0] += float(torch.nn.functional.cosine_similarity(one, other, dim=-1).sum())
        else:
            self.has_cosines = False
        row[1] += float(one.norm(dim=-1).sum())
        row[2] += float(other.norm(dim=-1).sum())

    def add_patterns(
        self, layer: int, a: torch.Tensor, b: torch.Tensor, jsd: torch.Tensor, tokens: torch.Tensor
    ) -> None:
        """Add attention patterns, `(batch, head, query, key)`, and how far they diverge, `(batch, head, query)`."""
        for head, value in enumerate(jsd.sum(dim=(0, 2)).tolist()):
            self.heads[layer, head] += value
        self.patterns.see(layer, a, b, jsd, tokens)

    def add_attributed(self, which: int, attributed: Mapping[Part, float]) -> None:
        """Add what the parts of one network add to the logits of the next tokens."""
        for part, value in attributed.items():
            self.attributed[which][part] += value

    def finish(
        self,
        refs: tuple[str, str],
        prompts: Sequence[torch.Tensor],
        spell: Spell,
        processing: Sequence[str],
        dtype: str,
        data_digest: str | None,
        notes: Sequence[str],
    ) -> BehaviourComparison:
        """Divide, and give the results."""
        n = self.n_tokens
        losses = [loss / self.n_targets for loss in self.losses] if self.n_targets else [None, None]
        heads = [HeadBehaviour(*place, jsd / n) for place, jsd in sorted(self.heads.items())]
        return BehaviourComparison(
            *refs,
            n_prompts=len(prompts),
            n_tokens=n,
            tokens_digest=_digest(prompts),
            kl=sum(kl for _, kl, _ in self.positions.values()) / n,
            top1_agreement=sum(agreed for _, _, agreed in self.positions.values()) / n,
            loss_a=losses[0],
            loss_b=losses[1],
            positions=Results(self._describe_positions(), PositionChange),
            layers=Results(self._describe_layers(), LayerChange),
            heads=Results(heads, HeadBehaviour),
            attributions=Results(
                (
                    Attribution(component, layer, a, b)
                    for (component, layer, _), a, b in self._list_attributed()
                    if component != "head"
                ),
                Attribution,
            ),
            head_attributions=Results(
                (
                    HeadAttribution(layer, head, a, b)
                    for (_, layer, head), a, b in self._list_attributed()
                    if layer is not None and head is not None
                ),
                HeadAttribution,
            ),
            patterns=Results(self.patterns.choose(heads, spell), HeadPatterns),
            processing=tuple(processing),
            dtype=dtype.removeprefix("torch."),
            data_digest=data_digest,
            notes=tuple(notes),
        )

    def _describe_positions(self) -> list[PositionChange]:
        return [
            PositionChange(position, int(count), kl / count, agreed / count)
            for position, (count, kl, agreed) in sorted(self.positions.items())
        ]

    def _describe_layers(self) -> list[LayerChange]:
        n = self.n_tokens
        return [
            LayerChange(layer, cosine / n if self.has_cosines else None, norm_a / n, norm_b / n, kl / n)
            for layer, (cosine, norm_a, norm_b, kl) in sorted(self.layers.items())
        ]

    def _list_attributed(self) -> list[tuple[Part, float, float]]:
        """Return the parts that both networks have, in the order of the network, with what each adds."""
        one, other = self.attributed
        both = [part for part in one if part in other]
        both.sort(key=lambda part: (-1 if part[1] is None else part[1], part[0], part[2] or 0))
        return [(part, one[part] / self.n_targets, other[part] / self.n_targets) for part in both]


def _digest(prompts: Sequence[torch.Tensor]) -> str:
    total = hashlib.sha256()
    for prompt in prompts:
        total.update(repr(prompt.tolist()).encode())
    return total.hexdigest()
