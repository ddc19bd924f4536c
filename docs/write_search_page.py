"""Write the tables of docs/search.md from the code; a test fails when they are out of date."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from registry.search.fields import ARCHITECTURE, FUNCTIONS, KINDS, METRIC, TAG, VERSION_FIELDS
from registry.views import VIEWS

PAGE = Path(__file__).parent / "search.md"


def write_page(page: str) -> str:
    """Return the page with its tables as the code has them now."""
    for name, table in {"fields": _write_fields(), "functions": _write_functions(), "views": _write_views()}.items():
        block = f"<!-- {name}: written by make docs -->\n\n{table}\n<!-- end of {name} -->"
        page, n_found = re.subn(
            rf"<!-- {name}: .*?<!-- end of {name} -->", lambda _, block=block: block, page, flags=re.DOTALL
        )
        if n_found != 1:
            raise ValueError(f"{PAGE} has no place for the {name}")
    return page


def _write_fields() -> str:
    rows = {
        f"`{field.name}`": f"{KINDS[field.kind]} | {field.about}" for field in (*VERSION_FIELDS.values(), TAG, METRIC)
    }
    names = ", ".join(f"`{name}`" for name in ARCHITECTURE)
    return (
        f"{_write_table(('field', 'holds | what it is'), rows)}\n"
        f"Every field of an architecture; null where it has none: {names}.\n"
    )


def _write_functions() -> str:
    return _write_table(
        ("function", "what it says of a version"), {f"`{one}(REF)`": FUNCTIONS[one] for one in FUNCTIONS}
    )


def _write_views() -> str:
    heading = ("column", "what it is")
    tables = [
        f"### `{view}`\n\n" + _write_table(heading, {f"`{name}`": about for name, about in columns.items()})
        for view, columns in VIEWS.items()
    ]
    return "\n".join(tables)


def _write_table(heading: tuple[str, str], rows: Mapping[str, str]) -> str:
    n_columns = 1 + heading[1].count("|") + 1
    lines = [f"| {heading[0]} | {heading[1]} |", "|" + "---|" * n_columns]
    return "\n".join([*lines, *(f"| {name} | {about} |" for name, about in rows.items())]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(write_page(PAGE.read_text()))
