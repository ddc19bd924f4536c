"""How figures look, in matplotlib: drawn in the colour of the text around them, written as SVG, or as PNG on white."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from registry.errors import PackageMissing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# what is drawn in it becomes `currentColor` in the SVG; no figure would have that colour by itself
INK, CURRENT = "#010203", "currentColor"
BLUE, ORANGE = "#3b82f6", "#ea7317"
_MAP = "viridis"
_CLIP = re.compile(r'(?<=["#])p[0-9a-f]{10}(?=["\)])')


def require_matplotlib() -> None:
    """Raise PackageMissing without matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401 (one that is there and cannot be imported is of no use either)
    except ImportError:
        raise PackageMissing(
            "matplotlib is not installed.", package="matplotlib", hint="Install it: pip install 'lens-registry[plots]'"
        ) from None


def make_figure(size: tuple[float, float], draw: Callable[[Figure], None]) -> Figure:
    """Make a figure of so many inches in the house's style. Raises PackageMissing without matplotlib."""
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

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


def paint_map(
    figure: Figure | SubFigure,
    rows: Sequence[Sequence[float | None]],
    row_names: Sequence[Any],
    column_names: Sequence[Any],
    *,
    scale: str = "",
    signed: bool = False,
) -> Axes:
    """Paint a heat map from 0 up, or as far down as up, the first row at the top; what is None stays empty.

    `scale` says beside the bar of colours what they mean.
    """
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
    bar.set_label(scale, size=8)
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
