"""`lensreg db`: the database's schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli.options import Session, output_option, registry_options
from cli.output import say

if TYPE_CHECKING:
    from registry.grants import Role


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


@db.command()
@click.argument("name")
@click.option("--role", type=click.Choice(["read", "register", "admin"]), required=True, help="What NAME may do.")
@click.option("--schema", default="public", show_default=True, help="The schema that holds the registry's tables.")
def grants(name: str, role: Role, schema: str) -> None:
    """Print the SQL that gives the Postgres role NAME its rights; nothing is run.

    Its administrator runs it, and again after `lensreg db upgrade`: lensreg db grants --role read ann | psql …
    """
    from registry.grants import write_grants

    say(write_grants(role, name, schema), nl=False)
