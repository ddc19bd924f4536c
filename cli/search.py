"""`lensreg search`: find versions by what is recorded of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.options import Session, output_option, registry_options
from cli.output import Column, print_ids, print_json, print_rows, say
from cli.versions import plain_rows, summary_row

if TYPE_CHECKING:
    from registry.results import SearchResult


def _list_fields(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    """Print the fields and functions, and end."""
    if not wanted or ctx.resilient_parsing:
        return
    from registry.search.fields import ARCHITECTURE, FUNCTIONS, METRIC, TAG, VERSION_FIELDS

    rows = [
        {"field": field.name, "kind": field.kind, "about": field.about.replace("`", "")}
        for field in (*VERSION_FIELDS.values(), TAG, METRIC, *ARCHITECTURE.values())
    ]
    rows += [{"field": f"{name}(REF)", "kind": "boolean", "about": about} for name, about in FUNCTIONS.items()]
    print_rows(rows, [Column(key, key) for key in ("field", "kind", "about")], "table", "", "field")
    ctx.exit()


@click.command()
@click.argument("expression", default="")
@click.option(
    "--order-by", metavar="FIELDS", default="", help="Fields to order by, `-` before one for descending: -metric.loss."
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="How many at most.")
@click.option("--after", metavar="REF", help="Go on after this version: the next page.")
@click.option("--show", metavar="FIELD", multiple=True, help="Show this field, too; may be repeated.")
@click.option(
    "--fields",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_fields,
    help="List the fields that can be searched by, and exit.",
)
@output_option("table", "json", "csv", "ids")
@registry_options
@click.pass_obj
def search(
    session: Session, expression: str, order_by: str, limit: int | None, after: str | None, show: tuple[str, ...]
) -> None:
    """Find the versions for which EXPRESSION holds; all that are in use without one.

    \b
    lensreg search "family = 'llama' and d_model >= 768 and metric.loss < 3.2" --order-by metric.loss
    lensreg search "descends_from('gpt2-small') and not verified"
    lensreg search "tag.lr in ('1e-4', '3e-4') and created_at > '2026-01-01'"
    lensreg search "model like 'team/%' and (alias = 'best' or note is not null) and size > 1GB"

    There are = != < <= > >=, in, like (% and _; case counts), between, is null, and, or, not, parentheses. Retired
    versions are left out unless the expression says something of `retired`. The language: docs/search.md.
    """
    registry = session.open()
    if session.output == "ids":
        print_ids(registry.search_refs(expression, order_by=order_by, limit=limit, after=after))
        return
    found = registry.search(expression, order_by=order_by, limit=limit, after=after, show=show)
    if session.output == "json":
        rows = list(plain_rows([{**summary_row(one), "values": dict(one.values)} for one in found], session))
        print_json({"rows": rows, "after": found.after, "notes": found.notes})
        return
    _print(session, found)


def _print(session: Session, found: SearchResult) -> None:
    """Print a table or CSV, with a column for each value that was asked for."""
    names = list(found[0].values) if found else []
    rows: list[dict[str, Any]] = [
        {**summary_row(one), **{f"value {name}": value for name, value in one.values.items()}} for one in found
    ]
    columns = [
        Column("version", "ref"),
        Column("step", "step", right=True),
        Column("family", "family"),
        *(Column(name, f"value {name}", right=True) for name in names if name not in ("model", "step", "family")),
        Column("parents", "parents"),
        Column("aliases", "aliases"),
        Column("verified", "verified"),
        Column("size", "size", right=True),
        Column("registered", "created_at"),
        Column("retired", "retired_at"),
    ]
    if session.output == "csv":
        rows = [{key.removeprefix("value "): value for key, value in row.items()} for row in rows]
    print_rows(plain_rows(rows, session), columns, session.output, "Nothing was found.", "ref")
    for note in found.notes:
        say(note, err=True)
    if found.after is not None and session.output == "table":
        say(f"There is more: --after {found.after}", err=True)


@click.command()
@click.argument("statement")
@click.option("--timeout", type=float, default=30, show_default=True, metavar="SECONDS", help="How long it may take.")
@click.option("--limit", type=click.IntRange(min=1), default=10_000, show_default=True, help="How many rows at most.")
@output_option("table", "json", "csv")
@registry_options
@click.pass_obj
def sql(session: Session, statement: str, timeout: float, limit: int) -> None:
    """Run one SELECT in the database's own SQL; it can read and do nothing else.

    \b
    lensreg sql "select ref, parity_raw from version_overview where family = 'gpt2' order by parity_raw"
    lensreg sql "select descendant from lineage_closure where ancestor = 'gpt2-small@v1' and depth <= 2"
    lensreg sql "select action, count(*) from event_log group by action" -o csv

    The views are version_overview, lineage_edge, lineage_closure, validation_result and event_log; their columns are in
    docs/search.md.
    """
    result = session.open().sql(statement, timeout=timeout, limit=limit)
    rows = result.to_dicts()
    columns = [Column(name, name, right=_is_numeric(rows, name)) for name in result.names]
    print_rows(rows, columns, session.output, "The query gave no rows.", "")
    if result.is_cut:
        say(f"There were more than {limit:,} rows: --limit", err=True)


def _is_numeric(rows: list[dict[str, Any]], name: str) -> bool:
    return all(row[name] is None or isinstance(row[name], (int, float)) for row in rows)
