"""`lensreg db`: the database's schema."""

from __future__ import annotations

import click

from cli.options import Session, output_option, registry_options
from cli.output import say


@click.group()
def db() -> None:
    """See and upgrade the database's schema."""


@db.command()
@registry_options
@click.pass_obj
def upgrade(session: Session) -> None:
    """Bring the schema to this lens-registry's version. Back the database up first."""
    before, after = session.open().upgrade()
    say(f"schema {after}" + (", as before" if before == after else f", from {before or 'nothing'}"))


@db.command()
@output_option("table", "json")
@registry_options
@click.pass_obj
def status(session: Session) -> None:
    """Show where the database and the store are, and which schema it has."""
    from cli.output import print_card, print_json

    facts = session.open().status()
    if session.output == "json":
        print_json(facts)
    else:
        print_card("registry", {name.replace("_", " "): str(value) for name, value in facts.items()})
