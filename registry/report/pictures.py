"""Draw comparisons with matplotlib, as SVG in the colour of the text around it, or as PNG on a ground of its own."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from registry.compare.components import COMPONENTS
from registry.errors import PackageMissing
from registry.plain_text import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from registry.compare.results import BehaviourComparison, HeadPatterns
    from registry.compare.weights import WeightComparison

# what is drawn in it becomes `currentColor` in the SVG; no figure would have that colour by itself
INK, CURRENT = "#010203", "currentColor"
BLUE, ORANGE = "#3b82f6", "#ea7317"
_MAP = "viridis"
_CLIP = re.compile(r'(?<=["#])p[0-9a-f]{10}(?=["\)])')
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
    return _draw_map(rows, components, layers, "layer", "")


def draw_weight_heads(found: WeightComparison) -> Figure | None:
    """Draw the relative distance of every head's queries by layer; None if no heads were compared."""
    values = {(one.layer, one.head): one.relative_distance for one in found.heads if one.name.endswith("W_Q")}
    return _draw_heads(values)


def draw_pattern_heads(found: BehaviourComparison) -> Figure | None:
    """Draw by how much every head's attention pattern diverges; None if patterns were not compared."""
    values = {(one.layer, one.head): one.pattern_jsd for one in found.heads}
    return _draw_heads(values)


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
    return _draw_heads({(one.layer, one.head): one.difference for one in found.head_attributions}, signed=True)


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
            axes.set_title(title, fontsize=9, parse_math=False)
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


def write_svg(figure: Figure) -> str:
    """Write a figure as an SVG element in the colour of the text around it; the same figures give the same text."""
    import matplotlib

    text = io.StringIO()
    settings: Any = {"svg.hashsalt": "lensreg", "svg.fonttype": "none"}
    with matplotlib.rc_context(settings), _any_script():
        figure.savefig(
            text,
            format="svg",
            transparent=True,
            bbox_inches="tight",
            pad_inches=0.08,
            metadata={"Date": None, "Creator": None},
        )
    svg = text.getvalue()
    return _name_clips(svg[svg.index("<svg") :].replace(INK, CURRENT))


def _name_clips(svg: str) -> str:
    """Name the clip paths anew: matplotlib names them by their corners, whose last bits the layout leaves to chance.

    The names are still those of this picture alone, as a page holds several.
    """
    numbers = {name: index for index, name in enumerate(dict.fromkeys(_CLIP.findall(svg)))}
    digest = hashlib.sha256(_CLIP.sub(lambda name: str(numbers[name[0]]), svg).encode()).hexdigest()[:10]
    return _CLIP.sub(lambda name: f"p{digest}-{numbers[name[0]]}", svg)


def write_png(figure: Figure) -> bytes:
    """Write a figure as PNG on white."""
    data = io.BytesIO()
    with _any_script():
        figure.savefig(
            data,
            format="png",
            dpi=160,
            facecolor="#ffffff",
            bbox_inches="tight",
            pad_inches=0.08,
            metadata={"Software": None},
        )
    return data.getvalue()


@contextlib.contextmanager
def _any_script() -> Iterator[None]:
    """Let tokens be of any script: a browser finds a font for them, and a PNG has boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _draw_heads(values: Mapping[tuple[int, int], float], *, signed: bool = False) -> Figure | None:
    if not values:
        return None
    layers = sorted({layer for layer, _ in values})
    heads = sorted({head for _, head in values})
    rows = [[values.get((layer, head)) for layer in layers] for head in heads]
    return _draw_map(rows, heads, layers, "layer", "head", signed=signed)


def _draw_map(
    rows: Sequence[Sequence[float | None]],
    row_names: Sequence[Any],
    column_names: Sequence[Any],
    x_label: str,
    y_label: str,
    *,
    signed: bool = False,
) -> Figure:
    """Draw a heat map of square cells, from 0 up, or `signed`: as far down as up."""

    def draw(figure: Figure) -> None:
        axes = paint_map(figure, rows, row_names, column_names, signed=signed)
        axes.set_aspect("equal")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    width = max(3.6, _CELL * len(column_names) + 2.2)
    return make_figure((min(width, 14.0), max(1.5, _CELL * len(row_names) + 1.1)), draw)


def paint_map(
    figure: Figure | SubFigure,
    rows: Sequence[Sequence[float | None]],
    row_names: Sequence[Any],
    column_names: Sequence[Any],
    *,
    signed: bool = False,
) -> Axes:
    """Paint a heat map from 0 up, or as far down as up, the first row at the top; what is None stays empty."""
    axes = figure.subplots()
    numbers = [[float("nan") if value is None else value for value in row] for row in rows]
    highest = max((abs(value) for row in rows for value in row if value is not None), default=0.0) or 1.0
    lowest = -highest if signed else 0.0
    colours = _make_signed_map() if signed else _MAP
    edges = "none" if signed else "face"  # what is see-through would be darker where both are drawn
    # cells, not an image: the page forbids itself to load any
    image = axes.pcolormesh(numbers, cmap=colours, vmin=lowest, vmax=highest, edgecolors=edges, linewidth=0.1)
    axes.invert_yaxis()
    axes.set_yticks([index + 0.5 for index in range(len(row_names))], [str(name) for name in row_names])
    shown = range(0, len(column_names), max(1, len(column_names) // 16))
    axes.set_xticks([index + 0.5 for index in shown], [str(column_names[index]) for index in shown])
    bar = figure.colorbar(image, ax=axes, shrink=0.9, pad=0.02)
    bar.outline.set_visible(False)
    if bar.solids is not None:
        bar.solids.set_rasterized(False)
        bar.solids.set_edgecolor("face")
    axes.spines[:].set_visible(False)
    return axes


def _make_signed_map() -> Any:
    """Make colours from orange to blue, between which nothing is the ground of the page."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = [(0.0, ORANGE), (0.4999, f"{ORANGE}00"), (0.5, f"{BLUE}00"), (1.0, BLUE)]
    return LinearSegmentedColormap.from_list("signed", stops)


def count_in_whole_numbers(axes: Axes) -> None:
    """Put marks of the x axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def make_figure(size: tuple[float, float], draw: Callable[[Figure], None]) -> Figure:
    """Make a figure of so many inches in the house's style. Raises PackageMissing without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise PackageMissing(
            "matplotlib is not installed.", package="matplotlib", hint="Install it: pip install 'lens-registry[plots]'"
        ) from None
    settings: Any = {
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.labelcolor": INK,
    }
    with matplotlib.rc_context(settings), _any_script():
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.canvas.draw()
    return figure
