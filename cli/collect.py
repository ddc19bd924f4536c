"""`lensreg gc`: delete what no version needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.options import Session, output_option, registry_options

if TYPE_CHECKING:
    from registry.collect import CollectionPlan

_WHY = {
    "temporary": "a crash left it",
    "quarantined": "was corrupt; healed since, or nobody needs it",
    "folder": "links to blobs that are gone",
    "derived": "was never finished",
    "upload": "was never finished",
}


@click.command("gc")
@click.option("--grace", default="1d", show_default=True, metavar="TIME", help="Leave alone what is younger: 1h, 2d.")
@click.option("--adopt", is_flag=True, help="Say that this registry is complete, and that all blobs there are its own.")
@click.option("--yes", is_flag=True, help="Carry out the plan without asking.")
@click.option("--dry-run", is_flag=True, help="Only show the plan.")
@output_option("table", "json")
@registry_options
@click.pass_obj
def collect(session: Session, grace: str, adopt: bool, yes: bool, dry_run: bool) -> None:
    """Delete what no version needs, not even a retired one; the plan is shown first.

    That is blobs of registrations that did not get to their end, what crashes left, and quarantined files that were
    healed since. Others may register meanwhile. It refuses when anything is inconsistent, and when the store may be
    another registry's. It works on a full disk. In a pipe it needs --yes.
    """
    from cli.output import format_size, print_json, say
    from cli.progress import show_progress
    from registry.settings import parse_duration

    registry = session.open()
    plan = registry.plan_gc(grace=parse_duration(grace), adopt=adopt)
    rows = _list_rows(plan)
    if session.output == "table":
        _print_plan(plan, rows, grace)
    delete = bool(rows or plan.adopt) and not dry_run
    if rows and delete and not yes:
        click.confirm(f"Delete these {len(rows):,}, {format_size(plan.size_bytes)}?", abort=True, err=True)
    done = None
    if delete:
        with show_progress() as progress:
            done = registry.gc(plan, progress=progress)
    if session.output == "json":
        carried_out = done and {name: value for name, value in vars(done).items() if name != "fault"}
        facts = {"size_bytes": plan.size_bytes, "n_young": plan.n_young, "n_needed_in_quarantine": plan.n_needed}
        print_json({**facts, "carried_out": carried_out, "rows": rows})
    elif done:
        said = f"{done.n_blobs:,} blobs and {done.n_leftovers:,} leftovers deleted: {format_size(done.size_bytes)}"
        if done.n_skipped:
            said += f"; {done.n_skipped:,} left alone: in use by now, or another user's"
        say(said, err=True)


def _list_rows(plan: CollectionPlan) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "what": "blob",
            "name": one.digest,
            "size_bytes": one.size_bytes,
            "modified_at": one.modified_at,
            "why": "no version names it",
        }
        for one in plan.blobs
    ]
    return rows + [
        {
            "what": one.kind,
            "name": one.place,
            "size_bytes": one.size_bytes,
            "modified_at": one.modified_at,
            "why": _WHY[one.kind],
        }
        for one in plan.leftovers
    ]


def _print_plan(plan: CollectionPlan, rows: list[dict[str, Any]], grace: str) -> None:
    from cli.output import Column, format_size, print_rows, say

    shown = [
        row
        | {"name": row["name"][:12] if row["what"] == "blob" else row["name"], "size": format_size(row["size_bytes"])}
        for row in rows
    ]
    columns = [
        Column("what", "what"),
        Column("name", "name"),
        Column("size", "size", right=True),
        Column("last written", "modified_at"),
        Column("why", "why"),
    ]
    print_rows(shown, columns, "table", "There is nothing to delete.", "name")
    if plan.n_young:
        say(f"{plan.n_young:,} more are younger than {grace}, and stay", err=True)
    if plan.n_needed:
        say(f"{plan.n_needed:,} quarantined files stay: versions need them. See: lensreg verify", err=True)
