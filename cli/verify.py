"""`lensreg verify`: whether what was registered is still there, and whole."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from cli.options import Session, output_option, registry_options
from cli.output import say

if TYPE_CHECKING:
    from registry.verify_store import Verification

_PART = re.compile(r"(\d{1,9})/(\d{1,9})")
_EVERYTHING = "1/1"


@click.command()
@click.argument("refs", metavar="[REF]...", nargs=-1)
@click.option(
    "--read-data",
    metavar="[=N/T]",
    is_flag=False,
    flag_value=_EVERYTHING,
    help="Hash every byte, too; with =N/T only those of the N-th of T parts, so that T runs read everything.",
)
@click.option(
    "--key",
    type=click.Path(exists=True, dir_okay=False),
    help="Public key (PEM): the REFs must be signed with its private half, as attest --sign does.",
)
@click.option("--quarantine", is_flag=True, help="Move corrupt files aside, into the store's quarantine.")
@output_option("table", "json", "csv", "ids")
@registry_options
@click.pass_context
def verify(ctx: click.Context, refs: tuple[str, ...], read_data: str | None, key: str | None, quarantine: bool) -> None:
    """Check that what was registered is still there: all versions, or those that the REFs mean.

    Every file must be in the store in its size, the chain of events unbroken, and the database what the events say.
    Weights that `add --lazy` left on the Hub are no fault. Nothing is written, unless --quarantine asks for it; what it
    moves aside is never deleted while a version needs it, and registering the same source again heals the version.

    Exit code 0: all is well; 3: something is not, and is printed with the versions that need it and what to do;
    1: it could not be checked.
    """
    from cli.progress import show_progress

    session: Session = ctx.obj
    if read_data is not None and not _PART.fullmatch(read_data):
        refs, read_data = (read_data, *refs), _EVERYTHING  # `--read-data REF`
    with show_progress() as progress:
        done = session.open().verify(*refs, read_data=_read_part(read_data), key=key, progress=progress)
    _print(done, session.output)
    for one in session.open().quarantine(done) if quarantine else ():
        say(f"moved aside: {one.place}", err=True)
    if not done.ok:
        ctx.exit(3)


def _read_part(read_data: str | None) -> bool | tuple[int, int]:
    if read_data is None:
        return False
    n, t = map(int, read_data.split("/"))
    return n, t


def _print(done: Verification, output: str) -> None:
    from cli.output import Column, format_size, print_json, print_rows

    rows: list[dict[str, Any]] = [asdict(fault) for fault in done.faults]
    if output == "json":
        part = done.part and {"n": done.part[0], "t": done.part[1]}
        print_json({"ok": done.ok, **asdict(done), "part": part, "faults": rows})
        return
    columns = [Column("fault", "code"), Column("of", "subject"), Column("needed by", "versions")]
    if output != "table":
        print_rows(rows, [*columns, Column("what", "message"), Column("what to do", "hint")], output, "", "subject")
    elif rows:
        for row in rows:
            row["subject"] = row["subject"][:16]
        print_rows(rows, columns, output, "", "subject")
    read = f", {done.n_read:,} of them read ({format_size(done.read_bytes)})" if done.n_read or done.part else ""
    what = (
        f"{_count(done.n_versions, 'version')}, {_count(done.n_blobs, 'blob')}{read}, {_count(done.n_events, 'event')}"
    )
    if done.ok:
        say(f"{what}: nothing is wrong", err=output != "table")
        return
    say(f"{what}: {_count(done.n_faults, 'fault')}", err=True)
    for line in dict.fromkeys(f"{fault.message} {fault.hint}" for fault in done.faults[:10]):
        say(line, err=True)


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
