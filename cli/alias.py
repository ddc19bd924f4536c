"""`lensreg alias`: movable names for versions."""

from __future__ import annotations

from datetime import datetime

import click

from cli.options import INSTANT, Session, output_option, ref_argument, registry_options
from cli.output import say


@click.group()
def alias() -> None:
    """Set, remove and list aliases: movable names for versions, as in pirate@best."""


@alias.command("set")
@ref_argument("alias", "alias")
@ref_argument()
@registry_options
@click.pass_obj
def set_(session: Session, alias: str, ref: str) -> None:
    """Make ALIAS (NAME@ALIAS) mean the version that REF means now."""
    span = session.open().set_alias(alias, ref)
    say(f"{span.ref} is {span.version}")


@alias.command()
@ref_argument("alias", "alias")
@registry_options
@click.pass_obj
def remove(session: Session, alias: str) -> None:
    """Take ALIAS (NAME@ALIAS) away; its history stays."""
    span = session.open().remove_alias(alias)
    say(f"removed {span.ref}, which was {span.version}")


@alias.command("list")
@click.argument("name", required=False)
@click.option("--history", is_flag=True, help="All that aliases ever meant.")
@click.option(
    "--at",
    type=INSTANT,
    metavar="TIME",
    help="As it stood then, in UTC: 2026-11-23 or 2026-11-23T18:30.",
)
@output_option("table", "json", "csv", "ids")
@registry_options
@click.pass_obj
def list_(session: Session, name: str | None, history: bool, at: datetime | None) -> None:
    """List aliases: all, those of the model NAME, or the one NAME@ALIAS."""
    from cli.output import Column, print_rows

    rows = [
        {
            "alias": span.ref,
            "model": span.model,
            "ref": span.version,
            "set_at": span.set_at,
            "removed_at": span.removed_at,
        }
        for span in session.open().aliases(name, history=history, at=at)
    ]
    columns = [
        Column("alias", "alias"),
        Column("version", "ref"),
        Column("set", "set_at"),
        Column("until", "removed_at"),
    ]
    print_rows(rows, columns, session.output, "There are no aliases.", "alias")
