"""`lensreg trace`: what a run of training did, step by step."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from cli.options import Session, output_option, ref_argument, registry_options, workers_options

if TYPE_CHECKING:
    from registry.trajectory.results import Trace, TraceStep


@click.command()
@ref_argument("name")
@click.option("--base", metavar="REF", help="Compare with this version (default: what the first step was made from).")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="A recorded metric, such as loss.perplexity, or a suite; several may be given (default: all).",
)
@click.option("--weights", is_flag=True, help="Read the weights, and say how far each layer and component moved.")
@click.option("--drift", is_flag=True, help="Run every step and the base on --data or prompts, and compare.")
@click.option("--data", type=click.Path(exists=True), help="For --drift: .txt, .jsonl, or what datasets saved.")
@click.option("--max-tokens", type=click.IntRange(1), metavar="N", help="Stop after so many tokens of --data.")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="For --drift: this text.")
@click.option("--prompts", "file", type=click.File("r", encoding="utf-8"), help="For --drift: each line of a file.")
@click.option("--picture", type=click.Path(dir_okay=False), help="Draw it, as .svg or .png.")
@click.option("--report", type=click.Path(dir_okay=False), help="Write all of it as one HTML page, with pictures.")
@workers_options
@output_option("table", "json", "csv")
@registry_options
@click.pass_obj
def trace(
    session: Session,
    name: str,
    base: str | None,
    metrics: tuple[str, ...],
    weights: bool,
    drift: bool,
    data: str | None,
    max_tokens: int | None,
    prompts: tuple[str, ...],
    file: Any,
    picture: str | None,
    report: str | None,
    workers: int | None,
    dask: str | None,
) -> None:
    """Follow a run step by step: loss, metrics, drift, and which layers moved when.

    NAME is a model, or the REF of a run's last step, from which it is walked back. What Trainer logged, how many
    tensors changed since the step before and since the base, and metrics that were measured come from records;
    --weights and --drift read the weights of every step. --picture and --report need matplotlib.
    """
    from cli.compare import read_prompts
    from cli.progress import show_progress

    texts = read_prompts(prompts, file)
    if drift and not (texts or data):
        raise click.UsageError("--drift needs something to run on: --data FILE, --prompt TEXT or --prompts FILE.")
    if (texts or data) and not drift:
        raise click.UsageError("Data and prompts are for --drift: say it, too.")
    _check_drawing(picture, report)
    registry = session.open()
    with show_progress() as progress:
        found = registry.trace(
            name,
            base=base,
            metrics=metrics,
            weights=weights,
            prompts=texts,
            data=data,
            max_tokens=max_tokens,
            workers=workers,
            dask=dask,
            progress=progress,
        )
    _draw(found, picture, report)
    if session.output == "table":
        _print_table(found)
    elif session.output == "json":
        _print_json(found)
    else:
        from cli.output import Column, print_rows

        rows = [_as_row(one) for one in found.steps]
        print_rows(rows, [Column(key, key) for key in rows[0]], "csv", "", "ref")


def _check_drawing(picture: str | None, report: str | None) -> None:
    """Refuse what could not be drawn or written, before anything takes its time."""
    if picture is None and report is None:
        return
    from registry.report.figures import require_matplotlib
    from registry.report.files import check_target
    from registry.report.trace_page import check_picture

    require_matplotlib()
    if picture is not None:
        check_picture(picture)
    for target in (picture, report):
        if target is not None:
            check_target(target)


def _draw(found: Trace, picture: str | None, report: str | None) -> None:
    from cli.output import say

    if picture is not None:
        from registry.report.trace_page import save_picture

        save_picture(found, picture)
        say(f"wrote {picture}", err=True)
    if report is not None:
        from registry.report.trace_page import save_trace_report

        save_trace_report(found, report)
        say(f"wrote {report}", err=True)


def _print_table(found: Trace) -> None:
    from cli.compare import format_share
    from cli.output import Column, print_rows, say

    rows = []
    for one in found.steps:
        row: dict[str, Any] = {
            "step": one.step,
            "ref": one.ref,
            "epoch": _show(one.epoch),
            "loss": _show(one.loss),
            "eval_loss": _show(one.eval_loss),
            "changed": _show_changed(one.n_changed, one.n_tensors),
            "changed_from_base": _show_changed(one.n_changed_from_base, one.n_tensors),
            "from_base": "" if one.from_base is None else format_share(one.from_base),
            "from_previous": "" if one.from_previous is None else format_share(one.from_previous),
            "kl": _show(one.kl),
            "top1": "" if one.top1_agreement is None else f"{one.top1_agreement:.1%}",
        }
        for metric in found.metrics:
            text = _show(one.values.get(metric.name))
            row[metric.name] = f"{text} *" if text and metric.name in one.stale else text
        rows.append(row)
    columns = [Column("step", "step", True), Column("version", "ref"), Column("epoch", "epoch", True)]
    columns += [Column("loss", "loss", True), Column("eval loss", "eval_loss", True)]
    columns += [Column("changed", "changed", True), Column("changed from base", "changed_from_base", True)]
    columns += [Column("moved", "from_previous", True), Column("moved from base", "from_base", True)]
    columns += [Column("KL", "kl", True), Column("top-1", "top1", True)]
    columns += [Column(metric.name, metric.name, True) for metric in found.metrics]
    print_rows(rows, columns, "table", "", "ref")
    if found.layers:
        say("")
        _print_layers(found)
    say(f"compared with {found.base}", err=True)
    if found.drift is not None:
        say(f"KL in nats, on {found.drift.n_tokens:,} tokens, sha256:{found.drift.tokens_digest[:12]}", err=True)
    if any(one.stale for one in found.steps):
        say("* of other weights, or measured with other versions of packages", err=True)
    for note in found.notes:
        say(note, err=True)


def _print_layers(found: Trace) -> None:
    """Print the distance from the base: a row for each layer, a column for each step."""
    from cli.compare import format_share
    from cli.output import Column, print_rows

    layers = list(dict.fromkeys(one.layer for one in found.layers))
    values = {(one.layer, one.ref): format_share(one.from_base) for one in found.layers}
    rows = [
        {"layer": "outside" if layer is None else layer}
        | {step.ref: values.get((layer, step.ref), "") for step in found.steps}
        for layer in layers
    ]
    columns = [Column(f"step {step.step:,}", step.ref, True) for step in found.steps]
    print_rows(rows, [Column("layer", "layer"), *columns], "table", "", "layer")


def _print_json(found: Trace) -> None:
    from cli.output import print_json

    print_json(
        {
            "name": found.name,
            "base": found.base,
            "metrics": [asdict(one) for one in found.metrics],
            "rows": [asdict(one) for one in found.steps],
            "log": [asdict(one) for one in found.log],
            "layers": [asdict(one) for one in found.layers],
            "parts": [asdict(one) for one in found.parts],
            "drift": None if found.drift is None else asdict(found.drift),
            "notes": list(found.notes),
        }
    )


def _as_row(one: TraceStep) -> dict[str, Any]:
    facts = {name: value for name, value in vars(one).items() if name not in ("values", "stale")}
    return {**facts, **one.values, "stale": ", ".join(one.stale)}


def _show(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def _show_changed(n_changed: int | None, n_tensors: int | None) -> str:
    return "" if n_changed is None else f"{n_changed:,} of {n_tensors:,}"
