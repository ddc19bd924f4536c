"""Fit measured times and draw them: SVG files on a ground of their own, to be read on light and on dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

INK, FAINT, GROUND = "#1f2328", "#d1d9e0", "#ffffff"
COLOURS = ("#0969da", "#bc4c00", "#1a7f37")
MARKERS = ("o", "s", "^")


@dataclass(frozen=True)
class Curve:
    """Seconds by size, under a name."""

    name: str
    points: Mapping[int, float]


def fit_power(points: Mapping[int, float]) -> tuple[float, float]:
    """Fit seconds = factor · size ** exponent by least squares on logarithms; return factor and exponent."""
    sizes, seconds = np.log(list(points)), np.log(list(points.values()))
    design = np.stack([np.ones_like(sizes), sizes], axis=1)
    (log_factor, exponent), *_ = np.linalg.lstsq(design, seconds, rcond=None)
    return float(np.exp(log_factor)), float(exponent)


def fit_line(points: Mapping[int, float]) -> tuple[float, float]:
    """Fit seconds = start + slope · size by least squares; return start and slope."""
    sizes = np.array(list(points), dtype=float)
    design = np.stack([np.ones_like(sizes), sizes], axis=1)
    (start, slope), *_ = np.linalg.lstsq(design, np.array(list(points.values())), rcond=None)
    return float(start), float(slope)


def draw_curves(file: Path, title: str, of: str, curves: Sequence[Curve]) -> None:
    """Draw measured medians as marks and their fits as lines, on logarithmic axes. Needs matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    settings = {
        "svg.hashsalt": "lensreg",  # the same numbers give the same file
        "font.size": 11,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(settings):
        figure, axes = pyplot.subplots(figsize=(7.2, 4.2), facecolor=GROUND)
        figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.15)
        for curve, colour, marker in zip(curves, COLOURS, MARKERS, strict=False):
            factor, exponent = fit_power(curve.points)
            sizes = np.array(list(curve.points), dtype=float)
            seconds = list(curve.points.values())
            label = f"{curve.name}: n^{exponent:.2f}"
            axes.plot(sizes, seconds, marker, color=colour, markersize=7, label=label)
            axes.plot(sizes, factor * sizes**exponent, "-", color=colour, linewidth=1.5)
        axes.set_xscale("log")
        axes.set_yscale("log")
        everything = [seconds for curve in curves for seconds in curve.points.values()]
        axes.set_ylim(min(everything) / 2, max(everything) * 4)  # room for the legend, and flat curves stay flat
        axes.set_xticks(list(curves[0].points), minor=False)
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _write_tick(value)))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        axes.grid(visible=True, which="major", color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel(of)
        axes.set_ylabel("median time")
        axes.set_title(title, loc="left", fontsize=12)
        axes.legend(frameon=False, loc="upper left", fontsize=10)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def _write_tick(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:g} µs"
    return f"{seconds * 1e3:g} ms" if seconds < 1 else f"{seconds:g} s"
