"""`lensreg backup`: the database as it is now, and with it the store."""

from __future__ import annotations

import click

from cli.options import Session, output_option, registry_options


@click.command()
@click.argument("target", type=click.Path(), metavar="FILE|FOLDER")
@click.option("--with-store", is_flag=True, help="Copy the blobs of all versions, too, into FOLDER/store.")
@output_option("table", "json")
@registry_options
@click.pass_obj
def backup(session: Session, target: str, with_store: bool) -> None:
    """Back up a SQLite database to FILE, or under a name with the time into FOLDER, while others go on writing.

    With --with-store FOLDER is a whole registry afterwards: blobs that are there already are not copied again, so it
    can be repeated, and goes on where it was interrupted. Nothing is overwritten. Restore it by using the file with
    --registry (and --store), or by copying it to where the registry was, while nobody uses that.
    """
    from cli.output import format_size, print_exactly, print_json, say
    from cli.progress import show_progress

    with show_progress() as progress:
        done = session.open().backup(target, with_store=with_store, progress=progress)
    if session.output == "json":
        facts = {"path": str(done.path), "store": done.store and str(done.store)}
        print_json({**vars(done), **facts})
        return
    print_exactly(str(done.path))
    said = f"{format_size(done.size_bytes)}, {done.n_events:,} events up to sha256:{done.head}"
    if done.store is not None:
        said += f"; {done.n_blobs:,} blobs copied to {done.store} ({format_size(done.blob_bytes)})"
    say(said, err=True)
