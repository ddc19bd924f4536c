"""`lensreg retain` and `lensreg protect`: thin out the steps of a run, and keep models from being thinned out."""

from __future__ import annotations

import click

from cli.options import Session, output_option, ref_argument, registry_options
from cli.output import say


@click.command()
@ref_argument("name")
@click.option("--keep-last", type=click.IntRange(1), metavar="N", help="Keep the N last steps.")
@click.option("--keep-every", type=click.IntRange(1), metavar="N", help="Keep the steps that are multiples of N.")
@click.option("--keep-best", type=click.IntRange(1), metavar="N", help="Keep the N best by the metric --by.")
@click.option("--by", metavar="METRIC", help="loss or suite.loss: the lowest are best; -accuracy: the highest.")
@click.option("--yes", is_flag=True, help="Carry out the plan without asking.")
@click.option("--dry-run", is_flag=True, help="Only show the plan.")
@output_option("table", "json")
@registry_options
@click.pass_obj
def retain(
    session: Session,
    name: str,
    keep_last: int | None,
    keep_every: int | None,
    keep_best: int | None,
    by: str | None,
    yes: bool,
    dry_run: bool,
) -> None:
    """Retire the steps of the model NAME that no rule keeps; the plan is shown first, and nothing is deleted.

    Kept in any case are versions that an alias names, that have no step, or that another model was made from; protected
    models are left alone (lensreg protect). In a pipe it needs --yes.
    """
    from cli.output import Column, print_json, print_rows

    registry = session.open()
    plan = registry.plan_retention(name, keep_last=keep_last, keep_every=keep_every, keep_best=keep_best, by=by)
    rows = [{"ref": ref, "plan": "keep", "why": ", ".join(why)} for ref, why in plan.kept.items()]
    rows += [{"ref": ref, "plan": "retire", "why": ""} for ref in plan.retired]
    rows.sort(key=lambda row: int(row["ref"].rpartition("@v")[2]))
    if session.output == "table":
        columns = [Column("version", "ref"), Column("plan", "plan"), Column("why", "why")]
        print_rows(rows, columns, session.output, "", "ref")
    retire = bool(plan.retired) and not dry_run
    if retire and not yes:
        click.confirm(f"Retire {len(plan.retired)} of {len(rows)} versions?", abort=True, err=True)
    if retire:
        registry.retain(plan)
    if session.output == "json":
        print_json({"model": plan.model, "carried_out": retire, "rows": rows})
    else:
        done = "retired" if retire else "would be retired"
        say(f"{len(plan.retired)} {done}, {len(plan.kept)} kept", err=True)


@click.command()
@ref_argument("name")
@click.option("--off", is_flag=True, help="Protect it no longer.")
@registry_options
@click.pass_obj
def protect(session: Session, name: str, off: bool) -> None:
    """Protect the model NAME: none of its versions can be retired, not even with --force."""
    session.open().protect(name, protect=not off)
    say(f"{name} is {'no longer ' if off else ''}protected")
