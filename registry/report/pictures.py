"""Draw what a comparison of two versions found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from registry.compare.components import COMPONENTS
from registry.plain_text import clean
from registry.report.figures import BLUE, INK, ORANGE, count_in_whole_numbers, make_figure, paint_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from registry.compare.results import BehaviourComparison, HeadPatterns
    from registry.compare.weights import WeightComparison

_CELL, _TOKEN = 0.28, 0.13  # inches
_LABEL = 12
_FAINTEST = 0.01  # what is fainter than this is left out


def draw_parts(found: WeightComparison) -> Figure:
    """Draw the relative distance of every component by layer."""
    layers = sorted({one.layer for one in found.parts if one.layer is not None})
    components = [
        one for one in COMPONENTS if any(part.component == one for part in found.parts if part.layer is not None)
    ]
    values = {(one.layer, one.component): one.relative_distance for one in found.parts}
    rows = [[values.get((layer, component)) for layer in layers] for component in components]
    return _draw_map(rows, components, layers, "layer", "", "share of the norm")


def draw_weight_heads(found: WeightComparison) -> Figure | None:
    """Draw the relative distance of every head's queries by layer; None if no heads were compared."""
    values = {(one.layer, one.head): one.relative_distance for one in found.heads if one.name.endswith("W_Q")}
    return _draw_heads(values, "share of the norm")


def draw_pattern_heads(found: BehaviourComparison) -> Figure | None:
    """Draw by how much every head's attention pattern diverges; None if patterns were not compared."""
    values = {(one.layer, one.head): one.pattern_jsd for one in found.heads}
    return _draw_heads(values, "JSD (nats)")


def draw_layers(found: BehaviourComparison) -> Figure:
    """Draw the residual stream by layer: cosine, norms, and KL of the logit lens."""

    def draw(figure: Figure) -> None:
        numbers = [one.layer for one in found.layers]
        top, middle, bottom = figure.subplots(3, 1, sharex=True)
        if all(one.cosine is not None for one in found.layers):
            top.plot(numbers, [one.cosine for one in found.layers], "o-", color=BLUE, markersize=3)
        top.set_ylabel("cosine")
        middle.plot(numbers, [one.norm_a for one in found.layers], "o-", color=BLUE, markersize=3, label=found.a)
        middle.plot(numbers, [one.norm_b for one in found.layers], "s--", color=ORANGE, markersize=3, label=found.b)
        middle.set_ylabel("norm")
        middle.legend(frameon=False, fontsize=8)
        bottom.plot(numbers, [one.logit_lens_kl for one in found.layers], "o-", color=BLUE, markersize=3)
        bottom.set_ylabel("logit-lens KL (nats)")
        bottom.set_xlabel("layers that have run")
        count_in_whole_numbers(bottom)
        for axes in (top, middle, bottom):
            axes.spines[["top", "right"]].set_visible(False)

    return make_figure((6.6, 5.4), draw)


def draw_attributions(found: BehaviourComparison) -> Figure | None:
    """Draw how much more each component adds to the logit of the next token; None if nothing was predicted."""
    if all(one.layer is None for one in found.attributions):
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for component, colour, offset in (("attention", BLUE, -0.2), ("MLP", ORANGE, 0.2)):
            mine = [
                (one.layer + offset, one.difference)
                for one in found.attributions
                if one.component == component and one.layer is not None
            ]
            axes.bar([x for x, _ in mine], [more for _, more in mine], 0.4, color=colour, label=component)
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set_xlabel("layer")
        count_in_whole_numbers(axes)
        axes.set_ylabel("more to the logit of the next token")
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)

    return make_figure((6.6, 2.8), draw)


def draw_head_attributions(found: BehaviourComparison) -> Figure | None:
    """Draw how much more, or less, each head adds to the logit of the next token; None if that has no shares."""
    if not found.head_attributions:
        return None
    values = {(one.layer, one.head): one.difference for one in found.head_attributions}
    return _draw_heads(values, "more to the logit", signed=True)


