"""`lensreg diff`: what changed between two versions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from cli.options import Session, output_option, ref_argument, registry_options, workers_options
from cli.output import print_error, print_ids, say

if TYPE_CHECKING:
    from registry.compare_versions import Comparison
    from registry.diff import ChangedTensors, RecordedDiff
    from registry.errors import RegistryError

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
@click.option("--data", metavar="FILE", help="Run both on its texts: .txt, .jsonl, or a folder that datasets saved.")
@click.option("--column", default="text", show_default=True, help="Which column of the data holds the texts.")
@click.option("--length", type=int, help="Of the windows that texts of data are cut into, in tokens; 256 without it.")
@click.option("--max-tokens", type=int, help="Stop after so many tokens of the data.")
@click.option(
    "--one-at-a-time/--both-at-once",
    "one_at_a_time",
    default=None,
    help="Hold one network in memory at a time, and what the first computed in temporary files; else both. By itself: "
    "whichever takes less.",
)
@click.option("--raw", is_flag=True, help="Run both unprocessed.")
@click.option("--report", type=click.Path(dir_okay=False), help="Write all of it as one HTML page, with pictures.")
@click.option("--pictures", type=click.Path(file_okay=False), help="Write the pictures into this folder, as PNG.")
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
    data: str | None,
    column: str,
    length: int | None,
    max_tokens: int | None,
    one_at_a_time: bool | None,
    raw: bool,
    report: str | None,
    pictures: str | None,
    workers: int | None,
    dask: str | None,
) -> None:
    """Show what changed from the version A to the version REF, or in a line for each to several.

    From what is recorded of them: architecture field by field, and which tensors are equal, changed, added or gone,
    from their digests alone, reading no weights. ids prints the names of the tensors that are not equal.

    With --weights: how far and in how many directions every tensor moved. With --prompt or --data: what both compute on
    the same tokens. --report and --pictures compare the weights too, and need matplotlib. What cannot be compared is
    said, if anything else can be.
    """
    from cli.compare import print_summaries, read_prompts
    from cli.progress import show_progress

    texts = read_prompts(prompts, file)
    registry = session.open()
    how: dict[str, Any] = {
        "weights": weights,
        "ranks": ranks,
        "prompts": texts,
        "data": data,
        "column": column,
        "length": length,
        "max_tokens": max_tokens,
        "one_at_a_time": one_at_a_time,
        "processed": not raw,
    }
    if len(others) > 1 or workers is not None or dask is not None:
        if report or pictures or read or session.output == "ids":
            raise click.UsageError(
                "--report, --pictures, --read and --output ids are for two versions that are compared here."
            )
        with show_progress() as progress:
            many = registry.compare_many(a, others, **how, workers=workers, dask=dask, progress=progress)
        print_summaries(many, session.output)
    else:
        _diff_two(session, a, others[0], how, read=read, report=report, pictures=pictures)


def _diff_two(
    session: Session,
    a: str,
    b: str,
    how: dict[str, Any],
    *,
    read: bool,
    report: str | None,
    pictures: str | None,
) -> None:
    from cli.progress import show_progress

    _check_drawing(report, pictures)
    registry = session.open()
    with show_progress() as progress:
        found = registry.diff(a, b, read=read, progress=progress)
        more = None
        if how["weights"] or how["prompts"] or how["data"] or report or pictures:
            how["weights"] = how["weights"] or bool(report or pictures)
            more = registry.compare(a, b, **how, progress=progress)
    if more is not None:
        _draw(more, report, pictures)
    if session.output == "json":
        from cli.output import print_json

        print_json({**_as_dict(found), **(_more_as_dict(more) if more is not None else {})})
    elif session.output == "ids":
        if found.obstacle is not None:
            raise found.obstacle
        print_ids(row["tensor"] for row in _list_rows(found.tensors))
    else:
        _print(found)
        if more is not None:
            _print_more(more)


def _print_more(found: Comparison) -> None:
    from cli.compare import print_behaviour, print_weights

    if found.weights is not None:
        print_weights(found.weights)
    if found.behaviour is not None:
        print_behaviour(found.behaviour)
    for obstacle in found.obstacles:
        print_error(obstacle, "table")


def _more_as_dict(found: Comparison) -> dict[str, Any]:
    from cli.compare import behaviour_as_dict, weights_as_dict

    answer: dict[str, Any] = {"obstacles": [_describe_error(one) for one in found.obstacles]}
    if found.weights is not None:
        answer["weights"] = weights_as_dict(found.weights)
    if found.behaviour is not None:
        answer["behaviour"] = behaviour_as_dict(found.behaviour)
    return answer


def _check_drawing(report: str | None, pictures: str | None) -> None:
    """Refuse what could not be drawn or written, before anything takes its time."""
    if report is None and pictures is None:
        return
    from registry.report.figures import require_matplotlib
    from registry.report.files import check_target

    require_matplotlib()
    if report is not None:
        check_target(report)
    if pictures is not None:
        check_target(pictures, is_folder=True)


def _draw(found: Comparison, report: str | None, pictures: str | None) -> None:
    if report is not None:
        from registry.report.page import save_report

        save_report(found, report)
        say(f"wrote {report}", err=True)
    if pictures is not None:
        from registry.report.save_pictures import save_pictures

        paths = save_pictures(found, pictures)
        say(f"wrote {len(paths)} pictures into {pictures}", err=True)


def _print(found: RecordedDiff) -> None:
    from cli.output import Column, print_card, print_rows

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
        "obstacle": _describe_error(obstacle) if obstacle else None,
    }


def _describe_error(error: RegistryError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "hint": error.hint}


def _show(value: Any) -> str:
    from cli.output import format_value

    shown = format_value(value)
    return f"{shown[:16]}…" if re.fullmatch("[0-9a-f]{40,64}", shown) else shown  # a digest; JSON has all of it


def _show_shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _join(one: str, other: str) -> str:
    return one if one == other else f"{one} → {other}"
