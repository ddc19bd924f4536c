"""Print results: a table for people, JSON and CSV for programs, ids for pipes. stdout is data, stderr the rest.

JSON carries `schema_version`; its keys are a contract (tests/test_cli_json.py). Only tables shorten.
"""

from __future__ import annotations

import csv
import functools
import json
import math
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import click

from cli.table import Column as Column
from cli.table import lay_out
from registry.plain_text import clean, clean_line

if TYPE_CHECKING:
    from rich.console import Console

    from registry.errors import RegistryError

SCHEMA_VERSION = 1
PIPE_WIDTH = 200
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # spreadsheets in East Asia take the wide ones, too


def print_rows(rows: Iterable[Mapping[str, Any]], columns: Sequence[Column], output: str, empty: str, key: str) -> None:
    """Print rows in the chosen format; `key` is what `ids` prints, `empty` what people read if there are none.

    All formats but the table print each row as it comes.
    """
    rows = iter(rows)
    first = list(islice(rows, 1))  # read before anything is printed, as it may be refused
    rows = chain(first, rows)
    if output == "json":
        sys.stdout.writelines(_encode_rows(rows))
    elif output == "ids":
        print_ids(str(row[key]) for row in rows)
    elif output == "csv":
        writer = csv.writer(sys.stdout)
        keys = list(first[0]) if first else [column.key for column in columns]
        writer.writerow(map(_csv_cell, keys))
        writer.writerows([_csv_cell(row[key]) for key in keys] for row in rows)
    elif first:
        _print_table(list(rows), columns)
    else:
        click.echo(empty, err=True)


def print_ids(ids: Iterable[str]) -> None:
    """Print what stands for things, one to a line."""
    sys.stdout.writelines(f"{clean_line(one)}\n" for one in ids)


def print_card(title: str, facts: Mapping[str, str | None]) -> None:
    """Print one thing's facts, a line each; None is left out."""
    from rich.text import Text

    console = stdout()
    console.print(Text(clean_line(title), style="bold"), soft_wrap=True)
    shown = {name: value for name, value in facts.items() if value is not None}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        first, *more = clean(value).split("\n")
        console.print(Text.assemble((f"  {name:<{width}}  ", "dim"), first), soft_wrap=True)
        for line in more:
            console.print(Text(" " * (width + 4) + line), soft_wrap=True)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object with the version of its schema."""
    whole = _make_finite({"schema_version": SCHEMA_VERSION, **value})
    click.echo(json.dumps(whole, default=_encode, indent=2, allow_nan=False))


def print_error(error: RegistryError, output: str, console: Console | None = None) -> None:
    """Print an error on stderr (or `console`): one line, and the table of differences where there is one."""
    if output == "json":
        fields = {"code": error.code, "message": error.message, "hint": error.hint, **error.fields}
        click.echo(json.dumps({"schema_version": SCHEMA_VERSION, "error": fields}, default=_encode), err=True)
        return
    from rich.text import Text

    differences = error.fields.get("differences")
    console = console or stderr()
    line = Text.assemble(("error", "bold red"), (f"[{error.code}] ", "red"), clean(error.message))
    if not differences and error.hint:
        # after a caret that points into the line above, the hint has a line of its own
        line.append(("\n" if "\n" in error.message else " ") + clean(error.hint))
    console.print(line, soft_wrap=True)
    if differences:
        console.print()
        _print_differences(console, differences)
        console.print()
        if error.hint:
            console.print(Text(clean(error.hint)), soft_wrap=True)


@functools.cache  # once
def print_warning(message: str) -> None:
    """Print a warning on stderr."""
    click.echo(f"warning: {clean(message)}", err=True)


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print a remark, or the one thing that was asked for; what it names from outside stays text."""
    click.echo(clean(text), err=err, nl=nl)


def say_title(text: str) -> None:
    """Print what stands over a part of what was asked for."""
    click.secho(clean(text), bold=True)


def print_exactly(text: str) -> None:
    """Print what another program reads back, such as a path that the user chose himself."""
    click.echo(text)


def stdout() -> Console:
    """Return a console on stdout; in a pipe it neither colours nor cuts."""
    return _console(sys.stdout)


def stderr() -> Console:
    """Return a console on stderr."""
    return _console(sys.stderr)


def format_parameters(count: int | None) -> str:
    """Write a number of parameters as people say it: 134.5M."""
    if count is None:
        return ""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= limit:
            return f"{count / limit:.4g}{unit}"
    return str(count)


def format_size(n_bytes: int) -> str:
    """Write a size in decimal units: 538.1 MB."""
    from rich.filesize import decimal

    return decimal(n_bytes)


def format_instant(instant: datetime | None) -> str:
    """Write an instant to the minute, in UTC."""
    return f"{instant:%Y-%m-%d %H:%M}" if instant else ""


def format_value(value: Any) -> str:
    """Write an architecture field's value; None is a field that is not there."""
    if value is None:
        return "—"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> None:
    cells = [{column.key: clean(_table_cell(row[column.key])).replace("\n", " ") for column in columns} for row in rows]
    columns = [replace(column, heading=clean_line(column.heading)) for column in columns]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    headings, *lines = lay_out(cells, columns, room)
    click.secho(headings, bold=True)
    click.echo("\n".join(lines))


def _encode_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Write what `print_json` would, row by row."""
    yield f'{{\n  "schema_version": {SCHEMA_VERSION},\n  "rows": ['
    comma = ""
    for row in rows:
        text = json.dumps(row, default=_encode, indent=2, allow_nan=False)
        yield f"{comma}\n{textwrap.indent(text, '    ')}"
        comma = ","
    yield "\n  ]\n}\n" if comma else "]\n}\n"


def _print_differences(console: Console, differences: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 3, 0, 2))
    for heading in ("field", "in config.json", "parent", "checkpoint"):
        table.add_column(heading, overflow="fold")
    for one in differences:
        cells = (one["field"], one["config_key"] or "", format_value(one["parent"]), format_value(one["checkpoint"]))
        table.add_row(*(Text(clean(cell)) for cell in cells))
    console.print(table)


def _table_cell(value: Any) -> str:
    if isinstance(value, datetime):
        return format_instant(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _csv_cell(value: Any) -> str:
    """Write a cell so that no spreadsheet takes it for a formula."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)  # -1 is a number
    text = value.isoformat() if isinstance(value, datetime) else _table_cell(value)
    return f"'{clean(text)}" if text.lstrip()[:1] in _FORMULA else clean(text)


def _make_finite(value: Any) -> Any:
    """Write what JSON has no number for as text: Infinity, -Infinity, NaN."""
    if isinstance(value, dict):
        return {key: _make_finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_make_finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _encode(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"no JSON for {type(value)}")


def _console(stream: Any) -> Console:
    from rich.console import Console

    return Console(file=stream, highlight=False, width=None if stream.isatty() else PIPE_WIDTH)
