"""`lensreg push`, `pull`, `export` and `import`: move versions, with where they came from, between registries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import F, Session, output_option, parity_option, registry_options

if TYPE_CHECKING:
    from registry.registry import Registry
    from registry.transfer.receive import Transfer


def _refs_argument(function: F) -> F:
    return click.argument("refs", metavar="REF...", nargs=-1, required=True)(function)


def _receiving_options(function: F) -> F:
    """Add what says how versions are received."""
    for decorate in (
        click.option("--dry-run", is_flag=True, help="Only show what would be done."),
        parity_option,
        click.option("--verify", is_flag=True, help="Measure parity again where they arrive; by default it is kept."),
        click.option("--aliases", is_flag=True, help="Set the aliases, too, unless one means something else there."),
        click.option("--as", "name", metavar="NAME", help="What the one model that is named is called there."),
    ):
        function = decorate(function)
    return function


def _other_options(direction: str) -> Callable[[F], F]:
    """Add --to and --to-store, or --from and --from-store."""

    def add(function: F) -> F:
        whose = "the other registry"
        function = click.option(
            f"--{direction}-store",
            "other_store",
            metavar="WHERE",
            help=f"Blobs of {whose}; by default the folder store beside a SQLite file.",
        )(function)
        return click.option(
            f"--{direction}", "other_url", metavar="WHERE", required=True, help=f"Database of {whose}."
        )(function)

    return add


_alone = click.option(
    "--alone", is_flag=True, help="Without ancestors; refused unless every parent is there, as lineage would be lost."
)


@click.command()
@_refs_argument
@_other_options("to")
@_alone
@_receiving_options
@output_option("table", "json", "ids")
@registry_options
@click.pass_obj
def push(session: Session, /, refs: tuple[str, ...], other_url: str, other_store: str | None, **terms: Any) -> None:
    """Send the versions that the REFs mean to another registry, with all that they came from.

    Files, lineage, tags, measurements and events go with them. What is there already is not sent again, so that it can
    be interrupted and repeated. A version keeps its number if that is the next one there; otherwise it gets the next,
    and what each is called there is printed.
    """
    from cli.progress import show_progress

    with show_progress() as progress:
        other = _open_other(other_url, other_store, "to")
        try:
            done = session.open().push(*refs, to=other, progress=progress, **terms)
        finally:
            other.close()
    _print(done, session.output)


@click.command()
@_refs_argument
@_other_options("from")
@_alone
@_receiving_options
@output_option("table", "json", "ids")
@registry_options
@click.pass_obj
def pull(session: Session, /, refs: tuple[str, ...], other_url: str, other_store: str | None, **terms: Any) -> None:
    """Fetch the versions that the REFs mean in another registry, with all that they came from; the opposite of push."""
    from cli.progress import show_progress

    with show_progress() as progress:
        other = _open_other(other_url, other_store, "from")
        try:
            done = session.open().pull(*refs, source=other, progress=progress, **terms)
        finally:
            other.close()
    _print(done, session.output)


@click.command()
@click.argument("refs", metavar="REF...", nargs=-1, required=True)
@click.argument("target", metavar="TARGET")
@_alone
@output_option("table", "json")
@registry_options
@click.pass_obj
def export(session: Session, refs: tuple[str, ...], target: str, alone: bool) -> None:
    """Write the versions that the REFs mean, with all that they came from, into TARGET.

    TARGET is a folder, or one tar if it ends in .tar, or - for a tar on standard output. A folder that was not finished
    is gone on with. The digest that is printed stands for everything in it: lensreg import --expect compares it.
    """
    from cli.output import print_json, say
    from cli.progress import show_progress

    with show_progress() as progress:
        manifest = session.open().export_versions(*refs, target=target, alone=alone, progress=progress)
    to_stdout = target == "-"
    if session.output == "json" and not to_stdout:
        print_json(
            {
                "target": target,
                "digest": manifest.digest,
                "registry": manifest.registry_id,
                "n_blobs": len(manifest.blobs),
                "size_bytes": sum(manifest.blobs.values()),
                "rows": [{"ref": entry.ref, "operation_id": entry.operation_id} for entry in manifest.entries],
            }
        )
        return
    say(f"{len(manifest.entries):,} versions, {len(manifest.blobs):,} blobs", err=True)
    say(f"sha256:{manifest.digest}", err=to_stdout)


@click.command("import")
@click.argument("source", metavar="SOURCE")
@click.option("--expect", metavar="DIGEST", help="What lensreg export printed; anything else is refused.")
@_receiving_options
@output_option("table", "json", "ids")
@registry_options
@click.pass_obj
def import_(session: Session, /, source: str, **terms: Any) -> None:
    """Receive what lensreg export wrote to the folder or the tar SOURCE, or - for a tar on standard input.

    Everything is checked against its digest, architecture and weights are told anew from the files, and what was
    altered is refused. Figures that were measured elsewhere are kept and say so, unless --verify measures them again.
    """
    from cli.progress import show_progress

    with show_progress() as progress:
        done = session.open().import_versions(source, progress=progress, **terms)
    _print(done, session.output)


def _open_other(url: str, store: str | None, direction: str) -> Registry:
    """Open the other registry; its store is never guessed from this user's environment."""
    from registry.registry import Registry

    if store is None and "://" in url:
        raise click.UsageError(f"Say where its blobs are: --{direction}-store WHERE")
    return Registry(url, store or Path(url).expanduser().absolute().parent / "store")


def _print(done: Transfer, output: str) -> None:
    from cli.output import Column, format_size, print_json, print_rows, say

    rows = [asdict(one) for one in done.moves]
    if output == "json":
        aliases = [{"alias": alias, "ref": ref} for alias, ref in done.aliases]
        print_json({**asdict(done), "unchanged": done.unchanged, "moves": rows, "aliases": aliases})
        return
    columns = [Column("sent as", "sent_as"), Column("arrives as", "ref"), Column("", "outcome")]
    print_rows(rows, columns, output, "", "ref")
    would = "would be " if done.dry_run else ""
    n_renamed = sum(one.sent_as != one.ref for one in done.moves)
    say(
        f"{len(done.received):,} of {len(done.moves):,} versions {would}received, {done.n_sent:,} of {done.n_blobs:,} "
        f"blobs {would}sent ({format_size(done.sent_bytes)})"
        + (f"; {n_renamed:,} have another name where they arrive" if n_renamed else "")
        + ("; nothing has changed" if done.unchanged and not done.dry_run else ""),
        err=True,
    )
