"""`lensreg diff`: what changed between two versions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.options import Session, output_option, ref_argument, registry_options, workers_options
from cli.output import print_ids, say

if TYPE_CHECKING:
    from registry.diff import ChangedTensors, RecordedDiff

N_SHOWN = 40


@click.command()
@ref_argument("a")
@ref_argument("others", several=True)
@click.option(
    "--read", is_flag=True, help="Read weights that were registered before tensors' digests were kept, and keep them."
)
@click.option("--weights", is_flag=True, help="Compare the weights: by layer, component, tensor and head.")
@click.option("--ranks/--no-ranks", default=True, help="With --weights: the ranks of the changes, which take longest.")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="Run both on this text and compare.")
@click.option("--prompts", "file", type=click.File("r", encoding="utf-8"), help="Run both on each line of a file.")
@click.option("--raw", is_flag=True, help="Run both unprocessed.")
@click.option("--report", type=click.Path(dir_okay=False), help="Write all of it as one HTML page, with pictures.")
@workers_options
@output_option("table", "json", "ids")
@registry_options
@click.pass_obj
def diff(
    session: Session,
    a: str,
    others: tuple[str, ...],
    read: bool,
    weights: bool,
    ranks: bool,
    prompts: tuple[str, ...],
    file: Any,
    raw: bool,
    report: str | None,
    workers: int | None,
    dask: str | None,
) -> None:
    """Show what changed from the version A to the version REF, or in a line for each to several.

    From what is recorded of them: architecture field by field, and which tensors are equal, changed, added or gone,
    from their digests alone, reading no weights. ids prints the names of the tensors that are not equal.

    With --weights: how far and in how many directions every tensor moved. With --prompt: what both compute on the same
    tokens. --report compares the weights too, and needs matplotlib.
    """
    from cli.compare import print_summaries, read_prompts
    from cli.progress import show_progress

    texts = read_prompts(prompts, file)
    registry = session.open()
    how: dict[str, Any] = {"weights": weights, "ranks": ranks, "prompts": texts, "processed": not raw}
    if len(others) > 1 or workers is not None or dask is not None:
        if report is not None or read or session.output == "ids":
            raise click.UsageError("--report, --read and --output ids are for two versions that are compared here.")
        with show_progress() as progress:
            many = registry.compare_many(a, others, **how, workers=workers, dask=dask, progress=progress)
        print_summaries(many, session.output)
    else:
        _diff_two(session, a, others[0], how, read=read, report=report)


def _diff_two(session: Session, a: str, b: str, how: dict[str, Any], *, read: bool, report: str | None) -> None:
    from cli.compare import behaviour_as_dict, print_behaviour, print_weights, weights_as_dict
    from cli.progress import show_progress

    registry = session.open()
    with show_progress() as progress:
        found = registry.diff(a, b, read=read, progress=progress)
        more = None
        if how["weights"] or how["prompts"] or report:
            how["weights"] = how["weights"] or report is not None
            more = registry.compare(a, b, **how, progress=progress)
    if report is not None and more is not None:
        from cli.output import say
        from registry.report.page import save_report

        save_report(more, report)
        say(f"wrote {report}", err=True)
    if session.output == "json":
        from cli.output import print_json

        answer = _as_dict(found)
        if more is not None and more.weights is not None:
            answer["weights"] = weights_as_dict(more.weights)
        if more is not None and more.behaviour is not None:
            answer["behaviour"] = behaviour_as_dict(more.behaviour)
        print_json(answer)
    elif session.output == "ids":
        if found.obstacle is not None:
            raise found.obstacle
        print_ids(row["tensor"] for row in _list_rows(found.tensors))
    else:
        _print(found)
        if more is not None and more.weights is not None:
            print_weights(more.weights)
        if more is not None and more.behaviour is not None:
            print_behaviour(more.behaviour)


def _print(found: RecordedDiff) -> None:
    from cli.output import Column, print_card, print_error, print_rows

    facts: dict[str, str | None] = {
        name: f"{_show(one)} → {_show(other)}" for name, (one, other) in found.facts.items()
    }
    fields = [f"{one.field}: {_show(one.parent)} → {_show(one.checkpoint)}" for one in found.architecture]
    facts["architecture"] = "\n".join(fields) or "the same"
    facts["tensors"] = str(found.tensors) if found.tensors else "cannot be told"
    print_card(f"{found.a} → {found.b}", facts)
    rows = _list_rows(found.tensors)
    if rows:
        say("")
        columns = [Column("", "change"), Column("tensor", "tensor"), Column("dtype", "dtype"), Column("shape", "shape")]
        print_rows(rows[:N_SHOWN], columns, "table", "", "tensor")
    if len(rows) > N_SHOWN:
        say(f"and {len(rows) - N_SHOWN:,} more: --output json or ids lists all")
    if found.obstacle is not None:
        print_error(found.obstacle, "table")


def _list_rows(tensors: ChangedTensors | None) -> list[dict[str, str]]:
    """Make a row for each tensor that is not equal."""
    if tensors is None:
        return []
    rows = [
        {
            "change": "changed",
            "tensor": one.name,
            "dtype": _join(one.a.dtype, one.b.dtype),
            "shape": _join(_show_shape(one.a.shape), _show_shape(one.b.shape)),
        }
        for one in tensors.changed
    ]
    return rows + [
        {"change": change, "tensor": name, "dtype": one.dtype, "shape": _show_shape(one.shape)}
        for change, some in (("added", tensors.added), ("gone", tensors.gone))
        for name, one in some.items()
    ]


def _as_dict(found: RecordedDiff) -> dict[str, Any]:
    obstacle = found.obstacle
    return {
        "a": found.a,
        "b": found.b,
        "facts": {name: {"a": one, "b": other} for name, (one, other) in found.facts.items()},
        "architecture": [{"field": one.field, "a": one.parent, "b": one.checkpoint} for one in found.architecture],
        "tensors": found.tensors.as_dict() if found.tensors else None,
        "obstacle": {"code": obstacle.code, "message": obstacle.message, "hint": obstacle.hint} if obstacle else None,
    }


def _show(value: Any) -> str:
    from cli.output import format_value

    return format_value(value)


def _show_shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _join(one: str, other: str) -> str:
    return one if one == other else f"{one} → {other}"
