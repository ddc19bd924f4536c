"""Place the nodes of a graph without cycles in layers, parents above their children, for drawing.

The way is Sugiyama's: longest paths give the layers, an edge that passes layers gets a waypoint in each, the order
within a layer follows the mean place of its neighbours, and so do the places, as far as the gaps allow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

N_SWEEPS = 8
Key = Any
"""A node's name, or a waypoint of an edge: (parent, child, layer)."""


@dataclass(frozen=True)
class Layout:
    """Where the middle of each node is across, which layer it is in, and where each edge passes the layers between."""

    x: Mapping[Key, float]
    layer: Mapping[Key, int]
    waypoints: Mapping[tuple[str, str], tuple[Key, ...]]
    width: float
    n_layers: int


def place_in_layers(
    widths: Mapping[str, float], edges: Sequence[tuple[str, str]], gap: float, waypoint_width: float = 0
) -> Layout:
    """Place nodes that are so wide, at least `gap` apart; an edge is (parent, child)."""
    layer: dict[Key, int] = {**_find_layers(widths, edges)}
    sizes: dict[Key, float] = {**widths}
    above: dict[Key, list[Key]] = defaultdict(list)
    below: dict[Key, list[Key]] = defaultdict(list)
    waypoints = {}
    for parent, child in edges:
        points = tuple((parent, child, number) for number in range(layer[parent] + 1, layer[child]))
        waypoints[parent, child] = points
        layer |= {point: point[2] for point in points}
        sizes |= dict.fromkeys(points, waypoint_width)
        way: tuple[Key, ...] = (parent, *points, child)
        for upper, lower in pairwise(way):
            above[lower].append(upper)
            below[upper].append(lower)
    rows: list[list[Key]] = [[] for _ in range(max(layer.values(), default=0) + 1)]
    for node, number in layer.items():
        rows[number].append(node)
    x: dict[Key, float] = {}
    for row in rows:
        x |= _pack(row, dict.fromkeys(row, 0.0), sizes, gap)
    for sweep in range(N_SWEEPS):
        downwards = sweep % 2 == 0
        neighbours = above if downwards else below
        for row in rows if downwards else rows[::-1]:
            wanted = {node: _mean((x[one] for one in neighbours[node]), x[node]) for node in row}
            row.sort(key=lambda node: wanted[node])
            x |= _pack(row, wanted, sizes, gap)
    left = min((x[node] - sizes[node] / 2 for node in x), default=0.0)
    right = max((x[node] + sizes[node] / 2 for node in x), default=0.0)
    return Layout({node: place - left for node, place in x.items()}, layer, waypoints, right - left, len(rows))


def _find_layers(nodes: Iterable[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Return each node's longest way from a node without parents."""
    children: dict[str, list[str]] = defaultdict(list)
    n_parents = dict.fromkeys(nodes, 0)
    for parent, child in edges:
        children[parent].append(child)
        n_parents[child] += 1
    layer = dict.fromkeys(n_parents, 0)
    ready = [node for node, n in n_parents.items() if n == 0]
    for node in ready:
        for child in children[node]:
            layer[child] = max(layer[child], layer[node] + 1)
            n_parents[child] -= 1
            if n_parents[child] == 0:
                ready.append(child)
    return layer


def _pack(row: Sequence[Key], wanted: Mapping[Key, float], sizes: Mapping[Key, float], gap: float) -> dict[Key, float]:
    """Put a row's nodes where they want to be, in this order, pushed apart as far as they need to be."""
    pushed_right, pushed_left = {}, {}
    end = float("-inf")
    for node in row:
        pushed_right[node] = max(wanted[node], end + gap + sizes[node] / 2)
        end = pushed_right[node] + sizes[node] / 2
    end = float("inf")
    for node in reversed(row):
        pushed_left[node] = min(wanted[node], end - gap - sizes[node] / 2)
        end = pushed_left[node] - sizes[node] / 2
    return {node: (pushed_right[node] + pushed_left[node]) / 2 for node in row}


def _mean(values: Iterable[float], otherwise: float) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else otherwise
