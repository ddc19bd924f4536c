"""`lensreg add-run`: register the checkpoints of a training run, in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.options import Session, output_option, parity_option, parse_tags, registry_options, workers_options
from cli.output import say

if TYPE_CHECKING:
    from registry.fetch import ParityChoice
    from registry.runs import RunPlan


@click.command("add-run")
@click.argument("name", metavar="NAME")
@click.argument("folder", metavar="FOLDER", type=click.Path(exists=True, file_okay=False))
@click.option("--parent", metavar="REF", help="What the run started from.")
@click.option(
    "--relation", metavar="WORD", help="What the first checkpoint is to it: finetuned (default), distilled, …"
)
@click.option(
    "--allow",
    multiple=True,
    metavar="FIELD",
    help="Architecture field that may differ from the parent's; or unrelated-parent.",
)
@click.option("--tag", "tags", multiple=True, metavar="K=V", callback=parse_tags, help="Tag for every step.")
@click.option("--note", metavar="TEXT", help="Remark for people, on every step.")
@parity_option
@click.option("--link", is_flag=True, help="Hard-link the files into the store instead of copying them.")
@click.option("--strict", is_flag=True, help="Refuse what brings code along or asks for some.")
@workers_options
@click.option("--dry-run", is_flag=True, help="Only show the plan.")
@output_option("table", "json", "ids")
@registry_options
@click.pass_obj
def add_run(
    session: Session,
    name: str,
    folder: str,
    parent: str | None,
    relation: str | None,
    allow: tuple[str, ...],
    tags: dict[str, str],
    note: str | None,
    parity: ParityChoice | None,
    link: bool,
    strict: bool,
    workers: int | None,
    dask: str | None,
    dry_run: bool,
) -> None:
    """Register every checkpoint-N in FOLDER as a step of the model NAME, in order.

    Each is the child of the one before it (continued), the first of --parent. Adapters are merged into --parent, each
    anew. What is there already is compared and skipped, so that it can be interrupted and repeated while the run goes
    on. Get a step back as NAME@step-N. With --workers or --dask, checkpoints are verified side by side.
    """
    from cli.output import Column, print_json, print_rows
    from cli.progress import show_progress

    registry = session.open()
    plan = registry.plan_run(name, folder, parent=parent)
    _print_plan(plan)
    rows: list[dict[str, Any]] = [
        {"step": one.step, "folder": one.folder.name, "ref": one.version, "outcome": "there" if one.version else "new"}
        for one in plan.steps
    ]
    if not dry_run:
        with show_progress() as progress:
            steps = registry.register_run(
                plan,
                relation=relation,
                allow=allow,
                note=note,
                tags=tags,
                parity=parity,
                link=link,
                strict=strict,
                workers=workers,
                dask=dask,
                progress=progress,
            )
            for row, (_, done) in zip(rows, steps, strict=True):
                if done is not None and done.version is not None:
                    row |= {"ref": done.version.ref, "outcome": "registered"}
                else:
                    row["outcome"] = "unchanged"
    if session.output == "json":
        print_json({"model": plan.name, "parent": plan.parent, "ignored": list(plan.ignored), "rows": rows})
        return
    columns = [Column("step", "step", right=True), Column("folder", "folder"), Column("version", "ref")]
    print_rows(rows, [*columns, Column("", "outcome")], session.output, "", "ref")


def _print_plan(plan: RunPlan) -> None:
    """Say on stderr what is about to happen."""
    n_there = sum(one.version is not None for one in plan.steps)
    first, last = plan.steps[0].step, plan.steps[-1].step
    start = f", from {plan.parent}" if plan.parent else ", without a parent"
    say(
        f"{plan.name}: {len(plan.steps)} checkpoints, steps {first:,} to {last:,}{start}; {n_there} registered already",
        err=True,
    )
    if plan.ignored:
        say(f"left alone, for they are not named checkpoint-N: {', '.join(plan.ignored[:10])}", err=True)
