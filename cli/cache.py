"""`lensreg cache`: the derived files that loading leaves in the store."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from cli.options import Session, output_option, registry_options
from cli.output import say

if TYPE_CHECKING:
    from registry.store.derived import DerivedFile


@click.group()
def cache() -> None:
    """List and remove derived files: converted weights, which loading makes once and maps from then on.

    They may be removed at any time; the next load makes again what it needs. They take $LENSREG_CACHE_BYTES at most,
    by default 50 GB or half of what the disk has left, and those that were unused for longest go first.
    """


@cache.command("ls")
@output_option("table", "json", "csv", "ids")
@registry_options
@click.pass_obj
def ls(session: Session) -> None:
    """List the derived files, the one used last first."""
    _print_files(session.open().cached(), session.output, "There are no derived files.")


@cache.command()
@click.option("--max-bytes", metavar="SIZE", help="What the rest may take, such as 20GB, instead of the usual bound.")
@click.option("--yes", is_flag=True, help="Remove them without asking.")
@output_option("table", "json", "csv", "ids")
@registry_options
@click.pass_obj
def prune(session: Session, max_bytes: str | None, yes: bool) -> None:
    """Remove derived files that no load uses any more, and the longest unused above the bound.

    Not used any more is what other releases of lens-registry, torch, transformers or transformer-lens made.
    """
    from registry.settings import parse_bytes

    plan = session.open().plan_cache_pruning(parse_bytes(max_bytes) if max_bytes is not None else None)
    _remove(session, plan, yes)


@cache.command()
@click.option("--yes", is_flag=True, help="Remove them without asking.")
@output_option("table", "json", "csv", "ids")
@registry_options
@click.pass_obj
def clear(session: Session, yes: bool) -> None:
    """Remove all derived files."""
    _remove(session, session.open().cached(), yes)


def _remove(session: Session, plan: Sequence[DerivedFile], yes: bool) -> None:
    """Show what would go, and remove it if that is wanted; where nobody can be asked, --yes says so."""
    from cli.output import format_size

    _print_files(plan, session.output, "There is nothing to remove.")
    if not plan:
        return
    what = f"{len(plan)} derived file{'s' if len(plan) > 1 else ''}"
    if not yes and not sys.stdin.isatty():
        say(f"nothing was removed; --yes removes {what}", err=True)
    elif yes or click.confirm(f"Remove {what}?", err=True):
        say(f"removed {what}: {format_size(session.open().remove_cached(plan))}", err=True)


def _print_files(files: Sequence[DerivedFile], output: str, empty: str) -> None:
    from cli.output import Column, format_size, print_rows

    rows: list[dict[str, Any]] = [
        {
            "key": one.key,
            "ref": one.ref,
            "processing": one.processing,
            "dtype": one.dtype,
            "size_bytes": one.size_bytes,
            "made_at": one.made_at,
            "used_at": one.used_at,
            "converter": one.converter,
            "path": str(one.path),
        }
        for one in files
    ]
    if output == "table":
        for row in rows:
            row |= {
                "size": format_size(row["size_bytes"]),
                "short_key": row["key"][:12],
                "done": ", ".join(row["processing"]) or "raw",
            }
    columns = [
        Column("key", "short_key" if output == "table" else "key"),
        Column("first made for", "ref"),
        Column("processing", "done" if output == "table" else "processing"),
        Column("dtype", "dtype"),
        Column("size", "size" if output == "table" else "size_bytes", right=True),
        Column("made", "made_at"),
        Column("last used", "used_at"),
    ]
    print_rows(rows, columns, output, empty, "key")
