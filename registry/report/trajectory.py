"""Draw the course of a run: loss by training step, metrics and drift by step, and which layers moved when."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from registry.report.figures import BLUE, INK, ORANGE, count_in_whole_numbers, make_figure, paint_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from registry.trajectory.results import Trace

_WIDTH, _LINE = 6.6, 1.7  # inches
_ROW = 0.2
_MARKERS: Any = {"marker": "o", "markersize": 3}
_SPREAD = 1000
"""Steps that are further apart than this, as a ratio, are drawn on a logarithmic axis."""

_MEASURED = {
    "drift: KL\n(nats)": {"": "kl"},
    "drift: top-1\nagreement": {"": "top1_agreement"},
    "moved, as a\nshare of the norm": {"from the base": "from_base", "from the step before": "from_previous"},
}

Panel = tuple[float, Callable[["Figure | SubFigure"], None]]
"""Its height in inches, and what draws it."""


def draw_loss(found: Trace) -> Figure | None:
    """Draw what Trainer logged, loss and evaluation, by training step; None if nothing is known of it."""
    return _draw(_loss_panel(found))


def draw_course(found: Trace) -> Figure | None:
    """Draw recorded metrics, drift and distances by step, one under the other; None if there are none."""
    return _draw(_course_panel(found))


def draw_layers(found: Trace, *, since: str) -> Figure | None:
    """Draw how far every layer moved, since the `base` or the `previous` step; None if weights were not compared."""
    return _draw(_layer_panel(found, since))


def draw_trajectory(found: Trace) -> Figure | None:
    """Draw all of it as one picture; None if there is nothing to draw."""
    panels = [_loss_panel(found), _course_panel(found), _layer_panel(found, "base"), _layer_panel(found, "previous")]
    there = [panel for panel in panels if panel is not None]
    if not there:
        return None
    heights = [height for height, _ in there]

    def draw(figure: Figure) -> None:
        parts = figure.subfigures(len(there), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, (_, paint) in zip(parts, there, strict=True):
            part.set_facecolor("none")
            paint(part)

    return make_figure((_WIDTH, sum(heights)), draw)


def _draw(panel: Panel | None) -> Figure | None:
    return None if panel is None else make_figure((_WIDTH, panel[0]), panel[1])


def _loss_panel(found: Trace) -> Panel | None:
    lines = [
        (label, colour, style, points)
        for name, label, colour, style in (
            ("loss", "training loss", BLUE, "-"),
            ("eval_loss", "evaluation loss", ORANGE, "--"),
        )
        if (points := _read_points(found, name))
    ]
    if not lines:
        return None

    def paint(figure: Figure | SubFigure) -> None:
        axes = figure.subplots()
        for label, colour, style, points in lines:
            few: Any = _MARKERS if len(points) <= 50 else {}
            axes.plot([x for x, _ in points], [y for _, y in points], style, color=colour, label=label, **few)
        # where the checkpoints are
        for index, one in enumerate(found.steps):
            named: Any = {"label": "checkpoints"} if index == 0 else {}
            axes.axvline(one.step, ymax=0.04, color=INK, linewidth=1.2, **named)
        _finish(axes, "loss", [x for *_, points in lines for x, _ in points])
        axes.set_xlabel("training step")
        axes.legend(frameon=False, fontsize=8)

    return 2.6, paint


def _read_points(found: Trace, name: str) -> list[tuple[int, float]]:
    """Return the finite values that were logged under a name; without a log, those that the steps are recorded with."""
    if found.log:
        points = [(entry.step, entry.values.get(name)) for entry in found.log]
    else:
        points = [(one.step, getattr(one, name)) for one in found.steps]
    return [(step, value) for step, value in points if _is_finite(value)]


def _course_panel(found: Trace) -> Panel | None:
    courses = [
        (
            f"{one.name}\n({one.unit})" if one.unit else one.name,
            {"": [step.values.get(one.name) for step in found.steps]},
        )
        for one in found.metrics
    ]
    for label, names in _MEASURED.items():
        courses.append(
            (label, {line: [getattr(step, name) for step in found.steps] for line, name in names.items()}),
        )
    there = [
        (label, lines)
        for label, lines in courses
        if any(_is_finite(value) for values in lines.values() for value in values)
    ]
    if not there:
        return None
    steps = [one.step for one in found.steps]
    is_stale = any(one.stale for one in found.steps)

    def paint(figure: Figure | SubFigure) -> None:
        column = figure.subplots(len(there), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (label, lines) in zip(column, there, strict=True):
            for (line, values), (colour, style) in zip(lines.items(), ((BLUE, "-"), (ORANGE, "--")), strict=False):
                points = [(step, value) for step, value in zip(steps, values, strict=True) if _is_finite(value)]
                axes.plot([x for x, _ in points], [y for _, y in points], style, color=colour, label=line, **_MARKERS)
            if len(lines) > 1:
                axes.set_ylim(bottom=0)
                axes.legend(frameon=False, fontsize=8)
            _finish(axes, label, steps)
        column[-1].set_xlabel("training step" if not is_stale else "training step (some values are stale)")
        figure.align_ylabels()

    return _LINE * len(there), paint


def _is_finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _layer_panel(found: Trace, since: str) -> Panel | None:
    name = f"from_{since}"
    values = {(one.layer, one.ref): getattr(one, name) for one in found.layers if _is_finite(getattr(one, name))}
    if not values:
        return None
    layers = list(dict.fromkeys(one.layer for one in found.layers))
    rows = [[values.get((layer, one.ref)) for one in found.steps] for layer in layers]
    names = ["outside" if layer is None else layer for layer in layers]

    def paint(figure: Figure | SubFigure) -> None:
        axes = paint_map(figure, rows, names, [f"{one.step:,}" for one in found.steps])
        axes.set_xlabel("training step")
        axes.set_ylabel("layer")
        axes.set_title(
            f"moved since the {'base' if since == 'base' else 'step before'}, as a share of its norm", size=9
        )
        if len(found.steps) > 8:
            axes.tick_params(axis="x", rotation=60)
        if len(names) > 32:
            axes.set_yticks([index + 0.5 for index in range(0, len(names), 4)], [str(one) for one in names[::4]])

    return min(9.0, max(2.0, _ROW * len(rows) + 1.2)), paint


def _finish(axes: Axes, label: str, steps: Sequence[int]) -> None:
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    count_in_whole_numbers(axes)
    positive = [step for step in steps if step > 0]
    if len(set(steps)) > 4 and max(positive) / min(positive) > _SPREAD:
        axes.set_xscale("symlog", linthresh=min(positive))
