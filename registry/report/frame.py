"""The frame of every page: one HTML file that needs nothing else, readable in the light and in the dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from registry.plain_text import escape
from registry.report.figures import write_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --back: #fff; --soft: #667; --rule: #d8dbe0; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e7ea; --back: #16181c; --soft: #9aa0aa; --rule: #34383f; } }
body { color: var(--text); background: var(--back); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 62rem; padding: 0 1.5rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; } p, figcaption { color: var(--soft); }
figure { margin: 1.25rem 0; overflow-x: auto; } figure svg { max-width: 100%; height: auto; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem 1.25rem .3rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td.number { text-align: right; }
td.name { min-width: 8rem; font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }
"""


def write_page(title: str, parts: Sequence[str]) -> str:
    """Write a page of parts, which are HTML; `title` is text."""
    heading = escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{heading}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{heading}</h1>\n"
        f"{''.join(parts)}\n</body>\n</html>\n"
    )


def write_figure(drawn: Figure | None, caption: str) -> str:
    """Write a picture with what stands under it; nothing for no picture."""
    if drawn is None:
        return ""
    return f"<figure>{write_svg(drawn)}<figcaption>{escape(caption)}</figcaption></figure>\n"


def write_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table; headings that are all empty are left out."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names) if any(names) else ""
    body = "".join(f"<tr>{''.join(_cell(index, cell) for index, cell in enumerate(row))}</tr>" for row in rows)
    return f'<div class="wide"><table>{f"<tr>{head}</tr>" if head else ""}{body}</table></div>\n'


def _cell(index: int, cell: str) -> str:
    opening = "<td>" if index else '<td class="name">'
    return f"{opening}{escape(cell)}</td>"
