"""`lensreg audit`: the trail of who did what to what, and whether it is whole."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from cli.options import Session, output_option, registry_options


@click.group()
def audit() -> None:
    """Read the audit trail, and check that it is whole."""


@audit.command()
@click.argument("subject", required=False)
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="How many, newest first.")
@output_option("table", "json", "csv", "ids")
@registry_options
@click.pass_obj
def log(session: Session, subject: str | None, limit: int) -> None:
    """List events, newest first: all, those of the model NAME, or those of the version NAME@vN."""
    from cli.output import Column, print_rows

    rows = []
    for event in session.open().events(subject, limit):
        row = asdict(event)
        if session.output != "json":
            row["details"] = json.dumps(row["details"], sort_keys=True)
            row.pop("environment")
        rows.append(row)
    columns = [
        Column("#", "sequence", right=True),
        Column("when", "at"),
        Column("who", "actor"),
        Column("what", "action"),
        Column("on", "subject"),
    ]
    print_rows(rows, columns, session.output, "There are no events.", "digest")


@audit.command()
@output_option("table", "json")
@registry_options
@click.pass_context
def verify(ctx: click.Context) -> None:
    """Check the chain of events; exit code 3 and the first fault if it does not hold."""
    from cli.output import print_json

    session: Session = ctx.obj
    registry = session.open()
    fault = registry.verify_events()
    newest = [] if fault else registry.events(limit=1)  # a damaged row cannot be read
    n_events = newest[0].sequence if newest else None if fault else 0
    head = newest[0].digest if newest else None
    if session.output == "json":
        print_json({"ok": fault is None, "n_events": n_events, "head": head, "fault": fault and fault.message})
    elif fault is None:
        click.echo(f"{n_events} events, unbroken" + (f"; the newest is sha256:{head}" if head else ""))
    else:
        click.echo(f"the audit trail does not hold: {fault.message}", err=True)
    if fault:
        ctx.exit(3)
