"""`lensreg suite`: whether the checkpoints of a suite are what their names say."""

from __future__ import annotations

from dataclasses import asdict

import click

from cli.options import Session, output_option, registry_options
from cli.output import say


@click.group()
def suite() -> None:
    """Look at suites: many checkpoints of one run."""


@suite.command()
@click.argument("name", metavar="NAME|FOLDER|ORG/NAME")
@output_option("table", "json", "csv")
@registry_options
@click.pass_context
def audit(ctx: click.Context, name: str) -> None:
    """Compare the weights of all steps by their digests; exit code 3 if something is wrong.

    NAME is a registered model, a FOLDER of checkpoint-N, or a model on the Hub with a branch or tag for each step. From
    the Hub nothing is fetched but lists of files. Found are: steps that hold the same weights, files that steps share,
    steps that are missing, and a final checkpoint (main, the folder itself, the bare NAME) that is not the last step.
    """
    from cli.output import Column, print_json, print_rows
    from cli.progress import show_progress

    session: Session = ctx.obj
    with show_progress() as progress:
        done = session.open().audit_suite(name, progress=progress)
    if session.output == "json":
        rows = [asdict(one) for one in done.steps]
        final = asdict(done.final) if done.final else None
        findings = [asdict(one) for one in done.findings]
        print_json({"ok": not findings, "suite": done.suite, "steps": rows, "final": final, "findings": findings})
    elif session.output == "csv":
        rows = [{"finding": one.code, "steps": list(one.steps), "message": one.message} for one in done.findings]
        columns = [Column(name, name) for name in ("finding", "steps", "message")]
        print_rows(rows, columns, session.output, "", "finding")
    else:
        first, last = (f"{done.steps[end].step:,}" for end in (0, -1))
        whole = f"{done.suite}: {len(done.steps)} steps, {first} to {last}"
        say(whole if done.findings else f"{whole}; every one holds weights of its own")
        for one in done.findings:
            say(f"  {one.code}: {one.message}")
    if done.findings:
        ctx.exit(3)
