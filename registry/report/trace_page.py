"""Write the course of a run as one HTML page, and its picture as a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import InvalidInput
from registry.plain_text import escape
from registry.report.figures import write_png, write_svg
from registry.report.files import save_whole
from registry.report.frame import write_figure, write_page, write_table
from registry.report.trajectory import draw_course, draw_layers, draw_loss, draw_trajectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from registry.trajectory.results import Trace, TraceStep

# a picture by itself has no page whose colours it could take, so it brings its ground
_COLOURS = "svg { color: #1c1e21; background: #fff }"


def _write_alone(figure: Figure) -> str:
    opening, end, rest = write_svg(figure).partition(">")
    return f"{opening}{end}\n<style>{_COLOURS}</style>{rest}"


_WRITERS: Mapping[str, Callable[[Figure], str | bytes]] = {".svg": _write_alone, ".png": write_png}


def write_trace_report(found: Trace) -> str:
    """Write the page. Raises PackageMissing without matplotlib."""
    first, last = found.steps[0].step, found.steps[-1].step
    parts = [f"<p>{len(found.steps):,} steps, {first:,} to {last:,}, compared with {escape(found.base)}.</p>\n"]
    parts += [f"<p>{escape(note)}</p>\n" for note in found.notes]
    loss = write_figure(
        draw_loss(found), "What Trainer logged, by training step; the marks on the axis are the registered checkpoints."
    )
    if loss:
        parts.append(f"<h2>Training</h2>\n{loss}")
    course = write_figure(draw_course(found), "Metrics, drift, and how far the weights moved, by step.")
    if course:
        parts.append(f"<h2>The course</h2>\n{_tell_drift(found)}{course}")
    if found.layers:
        parts.append("<h2>Weights</h2>\n")
        parts.append(write_figure(draw_layers(found, since="base"), f"How far each layer is from {found.base}."))
        parts.append(
            write_figure(draw_layers(found, since="previous"), "How far each layer moved since the step before.")
        )
    parts.append(f"<h2>Steps</h2>\n{_write_steps(found)}")
    return write_page(f"{found.name}, step by step", parts)


def save_trace_report(found: Trace, path: str | Path) -> None:
    """Write the page to a file, which appears when it is whole. Raises StorageError if it cannot be written."""
    save_whole(write_trace_report(found), path)


def save_picture(found: Trace, path: str | Path) -> None:
    """Write the picture to a .svg or .png file. Raises InvalidInput for another, or if there is nothing to draw."""
    check_picture(path)
    figure = draw_trajectory(found)
    if figure is None:
        raise InvalidInput(
            f"Nothing of {found.name} can be drawn: Trainer's log was not kept, and no metric is recorded.",
            hint="Ask for weights or for the drift, too.",
        )
    save_whole(_WRITERS[Path(path).suffix.lower()](figure), path)


def check_picture(path: str | Path) -> None:
    """Raise InvalidInput unless a picture can be written under this name."""
    if Path(path).suffix.lower() not in _WRITERS:
        raise InvalidInput(
            f"{path} is no kind of picture that is drawn here.", hint=f"Name a {' or '.join(_WRITERS)} file."
        )


def _tell_drift(found: Trace) -> str:
    if found.drift is None:
        return ""
    after = f", after {', '.join(found.drift.processing)}" if found.drift.processing else ""
    said = f"{found.drift.n_tokens:,} tokens (sha256:{found.drift.tokens_digest[:16]}) in {found.drift.dtype}{after}"
    return f"<p>The drift is how far the predictions are from those of {escape(found.base)}, on {escape(said)}.</p>\n"


def _write_steps(found: Trace) -> str:
    columns: list[tuple[str, Callable[[TraceStep], str]]] = [
        ("version", lambda one: one.ref),
        ("step", lambda one: f"{one.step:,}"),
        ("epoch", lambda one: _show(one.epoch)),
        ("loss", lambda one: _show(one.loss)),
        ("evaluation", lambda one: _show(one.eval_loss)),
        ("changed", lambda one: _show(one.n_changed)),
        ("changed from base", lambda one: _show(one.n_changed_from_base)),
        ("moved", lambda one: _share(one.from_previous)),
        ("moved from base", lambda one: _share(one.from_base)),
        ("KL", lambda one: _show(one.kl)),
        ("top-1", lambda one: "" if one.top1_agreement is None else f"{one.top1_agreement:.1%}"),
    ]
    columns += [(metric.name, _show_metric(metric.name)) for metric in found.metrics]
    shown = [(heading, show) for heading, show in columns if any(show(one) for one in found.steps)]
    rows = [[show(one) for _, show in shown] for one in found.steps]
    table = write_table([heading for heading, _ in shown], rows)
    is_stale = any(one.stale for one in found.steps)
    return table + ("<p>* measured of other weights, or with other versions of packages.</p>\n" if is_stale else "")


def _show_metric(name: str) -> Callable[[TraceStep], str]:
    def show(one: TraceStep) -> str:
        text = _show(one.values.get(name))
        return f"{text} *" if text and name in one.stale else text

    return show


def _show(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.5g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3%}"