def draw_positions(found: BehaviourComparison) -> Figure:
    """Draw KL of the next token by position."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([one.position for one in found.positions], [one.kl for one in found.positions], "-", color=BLUE)
        axes.set_xlabel("position")
        count_in_whole_numbers(axes)
        axes.set_ylabel("KL of the next token (nats)")
        axes.spines[["top", "right"]].set_visible(False)

    return make_figure((6.6, 2.4), draw)


def draw_patterns(found: HeadPatterns, a: str, b: str) -> Figure:
    """Draw the attention patterns of one head side by side: a row for each query, a column for each key."""
    labels = [_label(token) for token in found.tokens]
    n = len(labels)
    stairs = [(index + 1, y) for index in range(n) for y in (index, index + 1)]
    outline = [(0, 0), *stairs, (0, n), (0, 0)]

    def draw(figure: Figure) -> None:
        from matplotlib.collections import PolyCollection
        from matplotlib.colors import LinearSegmentedColormap, PowerNorm

        # no attention is the ground of the page, be it light or dark
        colours = LinearSegmentedColormap.from_list("attention", [f"{BLUE}00", BLUE])
        panels = figure.subplots(1, 2, sharey=True)
        for axes, pattern, title in zip(panels, (found.a, found.b), (a, b), strict=True):
            shown = {
                (key, query): value
                for query, row in enumerate(pattern)
                for key, value in enumerate(row)
                if value >= _FAINTEST
            }
            cells = PolyCollection(
                [[(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1)] for x, y in shown],
                array=list(shown.values()),
                cmap=colours,
                norm=PowerNorm(0.5, 0.0, 1.0),
            )
            axes.add_collection(cells)
            axes.plot(*zip(*outline, strict=True), color=INK, linewidth=0.4)
            axes.set_aspect("equal")
            axes.set_xlim(0, n)
            axes.set_ylim(n, 0)
            places = [index + 0.5 for index in range(n)]
            axes.set_xticks(places, labels, rotation=90, fontsize=7, parse_math=False)
            axes.set_yticks(places, labels, fontsize=7, parse_math=False)
            axes.tick_params(length=0)
            axes.set_title(f"{title}, head {found.layer}.{found.head}", fontsize=9, parse_math=False)
            axes.set_xlabel("key")
            axes.spines[:].set_visible(False)
        panels[0].set_ylabel("query")
        bar = figure.colorbar(cells, ax=list(panels), shrink=0.6, pad=0.02)
        bar.outline.set_linewidth(0.4)
        bar.set_label("attention")
        if bar.solids is not None:
            bar.solids.set_rasterized(False)
            bar.solids.set_edgecolor("face")

    side = max(2.0, _TOKEN * n + 0.9)
    return make_figure((2 * side + 1.2, side + 0.9), draw)


def _label(token: str) -> str:
    """Write a token so that it can be seen, on one short line."""
    shown = clean(token).replace("\n", "↵").strip(" ") or "·"
    return shown if len(shown) <= _LABEL else f"{shown[: _LABEL - 1]}…"


def _draw_heads(values: Mapping[tuple[int, int], float], scale: str, *, signed: bool = False) -> Figure | None:
    if not values:
        return None
    layers = sorted({layer for layer, _ in values})
    heads = sorted({head for _, head in values})
    rows = [[values.get((layer, head)) for layer in layers] for head in heads]
    return _draw_map(rows, heads, layers, "layer", "head", scale, signed=signed)


def _draw_map(
    rows: Sequence[Sequence[float | None]],
    row_names: Sequence[Any],
    column_names: Sequence[Any],
    x_label: str,
    y_label: str,
    scale: str,
    *,
    signed: bool = False,
) -> Figure:
    """Draw a heat map of square cells, from 0 up, or `signed`: as far down as up."""

    def draw(figure: Figure) -> None:
        axes = paint_map(figure, rows, row_names, column_names, scale=scale, signed=signed)
        axes.set_aspect("equal")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    width = max(3.6, _CELL * len(column_names) + 2.2)
    return make_figure((min(width, 14.0), max(1.5, _CELL * len(row_names) + 1.1)), draw)
