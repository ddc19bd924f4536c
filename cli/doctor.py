"""`lensreg doctor`: whether this machine, the database and the store are fit for a registry."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from cli.options import Session, output_option, registry_options
from cli.output import print_json, say

if TYPE_CHECKING:
    from registry.doctor import Finding


@click.command()
@click.option("--read-only", is_flag=True, help="Try nothing out with a file or an object that is deleted again.")
@output_option("table", "json")
@registry_options
@click.pass_context
def doctor(ctx: click.Context, read_only: bool) -> None:
    """Check packages, SQLite or Postgres, file systems or bucket, permissions, clocks, room, schema and leftovers.

    It works when the registry cannot be opened, and changes nothing: what a file system or a bucket can do is tried
    with a file or an object that is deleted again. With each finding that is not ok it says what to do.

    Exit code 0: there is no fault; 3: there is one.
    """
    session: Session = ctx.obj
    findings = _examine(session, read_only)
    worst = [one for one in findings if one.state == "fault"]
    if session.output == "json":
        print_json({"ok": not worst, "rows": [asdict(one) for one in findings]})
    else:
        _print(findings)
    if worst:
        ctx.exit(3)


def _examine(session: Session, read_only: bool) -> list[Finding]:
    from registry.errors import RegistryError

    try:
        return session.open().doctor(read_only=read_only)
    except RegistryError as error:  # no database and no store can be meant by that
        from registry.doctor import Finding, examine_packages

        return [*examine_packages(), Finding("registry", "fault", error.message, error.hint or "")]


def _print(findings: list[Finding]) -> None:
    wide = max(len(one.check) for one in findings)
    for one in findings:
        say(f"{one.state:<7}  {one.check:<{wide}}  {one.found}")
        if one.to_do and one.state != "ok":
            say(f"{'':<{wide + 11}}{one.to_do}")
    counted = {state: sum(one.state == state for one in findings) for state in ("fault", "warning", "note")}
    told = ", ".join(f"{n} {state}{'s' * (n != 1)}" for state, n in counted.items() if n)
    say(f"\n{told or 'nothing to remark'}", err=True)
