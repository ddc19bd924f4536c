"""`lensreg gate` and `leaderboard`: what versions have to meet, and which are best."""

from __future__ import annotations

from typing import Any

import click

from cli.options import Session, output_option, ref_argument, registry_options


@click.command()
@ref_argument()
@click.option("--require", multiple=True, metavar="'METRIC < N'", help="A threshold, with <, <=, > or >=.")
@click.option("--set", "is_set", is_flag=True, help="Make the alias REF refuse versions that do not meet them.")
@click.option("--fresh", is_flag=True, help="What is stale does not meet anything.")
@click.option("--off", is_flag=True, help="Take the gate of the alias REF away.")
@output_option("table", "json", "csv")
@registry_options
@click.pass_context
def gate(ctx: click.Context, ref: str, require: tuple[str, ...], is_set: bool, fresh: bool, off: bool) -> None:
    """Say whether a version meets thresholds, by what was measured of it last; nothing is measured here.

    What is stale counts as it was measured, and is named stale; with --fresh it does not count.

    With --set, NAME@ALIAS can from now on only be set to versions that meet them. Without thresholds, REF is an alias,
    and those of its gate are meant. Exit code 3: it does not meet them, or was not measured.
    """
    from cli.output import Column, print_rows, say

    session: Session = ctx.obj
    registry = session.open()
    if is_set or off:
        if bool(require) == off or (is_set and off):
            raise click.UsageError("Give --set with --require, or --off alone.")
        texts = registry.set_gate(ref, require)
        say(f"{ref} requires {' and '.join(texts)}" if texts else f"{ref} requires nothing")
        return
    found = registry.check_requirements(ref, require, fresh=fresh)
    rows: list[dict[str, Any]] = [vars(one) for one in found]
    columns = [Column("required", "threshold"), Column("met", "met"), Column("found", "reason")]
    print_rows(rows, columns, session.output, f"{ref} requires nothing: name thresholds with --require", "threshold")
    if not all(one.met for one in found):
        ctx.exit(3)


@click.command()
@click.argument("what", metavar="NAME|EXPRESSION")
@click.option("--by", required=True, metavar="METRIC", help="Such as loss, or suite.metric.")
@click.option("--limit", type=click.IntRange(min=1), help="Show so many.")
@output_option("table", "json", "csv", "ids")
@registry_options
@click.pass_obj
def leaderboard(session: Session, what: str, by: str, limit: int | None) -> None:
    """Rank the versions of a model, or those that a search finds, by a metric; the best first.

    Ranked are those that were measured on the same data with the same parameters, as most were; the others are named.
    """
    from cli.measured import format_interval
    from cli.output import Column, print_json, print_rows, say

    found = session.open().leaderboard(what, by, limit=limit)
    rows: list[dict[str, Any]] = [vars(one) for one in found.ranks]
    if session.output == "json":
        print_json({**vars(found), "ranks": rows, "elsewhere": [vars(one) for one in found.elsewhere]})
        return
    if session.output != "table":
        print_rows(rows, [Column(key, key) for key in rows[0]], session.output, "", "ref")
        return
    for row in rows:
        row["interval"] = format_interval(row["low"], row["high"])
        row["value"] = f"{row['value']:.6g}"
    columns = [Column("", "rank", True), Column("version", "ref"), Column(found.metric, "value", True)]
    columns += [Column("95 %", "interval"), Column("n", "n_samples", True), Column("step", "step", True)]
    columns += [Column("stale", "stale")]
    print_rows(rows, columns, "table", "", "ref")
    unit = f" {found.unit}," if found.unit else ""
    data = f" on data sha256:{found.dataset_digest[:12]}" if found.dataset_digest else ""
    say(f"{found.metric},{unit} {found.direction} is better,{data}".rstrip(","), err=True)
    if found.elsewhere:
        more = f" and {len(found.elsewhere) - 10:,} more" if len(found.elsewhere) > 10 else ""
        listed = ", ".join(one.ref for one in found.elsewhere[:10])
        say(f"measured on other data or with other parameters: {listed}{more}", err=True)
    if found.unmeasured:
        n = len(found.unmeasured)
        say(f"not measured: {n:,} version{'' if n == 1 else 's'}", err=True)
    n_stale = sum(one.stale is not None for one in found.ranks)
    if n_stale:
        say(f"stale: {n_stale:,} of {len(found.ranks):,}; lensreg validate --stale measures them again", err=True)
