"""Compare two networks tensor by tensor, rolled up by layer and component, and by head for attention."""

from __future__ import annotations

import gc
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from registry.compare.change import UNIT_ROUNDOFF, Change, cosine, measure_change, ratio
from registry.compare.components import COMPONENTS, Component, find_component, find_layer, view_heads
from registry.compare.heads import PermutedHeads, find_permuted_heads
from registry.progress import Counter, Progress, no_progress
from registry.results import Results

_HELD_BYTES = 2**28
"""How much of both is read before the files are mapped anew: pages of a mapped file stay in memory once they are."""


@dataclass(frozen=True)
class WeightChange:
    """What changed in one tensor that both networks have in one shape.

    `relative_distance` is the Frobenius norm of the difference as a share of that of `a`. `rank` counts the singular
    values of the difference above what rounding makes (a LoRA of rank r shows as r); it is None for vectors.
    """

    name: str
    layer: int | None
    component: Component
    shape: tuple[int, ...]
    n_parameters: int
    relative_distance: float
    cosine: float | None
    largest_change: float
    rank: int | None
    effective_rank: float | None
    norm_a: float
    norm_b: float
    distance: float


@dataclass(frozen=True)
class HeadChange:
    """What changed in one head of one tensor of attention."""

    layer: int
    head: int
    name: str
    relative_distance: float
    cosine: float | None


@dataclass(frozen=True)
class PartChange:
    """What changed in all tensors of one component in one layer together; `layer` None is outside of the layers."""

    layer: int | None
    component: Component
    n_tensors: int
    n_changed: int
    n_parameters: int
    relative_distance: float
    cosine: float | None


@dataclass(frozen=True)
class WeightComparison:
    """What changed in the weights from version `a` to version `b`.

    `only_a`, `only_b` and `misshapen` name what cannot be compared; `processing` is what both went through first.
    """

    a: str
    b: str
    tensors: Results[WeightChange]
    heads: Results[HeadChange]
    permuted: tuple[PermutedHeads, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    processing: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def n_changed(self) -> int:
        """How many tensors are not equal."""
        return sum(one.largest_change > 0 for one in self.tensors)

    @property
    def relative_distance(self) -> float:
        """The norm of the difference of all tensors together, as a share of that of `a`."""
        return ratio(_norm(one.distance for one in self.tensors), _norm(one.norm_a for one in self.tensors))

    @property
    def parts(self) -> Results[PartChange]:
        """The changes rolled up by layer and component, in the order of the layers."""
        grouped: dict[tuple[int | None, Component], list[WeightChange]] = defaultdict(list)
        for one in self.tensors:
            grouped[one.layer, one.component].append(one)
        ordered = sorted(grouped, key=lambda key: (_place(*key), COMPONENTS.index(key[1])))
        return Results((_roll_up(*key, grouped[key]) for key in ordered), PartChange)


def compare_opened(
    open_both: Callable[[], tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]],
    *,
    refs: tuple[str, str],
    dtypes: Sequence[str] = ("float32",),
    processing: Sequence[str] = (),
    ranks: bool = True,
    heads: bool = True,
    notes: Sequence[str] = (),
    progress: Progress = no_progress,
) -> WeightComparison:
    """Compare tensors by their names; files are mapped anew now and then, so that pages that were read are let go.

    `dtypes` are those that the weights were kept in; ranks below are rounding. Without `heads` no heads are compared,
    nor looked for in another order.
    """
    roundoff = max(UNIT_ROUNDOFF.get(one, UNIT_ROUNDOFF["float32"]) for one in dtypes)
    a, b = open_both()
    only_a, only_b = tuple(sorted(a.keys() - b.keys())), tuple(sorted(b.keys() - a.keys()))
    shared = sorted(a.keys() & b.keys(), key=lambda name: (_place(find_layer(name), find_component(name)), name))
    misshapen = {
        name: (tuple(a[name].shape), tuple(b[name].shape)) for name in shared if a[name].shape != b[name].shape
    }
    compared = [name for name in shared if name not in misshapen]
    counter = Counter(progress, "comparing weights", sum(a[name].nbytes for name in compared))
    changes: list[WeightChange] = []
    by_head: list[HeadChange] = []
    held = 0
    for name in compared:
        held += a[name].nbytes + b[name].nbytes
        if held > _HELD_BYTES:
            del a, b
            gc.collect()  # a network that holds them refers to itself
            a, b = open_both()
            held = a[name].nbytes + b[name].nbytes
        changes.append(_describe(name, a[name], measure_change(name, a[name], b[name], roundoff=roundoff, ranks=ranks)))
        if heads:
            by_head += _compare_heads(name, a[name], b[name])
        counter.advance(a[name].nbytes)
    del a, b
    gc.collect()
    a, b = open_both()
    return WeightComparison(
        *refs,
        tensors=Results(changes, WeightChange),
        heads=Results(by_head, HeadChange),
        permuted=find_permuted_heads({name: (a[name], b[name]) for name in _in_changed_layers(by_head, compared)}),
        only_a=only_a,
        only_b=only_b,
        misshapen=misshapen,
        processing=tuple(processing),
        notes=tuple(notes),
    )


def _in_changed_layers(heads: Sequence[HeadChange], names: Sequence[str]) -> list[str]:
    """Return those names that are of layers whose heads changed: in the others none can have changed places."""
    changed = {one.layer for one in heads if one.relative_distance > 0}
    return [name for name in names if find_layer(name) in changed]


def _describe(name: str, tensor: torch.Tensor, change: Change) -> WeightChange:
    return WeightChange(
        name=name,
        layer=find_layer(name),
        component=find_component(name),
        shape=tuple(tensor.shape),
        n_parameters=tensor.numel(),
        relative_distance=change.relative_distance,
        cosine=change.cosine,
        largest_change=change.largest,
        rank=change.rank,
        effective_rank=change.effective_rank,
        norm_a=change.norm_a,
        norm_b=change.norm_b,
        distance=change.distance,
    )


def _compare_heads(name: str, a: torch.Tensor, b: torch.Tensor) -> list[HeadChange]:
    layer, old, new = find_layer(name), view_heads(name, a), view_heads(name, b)
    if layer is None or old is None or new is None:
        return []
    old, new = old.detach().double().cpu(), new.detach().double().cpu()
    rows = zip(old.norm(dim=1).tolist(), new.norm(dim=1).tolist(), (new - old).norm(dim=1).tolist(), strict=True)
    return [
        HeadChange(layer, head, name, ratio(distance, norm_a), cosine(norm_a, norm_b, distance))
        for head, (norm_a, norm_b, distance) in enumerate(rows)
    ]


def _roll_up(layer: int | None, component: Component, changes: Sequence[WeightChange]) -> PartChange:
    norm_a, norm_b, distance = (
        _norm(getattr(one, name) for one in changes) for name in ("norm_a", "norm_b", "distance")
    )
    return PartChange(
        layer,
        component,
        len(changes),
        sum(one.largest_change > 0 for one in changes),
        sum(one.n_parameters for one in changes),
        ratio(distance, norm_a),
        cosine(norm_a, norm_b, distance),
    )


def _norm(norms: Iterable[float]) -> float:
    return math.hypot(*norms)


def _place(layer: int | None, component: Component) -> int:
    """Order the layers between what comes before them and what comes after."""
    if layer is not None:
        return layer
    return -1 if component == "embed" else 10**9
