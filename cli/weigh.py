"""`lensreg weigh`: whether checkpoints come from their parents, where nobody could look when they were registered."""

from __future__ import annotations

from dataclasses import asdict

import click

from cli.options import Session, output_option, registry_options


@click.command()
@click.argument("refs", metavar="[REF]...", nargs=-1)
@output_option("table", "json", "csv")
@registry_options
@click.pass_context
def weigh(ctx: click.Context, refs: tuple[str, ...]) -> None:
    """Compare versions with their parents, by their weights, where that was not done when they were registered.

    That is so where bytes were not here or could not be converted, and for versions of older releases. Without REF all
    versions in use are looked at. What is found is kept with the edge; parents never change, so nothing is refused.

    Exit code 3: a version does not come from its parent.
    """
    from cli.output import Column, print_json, print_rows
    from cli.progress import show_progress
    from cli.versions import show_evidence

    session: Session = ctx.obj
    with show_progress() as progress:
        found = session.open().weigh(*refs, progress=progress)
    if session.output == "json":
        print_json({"rows": [asdict(one) for one in found]})
    else:
        rows = [
            {"ref": one.child, "parent": one.parent, "relation": one.relation, "weights": show_evidence(one.evidence)}
            for one in found
        ]
        columns = [Column("version", "ref"), *(Column(name, name) for name in ("parent", "relation", "weights"))]
        print_rows(rows, columns, session.output, "Every edge was weighed already.", "ref")
    if any(one.is_wrong for one in found):
        ctx.exit(3)
