"""`lensreg audit`: the trail of who did what to what, and whether it is whole."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from cli.options import INSTANT, Session, output_option, registry_options
from cli.output import say

if TYPE_CHECKING:
    from registry.audit import Event


@click.group()
def audit() -> None:
    """Read the audit trail, and check that it is whole."""


@audit.command()
@click.argument("subject", required=False)
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="How many, newest first.")
@click.option("--before", type=click.IntRange(1), metavar="N", help="Go on before the event with this number.")
@click.option("--action", metavar="WORD", help="Only these: version.registered, alias.set, …")
@click.option("--actor", metavar="USER[@HOST]", help="Only what this user did.")
@click.option("--since", metavar="WHEN", type=INSTANT, help="Not before this, in UTC: 2026-01-31 or 2026-01-31T18:30.")
@click.option("--until", metavar="WHEN", type=INSTANT, help="Only what came before this, in UTC.")
@output_option("table", "json", "csv", "ids")
@registry_options
@click.pass_obj
def log(session: Session, /, subject: str | None, limit: int, before: int | None, **filters: Any) -> None:
    """List events, newest first: all, those of the model NAME, or those of the version NAME@vN."""
    from cli.output import Column, print_rows
    from cli.pages import read_pages

    registry = session.open()
    shown = read_pages(
        lambda n, last: registry.events(subject, n, before=last or before, **filters),
        lambda event: event.sequence,
        limit,
    )

    def make_row(event: Event) -> dict[str, Any]:
        row = asdict(event)
        if session.output != "json":
            row["details"] = json.dumps(row["details"], sort_keys=True)
            row.pop("environment")
        if session.output == "table":
            row["at"] = event.at[:19].replace("T", " ")  # to the second, in UTC
        return row

    columns = [
        Column("#", "sequence", right=True),
        Column("when", "at"),
        Column("who", "actor"),
        Column("what", "action"),
        Column("on", "subject"),
    ]
    print_rows(map(make_row, shown), columns, session.output, "There are no events.", "digest")


@audit.command()
@output_option("table", "json")
@registry_options
@click.pass_obj
def head(session: Session) -> None:
    """Print the digest that stands for the whole trail as it is now.

    Keep it where nobody who can write to the database can change it (a commit, a mail, a printed page), and give it to
    audit verify --since later.
    """
    from cli.output import print_json

    newest = session.open().events_head()
    if session.output == "json":
        print_json({"n_events": newest.n_events, "head": newest.digest})
    else:
        say(f"sha256:{newest.digest}")


@audit.command()
@click.option("--since", metavar="DIGEST", help="What audit head printed once: the trail must still hold that event.")
@output_option("table", "json")
@registry_options
@click.pass_context
def verify(ctx: click.Context, since: str | None) -> None:
    """Check the chain of events; exit code 3 and the first fault if it does not hold.

    The chain shows events that were altered, removed, inserted or moved. Who can write to the database could still cut
    off the newest events, or write the whole chain anew; that shows only against a digest kept elsewhere (--since).
    """
    from cli.output import print_json

    session: Session = ctx.obj
    registry = session.open()
    fault = registry.verify_events(since=since)
    newest = None if fault else registry.events_head()  # of a damaged trail nobody can say where it ends
    if session.output == "json":
        print_json(
            {
                "ok": fault is None,
                "n_events": newest and newest.n_events,
                "head": newest and newest.digest,
                "fault": fault and fault.message,
            }
        )
    elif newest:
        kept = "" if since is None else ", and it holds the event that was the newest then"
        say(f"{newest.n_events} events, unbroken{kept}; the newest is sha256:{newest.digest}")
    elif fault:
        say(f"the audit trail does not hold: {fault.message}", err=True)
    if fault:
        ctx.exit(3)
